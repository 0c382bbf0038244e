"""One KFP component a stage: a few lines that call star.stages."""
