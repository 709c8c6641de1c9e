"""The small files beside an owner's grants: what it published, which orders were taken, which runs have begun.

A file that is damaged opens nothing: who reads it is refused, and no data are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl_core.errors import BadMessage, UsageError
from fl_core.files import locked, private_dir, write_atomic
from fl_core.trust import canonical
from fl_core.trust.entry import Statement
from fl_core.trust.fields import check_hex, check_whole
from fl_core.trust.once import create_once
from fl_core.trust.profile import Profile
from fl_core.trust.roles import Role, read_roles

MAX_CLAIMS = 2048  # cards whose roles are kept; beyond that the newest are


@dataclass(frozen=True)
class Claim:
    """What the holder of a card said of its roles: sorted values of `Role`, and its clock, milliseconds since 1970."""

    roles: tuple[str, ...]
    time: int

    @property
    def held(self) -> frozenset[Role]:
        """The roles."""
        return read_roles(self.roles)


@dataclass
class Held:
    """What `owner.json` holds.

    Attributes
    ----------
    datasets
        Own `dataset` statements, in the order of signing.
    places
        Where the data of which name lie (`clients.consent.data.place_of`).
    grants
        Grants that somebody decided on: id → dataset.
    revoked_keys
        Fingerprints of cards that count no more.
    claims
        Roles that others claim, as their profiles were shown: by log, then by the card's fingerprint.
    """

    datasets: list[Statement] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    grants: dict[str, str] = field(default_factory=dict)
    revoked_keys: set[str] = field(default_factory=set)
    claims: dict[str, dict[str, Claim]] = field(default_factory=dict)

    def news(self, profile: Profile, log: str) -> bool:
        """Whether a profile says something that is not known and would be kept."""
        known = self.claims.get(log, {})
        before = known.get(profile.card)
        if profile.card in self.revoked_keys or (before is not None and profile.time <= before.time):
            return False
        full = before is None and len(known) >= MAX_CLAIMS
        return not full or profile.time > min(claim.time for claim in known.values())

    def take(self, profile: Profile, log: str) -> None:
        """Keep what is `news`; where there is no room, the oldest goes."""
        known = self.claims.setdefault(log, {})
        known[profile.card] = Claim(profile.roles, profile.time)
        if len(known) > MAX_CLAIMS:
            del known[min(known, key=lambda card: known[card].time)]

    def encode(self) -> bytes:
        """As stored."""
        return canonical.encode(
            {
                "datasets": [statement.to_dict() for statement in self.datasets],
                "places": self.places,
                "grants": list(map(list, self.grants.items())),  # canonical JSON sorts a table
                "revoked_keys": sorted(self.revoked_keys),
                "claims": {
                    log: {card: [claim.time, *map(str, claim.roles)] for card, claim in known.items()}
                    for log, known in self.claims.items()
                },
            }
        )

    @classmethod
    def decode(cls, data: bytes, where: Path) -> Held:
        """As read.  Raises `UsageError` for a damaged file."""
        try:
            table = canonical.decode(data)
            datasets = [Statement.from_dict(item) for item in table["datasets"]]
            claims = {
                log: {card: _claim(card, *held) for card, held in known.items()}
                for log, known in table.get("claims", {}).items()  # a file from before has none
            }
            return cls(datasets, table["places"], dict(table["grants"]), set(table["revoked_keys"]), claims)
        except (BadMessage, KeyError, TypeError, ValueError, AttributeError):
            raise UsageError(f"{where}: damaged; allowed: the file of a backup") from None


def _claim(card: str, time: Any, *roles: Any) -> Claim:
    """A claim as stored.  Raises `BadMessage`."""
    check_hex(card, "owner: card")
    return Claim(tuple(sorted(read_roles(roles))), check_whole(time, "owner: time"))


class ConsentFolder:
    """The folder; nothing is made before something is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def _owner(self) -> Path:
        return self.path / "owner.json"

    def read(self) -> Held:
        """What is kept."""
        try:
            return Held.decode(self._owner.read_bytes(), self._owner)
        except FileNotFoundError:
            return Held()

    @contextmanager
    def change(self) -> Iterator[Held]:
        """What is kept, to be changed; it is stored when the block has ended without an error."""
        private_dir(self.path)
        with locked(self.path / ".owner.lock"):
            held = self.read()
            yield held
            write_atomic(self._owner, held.encode())

    # ---- orders

    def run_of(self, order: str) -> str | None:
        """The run that an order was taken for, if any."""
        try:
            return (self.path / "orders" / order).read_text(encoding="ascii")
        except FileNotFoundError:
            return None

    def take(self, order: str, run: str) -> bool:
        """Take an order for a run, durably; False where another run has it."""
        path = private_dir(self.path / "orders") / order
        return create_once(path, run.encode("ascii")) or self.run_of(order) == run

    # ---- runs

    def mark(self, run: str) -> None:
        """Note, durably, that a run has begun."""
        path = self._mark(run)
        if not path.exists():
            create_once(private_dir(path.parent) / path.name, b"")

    def marked(self, run: str) -> bool:
        """Whether it has."""
        return self._mark(run).exists()

    def unmark(self, run: str) -> None:
        """Forget it."""
        self._mark(run).unlink(missing_ok=True)

    def _mark(self, run: str) -> Path:
        return self.path / "opened" / hashlib.sha256(run.encode()).hexdigest()[:32]
