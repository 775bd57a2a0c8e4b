"""train.py, in a process of its own that gets a signal in the middle of a step.

python signalled_training.py SIGNAL STEP RANK FLAGS...      RANK: the process that gets it, of several
"""

from __future__ import annotations

import os
import sys

import train
from reproduction.runs.command import run_main
from trainer import Trainer


def send_at(number: int, step: int, rank: int) -> None:
    """Let the update after ``step`` finished ones begin with a signal."""
    update = Trainer._update

    def update_or_die(self):
        if self.step == step and self.accelerator.process_index == rank:
            os.kill(os.getpid(), number)
        return update(self)

    Trainer._update = update_or_die


if __name__ == "__main__":
    send_at(*map(int, sys.argv[1:4]))
    run_main(lambda: train.main(sys.argv[4:]))
