"""What a round leaves behind, once for all recorders."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class RoundRecord:
    """One round of a run.

    `metrics` maps names to decimal texts of 6 significant digits: the ledger stores the text and MLflow gets
    `float()` of the same text, so that the two reconcile exactly.
    """

    run: str
    round: int
    metrics: dict[str, str]
    parties: tuple[str, ...]
    missing: tuple[str, ...] = ()

    def body(self) -> dict[str, object]:
        """The ledger entry's body."""
        return {
            "round": self.round,
            "metrics": dict(self.metrics),
            "parties": list(self.parties),
            "missing": list(self.missing),
        }

    @classmethod
    def from_body(cls, run: str, body: Mapping[str, Any]) -> RoundRecord:
        """The record that a ledger entry holds."""
        return cls(run, body["round"], dict(body["metrics"]), tuple(body["parties"]), tuple(body["missing"]))

    def values(self) -> dict[str, float]:
        """The metrics as numbers."""
        return {name: float(text) for name, text in self.metrics.items()}


class Recorder(Protocol):
    """Takes each round record once, when it happens."""

    def record(self, record: RoundRecord) -> None:
        """Store one record; must not raise because a viewer is down."""


def decimal(value: float) -> str:
    """Six significant digits, the one way numbers enter the ledger."""
    if not math.isfinite(value):
        return "nan"
    return f"{value:.6g}"
