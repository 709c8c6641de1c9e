"""The verdict on a ledger, and on an audit pack."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

VALID, BROKEN, SHORT_OF_QUORUM = 0, 1, 4
MAX_NAMED = 100


@dataclass
class RunReport:
    """What a run's evidence amounts to: its state, its entries, the quorum behind its end, how many of its rounds
    (`aggregate` entries) came after the last checkpoint that a quorum of its roster co-signed, and its last entry.
    """

    state: str = "idle"
    entries: int = 0
    parties: list[str] = field(default_factory=list)
    quorum: int = 0
    cosigned: int = 0
    end: int | None = None
    uncovered: int = 0
    last: int = 0


@dataclass
class OutsideReport:
    """What an auditor's policy finds of witnesses from outside.

    Attributes
    ----------
    quorum, witnesses
        How many of how many must co-sign.
    due
        The first entries, which they must have co-signed: to the end of the run, or of the last.
    covered
        The first entries under the newest checkpoint that enough of them co-signed; 0 where there is none.
    signed
        Who co-signed that checkpoint, and when by its own clock, seconds since 1970.
    missing
        Who did not; where too little is covered, who co-signed nothing over the entries due.
    """

    quorum: int
    witnesses: int
    due: int
    covered: int
    signed: dict[str, int]
    missing: list[str]


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
    outside
        What a policy of witnesses from outside finds, where one was given and the log is not broken.
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
    outside: OutsideReport | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-able values."""
        return asdict(self)


@dataclass
class PackReport(Report):
    """The verdict on an audit pack of one run.

    Attributes
    ----------
    run
        The run that the pack is about; `runs` has what its evidence amounts to.
    whole
        Whether the pack holds the whole log up to its checkpoint.
    compared
        How many MLflow metrics, parameters, tags and how many artifacts were held against entries.
    differences
        Where MLflow or the artifacts differ from the ledger, at most `MAX_NAMED`; `differing` counts all.
    unchecked
        What this pack cannot show, in words.
    """

    run: str = ""
    whole: bool = False
    compared: dict[str, int] = field(default_factory=dict)
    differing: int = 0
    differences: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    def differ(self, words: str) -> None:
        """Note a difference."""
        self.differing += 1
        if len(self.differences) < MAX_NAMED:
            self.differences.append(words)
