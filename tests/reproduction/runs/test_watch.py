"""How far trainings are, as the terminal of a workflow shows it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reproduction.runs.watch import Report, Watch, last_report

TRANSFORMER_XL = "| step    200/500 | lr 0.0024 |   8931 tokens/s | loss 4.301 | ppl    73.740\n"
FAIRSEQ = (
    "2026-11-28 12:43:50 | INFO | fairseq_cli.train | {'max_update': 1000, 'lr': [0.002]}\n",
    "2026-11-28 12:43:55 | INFO | train_inner | epoch 004: 61 / 313 loss=4.922, ppl=14.85, num_updates=400, lr=0\n",
)
TRAINER = "{'loss': '0.6931', 'grad_norm': '1.026', 'learning_rate': '9.182e-05', 'epoch': '0.1333'}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TRANSFORMER_XL + "| valid at step 500 | loss 3.8796 | ppl 48.407 | best\n", Report(4.301, 200, 500)),
        ("".join(FAIRSEQ), Report(4.922, 400, 1000)),
        (FAIRSEQ[0] + "x" * 40_000 + "\n" + FAIRSEQ[1], Report(4.922, 400, 1000)),
        (FAIRSEQ[1], Report(4.922, 400, None)),
        (
            TRAINER + "{'train_runtime': '47.07', 'train_loss': '0.6597', 'epoch': '0.8'}\n",
            Report(0.6931, epoch=0.1333),
        ),
        ("Key | Status\n", None),
        ("", None),
    ],
)
def test_the_last_report_of_a_log(text: str, expected: Report | None, tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text(text)
    assert last_report(log) == expected


def test_only_what_is_new_of_what_runs_is_said(tmp_path: Path) -> None:
    running, done, old = (tmp_path / name / "train.log" for name in ("a/tau0.9/seed1", "done", "old"))
    for log in (running, done, old):
        log.parent.mkdir(parents=True)
        log.write_text(TRANSFORMER_XL)
    (done.parent / "run.json").write_text("{}")
    os.utime(old, (100.0, 100.0))
    watch = Watch(tmp_path, since=200.0)
    assert watch.news(1000.0) == [f"  a/tau0.9/seed1: step 200 of 500, loss 4.3 ({running})"]
    assert watch.news(1010.0) == []
    running.write_text(TRANSFORMER_XL.replace("200/500", "300/500"))
    assert watch.news(1020.0) == [f"  a/tau0.9/seed1: step 300 of 500, loss 4.3, about 40 s left ({running})"]
    running.write_text(TRANSFORMER_XL.replace("200/500", "301/500"))
    assert "about 33 min left" in watch.news(1000.0 + 1010.0)[0]


def test_it_is_the_command_with_news_between(tmp_path: Path) -> None:
    program = (
        "import pathlib, time\n"
        f"log = pathlib.Path({str(tmp_path)!r}) / 'x' / 'train.log'\n"
        "log.parent.mkdir()\n"
        f"log.write_text({TRANSFORMER_XL!r})\n"
        "time.sleep(1.5)\n"
        "raise SystemExit(3)"
    )
    command = [sys.executable, "-m", "reproduction.runs.watch", "--runs", str(tmp_path), "--interval", "0.3", "--"]
    done = subprocess.run([*command, sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stdout == f"  x: step 200 of 500, loss 4.3 ({tmp_path / 'x' / 'train.log'})\n"


def test_control_c_is_the_commands_to_handle(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: (time.sleep(0.5), sys.exit(7)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-m", "reproduction.runs.watch", "--runs", str(tmp_path), "--interval", "0.2", "--"]
    running = subprocess.Popen(
        [*command, sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert running.stdout.readline() == "ready\n"
    time.sleep(0.3)
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(20) == 7
