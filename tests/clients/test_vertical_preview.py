"""A check of a vertical job: what joining would find, with nothing set aside and no count leaving the machine."""

from __future__ import annotations

import csv
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from clients.participant import role_of
from clients.vertical_preview import preview
from fl_core.config import load_job
from fl_core.errors import BudgetExceeded, DataError
from fl_core.home import Home
from fl_core.job import Job
from fl_core.trust.budget import Budget
from server.dry_run import dry_run


@pytest.fixture
def table(tmp_path):
    """A job file's table: bank has labels and two columns, bureau three."""

    def make(labels: list[Any] | None = None, **tables: Any) -> dict[str, Any]:
        labels = labels or [0, 1] * 20
        bank = [["id", "y", "age", "debt"], *([i, y, i % 7, i % 5] for i, y in enumerate(labels))]
        bureau = [["id", "a", "b", "c"], *([i, i, i % 3, "x"] for i in range(30))]
        for name, rows in (("bank", bank), ("bureau", bureau)):
            with (tmp_path / f"{name}.csv").open("w", newline="") as file:
                csv.writer(file).writerows(rows)
        parties = [{"name": n, "data": str(tmp_path / f"{n}.csv"), "id": ["id"]} for n in ("bank", "bureau")]
        parties[0]["label"] = "y"
        return {"kind": "vertical", "name": "t", "party": parties} | tables

    return make


NOISE = {"privacy": {"mechanism": "cut-layer", "target_epsilon": 2.0}, "vertical": {"algorithm": "split-nn"}}


def spendings(path: Path) -> list[Any]:
    with sqlite3.connect(path) as db:
        return db.execute("SELECT * FROM spendings").fetchall()


def test_each_party_sees_its_own_table_and_the_active_one_its_classes(tmp_path, table):
    result = dry_run(table(), home=tmp_path / "home")
    assert result["ok"] and result["problems"] == []
    bank, bureau = result["parties"]
    assert (bank["table"], bank["columns"], bank["classes"]) == ("40", "2", "2")
    assert (bureau["table"], bureau["columns"], bureau["classes"]) == ("30", "3", "")


def test_a_problem_is_one_line_at_the_party_that_has_it(tmp_path, table):
    job = table()
    job["party"][1]["id"] = ["nobody"]
    result = dry_run(job, home=tmp_path / "home")
    assert [p["status"] for p in result["parties"]] == ["ready", "problem"] and not result["ok"]
    assert "no id column 'nobody'" in result["parties"][1]["problem"] and "\n" not in result["parties"][1]["problem"]


def test_what_a_session_would_find_too_late_is_found_before(tmp_path, table):
    amounts = [f"{n}.5" for n in range(40)]
    woe = {"algorithm": "logistic", "bins": 4, "encoding": "woe"}
    for labels, changes, problem in (
        (amounts, {"vertical": {"algorithm": "logistic"}}, "numbers with logistic"),
        (amounts, {"vertical": {"algorithm": "gbdt"}, "psi": {"output": "union"}}, "numbers over a union"),
        ([0, 1, 2, 3] * 10, {"vertical": woe}, "4 classes with encoding woe"),
    ):
        job = load_job(table(labels, **changes))
        with pytest.raises(DataError, match=problem):
            preview(job, job.party("bank"), Budget(tmp_path / "budget.db"))
    assert dry_run(table(amounts), home=tmp_path / "home")["parties"][0]["classes"] == "numbers"


def test_a_check_sets_no_privacy_aside(tmp_path, table):
    job, home = table(**NOISE), Home.open(tmp_path / "home")
    job["party"][1]["max_epsilon"] = 8.0
    bank, bureau = dry_run(job, home=home.path)["parties"]
    assert "epsilon" not in bank
    assert float(bureau["epsilon"]) == pytest.approx(2.0, abs=0.02) and bureau["epsilon_left"] == "8.00"
    assert spendings(home.party("bureau") / "budget.db") == []


def test_a_limit_that_the_job_would_pass_refuses_it(tmp_path, table):
    job = table(**NOISE)
    job["party"][1]["max_epsilon"] = 1.5
    result = dry_run(job, home=tmp_path / "home")
    assert [p["status"] for p in result["parties"]] == ["ready", "refused"]
    assert "limit is 1.5" in result["parties"][1]["problem"]


class Node:
    """A participant as far as a check needs one."""

    def __init__(self, job: Job, path: Path) -> None:
        self.store, self.config = self, self
        self.budget, self.policy, self.run = Budget(path / "budget.db"), None, "run"


def test_a_node_that_is_asked_answers_without_counts_and_sets_nothing_aside(tmp_path, table):
    job = load_job(table(**NOISE))
    node: Any = Node(job, tmp_path / "node")
    assert role_of(node, job, job.party("bureau")).previewed() == {"schema": "", "classes": ""}
    assert spendings(tmp_path / "node" / "budget.db") == []
    tight = table(**NOISE)
    tight["party"][1]["max_epsilon"] = 1.5
    job = load_job(tight)
    with pytest.raises(BudgetExceeded):
        role_of(node, job, job.party("bureau")).previewed()
