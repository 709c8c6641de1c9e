"""Files that come into being once: of several racing processes one wins; a part is never seen."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def create_once(path: Path, data: bytes, *, mode: int = 0o600) -> bool:
    """Create `path` with `data`, durably, unless it exists; True for the one process that did."""
    temporary = temporary_name(path)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, mode)  # whatever the umask says
            file.write(data)
            file.flush()
            os.fsync(handle)
        return link_once(temporary, path)
    finally:
        temporary.unlink()


def link_once(temporary: Path, path: Path) -> bool:
    """Give the finished `temporary` the name `path`, durably, unless that is taken; True if it did."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return True


def temporary_name(path: Path) -> Path:
    """Return a fresh hidden name beside `path`, on the same file system."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")
