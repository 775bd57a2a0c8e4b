"""Snakemake's executor for Slurm, with what a site lacks found before anything is submitted, and no job forgotten.

The plug-in that this one extends forgets every job once a query of their state fails, as ``sacct`` always does on a
cluster without accounting: the workflow then waits for ever, and an interruption cancels nothing.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import AsyncGenerator
from typing import Any

import snakemake_executor_plugin_slurm as plain
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface

from snakemake_executor_plugin_slurm_checked.site import ENDED, refusal, run, state_of, status_source

# Every option of the plug-in, as --slurm-checked-...
ExecutorSettings = plain.ExecutorSettings
common_settings = plain.common_settings

#: Seconds after which a job that Slurm does not know has failed, and after which it is said that nothing answers.
PATIENCE = 60
#: Seconds between two queries, at most, where the plug-in's pauses grow to three minutes.
LONGEST_SLEEP = 60
#: Seconds that an interruption waits until Slurm has ended all jobs.
LAST_WAIT = 60


class Executor(plain.Executor):
    def __init__(self, workflow: Any, logger: Any) -> None:
        # Before the thread starts that looks after jobs: should it fail, the workflow would wait for ever.
        self._longest_sleep = float(LONGEST_SLEEP)
        self._interrupted = False
        self._settled: set[str] = set()
        self._unseen_since: dict[str, float] = {}
        self._unanswered_since: float | None = None
        super().__init__(workflow, logger)

    def __post_init__(self, test_mode: bool = False) -> None:
        settings = self.workflow.executor_settings
        source = status_source(settings.status_command, settings.init_seconds_before_status_checks)
        # Without a command the plug-in does not warn of the one that it would take.
        settings.status_command = None
        super().__post_init__(test_mode)
        settings.status_command = source.command
        self._longest_sleep = min(source.longest_sleep, LONGEST_SLEEP)
        self.slurm_logdir.mkdir(parents=True, exist_ok=True)
        self.ask_before_submitting()

    def ask_before_submitting(self) -> None:
        """Have Slurm judge one job of each kind.

        Raises
        ------
        WorkflowError
            If it would refuse one: with its reason, in one line.
        """
        asked = set()
        for job in self.workflow.dag.needrun_jobs():
            if job.is_local:
                continue
            try:
                call = self.submission(job)
            except (TypeError, AttributeError):
                # Some resource is not known before other jobs have ended.
                continue
            if call in asked:
                continue
            asked.add(call)
            wanted = [
                f"{name} {job.resources.get(f'slurm_{name}') or 'not named'}" for name in ("partition", "account")
            ]
            if fault := refusal(shlex.split(call), job.rule.name, ", ".join(wanted)):
                raise WorkflowError(fault)

    def submission(self, job: JobExecutorInterface) -> str:
        """What ``sbatch`` is asked for a job, without its command."""
        known = {
            "run_uuid": "asked",
            "slurm_logfile": "/dev/null",
            "comment_str": "asked",
            "account": next(self.get_account_arg(job)),
            "partition": self.get_partition_arg(job),
            "workdir": self.workflow.workdir_init,
        }
        settings = self.workflow.executor_settings
        return get_submit_command(job, known, settings=settings) + set_gres_string(job)

    def get_account_arg(self, job: JobExecutorInterface):
        """Yield the accounts that a job names; without one, Slurm takes the user's own."""
        accounts = str(job.resources.get("slurm_account") or "").replace(",", " ").split()
        yield from ([f" -A {shlex.quote(account)}" for account in accounts] or [""])

    def get_partition_arg(self, job: JobExecutorInterface) -> str:
        """Return the partition that a job names, or one of a partition file; without one, Slurm takes its default."""
        if job.resources.get("slurm_partition") or self._partitions:
            return super().get_partition_arg(job)
        return ""

    def run_job(self, job: JobExecutorInterface) -> None:
        if not self._interrupted:
            super().run_job(job)

    def run_array_jobs(self, jobs: list[JobExecutorInterface]) -> None:
        if not self._interrupted:
            super().run_array_jobs(jobs)

    def report_job_success(self, job_info: SubmittedJobInfo) -> None:
        self._settled.add(job_info.external_jobid)
        super().report_job_success(job_info)

    def report_job_error(self, job_info: SubmittedJobInfo, msg: str | None = None, **known: Any) -> None:
        self._settled.add(job_info.external_jobid)
        super().report_job_error(job_info, msg=msg, **known)

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Yield the jobs that go on, those that the plug-in has no answer for included.

        The plug-in settles what it can; it takes "CANCELLED by 1000", as ``sacct`` says, for a job that goes on.
        """
        if self._interrupted or not active_jobs:
            return
        async for _ in super().check_active_jobs(active_jobs):
            pass
        open_jobs = [job for job in active_jobs if job.external_jobid not in self._settled]
        states = await asyncio.to_thread(self.states) if open_jobs else {}
        now = time.monotonic()
        if states is None:
            self.note_silence(now)
        else:
            self._unanswered_since = None
        for job in open_jobs:
            if states is None or not self.settle(job, states, now):
                yield job

    def settle(self, job: SubmittedJobInfo, states: dict[str, str], now: float) -> bool:
        """Report a job that has ended, or that nobody knows any more; false if it goes on."""
        number = job.external_jobid
        state = states.get(number) or states.get(number.partition("_")[0]) or state_of(number)
        if state is None and now - self._unseen_since.setdefault(number, now) < PATIENCE:
            return False
        if state is None:
            self.report_job_error(job, msg=f"Slurm no longer knows job {number}, so nothing says how it ended. ")
        elif state == "COMPLETED":
            self.report_job_success(job)
        elif state in ENDED and not (state == "NODE_FAIL" and self.workflow.executor_settings.requeue):
            self.report_job_error(
                job, msg=f"Slurm ended job {number}: {state}. ", aux_logs=[str(job.aux["slurm_logfile"])]
            )
        else:
            self._unseen_since.pop(number, None)
            return False
        return True

    def states(self) -> dict[str, str] | None:
        """The state of each of this run's jobs that Slurm lists, in one word; None if it does not answer."""
        if self.workflow.executor_settings.status_command == "sacct":
            command = plain.query_job_status_sacct(self.run_uuid)
        else:
            command = plain.query_job_status_squeue(self.run_uuid)
        answer = run(shlex.split(command))
        if answer.status:
            return None
        # sacct says who: "CANCELLED by 1000".
        rows = [line.split("|") for line in answer.text.splitlines()]
        return {row[0].strip(): row[1].split()[0] for row in rows if len(row) > 1 and row[1].split()}

    def note_silence(self, now: float) -> None:
        """Say once that Slurm does not answer. Its jobs may well go on, so they are waited for."""
        if self._unanswered_since is None:
            self._unanswered_since = now
        elif 0 < self._unanswered_since <= now - PATIENCE:
            command = self.workflow.executor_settings.status_command
            self.logger.error(f"Slurm: {command} has not answered for {PATIENCE} s; jobs are waited for until it does")
            self._unanswered_since = float("inf")

    async def sleep(self) -> None:
        """Wait for the next query in short steps, so that an interruption need not wait for it."""
        pause = self.next_seconds_between_status_checks
        pause = PATIENCE / 3 if self._unseen_since or self._unanswered_since is not None else pause
        end = time.monotonic() + min(pause, self._longest_sleep)
        while self.wait and time.monotonic() < end:
            await asyncio.sleep(0.5)

    def cancel(self) -> None:
        """End every job of this run, those too that are just being submitted, and wait until Slurm has none of them."""
        self._interrupted = True
        self._job_submission_executor.shutdown(wait=True, cancel_futures=True)
        clusters = ["--clusters=all"] if self._submitted_job_clusters else []
        answer = run(["scancel", f"--name={self.run_uuid}", *clusters])
        end = time.monotonic() + LAST_WAIT
        while not answer.status and time.monotonic() < end:
            left = run(["squeue", "--noheader", "--format=%i", f"--name={self.run_uuid}", *clusters])
            if not left.status and not left.text.strip():
                break
            time.sleep(1)
        else:
            self.logger.error(f"Slurm: jobs may be left; end them with: scancel --name={self.run_uuid}")
        self.shutdown()
