"""A home in one file: all of it that cannot be made again, copied while coordinator, nodes and runs go on.

The archive is a plain tar (0600).  Its first member, `manifest.json`, says format, version of the home, time, size and
SHA-256 of every other member, and where the ledger stood.  It holds private keys in clear, also the group key of a run
that goes on: whoever reads it is every party and coordinator of that home.

Everything of the home is in it but what `_MADE_AGAIN` names: Flower's database and home, logs, locks, temporary files,
what tells of running processes, and MLflow's database, artifacts and spools, which are a view of the ledger (`mlflow`
brings database and artifacts in).  Leaving out by name, not taking in, is deliberate: a file that nobody thought of
is saved.  Links are not followed; they are listed for the caller to say.

SQLite files are copied by SQLite's online backup, each a state that was committed, its write-ahead log included.
The order makes a copy of files that change meanwhile safe:

==================  ==================================================================================================
runs of parties     first: older than what the same party's witness and budget say
witnesses           then: behind the ledger, never ahead of it, so no restored party takes its own ledger for a fork
budgets, grants     then: a round is in the budget before its update leaves, so the copy overstates, never understates
coordinator, rest   then: a register may lack what the ledger already tells, never the other way round
ledger.db           last
==================  ==================================================================================================

A run that goes on during the backup may not be resumed from it: its parties are older than the ledger, and say so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import tarfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from fl_core.errors import JobFailed, UsageError
from fl_core.home import Home
from fl_core.trust import database
from fl_core.trust.identity import is_hex
from fl_core.trust.ledger import Ledger
from fl_core.trust.once import temporary_name

FORMAT = 1
MANIFEST, LEDGER = "manifest.json", "ledger.db"

_MADE_AGAIN = re.compile(
    r"""
    (coordinator|parties/[^/]+)/(flwr|logs|state\.db.*|running\.json|connection\.json|log\.txt)
    | coordinator/runs/[^/]+/(log\.txt|stop|mlflow\.jsonl.*)
    | (.*/)?(lock|[^/]+\.lock|[^/]+-(wal|shm|journal))
    | (.*/)?\.[^/]+\.([0-9a-f]{8}|[0-9a-f]{16})         # temporary files of write_atomic and temporary_name
    """,
    re.VERBOSE,
)
_MLFLOW = re.compile(r"mlflow\.db|artifacts")
_ORDER = (
    "parties/[^/]+/(?!witness|budget|grants).*", "parties/[^/]+/witness.*", "parties/[^/]+/(budget|grants).*",
    f"(?!{LEDGER}).*",
)  # fmt: skip
_SQLITE = b"SQLite format 3\0"
_LATEST = 1 << 36  # seconds: the year 4147


@dataclasses.dataclass(frozen=True)
class Member:
    """One file of the archive."""

    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What an archive says of itself.

    Attributes
    ----------
    home_version : layout of the home.
    time : seconds since 1970 at which the copying began.
    members : by path in the home, in the order in which they were copied.
    ledger : `origin`, `size` and `root` (hex) of the ledger; None where there is none.
    """

    home_version: str
    time: int
    members: dict[str, Member]
    ledger: dict[str, Any] | None
    format: int = FORMAT

    def encode(self) -> bytes:
        """As stored."""
        return json.dumps(dataclasses.asdict(self), indent=1).encode()

    @classmethod
    def decode(cls, data: bytes, where: Path) -> Manifest:
        """As read.  Raises `UsageError`."""
        try:
            table = json.loads(data)
            if table["format"] != FORMAT:
                raise UsageError(f"{where}: a backup of format {table['format']!r:.40}; allowed: {FORMAT}")
            members = {str(name): Member(**held) for name, held in table["members"].items()}
            found = cls(**{**table, "home_version": str(table["home_version"]), "members": members})
            if not all(type(m.size) is int and m.size >= 0 and is_hex(m.sha256, 32) for m in members.values()):
                raise ValueError
            if type(found.time) is not int or not 0 <= found.time < _LATEST:
                raise ValueError
            return found
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise UsageError(f"{where}: its {MANIFEST} is not that of a backup") from None


@dataclasses.dataclass(frozen=True)
class Saved:
    """What `back_up` did; `links` are the paths in the home that it did not follow."""

    manifest: Manifest
    size: int
    links: list[str]


def back_up(home: Home, file: Path, *, mlflow: bool = False) -> Saved:
    """Copy what cannot be made again of `home` into the new archive `file`; needs twice its size beside it meanwhile.

    Raises
    ------
    UsageError : no home, nothing in it, `file` is there already or lies in the home.
    LedgerBroken : the ledger's tree does not have the root that was signed. JobFailed : the disk refuses.
    """
    work = temporary_name(file.absolute())
    try:
        version = _check(home, file)
        work.mkdir(mode=0o700)
        began = int(time.time())
        names, links = _select(home.path, mlflow=mlflow)
        copied = [name for name in names if _copy(home.path / name, work / "home" / name)]
        if set(copied) <= {"version"}:
            raise UsageError(f"{home.path}: holds no ledger, coordinator or party; there is nothing to back up")
        ledger = _ledger(work / "home" / LEDGER) if LEDGER in copied else None
        manifest = Manifest(version, began, {name: _member(work / "home" / name) for name in copied}, ledger)
        _write(work / "tar", work / "home", manifest)
        size = (work / "tar").stat().st_size
        os.replace(work / "tar", file)
        sync(file.absolute().parent)
    except OSError as error:
        raise JobFailed(f"{file}: no backup was made ({error.filename or file}: {error.strerror})") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Saved(manifest, size, links)


def _check(home: Home, file: Path) -> str:
    """The home's version."""
    if not (home.path / "version").is_file():
        raise UsageError(f"{home.path}: no home here; allowed: --home or FEDSEAL_HOME with a fedseal home")
    if os.path.lexists(file):
        raise UsageError(f"{file}: there is a file already; allowed: a new one")
    if file.resolve().is_relative_to(home.path.resolve()):
        raise UsageError(f"{file}: lies in the home itself; allowed: a place outside {home.path}")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"{file}: no folder {file.absolute().parent}; allowed: a file in a folder that is there")
    return home.version()


def _select(root: Path, *, mlflow: bool) -> tuple[list[str], list[str]]:
    """Files to copy, in the order of copying, and links that are not followed."""
    names, links = [], []
    folders = [root]
    while folders:
        for entry in os.scandir(folders.pop()):
            name = Path(entry.path).relative_to(root).as_posix()
            if _MADE_AGAIN.fullmatch(name) or (not mlflow and _MLFLOW.fullmatch(name)):
                continue
            if entry.is_symlink():
                links.append(name)
            elif entry.is_dir():
                folders.append(Path(entry.path))
            elif entry.is_file():
                names.append(name)
    return sorted(names, key=lambda name: (_rank(name), name)), sorted(links)


def _rank(name: str) -> int:
    # The ledger comes after all that points into it.  A witness or a register copied after it could know of entries
    # that the copy lacks; restored together, the party would refuse its own coordinator's ledger as cut.
    return next((i for i, pattern in enumerate(_ORDER) if re.fullmatch(pattern, name)), len(_ORDER))


def _copy(source: Path, target: Path) -> bool:
    """Copy one file as it is at one moment; False where it is gone by now (the key of a run that has just ended)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with source.open("rb") as file:
            if file.peek(len(_SQLITE)).startswith(_SQLITE):
                _copy_database(source, target)
            else:
                with target.open("wb") as copy:
                    shutil.copyfileobj(file, copy)
    except FileNotFoundError:
        return False
    return True


def _copy_database(source: Path, target: Path) -> None:
    with (
        database.storage_errors(source),
        closing(sqlite3.connect(f"file:{quote(str(source))}?mode=ro", uri=True, timeout=database.BUSY_SECONDS)) as live,
        closing(sqlite3.connect(target)) as copy,
    ):
        live.backup(copy)  # all pages in one read transaction: one state, whatever is written meanwhile


def _ledger(path: Path) -> dict[str, Any]:
    with Ledger.open(path) as ledger:
        return {"origin": ledger.log, "size": ledger.size, "root": ledger.root.hex()}


def _member(path: Path) -> Member:
    with path.open("rb") as file:
        return Member(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _write(path: Path, root: Path, manifest: Manifest) -> None:
    """Write the archive and have it on the disk."""
    data = manifest.encode()
    with (
        os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as out,
        tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        _add(tar, MANIFEST, io.BytesIO(data), len(data), manifest.time)
        for name, member in manifest.members.items():
            with (root / name).open("rb") as file:
                _add(tar, name, file, member.size, manifest.time)
    sync(path)


def _add(tar: tarfile.TarFile, name: str, file: BinaryIO, size: int, when: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, when, 0o600
    tar.addfile(info, file)


def sync(path: Path) -> None:
    """Have a file's or a folder's content on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
