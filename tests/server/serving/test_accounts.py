"""What clients used: the same decisions as a plain list of all requests, also after restarts and a kill."""

from __future__ import annotations

import shutil
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.errors import BadMessage
from fl_core.serving import WINDOW
from server.serving.accounts import DAY, SPAN, Accounts, OverQuota, Quota

START = DAY * 20_000.0 + DAY - 60.0  # a minute before midnight UTC
QUOTA = Quota(rows_a_day=20, requests_a_second=0.5)
MANY = Quota(10**9, 10**6)


class Reference:
    """Every request that was counted, and the rules in words."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str, int, float]] = []

    def take(self, client: str, nonce: str, rows: int, now: float) -> str:
        own = [one for one in self.all if one[0] == client]
        if any(one[1] == nonce for one in own):
            return "again"
        if sum(1 for one in own if one[3] > now - SPAN) >= QUOTA.requests_a_second * SPAN:
            return "requests"
        if sum(one[2] for one in own if one[3] // DAY == now // DAY) + rows > QUOTA.rows_a_day:
            return "rows"
        self.all.append((client, nonce, rows, now))
        return "taken"


def told(accounts: Accounts, client: str, nonce: str, rows: int) -> str:
    try:
        accounts.take(client, nonce, rows, QUOTA)
    except BadMessage:
        return "again"
    except OverQuota as over:
        assert over.wait > 0
        return "requests" if "a second" in str(over) else "rows"
    return "taken"


STEP = st.tuples(
    st.sampled_from(["a", "b"]),
    st.integers(0, 12),  # the nonce: often one that was there before
    st.integers(0, 8),
    st.sampled_from([0.0, 0.5, 3.0, 11.0, 40.0]),  # seconds until then
    st.sampled_from(["", "", "", "restart"]),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(STEP, max_size=40))
def test_every_decision_is_that_of_the_plain_rules_also_across_restarts_and_midnight(steps):
    now, reference = [START], Reference()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "accounts.db"
        accounts = Accounts(path, clock=lambda: now[0])
        for client, nonce, rows, later, event in steps:
            now[0] += later
            if event:
                accounts.close()
                accounts = Accounts(path, clock=lambda: now[0])
            if now[0] - START < 2 * WINDOW:  # a nonce is kept for as long as its request may come again
                expected = reference.take(client, f"{nonce:032x}", rows, now[0])
                assert told(accounts, client, f"{nonce:032x}", rows) == expected
            used = sum(one[2] for one in reference.all if one[0] == client and one[3] // DAY == now[0] // DAY)
            assert accounts.rows_today(client) == used
        accounts.close()


def test_of_many_that_come_with_one_nonce_at_once_one_is_taken(tmp_path):
    accounts, taken, together = Accounts(tmp_path / "accounts.db"), deque(), threading.Barrier(8)

    def ask() -> None:
        together.wait(20)
        for i in range(25):
            with suppress(BadMessage):
                accounts.take("a", f"{i:032x}", 3, MANY)
                taken.append(i)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(taken) == list(range(25)) and accounts.rows_today("a") == 75
    accounts.close()


@pytest.mark.parametrize("moved", [False, True])
def test_a_kill_right_after_an_answer_forgets_no_nonce_and_no_row(tmp_path, moved):
    accounts = Accounts(tmp_path / "accounts.db")
    for i in range(5):
        accounts.take("a", f"{i:032x}", 2, MANY)
        if moved and i == 2:
            accounts.move_log()
    (tmp_path / "killed").mkdir(mode=0o700)
    for file in tmp_path.glob("accounts.db*"):  # as it lies there while the process runs
        shutil.copy(file, tmp_path / "killed")
    after = Accounts(tmp_path / "killed" / "accounts.db")
    assert after.rows_today("a") == 10
    for i in range(5):
        with pytest.raises(BadMessage, match="made before"):
            after.take("a", f"{i:032x}", 2, MANY)
    with pytest.raises(OverQuota):
        after.take("a", "9" * 32, 1, Quota(10, 10**6))
    after.close()
    accounts.close()


def test_the_log_of_the_file_stays_small_while_its_log_is_moved(tmp_path):
    accounts = Accounts(tmp_path / "accounts.db")
    log, sizes = tmp_path / "accounts.db-wal", []
    for i in range(400):
        accounts.take("a", f"{i:032x}", 1, MANY)
        if i % 50 == 49:
            accounts.move_log()
            sizes.append(log.stat().st_size)
    assert sizes[-1] <= 2 * sizes[0]
    accounts.close()


def test_nonces_too_old_to_come_again_are_forgotten(tmp_path):
    now = [START]
    accounts = Accounts(tmp_path / "accounts.db", clock=lambda: now[0])
    count = lambda: accounts._db.execute("SELECT COUNT(*) FROM requests").fetchone()[0]  # noqa: E731
    for i in range(5):
        accounts.take("a", f"{i:032x}", 1, MANY)
    now[0] += 2 * WINDOW
    accounts.take("a", "e" * 32, 1, MANY)
    assert count() == 6
    now[0] += SPAN + 1
    accounts.take("a", "f" * 32, 1, MANY)
    assert count() == 2
    accounts.close()
