"""Where everything lies: `FEDSEAL_HOME`, its layout and its version.

::

    mlflow.db  artifacts/        what people browse
    ledger.db                    what auditors check; with FEDSEAL_LEDGER=postgresql://… it is there instead
    coordinator/                 the coordinator's key, its pinned cards, one folder a run
    parties/<name>/              that party's key, witness state, budget, runs; nothing else reads it
    version                      of this layout; an older home is brought up to date when it is opened
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from fl_core.errors import UsageError
from fl_core.files import locked, private_dir, write_atomic
from fl_core.trust.postgres_url import Place, place_of_home

VERSION = "1"

MIGRATIONS: dict[str, Callable[[Path], None]] = {}
"""From a version, a whole number, to what brings a home's folder to the next one; none was needed yet.  A step may be
cut short and is then run again from its start."""


class Home:
    """The folder of one installation."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def at(cls, path: Path | str | None = None) -> Home:
        """The home at `path`, or `FEDSEAL_HOME`, or `./.fedseal`; nothing is made, read or checked."""
        return cls(Path(path or os.environ.get("FEDSEAL_HOME") or ".fedseal").absolute())

    @classmethod
    def open(cls, path: Path | str | None = None) -> Home:
        """The home at `path`, as `at` says; made when it is not there, migrated when an older version made it.

        Raises `UsageError` when a version that is not known made it or it cannot be written.
        """
        home = cls.at(path)
        try:
            private_dir(home.path)
            if not home._marker.exists():
                if home.ledger_file.exists():
                    raise UsageError(f"{home.path}: a home without a version file; allowed: version {VERSION}")
                write_atomic(home._marker, VERSION.encode() + b"\n")
            if home.version() != VERSION:
                home._migrate()
        except OSError as error:
            raise UsageError(f"FEDSEAL_HOME {home.path}: cannot be used ({error.strerror})") from None
        return home

    def version(self) -> str:
        """What its version file says.  Raises `UsageError` unless it is this version or one that can be migrated."""
        found = self._marker.read_text(encoding="utf-8", errors="replace").strip()[:40]
        if found == VERSION or found in MIGRATIONS:
            return found
        is_newer = found.isdecimal() and int(found) > int(VERSION)
        hint = "; a newer fedseal made it: upgrade fedseal" if is_newer else ""
        raise UsageError(f"{self._marker}: a home of version {found!r}; allowed: version {VERSION}{hint}")

    def _migrate(self) -> None:
        """Step by step to this version; the version file comes after what it speaks of, so a crash repeats a step."""
        with locked(self.path / ".version.lock"):
            while (found := self.version()) != VERSION:  # read again: another process may have been faster
                MIGRATIONS[found](self.path)
                write_atomic(self._marker, f"{int(found) + 1}\n".encode())

    @property
    def _marker(self) -> Path:
        return self.path / "version"

    @property
    def ledger(self) -> Place:
        """The ledger: where `FEDSEAL_LEDGER` says, else `ledger_file`.

        Raises `UsageError` where the variable is no URL of PostgreSQL, or both are there.
        """
        return place_of_home(self.ledger_file)

    @property
    def ledger_file(self) -> Path:
        """The ledger's SQLite file."""
        return self.path / "ledger.db"

    @property
    def witnesses(self) -> Path:
        """The policy of outside witnesses, where there is one."""
        return self.path / "witnesses.json"

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
