"""Several runs of the scripts in one process of torchrun: python distributed_jobs.py JOBS.json

JOBS.json is a list of {"script", "argv", "signal"}; a signal is null or [number, step, rank] (signalled_training.py).
The exit statuses, a list for every process, go to JOBS.RANK.json.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

from signalled_training import send_at
from trainer import Trainer

if __name__ == "__main__":
    jobs, update, statuses = Path(sys.argv[1]), Trainer._update, []
    for job in json.loads(jobs.read_text()):
        if job["signal"]:
            send_at(*job["signal"])
        statuses.append(importlib.import_module(job["script"]).main(job["argv"]))
        Trainer._update = update
    jobs.with_suffix(f".{os.environ['RANK']}.json").write_text(json.dumps(statuses))
