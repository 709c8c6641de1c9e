"""A party's own part of a job: what the public job and the coordinator may not decide at a node."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from clients.guard import admit
from clients.part import NodeConfig, bind, own_part
from clients.policy import Policy
from clients.store import PartyStore
from fl_core import messages
from fl_core.config import load_job
from fl_core.errors import (
    BadMessage,
    BudgetExceeded,
    DataError,
    FedsealError,
    JobFileError,
    Paused,
    RefusedError,
    UsageError,
)
from fl_core.messages import Packet
from fl_core.trust import canonical
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Identity

TOLD = {"data": "credit", "label": "y", "id": ["id"]}
NOT_RAISED = pytest.fail.Exception
NAMES = ("bank", "bureau", "clinic")


def view(**more):
    """The public view of a deployment's job on bound data."""
    table = {
        "kind": "horizontal",
        "runtime": "deployment",
        "party": [{"name": name, "data": "credit", "label": "y"} for name in NAMES],
    }
    return load_job(table, more).public()


def node(path: Path, *, party: str = "bank", policy: Policy | None = None, **own) -> NodeConfig:
    return NodeConfig(party=party, home=path, out=path / "out", base=path, run="00" * 8, own=own, policy=policy)


def policy(**more) -> Policy:
    return Policy(**{"sources": {"credit": Path("/data/credit.csv")}, "limits": {"*": 2.0}, **more})


@pytest.fixture(scope="module")
def statement():
    coordinator = Identity.create("coordinator")
    return Statement.make(coordinator, log="fedseal/" + "0" * 16, kind="request", run="00" * 8, body={})


# ---- where the part comes from


def test_at_a_node_the_part_comes_with_the_request_and_not_from_its_files(tmp_path, statement):
    config = node(tmp_path, policy=policy(), data="other")
    assert own_part(config, Packet(statement, {"own": canonical.encode(TOLD)})) == TOLD
    assert own_part(config, Packet(statement)) == {}


def test_on_one_machine_no_request_changes_the_part(tmp_path, statement):
    config = node(tmp_path, data="mine.csv")
    got = own_part(config, Packet(statement, {"own": canonical.encode(TOLD)}))
    assert got == {"data": "mine.csv"}
    got["data"] = "changed.csv"
    assert config.own == {"data": "mine.csv"}


@pytest.mark.parametrize(
    "told", [b"[]", b'"credit"', b"7", b"", b"{", b'{"data": "credit"}', b"\xff", b'{"data":null}']
)
def test_a_part_that_is_no_canonical_table_is_refused(tmp_path, statement, told):
    with pytest.raises(BadMessage):
        own_part(node(tmp_path, policy=policy()), Packet(statement, {"own": told}))


def test_an_endless_part_is_refused_before_it_is_read(tmp_path, statement):
    told = b'{"data":"' + b"x" * messages.MAX_HEAD + b'"}'
    with pytest.raises(BadMessage, match="bytes; allowed"):
        own_part(node(tmp_path, policy=policy()), Packet(statement, {"own": told}))


# ---- the job, filled in


def test_a_nodes_part_is_filled_in_under_the_owners_limit(tmp_path):
    job, party = bind(node(tmp_path, policy=policy()), view(), TOLD, begun=False)
    assert (party.name, party.data, party.label, party.id, party.max_epsilon) == ("bank", "credit", "y", ("id",), 2.0)
    assert [p.data for p in job.parties] == [None] * 3, "the others' part is not told"


def test_what_the_public_job_says_of_a_partys_data_is_not_believed(tmp_path):
    """An honest public view holds names only; a coordinator that is not may write anything into it."""
    seen = view()
    seen["party"][0] |= {"data": "/etc/passwd", "label": "root", "query": "SELECT 1", "max_epsilon": 99}
    _, party = bind(node(tmp_path, policy=policy()), seen, {"data": "credit"}, begun=False)
    assert (party.data, party.label, party.max_epsilon) == ("credit", None, 2.0)


@pytest.mark.parametrize("data", ["/etc/passwd", "../../bureau/credit.csv", "postgresql://db/loans", "bureau"])
def test_a_path_or_url_that_the_coordinator_tells_opens_nothing(tmp_path, data):
    owner = policy()
    _, party = bind(node(tmp_path, policy=owner), view(), TOLD | {"data": data}, begun=False)
    with pytest.raises(DataError, match="allowed: credit"):
        owner.source(party)


def test_a_stranger_is_not_bound_and_a_receiver_brings_no_data(tmp_path):
    with pytest.raises(BadMessage, match="does not name this party"):
        bind(node(tmp_path, party="stranger", policy=policy()), view(), TOLD, begun=False)
    seen = view(**{"train.receivers": ["lab"]})
    job, party = bind(node(tmp_path, party="lab", policy=policy()), seen, TOLD, begun=False)
    assert party is None and job.train.receivers == ("lab",)


@pytest.mark.parametrize(
    ("owner", "more", "error"),
    [
        ({"paused": True}, {}, Paused),
        ({"kinds": ("psi",)}, {}, RefusedError),
        ({"refuse_unsafe": True}, {"encryption.scheme": "none"}, RefusedError),
        ({}, {"model.name": "antigravity:fly"}, RefusedError),
    ],
    ids=["paused", "kind", "unsafe", "code"],
)
def test_what_the_owner_does_not_allow_is_refused_for_receivers_too(tmp_path, owner, more, error):
    seen = view(**more, **{"train.receivers": ["lab"]})
    for party in ("bank", "lab"):
        with pytest.raises(error):
            bind(node(tmp_path, party=party, policy=policy(**owner)), seen, TOLD, begun=False)


def test_a_pause_lets_a_begun_job_go_on(tmp_path):
    _, party = bind(node(tmp_path, policy=policy(paused=True)), view(), TOLD, begun=True)
    assert party is not None


@pytest.mark.parametrize(
    "change",
    [{"kind": "psi"}, {"kind": "antigravity"}, {"kind": 7}, {"more": 1}, {"party": "bank"}, {"train": {"rounds": "x"}},
     {"train": {"learning_rate": "nan"}}, {"privacy": {"target_epsilon": "inf"}}, {"privacy": {"target_epsilon": "-1.0"}}],
    ids=str,
)  # fmt: skip
def test_a_job_that_no_job_file_could_hold_is_refused(tmp_path, change):
    with pytest.raises(JobFileError):
        bind(node(tmp_path, policy=policy()), view() | change, TOLD, begun=False)


@pytest.mark.parametrize("more", [{"train.min_parties": 1}, {"train.min_parties": 0}])
def test_no_job_file_may_ask_for_sums_of_one_party(more):
    with pytest.raises(JobFileError, match="min_parties"):
        view(**more)


@pytest.mark.parametrize(
    "change", [{"train": {"min_parties": 1}}, {"party": [{"name": "bank"}]}, {"party": [{"name": "bank"}] * 3}]
)
def test_a_coordinators_job_is_held_to_what_a_job_file_is(tmp_path, change):
    """With `min_parties = 1` a "sum" may be one party's update, and its metrics are told to the coordinator."""
    with pytest.raises(FedsealError):
        bind(node(tmp_path, policy=policy()), view() | change, TOLD, begun=False)


def test_a_coordinators_job_names_no_file_of_the_node(tmp_path):
    seen = view()
    seen["model"]["init"] = "/srv/fedseal/parties/bank/outputs/0123456789abcdef/bank/model.pt"
    with pytest.raises(FedsealError):
        bind(node(tmp_path, policy=policy()), seen, TOLD, begun=False)


@pytest.mark.parametrize(
    "more",
    [
        {"party.1.data": "postgresql://bank:hunter2@db/loans"},
        {"party.1.data": "/data/credit.csv"},
        {"party.1.max_epsilon": 3.0},
        {"party.1.query": "SELECT 1"},
        {"model.init": "model.pt"},
    ],
    ids=str,
)
def test_an_engineers_job_may_not_name_what_a_node_decides(more):
    with pytest.raises(JobFileError, match=r"deployment|node") as refused:
        view(**more)
    assert "hunter2" not in str(refused.value)


# ---- a job over the owner's limit


@pytest.mark.parametrize("limit", [2.999, 1.0, 0.0, -1.0])
def test_a_job_over_the_limit_is_refused_before_the_data_are_opened(tmp_path, limit):
    owner = policy(sources={"credit": tmp_path / "missing.csv"}, limits={"credit": limit})
    seen = view(**{"privacy.mechanism": "dp-sgd", "privacy.target_epsilon": 3.0})
    job, party = bind(node(tmp_path, policy=owner), seen, TOLD, begun=False)
    store = PartyStore(tmp_path / "party", "bank")
    with pytest.raises(BudgetExceeded, match=f"asks for ε = 3; the owner allows {limit:g}$"):
        admit(job, party, store, "00" * 8, owner)
    assert store.budget.open_runs() == ()
    with pytest.raises(DataError, match="missing"):  # as it would be without a limit
        admit(job, replace(party, max_epsilon=None), store, "00" * 8, owner)


# ---- on one machine


def local_view(path: Path, **more):
    for name in NAMES:
        (path / f"{name}.csv").touch()
    table = {
        "kind": "horizontal",
        "party": [{"name": n, "data": f"{path}/{n}.csv", "label": "y"} for n in NAMES],
        **more,
    }
    return load_job(table).public()


def test_on_one_machine_the_part_of_the_job_file_counts(tmp_path):
    own = {"data": "bank.csv", "label": "y", "id": ["id"], "max_epsilon": 3.0}
    job, party = bind(node(tmp_path), local_view(tmp_path), own, begun=False)
    assert (party.name, party.data, party.id, party.max_epsilon) == ("bank", "bank.csv", ("id",), 3.0)
    assert job.base == tmp_path


def test_a_model_to_start_from_must_be_the_one_whose_digest_all_parties_see(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    seen = local_view(tmp_path, model={"init": str(tmp_path / "model.pt")})
    assert seen["model"]["init"] == hashlib.sha256(b"weights").hexdigest()
    own = {"data": "bank.csv", "label": "y", "init": "model.pt"}
    job, _ = bind(node(tmp_path), seen, own, begun=False)
    assert job.model.init == "model.pt"
    (tmp_path / "model.pt").write_bytes(b"other weights")
    with pytest.raises(DataError, match="is not the file the job names; allowed: SHA-256 "):
        bind(node(tmp_path), seen, own, begun=False)
    (tmp_path / "model.pt").unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        bind(node(tmp_path), seen, own, begun=False)
