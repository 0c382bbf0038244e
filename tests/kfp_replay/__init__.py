"""Replays runs of a Kubeflow Pipelines server: `recording` writes answers, `moments` derives the earlier ones, `server` gives them."""
