"""What an owner reads of past runs: the last word does not hide what happened, and no file stops a node."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time

import pytest

from clients.app import Account
from clients.node import activity as module
from clients.node import executor
from clients.node.activity import Activity
from fl_core.errors import FedsealError, UsageError

RUN = "00" * 8


@pytest.fixture
def activity(tmp_path):
    return Activity(tmp_path / "activity.db")


def account(
    step: str, *, run: str = RUN, number: int = 0, problem: str = "", refused: bool = False, job: str = "credit"
):
    return Account(run, step, number, job, "horizontal" if job else "", problem, refused)


def refusal(step: str = "query.join") -> Account:
    return account(step, problem="kind 'psi'; the owner allows: horizontal", refused=True)


def test_a_node_that_did_nothing_has_no_runs_and_makes_no_file(activity, tmp_path):
    assert activity.runs() == [] and list(tmp_path.iterdir()) == []


def test_nobody_else_reads_what_a_node_did(activity, tmp_path):
    activity.note(account("query.join"))
    assert (tmp_path / "activity.db").stat().st_mode & 0o077 == 0


def test_a_run_is_one_line_from_its_first_message_to_its_last(activity):
    began = time.time()
    for step, number in (("query.join", 0), ("query.roster", 0), ("train.round", 1), ("train.round", 2)):
        activity.note(account(step, number=number))
    (run,) = activity.runs()
    assert (run.run, run.job, run.kind, run.state, run.round, run.messages) == (
        RUN,
        "credit",
        "horizontal",
        "active",
        2,
        4,
    )
    assert began <= run.began <= run.last <= time.time()
    activity.note(account("query.close", number=3))
    assert [(r.state, r.messages, r.began) for r in activity.runs()] == [("done", 5, run.began)]


@pytest.mark.parametrize(
    ("step", "state"),
    [("query.close", "done"), ("query.deliver", "done"), ("query.abandon", "stopped"), ("query.check", "checked"),
     ("train.round", "active"), ("query.witness", "active")],
)  # fmt: skip
def test_the_step_that_ends_a_run_says_how_it_ended(activity, step, state):
    activity.note(account(step))
    assert activity.runs()[0].state == state


@pytest.mark.parametrize("after", ["query.witness", "query.abandon"])
def test_a_done_run_stays_done_whatever_comes_after(activity, after):
    """It is co-signed after its closing, and abandoned where another party failed to close."""
    activity.note(account("query.close"))
    activity.note(account(after))
    assert activity.runs()[0].state == "done"


@pytest.mark.parametrize(
    ("first", "state"), [(refusal(), "refused"), (account("train.round", problem="no rows", number=2), "failed")]
)
def test_the_reason_of_a_refusal_is_not_lost_when_its_run_is_given_up(activity, first, state):
    activity.note(first)
    activity.note(account("query.abandon"))
    (run,) = activity.runs()
    assert (run.state, run.problem, run.messages) == (state, first.problem, 2)


def test_a_run_that_goes_on_after_a_failure_is_active_without_the_old_problem(activity):
    activity.note(account("train.round", number=2, problem="no rows"))
    activity.note(account("train.round", number=2))
    assert [(r.state, r.problem) for r in activity.runs()] == [("active", "")]


def test_a_stopped_run_that_is_resumed_can_be_done(activity):
    for step in ("query.join", "query.abandon", "query.join", "query.close"):
        activity.note(account(step))
    assert activity.runs()[0].state == "done"


def test_a_failure_after_the_end_is_seen(activity):
    activity.note(account("query.close"))
    activity.note(account("query.witness", problem="the log was cut"))
    assert [(r.state, r.problem) for r in activity.runs()] == [("failed", "the log was cut")]


def test_a_message_before_the_job_is_known_does_not_wipe_its_name(activity):
    activity.note(account("query.join"))
    activity.note(account("query.abandon", job=""))
    assert [(r.job, r.kind) for r in activity.runs()] == [("credit", "horizontal")]


def test_the_newest_runs_come_first_and_no_more_than_asked(activity):
    for i in range(52):
        activity.note(account("query.close", run=f"{i:016x}"))
    assert [r.run for r in activity.runs(most=2)] == [f"{51:016x}", f"{50:016x}"]
    assert len(activity.runs()) == 50 and len(activity.runs(most=100)) == 52
    activity.note(account("query.witness", run=f"{7:016x}"))
    assert activity.runs(most=1)[0].run == f"{7:016x}"


def test_a_text_with_quotes_is_kept_as_it_is(activity):
    problem = "no data 'x\"); DROP TABLE runs; --' at this node\nε"
    activity.note(account("query.join", problem=problem, job="'; --"))
    assert [(r.problem, r.job) for r in activity.runs()] == [(problem, "'; --")]


def test_messages_that_are_answered_at_once_are_all_counted(activity):
    """The file is not there yet: making it is a race as well."""
    threads = [
        threading.Thread(target=lambda: [activity.note(account("train.round")) for _ in range(10)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r.messages for r in activity.runs()] == [40]


def test_years_of_runs_do_not_fill_the_disk(activity, monkeypatch):
    monkeypatch.setattr(module, "KEPT", 3)
    for i in range(5):
        activity.note(account("query.close", run=f"{i:016x}"))
        activity.note(account("query.witness", run=f"{0:016x}"))  # the oldest, but not yet over
    assert [r.run for r in activity.runs()] == [f"{i:016x}" for i in (0, 4, 3)]


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\0" + b"\xff" * 500])
def test_a_damaged_file_is_told_in_one_line(activity, tmp_path, content):
    (tmp_path / "activity.db").write_bytes(content)
    for act in (activity.runs, lambda: activity.note(account("query.join"))):
        with pytest.raises(FedsealError, match=r"activity\.db") as refused:
            act()
        assert "\n" not in str(refused.value)


def test_a_file_of_another_kind_is_left_alone(activity, tmp_path):
    other = sqlite3.connect(tmp_path / "activity.db")
    other.executescript("PRAGMA application_id=7; CREATE TABLE runs (run TEXT); INSERT INTO runs VALUES ('theirs')")
    other.close()
    with pytest.raises(UsageError, match="not a node's activity"):
        activity.note(account("query.join"))
    again = sqlite3.connect(tmp_path / "activity.db")
    assert again.execute("SELECT * FROM runs").fetchall() == [("theirs",)]
    again.close()


def test_an_answer_goes_out_though_it_cannot_be_noted(activity, tmp_path, monkeypatch, caplog):
    (tmp_path / "activity.db").write_bytes(b"not a database")
    executor.note(activity, account("train.round"))
    assert "activity.db" in caplog.text

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "activity.db").unlink()
    monkeypatch.setattr(os, "open", full)
    executor.note(activity, account("train.round"))
    assert "No space left on device" in caplog.text
    monkeypatch.undo()
    executor.note(activity, account("train.round"))
    assert [r.messages for r in activity.runs()] == [1]
