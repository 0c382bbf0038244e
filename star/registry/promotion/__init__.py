"""Decides which version is the champion and keeps the records of all promotions.

gate.py                    checks a candidate against the bars and the champion
ledger.py                  the records: who wanted which version promoted, when and why, and which attempt won
ledger_store.py            where the records are written: a table of the tracking database, or a bucket
promote_and_rollback.py    promotes and rolls back: writes the ledger, then MLflow's aliases
promote_by_reference.py    what `star promote` does: a version as a user names it, here or in another registry
reconcile.py               completes what a kill left unfinished, and checks the ledger
"""
