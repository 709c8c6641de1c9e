"""What the federation's ledger takes away holds at the prediction service too, and gives nobody anything."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from clients.board import LocalBoard, introduce
from fl_core.errors import JobFailed, RefusedError, UsageError
from fl_core.home import Home
from fl_core.trust import certificates, rotation
from fl_core.trust.federation import Federation, Pass
from fl_core.trust.identity import Identity
from fl_core.trust.members import Members
from fl_core.trust.profile import Profile
from fl_core.trust.rotation import Revoked
from server.cli.serve_members import members_reader
from server.serving.standing import Standing, check_owner, standing_of


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.open(tmp_path / "home")


@pytest.fixture
def board(home: Home) -> LocalBoard:
    return LocalBoard(home)


def claim(identity: Identity, board: LocalBoard, *roles: str) -> None:
    profile = Profile(identity.card.fingerprint, roles, "", "", time.time_ns() // 1_000_000)
    board.post([introduce(identity, log=board.log), profile.sign(identity, log=board.log)])


def standing(home: Home, said: list[str] | None = None) -> Standing:
    read = members_reader(home)
    assert read is not None
    made = Standing(read, (said if said is not None else []).append, seconds=3600)
    made.close()
    return made


@pytest.mark.parametrize(
    ("role", "may"),
    [("receiver", True), ("data-owner", True), ("auditor", False), ("operator", False), ("model-owner", False)],
)
def test_a_client_may_ask_if_the_roles_on_its_own_card_do(home, board, role, may):
    clinic = Identity.create("clinic")
    claim(clinic, board, role)
    found = standing(home)
    if may:
        found.check(clinic.card)
        return
    with pytest.raises(RefusedError, match=rf"clinic \({role}\) may not ask for predictions; allowed: data-owner or receiver"):
        found.check(clinic.card)


def test_a_revoked_or_rotated_key_opens_nothing_any_more(home, board):
    clinic, bank, later = (Identity.create(name) for name in ("clinic", "bank", "bank"))
    for identity in (clinic, bank):
        claim(identity, board, "receiver")
    found = standing(home)
    found.check(clinic.card)
    found.check(bank.card)
    board.post([Revoked("clinic", clinic.card.fingerprint, "stolen").sign(board.coordinator, log=board.log)])
    board.post([rotation.rotate(bank, later, log=board.log)])
    found.refresh()
    for card in (clinic.card, bank.card):
        with pytest.raises(RefusedError, match="revoked or rotated"):
            found.check(card)
    found.check(later.card)


def test_somebody_else_of_that_name_takes_nothing_away(home, board):
    claim(Identity.create("clinic"), board, "auditor")
    standing(home).check(Identity.create("clinic").card)


def test_a_board_that_cannot_be_read_changes_nothing_and_is_told_once():
    said: list[str] = []
    auditor = Identity.create("auditor")
    held, troubles = Members(), [False, True, True, False]

    def read() -> Members:
        if troubles.pop(0):
            raise JobFailed("no answer")
        return held

    found = Standing(read, said.append, seconds=3600)
    for _ in range(3):
        found.refresh()
        found.check(auditor.card)
    found.close()
    assert said == ["note: the board cannot be read; what it said last holds: no answer", "the board is read again"]


def test_it_is_read_again_without_anybody_asking(home, board):
    clinic = Identity.create("clinic")
    claim(clinic, board, "receiver")
    read = members_reader(home)
    assert read is not None
    found = Standing(read, print, seconds=0.02)
    try:
        board.post([Revoked("clinic", clinic.card.fingerprint, "stolen").sign(board.coordinator, log=board.log)])
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                found.check(clinic.card)
            except RefusedError:
                return
            time.sleep(0.01)
        pytest.fail("the revocation was not read")
    finally:
        found.close()


def test_a_home_without_a_board_takes_nothing_away_and_makes_no_ledger(home):
    with standing_of(members_reader(home), print) as check:
        check(Identity.create("clinic").card)
    assert not home.ledger.exists() and not home.coordinator.exists()


@pytest.mark.parametrize(("role", "may"), [("engineer", True), ("auditor", False), ("data-owner", False)])
def test_only_a_model_owners_pass_serves_models(home, role, may):
    authority = certificates.make_authority("x")
    federation = Federation(authority.certificate, Identity.create("coordinator").card, "fed:9443", "fed:9444")
    person = certificates.issue_client(authority, name="ann", roles=[role])
    (home.path / "pass.json").write_bytes(Pass(federation, person).encode())
    if may:
        check_owner(home)
        return
    with pytest.raises(UsageError, match=r"serve: ann .* may not serve predictions; allowed: model-owner"):
        check_owner(home)
