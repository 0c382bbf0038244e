"""Decides which version is the champion and keeps the records of all promotions.

gate.py          checks a candidate against the bars and the champion
ledger.py        the records: who wanted which version promoted, when and why, and which attempt won
ledger_store.py  where the records are written: a table of the tracking database, or a bucket
promote.py       promotes and rolls back: writes the ledger, then MLflow's aliases
reconcile.py     completes what a kill left unfinished, and checks the ledger
"""
