"""A node's folder: what others may read, what is refused, and what an owner's hand can break."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from clients.node.folder import NodeFolder, Settings, Source
from clients.sql_source import SqlSource
from fl_core.errors import UsageError, WrongKey
from fl_core.home import Home
from fl_core.trust import certificates
from fl_core.trust.identity import Identity
from fl_core.trust.node_card import NodeCard

AUTHORITY = certificates.make_authority("ours").certificate
URL = "postgresql+psycopg://bank:hunter2@db/loans"


def settings(name: str = "bank", **more) -> Settings:
    return Settings(name, "fed.example:9443", **more)


@pytest.fixture
def home(tmp_path):
    return Home.open(tmp_path / "home")


@pytest.fixture
def folder(home):
    return NodeFolder.create(home, settings(), authority=AUTHORITY)


# ---- making one


def test_nobody_else_reads_a_nodes_files(folder):
    folder.save(settings(sources={"loans": Source(URL, "SELECT 1")}))
    folder.pause(True)
    folder.pin(Identity.create("coordinator").card)
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert {"node.json", "flower.key", "runtime.secret", "identity.key", "paused"} <= {path.name for path in files}
    assert {path.name: path.stat().st_mode & 0o077 for path in files if path.stat().st_mode & 0o077} == {}
    assert folder.path.stat().st_mode & 0o777 == 0o700


def test_making_a_node_again_would_lose_its_keys_and_is_refused(home, folder):
    before = {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
    with pytest.raises(UsageError, match="made already; allowed: fedseal node set, or another --name"):
        NodeFolder.create(home, settings(refuse_unsafe=True), authority=b"another")
    assert {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()} == before


def test_two_nodes_share_no_key(home, folder):
    other = NodeFolder.create(home, settings("bureau"), authority=AUTHORITY)
    assert folder.secret.read_bytes() != other.secret.read_bytes() and len(other.secret.read_bytes()) == 32
    assert folder.card().key != other.card().key
    assert folder.card().card.ed25519 != other.card().card.ed25519


def test_a_party_that_was_there_keeps_its_identity(home):
    identity = Identity.load_or_create(home.party("bank"), "bank")
    assert NodeFolder.create(home, settings(), authority=AUTHORITY).card().card == identity.card


def test_a_node_remembers_the_authority_that_it_was_made_with(folder):
    assert NodeFolder(folder.path).authority.read_bytes() == AUTHORITY


# ---- finding one


def test_the_only_node_of_a_home_needs_no_name_and_two_do(home, folder):
    assert NodeFolder.of(home, None).path == folder.path
    NodeFolder.create(home, settings("bureau"), authority=AUTHORITY)
    assert NodeFolder.of(home, "bureau").name == "bureau"
    with pytest.raises(UsageError, match=r"--name : no such node .* allowed: bank, bureau$"):
        NodeFolder.of(home, None)


@pytest.mark.parametrize("name", ["clinic", "", "../bank", "bank/", ".", "bank\0"])
def test_a_name_that_is_no_node_is_refused_with_those_that_are(home, folder, name):
    (home.path / "parties" / "clinic").mkdir()  # a party without a node
    with pytest.raises(UsageError, match=r"no such node .*; allowed: bank$"):
        NodeFolder.of(home, name)


def test_a_home_without_a_node_says_how_one_is_made(home):
    with pytest.raises(UsageError, match="none yet: fedseal node init"):
        NodeFolder.of(home, None)


# ---- the card and its keys


def test_the_card_shows_the_public_half_of_the_very_key_that_proves_the_node(folder):
    card = NodeCard.decode(folder.card().encode())
    private = serialization.load_ssh_private_key(folder.flower_key.read_bytes(), None)
    assert isinstance(private, EllipticCurvePrivateKey) and private.curve.name == "secp384r1"  # what Flower takes
    assert serialization.load_pem_public_key(card.key.encode()) == private.public_key()
    assert card.card == Identity.load_or_create(folder.path, "bank").card
    assert folder.card().fingerprint == card.fingerprint, "an owner reads the same one out each time"


@pytest.mark.parametrize("damage", [b"", b"nothing", None])
def test_a_damaged_identity_is_not_replaced_by_a_new_one(folder, damage):
    key = folder.path / "identity.key"
    key.write_bytes(damage if damage is not None else key.read_bytes().replace(b'"bank"', b'"bonk"'))
    with pytest.raises(UsageError, match=r"identity\.key: "):
        folder.card()


@pytest.mark.parametrize("damage", [b"nothing", None], ids=["damaged", "missing"])
def test_a_damaged_flower_key_is_told_in_one_line(folder, damage):
    folder.flower_key.unlink()
    if damage:
        folder.flower_key.write_bytes(damage)
    with pytest.raises(UsageError, match=r"flower\.key: missing or damaged; allowed: ") as refused:
        folder.card()
    assert "\n" not in str(refused.value)


def test_another_coordinator_than_the_pinned_one_is_refused(folder):
    pinned = Identity.create("coordinator").card
    folder.pin(pinned)
    folder.pin(pinned)
    with pytest.raises(WrongKey, match="coordinator: shows card"):
        folder.pin(Identity.create("coordinator").card)


# ---- the owner's decisions


def test_decisions_hold_from_the_next_look_on(folder):
    assert folder.policy().sources == {} and not folder.policy().paused
    made = settings(
        sources={"credit": Source("/data/credit.csv"), "loans": Source(URL, "SELECT 1")},
        limits={"credit": 2.5, "*": 8.0},
        kinds=("horizontal",),
        code=("ours.models:make",),
        refuse_unsafe=True,
    )
    folder.save(made)
    policy = NodeFolder(folder.path).policy()
    assert policy.sources == {"credit": Path("/data/credit.csv"), "loans": SqlSource(URL, "SELECT 1")}
    assert policy.limits == {"credit": 2.5, "*": 8.0}
    assert (policy.kinds, policy.code, policy.refuse_unsafe) == (("horizontal",), ("ours.models:make",), True)
    assert folder.settings() == made


def test_a_pause_stays_until_it_is_taken_back(folder):
    folder.pause(False)
    assert not folder.policy().paused
    folder.pause(True)
    folder.pause(True)
    assert NodeFolder(folder.path).policy().paused
    folder.save(settings())
    assert folder.policy().paused, "other decisions do not end a pause"
    folder.pause(False)
    assert not folder.policy().paused


def edited(folder: NodeFolder, **fields) -> None:
    """As an owner edits the file."""
    path = folder.path / "node.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{", "7", "[" * 60_000, '{"version": 1}', '{"version": 1, "sources": {}}', "\ud800".encode("utf-8", "surrogatepass")]
)  # fmt: skip
def test_a_settings_file_that_is_none_is_refused_by_its_path(folder, text):
    (folder.path / "node.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=r"node\.json: (not a node's settings|a node of version None)") as refused:
        folder.policy()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_settings_of_another_version_are_refused(folder, version):
    edited(folder, version=version)
    with pytest.raises(UsageError, match=f"a node of version {version!r}; allowed: 1"):
        folder.policy()


@pytest.mark.parametrize(
    "fields",
    [{"limit": {"*": 1.0}}, {"refuse_usafe": True}, {"paused": True}, {"sources": ["credit"]}, {"sources": None},
     {"sources": {"credit": "/data/credit.csv"}}, {"sources": {"credit": {"path": "x"}}}, {"kinds": None}, {"code": 7}],
    ids=str,
)  # fmt: skip
def test_a_decision_that_is_misspelt_is_not_ignored(folder, fields):
    edited(folder, **fields)
    with pytest.raises(UsageError, match="not a node's settings"):
        folder.policy()


@pytest.mark.parametrize(
    "fields",
    [{"limits": None}, {"limits": []}, {"limits": {"*": "8"}}, {"limits": {"*": -1.0}}, {"limits": {"*": 0}},
     {"limits": {"*": True}}, {"limits": {"*": None}}, {"limits": {"*": float("nan")}}, {"limits": {"*": float("inf")}},
     {"limits": {"*": 10**400}}, {"kinds": "horizontal"}, {"kinds": ["antigravity"]}, {"code": "ours:make"},
     {"code": [7]}, {"refuse_unsafe": "no"}, {"refuse_unsafe": 0}, {"name": None}, {"coordinator": "fed.example"},
     {"sources": {"credit": {"place": 7, "query": None}}}, {"sources": {"credit": {"place": "/data/x.csv"}}},
     {"sources": {"loans": {"place": "/data/x.csv", "query": 7}}}, {"contact": None}, {"contact": "a\x1b[2J"},
     {"contact": "x" * 201}],
    ids=str,
)  # fmt: skip
def test_a_decision_of_the_wrong_kind_is_refused(folder, fields):
    edited(folder, **fields)
    (key,) = fields
    with pytest.raises(UsageError, match=rf"node\.json: not a node's settings: {key} is wrong; allowed: .") as refused:
        folder.policy()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Settings) if f.name != "version"])
def test_a_decision_that_got_lost_does_not_open_the_node(folder, field):
    folder.save(settings(limits={"*": 1.0}, refuse_unsafe=True))
    path = folder.path / "node.json"
    table = json.loads(path.read_text())
    del table[field]
    path.write_text(json.dumps(table))
    if field == "consent":  # a node from before there were grants
        assert folder.policy().consent == "ask"
        return
    if field == "contact":  # a node from before there were profiles
        assert folder.settings().contact == ""
        return
    with pytest.raises(UsageError, match=rf"node\.json: not a node's settings: {field} is missing; allowed: ."):
        folder.policy()


# ---- passwords, and where a run's outputs go


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (Source(URL, "SELECT 1"), "postgresql+psycopg://bank:***@db/loans"),
        (Source("/data/me:x@home/credit.csv"), "/data/me:x@home/credit.csv"),
    ],
)
def test_people_see_where_data_lie_without_the_password(source, shown):
    assert source.shown == shown


def test_settings_in_a_log_do_not_show_a_password():
    assert "hunter2" not in repr(settings(sources={"loans": Source(URL, "SELECT 1")}))


def test_a_refused_settings_file_does_not_show_a_password(folder):
    folder.save(settings(sources={"loans": Source(URL, "SELECT 1")}))
    for fields in ({"more": 1}, {"sources": {"loans": {"place": URL, "query": 7}}}, {"coordinator": URL}):
        edited(folder, **fields)
        with pytest.raises(UsageError) as refused:
            folder.settings()
        assert "hunter2" not in str(refused.value)


def test_outputs_of_two_runs_do_not_mix_and_stay_in_the_nodes_folder(folder):
    one, two = folder.run_config("00" * 8), folder.run_config("11" * 8)
    assert one["out"] != two["out"]
    for config in (one, two):
        assert Path(config["out"]).is_relative_to(folder.path)
        assert (config["party"], config["home"], json.loads(config["own"])) == ("bank", str(folder.path), {})
    assert dataclasses.asdict(folder.settings())["coordinator"] == "fed.example:9443"
