"""Keys that change while others rely on them: a rotation under a run, a peer's pin that a revocation has left behind."""

from __future__ import annotations

import pytest

from clients.board import LocalBoard, introduce
from fl_core.home import Home
from fl_core.trust.grant_store import GrantStore
from fl_core.trust.grants import Grant, Signer
from fl_core.trust.identity import CardBook, Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.rotation import Revoked, rotate
from tests.fl_core.trust.consent import make_request, make_state, make_terms
from tests.server.cli.shell import HOSTILE, publish

BANK = ("--as", "bank")


def book(home, name: str = "lab") -> CardBook:
    return CardBook(home / f"parties/{name}/cards.json")


def revoke(board: LocalBoard, identity: Identity, fingerprint: str = "") -> None:
    """On the ledger alone: what settles pins in this home does not happen at another one."""
    body = Revoked(identity.name, fingerprint or identity.card.fingerprint, "stolen")
    with Ledger.open(board._home.ledger, board.coordinator) as ledger:
        ledger.append([body.sign(identity, log=board.log)])


# ---- rotation


def reserve(home, name: str, run: str) -> GrantStore:
    owner = Identity.load_or_create(home / "parties" / name, name)
    grant = Grant(make_terms(name, Signer.of(Identity.create("lab").card)), (Signer.of(owner.card),))
    store = GrantStore(home / "parties" / name / "grants.db")
    store.reserve(grant, make_request(grant.terms), run, make_state(grant))
    return store


def test_no_rotation_under_a_run(shell):
    publish(shell)
    before = shell.json("identity", "show", *BANK)["fingerprint"]
    store = reserve(shell.home, "bank", "run-17")
    text = shell.fails(2, "identity", "rotate", *BANK)
    assert "run-17" in text and "allowed: to wait, fedseal stop run-17, or --anyway" in text
    assert shell.json("identity", "show", *BANK)["fingerprint"] == before
    with Ledger.open(shell.home / "ledger.db") as ledger:
        assert list(ledger.entries(kind="rotate")) == []
    assert not (shell.home / "parties/bank/next").exists()
    store.release("run-17")
    assert shell.json("identity", "rotate", *BANK)["old"] == before


@pytest.mark.parametrize("end", ["commit", "anyway"])
def test_a_run_that_is_over_or_given_up_stands_in_no_rotations_way(shell, end):
    publish(shell)
    store = reserve(shell.home, "bank", "run-17")
    if end == "commit":
        store.commit("run-17", 0)
    shell.json("identity", "rotate", *BANK, *(["--anyway"] if end == "anyway" else []))


def test_the_second_step_of_a_node_waits_for_runs_too(shell, node):
    shell("identity", "rotate", "--out", "turn.json", home=node)
    reserve(node, "bank", "run-17")
    assert "run-17" in shell.fails(2, "identity", "rotate", "--done", home=node)
    shell("identity", "rotate", "--done", "--anyway", home=node)


# ---- forgetting


@pytest.fixture
def board(shell) -> LocalBoard:
    made = LocalBoard(Home.open(shell.home))
    Identity.load_or_create(shell.home / "parties/lab", "lab")
    return made


@pytest.fixture
def bank(board, shell) -> Identity:
    """On the ledger, and pinned by the lab."""
    made = Identity.create("bank")
    board.post([introduce(made, log=board.log)])
    book(shell.home).pin(made.card)
    return made


def test_a_pin_stays_without_a_revocation(shell, bank):
    text = shell.fails(2, "identity", "forget", "bank")
    assert f"no revocation of the pinned card {bank.card.fingerprint[:16]}" in text and "--yes" in text
    assert book(shell.home).get("bank") == bank.card


def test_a_revocation_of_another_card_unpins_nothing(shell, board):
    """A coordinator that lets a thief's card in and has it revoked gets no owner's pin out of the way."""
    pinned, other = Identity.create("bank"), Identity.create("bank")
    book(shell.home).pin(pinned.card)
    board.post([introduce(other, log=board.log)])
    revoke(board, other)
    assert "no revocation of the pinned card" in shell.fails(2, "identity", "forget", "bank")
    assert book(shell.home).get("bank") == pinned.card


def test_a_revocation_of_another_name_unpins_nothing(shell, board, bank):
    shop = Identity.create("shop")
    board.post([introduce(shop, log=board.log)])
    revoke(board, shop)
    shell.fails(2, "identity", "forget", "bank")


def test_a_rotation_is_no_revocation(shell, board, bank):
    new = Identity.create("bank")
    with Ledger.open(shell.home / "ledger.db", board.coordinator) as ledger:
        ledger.append([rotate(bank, new, log=board.log)])
    shell.fails(2, "identity", "forget", "bank")
    assert book(shell.home).get("bank") == bank.card


def test_after_the_revocation_of_the_pinned_card_the_next_one_is_taken_up(shell, board, bank):
    revoke(board, bank)
    told = shell.json("identity", "forget", "bank")
    assert told == {
        "name": "bank", "forgotten": {"lab": bank.card.fingerprint}, "kept": {}, "by_revocation": True,
    }  # fmt: skip
    assert book(shell.home).get("bank") is None
    book(shell.home).pin(Identity.create("bank").card)


def test_those_who_have_pinned_the_next_card_keep_it(shell, board, bank):
    Identity.load_or_create(shell.home / "parties/shop", "shop")
    following = Identity.create("bank").card
    book(shell.home, "shop").pin(following)
    CardBook(shell.home / "coordinator/cards.json").pin(bank.card)
    revoke(board, bank)
    told = shell.json("identity", "forget", "bank")
    assert (set(told["forgotten"]), told["kept"]) == ({"lab", "coordinator"}, {"shop": following.fingerprint})
    assert book(shell.home, "shop").get("bank") == following


def test_one_of_several_forgets(shell, board, bank):
    CardBook(shell.home / "coordinator/cards.json").pin(bank.card)
    revoke(board, bank)
    assert set(shell.json("identity", "forget", "bank", "--as", "coordinator")["forgotten"]) == {"coordinator"}
    assert book(shell.home).get("bank") == bank.card


def test_who_knows_better_is_told_what_it_means(shell, bank):
    text = shell("identity", "forget", "bank", "--yes").out
    assert "whoever comes next as bank is believed at first sight (no revocation was looked for)" in text
    assert book(shell.home).get("bank") is None


def test_a_node_that_sees_no_board_forgets_by_its_owners_word_only(shell, node):
    peer = Identity.create("lab").card
    book(node, "bank").pin(peer)
    text = shell.fails(2, "identity", "forget", "lab", home=node)
    assert "no way to the coordinator's board" in text and "--yes" in text
    assert book(node, "bank").get("lab") == peer
    shell("identity", "forget", "lab", "--yes", home=node)
    assert book(node, "bank").get("lab") is None
    assert book(node, "bank").get("coordinator") is not None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["coordinator", "--yes"], "the log's identity"),
        ([HOSTILE], "[a-z0-9]"),
        (["nobody"], "pinned no card of that name"),
        (["bank", "--as", "nobody"], "has no keys in this home; allowed: lab"),
        (["bank", "--as", HOSTILE], "has no keys in this home"),
    ],
)
def test_what_cannot_be_forgotten_is_said_in_one_line(shell, bank, words, says):
    assert says in shell.fails(2, "identity", "forget", *words)


def test_a_peer_behind_a_door_forgets_when_the_board_shows_the_revocation(shell, deployment):
    _, enter = deployment
    bank, ann = enter("bank", "data-owner"), enter("ann", "model-owner")
    shell("data", "publish", "credit.csv", "--name", "c", "--purpose", "x", home=bank)
    shell("data", "list", home=ann)
    assert "no revocation" in shell.fails(2, "identity", "forget", "bank", home=ann)
    shell("identity", "revoke", "bank", "--reason", "stolen", home=bank)
    assert book(bank, "bank").get("bank") is None
    assert shell.json("identity", "forget", "bank", home=ann)["by_revocation"]
    assert book(ann, "ann").get("bank") is None


def test_an_operator_revokes_whoever_has_said_nothing_but_who_it_is(shell, deployment):
    _, enter = deployment
    bank, olga = enter("bank", "data-owner"), enter("olga", "operator")
    shell("identity", "describe", home=bank)
    told = shell.json("identity", "show", home=bank)["fingerprint"]
    assert shell.json("identity", "revoke", "bank", "--reason", "left", home=olga)["card"] == told
    assert "--card FINGERPRINT" in shell.fails(2, "identity", "revoke", "bank", "--reason", "left", home=olga)
