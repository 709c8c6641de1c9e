"""A submitted job as the coordinator keeps it in the run's folder, and what happens in the run, for those who watch.

`submission.json` (0600) holds the job's table (the parties' own parts are told to their nodes alone), who submitted it,
and the order that the submitter signed, if one came.  `events.jsonl`
holds one event a line; the last one is `summary` or `failed`.  Both outlive the coordinator's process.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_core.files import write_atomic

SUMMARY, FAILED = "summary", "failed"
ENDS = (SUMMARY, FAILED)


@dataclasses.dataclass(frozen=True)
class Caller:
    """Who is at the door; this goes on the ledger."""

    name: str
    roles: tuple[str, ...]
    certificate: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"name": self.name, "roles": list(self.roles), "certificate": self.certificate}


def save(folder: Path, table: Mapping[str, Any], caller: Caller, order: Mapping[str, bytes] | None = None) -> None:
    """Keep a submission; `order` is ASCII, by the names of `fl_core.trust.order`."""
    told = {name: data.decode("ascii") for name, data in (order or {}).items()}
    held = {"job": table, "caller": caller.to_dict(), "order": told}
    write_atomic(folder / "submission.json", json.dumps(held).encode())


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The job's table and who submitted it last."""
    held = json.loads((folder / "submission.json").read_text(encoding="utf-8"))
    return held["job"], held["caller"]


def load_order(folder: Path) -> dict[str, bytes]:
    """The order that came with the last submission; empty where none did."""
    held = json.loads((folder / "submission.json").read_text(encoding="utf-8"))
    return {name: text.encode("ascii") for name, text in held.get("order", {}).items()}


class Events:
    """The events of a run; one process writes, any number read."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "events.jsonl"

    def add(self, kind: str, round: int, facts: Mapping[str, Any]) -> None:
        """Append one, on a line of its own whatever a crash or a full disk has left behind."""
        line = json.dumps({"kind": kind, "round": round, "facts": facts, "time": time.time()}, default=str)
        with self._path.open("a+b") as file:
            file.seek(max(0, file.tell() - 1))
            torn = file.read() not in (b"", b"\n")
            file.write(b"\n" * torn + line.encode() + b"\n")

    def read(self, after: int = 0) -> Reader:
        """A reader of events from the one numbered `after` on."""
        return Reader(self._path, after)

    def count(self) -> int:
        """How many there are."""
        reader = self.read()
        reader.new()
        return reader.number


class Reader:
    """Goes through the events of a run as they come.

    Attributes
    ----------
    number : the number of the last event read, or skipped.
    """

    def __init__(self, path: Path, after: int) -> None:
        self._path, self._after, self._at = path, after, 0
        self.number = 0

    def new(self) -> list[tuple[int, dict[str, Any]]]:
        """Whole events that have come since the last call, each with its number; torn ones are passed over."""
        if not self._path.exists():
            return []
        found = []
        with self._path.open("rb") as file:
            file.seek(self._at)
            for line in file:
                if not line.endswith(b"\n"):  # still being written
                    break
                self._at += len(line)
                self.number += 1
                if self.number > self._after and (event := _whole(line)) is not None:
                    found.append((self.number, event))
        return found


def _whole(line: bytes) -> dict[str, Any] | None:
    """The event of a line; None where its writer was cut off."""
    try:
        return dict(json.loads(line))
    except ValueError:
        return None
