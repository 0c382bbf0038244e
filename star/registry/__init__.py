"""Publishes models in MLflow, downloads them, shows their lineage, and decides which version is the champion (promotion/).

`register.py` is the pipeline's last stage and uses all the others. `versions.py` lists versions as MLflow shows them,
`find_model.py` finds the one that a user names, `publish.py` and `download.py` move their files, `location.py` says where
files and ledgers are kept.
"""
