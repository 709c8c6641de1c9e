"""The run's side of MLflow: append to a spool and keep a process that delivers it.

MLflow is a view.  A record costs one write to a file; importing MLflow, making its schema and waiting for its server
happen in the process of `mlflow_process`.  When that or MLflow is down the lines stay in the spool, on disk, until a
later process delivers them: of the same run, of its `--resume`, or of `deliver_leftovers`.

MLflow sees pooled metrics, public settings and commitments; no party's own metric, no count, no path, no user.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_core.records import RoundRecord
from server.environment import SETTINGS
from server.recorders.spool import NAME, Spool

RESTART_SECONDS = 5.0
_POLL_SECONDS = 0.02
_ROOT = Path(__file__).resolve().parents[2]


class MlflowRecorder:
    """Takes round records for MLflow; nothing here waits for MLflow but `run_id` and `finish`.

    Attributes
    ----------
    tracking_uri : as given to `start`.
    reason : why `finish` returned False; empty before.
    """

    def __init__(self, spool: Spool, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri
        self.reason = ""
        self._spool = spool
        self._open = contextlib.ExitStack()
        self._fd = -1
        self._trouble = ""
        self._lock = threading.Lock()
        self._steps: set[int] = set()
        self._child: subprocess.Popen[bytes] | None = None
        self._launched = 0.0

    @classmethod
    def start(
        cls,
        spool: Path,
        *,
        tracking_uri: str,
        artifacts: Path,
        experiment: str,
        run_name: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        datasets: Sequence[Mapping[str, str]] = (),
    ) -> MlflowRecorder:
        """Start the process; with a spool that exists, go on with its MLflow run.

        Parameters
        ----------
        spool : file of this run, made when it is not there.
        tracking_uri : MLflow's; kept in the spool, which is private.
        artifacts : folder for the experiment's artifacts when the experiment is new and there is no MLflow server.
        params, tags : public ones.
        datasets : `name`, `digest` (a commitment, never a plain hash) and `context` ("training") of each.
        """
        recorder = cls(Spool(spool), tracking_uri)
        before = recorder._resume()
        here = None if tracking_uri.startswith(("http://", "https://")) else artifacts.absolute().as_uri()
        now = _now()
        begin = {
            "do": "begin",
            "t": now,
            "spool": before["spool"] if before else secrets.token_hex(8),
            "started": before["started"] if before else now,
            "uri": _absolute(tracking_uri),
            "artifacts": here,
            "experiment": experiment,
            "name": run_name,
            "params": dict(params),
            "tags": dict(tags),
        }
        recorder._append(begin)
        recorder.add_datasets(datasets)
        recorder._keep_child()
        return recorder

    def record(self, record: RoundRecord) -> None:
        """Hand over one round; a round that the spool has already is left out.  Never raises because of MLflow."""
        with self._lock:
            if record.round in self._steps:
                return
            self._steps.add(record.round)
        self._append({"do": "round", "t": _now(), "step": record.round, "metrics": dict(record.metrics)})
        self._keep_child()

    def add_datasets(self, datasets: Sequence[Mapping[str, str]]) -> None:
        """Hand over datasets that became known after `start`."""
        if datasets:
            self._append({"do": "inputs", "t": _now(), "datasets": [dict(d) for d in datasets]})

    def steps(self) -> set[int]:
        """The rounds that the spool has: MLflow has them or will get them."""
        with self._lock:
            return set(self._steps)

    def run_id(self, timeout: float = 0.0) -> str | None:
        """The run's id in MLflow; None when it is not there after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (found := self._spool.load().mlflow_run_id) is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return found

    def finish(
        self,
        status: str,
        *,
        tags: Mapping[str, str] | None = None,
        note: str = "",
        artifacts: Sequence[tuple[str | Path, str]] = (),
        publish: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> bool:
        """End the run in MLflow and wait until everything is delivered, at most `timeout` seconds.

        Parameters
        ----------
        status : FINISHED, FAILED or KILLED.
        tags : public ones.
        note : the run's description, Markdown.
        artifacts : files, and the folder in MLflow of each.
        publish : `model` (a file), `name` to register it under and its `digest`.

        Returns
        -------
        bool : False when something is not in MLflow; `reason` says what, and where it waits.
        """
        end = {
            "do": "end",
            "t": _now(),
            "status": status,
            "tags": dict(tags or {}),
            "note": note,
            "artifacts": [[str(Path(path).absolute()), folder] for path, folder in artifacts],
            "publish": {**publish, "model": str(Path(publish["model"]).absolute())} if publish else None,
        }
        self._append(end)
        deadline = time.monotonic() + timeout
        while self._spool.is_behind() and time.monotonic() < deadline:
            self._keep_child()
            time.sleep(_POLL_SECONDS)
        self.reason = self._why()
        if not self._spool.is_behind() and self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout=2.0)
        self._open.close()
        self._fd = -1
        return not self.reason

    def version(self) -> str | None:
        """Version of the model that `finish` published."""
        return self._spool.load().version

    # ---- the spool

    def _resume(self) -> dict[str, Any] | None:
        """Open the spool; the last `begin` of a run that goes on."""
        try:
            self._fd = self._open.enter_context(self._spool.appending())
        except OSError as error:
            self._trouble = f"{self._spool.path} cannot be opened ({error.strerror})"
        self._steps = {line["step"] for line, _ in self._spool.lines() if line["do"] == "round"}
        return self._spool.begin()

    def _append(self, line: dict[str, Any]) -> None:
        data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            try:
                if self._fd < 0:
                    self._fd = self._open.enter_context(self._spool.appending())
                if os.write(self._fd, data) != len(data):
                    raise OSError(28, "no space left for a whole line")
            except OSError as error:
                self._trouble = f"{self._spool.path} cannot be written ({error.strerror})"
                self._open.close()  # opened again for the next line, which removes the torn one
                self._fd = -1

    def _why(self) -> str:
        """What is not in MLflow, in one line; empty when nothing is missing."""
        state = self._spool.load()
        if waiting := sum(1 for _ in self._spool.lines(state.offset)):
            cause = state.error or f"its process is slow or failed, see {self._spool.log}"
            lines = f"{waiting} line{'s' * (waiting > 1)} wait in {self._spool.path} for the next run"
            return f"{lines}: {cause}"
        if state.refused:
            return f"MLflow refused {state.refused} of the entries, see {self._spool.log}: {state.refusal}"
        return self._trouble

    # ---- the process

    def _keep_child(self) -> None:
        """Start the process if it is not there, at most once in some seconds."""
        with self._lock:
            now = time.monotonic()
            if self._child is not None and (self._child.poll() is None or now - self._launched < RESTART_SECONDS):
                return
            self._launched = now
            try:
                self._child = _launch(["--follow", str(os.getpid()), str(self._spool.path)], self._spool.log)
            except OSError as error:
                self._trouble = f"no process for MLflow ({error.strerror})"


def deliver_leftovers(runs: Path) -> list[Path]:
    """Start one process for the spools of runs that are gone; return those, which may be none.

    It leaves at the first failure: what it did not deliver waits for the next call.
    """
    left = []
    for path in sorted(runs.glob(f"*/{NAME}")):
        spool = Spool(path)
        state = spool.load()
        closed = state.ended or state.abandoned
        if (spool.is_behind() or not closed) and not spool.is_alive():
            left.append(spool)
    if left:
        _launch([str(spool.path) for spool in left], left[0].log)
    return [spool.path for spool in left]


def _launch(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start the process in a session of its own, so that Ctrl-C does not end it before it has delivered."""
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "server.recorders.mlflow_process", *arguments],  # -P: no ./server.py
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**SETTINGS, **os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )


def _absolute(uri: str) -> str:
    """A relative SQLite path means the folder of now, not that of a later process."""
    prefix = "sqlite:///"
    return prefix + os.path.abspath(uri[len(prefix) :]) if uri.startswith(prefix) else uri


def _now() -> int:
    return time.time_ns() // 1_000_000
