from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fl_core.errors import BudgetExceeded, FedsealError, RefusedError
from fl_core.trust.budget import OWNER_DELTA, Budget, Spending


def toy(spends, delta):
    """An accountant easy to follow: ε is the number of steps over σ², at OWNER_DELTA."""
    assert delta == OWNER_DELTA
    return sum(s.steps / s.noise_multiplier**2 for s in spends)


def reserve(budget, run, steps, *, dataset="d", sigma=1.0, limit=10.0):
    return budget.reserve(dataset, run, spend=Spending(sigma, 0.5, steps), limit=limit, epsilon=toy)


def reserved(budget, dataset="d"):
    return budget.spent(dataset, OWNER_DELTA, toy, reserved=True)


def spent(budget, dataset="d"):
    return budget.spent(dataset, OWNER_DELTA, toy)


@pytest.fixture
def budget(tmp_path):
    return Budget(tmp_path / "home" / "budget.db")


def test_jobs_add_up_until_the_limit(budget):
    assert reserve(budget, "a", 4) == 4.0
    assert reserve(budget, "b", 6) == 10.0
    with pytest.raises(BudgetExceeded, match=r"'d': with this job epsilon would be 10\.01 .* 1e-05; .* limit is 10$"):
        reserve(budget, "c", 1, sigma=10.0001)
    assert reserved(budget) == 10.0 and spent(budget) == 0.0


def test_datasets_have_their_own_budgets(budget):
    reserve(budget, "a", 10)
    assert reserve(budget, "a", 10, dataset="other") == 10.0


def test_no_limit_is_still_recorded(budget):
    reserve(budget, "a", 1000, limit=None)
    with pytest.raises(BudgetExceeded):
        reserve(budget, "b", 1)


def test_what_is_not_a_number_is_over_the_limit(budget):
    for value in (float("nan"), float("inf")):
        with pytest.raises(BudgetExceeded):
            budget.reserve("d", "a", spend=Spending(1.0, 1.0, 1), limit=10.0, epsilon=lambda s, d, v=value: v)


def test_a_resumed_run_is_not_charged_twice_nor_refused(budget):
    reserve(budget, "a", 6)
    budget.commit("a", "d", 1, 3)
    reserve(budget, "b", 4)
    assert reserve(budget, "a", 6, limit=1.0) == 10.0
    assert reserved(budget) == 10.0 and spent(budget) == 3.0


def test_a_run_cannot_change_its_plan(budget):
    reserve(budget, "a", 6)
    for change in ({"sigma": 1.1}, {"steps": 7}):
        with pytest.raises(RefusedError, match="another plan"):
            reserve(budget, "a", **{"steps": 6} | change)


def test_a_repeated_round_counts_once_and_says_so(budget):
    reserve(budget, "a", 6)
    assert budget.commit("a", "d", 1, 3) is True
    assert budget.commit("a", "d", 1, 3) is False
    assert spent(budget) == 3.0
    with pytest.raises(RefusedError, match="round 1: committed with 3 steps before, not 2"):
        budget.commit("a", "d", 1, 2)


def test_nothing_is_committed_beyond_or_without_a_reservation(budget):
    reserve(budget, "a", 5)
    budget.commit("a", "d", 1, 3)
    with pytest.raises(BudgetExceeded, match=r"3 \+ 3 steps; reserved are 5"):
        budget.commit("a", "d", 2, 3)
    with pytest.raises(ValueError):
        budget.commit("a", "d", 2, -1)
    for run, dataset in (("b", "d"), ("a", "other")):
        with pytest.raises(RefusedError, match="no budget is reserved"):
            budget.commit(run, dataset, 1, 1)
    budget.close("a")
    with pytest.raises(RefusedError, match="no budget is reserved"):
        budget.commit("a", "d", 2, 1)
    assert spent(budget) == 3.0


def test_closing_gives_back_only_what_was_not_spent(budget):
    reserve(budget, "a", 8)
    budget.commit("a", "d", 1, 3)
    assert budget.holds("a") and budget.open_runs() == ("a",)
    for _ in range(2):
        budget.close("a")
    budget.close("nobody")
    assert reserved(budget) == 3.0 == spent(budget) and not budget.holds("a")
    assert reserve(budget, "b", 7) == 10.0


def test_a_closed_run_that_comes_back_is_weighed_again(budget):
    reserve(budget, "a", 8)
    budget.commit("a", "d", 1, 3)
    budget.close("a")
    reserve(budget, "b", 5)
    with pytest.raises(BudgetExceeded):
        reserve(budget, "a", 8)
    budget.close("b")
    assert reserve(budget, "a", 8) == 8.0 and budget.holds("a")
    budget.commit("a", "d", 2, 5)
    assert spent(budget) == 8.0


def test_checking_changes_nothing(budget):
    reserve(budget, "a", 6)
    assert budget.check("d", spend=Spending(1.0, 0.5, 4), limit=10.0, epsilon=toy) == 10.0
    with pytest.raises(BudgetExceeded):
        budget.check("d", spend=Spending(1.0, 0.5, 5), limit=10.0, epsilon=toy)
    assert reserved(budget) == 6.0


def test_rows_are_remembered(budget):
    assert budget.rows("d") is None
    for n in (5, 7):
        budget.remember_rows("d", n)
    assert Budget(budget.path).rows("d") == 7


def test_floats_are_kept_to_the_bit(budget):
    sigma, q = 1.9726562500000002, 1 / 3
    seen = []
    spend = Spending(sigma, q, 1)
    budget.reserve("d", "a", spend=spend, limit=None, epsilon=lambda s, d: 0.0)
    budget.spent("d", 1e-5, lambda s, d: seen.extend(s) or 0.0, reserved=True)
    assert seen == [spend]


def test_the_file_is_the_owners_alone(budget):
    reserve(budget, "a", 1)
    assert budget.path.stat().st_mode & 0o777 == 0o600
    assert budget.path.parent.stat().st_mode & 0o777 == 0o700


def test_a_damaged_or_foreign_file_is_one_clear_line(tmp_path):
    path = tmp_path / "budget.db"
    path.write_bytes(b"not a database, and long enough to be taken for one" * 40)
    with pytest.raises(FedsealError, match=r"budget\.db: not a privacy budget") as caught:
        reserve(Budget(path), "a", 1)
    assert "\n" not in str(caught.value)


def _race(path, number, barrier, results):
    barrier.wait()
    try:
        reserve(Budget(path), f"run{number}", 3)
        results.put(number)
    except BudgetExceeded:
        results.put(None)


def test_processes_racing_cannot_pass_the_limit_together(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(8), context.Queue()
    path = tmp_path / "budget.db"  # made by whoever comes first
    workers = [context.Process(target=_race, args=(path, i, barrier, results)) for i in range(8)]
    for worker in workers:
        worker.start()
    won = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert sum(w is not None for w in won) == 3 and reserved(Budget(path)) == 9.0


_CRASH = """
import sys, time
from pathlib import Path
from fl_core.trust.budget import Budget, Spending
budget = Budget(Path(sys.argv[1]))
toy = lambda spends, delta: sum(s.steps / s.noise_multiplier**2 for s in spends)
budget.reserve("d", "a", spend=Spending(1.0, 0.5, 8), limit=10.0, epsilon=toy)
if sys.argv[2] == "committed":
    budget.commit("a", "d", 1, 3)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("moment", "committed"), [("reserved", 0.0), ("committed", 3.0)])
def test_a_run_killed_keeps_its_reservation_until_it_is_resumed_or_closed(tmp_path, moment, committed):
    path = tmp_path / "budget.db"
    command = [sys.executable, "-c", _CRASH, str(path), moment]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        os.kill(process.pid, signal.SIGKILL)
    budget = Budget(path)
    assert spent(budget) == committed and reserved(budget) == 8.0
    with pytest.raises(BudgetExceeded):
        reserve(budget, "b", 3)
    assert reserve(budget, "a", 8) == 8.0
    budget.commit("a", "d", 1, 3)
    budget.close("a")
    assert spent(budget) == 3.0 == reserved(budget)


def test_killed_at_any_moment_a_commit_is_there_or_not(tmp_path):
    code = (
        "import sys; from pathlib import Path; from fl_core.trust.budget import Budget, Spending\n"
        "b = Budget(Path(sys.argv[1])); b.reserve('d', 'a', spend=Spending(1.0, 0.5, 10**6), limit=None,"
        " epsilon=lambda s, d: 0.0)\n"
        "for r in range(10**6):\n    b.commit('a', 'd', r, 1); print(r, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "b.db")], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
        said = [int(line) for line in process.stdout if line.endswith(b"\n")]
    committed = spent(Budget(tmp_path / "b.db"))
    assert said[-1] + 1 <= committed <= said[-1] + 2


def test_the_real_accountant_fits(budget):
    from fl_core.learning.privacy import Spend, epsilon

    total = budget.reserve("d", "a", spend=Spend(2.0, 0.3, 10), limit=None, epsilon=epsilon)
    assert total == epsilon([Spend(2.0, 0.3, 10)], OWNER_DELTA)
    budget.commit("a", "d", 1, 10)
    assert budget.spent("d", OWNER_DELTA, epsilon) == pytest.approx(total)


def test_the_budget_does_not_import_torch():
    code = "import sys, fl_core.trust.budget; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Owner(RuleBasedStateMachine):
    """Any order of jobs, against dictionaries: the limit holds and nothing spent is forgotten."""

    def __init__(self):
        super().__init__()
        import tempfile
        from pathlib import Path

        self.folder = tempfile.TemporaryDirectory()
        self.budget = Budget(Path(self.folder.name) / "budget.db")
        self.plans, self.done, self.open = {}, {}, set()

    def held(self, besides=None):
        return sum(self.plans[r] if r in self.open else sum(self.done[r].values()) for r in self.plans if r != besides)

    @rule(run=st.sampled_from("abcd"), steps=st.integers(1, 6))
    def reserve(self, run, steps):
        other_plan = self.plans.get(run, steps) != steps
        fits = run in self.open or self.held(besides=run) + steps <= 10
        try:
            reserve(self.budget, run, steps)
            assert fits and not other_plan
            self.plans[run] = steps
            self.done.setdefault(run, {})
            self.open.add(run)
        except BudgetExceeded:
            assert not fits
        except RefusedError:
            assert other_plan

    @rule(run=st.sampled_from("abcd"), round=st.integers(1, 3), steps=st.integers(0, 3))
    def commit(self, run, round, steps):
        done = self.done.get(run, {})
        allowed = (
            done[round] == steps
            if round in done
            else run in self.open and sum(done.values()) + steps <= self.plans[run]
        )
        try:
            assert self.budget.commit(run, "d", round, steps) == (round not in done)
            assert allowed
            done[round] = steps
        except RefusedError:
            assert not allowed

    @rule(run=st.sampled_from("abcd"))
    def close(self, run):
        self.budget.close(run)
        self.open.discard(run)

    @invariant()
    def the_books_agree(self):
        assert reserved(self.budget) == self.held() <= 10
        assert spent(self.budget) == sum(sum(d.values()) for d in self.done.values())

    def teardown(self):
        self.folder.cleanup()


TestOwner = Owner.TestCase
TestOwner.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
