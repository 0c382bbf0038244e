"""The stages as one KFP pipeline: compiled for a cluster, submitted to a KFP server, or run on this machine."""
