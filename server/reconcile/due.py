"""What MLflow must show of a run, by the ledger alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fl_core.errors import FedsealError
from fl_core.messages import COORDINATOR
from fl_core.trust import merkle
from fl_core.trust.checkpoint import open_checkpoint
from fl_core.trust.entry import Entry
from fl_core.trust.ledger import Ledger
from server.recorders.words import flat

MAX_PARAM, MAX_TAG, MAX_DIGEST = 6000, 8000, 36  # what the recorder leaves of a longer text
HEAD_SIZE, HEAD_ROOT, MODEL = "ledger.size", "ledger.root", "model.digest"
_STATUS = {"stopped": "KILLED"}


@dataclass(frozen=True)
class Recorded:
    """A metric as the ledger has it: its decimal text, and when it was ordered (ms since 1970)."""

    text: str
    t: int


@dataclass(frozen=True)
class Committed:
    """An artifact by its SHA-256 (hex) and size (bytes)."""

    sha256: str
    size: int


@dataclass
class Due:
    """What follows from a run's entries.

    Attributes
    ----------
    name, started : the run's name, and when it began (ms since 1970).
    metrics : by name and step.
    params, tags : by name; not the ledger's head.
    datasets : name and commitment, cut as MLflow cuts it.
    status, ended : of the run in MLflow and when (ms); empty and 0 for one that goes on.
    artifacts : by name; None where the ledger commits to none, as those of before did.
    head : the ledger's size in MLflow's tags, 0 where it is not known to the entry.
    """

    run: str
    name: str = ""
    started: int = 0
    metrics: dict[tuple[str, int], Recorded] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    datasets: set[tuple[str, str]] = field(default_factory=set)
    status: str = ""
    ended: int = 0
    artifacts: dict[str, Committed] | None = None
    head: int = 0
    model: str = ""

    @classmethod
    def of(cls, ledger: Ledger, run: str) -> Due:
        """Read a run's entries; one that the ledger does not have comes without a name."""
        due = cls(run)
        for entry in ledger.entries(run=run):
            if entry.by == COORDINATOR:
                due._take(entry)
            elif entry.kind == "join" and entry.body.get("data"):
                due.datasets.add((entry.by, str(entry.body["data"])[:MAX_DIGEST]))
        if due.status == "FINISHED" and due.model:
            due.tags[MODEL] = due.model
        return due

    def newest(self) -> dict[str, str]:
        """Of each metric the value of its last step, which MLflow shows in its tables."""
        last: dict[str, int] = {}
        for name, step in self.metrics:
            last[name] = max(step, last.get(name, step))
        return {name: self.metrics[name, step].text for name, step in last.items()}

    def _take(self, entry: Entry) -> None:
        kind, body = entry.kind, entry.body
        if kind == "job" and not self.name:
            self._begin(body, entry.t)
        elif kind == "round":
            for name, text in body["metrics"].items():  # MLflow keeps a round's first record
                self.metrics.setdefault((name, body["round"]), Recorded(str(text), entry.t))
        elif kind == "end":
            self.status, self.ended, self.model = "FINISHED", entry.t, str(body.get("model") or "")
        elif kind == "failure":
            self.status, self.ended = _STATUS.get(str(body.get("status")), "FAILED"), entry.t
        elif kind == "resume":
            self.status, self.ended, self.artifacts, self.head = "", 0, None, 0
        elif kind == "publish":
            files = body.get("artifacts", [])
            self.artifacts = {file["name"]: Committed(file["sha256"], file["size"]) for file in files}
            self.head = entry.seq + 1

    def _begin(self, body: Mapping[str, Any], t: int) -> None:
        view = body["view"]
        self.name, self.started = str(view["name"]), t
        self.params = {name: text[:MAX_PARAM] for name, text in flat(view) if text != ""}
        tags = {"fedseal.run": self.run, "fedseal.job": str(body["job"]), "fedseal.kind": str(view["kind"])}
        tags |= {"mlflow.runName": self.name, "mlflow.source.name": "fedseal"}
        self.tags = {name: text[:MAX_TAG] for name, text in tags.items()}


def is_head(ledger: Ledger, size: str, root: str) -> bool:
    """Whether the log had this root (hex) at this size, both as texts from outside."""
    head = open_checkpoint(ledger.last_checkpoint() or "", ledger.coordinator)
    try:
        old = int(size)
        if not 0 < old <= head.size:
            return False
        proof = ledger.consistency(old, head.size)
        merkle.verify_consistency(
            old_size=old, old_root=bytes.fromhex(root), new_size=head.size, new_root=head.root, proof=proof
        )
    except (ValueError, FedsealError):
        return False
    return True
