"""What a run of the most parties must fit through: the ledger, its verifier, and the messages of the ceremony."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from clients.group_key import GroupKey
from fl_core.config import job_from_public, load_job
from fl_core.crypto.aggregation import make_key
from fl_core.crypto.profiles import DEFAULT, profile_names
from fl_core.crypto.sealing import seal
from fl_core.errors import BadMessage, BadSignature
from fl_core.messages import Packet, sha256
from fl_core.trust.checkpoint import log_id
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.roster import Roster
from fl_core.trust.verify import verify_ledger
from strategies.ceremony import MAX_SEALED_KEY
from tests.support import digits

MOST = DEFAULT.max_parties
NAMES = [f"{'n' * 60}{i:04}" for i in range(MOST)]  # as long as names may be


def test_key_makers_statement_and_a_rounds_aggregate_fit_ledger_verifier_and_packet(tmp_path: Path) -> None:
    coordinator, maker = Identity.create("coordinator"), Identity.create(NAMES[0])
    log = log_id(coordinator.card)

    def say(by: Identity, kind: str, body: dict) -> Statement:
        return Statement.make(by, log=log, kind=kind, run="run-1", body=body)

    key = say(maker, "key", {"blobs": {f"key.{name}": sha256(b"sealed") for name in NAMES[1:]}})
    with Ledger.open(tmp_path / "ledger.db", coordinator) as ledger:
        ledger.commit([say(maker, "card", {"card": maker.card.to_dict()}), key])
        ledger.commit([say(coordinator, "aggregate", {"round": 1, "parties": NAMES[1:], "missing": NAMES[:1]})])
    assert verify_ledger(tmp_path / "ledger.db").size == 4
    assert Packet.from_arrays(Packet(key).to_arrays()).statement == key


@pytest.mark.parametrize("name", profile_names())
def test_sealed_key_of_every_profile_fits_its_share_of_a_message(name: str) -> None:
    group = GroupKey(make_key(name, parties=3), 1 << 40)
    public = X25519PrivateKey.generate().public_key().public_bytes_raw()
    assert len(seal(public, group.to_bytes(), info=b"", aad=b"")) < MAX_SEALED_KEY


def test_job_of_the_most_parties_is_not_looked_through_once_for_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each party reads the job for each message."""
    view = load_job(digits(dataset={"name": "digits", "parties": MOST})).public()
    for party in view["party"]:
        party["name"] = Name(party["name"])
    job_from_public(view)
    Name.compared, resolved = 0, []
    real = typing.get_type_hints
    monkeypatch.setattr(typing, "get_type_hints", lambda cls: resolved.append(cls) or real(cls))
    assert len(job_from_public(view).parties) == MOST
    assert Name.compared < 10 * MOST
    assert len(resolved) < 50


class Name(str):
    """Text that counts how often it is compared."""

    __slots__ = ()
    __hash__ = str.__hash__
    compared = 0

    def __eq__(self, other: object) -> bool:
        Name.compared += 1
        return str.__eq__(self, other)


def test_what_all_parties_signed_is_verified_once_in_a_process_and_a_forgery_after_it_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    people = [Identity.create(name) for name in ("a", "b", "c")]
    log = log_id(Identity.create("coordinator").card)

    def say(by: Identity, kind: str, body: dict) -> Statement:
        return Statement.make(by, log=log, kind=kind, run="run-1", body=body)

    joins = [(p.card, say(p, "join", {"role": "trainer", "ephemeral": "00" * 32})) for p in people]
    roster = Roster.from_joins(joins)
    said = [say(p, "roster", {"roster": roster.digest}).to_dict() for p in people]
    checked = []
    verify = Statement.verify
    monkeypatch.setattr(Statement, "verify", lambda self, card: checked.append(self.by) or verify(self, card))
    for _ in people:
        assert list(roster.check_signed(said, run="run-1")) == ["a", "b", "c"]
    assert checked == ["a", "b", "c"]
    for forged in ({"sig": said[1]["sig"]}, {"body": {"roster": "0" * 64}}):
        with pytest.raises(BadSignature):
            roster.check_signed([*said[:2], said[2] | forged], run="run-1")
    with pytest.raises(BadMessage, match="not signed by a, b, c"):
        roster.check_signed(said, run="run-2")
