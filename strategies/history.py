"""What a run's ledger entries say happened, and which round records follow from them.

Live and on `--resume` the same function reads the same entries, so a record that a crash kept from MLflow is made again
from the ledger.  Sum `m` pools the evaluation of the model after round `m − 1` and the training loss of round `m`; the
parties report it with round `m + 1`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from fl_core import messages
from fl_core.records import RoundRecord
from fl_core.trust import canonical
from fl_core.trust.entry import Entry


@dataclass
class History:
    """Grows by `absorb`; `due` gives the records not yet made."""

    run: str
    aggregates: dict[int, dict[str, Any]] = field(default_factory=dict)
    recorded: set[int] = field(default_factory=set)
    applied: dict[str, int] = field(default_factory=dict)
    last_statement: dict[str, Entry] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    digests: set[str] = field(default_factory=set)
    sessions: int = 0  # opened so far
    ended: bool = False
    _reports: dict[int, list[bytes]] = field(default_factory=dict)

    def absorb(self, entry: Entry) -> None:
        """Take one entry of this run."""
        body = entry.body
        self.digests.add(entry.statement.digest)
        if entry.kind == "aggregate":
            self.aggregates[body["round"]] = body
        elif entry.kind == "round":
            self.recorded.add(body["round"])
        elif entry.kind in ("end", "resume"):
            self.ended = entry.kind == "end"
        elif entry.kind == "session":
            if entry.by == messages.COORDINATOR:
                self.sessions += 1
            else:
                self.last_statement[entry.by] = entry
        elif entry.kind in ("update", "close"):
            self.applied[entry.by] = body["applied"]
            self.last_statement[entry.by] = entry
            if "pooled" in body:
                report = body["pooled"]
                self._reports.setdefault(report["round"], []).append(canonical.encode(report["metrics"]))
            if entry.kind == "close":
                self.models[entry.by] = body["model"]

    def pooled(self, number: int) -> dict[str, str] | None:
        """What most parties decrypted from sum `number`."""
        reports = self._reports.get(number)
        if not reports:
            return None
        usual, _ = Counter(reports).most_common(1)[0]
        return dict(canonical.decode(usual))

    def disagree(self, number: int) -> bool:
        """Whether parties report different values for one sum: somebody was shown another one."""
        return len(set(self._reports.get(number, []))) > 1

    @property
    def last(self) -> int | None:
        """The newest aggregated round."""
        return max(self.aggregates, default=None)

    def due(self, rounds: int) -> list[RoundRecord]:
        """Records 0 … `rounds` that can be made now and have not been."""
        return [r for n in range(rounds + 1) if n not in self.recorded and (r := self._record(n)) is not None]

    def _record(self, number: int) -> RoundRecord | None:
        """Round `number`: its training, and the model after it (sum `number + 1` evaluated that)."""
        evaluated = self.pooled(number + 1)
        if evaluated is None:
            return None
        metrics = {k: v for k, v in evaluated.items() if k in ("accuracy", "loss")}
        aggregate = self.aggregates.get(number)
        if aggregate is None or aggregate["act"] != messages.TRAIN:
            first = self.aggregates[number + 1]
            return RoundRecord(self.run, number, metrics, tuple(first["parties"]), tuple(first["missing"]))
        trained = self.pooled(number) or {}
        metrics |= {k: v for k, v in trained.items() if k == "train_loss"}
        metrics |= {
            name: str(aggregate[name]) for name in ("bytes_up", "bytes_down", "seconds", "epsilon") if name in aggregate
        }
        metrics["parties"] = str(len(aggregate["parties"]))
        return RoundRecord(self.run, number, metrics, tuple(aggregate["parties"]), tuple(aggregate["missing"]))
