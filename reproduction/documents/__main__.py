"""``python -m reproduction.documents``."""

from reproduction.documents.blocks import main
from reproduction.runs.command import run_main

run_main(main)
