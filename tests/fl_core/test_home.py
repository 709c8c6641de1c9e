"""The home folder, crash-safe files, and round records."""

from __future__ import annotations

import os
import stat

import pytest

from fl_core.errors import JobFailed, UsageError
from fl_core.files import locked, write_atomic
from fl_core.home import Home
from fl_core.records import RoundRecord, decimal


def test_a_home_of_another_version_is_refused_in_one_line(tmp_path):
    Home.open(tmp_path / "h")
    (tmp_path / "h" / "version").write_text("99\n")
    with pytest.raises(UsageError, match="a home of version '99'; allowed: version 1"):
        Home.open(tmp_path / "h")


def test_a_file_in_the_place_of_the_home_is_refused(tmp_path):
    (tmp_path / "h").write_text("x")
    with pytest.raises(UsageError, match="cannot be used"):
        Home.open(tmp_path / "h")


def test_the_home_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSEAL_HOME", str(tmp_path / "there"))
    assert Home.open().path == tmp_path / "there"
    monkeypatch.delenv("FEDSEAL_HOME")
    monkeypatch.chdir(tmp_path)
    assert Home.open().path == tmp_path / ".fedseal"


def test_private_files_are_private(tmp_path):
    write_atomic(tmp_path / "secret", b"x")
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((Home.open(tmp_path / "h").path).stat().st_mode) == 0o700


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    write_atomic(tmp_path / "f", b"old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JobFailed, match="No space left"):
        write_atomic(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_lock_is_held_by_one(tmp_path):
    with locked(tmp_path / "l") as first:
        assert first
        with locked(tmp_path / "l", wait=False) as second:
            assert not second


@pytest.mark.parametrize(
    ("value", "text"), [(0.91388889, "0.913889"), (8.0, "8"), (1e-9, "1e-09"), (46878, "46878"), (float("nan"), "nan")]
)
def test_numbers_enter_the_ledger_with_six_digits(value, text):
    assert decimal(value) == text


def test_a_record_survives_the_ledger():
    record = RoundRecord("r", 3, {"accuracy": "0.9", "epsilon": "8.00"}, ("a", "b"), ("c",))
    assert RoundRecord.from_body("r", record.body()) == record
    assert record.values() == {"accuracy": 0.9, "epsilon": 8.0}
