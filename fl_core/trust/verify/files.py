"""The files of an audit pack: fixed names, regular files, bounded sizes, lines that end. Nothing else is opened."""

from __future__ import annotations

import hashlib
import os
import stat
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Protocol

from .claims import shown
from .format import Broken, NotALedger

ENTRIES, PROOFS, CHECKPOINT, POLICY = "entries.jsonl", "proofs.jsonl", "checkpoint", "policy.json"
MLFLOW, ARTIFACTS, README, MANIFEST = "mlflow.json", "artifacts.json", "README.txt", "manifest.json"
WITNESSES = "witnesses.json"
REQUIRED = frozenset({ENTRIES, CHECKPOINT, POLICY, README, MANIFEST})
LIMITS = {
    ENTRIES: 16 << 30, PROOFS: 16 << 30, CHECKPOINT: 1 << 20, POLICY: 1 << 20,
    MLFLOW: 16 << 20, ARTIFACTS: 1 << 20, README: 1 << 16, MANIFEST: 1 << 16, WITNESSES: 1 << 20,
}  # fmt: skip

_MAX_FILES = 100  # looked at in a folder
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_CLOEXEC"))


class Files(Protocol):
    """A pack's files."""

    def sizes(self) -> dict[str, int]:
        """Return the files' sizes by name; raises Broken for anything that is not a file of a pack."""

    def open(self, name: str) -> BinaryIO:
        """Open a file that is there, for reading."""


class Folder:
    """A pack's files in a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def sizes(self) -> dict[str, int]:
        """See `Files`.  Raises NotALedger for a folder that holds no file of a pack."""
        sizes: dict[str, int] = {}
        strange = ""
        with os.scandir(self._path) as found:
            for item in islice(found, _MAX_FILES):
                if item.name not in LIMITS:
                    strange = item.name
                    continue
                status = item.stat(follow_symlinks=False)
                if not stat.S_ISREG(status.st_mode):
                    raise Broken(f"{item.name} is not a regular file")
                sizes[item.name] = status.st_size
        if not sizes:
            raise NotALedger(f"{self._path}: not an audit pack")
        if strange:
            raise Broken(f"a file that no pack has: {shown(strange)}")
        return sizes

    def open(self, name: str) -> BinaryIO:
        """See `Files`."""
        try:
            file = os.fdopen(os.open(self._path / name, _FLAGS), "rb")
        except OSError as error:
            raise Broken(f"{name} cannot be read ({error.strerror})") from None
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise Broken(f"{name} is not a regular file")
        return file


class Reader:
    """Reads one file of a pack once, and hashes what it reads."""

    def __init__(self, files: Files, name: str) -> None:
        self._name, self._file = name, files.open(name)
        self._hash, self.size = hashlib.sha256(), 0

    def line(self, limit: int) -> bytes | None:
        """Return the next line without its newline, None at the end; raises Broken."""
        return self._take(self._file.readline(limit + 2), limit + 1, whole=True)

    def rest(self) -> bytes:
        """Return all that is left; raises Broken."""
        limit = LIMITS[self._name]
        return self._take(self._file.read(limit + 1), limit, whole=False) or b""

    def _take(self, data: bytes, limit: int, *, whole: bool) -> bytes | None:
        self.size += len(data)
        if len(data) > limit or self.size > LIMITS[self._name]:
            raise Broken(f"{self._name}: more than {limit if whole else LIMITS[self._name]} bytes")
        self._hash.update(data)
        if not whole or not data:
            return data or None
        if not data.endswith(b"\n"):
            raise Broken(f"{self._name}: the last line is cut")
        return data[:-1]

    def digest(self) -> dict[str, object]:
        """Return the SHA-256 and the size of what was read."""
        return {"sha256": self._hash.hexdigest(), "size": self.size}

    def close(self) -> None:
        """Close the file."""
        self._file.close()
