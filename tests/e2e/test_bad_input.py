"""What bad input gets at the real command line: one line, the exit code, and nothing half-written."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fl_core.trust.verify import verify_ledger
from tests.e2e.process import OWN, Place

pytestmark = pytest.mark.e2e


def outputs(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


# ---- the job file and the command line


def unknown_key(place: Place) -> list[object]:
    return [place.job(more="epoch = 3\n")]


def unknown_top_key(place: Place) -> list[object]:
    return [place.job(more="[trian]\n")]


def wrong_type(place: Place) -> list[object]:
    return [place.job(), "--set", 'train.rounds="many"']


def missing_file(place: Place) -> list[object]:
    return [place.job(parties="".join(OWN.format(name=n, data=f"{n}.csv") for n in "abc"))]


def no_job_file(place: Place) -> list[object]:
    return ["nowhere.toml"]


def not_toml(place: Place) -> list[object]:
    place.job().write_text("kind: horizontal\n")
    return ["quick.toml"]


def unknown_profile(place: Place) -> list[object]:
    return [place.job(), "--set", "encryption.profile=CKKS_9000"]


def set_without_value(place: Place) -> list[object]:
    return [place.job(), "--set", "train.rounds"]


def set_into_a_scalar(place: Place) -> list[object]:
    return [place.job(), "--set", "seed.deep=1"]


def folder_as_job(place: Place) -> list[object]:
    (place.path / "folder").mkdir()
    return ["folder"]


def home_of_another_version(place: Place) -> list[object]:
    place.home.mkdir()
    (place.home / "version").write_text("99\n")
    return [place.job()]


def file_in_place_of_the_home(place: Place) -> list[object]:
    place.home.write_text("not a folder")
    return [place.job()]


def file_in_place_of_out(place: Place) -> list[object]:
    (place.path / "taken").write_text("not a folder")
    return [place.job(), "--out", "taken"]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (unknown_key, ["train.epoch: unknown key", "allowed: "]),
        (unknown_top_key, ["trian: unknown key", "did you mean 'train'"]),
        (wrong_type, ["train.rounds: 'many' is not a whole number"]),
        (missing_file, ["party[0].data: no file", "a.csv"]),
        (no_job_file, ["nowhere.toml", "No such file"]),
        (not_toml, ["quick.toml: not TOML", "line 1"]),
        (unknown_profile, ["'CKKS_9000'", "CKKS_2048", "BFV_2048"]),
        (set_without_value, ["--set 'train.rounds': not KEY=VALUE"]),
        (set_into_a_scalar, ["seed.deep"]),
        (folder_as_job, ["folder: cannot be read"]),
        (home_of_another_version, ["home of version '99'", "allowed: version 1"]),
        (file_in_place_of_the_home, ["FEDSEAL_HOME", "cannot be used"]),
        (file_in_place_of_out, ["--out taken"]),
    ],
)
def test_bad_usage_gets_one_line_and_exit_2_and_leaves_nothing(fresh: Place, case, words: list[str]) -> None:
    arguments = case(fresh)
    before = {p: p.read_bytes() for p in outputs(fresh.path)}
    done = fresh.fedseal("run", *arguments)
    line = done.fails(2)
    assert all(word in line for word in words), line
    assert line.isprintable(), repr(line)
    assert done.out == ""
    left = {p for p in outputs(fresh.path) if p not in before}
    assert left <= {fresh.home / "version"}
    assert {p: p.read_bytes() for p in before} == before
    assert not list(fresh.path.glob("runs"))


def test_json_of_a_failure_is_one_object_too(fresh: Place) -> None:
    done = fresh.fedseal("run", fresh.job(), "--json", "--set", "train.rounds=-1")
    assert "train.rounds: -1 is not allowed" in done.fails(2)
    assert done.json["status"] == "usage" and "train.rounds" in done.json["error"]


# ---- the parties' data


def broken_tables(place: Place) -> str:
    """Two good parties and one of each kind of bad one."""
    place.table("no_label_column", 40)
    (place.path / "no_label_column.csv").write_text(
        (place.path / "no_label_column.csv").read_text().replace("id,a,b,c,y", "id,a,b,c,target")
    )
    place.table("nan_label", 40)
    lines = (place.path / "nan_label.csv").read_text().splitlines()
    lines[7] = lines[7].rpartition(",")[0] + ",NaN"
    (place.path / "nan_label.csv").write_text("\n".join(lines) + "\n")
    place.table("no_rows", 0)
    np.savez(place.path / "whole.npz", x=np.zeros((40, 3)), y=np.arange(40) % 2)
    (place.path / "torn.npz").write_bytes((place.path / "whole.npz").read_bytes()[:200])
    tables = {n: f"{n}.csv" for n in ("no_label_column", "nan_label", "no_rows")} | {"torn": "torn.npz"}
    tables |= {name: place.table(name, 40) for name in ("good_a", "good_b")}
    return "".join(OWN.format(name=name, data=data) for name, data in tables.items())


WRONG = {
    "no_label_column": "no_label_column.csv: no label column 'y'; allowed: ",
    "nan_label": "nan_label.csv, column 'y': no label: 'NaN' in line 8",
    "no_rows": "no_rows.csv: no rows",
    "torn": "torn.npz: cannot be read",
}


def test_every_partys_data_problem_is_told_at_once_in_one_line(fresh: Place) -> None:
    job = fresh.job("own", parties=broken_tables(fresh), more="min_parties = 4\n")
    done = fresh.fedseal("run", job, "--out", "results")
    line = done.fails(2)
    for name, words in WRONG.items():
        assert f"{name}: party {name}: {words}" in line, line
    assert "good_a" not in line
    assert outputs(fresh.path / "results") == []
    assert verify_ledger(fresh.home / "ledger.db").status == 0
    assert b"nan_label.csv" not in (fresh.home / "ledger.db").read_bytes()
    assert fresh.processes() == {}

    done = fresh.fedseal("check", job, "--json")
    assert (done.code, done.json["ok"], done.err) == (2, False, "")
    told = {p["party"]: p["problem"] for p in done.json["parties"]}
    assert told["good_a"] == told["good_b"] == ""
    assert all(words in told[name] for name, words in WRONG.items())


def test_class_missing_at_a_party_names_the_party_and_the_way_out(fresh: Place) -> None:
    tables = {name: fresh.table(name, 60, labels=3) for name in ("a", "b")} | {"c": fresh.table("c", 60, labels=2)}
    job = fresh.job("classes", parties="".join(OWN.format(name=n, data=d) for n, d in tables.items()))
    line = fresh.fedseal("run", job, "--out", "results").fails(2)
    assert "party c: its classes differ" in line and "model.classes" in line
    assert outputs(fresh.path / "results") == []


# ---- a full disk in mid-run


@pytest.fixture
def small_disk(fresh: Place) -> Iterator[Place]:
    """A home on a file system of 24 MB; where none may be mounted, one whose files can be kept from growing."""
    fresh.home.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount") is not None and (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", fresh.home], check=False).returncode == 0
    )  # fmt: skip
    yield fresh
    fresh.clear()
    if mounted:
        subprocess.run(["umount", "-l", fresh.home], check=True)


def fill(place: Place, pid: int) -> Path | None:
    """Take the last byte of the home's file system; on an ordinary one forbid the run to make files longer."""
    if not os.path.ismount(place.home):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, 4096))
        return None
    ballast = place.home / "ballast"
    with ballast.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
    return ballast


def test_full_disk_in_mid_run_ends_it_in_one_line_and_it_resumes_when_there_is_room(small_disk: Place) -> None:
    place = small_disk
    job = place.job("full", rounds=12)
    run = place.start("run", job, "--json", "--out", "results")
    run.wait_for("round 3:")
    run.freeze()
    ballast = fill(place, run.pid)
    run.thaw()
    done = run.end()
    if ballast:
        ballast.unlink()
    line = done.fails(1)
    assert "No space left" in line or "disk is full" in line or "File too large" in line or "disk I/O" in line, line
    assert verify_ledger(place.home / "ledger.db").status != 1
    assert outputs(place.path / "results") == []
    resumed = place.fedseal("run", job, "--json", "--resume")
    assert resumed.code == 0, resumed.err
    assert place.fedseal("audit", "verify").code == 0
