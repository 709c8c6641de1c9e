"""What a party does in one kind of job, beyond joining, signing the roster and being a witness."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from clients.store import RunState
from fl_core.job import Job, Party
from fl_core.messages import Packet
from fl_core.trust.identity import Card
from fl_core.trust.roster import Roster

if TYPE_CHECKING:
    from clients.participant import Participant

Step = Callable[[Packet, Card], Packet]


class Role(ABC):
    """One party in one run.

    Parameters
    ----------
    home : what this party keeps of the run, and its signature.
    job : the job, as this party may see it.
    party : its own part of it; None for one without data.
    """

    def __init__(self, home: Participant, job: Job, party: Party | None) -> None:
        self.home, self.job, self.party = home, job, party

    @property
    @abstractmethod
    def steps(self) -> Mapping[str, Step]:
        """The steps it answers, by name."""

    @abstractmethod
    def enter(self) -> str:
        """Check the job, open the data and set privacy aside; returns the commitment to the data.

        Raises `RefusedError` or `DataError`.  Repeating it for a run changes nothing.
        """

    @abstractmethod
    def start(self) -> RunState:
        """What it keeps from the beginning on."""

    @abstractmethod
    def joins(self, state: RunState) -> dict[str, Any]:
        """What its join statement says beside the job and the keys: at least `role`."""

    @abstractmethod
    def previewed(self) -> dict[str, Any]:
        """What it would join with, with nothing set aside."""

    @abstractmethod
    def signs(self, roster: Roster) -> tuple[str, dict[str, Any], dict[str, bytes]]:
        """Kind of its statement on the roster, what it adds, and blobs for the others."""
