"""Where everything lies: `FEDSEAL_HOME`, its layout and its version.

::

    mlflow.db  artifacts/        what people browse
    ledger.db                    what auditors check
    coordinator/                 the coordinator's key, its pinned cards, one folder a run
    parties/<name>/              that party's key, witness state, budget, runs; nothing else reads it
"""

from __future__ import annotations

import os
from pathlib import Path

from fl_core.errors import UsageError
from fl_core.files import private_dir, write_atomic

VERSION = "1"


class Home:
    """The folder of one installation."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path | str | None = None) -> Home:
        """The home at `path`, or `FEDSEAL_HOME`, or `./.fedseal`; made when it is not there.

        Raises `UsageError` when another version made it or it cannot be written.
        """
        home = cls(Path(path or os.environ.get("FEDSEAL_HOME") or ".fedseal").absolute())
        marker = home.path / "version"
        try:
            private_dir(home.path)
            if not marker.exists():
                if home.ledger.exists():
                    raise UsageError(f"{home.path}: a home without a version file; allowed: version {VERSION}")
                write_atomic(marker, VERSION.encode() + b"\n")
            found = marker.read_text(encoding="utf-8").strip()[:40]
        except OSError as error:
            raise UsageError(f"FEDSEAL_HOME {home.path}: cannot be used ({error.strerror})") from None
        if found != VERSION:
            raise UsageError(f"{marker}: a home of version {found!r}; allowed: version {VERSION}")
        return home

    @property
    def ledger(self) -> Path:
        """The ledger's SQLite file."""
        return self.path / "ledger.db"

    @property
    def coordinator(self) -> Path:
        """The coordinator's folder."""
        return self.path / "coordinator"

    @property
    def runs(self) -> Path:
        """One folder a run."""
        return self.coordinator / "runs"

    def party(self, name: str) -> Path:
        """A party's own folder."""
        return self.path / "parties" / name
