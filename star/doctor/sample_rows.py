"""Makes a few rows as the stage synthesize would, and measures how long they are: time and memory of a run depend on it."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

from star.config.data import Data, RowSource
from star.config.experiment import Config
from star.config.files import Input
from star.data.rows import Reject
from star.errors import InputError

MADE_ROWS = 64  # generated, on which also the tokenizer of a model from scratch is trained
SEED_ROWS = 64  # read of each set
TURN_ROWS = 1000  # read of a set whose every turn is a row, to know how many a record has
COUNTED_ROWS = 200_000  # of each set; more are not counted
# Where no row can be measured: typical ones.
PROMPT_TOKENS, COMPLETION_TOKENS = 2000, 150


@dataclass(frozen=True)
class Lengths:
    """How many rows a run has, and how long they are.

    Attributes:
        read_rows: rows that are generated or imported.
        rows: those of the training set that are short enough to be used.
        prompt_tokens, completion_tokens: means over the used rows.
        heldout_prompt_tokens: mean over all rows. Held-out rows are used whatever their length.
    """

    read_rows: int
    rows: int
    prompt_tokens: float
    completion_tokens: float
    heldout_prompt_tokens: float


def typical_lengths(config: Config) -> Lengths:
    """Typical lengths within the limits of a profile, and the number of its rows, of which none is looked at.

    Raises:
        InputError: a set of rows cannot be read.
    """
    prompt, made = min(PROMPT_TOKENS, config.max_prompt_tokens), _count_rows(config.data)
    completion = min(COMPLETION_TOKENS, config.rollout.kept_tokens)
    return Lengths(made, max(0, made - config.data.heldout_rows), prompt, completion, prompt)


def sample_rows(config: Config) -> tuple[list[dict[str, Any]], int]:
    """Returns the clean ones of a few rows, and how many rows were looked at: the first of each set that is read, and generated ones.

    Raises:
        InputError: there are none, or none is clean.
    """
    from star.data.cleaning import clean
    from star.data.filters import checks_of
    from star.data.generate_offline import generate_rows
    from star.data.row_sources import read_seed_data, read_source
    from star.data.tool_files import load_tools

    data = config.data
    if data.seed_data is None and not data.sources and not data.generated_rows:
        raise InputError(
            "this profile has no rows: give yours with --seed-data, `data.seed_data` or `data.sources`, or set `data.generated_rows`"
        )
    given = [read_seed_data(data), *(read_source(source) for source in data.sources)]
    made = generate_rows(
        load_tools(data.tools.read_verified()),
        min(data.generated_rows, MADE_ROWS),
        seed=config.seed,
        tools_per_prompt=data.tools_per_prompt,
        kinds=data.kinds,
        masked=data.masked,
    )
    cleaned = clean([*chain.from_iterable(islice(rows, SEED_ROWS) for rows in given), *made], checks_of(data))
    if not cleaned.kept:
        raise InputError(
            f"none of the first {len(cleaned.rejects)} rows is clean ({cleaned.reasons()}): correct `data.seed_data` "
            "or `data.sources`, or generate rows"
        )
    return cleaned.kept, len(cleaned.kept) + len(cleaned.rejects)


def measure_lengths(config: Config) -> Lengths:
    """Measures a few rows with the tokenizer of a pretrained teacher.

    Raises:
        InputError: no row is clean or short enough, or the tokenizer cannot be loaded.
    """
    from star.modeling.bases import open_tokenizer
    from star.modeling.prompts import render_rows
    from star.modeling.tokenizer import tokenize

    limit, read_rows = config.max_prompt_tokens, _count_rows(config.data)
    rows, looked_at = sample_rows(config)
    tokenizer = open_tokenizer(config.teacher).tokenizer
    prompts = render_rows(rows, tokenizer)

    def count(texts: list[str]) -> list[int]:
        return [len(ids) for ids in chain.from_iterable(tokenize(texts, tokenizer))]

    prompt_lengths = count([prompt.text for prompt in prompts])
    answer_lengths = count([prompt.target_after_opening for prompt in prompts])
    used = [place for place, length in enumerate(prompt_lengths) if length <= limit]
    if not used:
        raise InputError(f"all of the first {len(rows)} prompts are longer than max_prompt_tokens = {limit}: raise it")
    trained = max(0, read_rows * len(rows) / looked_at - config.data.heldout_rows) * len(used) / len(rows)
    return Lengths(
        read_rows,
        int(trained),
        fmean(prompt_lengths[place] for place in used),
        fmean(answer_lengths[place] for place in used),
        fmean(prompt_lengths),
    )


def most_rows(data: Data, *, enough: int) -> int:
    """The most rows that a run can have: generated ones, and given ones as far as they can be read. Cleaning leaves some out.

    Args:
        enough: given rows are counted up to this number of all rows.

    Raises:
        InputError: a set of rows cannot be read.
    """
    from star.data.row_sources import read_seed_data, read_source

    count = data.generated_rows
    if count < enough:
        count += _count_readable(read_seed_data(data), most=enough - count)
    for source in data.sources:
        if count < enough:
            share = source.share or 1
            found = _count_readable(read_source(source), most=ceil((enough - count) / share))
            count += min(round(found * share), source.rows or found)
    return count


def _count_readable(rows: Iterable[object], *, most: int) -> int:
    return sum(1 for _ in islice((row for row in rows if not isinstance(row, Reject)), most))


def _count_rows(data: Data) -> int:
    """Rows that are generated, and records of all sets that are read. Of a sampled set they are those that are used, which are clean."""
    count = float(data.generated_rows)
    if data.seed_data:
        count += _count_records(data.seed_data, most=COUNTED_ROWS)
    for source in data.sources:
        turns = _turns_per_record(source) if source.every_turn else 1
        found = turns * _count_records(source.path, most=source.rows or COUNTED_ROWS)
        count += min(found * (source.share or 1), source.rows or found)
    return int(count)


def _turns_per_record(source: RowSource) -> float:
    """Rows per record of a set whose every turn is a row, by its first rows."""
    from star.data.row_sources import read_source
    from star.data.splits import conversation_id

    rows = list(islice(read_source(source), TURN_ROWS))
    records = {row.id if isinstance(row, Reject) else conversation_id(row) for row in rows}
    return len(rows) / max(1, len(records))


def _count_records(rows: Input, *, most: int) -> int:
    return _count_verified(rows.read_verified(), rows.sha256, most)


@cache
def _count_verified(path: Path, sha256: str, most: int) -> int:
    """Counts the records of a file or folder once per process: several estimates ask, and a large file takes a minute."""
    from star.data.read_records import read_records
    from star.data.row_files import row_files

    return sum(1 for _ in islice(chain.from_iterable(map(read_records, row_files(path))), most))
