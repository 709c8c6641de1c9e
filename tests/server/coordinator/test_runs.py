"""Submitted runs: what is refused before anything starts, where the secrets go, and that no process is left behind."""

from __future__ import annotations

import json
import os
import stat
import sys
import time

import pytest

import server.coordinator.runs as module
from fl_core.errors import FedsealError, JobFailed, RefusedError, UsageError, WaitTimeout
from fl_core.trust.node_card import NodeCard
from server.coordinator.nodes import DISABLED
from server.coordinator.runs import Runs
from server.coordinator.submission import Caller, Events, load
from server.registry import all_runs

ANN = Caller("ann", ("engineer",), "ab" * 32)
DIGITS = {"party": [{"name": n} for n in "abc"], "dataset": {"name": "digits"}}


def until(true, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def ends(runs: Runs) -> list[tuple[str, int]]:
    """All active runs to their end."""
    found: list[tuple[str, int]] = []
    until(lambda: found.extend(runs.reap()) or not runs.active)
    return found


# ---- refused before anything starts


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        ({"runtime": "local", **DIGITS}, UsageError, "runtime 'local'; allowed at a coordinator: deployment"),
        ({"runtime": "simulation", **DIGITS}, UsageError, "runtime 'simulation'; allowed at a coordinator"),
        ({"runtime": None, **DIGITS}, UsageError, "allowed at a coordinator: deployment"),
        ({"colour": "red"}, UsageError, "colour: unknown key"),
        ({"party": []}, UsageError, "party"),
        ({"party": "abc"}, UsageError, "party"),
        ({"party": [{"name": n, "data": "/etc/passwd", "label": "y"} for n in "abc"]}, UsageError, "party[0].data"),
        ({"party": [{"name": n, "data": "t", "label": "y", "max_epsilon": 9.0} for n in "abc"]}, UsageError, "max_epsilon: is set at the party"),
        ({"party": [{"name": n, "data": "t", "label": "y"} for n in "abd"]}, JobFailed, "party d: no node of that name"),
        ({"train": {"receivers": ["shop"]}}, JobFailed, "party shop: no node of that name"),
        ({"train": {"rounds": -1}}, UsageError, "train.rounds"),
    ],
)  # fmt: skip
def test_a_job_that_cannot_run_leaves_no_trace(runs, superlink, folder, job, change, kind, told):
    table = {k: v for k, v in {**job, **change}.items() if v is not None}
    with pytest.raises(FedsealError) as refused:
        runs.start(table, ANN, resume=False)
    assert isinstance(refused.value, kind) and told in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(kind):
        runs.start_check(table)
    assert (superlink.started, runs.active, all_runs(folder.home)) == ([], [], [])


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda nodes: nodes.set_state("b", DISABLED), "party b: its node is disabled"),
        (lambda nodes: nodes.set_flower_id("c", 0), "party c: its node is not known to the SuperLink yet"),
        (lambda nodes: nodes.remove("a"), "party a: no node of that name is registered; registered: b, c"),
    ],
)
def test_no_run_waits_for_a_node_that_is_kept_out(runs, superlink, folder, job, act, told):
    act(folder.nodes)
    with pytest.raises(JobFailed, match=told):
        runs.start(job, ANN, resume=False)
    assert (superlink.started, all_runs(folder.home)) == ([], [])


# ---- started


@pytest.mark.parametrize("act", [lambda runs, job: runs.start(job, ANN, resume=False), lambda runs, job: runs.start_check(job)], ids=["run", "check"])  # fmt: skip
def test_a_party_without_the_role_for_its_part_starts_nothing(runs, superlink, folder, job, act):
    folder.nodes.register(NodeCard.from_dict(folder.nodes.all()["b"].card), ["receiver"])
    with pytest.raises(RefusedError, match=r"^b \(receiver\) may not take part in a job with data; allowed: data-owner$"):
        act(runs, job)
    assert all_runs(folder.home) == [] and superlink.started == [] and not runs.active


def test_the_secrets_of_a_run_are_told_to_its_process_alone_and_only_on_stdin(runs, superlink, folder, job, program):
    said = program("")
    info, had = runs.start(job, ANN, resume=False)
    assert (had, ends(runs)) == (0, [(info.run, 0)])
    given = json.loads((said / "stdin").read_text())
    assert given["task"] == {"task_id": 11, "run_id": 2**63 + 1, "token": superlink.token}
    assert given["nodes"] == {"a": 5, "b": 6, "c": 7}
    assert (given["address"], given["ca"], given["resume"]) == ("127.0.0.1:1", "the authority's PEM", False)
    assert f"server.coordinator.run_process {folder.home.path} {info.run}" in (said / "words").read_text()
    for seen in (said / "words", said / "env", *(p for p in folder.home.path.rglob("*") if p.is_file())):
        assert superlink.token.encode() not in seen.read_bytes(), seen


def test_a_submission_is_kept_with_who_sent_it_for_the_run_and_nobody_else(runs, folder, job, program):
    program("")
    info, _ = runs.start(job, ANN, resume=False)
    ends(runs)
    kept = folder.home.runs / info.run
    assert load(kept) == (job, ANN.to_dict())
    assert stat.S_IMODE((kept / "submission.json").stat().st_mode) == 0o600
    assert [i.run for i in runs.all()] == [info.run]
    assert runs.find(info.run)[1].name == runs.find("test")[1].name == "test"


def test_what_a_run_prints_is_in_its_log(runs, job, program):
    program("echo on stdout\necho on stderr >&2\nexit 4")
    info, _ = runs.start(job, ANN, resume=False)
    assert ends(runs) == [(info.run, 4)]
    assert runs.find(info.run)[0].log.read_text() == "on stdout\non stderr\n"


def test_the_end_of_a_run_is_told_once(runs, job, program):
    program.waits_for_stop()
    one, other = (runs.start(job, ANN, resume=False)[0].run for _ in range(2))
    assert one != other and set(runs.active) == {one, other}
    assert runs.reap() == [] and runs.is_going_on(runs.find(one)[0])
    runs.find(one)[0].ask_to_stop()
    until(lambda: not runs.is_going_on(runs.find(one)[0]))
    assert runs.reap() == [(one, 0)]
    assert runs.reap() == [] and runs.active == [other]


# ---- resumed


def test_without_an_unfinished_run_nothing_is_resumed(runs, superlink, job):
    with pytest.raises(UsageError, match="no unfinished run of this job"):
        runs.start(job, ANN, resume=True)
    assert superlink.started == []


def test_a_run_that_is_running_is_not_started_a_second_time(runs, superlink, job, program):
    program.waits_for_stop()
    info, _ = runs.start(job, ANN, resume=False)
    with runs.find(info.run)[0].held(), pytest.raises(JobFailed, match=f"fedseal logs {info.run} --follow"):
        runs.start(job, ANN, resume=True)
    assert superlink.started == [info.run] and runs.active == [info.run]


def test_a_run_whose_process_has_just_started_is_not_started_a_second_time(runs, superlink, job, program):
    """It takes the lock only after its imports, some seconds later; its process is known here before that."""
    program.waits_for_stop()
    info, _ = runs.start(job, ANN, resume=False)
    with pytest.raises(JobFailed, match=info.run):
        runs.start(job, ANN, resume=True)
    assert superlink.started == [info.run]


def test_a_resumed_run_keeps_its_number_and_its_watcher_hears_only_what_is_new(runs, superlink, job, program):
    said = program("exit 1")
    first, _ = runs.start(job, ANN, resume=False)
    ends(runs)
    events = Events(runs.find(first.run)[0].path)
    for kind in ("joined", "round", "failed"):
        events.add(kind, 0, {})
    bob = Caller("bob", ("engineer",), "cd" * 32)
    again, had = runs.start(job, bob, resume=True)
    ends(runs)
    assert (again.run, had) == (first.run, 3)
    assert [(number, e["kind"]) for number, e in events.read(had).new()] == [(4, "resumed")]
    assert json.loads((said / "stdin").read_text())["resume"] is True
    assert load(runs.find(first.run)[0].path)[1]["name"] == "bob"
    assert superlink.started == [first.run, first.run]


def test_a_run_that_the_superlink_did_not_take_can_be_resumed(runs, superlink, job, program):
    program("")
    superlink.away = True
    with pytest.raises(JobFailed, match="does not answer"):
        runs.start(job, ANN, resume=False)
    assert runs.active == []
    assert [i.status for i in runs.all()] == ["interrupted"]
    superlink.away = False
    info, _ = runs.start(job, ANN, resume=True)
    assert ends(runs) == [(info.run, 0)]


# ---- the coordinator ends


def test_a_coordinator_that_ends_stops_its_runs_and_kills_those_that_do_not(runs, job, program, monkeypatch):
    monkeypatch.setattr(module, "STOP_SECONDS", 1.0)
    program.waits_for_stop()
    good = runs.start(job, ANN, resume=False)[0].run
    program("exec sleep 60")
    deaf = runs.start(job, ANN, resume=False)[0].run
    began = time.monotonic()
    runs.stop_all()
    assert time.monotonic() - began < 5
    assert dict(runs.reap()) == {good: 0, deaf: -9}


# ---- checks


def test_what_the_parties_said_to_a_check_is_handed_on(runs, superlink, folder, job, program):
    said = program("""echo '{"ok": true, "parties": []}'""")
    assert runs.end_check(runs.start_check(job)) == {"ok": True, "parties": []}
    assert json.loads((said / "stdin").read_text())["job"] == job
    assert superlink.token not in (said / "words").read_text()
    assert all_runs(folder.home) == [] and runs.active == []


def test_a_check_that_failed_is_a_failure(runs, job, program):
    program("echo '{}'\nexit 1")
    with pytest.raises(JobFailed, match="the check failed"):
        runs.end_check(runs.start_check(job))


def test_a_check_that_never_ends_is_ended(runs, job, program, monkeypatch):
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.2)
    program("exec sleep 60")
    process = runs.start_check(job)
    with pytest.raises(WaitTimeout, match="answers to a check"):
        runs.end_check(process)
    assert process.returncode == -9
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


@pytest.fixture
def deaf(superlink, tmp_path, monkeypatch):
    """In place of a run's program, one that ends before it has read its secrets."""
    superlink.ca = b"x" * (1 << 20)  # more than a pipe holds
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexec <&-\necho no such module >&2\nexit 3\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))


def test_a_run_whose_process_dies_before_it_reads_its_secrets_is_a_failure_that_names_its_log(runs, job, deaf):
    with pytest.raises(JobFailed, match="ended at its start") as failed:
        runs.start(job, ANN, resume=False)
    (info,) = runs.all()
    log = runs.find(info.run)[0].log
    assert info.run in str(failed.value) and str(log) in str(failed.value)
    assert len(str(failed.value).splitlines()) == 1
    assert (runs.active, info.status) == ([], "interrupted")


def test_a_check_whose_process_dies_before_it_reads_its_secrets_is_a_failure_and_leaves_nothing(runs, job, deaf):
    with pytest.raises(JobFailed, match=r"ended at its start .*; the coordinator's output says more"):
        runs.start_check(job)
    assert runs.active == []


def test_a_job_that_is_nested_deeper_than_python_goes_is_a_mistake(runs, superlink, job):
    table: dict = {}
    for _ in range(5000):
        table = {"a": table}
    with pytest.raises(UsageError, match="nested too deeply"):
        runs.start({**job, "name": table}, ANN, resume=False)
    assert superlink.started == []
