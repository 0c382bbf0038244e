"""The bounds of what others give: rows, schemas, documents. One value each, with the reason for it.

What is over a bound is a reject, or an InputError, that names the bound. All are far above what public data sets and documents need. A
bound that is too small for yours is changed here.
"""

# A record must fit into memory several times over, and no model is trained on one of that size.
RECORD_BYTES = 16 * 2**20
# The largest public OpenAPI documents have ten million bytes.
DOCUMENT_BYTES = 64 * 2**20
# Text that is no JSON and is tried as a Python literal: its syntax tree takes a hundred times its space.
LITERAL_CHARACTERS = 500_000
# A reject's record in rejects.jsonl. What is longer is cut: a record that was left out must not fill the disk.
REJECT_BYTES = 2**20
# Objects and lists inside each other. What is deeper cannot be written, copied and compared without a RecursionError.
DEPTH = 200
# Parts of a YAML document with its aliases and merge keys written out: a few nested aliases can mean billions.
DOCUMENT_PARTS = 1_000_000
# Schema parts of one tool that are written in place of references, which can fan out in the same way.
SCHEMA_PARTS = 20_000
# Keywords that combine schemas (anyOf, unevaluatedProperties, ...) that one check of a value may look at. Nested ones double the work.
SCHEMA_STEPS = 500_000
# A longer expression is a list of words and takes seconds to compile.
PATTERN_CHARACTERS = 10_000
# Repetitions inside each other of an expression that RE2 cannot run: the engine for these writes them out.
PATTERN_REPETITIONS = 20_000
# An expression that RE2 cannot run backtracks. Ordinary ones take microseconds.
PATTERN_SECONDS = 0.5
# Lost in all to such expressions, in one process. Then no more of them are tried, so that a file with many does not take hours.
PATTERN_SECONDS_IN_ALL = 20.0
# Characters, items of one list, and items of all lists in a value that is drawn for a schema, whatever its minLength and minItems ask
# for: a larger one fits no prompt.
DRAWN_CHARACTERS = 10_000
DRAWN_ITEMS = 1_000
DRAWN_ITEMS_IN_ALL = 10_000
# Values (objects, lists, texts, numbers) in a record: each takes up to 250 bytes, and a record is written, read and copied several times.
RECORD_PARTS = 500_000
# Brackets and commas of a JSON document. The largest public ones have one for each twenty bytes.
DOCUMENT_MARKS = 3_000_000
# Characters of a request in which near duplicates are searched. A longer one has near duplicates by its beginning.
COMPARED_CHARACTERS = 500_000
# Characters of the tools and schemas that one cache keeps. What was read of them takes several times the space.
CACHED_CHARACTERS = 16_000_000
# Processor time for one record, one tool or one generated row. Ordinary ones take milliseconds.
SECONDS_PER_RECORD = 1.5
# Lost in all to records that take longer, in one process. From then on a record has the second time, so that a file with many of them
# does not take hours. No ordinary record comes near it.
RECORD_SECONDS_IN_ALL = 60.0
SECONDS_PER_LATER_RECORD = 0.1
# Processor time for a document of tools, before its tools are read one by one. Ten million bytes of YAML take six.
SECONDS_PER_DOCUMENT = 20.0
# Rows of a table that are decoded at once: of the largest records these are 256 MiB, whatever the file's compression.
TABLE_BATCH_ROWS = 16
# Memory, in bytes, for decoding them, and processor time in seconds: a child process has no more.
TABLE_MEMORY = 768 * 2**20
TABLE_SECONDS = 20
# Bytes of all records of a table, once they are more than 256 MiB, for each byte of it. Tools that every record repeats are
# stored once, so this is more.
TABLE_EXPANSION = 1000
