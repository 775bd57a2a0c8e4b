"""What the executor of profiles/slurm makes of a cluster's answers, with stand-ins for Slurm's commands.

``tests/cluster/run.sh`` tries it on a Slurm.
"""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake_interface_common.exceptions import WorkflowError

ROOT = Path(__file__).parents[2]
EXECUTOR = ROOT / "profiles" / "slurm" / "executor"
DISABLED = "echo 'Slurm accounting storage is disabled' >&2; exit 1"
Commands = Callable[..., None]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Put commands on PATH, ``name="shell script"``, and take all of Slurm's own off it."""

    def put(**scripts: str) -> None:
        for name, script in scripts.items():
            file = tmp_path / name
            file.write_text(f"#!/bin/sh\n{script}\n")
            file.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path))
    return put


@pytest.fixture(scope="module")
def site() -> types.ModuleType:
    """The module without its package, which needs Snakemake's plug-in for Slurm."""
    name = "snakemake_executor_plugin_slurm_checked"
    spec = importlib.util.spec_from_file_location("slurm_site", EXECUTOR / name / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_accounting_is_asked_where_it_answers(site: types.ModuleType, commands: Commands) -> None:
    commands(sacct="exit 0", squeue="exit 0", scontrol="echo 'MinJobAge               = 2 sec'")
    assert site.status_source("sacct", 20).command == "sacct"
    # Asked for, but jobs that ended are gone too soon.
    assert site.status_source("squeue", 20).command == "sacct"


def test_the_queue_is_asked_where_there_is_no_accounting(site: types.ModuleType, commands: Commands) -> None:
    commands(sacct=DISABLED, squeue="exit 0", scontrol="echo 'MinJobAge               = 300 sec'")
    assert site.status_source("sacct", 20) == ("squeue", 100)


@pytest.mark.parametrize(
    ("scripts", "found"),
    [
        (
            {"sacct": DISABLED, "squeue": "exit 0", "scontrol": "echo 'MinJobAge = 10 sec'"},
            "is disabled; MinJobAge of 10 s",
        ),
        ({"sacct": DISABLED, "squeue": "echo 'cannot\nconnect' >&2; exit 1"}, "is disabled; cannot connect"),
        ({}, "no command sacct; no command squeue"),
    ],
    ids=("ended jobs are gone", "no controller", "no Slurm"),
)
def test_where_nothing_tells_how_jobs_end_it_is_one_line(
    site: types.ModuleType, commands: Commands, scripts: dict[str, str], found: str
) -> None:
    commands(**scripts)
    with pytest.raises(WorkflowError) as caught:
        site.status_source("sacct", 20)
    line = str(caught.value)
    assert "\n" not in line and line.startswith("Slurm: expected accounting, or a MinJobAge of 60 s") and found in line


def test_a_partition_that_is_not_there_is_one_line(site: types.ModuleType, commands: Commands, tmp_path: Path) -> None:
    fault = "sbatch: error: invalid partition specified: GPU\nallocation failure: Invalid partition name specified"
    commands(sbatch=f"echo \"$@\" >> {tmp_path}/asked; echo '{fault}' >&2; exit 1", sinfo="echo long; echo cpu")
    assert site.refusal(["sbatch", "-p", "GPU"], "finetune", "partition GPU, account not named") == (
        "Slurm: expected a cluster that takes jobs of the rule finetune (partition GPU, account not named), "
        "found: allocation failure: Invalid partition name specified; its partitions are cpu, long"
    )
    assert (tmp_path / "asked").read_text() == "-p GPU --test-only --wrap=true\n"


@pytest.mark.parametrize("script", ("exit 0", "echo 'nodes are down, drained or reserved' >&2; exit 1"))
def test_jobs_that_can_start_later_are_taken(site: types.ModuleType, commands: Commands, script: str) -> None:
    commands(sbatch=script)
    assert site.refusal(["sbatch"], "finetune", "") is None


@pytest.fixture(scope="module")
def checked() -> types.ModuleType:
    """The executor itself, which asks for commands when it is imported."""
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="profiles/slurm/executor is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXECUTOR)
        return importlib.import_module("snakemake_executor_plugin_slurm_checked")


@pytest.fixture
def executor(checked: types.ModuleType, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An executor whose plug-in forgets its jobs; ``errors`` and ``lines`` are what it reports."""

    class Offline(checked.Executor):
        def __init__(self) -> None:
            settings = SimpleNamespace(status_command="sacct", requeue=False)
            self.workflow = SimpleNamespace(executor_settings=settings)
            self.logger = SimpleNamespace(error=self.said, debug=self.said)
            self.run_uuid, self.lines, self.errors = "run", [], []
            self._interrupted, self._settled, self._unseen_since, self._unanswered_since = False, set(), {}, None

        def said(self, line: str) -> None:
            self.lines.append(line)

        def report_job_error(self, job_info: SimpleNamespace, msg: str | None = None, **known: object) -> None:
            self.errors.append(msg)
            self._settled.add(job_info.external_jobid)

        def report_job_success(self, job_info: SimpleNamespace) -> None:
            self.lines.append(f"{job_info.external_jobid} is done")
            self._settled.add(job_info.external_jobid)

    async def forgets(self, active_jobs):
        for job in ():
            yield job

    monkeypatch.setattr(checked.plain.Executor, "check_active_jobs", forgets)
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(checked.time, "monotonic", lambda: clock.now)
    offline = Offline()

    def active(jobs: list[str], after: float) -> list[str]:
        async def ask() -> list[str]:
            given = [SimpleNamespace(external_jobid=job, aux={"slurm_logfile": "log"}) for job in jobs]
            return [job.external_jobid async for job in offline.check_active_jobs(given)]

        clock.now += after
        return asyncio.run(ask())

    return SimpleNamespace(active=active, offline=offline, commands=commands)


def test_no_job_is_forgotten_when_slurm_does_not_answer(executor: SimpleNamespace) -> None:
    executor.commands(sacct="exit 1")
    for _ in range(4):
        assert executor.active(["7", "8"], after=40) == ["7", "8"]
    assert [line for line in executor.offline.lines if "has not answered for 60 s" in line] == executor.offline.lines[
        :1
    ]
    assert len(executor.offline.lines) == 1 and not executor.offline.errors


def test_a_job_that_slurm_does_not_know_has_failed_after_a_minute(executor: SimpleNamespace) -> None:
    executor.commands(sacct="echo '8|RUNNING'", scontrol="echo 'Invalid job id specified' >&2; exit 1")
    assert executor.active(["7", "8"], after=0) == ["7", "8"]
    assert executor.active(["7", "8"], after=40) == ["7", "8"]
    assert executor.active(["7", "8"], after=40) == ["8"]
    assert executor.offline.errors == ["Slurm no longer knows job 7, so nothing says how it ended. "]


def test_a_job_that_somebody_cancelled_has_ended(executor: SimpleNamespace) -> None:
    executor.commands(sacct="echo '7|CANCELLED by 1000'; echo '8|COMPLETED'; echo '9|PENDING'")
    assert executor.active(["7", "8", "9"], after=0) == ["9"]
    assert executor.offline.errors == ["Slurm ended job 7: CANCELLED. "] and executor.offline.lines == ["8 is done"]


@pytest.mark.parametrize(("state", "goes_on"), [("RUNNING", True), ("COMPLETED", False), ("TIMEOUT", False)])
def test_where_sacct_has_nothing_the_controller_is_asked(executor: SimpleNamespace, state: str, goes_on: bool) -> None:
    executor.commands(sacct="exit 0", scontrol=f"echo JobId=7 JobName=run JobState={state} Reason=None")
    for _ in range(3):
        assert executor.active([] if executor.offline._settled else ["7"], after=60) == (["7"] if goes_on else [])
    assert len(executor.offline.errors) == (state == "TIMEOUT") and len(executor.offline.lines) == (
        state == "COMPLETED"
    )


def test_the_executor_is_whole_before_its_thread_starts(
    checked: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def asked_at_once(executor: object) -> list[object]:
        return [job async for job in executor.check_active_jobs([])]

    seen = []
    started = lambda self, workflow, logger: seen.append(asyncio.run(asked_at_once(self)))  # noqa: E731
    monkeypatch.setattr(checked.plain.Executor, "__init__", started)
    checked.Executor(None, None)
    assert seen == [[]]


def test_the_script_for_a_slurm_says_what_is_missing(commands: Commands, tmp_path: Path) -> None:
    for name in ("bash", "dirname", "realpath", "hostname", "id", "sed"):
        (tmp_path / name).symlink_to(next(p for p in (Path("/usr/bin") / name, Path("/bin") / name) if p.exists()))
    script = [str(ROOT / "tests" / "cluster" / "run.sh"), "--without-accounting", "--folder", str(tmp_path / "cluster")]
    done = subprocess.run(["/bin/bash", *script], capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert done.returncode == 3 and done.stdout == ""
    assert done.stderr.startswith("error: a Slurm to try: expected ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "cluster").exists()
