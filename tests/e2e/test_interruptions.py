"""Runs that are stopped, killed and resumed, and runs that lose a party: one result, one MLflow run, one valid ledger."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fl_core.trust.entry import Entry
from fl_core.trust.ledger import Ledger
from tests.e2e.process import Done, Place, wait_until

pytestmark = pytest.mark.e2e
ROUNDS = 12
# The worst moment to die: round 8 is on the ledger and has not reached MLflow's spool.
DIES = """
import os, signal
from server.recorders.mlflow import MlflowRecorder
real = MlflowRecorder.record
MlflowRecorder.record = lambda self, r: os.kill(os.getpid(), signal.SIGKILL) if r.round == 8 else real(self, r)
from server.cli.main import main
main()
"""


def entries(place: Place, **which: str) -> list[Entry]:
    with Ledger.open(place.home / "ledger.db") as ledger:
        return list(ledger.entries(**which))  # type: ignore[arg-type]


def mlflow(place: Place) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{place.home / 'mlflow.db'}")


def mlflow_run(story: Story) -> Any:
    """The one run there must be."""
    client = mlflow(story.place)
    (run,) = client.search_runs([client.get_experiment_by_name("fedseal").experiment_id])
    return run


@dataclass
class Story:
    """One job that was stopped three ways and resumed each time, beside the same job left alone."""

    place: Place
    undisturbed: Done
    ends: dict[str, Done] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def story(place: Place) -> Story:
    alone = Place(place.path / "alone")
    job = place.job("long", rounds=ROUNDS)
    told = Story(place, alone.fedseal("run", job, "--json"))

    run = place.start("run", job, "--json", "--out", "results")
    run.wait_for("round 2:")
    run.freeze()  # so that it cannot end before the others have looked
    told.ends["busy"] = place.fedseal("run", job, "--resume")
    stop = place.start("stop", "long", "--json")
    wait_until(lambda: list(place.home.glob("coordinator/runs/*/stop")), "the request to stop")
    run.thaw()
    told.ends["stop"], told.ends["stopped"] = stop.end(), run.end()
    told.facts["after stop"] = place.fedseal("runs", "--json").json["runs"]

    run = place.start("run", job, "--json", "--resume")
    run.wait_for("round 5:")
    run.process.send_signal(signal.SIGINT)
    told.ends["interrupted"] = run.end()
    told.facts["audit after stop"] = place.fedseal("audit", "verify")

    run = place.start("run", job, "--json", "--resume", command=[sys.executable, "-c", DIES])
    run.wait_for("round 7:")
    run.freeze()
    told.facts["processes"] = place.processes()
    run.thaw()
    told.ends["killed"] = run.end()
    try:
        wait_until(lambda: not place.processes(), "the process tree to end", 10)
    finally:
        told.facts["orphans"] = place.processes()
    told.facts["after kill"] = place.fedseal("runs", "--json").json["runs"]
    told.facts["audit after kill"] = place.fedseal("audit", "verify")

    told.ends["resumed"] = place.fedseal("run", job, "--json", "--resume")
    told.ends["again"] = place.fedseal("run", job, "--resume")
    return told


def test_run_that_goes_on_cannot_be_resumed_beside_itself(story: Story) -> None:
    assert "already running in another process" in story.ends["busy"].fails(1)


def test_stop_from_another_process_ends_the_run_and_says_so(story: Story) -> None:
    assert story.ends["stop"].code == 0 and story.ends["stop"].json["status"] == "stopped"
    assert "stopped while waiting for" in story.ends["stopped"].fails(1)
    assert story.ends["stopped"].json["status"] == "stopped"
    (info,) = story.facts["after stop"]
    assert (info["status"], info["name"]) == ("stopped", "long")


def test_sigint_stops_the_run_so_that_it_can_be_resumed(story: Story) -> None:
    assert "stopped while waiting for" in story.ends["interrupted"].fails(1)
    assert story.ends["interrupted"].json["status"] == "stopped"


def test_audit_tells_a_stopped_run_from_one_that_has_no_end(story: Story) -> None:
    stopped, killed = story.facts["audit after stop"], story.facts["audit after kill"]
    assert stopped.code == 0 and ": stopped," in stopped.out
    assert killed.code == 4 and ": open," in killed.out


def test_kill_9_leaves_no_orphan(story: Story) -> None:
    words = " ".join(story.facts["processes"].values())
    assert len(story.facts["processes"]) >= 1 + 1 + 4 + 1, words  # run, fork server, workers, MLflow
    assert "mlflow_process" in words and "forkserver" in words
    assert story.ends["killed"].code == -signal.SIGKILL
    assert story.facts["orphans"] == {}


def test_killed_run_is_listed_as_interrupted(story: Story) -> None:
    assert [r["status"] for r in story.facts["after kill"]] == ["interrupted"]


def test_resumed_run_has_the_result_of_an_undisturbed_one(story: Story) -> None:
    done = story.ends["resumed"]
    assert done.code == 0, done.err
    assert story.undisturbed.code == 0
    for name in ("accuracy", "loss"):
        assert done.json["metrics"][name] == pytest.approx(story.undisturbed.json["metrics"][name], abs=1e-4)
    assert sorted(done.json["outputs"]) == sorted(story.undisturbed.json["outputs"])
    assert Path(done.json["outputs"]["party_1"]["model"]).parents[1] == story.place.path / "results"


def test_all_parts_are_one_run_on_the_ledger_without_a_repeated_round(story: Story) -> None:
    run = story.ends["resumed"].json["run"]
    assert [r["run"] for r in story.place.fedseal("runs", "--json").json["runs"]] == [run]
    assert [e.body["round"] for e in entries(story.place, kind="aggregate")] == list(range(1, ROUNDS + 2))
    assert [e.body["round"] for e in entries(story.place, kind="round")] == list(range(ROUNDS + 1))
    assert [e.kind for e in entries(story.place) if e.kind in ("job", "resume", "end")] == [
        "job", "resume", "resume", "resume", "end",
    ]  # fmt: skip
    assert [e.body["status"] for e in entries(story.place, kind="failure")] == ["stopped", "stopped"]
    assert story.place.fedseal("audit", "verify").code == 0


def test_all_parts_are_one_mlflow_run_without_a_repeated_step(story: Story) -> None:
    run = mlflow_run(story)
    assert run.info.run_id == story.ends["resumed"].json["mlflow_run_id"]
    assert run.info.status == "FINISHED"
    steps = [m.step for m in mlflow(story.place).get_metric_history(run.info.run_id, "accuracy")]
    assert len(steps) == len(set(steps))


def test_finished_run_does_not_keep_the_error_of_an_earlier_part(story: Story) -> None:
    assert "fedseal.error" not in mlflow_run(story).data.tags


def test_round_that_reached_the_ledger_alone_before_the_kill_reaches_mlflow(story: Story) -> None:
    rounds = entries(story.place, kind="round")
    for name in ("accuracy", "loss"):
        history = [
            (m.step, m.value) for m in mlflow(story.place).get_metric_history(mlflow_run(story).info.run_id, name)
        ]
        assert sorted(history) == [(e.body["round"], float(e.body["metrics"][name])) for e in rounds]


def test_nothing_unfinished_is_not_resumed(story: Story) -> None:
    assert "--resume: no unfinished run of this job" in story.ends["again"].fails(2)


def test_sigint_during_start_up_is_a_stop_too(fresh: Place) -> None:
    job = fresh.job(rounds=1)
    run = fresh.start("run", job, "--json")
    wait_until(lambda: list(fresh.home.glob("coordinator/runs/*/run.json")), "the run to begin")
    run.process.send_signal(signal.SIGINT)
    done = run.end()
    assert "interrupted" in done.fails(1)
    assert done.json["status"] == "stopped"
    wait_until(lambda: not fresh.processes(), "the process tree to end", 10)
    resumed = fresh.fedseal("run", job, "--json", "--resume")
    assert resumed.code == 0, resumed.err
    assert fresh.fedseal("audit", "verify").code == 0


# ---- a party's process ends


@pytest.fixture(scope="module")
def bereft(place: Place) -> tuple[Place, Done]:
    """A run with a worker that was stopped, so that a round waits for it, and then killed."""
    lonely = Place(place.path / "bereft")
    run = lonely.start("run", lonely.job("bereft", rounds=6), "--json", "--out", "results")
    run.wait_for("round 2:")
    victim = lonely.workers(run)[1]
    os.kill(victim, signal.SIGSTOP)
    run.wait_for_silence(2.0)
    os.kill(victim, signal.SIGKILL)
    return lonely, run.end()


def test_round_that_loses_a_process_ends_with_the_others(bereft: tuple[Place, Done]) -> None:
    place, done = bereft
    assert done.code == 0, done.err
    (drop,) = entries(place, kind="drop")
    assert (drop.by, drop.body["code"], drop.body["step"]) == ("coordinator", "died", "train.round")
    lost, number = drop.body["party"], drop.body["round"]
    missing = {e.body["round"]: e.body["missing"] for e in entries(place, kind="aggregate")}
    assert missing == {n: [lost] if n == number else [] for n in range(1, 8)}
    assert f"{lost} dropped: its process died" in done.err
    assert f"round {number}: 3/4 parties" in done.err
    assert place.fedseal("audit", "verify").code == 0


def test_party_whose_process_died_catches_up(bereft: tuple[Place, Done]) -> None:
    outputs = bereft[1].json["outputs"]
    assert len(outputs) == 4
    assert len({Path(files["model"]).read_bytes() for files in outputs.values()}) == 1


def test_mlflow_shows_three_parties_in_that_round_only(bereft: tuple[Place, Done]) -> None:
    place, done = bereft
    history = {m.step: m.value for m in mlflow(place).get_metric_history(done.json["mlflow_run_id"], "parties")}
    number = entries(place, kind="drop")[0].body["round"]
    assert history == {n: 3.0 if n == number else 4.0 for n in range(1, 7)}
