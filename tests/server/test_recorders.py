"""The ledger recorder, the fan-out and the spool: no MLflow needed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fl_core.errors import LedgerBroken
from fl_core.records import RoundRecord
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from server.recorders.fanout import Fanout
from server.recorders.ledger import LedgerRecorder
from server.recorders.spool import Spool, State

RECORD = RoundRecord("run1", 3, {"accuracy": "0.912345", "loss": "0.5"}, ("a", "b"), ("c",))


class Listing:
    def __init__(self) -> None:
        self.seen: list[RoundRecord] = []

    def record(self, record: RoundRecord) -> None:
        self.seen.append(record)


class Failing:
    def record(self, record: RoundRecord) -> None:
        raise LedgerBroken("disk")


def test_ledger_entry_holds_the_texts_and_is_the_coordinators(tmp_path: Path) -> None:
    identity = Identity.create("coordinator")
    with Ledger.open(tmp_path / "ledger.db", identity) as ledger:
        LedgerRecorder(ledger, identity, "run1").record(RECORD)
        (entry,) = ledger.entries(run="run1", kind="round")
        assert entry.by == "coordinator"
        assert entry.body == {
            "round": 3,
            "metrics": {"accuracy": "0.912345", "loss": "0.5"},
            "parties": ["a", "b"],
            "missing": ["c"],
        }


def test_no_view_shows_a_round_that_the_ledger_refused() -> None:
    view = Listing()
    with pytest.raises(LedgerBroken):
        Fanout([Failing(), view]).record(RECORD)
    assert view.seen == []


def test_fanout_keeps_the_order() -> None:
    first, second = Listing(), Listing()
    Fanout([first, second]).record(RECORD)
    assert first.seen == second.seen == [RECORD]
    Fanout([]).record(RECORD)


# ---- the spool


def _write(spool: Spool, data: bytes) -> None:
    spool.path.write_bytes(data)


def test_torn_line_is_neither_read_nor_merged_with_the_next(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s.jsonl")
    _write(spool, b'{"do":"round","step":1}\n{"do":"rou')
    assert [line["step"] for line, _ in spool.lines()] == [1]
    with spool.appending() as fd:
        os.write(fd, b'{"do":"round","step":2}\n')
    assert [line["step"] for line, _ in spool.lines()] == [1, 2]


@pytest.mark.parametrize("line", [b"not json", b"[1]", b'{"do":5}', b"{}", b"\xff\xfe", b"null"])
def test_damaged_line_is_passed_over_by_name(tmp_path: Path, line: bytes) -> None:
    spool = Spool(tmp_path / "s.jsonl")
    _write(spool, line + b'\n{"do":"end"}\n')
    assert [fields["do"] for fields, _ in spool.lines()] == ["", "end"]


def test_offsets_allow_to_go_on_at_any_line(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s.jsonl")
    _write(spool, b"".join(json.dumps({"do": "round", "step": n, "x": "é"}).encode() + b"\n" for n in range(7)))
    ends = [0] + [end for _, end in spool.lines()]
    for n, offset in enumerate(ends):
        assert [line["step"] for line, _ in spool.lines(offset)] == list(range(n, 7))
    assert spool.path.stat().st_size == ends[-1]


def test_absent_or_damaged_state_means_from_the_start(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s.jsonl")
    assert spool.load() == State()
    spool.save(State(mlflow_run_id="m", offset=12, ended=True))
    assert spool.load() == State(mlflow_run_id="m", offset=12, ended=True)
    (tmp_path / "s.jsonl.state").write_text('{"offset": ')
    assert spool.load() == State()


def test_last_begin_counts(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s.jsonl")
    assert spool.begin() is None
    _write(spool, b'{"do":"begin","uri":"old"}\n{"do":"end"}\n{"do":"begin","uri":"new"}\n{"do":"round"}\n')
    begin = spool.begin()
    assert begin is not None and begin["uri"] == "new"


def test_a_run_that_appends_is_alive_and_one_that_left_is_not(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s.jsonl")
    with spool.appending():
        assert spool.is_alive()
        assert spool.path.stat().st_mode & 0o777 == 0o600  # a tracking URI may hold a password
    assert not spool.is_alive()
