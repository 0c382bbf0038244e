"""The configuration of an experiment: one file per group of sections, `experiment.py` for the whole, `load.py` for reading it from YAML."""
