"""MLflow beside the ledger: asked once, in a thread, only read; each difference is marked where it stands."""

from __future__ import annotations

import threading
import time

import pytest

import server.reconcile.compare
from fl_core.errors import JobFailed
from fl_core.home import Home
from server.audit_site.beside import Beside, Shown
from server.reconcile.compare import Difference, Reconciled
from tests.fl_core.trust.pack_scene import metrics
from tests.server.audit_site.scenes import Read


class Store:
    is_there = True


class Found:
    def __init__(self, values) -> None:
        self.metrics = values


def pretend(monkeypatch, answer) -> list[str]:
    """`server.reconcile.compare` answers so; returns which runs it was asked about."""
    asked: list[str] = []

    class Reconciler:
        def __init__(self, home, ledger) -> None:
            self.ledger = ledger

        def store(self, run):
            return Store()

        def weigh(self, run):
            asked.append(run)
            return answer(run)

    monkeypatch.setattr(server.reconcile.compare, "Reconciler", Reconciler)
    return asked


def shows(run: str, **changes):
    """MLflow with the figures of a run of the scene, but for these."""
    values = {(name, n): [repr(float(text))] for n in (1, 2, 3) for name, text in metrics(n).items()}
    values.update(changes.get("values", {}))
    result = Reconciled(run, "digits", "f" * 32, {"metrics": 9}, changes.get("differences", []), ["the times"])
    return None, Found(values), result


def wait(beside: Beside, run: str, last: int = 7) -> Shown:
    end = time.monotonic() + 20
    while (shown := beside.look(run, last)).reading:
        assert time.monotonic() < end
        time.sleep(0.01)
    return shown


def text_of(pages, run: str) -> str:
    end = time.monotonic() + 20
    while "MLflow is being read" in (text := pages.text("/run", id=run)):
        assert time.monotonic() < end and '<meta http-equiv="refresh" content="2">' in text
        time.sleep(0.01)
    return text


def test_what_agrees_is_said_to_and_stands_below_the_ledgers(pages, monkeypatch):
    pretend(monkeypatch, shows)
    text = text_of(pages, "run-1")
    assert "MLflow shows the same" in text and "Not compared: the times" in text and "refresh" not in text
    assert [row[1] for row in Read(text).table("round", "accuracy")] == ["0.10.1", "0.20.2", "0.30.3"]
    assert Read(text).table("round", "accuracy")[1][2] == "nannan" and 'class="side bad"' not in text


def test_each_difference_is_marked_and_named(pages, monkeypatch):
    evil = "<img src=x>"
    difference = Difference("metric", "altered", "accuracy", 2, evil, "0.2")
    pretend(
        monkeypatch,
        lambda run: shows(run, differences=[difference], values={("accuracy", 2): ["0.99"], ("loss", 3): []}),
    )
    text = text_of(pages, "run-1")
    assert "MLflow differs in 1 place<" in text and "&lt;img src=x&gt;" in text and "<img" not in text
    rows = Read(text).table("round", "accuracy")
    assert (
        rows[1][1] == "0.2MLflow: 0.99" and rows[2][2] == "0.3MLflow: nothing" and text.count('class="side bad"') == 2
    )


def test_mlflow_that_does_not_answer_takes_nothing_from_the_page(pages, monkeypatch):
    def broken(run):
        raise JobFailed("MLflow https://u:***@host: refused\nthe connection")

    pretend(monkeypatch, broken)
    text = text_of(pages, "run-1")
    assert "MLflow: MLflow https://u:***@host: refused the connection." in text
    assert Read(text).table("round", "accuracy")[0][1] == "0.1"


def test_an_error_of_another_kind_leaves_no_run_asked_for_ever(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    pretend(monkeypatch, lambda run: 1 / 0)
    assert wait(Beside(Home.at(tmp_path), scene.path), "run-1").problem == "MLflow could not be read"


def test_without_mlflow_that_is_said(pages):
    assert "MLflow: there is no MLflow here." in text_of(pages, "run-1")


def test_a_run_is_asked_about_once_until_it_grows_or_the_answer_is_old(scene, tmp_path, monkeypatch):
    asked = pretend(monkeypatch, shows)
    beside = Beside(Home.at(tmp_path), scene.path)
    for _ in range(3):
        assert wait(beside, "run-1").metrics
    assert asked == ["run-1"]
    wait(beside, "run-1", last=8)
    assert asked == ["run-1", "run-1"]
    now = time.time()
    monkeypatch.setattr(server.audit_site.beside.time, "time", lambda: now + 61)
    wait(beside, "run-1", last=8)
    assert len(asked) == 3


def test_many_runs_are_read_one_at_a_time_and_no_more_than_that_wait(scene, tmp_path, monkeypatch):
    go_on, inside, most = threading.Event(), [], []

    def slow(run):
        inside.append(run)
        most.append(len(inside))
        go_on.wait(20)
        inside.remove(run)
        return shows(run)

    asked = pretend(monkeypatch, slow)
    beside = Beside(Home.at(tmp_path), scene.path)
    first = [beside.look(f"r{i}", 1) for i in range(12)]
    assert sum(shown.reading for shown in first) == 8 and "other runs" in first[-1].problem
    go_on.set()
    assert all(wait(beside, f"r{i}", 1).metrics for i in range(8))
    assert max(most) == 1 and sorted(asked) == sorted(f"r{i}" for i in range(8))


@pytest.mark.slow
def test_a_real_mlflow_whose_database_was_edited_is_caught(scene, pages_of, tmp_path, monkeypatch):
    """What the recorder would have left, with one figure changed by an administrator; MLflow itself stays as it is."""
    monkeypatch.chdir(tmp_path)
    from server.environment import prepare

    prepare()
    from mlflow.tracking import MlflowClient

    home = tmp_path / "home"
    home.mkdir()
    client = MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    told = scene.mlflow("run-1")
    place = client.create_experiment("fedseal", artifact_location=(tmp_path / "artifacts").as_uri())
    run = client.create_run(place, tags=dict(told["tags"]))
    for name, step, value in told["metrics"]:
        changed = 0.999 if (name, step) == ("accuracy", "2") else float(value)
        client.log_metric(run.info.run_id, name, changed, step=int(step))
    client.set_terminated(run.info.run_id)
    before = {path: path.read_bytes() for path in tmp_path.rglob("mlflow.db")}
    text = text_of(pages_of(scene.path, home), "run-1")
    assert Read(text).table("round", "accuracy")[1][1] == "0.2MLflow: 0.999"
    assert "metric accuracy, step 2: altered: MLflow has 0.999, the ledger 0.2" in text
    assert {path: path.read_bytes() for path in before} == before
