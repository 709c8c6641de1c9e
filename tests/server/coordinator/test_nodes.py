"""The register of nodes: what a name stands for, who is let in, and that no change of another process is lost."""

from __future__ import annotations

import base64
import json
import stat
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, public_key_to_bytes, uses_nist_ec_curve
from typer.testing import CliRunner

from fl_core.errors import FedsealError, JobFailed, UsageError
from fl_core.trust.ledger import Ledger
from fl_core.trust.node_card import NodeCard
from fl_core.trust.roles import Role
from server.cli.coordinator import app
from server.coordinator.nodes import DISABLED, ENABLED, Nodes


@pytest.fixture
def nodes(tmp_path):
    return Nodes(tmp_path / "nodes.json")


def refused(call, *arguments, kind=UsageError) -> str:
    with pytest.raises(FedsealError) as caught:
        call(*arguments)
    assert type(caught.value) is kind
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# ---- names


def test_another_card_under_a_known_name_is_refused_and_the_first_one_stays(nodes, make_card):
    first = nodes.register(make_card("bank"))
    text = refused(nodes.register, make_card("bank"))
    assert first.fingerprint[:16] in text and "fedseal coordinator remove bank first" in text
    assert nodes.all() == {"bank": first}


def test_a_disabled_node_does_not_get_in_by_registering_again(nodes, make_card):
    card = make_card("bank")
    nodes.register(card)
    nodes.set_flower_id("bank", 7)
    nodes.set_state("bank", DISABLED)
    again = nodes.register(NodeCard.decode(card.encode()))
    assert (again.state, again.flower_id) == (DISABLED, 7)
    assert nodes.all()["bank"].state == DISABLED


def test_a_name_is_free_again_after_its_node_was_removed(nodes, make_card):
    nodes.register(make_card("bank"))
    nodes.set_flower_id("bank", 7)
    nodes.remove("bank")
    other = make_card("bank")
    nodes.register(other)
    held = nodes.all()["bank"]
    assert (held.fingerprint, held.flower_id, held.state) == (other.fingerprint, 0, ENABLED)


@pytest.mark.parametrize(
    "act",
    [
        lambda nodes: nodes.set_state("gone", DISABLED),
        lambda nodes: nodes.set_flower_id("gone", 3),
        lambda nodes: nodes.remove("gone"),
    ],
    ids=["state", "number", "remove"],
)
def test_a_node_that_is_not_there_is_named_with_those_that_are(nodes, make_card, act):
    assert "registered: none" in refused(act, nodes)
    nodes.register(make_card("bank"))
    nodes.register(make_card("clinic"))
    before = nodes.all()
    assert "node gone: not registered; registered: bank, clinic" in refused(act, nodes)
    assert nodes.all() == before


# ---- keys


def test_the_key_is_the_one_that_flower_puts_into_its_header(nodes, make_card):
    """Compared with Flower's own way of writing a key."""
    card = make_card("bank")
    node = nodes.register(card)
    expected = public_key_to_bytes(load_pem_public_key(card.key.encode()))
    assert node.key == expected
    assert base64.b64decode(node.header) == expected


def test_a_key_with_other_line_ends_is_the_same_node(nodes, make_card):
    card = make_card("bank")
    spaced = make_card("clinic", card.key.replace("\n", "\r\n") + "\r\n")
    assert nodes.register(spaced).header == base64.b64encode(card.key.encode()).decode()


def pem(private) -> str:
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.mark.parametrize(
    "key",
    [
        "",
        "not a key",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        pem(ed25519.Ed25519PrivateKey.generate()),
        pem(ec.generate_private_key(ec.SECP256K1())),
    ],
    ids=["empty", "text", "garbage", "ed25519", "secp256k1"],
)
def test_a_card_whose_key_is_none_is_not_registered(nodes, make_card, key):
    """Its owner signs whatever text: one bad card must not keep every other node out."""
    text = refused(nodes.register, make_card("bank", key))
    assert "node bank" in text and "allowed: PEM, elliptic curve P-256, P-384 or P-521" in text
    assert nodes.all() == {}


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_a_key_that_flower_takes_is_registered(nodes, make_card, curve):
    key = pem(ec.generate_private_key(curve()))
    nodes.register(make_card("bank", key))
    assert uses_nist_ec_curve(bytes_to_public_key(nodes.all()["bank"].key))


def test_a_key_of_another_node_is_not_registered_again(nodes, make_card):
    bank = make_card("bank")
    nodes.register(bank)
    text = refused(nodes.register, make_card("clinic", bank.key))
    assert "bank" in text
    assert set(nodes.all()) == {"bank"}


# ---- a register that somebody damaged


def damage(nodes: Nodes, name: str, /, **changes) -> None:
    table = json.loads(nodes.path.read_text())
    table[name] = {**table[name], **changes}
    nodes.path.write_text(json.dumps(table))


@pytest.mark.parametrize(
    "changes",
    [
        {"card": {"key": "no key at all"}},
        {"card": {}},
        {"card": "bank"},
        {"card": {"key": 7}},
        {"flower_id": "seven"},
        {"state": "Disabled"},
        {"fingerprint": None},
        {"colour": "red"},
        {"name": "clinic"},
        {"roles": ["king"]},
        {"roles": ["data-owner", "operator"]},
        {"roles": ["engineer"]},
        {"roles": ["data-owner", "data-owner"]},
        {"roles": []},
        {"roles": "data-owner"},
        {"roles": {"data-owner": 1}},
        {"roles": [["data-owner"]]},
        {"roles": [7]},
        {"roles": None},
    ],
)
def test_a_damaged_entry_keeps_out_its_own_node_and_no_other(nodes, make_card, changes):
    card = make_card("bank")
    clinic = nodes.register(make_card("clinic"))
    nodes.register(card)
    damage(nodes, "bank", **changes)
    assert nodes.all() == {"clinic": clinic}
    (line,) = nodes.damaged()
    assert "node bank: its " in line and str(nodes.path) in line and len(line.splitlines()) == 1
    nodes.set_flower_id("clinic", 7)  # a change of another entry loses nothing of it
    assert json.loads(nodes.path.read_text())["bank"].items() >= changes.items()
    again = nodes.register(card)
    assert (nodes.all()["bank"], nodes.damaged()) == (again, [])


def test_a_key_that_stands_there_twice_is_that_of_the_first(nodes, make_card):
    """Flower would refuse the second for ever."""
    bank, clinic = nodes.register(make_card("bank")), nodes.register(make_card("clinic"))
    damage(nodes, "clinic", card={**clinic.card, "key": bank.card["key"]})
    assert nodes.all() == {"bank": bank}
    assert "node clinic: its key is that of node bank" in nodes.damaged()[0]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\0", '{"a":' * 100_000])
def test_a_file_that_is_no_register_is_named_and_not_written_over(nodes, make_card, text):
    nodes.path.write_text(text)
    for call in (nodes.all, lambda: nodes.register(make_card("bank")), lambda: nodes.set_state("bank", DISABLED)):
        assert str(nodes.path) in refused(call)
    assert nodes.path.read_text() == text


# ---- roles


def test_a_register_from_before_roles_is_one_of_data_owners(nodes, make_card):
    nodes.register(make_card("bank"))
    table = json.loads(nodes.path.read_text())
    del table["bank"]["roles"]
    nodes.path.write_text(json.dumps(table))
    bank = nodes.all()["bank"]
    assert (bank.roles, bank.held, nodes.damaged()) == (("data-owner",), {Role.DATA_OWNER}, [])


def test_roles_are_kept_and_the_same_card_again_changes_them_and_nothing_else(nodes, make_card):
    card = make_card("bank")
    first = nodes.register(card, ["receiver", "data-owner", "receiver"])
    assert (first.roles, first.held) == (("data-owner", "receiver"), {Role.DATA_OWNER, Role.RECEIVER})
    assert Nodes(nodes.path).all() == {"bank": first}
    nodes.set_flower_id("bank", 7)
    nodes.set_state("bank", DISABLED)
    changed = nodes.register(card, ["model-owner"])
    assert (changed.roles, changed.state, changed.flower_id) == (("model-owner",), DISABLED, 7)
    assert nodes.all() == {"bank": changed}


@pytest.mark.parametrize("roles", [[], ["operator"], ["auditor"], ["engineer"], ["data-owner", "\x1b[2J"], [""]])
def test_a_node_gets_no_role_that_is_not_for_nodes(nodes, make_card, roles):
    text = refused(nodes.register, make_card("bank"), roles)
    assert text.isprintable() and text.endswith("allowed: data-owner, receiver, model-owner")
    assert nodes.all() == {}


def test_the_operator_registers_with_roles_and_the_ledger_has_each_change(folder, make_card):
    card = make_card("bank")

    def register(*words):
        done = CliRunner().invoke(app, ["register", card.encode(), "--home", str(folder.home.path), *words])
        return done.exit_code, done.output, done.exception

    assert json.loads(register("--json")[1])["roles"] == ["data-owner"]
    code, said, _ = register("--role", "receiver", "--role", "data-owner", "--json")
    found = json.loads(said)
    assert (code, found["roles"], found["fingerprint"]) == (0, ["data-owner", "receiver"], card.fingerprint)
    assert "node bank: registered (model-owner); compare with its owner: " in register("--role", "model-owner")[1]
    error = register("--role", "operator")[2]
    assert type(error) is UsageError and "allowed: data-owner, receiver, model-owner" in str(error)
    assert folder.nodes.all()["bank"].roles == ("model-owner",)
    with Ledger.open(folder.home.ledger) as ledger:
        noted = [entry.body for entry in ledger.entries(kind="node")]
    assert [body["roles"] for body in noted] == [["data-owner"], ["data-owner", "receiver"], ["model-owner"]]
    assert {body["state"] for body in noted} == {"registered"}


# ---- a job's parties


def test_a_job_waits_for_no_node_that_cannot_answer(nodes, make_card):
    for name in ("bank", "clinic", "bureau"):
        nodes.register(make_card(name))
    nodes.set_flower_id("bank", 2**63 + 5)
    nodes.set_flower_id("clinic", 7)
    nodes.set_state("clinic", DISABLED)
    assert "party shop: no node of that name is registered; registered: bank, clinic, bureau" in refused(
        nodes.flower_ids, ["bank", "shop"], kind=JobFailed
    )
    assert "party clinic: its node is disabled" in refused(nodes.flower_ids, ["bank", "clinic"], kind=JobFailed)
    assert "party bureau: its node is not known to the SuperLink yet" in refused(
        nodes.flower_ids, ["bureau", "bank"], kind=JobFailed
    )
    nodes.set_state("clinic", ENABLED)
    assert nodes.flower_ids(["clinic", "bank"]) == {"clinic": 7, "bank": 2**63 + 5}


def test_a_coordinator_without_nodes_says_so(nodes):
    assert "registered: none" in refused(nodes.flower_ids, ["bank"], kind=JobFailed)
    assert nodes.all() == {}


# ---- several processes, and files


def test_no_change_is_lost_when_several_write_at_once(nodes, make_card):
    """Each writer has its own descriptor of the lock, as a process has."""
    cards = [make_card(f"node-{n}") for n in range(8)]
    start = threading.Barrier(8)

    def write(number: int) -> None:
        mine = Nodes(nodes.path)
        start.wait()
        mine.register(cards[number])
        mine.set_flower_id(f"node-{number}", number + 1)
        mine.set_state(f"node-{number}", DISABLED if number % 2 else ENABLED)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = nodes.all()
    assert {n: (found[n].flower_id, found[n].state) for n in found} == {
        f"node-{n}": (n + 1, DISABLED if n % 2 else ENABLED) for n in range(8)
    }


def test_a_reader_never_sees_half_a_register(nodes, make_card):
    done, broken = threading.Event(), []

    def read() -> None:
        while not done.is_set():
            try:
                nodes.all()
            except ValueError as error:
                broken.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(10):
        nodes.register(make_card(f"node-{n}"))
    done.set()
    reader.join()
    assert not broken


def test_the_register_is_for_its_owner_alone_and_survives_a_restart(nodes, make_card):
    bank = nodes.register(make_card("bank"))
    assert stat.S_IMODE(nodes.path.stat().st_mode) == 0o600
    assert Nodes(nodes.path).all() == {"bank": bank}
    assert "PRIVATE" not in json.dumps(json.loads(nodes.path.read_text()))
