"""Submitted runs: each in a process of its own, which ends with the coordinator and can be resumed afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import IO, Any

from fl_core.config import load_job
from fl_core.errors import JobFailed, UsageError, WaitTimeout
from fl_core.job import Job
from fl_core.processes import from_here
from server.coordinator.folder import CoordinatorFolder
from server.coordinator.rights import check_parties
from server.coordinator.submission import Caller, Events, save
from server.registry import RunFolder, RunInfo, all_runs, find, find_unfinished, new_run_id
from server.runtimes.superlink import SuperLink
from server.trained import with_model

STOP_SECONDS, CHECK_SECONDS = 60.0, 120.0


class Runs:
    """The runs of a coordinator.  `start` is for its main thread: a process ends with the thread that started it."""

    def __init__(self, folder: CoordinatorFolder, superlink: SuperLink, exchange: str) -> None:
        self.folder, self.home, self._superlink, self._exchange = folder, folder.home, superlink, exchange
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    # ---- start and end

    def start(
        self, table: Mapping[str, Any], caller: Caller, *, resume: bool, order: Mapping[str, bytes] | None = None
    ) -> tuple[RunInfo, int]:
        """Check a job and start its process; returns the run and how many events it has had.

        `order` is what the submitter signed; it lies beside the job's table.

        Raises `UsageError`, `RefusedError` or `JobFailed`.
        """
        job, nodes = self._read(table)
        run, info = self._place(job, resume=resume)
        save(run.path, job.table() if job.kind == "predict" else table, caller, order)  # with the run of its model
        events = Events(run.path)
        had = events.count()
        self._spawn(run, info, nodes, resume=resume)
        return info, had

    def _read(self, table: Mapping[str, Any]) -> tuple[Job, dict[str, int]]:
        """The job and Flower's numbers of its parties' nodes."""
        try:
            job = with_model(load_job(table), self.home)
        except RecursionError:
            raise UsageError("the submitted job is nested too deeply; allowed: the tables of docs/jobs.md") from None
        if job.runtime != "deployment":
            raise UsageError(f"runtime {job.runtime!r}; allowed at a coordinator: deployment")
        names = [p.name for p in job.parties] + list(job.train.receivers)
        numbers = self.folder.nodes.flower_ids(names)
        check_parties(job, self.folder.nodes.all())
        return job, numbers

    def start_check(
        self, table: Mapping[str, Any], *, order: Mapping[str, bytes] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start asking every party whether it would join; `order` as in `start`, to look only."""
        _, nodes = self._read(table)
        told = {name: data.decode("ascii") for name, data in (order or {}).items()}
        return self._start("check_process", new_run_id(), nodes, subprocess.PIPE, job=dict(table), order=told)

    def end_check(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """What the parties said."""
        try:
            out, _ = process.communicate(timeout=CHECK_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise WaitTimeout("the parties' answers to a check", CHECK_SECONDS) from None
        if process.returncode:
            raise JobFailed("the check failed; the coordinator's output says more")
        return dict(json.loads(out))

    def _place(self, job: Job, *, resume: bool) -> tuple[RunFolder, RunInfo]:
        if resume:
            run, info = find_unfinished(self.home, job.digest())
            if self.is_going_on(run):
                raise JobFailed(f"run {info.run} of this job is running; fedseal logs {info.run} --follow")
            return run, info
        number = new_run_id()
        out = str(self.home.runs / number / "out")
        os.makedirs(out, exist_ok=True)
        info = RunInfo(number, job.name, job.kind, job.runtime, job.digest(), out, time.time(), os.getpid())
        return RunFolder.create(self.home, info), info

    def _spawn(self, run: RunFolder, info: RunInfo, nodes: dict[str, int], *, resume: bool) -> None:
        with run.log.open("ab") as log:
            process = self._start("run_process", info.run, nodes, log, resume=resume)
        if resume:
            Events(run.path).add("resumed", 0, {})
        self._processes[info.run] = process

    def _start(
        self, program: str, run: str, nodes: dict[str, int], out: IO[bytes] | int, **more: Any
    ) -> subprocess.Popen[bytes]:
        """Start a Flower run and the process that works on it, which gets its secrets on stdin."""
        task = self._superlink.start_run(run)
        given = {
            "task": {"task_id": task.task_id, "run_id": task.run_id, "token": task.token},
            "address": self._superlink.address,
            "ca": self._superlink.ca.decode(),
            "nodes": nodes,
            "exchange": self._exchange,
            **more,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", f"server.coordinator.{program}", str(self.home.path), run],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=None if out == subprocess.PIPE else out,
            env={**os.environ, **from_here()},
            start_new_session=True,
        )
        assert process.stdin is not None
        pipe, process.stdin = process.stdin, None  # `communicate` would flush it again
        try:
            with pipe:
                pipe.write(json.dumps(given).encode())
        except BrokenPipeError:
            process.kill()
            process.communicate()
            ended = f"the process of run {run} ended at its start (code {process.returncode})"
            log = "the coordinator's output" if isinstance(out, int) else str(out.name)
            raise JobFailed(f"{ended}; {log} says more") from None
        return process

    def reap(self) -> list[tuple[str, int]]:
        """Runs whose process has ended since the last look, with its exit code."""
        ended = [(run, code) for run, p in self._processes.items() if (code := p.poll()) is not None]
        for run, _ in ended:
            del self._processes[run]
        return ended

    @property
    def active(self) -> list[str]:
        """Runs that go on."""
        return list(self._processes)

    def stop_all(self) -> None:
        """Stop every run so that it can be resumed; called when the coordinator ends."""
        for run in self._processes:
            RunFolder(self.home.runs / run).ask_to_stop()
        end = time.monotonic() + STOP_SECONDS
        for process in self._processes.values():
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # ---- what people ask

    def find(self, wanted: str) -> tuple[RunFolder, RunInfo]:
        """A run by any of its names."""
        return find(self.home, wanted)

    def all(self) -> list[RunInfo]:
        """Every run, oldest first."""
        return [info for _, info in all_runs(self.home)]

    def is_going_on(self, run: RunFolder) -> bool:
        """Whether a run's process is there; it holds the run's lock a moment after it has started."""
        process = self._processes.get(run.path.name)
        return (process is not None and process.poll() is None) or run.is_alive()
