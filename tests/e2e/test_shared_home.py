"""Several runs on one home: at the same time, and against one owner's privacy limit."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest

from fl_core.learning.privacy import epsilon
from fl_core.trust.budget import OWNER_DELTA, Budget
from fl_core.trust.entry import Entry
from fl_core.trust.ledger import Ledger
from tests.e2e.process import OWN, Done, Place

pytestmark = pytest.mark.e2e
ROUNDS = 12  # so that two runs overlap, however their starts differ
LIMIT = 3.5  # one job of ε 3 passes, two do not
PRIVATE = """
[privacy]
mechanism = "dp-sgd"
target_epsilon = 3.0
"""
MODEL = """
import torch

def build(input_shape, num_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(input_shape[0], num_classes))
"""


def entries(place: Place, **which: str) -> list[Entry]:
    with Ledger.open(place.home / "ledger.db") as ledger:
        return list(ledger.entries(**which))  # type: ignore[arg-type]


# ---- a fresh home, two first runs at the same moment


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, list[Done]]:
    """Two runs started together where nothing was before; the second trains a model of the user's own."""
    place = Place(tmp_path_factory.mktemp("twins"))
    (place.path / "our_model.py").write_text(MODEL)
    one = place.start("run", place.job("one", rounds=ROUNDS), "--json")
    own = ["--set", "model.name=our_model:build"]
    two = place.start("run", place.job("two", rounds=ROUNDS), "--json", *own, PYTHONPATH=str(place.path))
    return place, [one.end(), two.end()]


def test_two_first_runs_at_once_both_end(twins: tuple[Place, list[Done]]) -> None:
    place, ends = twins
    assert [done.code for done in ends] == [0, 0], ends
    assert all(done.json["metrics"]["accuracy"] > 0.8 for done in ends)
    assert len({done.json["run"] for done in ends}) == 2
    assert sorted(r["name"] for r in place.fedseal("runs", "--json").json["runs"]) == ["one", "two"]


def test_entries_of_both_stand_in_one_unbroken_chain(twins: tuple[Place, list[Done]]) -> None:
    place, ends = twins
    report = place.fedseal("audit", "verify", "--json")
    assert report.code == 0
    assert {r["state"] for r in report.json["runs"].values()} == {"witnessed"}
    order = [e.run for e in entries(place) if e.run]
    changes = sum(a != b for a, b in itertools.pairwise(order))
    assert changes > 2, "the runs did not overlap"
    for done in ends:
        assert [e.body["round"] for e in entries(place, run=done.json["run"], kind="round")] == [*range(ROUNDS + 1)]


def test_both_reach_mlflow(twins: tuple[Place, list[Done]]) -> None:
    from mlflow.tracking import MlflowClient

    place, ends = twins
    client = MlflowClient(f"sqlite:///{place.home / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("fedseal").experiment_id])
    assert {r.info.run_id for r in found} == {done.json["mlflow_run_id"] for done in ends}
    assert {r.info.status for r in found} == {"FINISHED"}
    assert {len(client.get_metric_history(r.info.run_id, "loss")) for r in found} == {ROUNDS + 1}


# ---- one owner's limit, two jobs at the same moment, then a third


@dataclass(frozen=True)
class Race:
    place: Place
    both: list[Done]
    third: Done

    @property
    def winner(self) -> Done:
        return next(done for done in self.both if done.code == 0)


@pytest.fixture(scope="module")
def race(place: Place) -> Race:
    parties = "".join(OWN.format(name=n, data=place.table(n, 120)) for n in "abc")
    parties = parties.replace('name = "b"\n', f'name = "b"\nmax_epsilon = {LIMIT}\n')
    job = place.job("private", parties=parties, more=PRIVATE)
    started = [place.start("run", job, "--json", "--out", out) for out in ("one", "two")]
    both = [run.end() for run in started]
    return Race(place, both, place.fedseal("run", job, "--json", "--out", "three"))


def test_one_of_two_jobs_at_once_passes_the_owners_limit(race: Race) -> None:
    assert sorted(done.code for done in race.both) == [0, 3], race.both
    assert 2.5 < race.winner.json["metrics"]["epsilon"] <= 3.0
    spent = Budget(race.place.home / "parties" / "b" / "budget.db").spent("b.csv", OWNER_DELTA, epsilon, reserved=True)
    assert 2.5 < spent <= LIMIT


def test_refused_job_says_who_refused_and_why(race: Race) -> None:
    for done in [d for d in race.both if d.code] + [race.third]:
        line = done.fails(3)
        assert "party b" in line and "budget" in line and f"the owner's limit is {LIMIT:g}" in line
        assert done.json["status"] == "refused"


def test_refusal_stands_on_the_ledger_signed_by_the_owner(race: Race) -> None:
    refusals = entries(race.place, kind="refusal")
    assert [(e.by, e.body["code"], e.body["step"]) for e in refusals] == [("b", "budget", "query.join")] * 2
    assert race.place.fedseal("audit", "verify").code == 0
    states = [r["status"] for r in race.place.fedseal("runs", "--json").json["runs"]]
    assert sorted(states) == ["done", "refused", "refused"]


def test_refused_job_leaves_no_output_and_no_reservation(race: Race) -> None:
    lost = [race.place.path / out for out in ("one", "two", "three")]
    left = [folder for folder in lost if [p for p in folder.rglob("*") if p.is_file()]]
    assert left == [Path(race.winner.json["outputs"]["a"]["model"]).parents[1]]
    for party in "abc":
        assert Budget(race.place.home / "parties" / party / "budget.db").open_runs() == ()


def test_refused_job_is_not_taken_for_an_unfinished_one(race: Race) -> None:
    assert "no unfinished run" in race.place.fedseal("run", "private.toml", "--resume").fails(2)


def test_check_says_beforehand_what_is_left(race: Race) -> None:
    done = race.place.fedseal("check", "private.toml", "--json")
    assert done.code == 3
    told = {p["party"]: p for p in done.json["parties"]}
    assert [told[p]["status"] for p in "abc"] == ["ready", "refused", "ready"]
    assert f"the owner's limit is {LIMIT:g}" in told["b"]["problem"]
