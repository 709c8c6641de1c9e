"""A home put back from an archive of `fl_core.backup`: all of it, or nothing.

The archive is unpacked into a hidden folder beside the home and compared there with its manifest, member by member;
only a complete one gets the home's name, by one rename.  Killed before, the hidden folder is all there is.  Nothing
outside that folder is written, whatever names the archive holds, and only plain files are taken.  The digests find
damage, not malice: an archive is as trusted as the keys in it.

What it means that a restored home is older than the world around it is `fl_core.aftermath`'s.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fl_core import aftermath
from fl_core import home as homes
from fl_core.aftermath import Aftermath
from fl_core.backup import LEDGER, MANIFEST, Manifest, sync
from fl_core.errors import JobFailed, UsageError
from fl_core.files import write_atomic
from fl_core.home import Home
from fl_core.trust.once import temporary_name
from fl_core.trust.verify import NotALedger, Report, verify_ledger

_MOST_MANIFEST = 64 << 20
_CHUNK = 1 << 20
_OF_NO_CONTENT = {"version", ".version.lock"}


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `restore` did.

    Attributes
    ----------
    manifest : of the archive.
    verdict : on the restored ledger; None where there is none.
    aftermath : what it means that the backup is older than the world.
    """

    manifest: Manifest
    verdict: Report | None
    aftermath: Aftermath


def restore(file: Path, home: Home) -> Restored:
    """Put `home` back from `file`.

    Raises
    ------
    UsageError : the home holds something; the archive is none, damaged, or of a version that is not known.
    JobFailed : the disk refuses.
    """
    target = home.path.resolve()
    _refuse_occupied(home.path)
    staging = temporary_name(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        staging.mkdir(mode=0o700)
        with _readable(file), tarfile.open(file, "r:") as tar:
            manifest = _unpack(tar, staging, file)
        Home.open(staging)  # an older home is migrated before it has a name
        paused = {
            node.parent.name: aftermath.pause(node.parent) for node in sorted(staging.glob("parties/*/node.json"))
        }
        for path in (staging, *staging.rglob("*")):
            sync(path)
        _place(staging, target)
    except OSError as error:
        raise JobFailed(f"{home.path}: nothing was restored ({error.filename or file}: {error.strerror})") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Restored(manifest, _verdict(home), aftermath.look(home, manifest.time, paused))


def _refuse_occupied(path: Path) -> None:
    """Refuse a home with anything in it but its version, and one that no rename can put in place."""
    try:
        held = {*os.listdir(path)} - _OF_NO_CONTENT
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{path}: cannot be a home ({error.strerror})") from None
    if held:
        first = next((n for n in (LEDGER, "coordinator", "parties") if n in held), min(held))
        raise UsageError(f"{path}: holds {first} already; allowed: a home that is not there yet, or is empty")
    if os.path.ismount(path):
        raise UsageError(f"{path}: a mount point, which no rename can put in place; allowed: a folder below it")


# ---- the archive


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn what a damaged or unreadable archive raises into one line."""
    if not file.is_file():
        raise UsageError(f"{file}: no such file; allowed: what fedseal backup wrote")
    try:
        yield
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise UsageError(f"{file}: not a backup, or damaged ({error})") from None


def _unpack(tar: tarfile.TarFile, staging: Path, file: Path) -> Manifest:
    """Put every member below `staging`; raises `UsageError` unless they are those of the manifest, to the byte."""
    manifest = _manifest(tar, file)
    left = dict(manifest.members)
    while (info := tar.next()) is not None:
        shown = f"{file}: member {info.name!r:.80}"
        if not _is_plain(info.name):
            raise UsageError(f"{shown} leads out of the home; allowed: relative paths without '..'")
        if not info.isreg() or info.issparse():
            raise UsageError(f"{shown} is a link, a device or a folder; allowed: plain files")
        member = left.pop(info.name, None)
        if member is None:
            raise UsageError(f"{shown} is not in its manifest, or is there twice; allowed: what the manifest names")
        source = tar.extractfile(info)
        assert source is not None  # a plain file
        if info.size != member.size or _put(source, staging, info.name) != member.sha256:
            raise UsageError(f"{shown} differs from its digest in the manifest; the backup is damaged or altered")
    if left:
        raise UsageError(f"{file}: {len(left)} members are missing, first {min(left)!r:.80}; the backup is cut short")
    if (staging / "version").read_text(encoding="utf-8").strip() != manifest.home_version:
        raise UsageError(f"{file}: its version file does not say {manifest.home_version!r:.40}, as its manifest does")
    return manifest


def _manifest(tar: tarfile.TarFile, file: Path) -> Manifest:
    info = tar.next()
    if info is None or info.name != MANIFEST or not info.isreg() or info.size > _MOST_MANIFEST:
        raise UsageError(f"{file}: not a backup; allowed: what fedseal backup wrote")
    source = tar.extractfile(info)
    assert source is not None
    manifest = Manifest.decode(source.read(), file)
    if manifest.home_version not in (homes.VERSION, *homes.MIGRATIONS):
        raise UsageError(
            f"{file}: of a home of version {manifest.home_version!r:.40}; allowed: version {homes.VERSION}"
        )
    if "version" not in manifest.members or not all(map(_is_plain, manifest.members)):
        raise UsageError(f"{file}: its manifest names no version file, or members that lead out of the home")
    return manifest


def _is_plain(name: str) -> bool:
    """Whether a member's name stays below the folder it is put in."""
    return "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


def _put(source: IO[bytes], staging: Path, name: str) -> str:
    """Write a member, 0600 in folders of 0700, and return its SHA-256."""
    path = staging / name
    for folder in reversed(path.relative_to(staging).parents):
        (staging / folder).mkdir(mode=0o700, exist_ok=True)
    digest = hashlib.sha256()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as out:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            out.write(chunk)
    if name == LEDGER:
        path.chmod(0o644)  # as it was: everybody may check it
    return digest.hexdigest()


def _place(staging: Path, target: Path) -> None:
    """Give the finished folder the home's name; a home of no content makes room, and is as before if that fails."""
    marker = target / "version"
    held = marker.read_bytes() if marker.exists() else None
    try:
        for name in _OF_NO_CONTENT:
            (target / name).unlink(missing_ok=True)
        os.rename(staging, target)
    except OSError:
        if held is not None:
            write_atomic(marker, held)
        raise
    sync(target.parent)


def _verdict(home: Home) -> Report | None:
    if not home.ledger_file.exists():
        return None
    try:
        return verify_ledger(home.ledger_file)
    except NotALedger as error:
        return Report(status=1, reason=str(error))
