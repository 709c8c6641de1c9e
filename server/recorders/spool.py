"""What the run and the MLflow process share: the spool, and how far it has been delivered.

The spool holds one JSON object a line, named by `do`:

=======  ====================================================================================================
begin    where MLflow is, experiment, run name, parameters, tags; again on each resume, and the last one counts
inputs   datasets, by commitment
round    step, time in ms, metrics as decimal texts
end      status, tags, note, artifacts, the model to publish; a resumed run goes on after it
=======  ====================================================================================================

Only the run appends to it, only the holder of `SPOOL.lock` delivers it and writes `SPOOL.state`.  Private (0600):
a tracking URI may hold a password.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fl_core.files import locked, write_atomic

NAME = "mlflow.jsonl"


@dataclasses.dataclass(frozen=True)
class State:
    """How far a spool has been delivered.

    Attributes
    ----------
    mlflow_run_id : the run in MLflow, once it is there.
    offset : bytes of the spool that MLflow has.
    ended : the last delivered line was an `end`.
    abandoned : the process of the run was gone before it wrote an `end`; MLflow shows the run as killed.
    error : why delivery does not go on at present; empty when it does.
    refused : lines of which MLflow took only a part or nothing, for good.
    refusal : the latest such answer.
    version : of the registered model, when one was published.
    """

    mlflow_run_id: str | None = None
    offset: int = 0
    ended: bool = False
    abandoned: bool = False
    error: str = ""
    refused: int = 0
    refusal: str = ""
    version: str | None = None


class Spool:
    """A spool file and what lies beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def log(self) -> Path:
        """What the MLflow process prints: one line for each error that differs."""
        return self._beside("log")

    def held(self, *, wait: bool) -> contextlib.AbstractContextManager[bool]:
        """The right to deliver; yields False when another process has it and `wait` is False."""
        return locked(self._beside("lock"), wait=wait)

    def load(self) -> State:
        """How far delivery is; the beginning when nothing was delivered or the file is of no use."""
        try:
            return State(**json.loads(self._beside("state").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return State()

    def save(self, state: State) -> None:
        """Store how far delivery is; `JobFailed` when the disk refuses."""
        write_atomic(self._beside("state"), json.dumps(dataclasses.asdict(state)).encode())

    def lines(self, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
        """Each complete line from byte `offset` on, with the offset after it; `do` is empty for one that is no JSON."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(offset)
            while (line := file.readline()).endswith(b"\n"):
                offset += len(line)
                yield _parse(line), offset

    def is_behind(self) -> bool:
        """Whether there is a complete line that MLflow does not have."""
        return next(self.lines(self.load().offset), None) is not None

    def begin(self) -> dict[str, Any] | None:
        """The last `begin` line."""
        last = None
        for line, _ in self.lines():
            if line["do"] == "begin":
                last = line
        return last

    @contextlib.contextmanager
    def appending(self) -> Iterator[int]:
        """A descriptor to append whole lines with; as long as it is open the run counts as alive.

        Removes the half of a line that a crash or a full disk left at the end.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)  # shared: a recorder that was left open must not block its successor
            os.ftruncate(fd, max((end for _, end in self.lines()), default=0))
            yield fd
        finally:
            os.close(fd)

    def is_alive(self) -> bool:
        """Whether the run that appends to the spool is alive."""
        with locked(self.path, wait=False) as free:
            return not free

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{suffix}")


def _parse(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError:
        return {"do": ""}
    return fields if isinstance(fields, dict) and isinstance(fields.get("do"), str) else {"do": ""}
