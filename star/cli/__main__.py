"""Runs the command line as `python -m star.cli`, which is how torchrun starts every process of a training."""

from star.cli.main import main

main()
