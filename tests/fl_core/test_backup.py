"""Backup and restore: a real home there and back, archives that somebody touched, crashes, what a restored home may do."""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
import stat
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clients.node.folder import NodeFolder, Settings
from fl_core import backup, home
from fl_core.backup import LEDGER, MANIFEST, Manifest, back_up
from fl_core.errors import FedsealError, JobFailed, LedgerBroken, UsageError
from fl_core.files import private_dir, write_atomic
from fl_core.home import Home
from fl_core.learning import privacy
from fl_core.messages import COORDINATOR
from fl_core.restore import restore
from fl_core.trust.budget import OWNER_DELTA, Budget
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.verify import verify_ledger
from tests.support import Federation, digits

SECRETS = ("identity.key", "commitment.key", "flower.key", "runtime.secret")
Parts = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which a job with differential privacy ran, with a node that is in the middle of another run."""
    fed = Federation(tmp_path_factory.mktemp("made"))
    fed.run(digits(train__rounds=2, privacy__mechanism="dp-sgd"))
    node = NodeFolder.create(fed.home, Settings("bank", "fed.example.org:9443"), authority=b"PEM")
    budget = Budget(node.path / "budget.db")
    for run in ("under-way", "over"):
        budget.reserve("credit", run, spend=privacy.Spend(1.0, 0.1, 10), limit=None, epsilon=privacy.epsilon)
        budget.commit(run, "credit", 1, 5)
    budget.close("over")
    for run in ("under-way", "over", "no-privacy"):
        write_atomic(private_dir(node.path / "runs" / run) / "key", b"group key of " + run.encode())
    return fed.home.path


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Home:
    return Home(Path(shutil.copytree(made, tmp_path / "home")))


@pytest.fixture
def archive(place: Home, tmp_path: Path) -> Path:
    back_up(place, tmp_path / "b.tar")
    return tmp_path / "b.tar"


def read(file: Path) -> Parts:
    with tarfile.open(file) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]


def write(file: Path, parts: Parts) -> None:
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in parts:
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))


def with_manifest(parts: Parts, change: Callable[[Manifest], Manifest]) -> Parts:
    manifest = change(Manifest.decode(parts[0][1], Path("x")))
    return [(parts[0][0], manifest.encode()), *parts[1:]]


def contents(root: Path) -> dict[str, bytes]:
    """Files but locks and what SQLite keeps beside a file."""
    files = (p for p in sorted(root.rglob("*")) if p.is_file() and not p.name.endswith(("lock", "-wal", "-shm")))
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


# ---- there and back


def test_a_restored_home_is_the_one_that_was_saved(place: Home, archive: Path, tmp_path: Path) -> None:
    found = restore(archive, Home(tmp_path / "new"))
    there = Home.open(tmp_path / "new")
    assert found.verdict is not None and found.verdict.status == 0
    with Ledger.open(place.ledger) as before, Ledger.open(there.ledger) as after:
        assert (after.size, after.root) == (before.size, before.root)
        assert found.manifest.ledger == {"origin": before.log, "size": before.size, "root": before.root.hex()}
    old, new = (Identity.load_or_create(h.coordinator, COORDINATOR) for h in (place, there))
    assert old.card == new.card
    for path in sorted(place.path.glob("parties/*")):
        again = there.path / "parties" / path.name
        assert Identity.load_or_create(path, path.name).card == Identity.load_or_create(again, path.name).card
        if path.name == "engineer":  # who submits has no data
            continue
        one, two = Budget(path / "budget.db"), Budget(again / "budget.db")
        assert one.open_runs() == two.open_runs() and one.datasets() == two.datasets() != []
        for data in one.datasets():
            spent = [b.spent(data, OWNER_DELTA, privacy.epsilon, reserved=True) for b in (one, two)]
            assert spent[0] == spent[1] > 0
    lost, new = "parties/bank/runs/under-way/key", "parties/bank/paused"
    assert set(contents(there.path)) == (set(contents(place.path)) | {new}) - {lost}


def test_a_job_runs_in_a_restored_home(archive: Path, tmp_path: Path) -> None:
    restore(archive, Home(tmp_path / "again" / "home"))
    fed = Federation(tmp_path / "again")
    size = len(fed.entries())
    fed.run(digits(train__rounds=1), run="run-2")
    assert len(fed.entries()) > size
    assert verify_ledger(fed.home.ledger).status == 0


def test_what_can_be_made_again_stays_out(place: Home, tmp_path: Path) -> None:
    out = ["mlflow.db", "artifacts/1/model", "coordinator/state.db-wal", "coordinator/flwr/x", "coordinator/logs/a.log"]
    out += ["coordinator/running.json", "parties/bank/connection.json", "parties/bank/log.txt", "parties/bank/flwr/y"]
    out += [f"coordinator/runs/run-1/{n}" for n in ("lock", "log.txt", "stop", "mlflow.jsonl", "mlflow.jsonl.state")]
    out += [
        "parties/bank/.cards.json.lock",
        "parties/bank/.node.json.0123abcd",
        "parties/bank/.budget.db.0123456789abcdef",
    ]
    kept = [
        "pass.json",
        "coordinator/superexec.secret",
        "coordinator/runs/run-1/sums/3.bin",
        "parties/bank/activity.db",
    ]
    kept += [
        "parties/bank/outputs/1/model.pt",
        "coordinator/runs/run-1/submission.json",
        "coordinator/runs/run-1/new.kind",
    ]
    for name in out + kept:
        write_atomic(place.path / name, b"x")
    saved = set(back_up(place, tmp_path / "b.tar").manifest.members)
    assert not saved & set(out) and saved >= {*kept, "version", "parties/bank/node.json", "parties/party_1/witness"}
    assert set(back_up(place, tmp_path / "c.tar", mlflow=True).manifest.members) - saved == set(out[:2])


def test_a_link_is_named_and_not_followed(place: Home, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"outside")
    (place.coordinator / "authority.key").symlink_to(tmp_path / "elsewhere")
    saved = back_up(place, tmp_path / "b.tar")
    assert saved.links == ["coordinator/authority.key"]
    assert b"outside" not in (tmp_path / "b.tar").read_bytes()


def test_files_and_folders_are_private_and_only_the_ledger_is_for_all(
    place: Home, archive: Path, tmp_path: Path
) -> None:
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    assert {info.mode for info, _ in read(archive)} == {0o600}
    old = os.umask(0o077)
    try:
        restore(archive, Home(tmp_path / "new"))
    finally:
        os.umask(old)
    for path in (tmp_path / "new", *(tmp_path / "new").rglob("*")):
        wanted = 0o700 if path.is_dir() else 0o644 if path.name.startswith(LEDGER) else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


# ---- while the home is in use


@pytest.fixture
def appending(place: Home) -> Iterator[Ledger]:
    """The home's ledger, with a thread that appends to it all the time."""
    identity, over = Identity.load_or_create(place.coordinator, COORDINATOR), threading.Event()

    def append() -> None:
        with Ledger.open(place.ledger, identity) as ledger:
            while not over.is_set():
                body = {"note": "x" * 2000}
                ledger.commit([Statement.make(identity, log=ledger.log, kind="metrics", run="", body=body)])

    thread = threading.Thread(target=append)
    thread.start()
    with Ledger.open(place.ledger) as ledger:
        yield ledger
        over.set()
        thread.join()


def test_a_backup_while_the_ledger_grows_is_one_state_of_it(place: Home, appending: Ledger, tmp_path: Path) -> None:
    for i in range(4):
        start = appending.size
        while appending.size == start:
            pass
        before = appending.size
        back_up(place, tmp_path / f"{i}.tar")
        after = appending.size
        found = restore(tmp_path / f"{i}.tar", Home(tmp_path / f"new{i}"))
        assert found.verdict is not None and found.verdict.status == 0
        assert before <= found.verdict.size <= after and found.verdict.size > start


def test_what_lies_in_the_write_ahead_log_is_in_the_backup(place: Home, tmp_path: Path) -> None:
    path = place.party("bank") / "activity.db"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE t (x)")
        db.commit()
        db.execute("INSERT INTO t VALUES (7)")
        db.commit()
        assert path.with_name("activity.db-wal").stat().st_size > 0
        back_up(place, tmp_path / "b.tar")
    restore(tmp_path / "b.tar", Home(tmp_path / "new"))
    assert list(sqlite3.connect(tmp_path / "new/parties/bank/activity.db").execute("SELECT x FROM t")) == [(7,)]


def test_no_witness_is_ahead_of_the_ledger_and_no_reply_ahead_of_its_budget(place: Home, tmp_path: Path) -> None:
    names = list(back_up(place, tmp_path / "b.tar").manifest.members)
    assert names[-1] == LEDGER
    for party in ("party_1", "party_2", "party_3"):
        replies = names.index(f"parties/{party}/runs/run-1/reply.npz")
        assert replies < names.index(f"parties/{party}/witness") < names.index(f"parties/{party}/budget.db")


def test_a_file_that_is_gone_when_its_turn_comes_is_no_failure(
    place: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    select = backup._select

    def and_end_a_run(root: Path, *, mlflow: bool) -> tuple[list[str], list[str]]:
        found = select(root, mlflow=mlflow)
        (root / "parties/bank/runs/over/key").unlink()
        return found

    monkeypatch.setattr(backup, "_select", and_end_a_run)
    back_up(place, tmp_path / "b.tar")
    restore(tmp_path / "b.tar", Home(tmp_path / "new"))
    assert not (tmp_path / "new/parties/bank/runs/over/key").exists()


# ---- backups that are not made


def test_a_backup_never_writes_over_a_file(place: Home, tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_text("mine")
    with pytest.raises(UsageError, match=r"b\.tar: there is a file already"):
        back_up(place, tmp_path / "b.tar")
    assert (tmp_path / "b.tar").read_text() == "mine"


def test_a_backup_into_the_home_no_home_and_an_empty_one_are_refused(place: Home, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lies in the home itself"):
        back_up(place, place.path / "b.tar")
    with pytest.raises(UsageError, match="no folder"):
        back_up(place, tmp_path / "nowhere" / "b.tar")
    with pytest.raises(UsageError, match="no home here"):
        back_up(Home(tmp_path / "none"), tmp_path / "b.tar")
    with pytest.raises(UsageError, match="nothing to back up"):
        back_up(Home.open(tmp_path / "empty"), tmp_path / "b.tar")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "home"]


def test_a_damaged_ledger_and_a_full_disk_leave_no_archive(
    place: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(JobFailed, match=r"no backup was made .*No space left"):
            back_up(place, tmp_path / "b.tar")
    with sqlite3.connect(place.ledger) as db:
        db.execute("UPDATE nodes SET hash = zeroblob(32)")
        db.execute("UPDATE entries SET leaf = CAST('x' AS BLOB) WHERE seq = (SELECT MAX(seq) FROM entries)")
    with pytest.raises(LedgerBroken):
        back_up(place, tmp_path / "b.tar")
    assert [p.name for p in tmp_path.iterdir()] == ["home"]


# ---- archives that somebody touched


def changed_byte(parts: Parts) -> Parts:
    return [(i, bytes([d[0] ^ 1]) + d[1:] if i.name == "coordinator/identity.key" else d) for i, d in parts]


def longer(parts: Parts) -> Parts:
    return [(i, d + b"x" if i.name == "coordinator/identity.key" else d) for i, d in parts]


def cut_short(parts: Parts) -> Parts:
    return parts[:-1]


def added(name: str, kind: bytes = tarfile.REGTYPE) -> Callable[[Parts], Parts]:
    def change(parts: Parts) -> Parts:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "../../outside"
        return [*parts, (info, b"x")]

    return change


def named(name: str) -> Callable[[Parts], Parts]:
    """Somebody who wrote a manifest, too."""

    def change(parts: Parts) -> Parts:
        old = parts[-1][0].name
        parts[-1][0].name = name
        return with_manifest(
            parts, lambda m: replace(m, members={name if k == old else k: v for k, v in m.members.items()})
        )

    return change


def as_link(parts: Parts) -> Parts:
    parts[-1][0].type, parts[-1][0].linkname = tarfile.SYMTYPE, "/etc/passwd"
    return parts


def of_home(version: str) -> Callable[[Parts], Parts]:
    return lambda parts: with_manifest(parts, lambda m: replace(m, home_version=version))


def of_format(parts: Parts) -> Parts:
    return with_manifest(parts, lambda m: replace(m, format=2))


CHANGES: dict[str, tuple[Callable[[Parts], Parts], str]] = {
    "changed byte": (changed_byte, "'coordinator/identity.key' differs from its digest"),
    "longer": (longer, "'coordinator/identity.key' differs from its digest"),
    "cut short": (cut_short, "1 members are missing, first 'ledger.db'"),
    "added": (added("coordinator/new.key"), "'coordinator/new.key' is not in its manifest"),
    "twice": (added("ledger.db"), "'ledger.db' is not in its manifest, or is there twice"),
    "up": (added("../x"), "'../x' leads out of the home"),
    "inner up": (added("parties/../../x"), "leads out of the home"),
    "absolute": (added("/tmp/x"), "'/tmp/x' leads out of the home"),
    "named up": (named("../x"), "members that lead out of the home"),
    "symlink": (added("parties/link", tarfile.SYMTYPE), "'parties/link' is a link"),
    "hard link": (added("parties/link", tarfile.LNKTYPE), "is a link"),
    "device": (added("parties/null", tarfile.CHRTYPE), "a device"),
    "fifo": (added("parties/null", tarfile.FIFOTYPE), "a device"),
    "folder": (added("parties/x", tarfile.DIRTYPE), "a folder"),
    "member as link": (as_link, "'ledger.db' is a link"),
    "other home": (of_home("7"), "of a home of version '7'; allowed: version 1"),
    "other format": (of_format, "a backup of format 2; allowed: 1"),
    "no manifest": (lambda parts: parts[1:], "not a backup"),
    "manifest of rubbish": (lambda parts: [(parts[0][0], b"[]"), *parts[1:]], "is not that of a backup"),
    "no members": (lambda parts: [], "not a backup"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_altered_archive_is_refused_and_nothing_is_left(archive: Path, tmp_path: Path, name: str) -> None:
    change, said = CHANGES[name]
    write(archive, change(read(archive)))
    with pytest.raises(UsageError, match=r"b\.tar: ") as caught:
        restore(archive, Home(tmp_path / "new"))
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.tar", "home"]


def test_bits_that_flip_on_the_way_are_refused_or_do_not_matter(archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    for at in range(7, len(whole), len(whole) // 60):
        archive.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            restore(archive, Home(tmp_path / "new"))
        except UsageError:
            assert sorted(p.name for p in tmp_path.iterdir()) == ["b.tar", "home"]
            continue
        shutil.rmtree(tmp_path / "new")  # in the padding between members: every digest held


@pytest.mark.parametrize("data", [b"", b"no tar at all", b"\x1f\x8b" + bytes(600), bytes(20480)])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "b.tar").write_bytes(data)
    for file in ("b.tar", "none.tar"):
        with pytest.raises(UsageError, match=file):
            restore(tmp_path / file, Home(tmp_path / "new"))
    assert [p.name for p in tmp_path.iterdir()] == ["b.tar"]


# ---- homes that are in the way, and crashes


@pytest.mark.parametrize("name", ["ledger.db", "coordinator/x", "parties/bank/x", "pass.json"])
def test_a_home_that_holds_something_is_left_alone(archive: Path, tmp_path: Path, name: str) -> None:
    there = Home.open(tmp_path / "new")
    write_atomic(there.path / name, b"mine")
    before = contents(there.path)
    with pytest.raises(UsageError, match=f"new: holds {name.split('/')[0]} already"):
        restore(archive, there)
    assert contents(there.path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.tar", "home", "new"]


def test_a_new_empty_home_takes_the_backup(archive: Path, tmp_path: Path) -> None:
    there = Home.open(tmp_path / "new")
    assert restore(archive, there).verdict is not None
    assert Home.open(there.path).ledger.exists()


@pytest.mark.parametrize("is_made", [False, True])
def test_a_crash_during_the_restore_leaves_no_half_home(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_made: bool
) -> None:
    if is_made:
        Home.open(tmp_path / "new")
    before = sorted(p.name for p in tmp_path.rglob("*"))

    def fail(*args: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        with pytest.raises(JobFailed, match=r"nothing was restored .*Input/output error"):
            restore(archive, Home(tmp_path / "new"))
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    if is_made:
        assert contents(tmp_path / "new") == {"version": b"1\n"}
    restore(archive, Home(tmp_path / "new"))


def test_a_kill_before_the_rename_leaves_the_home_as_it_was(archive: Path, tmp_path: Path) -> None:
    if (child := os.fork()) == 0:
        os.rename = lambda *args: os._exit(9)  # type: ignore[assignment]
        try:
            restore(archive, Home(tmp_path / "new"))
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = {p.name for p in tmp_path.iterdir()} - {"b.tar", "home"}
    assert len(left) == 1 and left.pop().startswith(".new.")
    restore(archive, Home(tmp_path / "new"))


# ---- what a restored home may do


def test_a_restored_node_takes_no_job_and_goes_on_with_no_private_run(archive: Path, tmp_path: Path) -> None:
    found = restore(archive, Home(tmp_path / "new")).aftermath
    node = NodeFolder.of(Home.open(tmp_path / "new"), "bank")
    assert node.paused and found.paused == {"bank": ["under-way"]}
    keys = sorted(p.parent.name for p in node.path.glob("runs/*/key"))
    assert keys == ["no-privacy", "over"]  # the run that holds a reservation could draw a round's noise again
    assert Budget(node.path / "budget.db").open_runs() == ("under-way",)
    node.pause(False)
    assert not node.paused


def test_the_warnings_say_what_is_missing(archive: Path, place: Home, tmp_path: Path) -> None:
    write_atomic(place.coordinator / "coordinator.json", b"{}")
    back_up(place, tmp_path / "c.tar")
    found = restore(tmp_path / "c.tar", Home(tmp_path / "new")).aftermath
    text = "\n".join(found.warnings)
    assert all("\n" not in line for line in found.warnings)
    for said in ("as a fork, by design", "people revoked", "entries of kind update", "co-signs from there on"):
        assert said in text
    assert "node bank: paused" in text and "under-way" in text and "fedseal node resume --name bank" in text
    bank = next(p for p in found.privacy if p["party"] == "bank")
    run = privacy.Spend(1.0, 0.1, 5)
    spent, held = (privacy.round_up(privacy.epsilon(s, OWNER_DELTA)) for s in ([run, run], [run, run, run]))
    assert bank == {"party": "bank", "dataset": "credit", "spent": spent, "held": held}
    assert f"party bank, data 'credit': ε spent {spent}" in text


def test_a_budget_that_cannot_be_read_stops_every_run_of_its_node(place: Home, tmp_path: Path) -> None:
    (place.party("bank") / "budget.db").write_bytes(b"rubbish")
    back_up(place, tmp_path / "b.tar")
    found = restore(tmp_path / "b.tar", Home(tmp_path / "new")).aftermath
    assert found.paused == {"bank": ["no-privacy", "over", "under-way"]}
    assert any("party bank: what it spent cannot be read" in line for line in found.warnings)


def test_a_broken_ledger_is_restored_and_called_broken(place: Home, tmp_path: Path) -> None:
    with sqlite3.connect(place.ledger) as db:  # the last checkpoint holds: only the auditor's full pass finds it
        (line,) = db.execute("SELECT line FROM cosignatures LIMIT 1").fetchone()
        db.execute("UPDATE cosignatures SET line = ?", (line[:-20] + "A" * 16 + line[-4:],))
    back_up(place, tmp_path / "b.tar")
    found = restore(tmp_path / "b.tar", Home(tmp_path / "new"))
    assert found.verdict is not None and found.verdict.status == 1


def test_the_backup_of_an_older_home_is_migrated_when_it_is_restored(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "VERSION", "2")
    with pytest.raises(UsageError, match="of a home of version '1'; allowed: version 2"):
        restore(archive, Home(tmp_path / "new"))
    monkeypatch.setitem(home.MIGRATIONS, "1", lambda path: write_atomic(path / "migrated", b""))
    restore(archive, Home(tmp_path / "new"))
    assert (tmp_path / "new" / "migrated").exists() and Home(tmp_path / "new").version() == "2"


def test_manifests_decode_to_what_was_encoded(archive: Path) -> None:
    parts = read(archive)
    assert parts[0][0].name == MANIFEST
    manifest = Manifest.decode(parts[0][1], archive)
    assert Manifest.decode(manifest.encode(), archive) == manifest
    assert list(manifest.members) == [info.name for info, _ in parts[1:]]
    assert {"version", "coordinator/identity.key", *(f"parties/bank/{n}" for n in SECRETS[:1] + SECRETS[2:])} <= set(
        manifest.members
    )
    for time in (-1, 1 << 36, "1", 1.5, None, True):
        with pytest.raises(UsageError, match="is not that of a backup"):
            Manifest.decode(replace(manifest, time=time).encode(), archive)
    for bad in (b"", b"{}", b'{"format": 1}', b'{"format": 1, "members": {"a": 3}}', b"[" * 100000):
        with pytest.raises(FedsealError):
            Manifest.decode(bad, archive)
