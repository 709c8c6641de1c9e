"""Which training a prediction names: a folder, a run of this home, a run of a coordinator."""

from __future__ import annotations

import json
import time

import pytest

from fl_core.config import load_job
from fl_core.errors import JobFileError
from fl_core.home import Home
from server.coordinator.submission import Caller, save
from server.registry import RunFolder, RunInfo
from server.trained import with_model, with_run

RUN, OTHER = "0123456789abcdef", "f" * 16


def job(model, *, parties=("bank", "lab"), runtime="local", **predict):
    names = [{"name": name, "data": "x.csv" if runtime == "local" else "new", "id": "id"} for name in parties]
    return load_job({"kind": "predict", "runtime": runtime, "party": names, "predict": {"model": model, **predict}})


def parts(folder, run=RUN, **more):
    for name in ("bank", "lab"):
        path = folder / name / "model"
        path.mkdir(parents=True)
        about = {"run": run, "parties": ["lab", "bank"], "algorithm": "gbdt"} | more
        (path / "model.json").write_text(json.dumps(about))


def run(home, number, *, name="credit", kind="vertical", status="done", runtime="local", out="/nowhere", **more):
    info = RunInfo(number, name, kind, runtime, "", str(out), time.time(), 0, status=status, **more)
    return RunFolder.create(home, info)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text("id\n1\n")
    return Home.open(tmp_path / "home")


def test_a_folder_of_parts_says_run_active_party_and_algorithm(tmp_path, home):
    parts(tmp_path / "out")
    for model in ("out", str(tmp_path / "out")):
        found = with_model(job(model), home).predict
        assert (found.model, found.active, found.algorithm, found.receivers) == (RUN, "lab", "gbdt", ("lab",))
        assert found.folder == str(tmp_path / "out")
    assert with_model(job("out", receivers=["bank"]), home).predict.receivers == ("bank",)


def test_a_run_by_each_of_its_names_the_newest_finished_training_counts(tmp_path, home):
    parts(tmp_path / "out")
    parts(tmp_path / "old", OTHER)
    run(home, OTHER, out=tmp_path / "old").path
    run(home, RUN, out=tmp_path / "out", mlflow_run_id="a" * 32)
    run(home, "1" * 16, status="failed")
    run(home, "2" * 16, kind="predict")
    for name in ("credit", RUN, "a" * 32):
        assert with_model(job(name), home).predict.model == RUN
    assert with_model(job(OTHER), home).predict.model == OTHER
    for name in ("1" * 16, "2" * 16, "nobody"):
        with pytest.raises(JobFileError, match="no such training"):
            with_model(job(name), home)


@pytest.mark.parametrize(
    "change",
    [{"run": "../x"}, {"run": 7}, {"parties": []}, {"parties": ["lab", "shop"]}, {"algorithm": None, "parties": 3}],
)
def test_a_folder_of_something_else_is_one_clear_line(tmp_path, home, change):
    parts(tmp_path / "out", **change)
    with pytest.raises(JobFileError) as caught:
        with_model(job("out"), home)
    assert "\n" not in str(caught.value)


def test_what_the_job_says_of_the_training_must_be_so(tmp_path, home):
    parts(tmp_path / "out")
    for told in ({"active": "bank"}, {"algorithm": "logistic"}):
        with pytest.raises(JobFileError, match="or leave it out"):
            with_model(job("out", **told), home)
    with pytest.raises(JobFileError, match="for a job of bank, lab, shop"):
        with_model(job("out", parties=("bank", "lab", "shop")), home)
    parts(tmp_path / "network", algorithm="split-nn")
    with pytest.raises(JobFileError, match="top model"):
        with_model(job("network", receivers=["bank"]), home)


def test_a_coordinator_knows_its_runs_from_what_was_submitted(home):
    names = [
        {"name": "bank", "data": "people", "id": ["id"], "label": "y"},
        {"name": "lab", "data": "people", "id": ["id"]},
    ]
    table = {"kind": "vertical", "runtime": "deployment", "party": names, "vertical": {"algorithm": "logistic"}}
    folder = run(home, RUN, runtime="deployment")
    asked = job("credit", runtime="deployment")
    with pytest.raises(JobFileError, match="cannot be read any more"):
        with_model(asked, home)
    save(folder.path, table, Caller("ann", ("engineer",), ""))
    found = with_model(asked, home)
    assert found.predict.folder is None and found.predict.receivers == ("bank",) and found.predict.model == RUN
    again = with_model(load_job(found.table()), home)
    assert again.digest() == found.digest()
    with pytest.raises(JobFileError, match="lie at the nodes"):
        with_model(job("credit"), home)


def test_a_person_names_a_run_by_its_folder_and_the_coordinator_hears_its_id(tmp_path, home):
    run(home, RUN, runtime="deployment", out=tmp_path / "out", coordinator="there")
    for model in ("out", "credit"):
        assert with_run(job(model, runtime="deployment"), home).predict.model == RUN
    assert with_run(job("unknown", runtime="deployment"), home).predict.model == "unknown"


def test_other_kinds_of_jobs_stay_as_they_are(home):
    names = [{"name": name, "data": "x.csv", "id": ["id"]} for name in ("bank", "lab")]
    psi = load_job({"kind": "psi", "party": names})
    assert with_model(psi, home) is psi and with_run(psi, home) is psi
