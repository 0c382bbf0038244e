"""KFP components, one file per task: a few lines that call star.cluster, and the pre-flight star.doctor."""
