"""The home folder, crash-safe files, and round records."""

from __future__ import annotations

import os
import stat

import pytest

from fl_core import home as homes
from fl_core.errors import JobFailed, UsageError
from fl_core.files import locked, write_atomic
from fl_core.home import Home
from fl_core.records import RoundRecord, decimal


def test_a_home_of_another_version_is_refused_in_one_line(tmp_path):
    Home.open(tmp_path / "h")
    (tmp_path / "h" / "version").write_text("99\n")
    with pytest.raises(UsageError, match="a home of version '99'; allowed: version 1"):
        Home.open(tmp_path / "h")


def test_a_home_of_a_newer_version_says_to_upgrade(tmp_path):
    Home.open(tmp_path)
    for found, upgrades in (("2", True), ("99", True), ("0", False), ("-1", False), ("one", False), ("", False)):
        (tmp_path / "version").write_text(found)
        with pytest.raises(UsageError, match=f"a home of version '{found}'; allowed: version 1") as caught:
            Home.open(tmp_path)
        assert ("upgrade fedseal" in str(caught.value)) == upgrades
    (tmp_path / "version").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="allowed: version 1"):
        Home.open(tmp_path)


def test_an_older_home_is_migrated_step_by_step_and_once(tmp_path, monkeypatch):
    Home.open(tmp_path)
    steps = []
    monkeypatch.setattr(homes, "VERSION", "3")
    monkeypatch.setitem(homes.MIGRATIONS, "1", lambda path: steps.append((1, path)))
    monkeypatch.setitem(homes.MIGRATIONS, "2", lambda path: steps.append((2, path)))
    assert Home(tmp_path).version() == "1"
    for _ in range(2):
        assert Home.open(tmp_path).version() == "3"
        assert steps == [(1, tmp_path), (2, tmp_path)]
    (tmp_path / "version").write_text("0\n")
    with pytest.raises(UsageError, match="a home of version '0'; allowed: version 3"):
        Home.open(tmp_path)


def test_a_migration_that_is_cut_short_is_run_again(tmp_path, monkeypatch):
    Home.open(tmp_path)
    tries = []

    def migrate(path):
        tries.append((path / "version").read_text())
        if len(tries) == 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(homes, "VERSION", "2")
    monkeypatch.setitem(homes.MIGRATIONS, "1", migrate)
    with pytest.raises(UsageError, match=r"cannot be used \(No space left"):
        Home.open(tmp_path)
    assert Home.open(tmp_path).version() == "2"
    assert tries == ["1\n", "1\n"]


def test_asking_where_a_home_is_makes_none(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSEAL_HOME", str(tmp_path / "there"))
    assert Home.at().path == tmp_path / "there"
    assert Home.at(tmp_path / "h").path == tmp_path / "h"
    assert list(tmp_path.iterdir()) == []


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
