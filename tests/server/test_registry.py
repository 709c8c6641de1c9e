"""The runs of a home: who holds one, how it is found, which one `--resume` takes."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from fl_core.errors import JobFailed, UsageError
from fl_core.home import Home
from server.registry import RunFolder, RunInfo, all_runs, facts, find, find_unfinished, new_run_id

JOB = "ab" * 32


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.open(tmp_path / "home")


def add(home: Home, name: str = "digits", *, at: float = 0.0, **changes: Any) -> RunFolder:
    values = {"kind": "horizontal", "runtime": "local", "job": JOB, "out": f"/out/{name}", "started": at, "pid": 1}
    return RunFolder.create(home, RunInfo(run=new_run_id(), name=name, **{**values, **changes}))


# ---- one run


def test_run_ids_are_hex_and_fit_flowers_signed_numbers() -> None:
    made = {new_run_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch(r"[0-9a-f]{16}", run) and int(run, 16) < 2**63 for run in made)


def test_facts_come_back_as_saved(home: Home) -> None:
    folder = add(home, status="done", metrics={"accuracy": 0.9}, mlflow_run_id="m1", ended=3.0, error="")
    info = folder.info()
    assert (info.status, info.metrics, info.mlflow_run_id, info.ended) == ("done", {"accuracy": 0.9}, "m1", 3.0)
    assert facts(info)["metrics"] == {"accuracy": 0.9}


def test_running_run_whose_process_is_gone_reads_as_interrupted(home: Home) -> None:
    folder = add(home)
    assert folder.info().status == "interrupted"
    with folder.held():
        assert folder.is_alive()
        assert folder.info().status == "running"
    assert not folder.is_alive()


def test_two_processes_cannot_hold_one_run(home: Home) -> None:
    folder = add(home)
    with folder.held(), pytest.raises(JobFailed, match="already running in another process"), folder.held():
        raise AssertionError("held twice")


def test_wish_to_stop_an_earlier_part_does_not_stop_the_resumed_run(home: Home) -> None:
    folder = add(home)
    folder.ask_to_stop()
    assert folder.is_stopping()
    with folder.held():
        assert not folder.is_stopping()
        folder.ask_to_stop()
        assert folder.is_stopping()


def test_refused_second_holder_leaves_the_wish_to_stop_alone(home: Home) -> None:
    folder = add(home)
    with folder.held():
        folder.ask_to_stop()
        with pytest.raises(JobFailed), folder.held():
            raise AssertionError("held twice")
        assert folder.is_stopping()


def test_log_that_cannot_be_written_hides_no_error(home: Home) -> None:
    folder = add(home)
    folder.write_log("first")
    assert folder.log.read_text().endswith(" first\n")
    folder.log.unlink()
    folder.log.mkdir()
    folder.write_log("second")


# ---- finding


def test_run_is_found_by_every_name_it_has(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = add(home, "digits", mlflow_run_id="m" * 32, out=str(tmp_path / "runs" / "digits"))
    add(home, "other", at=1.0)
    run = folder.info().run
    for wanted in (run, "m" * 32, "digits", "runs/digits", "./runs/digits/", str(tmp_path / "runs" / "digits")):
        assert find(home, wanted)[1].run == run


def test_of_several_runs_with_a_name_the_newest_is_meant(home: Home) -> None:
    runs = [add(home, "digits", at=at).info().run for at in (5.0, 9.0, 7.0)]
    assert find(home, "digits")[1].run == runs[1]
    assert [i.started for _, i in all_runs(home)] == [5.0, 7.0, 9.0]


@pytest.mark.parametrize("wanted", ["nothing", "", "0" * 16, ".", "None"])
def test_unknown_run_is_refused_with_the_names_there_are(home: Home, wanted: str) -> None:
    add(home, "digits")
    with pytest.raises(UsageError, match=r"no such run in .*digits") as caught:
        find(home, wanted)
    assert len(str(caught.value).splitlines()) == 1


def test_empty_home_says_that_there_are_no_runs(home: Home) -> None:
    assert all_runs(home) == []
    with pytest.raises(UsageError, match="none yet"):
        find(home, "digits")


def test_folder_that_a_full_disk_left_without_facts_is_passed_over(home: Home) -> None:
    (home.runs / "0123456789abcdef").mkdir(parents=True)
    assert all_runs(home) == []


# ---- resuming


@pytest.mark.parametrize("status", ["running", "failed", "stopped"])
def test_unfinished_run_of_the_job_is_taken(home: Home, status: str) -> None:
    add(home, at=1.0, status="done")
    folder = add(home, at=2.0, status=status)
    add(home, at=3.0, status="failed", job="cd" * 32)
    assert find_unfinished(home, JOB)[0].path == folder.path


@pytest.mark.parametrize("statuses", [[], ["done"], ["failed", "done"], ["refused"]])
def test_without_an_unfinished_run_nothing_is_resumed(home: Home, statuses: list[str]) -> None:
    for at, status in enumerate(statuses):
        add(home, at=float(at), status=status)
    with pytest.raises(UsageError, match="no unfinished run of this job"):
        find_unfinished(home, JOB)


def test_attempt_that_was_refused_does_not_hide_the_run_that_crashed(home: Home) -> None:
    """After a crash the budget is still reserved: a new run is refused, and `--resume` must still find the old one."""
    crashed = add(home, at=1.0)
    add(home, at=2.0, status="refused")
    assert find_unfinished(home, JOB)[0].path == crashed.path


def test_registry_of_many_runs_is_read_quickly(home: Home) -> None:
    for at in range(200):
        add(home, f"run-{at}", at=float(at), status="done")
    began = time.process_time()
    find(home, "run-0")
    assert time.process_time() - began < 1.0
