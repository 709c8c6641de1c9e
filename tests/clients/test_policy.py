"""An owner's decisions against a job and a coordinator that want more."""

from __future__ import annotations

import sys

import pytest

from clients.policy import Policy
from clients.sql_source import SqlSource
from fl_core.config import load_job
from fl_core.errors import BadMessage, DataError, Paused, RefusedError
from fl_core.job import Party

URL = "postgresql+psycopg://bank:hunter2@db/loans"


def job(**more):
    """A deployment's job on bound data, as an engineer submits it."""
    parties = [{"name": name, "data": "credit", "label": "y"} for name in ("bank", "bureau", "clinic")]
    return load_job({"kind": "horizontal", "runtime": "deployment", "party": parties}, more)


def experiment(**more):
    table = {"kind": "horizontal", "runtime": "deployment", "dataset": {"name": "digits", "parties": 3}}
    return load_job(table, more)


def policy(**more) -> Policy:
    return Policy(**{"sources": {}, **more})


# ---- which jobs


def test_a_paused_node_takes_no_new_job_and_goes_on_with_the_begun_one():
    paused = policy(paused=True)
    with pytest.raises(Paused, match="fedseal node resume") as refused:
        paused.check(job(), begun=False)
    assert (refused.value.code, refused.value.exit_code) == ("paused", 3)
    paused.check(job(), begun=True)
    policy().check(job(), begun=False)


@pytest.mark.parametrize(("kinds", "shown"), [(("psi", "statistics"), "psi, statistics"), ((), "")])
@pytest.mark.parametrize("begun", [True, False])
def test_a_kind_that_the_owner_does_not_allow_is_refused_even_when_begun(kinds, shown, begun):
    with pytest.raises(RefusedError, match=f"^kind 'horizontal'; the owner allows: {shown}$"):
        policy(kinds=kinds).check(job(), begun=begun)


@pytest.mark.parametrize("key", ["model.name", "dataset.name"])
def test_code_that_the_owner_did_not_allow_is_refused_and_not_imported(key):
    sys.modules.pop("antigravity", None)
    with pytest.raises(RefusedError, match=rf"{key} = 'antigravity:fly'.*--allow-code"):
        policy().check(experiment(**{key: "antigravity:fly"}), begun=True)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "name", ["ours.models:make2", "ours.models:mak", "ours.models:make:x", "ours:models.make", ":"]
)
def test_only_the_very_name_that_the_owner_allowed_is_allowed(name):
    allowing = policy(code=("ours.models:make",))
    allowing.check(experiment(**{"model.name": "ours.models:make"}), begun=False)
    with pytest.raises(RefusedError):
        allowing.check(experiment(**{"model.name": name}), begun=False)


def test_code_allowed_for_a_model_does_not_open_the_other_key_to_other_code():
    both = experiment(**{"model.name": "ours:make", "dataset.name": "theirs:load"})
    with pytest.raises(RefusedError, match=r"dataset\.name = 'theirs:load'"):
        policy(code=("ours:make",)).check(both, begun=False)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"encryption.scheme": "none"}, "encryption is off"),
        ({"encryption.profile": "TEST_ONLY"}, "TEST_ONLY protects nothing"),
        ({"privacy.mechanism": "dp-sgd", "privacy.noise": "seeded"}, "the DP noise is seeded"),
        ({"train.min_parties": 2}, "fewer than three contributions"),
    ],
)
def test_an_owner_who_refuses_unsafe_jobs_is_told_what_is_unsafe(more, says):
    unsafe = job(**more)
    with pytest.raises(RefusedError, match=f"the job is unsafe: .*{says}"):
        policy(refuse_unsafe=True).check(unsafe, begun=False)
    policy(refuse_unsafe=False).check(unsafe, begun=False)


def test_an_owner_who_refuses_unsafe_jobs_takes_a_safe_one():
    policy(refuse_unsafe=True).check(job(**{"privacy.mechanism": "dp-sgd"}), begun=False)


# ---- what the coordinator tells of this party's part


@pytest.mark.parametrize(
    "told",
    [
        {"query": "SELECT *"}, {"max_epsilon": 9}, {"name": "bureau"}, {"key": "00"}, {"init": "model.pt"}, {"": ""},
        {"data": 7}, {"data": ["credit"]}, {"data": True}, {"label": {}}, {"id": "id"}, {"id": {"0": "id"}},
    ],
    ids=str,
)  # fmt: skip
def test_a_coordinator_may_tell_names_of_data_and_columns_only(told):
    with pytest.raises(BadMessage, match=f"part of the job holds '{next(iter(told))}'"):
        policy(limits={"*": 1.0}).fill(Party("bank"), {"label": "y", **told}, job())


def test_columns_and_the_name_of_the_data_arrive_as_told():
    got = policy().fill(Party("bank", key="ab" * 32), {"data": "credit", "label": "y", "id": ["id", "year"]}, job())
    assert got == Party("bank", data="credit", label="y", id=("id", "year"), key="ab" * 32)


@pytest.mark.parametrize(
    ("limits", "data", "limit"),
    [
        ({"credit": 2.0, "*": 8.0}, "credit", 2.0),
        ({"credit": 2.0, "*": 8.0}, "loans", 8.0),
        ({"credit": 2.0}, "loans", None),
        ({"credit": 0.0, "*": 8.0}, "credit", 0.0),
        ({"credit": -1.0}, "credit", -1.0),
        ({}, "credit", None),
    ],
)
def test_the_limit_is_the_owners_for_that_name_or_for_the_others(limits, data, limit):
    got = policy(limits=limits).fill(Party("bank", max_epsilon=99.0), {"data": data, "label": "y"}, job())
    assert got.max_epsilon == limit


def test_a_public_data_set_has_its_own_limit_whatever_data_the_coordinator_names_beside_it():
    strict = policy(limits={"digits": 1.0, "credit": 9.0, "*": 9.0})
    assert strict.fill(Party("bank"), {"data": "credit"}, experiment()).max_epsilon == 1.0
    assert strict.fill(Party("bank"), {}, experiment()).max_epsilon == 1.0


# ---- where data lie


@pytest.mark.parametrize(
    "name", ["loans", "", "/data/credit.csv", "../credit", "credit.csv", "Credit", "credit ", None]
)
def test_only_data_that_the_owner_bound_are_opened(tmp_path, name):
    (tmp_path / "credit.csv").write_text("x,y\n")
    bound = policy(sources={"credit": tmp_path / "credit.csv", "sql": SqlSource(URL, "SELECT 1")})
    with pytest.raises(DataError, match=r"^party bank: no data .* at this node; allowed: credit, sql$") as refused:
        bound.source(Party("bank", data=name))
    assert "hunter2" not in str(refused.value) and str(tmp_path) not in str(refused.value)


def test_a_node_without_data_says_so():
    with pytest.raises(DataError, match="allowed: nothing is bound"):
        policy().source(Party("bank", data="credit"))


def test_bound_data_are_found_under_their_name(tmp_path):
    bound = policy(sources={"credit": tmp_path / "a.csv", "sql": SqlSource(URL, "SELECT 1")})
    assert bound.source(Party("bank", data="credit")) == tmp_path / "a.csv"
    assert bound.source(Party("bank", data="sql")) == SqlSource(URL, "SELECT 1")


def test_a_policy_in_a_log_does_not_show_the_password():
    assert "hunter2" not in repr(policy(sources={"sql": SqlSource(URL, "SELECT 1")}))
