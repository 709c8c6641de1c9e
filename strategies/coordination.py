"""What the coordinator's side of a run stands on, handed in by whoever starts it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fl_core.errors import JobFailed
from fl_core.job import Job
from fl_core.records import Recorder
from fl_core.session.sealed import SealedChannel
from fl_core.session.token import Token
from fl_core.trust.entry import Entry, Statement
from fl_core.trust.identity import CardBook, Identity
from fl_core.trust.ledger import Ledger


class SessionHost(Protocol):
    """The way to the exchange."""

    def offer(self, token: Token) -> dict[str, Any]:
        """What a party needs to come: JSON-able, for that party alone."""
        ...

    def attend(self, channel: SealedChannel, token: Token) -> AbstractContextManager[Any]:
        """Carry the coordinator's own channel for as long as the context lasts."""
        ...


class Stopped(JobFailed):
    """Somebody asked the run to stop."""

    code = "stopped"


@dataclass(frozen=True)
class Event:
    """Progress for people: `kind` is joined, round, record, dropped, refused or closed."""

    kind: str
    round: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Coordination:
    """One run at the coordinator.

    Parameters
    ----------
    nodes : Flower's node id of each party the job names, receivers included.
    workdir : this run's folder: ceremony and sums, for `--resume` and for parties that missed a round.
    stopped : polled between replies.
    own : in a deployment, what each party alone is told of the job when it joins.
    host : for jobs whose parties talk to each other.
    order : what the submitter signed, as `fl_core.trust.order.blobs` gives it: each party asks for it.
    step_timeout : seconds a step other than a round waits for a party (start-up and data loading included).
    """

    job: Job
    run: str
    nodes: dict[str, int]
    identity: Identity
    cards: CardBook
    ledger: Ledger
    workdir: Path
    recorder: Recorder
    progress: Callable[[Event], None]
    stopped: Callable[[], bool]
    step_timeout: float = 300.0
    own: Mapping[str, bytes] = field(default_factory=dict)
    host: SessionHost | None = None
    order: Mapping[str, bytes] = field(default_factory=dict)

    def say(self, kind: str, body: dict[str, Any]) -> Statement:
        """A statement of the coordinator about this run."""
        return Statement.make(self.identity, log=self.ledger.log, kind=kind, run=self.run, body=body)

    def note(self, kind: str, body: dict[str, Any]) -> list[Entry]:
        """Put one such statement on the ledger."""
        return self.ledger.append([self.say(kind, body)])
