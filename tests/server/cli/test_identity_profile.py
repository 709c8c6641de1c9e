"""What people say of themselves on the board: by default, by hand, through a door, and what a hostile board shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clients.door
import server.cli.identity_profile as module
from clients.board import LocalBoard, introduce
from clients.node.folder import NodeFolder
from clients.own_profile import check_contact, kept, read_people, said_on
from clients.statement_file import read_statements
from fl_core.errors import UsageError
from fl_core.home import Home
from fl_core.trust import certificates
from fl_core.trust.board import MAX_STATEMENTS
from fl_core.trust.entry import Statement
from fl_core.trust.federation import Pass
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.profile import Profile
from fl_core.trust.rotation import Revoked
from fl_core.trust.verify import verify_ledger
from server.cli.desk_file import write_parts
from tests.server.cli.shell import HOSTILE, ask, publish

BANK = ("--as", "bank")
ANYBODY = Identity.create("anybody")


def profiles(ledger: Path) -> list[Statement]:
    with Ledger.open(ledger) as opened:
        return [entry.statement for entry in opened.entries(kind="profile")]


def show(shell, *words, home=None):
    return shell.json("identity", "show", *words, home=home)["profile"]


def make_profile(identity: Identity, *, contact: str = "", time: int = 1, **more) -> Profile:
    return Profile(identity.card.fingerprint, more.get("roles", ("data-owner",)), contact, "", time)


# ---- by default


def test_whoever_says_something_has_said_who_it_is_before(shell):
    publish(shell)
    with Ledger.open(shell.home / "ledger.db") as ledger:
        kinds = [entry.kind for entry in ledger.entries(run="") if entry.by == "bank"]
    assert kinds == ["card", "profile", "dataset"]
    publish(shell)
    ask(shell)
    roles = {statement.by: statement.body["roles"] for statement in profiles(shell.home / "ledger.db")}
    assert roles == {name: ["data-owner", "model-owner"] for name in ("bank", "engineer")}
    assert len(profiles(shell.home / "ledger.db")) == 2, "one is enough"
    assert verify_ledger(shell.home / "ledger.db").reason == "valid"


def test_somebody_at_a_home_of_ones_own_is_not_shut_out_by_the_first_profile(shell):
    """Nobody asked for roles there; whoever asks for a grant first is a model owner too."""
    publish(shell)
    ask(shell, "--as", "lab")
    assert show(shell, "--as", "lab")["roles"] == ["data-owner", "model-owner"]


def test_what_is_not_given_stays_as_it_was_said(shell):
    shell("identity", "describe", "--contact", "me, 1st floor", "--role", "data-owner", "--role", "receiver", *BANK)
    again = shell.json("identity", "describe", "--certificate", "ab" * 32, *BANK)["profile"]
    assert (again["contact"], again["roles"], again["certificate"]) == (
        "me, 1st floor", ["data-owner", "receiver"], "ab" * 32,
    )  # fmt: skip
    assert shell.json("identity", "describe", "--contact", "", *BANK)["profile"]["contact"] == ""
    assert show(shell, *BANK)["roles"] == ["data-owner", "receiver"]


def test_a_clock_that_was_set_back_makes_no_profile_an_older_one(shell, monkeypatch):
    shell("identity", "describe", "--contact", "first", *BANK)
    monkeypatch.setattr(module, "now_ms", lambda: 5)
    shell("identity", "describe", "--contact", "second", *BANK)
    assert show(shell, *BANK)["contact"] == "second"


def test_show_says_that_nothing_was_said(shell):
    assert shell.json("identity", "show", *BANK)["profile"] is None
    assert "nothing was said yet: fedseal identity describe" in shell("identity", "show", *BANK).out
    shell("identity", "describe", "--contact", "me", *BANK)
    text = shell("identity", "show", *BANK).out
    assert "roles        data-owner, model-owner\n" in text and "contact      me\n" in text and "certificate  none\n" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--contact", HOSTILE], "--contact"),
        (["--contact", "x" * 201], "1 to 200"),
        (["--contact", " me"], "--contact"),
        (["--role", HOSTILE], "--role: role"),
        (["--role", "king"], "allowed: data-owner, model-owner"),
        (["--certificate", HOSTILE], "certificate"),
        (["--certificate", "AB" * 32], "lower-case hex"),
    ],
)
def test_what_no_profile_can_hold_is_refused_and_nothing_is_posted(shell, words, says):
    assert says in shell.fails(2, "identity", "describe", *words, *BANK)
    assert shell.json("identity", "members")["members"] == []


@settings(max_examples=50)
@given(st.text(max_size=205) | st.text("a ", min_size=195, max_size=205))
def test_a_contact_is_taken_only_if_a_profile_takes_it(text):
    """So nothing is kept at a node that it could not say."""
    identity = ANYBODY
    try:
        taken = check_contact(text)
    except UsageError as error:
        assert str(error).isprintable()
        with pytest.raises(Exception, match="profile: contact"):
            make_profile(identity, contact=text)
        return
    assert taken == text == make_profile(identity, contact=text).contact


# ---- everybody


def test_members_by_name_with_what_became_of_them(shell):
    publish(shell)
    ask(shell)
    shell("identity", "describe", "--contact", "call +46 8 1", *BANK)
    shell("identity", "rotate", *BANK)
    shell("identity", "describe", "--as", "shop")
    shell("identity", "revoke", "shop", "--reason", "left us")
    told = {one["name"]: one for one in shell.json("identity", "members")["members"]}
    assert list(told) == ["bank", "engineer", "shop"]
    bank, shop = told["bank"], told["shop"]
    assert (bank["roles"], bank["contact"], bank["rotations"], bank["revoked"]) == (
        ["data-owner", "model-owner"], "call +46 8 1", 1, None,
    )  # fmt: skip
    assert bank["fingerprint"] == shell.json("identity", "show", *BANK)["fingerprint"]
    assert bank["since"] < bank["changed"] and bank["entry"] < told["engineer"]["entry"]
    assert (shop["fingerprint"], shop["roles"], shop["revoked"]) == (None, None, "left us")
    lines = shell("identity", "members").out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("bank ") and bank["fingerprint"][:16] in lines[0]
    assert bank["fingerprint"][:17] not in lines[0]
    assert "rotated 1 time  data-owner, model-owner; call +46 8 1" in lines[0]
    assert lines[2].endswith(": left us") and "revoked" in lines[2]


def test_members_of_an_empty_board(shell):
    assert "nobody has shown a card" in shell("identity", "members").out


def test_a_hostile_board_neither_hides_a_good_profile_nor_reaches_the_terminal(shell):
    """A coordinator that checks nothing puts what it likes on its own ledger."""
    shell("identity", "describe", "--contact", "good", *BANK)
    board = LocalBoard(Home.open(shell.home))
    eve, bank = Identity.create("eve"), Identity.load_or_create(shell.home / "parties/bank", "bank")
    body = {"card": eve.card.fingerprint, "roles": ["data-owner"], "contact": HOSTILE, "certificate": "", "time": 1}
    bad = [
        Statement.make(eve, log=board.log, kind="profile", run="", body=body),
        Statement.make(eve, log=board.log, kind="profile", run="", body=body | {"contact": "", "roles": [HOSTILE]}),
        Statement.make(eve, log=board.log, kind="profile", run="", body=body | {"contact": "", "card": bank.card.fingerprint}),
        Statement.make(bank, log=board.log, kind="profile", run="", body=body | {"card": eve.card.fingerprint, "contact": "x"}),
    ]  # fmt: skip
    with Ledger.open(shell.home / "ledger.db", board.coordinator) as ledger:
        ledger.append([introduce(eve, log=board.log), *bad])
    told = shell.json("identity", "members")
    assert {one["name"]: one["contact"] for one in told["members"]} == {"bank": "good", "eve": None}
    assert len(told["refused"]) == 4
    assert shell("identity", "members").out.count("left out: ") == 4
    assert show(shell, *BANK)["contact"] == "good"


def test_a_profile_of_a_revoked_key_says_nothing_for_the_next_one(shell):
    """Whoever stole the key may have signed it."""
    shell("identity", "describe", "--contact", "thief", "--role", "operator", *BANK)
    shell("identity", "revoke", "bank", "--reason", "stolen", "--as", "coordinator")
    publish(shell)
    assert (show(shell, *BANK)["contact"], show(shell, *BANK)["roles"]) == ("", ["data-owner", "model-owner"])


def test_what_was_said_is_read_of_the_present_card_only(shell):
    board = LocalBoard(Home.open(shell.home))
    one, two = Identity.create("bank"), Identity.create("bank")
    board.post([introduce(one, log=board.log), make_profile(one, contact="one").sign(one, log=board.log)])
    assert said_on(board, two.card).profile is None and said_on(board, one.card).on_board
    board.post([Revoked("bank", one.card.fingerprint, "x").sign(one, log=board.log)])
    assert said_on(board, one.card).before is None
    assert read_people(board).members.get("bank").ended == "x"


# ---- a node without a pass


def test_a_node_says_itself_in_a_file_and_the_same_each_time(shell, node):
    done = shell.json("identity", "describe", "--contact", "data office", "--out", "me.json", home=node)
    folder = NodeFolder(node / "parties/bank")
    assert (done["profile"]["roles"], done["profile"]["certificate"]) == (["data-owner"], folder.card().fingerprint)
    assert [statement.kind for statement, _ in read_statements(Path("me.json"))] == ["card", "profile"]
    words = ("data", "publish", "--name", "credit", "--purpose", "x", "--out")
    shell(*words, "one.json", home=node)
    shell(*words, "two.json", home=node)
    signed = {read_statements(Path(file))[1][0].digest for file in ("me.json", "one.json", "two.json")}
    assert len(signed) == 1
    assert [shell.json("grant", "post", f"{file}.json")["added"] for file in ("me", "one", "two")] == [2, 1, 1]
    assert shell.json("identity", "members")["members"][0]["contact"] == "data office"
    assert show(shell, home=node)["contact"] == "data office"
    assert "fedseal login" in shell.fails(2, "identity", "members", home=node)
    assert "--out FILE" in shell.fails(2, "identity", "describe", "--contact", "x", home=node)


def test_the_contact_of_a_node_is_that_of_its_settings(shell, node):
    shell("node", "set", "--contact", "from the settings", home=node)
    words = ("identity", "describe", "--out")
    assert shell.json(*words, "1.json", home=node)["profile"]["contact"] == "from the settings"
    shell(*words, "2.json", "--contact", "by hand", home=node)
    assert shell.json(*words, "3.json", home=node)["profile"]["contact"] == "by hand"
    shell("node", "set", "--contact", "moved", home=node)
    assert shell.json(*words, "4.json", home=node)["profile"]["contact"] == "moved"
    before = (node / "parties/bank/node.json").read_bytes()
    shell.fails(2, "node", "set", "--contact", HOSTILE, home=node)
    assert (node / "parties/bank/node.json").read_bytes() == before


def test_a_node_keeps_its_contact_through_a_rotation(shell, node):
    shell("identity", "describe", "--contact", "data office", "--role", "data-owner", "--role", "receiver", "--out", "1.json", home=node)  # fmt: skip
    shell("identity", "rotate", "--out", "2.json", home=node)
    shell("identity", "rotate", "--done", "--out", "3.json", home=node)
    for file in "123":
        shell("grant", "post", f"{file}.json")
    (bank,) = shell.json("identity", "members")["members"]
    assert (bank["roles"], bank["contact"], bank["rotations"]) == (["data-owner", "receiver"], "data office", 1)
    assert bank["fingerprint"] == shell.json("identity", "show", home=node)["fingerprint"]


@pytest.mark.parametrize("text", ["", "{}", HOSTILE, '{"card":{},"statement":{}}', "[]"])
def test_a_damaged_file_of_ones_profile_is_named(shell, node, text):
    path = node / "parties/bank/profile.json"
    path.write_text(text)
    assert "profile.json: not a profile" in shell.fails(2, "identity", "show", home=node)


def test_a_kept_profile_of_another_name_or_log_is_not_taken_for_ones_own(shell, node, tmp_path):
    shell("identity", "describe", "--contact", "data office", "--out", "1.json", home=node)
    bank = Identity.load_or_create(node / "parties/bank", "bank")
    log = json.loads(Path("1.json").read_text())["items"][0]["statement"]["log"]
    folder = node / "parties/bank"
    assert kept(folder, bank.card, log=log).profile.contact == "data office"
    assert kept(folder, bank.card, log="fedseal/" + "0" * 16).before is None
    assert kept(folder, Identity.create("lab").card, log=log).before is None
    assert (folder / "profile.json").stat().st_mode & 0o077 == 0


def test_more_than_a_board_takes_in_one_go_goes_into_several_files(tmp_path):
    """One file of more could not be posted."""
    bank, log = Identity.create("bank"), "fedseal/" + "0" * 16
    number = 2 * MAX_STATEMENTS + 1
    said = [make_profile(bank, time=place).sign(bank, log=log) for place in range(number)]
    files = write_parts(tmp_path / "a.json", said, bank.card)
    assert [file.name for file in files] == ["a.json", "a-2.json", "a-3.json"]
    assert [statement for file in files for statement, _ in read_statements(file)] == said
    files[0].unlink()
    with pytest.raises(UsageError, match=r"a-2\.json: there is a file already"):
        write_parts(tmp_path / "a.json", said, bank.card)
    assert not files[0].exists(), "all or none"
    assert [file.name for file in write_parts(tmp_path / "b.json", said[:MAX_STATEMENTS], bank.card)] == ["b.json"]


# ---- through a door


def test_a_pass_gives_roles_and_certificate_and_no_role_beyond_them(shell, deployment):
    folder, enter = deployment
    ann = enter("ann", "engineer", "auditor")
    done = shell.json("identity", "describe", "--contact", "ann@example.org", home=ann)["profile"]
    held = Pass.decode((ann / "pass.json").read_bytes(), "pass").person.certificate
    assert (done["roles"], done["certificate"]) == (["auditor", "model-owner"], certificates.fingerprint(held))
    text = shell.fails(3, "identity", "describe", "--role", "model-owner", "--role", "operator", home=ann)
    assert "operator" in text and "allowed: auditor, model-owner" in text
    assert show(shell, home=ann)["roles"] == ["auditor", "model-owner"]
    text = shell.fails(1, "identity", "describe", "--certificate", "ab" * 32, home=ann)
    assert "certificate abababab" in text
    bob = enter("bob", "receiver")
    (told,) = shell.json("identity", "members", home=bob)["members"]
    assert (told["name"], told["contact"], told["roles"]) == ("ann", "ann@example.org", ["auditor", "model-owner"])
    assert verify_ledger(folder.home.ledger).reason == "valid"


def test_claiming_less_is_having_less(shell, deployment):
    both = deployment[1]("ann", "data-owner", "model-owner")
    words = ("data", "publish", "credit.csv", "--name", "c", "--purpose", "x")
    shell("identity", "describe", "--role", "model-owner", home=both)
    assert "(model-owner) may not publish" in shell.fails(3, *words, home=both)
    shell("identity", "describe", "--role", "model-owner", "--role", "data-owner", home=both)
    shell.json(*words, home=both)


def test_a_new_pass_with_fewer_roles_does_not_carry_the_old_ones_on(shell, deployment):
    """The default would otherwise be refused each time."""
    _, enter = deployment
    ann = enter("ann", "data-owner", "model-owner")
    shell("identity", "describe", "--contact", "here", home=ann)
    enter("ann", "model-owner", home=ann)
    again = shell.json("identity", "describe", home=ann)["profile"]
    assert (again["roles"], again["contact"]) == (["model-owner"], "here")


def test_a_rotation_through_the_door_keeps_contact_and_roles(shell, deployment):
    bank = deployment[1]("bank", "data-owner", "receiver")
    shell("identity", "describe", "--contact", "here", "--role", "data-owner", home=bank)
    shell("identity", "rotate", home=bank)
    (told,) = shell.json("identity", "members", home=bank)["members"]
    assert (told["contact"], told["roles"], told["rotations"]) == ("here", ["data-owner"], 1)


def test_what_cannot_be_read_is_not_needed_to_write_a_file(shell, deployment, monkeypatch):
    ann = deployment[1]("ann", "model-owner")

    def away(*_, **__):
        raise clients.door.Unreachable("coordinator does not answer")

    monkeypatch.setattr(clients.door.DoorClient, "board", away)
    shell.json("identity", "describe", "--contact", "here", "--out", "me.json", home=ann)
    assert [statement.kind for statement, _ in read_statements(Path("me.json"))] == ["card", "profile"]
    text = shell.fails(1, "identity", "describe", "--contact", "there", home=ann)
    assert "does not answer" in text
