"""The stages as one KFP pipeline: compiled for a cluster, or run on this machine."""
