"""Decides which version is the champion and keeps the records of all promotions.

gate.py                    checks a candidate against the bars and the champion
ledger.py                  the chain of records: who wanted which version promoted, and which attempt won; verified at each read
records.py                 the records themselves, as they are stored
signatures.py              signs records with the key of STAR_LEDGER_KEY
registry_id.py             which ledger is whose, where several registries share one place
audit.py                   checks all records of a ledger, and says what became of each attempt
open_ledger.py             opens a model's ledger
repair.py                  takes damaged records out, signs a ledger that was begun without a key
ledger_store.py            where the records are written: a table of the tracking database, or a bucket
version_records.py         which files a version has, and what the gate said of them, beside the chain
register_model.py          registers a model, and takes a version for it only where all its files are the model's
moved_aliases.py           judges aliases that somebody moved in MLflow
find.py                    finds the version that a user names, by the aliases that hold
overview.py                what `star models` shows
copy_version.py            copies a version to another registry
promote_and_rollback.py    promotes and rolls back: writes the ledger, then MLflow's aliases
promote_by_reference.py    what `star promote` does: a version as a user names it, here or in another registry
reconcile.py               completes what a kill left unfinished, and checks the ledger
"""
