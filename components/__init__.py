"""KFP components, one file per task: a few lines that call star.stages, star.cluster or star.doctor."""
