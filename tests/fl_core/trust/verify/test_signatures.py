"""Signatures checked in processes of their own: the first failure is found wherever it is, also when they are killed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_core.trust.entry import Statement
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.verify import signatures as module
from fl_core.trust.verify.format import Broken, Card, Ed25519PublicKey, decode, signed_bytes, signed_of
from fl_core.trust.verify.signatures import ALONE, BATCH, Check, Signatures

TOTAL = ALONE + 6 * BATCH


@pytest.fixture(scope="module")
def checks() -> list[Check]:
    identities = [Identity.create(name) for name in ("a", "b")]
    cards = []
    for identity in identities:
        raw = bytes.fromhex(identity.card.ed25519)
        cards.append(Card(identity.name, raw, Ed25519PublicKey.from_public_bytes(raw), {}))
    made = []
    for n in range(TOTAL):
        data = b"x" * (n % 300)
        made.append(Check(n, cards[n % 2], identities[n % 2].sign(data), data, "wrong"))
    return made


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[Signatures]:
    """Two workers, on any machine."""
    monkeypatch.setattr(module, "_cores", lambda: 3)
    made = Signatures()
    yield made
    made.close()
    assert all(process.poll() is not None for process in made._processes), "no process is left"


def failure(signatures: Signatures, checks: list[Check]) -> Broken | None:
    try:
        for check in checks:
            signatures.add(check)
        signatures.finish()
    except Broken as error:
        return error
    return None


def spoilt(checks: list[Check], *places: int) -> list[Check]:
    made = list(checks)
    for place in places:
        made[place] = made[place]._replace(signature=bytes(64))
    return made


def test_all_good_signatures_pass_with_workers(two: Signatures, checks: list[Check]) -> None:
    assert failure(two, checks) is None
    assert len(two._processes) == 2 and two.count == TOTAL


@pytest.mark.parametrize("place", [0, ALONE + 1, ALONE + BATCH, ALONE + 3 * BATCH - 1, TOTAL - 1])
def test_one_bad_signature_is_named(two: Signatures, checks: list[Check], place: int) -> None:
    found = failure(two, spoilt(checks, place))
    assert found is not None and (found.seq, found.reason) == (place, f"{'ab'[place % 2]}: wrong")


def test_the_first_of_several_is_named_whoever_finds_it(two: Signatures, checks: list[Check]) -> None:
    first = ALONE + BATCH + 7
    found = failure(two, spoilt(checks, *range(first, TOTAL, 100)))
    assert found is not None and found.seq == first


def test_killed_workers_lose_and_hide_nothing(two: Signatures, checks: list[Check]) -> None:
    for check in checks[: ALONE + BATCH + 1]:
        two.add(check)
    assert two._processes
    for process in two._processes:
        process.kill()
    found = failure(two, spoilt(checks, TOTAL - 5)[ALONE + BATCH + 1 :])
    assert found is not None and found.seq == TOTAL - 5


@pytest.mark.parametrize("program", ["import sys; sys.exit()", "print('x' * 9); input()", "import time; time.sleep(9)"])
def test_a_program_that_answers_nothing_sensible_is_no_verdict(
    two: Signatures, checks: list[Check], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str
) -> None:
    if "sleep" in program:  # killed while it is asked
        monkeypatch.setattr(module, "_open_worker", lambda: _killed_soon(tmp_path, program))
    else:
        path = tmp_path / "worker.py"
        path.write_text(program)
        monkeypatch.setattr(module, "_PROGRAM", path)
    found = failure(two, spoilt(checks, TOTAL - 5))
    assert found is not None and found.seq == TOTAL - 5


def _killed_soon(path: Path, program: str) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen(["timeout", "0.3", "python3", "-c", program], stdin=pipe, stdout=pipe)


def test_without_a_way_to_start_processes_all_is_checked_here(
    two: Signatures, checks: list[Check], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_PROGRAM", tmp_path / "none.py")
    found = failure(two, spoilt(checks, TOTAL - 5))
    assert found is not None and found.seq == TOTAL - 5 and not two._processes


def test_what_was_signed_is_cut_out_of_an_entry_as_it_would_be_encoded(tmp_path: Path) -> None:
    """Also where its texts look like the entry's own fields."""
    keeper = Identity.create("coordinator")
    marks = [',"prev":', ',"run":"x"', ',"seq":', ',"v":1}', '"}', "\\", "é€", ""]
    with Ledger.open(tmp_path / "ledger.db", keeper) as ledger:
        for n, mark in enumerate(marks):
            body = {"run": mark, "a": [{"prev": mark, "seq": n, "v": 1, "run": "y"}], "z": {"prev": 1, "v": mark}}
            run = mark if mark.isascii() else ""
            ledger.append([Statement.make(keeper, log=ledger.log, kind="round", run=run, body=body)])
        for entry in ledger.entries():
            data = entry.encode()
            assert signed_of(data) == signed_bytes(decode(data, 1 << 20))
