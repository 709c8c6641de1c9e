"""The runs of a home: one folder each, found by run id, MLflow run id, name or output folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fl_core.errors import JobFailed, UsageError
from fl_core.files import locked, write_atomic
from fl_core.home import Home

ACTIVE = "running"
UNFINISHED = (ACTIVE, "failed", "stopped", "interrupted")


@dataclasses.dataclass
class RunInfo:
    """What is known of a run; `status` is running, done, failed, refused, stopped or interrupted."""

    run: str
    name: str
    kind: str
    runtime: str
    job: str
    out: str
    started: float
    pid: int
    status: str = ACTIVE
    mlflow_run_id: str | None = None
    ended: float | None = None
    error: str = ""
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    coordinator: str = ""  # where a run that was submitted from here runs


class RunFolder:
    """One run's folder in the coordinator's home."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, home: Home, info: RunInfo) -> RunFolder:
        """Make the folder of a new run."""
        folder = cls(home.runs / info.run)
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.save(info)
        return folder

    @property
    def spool(self) -> Path:
        """What MLflow is told, line by line."""
        return self.path / "mlflow.jsonl"

    @property
    def log(self) -> Path:
        """What the run and its workers print."""
        return self.path / "log.txt"

    @property
    def _stop(self) -> Path:
        return self.path / "stop"

    def info(self) -> RunInfo:
        """The stored facts; a run whose process is gone is "interrupted"."""
        info = RunInfo(**json.loads((self.path / "run.json").read_text(encoding="utf-8")))
        if info.status == ACTIVE and not info.coordinator and not self.is_alive():
            info.status = "interrupted"
        return info

    def save(self, info: RunInfo) -> None:
        """Store the facts."""
        write_atomic(self.path / "run.json", json.dumps(dataclasses.asdict(info), indent=1).encode())

    def is_alive(self) -> bool:
        """Whether a process holds the run."""
        with locked(self.path / "lock", wait=False) as free:
            return not free

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run; `JobFailed` when another process does."""
        with locked(self.path / "lock", wait=False) as free:
            if not free:
                raise JobFailed(f"run {self.path.name} is already running in another process")
            self._stop.unlink(missing_ok=True)
            yield

    def ask_to_stop(self) -> None:
        """Ask the run's process to stop after the reply at hand."""
        self._stop.touch()

    def is_stopping(self) -> bool:
        """Whether somebody asked."""
        return self._stop.exists()

    def write_log(self, text: str) -> None:
        """Add a line to the run's log; a disk that is full must not hide what there was to say."""
        with contextlib.suppress(OSError), self.log.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def new_run_id() -> str:
    """16 hex characters, and below 2^63 as a number, for Flower."""
    return f"{secrets.randbits(63):016x}"


def all_runs(home: Home) -> list[tuple[RunFolder, RunInfo]]:
    """Every run, oldest first."""
    folders = [RunFolder(p.parent) for p in home.runs.glob("*/run.json")]
    return sorted(((f, f.info()) for f in folders), key=lambda pair: pair[1].started)


def find(home: Home, wanted: str) -> tuple[RunFolder, RunInfo]:
    """The newest run that `wanted` names: run id, MLflow run id, run name or output folder."""
    runs = all_runs(home)
    as_path = os.path.abspath(wanted)
    for folder, info in reversed(runs):
        if wanted in (info.run, info.mlflow_run_id, info.name) or info.out == as_path:
            return folder, info
    names = ", ".join(dict.fromkeys(i.name for _, i in reversed(runs[-5:]))) or "none yet"
    raise UsageError(
        f"RUN {wanted!r}: no such run in {home.path}; allowed: a run or MLflow run id, a name, an --out ({names})"
    )


def find_unfinished(home: Home, digest: str) -> tuple[RunFolder, RunInfo]:
    """The newest run of that very job, if it did not finish; one that was refused never began and is passed over."""
    began = [(f, i) for f, i in all_runs(home) if i.job == digest and i.status != "refused"]
    if began and began[-1][1].status in UNFINISHED:
        return began[-1]
    raise UsageError(f"--resume: no unfinished run of this job (digest {digest[:16]}…) in {home.path}")


def facts(info: RunInfo) -> dict[str, Any]:
    """For `--json`."""
    return dataclasses.asdict(info)
