"""The verdict on a ledger."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

VALID, BROKEN, SHORT_OF_QUORUM = 0, 1, 4


@dataclass
class RunReport:
    """What a run's evidence amounts to: its state, its entries, the quorum behind its end, and how many of its rounds
    (`aggregate` entries) came after the last checkpoint that a quorum of its roster co-signed.
    """

    state: str = "idle"
    entries: int = 0
    parties: list[str] = field(default_factory=list)
    quorum: int = 0
    cosigned: int = 0
    end: int | None = None
    uncovered: int = 0


@dataclass
class Report:
    """The verdict.

    Attributes
    ----------
    status
        0 valid, 1 broken, 4 valid but with a run short of quorum.
    first_bad
        The entry (from 0) at which the ledger first fails, None where it does not or no entry can be named. A
        bad checkpoint or co-signature is named by the last entry that it covers.
    sound
        Size of the last checkpoint that held: no entry before it is in doubt, whatever failed later.
    """

    status: int = VALID
    reason: str = "valid"
    first_bad: int | None = None
    sound: int = 0
    log: str = ""
    coordinator: str = ""
    size: int = 0
    root: str = ""
    entries: int = 0
    checkpoints: int = 0
    signatures: int = 0
    runs: dict[str, RunReport] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-able values."""
        return asdict(self)
