"""Where a party's consent stands in a run: asked before the data are opened, and before each step that uses them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from clients.consent.data import dataset_of, version_at
from clients.consent.decision import Consent, Leave
from clients.consent.order import NotGranted
from clients.consent.terms import Wanted, word_of
from clients.part import NodeConfig
from clients.policy import STANDING
from fl_core import messages
from fl_core.job import GIVEN, Job, Party
from fl_core.messages import Packet
from fl_core.trust.catalog import to_micro
from fl_core.trust.grant_statements import shown

if TYPE_CHECKING:
    from clients.store import PartyStore

_STEPS = (messages.ROUND, messages.SESSION)  # that compute on the data
_LAST = (messages.CLOSE, messages.SESSION)  # of a party's part in a run


@dataclass(frozen=True)
class Gate:
    """One party in one run."""

    config: NodeConfig
    store: PartyStore

    @property
    def _consent(self) -> Consent:
        return self.store.consent

    @property
    def _strict(self) -> bool:
        return self.config.policy is not None or self.config.strict

    def enter(self, packet: Packet, view: Mapping[str, Any], job: Job, party: Party, facts: Mapping[str, Any]) -> Leave:
        """Ask for leave to open the data; see `Consent.weigh`.  `facts` are what the party kept of the run, if it did.

        Raises `NotGranted` or `OverGranted`; `DataError` where the job names no data of this node.
        """
        wanted = self._wanted(packet, view, job, party)
        self._look_beside(packet, view, job, wanted, to_run=True)
        began = (str(facts["order"]), str(facts["grant"])) if "order" in facts else None
        return self._consent.weigh(
            wanted, view=view, log=packet.statement.log, run=self.config.run, blobs=packet.blobs, strict=self._strict,
            began=began,
        )  # fmt: skip

    def look(self, packet: Packet, view: Mapping[str, Any], job: Job, party: Party) -> None:
        """Refuse what `enter` would, and set nothing aside."""
        wanted = self._wanted(packet, view, job, party)
        self._look_beside(packet, view, job, wanted, to_run=False)
        if self._strict:
            self._consent.look(wanted, view=view, log=packet.statement.log, blobs=packet.blobs)

    def _look_beside(self, packet: Packet, view: Mapping[str, Any], job: Job, wanted: Wanted, *, to_run: bool) -> None:
        """Ids to hold out may be bound to a name of their own at a node: they need a grant too, and spend nothing."""
        beside, policy = job.evaluate.test_ids, self.config.policy
        if policy is None or beside in (None, GIVEN, wanted.dataset) or beside not in policy.sources:
            return
        dataset = word_of(str(beside))
        self._stand(dataset, packet)
        other, log = replace(wanted, dataset=dataset), packet.statement.log
        self._consent.look(other, view=view, log=log, blobs=packet.blobs, to_run=to_run)

    def _stand(self, dataset: str, packet: Packet) -> None:
        policy = self.config.policy
        if policy is not None and policy.consent == STANDING:
            self._consent.standing(dataset, policy.kinds, log=packet.statement.log, first=True)

    def _wanted(self, packet: Packet, view: Mapping[str, Any], job: Job, party: Party) -> Wanted:
        policy = self.config.policy
        dataset = dataset_of(self._consent, job, party, policy)
        self._stand(dataset, packet)
        wanted = Wanted.of(job, owner=party.name, dataset=dataset, view=view)
        if job.kind == "predict" and job.predict.algorithm == "split-nn":
            wanted = replace(wanted, epsilon=_epsilon_of_part(self.config, job, wanted.delta))
        return wanted

    def check_version(self, leave: Leave, job: Job, party: Party) -> None:
        """Refuse (`NotGranted`) data that have just been opened and are not the version granted."""
        granted = leave.grant.terms.version
        if granted and version_at(job, party, self.config.policy, self.store.commitment_key) != granted:
            raise NotGranted(f"version: the data at hand are another one; allowed: {granted[:16]}…")

    def said(self, leave: Leave) -> dict[str, Any]:
        """What the join statement says of it."""
        marks = {"self_issued": leave.grant.self_issued, "standing": leave.grant.terms.standing}
        told = {"grant": leave.grant.id, "reserved": shown(leave.epsilon)}
        return told | {name: True for name, holds in marks.items() if holds}

    def told(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The join statement of a run that has had its use.  Raises `NotGranted` where it is not kept."""
        if "join" not in facts:
            raise NotGranted("run: it has had its use; allowed: a new run")
        return dict(facts["join"])

    def shows(self, grant: str) -> dict[str, Any]:
        """What goes with a join statement: this owner's approval of the grant, which verifies by itself."""
        approval = self._consent.approval(grant)
        return {} if approval is None else {"grant": approval.to_dict()}

    def before(self, step: str, facts: Mapping[str, Any]) -> None:
        """Refuse (`NotGranted`) a step of a run whose use is over or whose grant has ended; note that it begins."""
        if "grant" not in facts:  # a receiver, who brings no data
            return
        self._consent.holds(self.config.run)
        if step in _STEPS:
            self._consent.opened(self.config.run)

    def after(self, step: str, facts: Mapping[str, Any]) -> None:
        """The use is spent once the party's part has ended."""
        if step in _LAST and "grant" in facts:
            self._consent.done(self.config.run)

    def release(self) -> None:
        """Give the use back where nothing has left."""
        self._consent.release(self.config.run)


def _epsilon_of_part(config: NodeConfig, job: Job, delta: float) -> int:
    """What noise of the training lets a prediction tell of a row, in millionths of ε; 0 where there is none."""
    from clients.model_folder import read_part
    from clients.prediction import part_folder
    from fl_core.learning import privacy
    from fl_core.protocols.prediction.reading import part_of

    where = f"party {config.party}"
    part = part_of(*read_part(part_folder(config, job), where), party=config.party, where=where)
    if part.noise_multiplier is None:
        return 0
    return to_micro(privacy.epsilon([privacy.Spend(part.noise_multiplier, 1.0, 1)], delta), up=True)
