"""``python -m reproduction.analysis.figures``."""

from reproduction.analysis.figures.command import main
from reproduction.runs.command import run_main

run_main(main)
