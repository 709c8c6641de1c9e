"""A node's folder, `parties/<name>` of its home: keys, the owner's decisions, and what the node did.

::

    node.json        coordinator, bound data, limits (0600: a URL may hold a password)
    authority.pem    the coordinator's authority, pinned when the node was made
    flower.key       proves to the coordinator's SuperLink which node this is
    runtime.secret   between the node's own two processes
    paused           there while the owner takes no new jobs
    connection.json  when the coordinator answered last
    activity.db      a line a run
    outputs/<run>/   what this party got from a run
    logs/            of the node's processes; the party's own log is log.txt
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from clients.consent.decision import Consent
from clients.own_profile import check_contact
from clients.part import Line
from clients.policy import ASK, CONSENTS, KINDS, STANDING, Policy
from fl_core.errors import UsageError
from fl_core.files import private_dir, write_atomic
from fl_core.home import Home
from fl_core.messages import COORDINATOR
from fl_core.trust import canonical
from fl_core.trust.checkpoint import log_id
from fl_core.trust.federation import host_port
from fl_core.trust.identity import CardBook, Identity
from fl_core.trust.node_card import NodeCard
from fl_core.urls import without_password

if TYPE_CHECKING:
    from clients.sql_source import SqlSource

VERSION = 1


@dataclasses.dataclass(frozen=True, repr=False)
class Source:
    """Where data of one name lie: an absolute path, or a SQLAlchemy URL and a query."""

    place: str
    query: str | None = None

    def __repr__(self) -> str:
        return f"Source(place={self.shown!r}, query={self.query!r})"

    @property
    def shown(self) -> str:
        """The place as people may see it: without a password."""
        return self.place if self.query is None else without_password(self.place)

    def open(self) -> Path | SqlSource:
        """What the reader of data takes."""
        if self.query is None:
            return Path(self.place)
        from clients.sql_source import SqlSource

        return SqlSource(self.place, self.query)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `node.json` holds."""

    name: str
    coordinator: str
    sources: dict[str, Source] = dataclasses.field(default_factory=dict)
    limits: dict[str, float] = dataclasses.field(default_factory=dict)
    kinds: tuple[str, ...] = Policy.kinds
    code: tuple[str, ...] = ()
    refuse_unsafe: bool = False
    psi_protocol: str = "any"
    consent: str = STANDING
    contact: str = ""
    version: int = VERSION

    def encode(self) -> bytes:
        """As stored."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False).encode()

    @classmethod
    def decode(cls, data: bytes, where: Path) -> Settings:
        """As read; all keys must be there, since what a missing one allows is everything.  Raises `UsageError`."""
        try:
            table = json.loads(data)
        except (ValueError, RecursionError):
            table = None
        if not isinstance(table, dict):
            raise UsageError(f"{where}: not a node's settings; allowed: a JSON object")
        if table.get("version") != VERSION:
            raise UsageError(f"{where}: a node of version {table.get('version')!r}; allowed: {VERSION}")
        table.setdefault("consent", ASK)  # a node made before there were grants asks for one
        table.setdefault("contact", "")  # what a missing one allows is nothing
        known = [field.name for field in dataclasses.fields(cls)]
        for key in [key for key in table if key not in known]:
            raise UsageError(f"{where}: not a node's settings: key {key!r:.80}; allowed: {', '.join(known)}")
        for key, (allowed, holds) in _ALLOWED.items():
            if key not in table or not holds(table[key]):
                problem = "is wrong" if key in table else "is missing"
                raise UsageError(f"{where}: not a node's settings: {key} {problem}; allowed: {allowed}")
        sources = {name: Source(**held) for name, held in table["sources"].items()}
        return cls(**{**table, "sources": sources, "kinds": tuple(table["kinds"]), "code": tuple(table["code"])})


def _is_address(value: Any) -> bool:
    try:
        return bool(host_port(value))
    except ValueError:
        return False


def _are_sources(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(held, dict)
        and set(held) == {"place", "query"}
        and isinstance(held["place"], str)
        and isinstance(held["query"], str | None)
        for held in value.values()
    )


def _are_limits(value: Any) -> bool:
    return isinstance(value, dict) and all(
        type(limit) in (int, float) and 0 < limit <= sys.float_info.max for limit in value.values()
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_contact(value: Any) -> bool:
    try:
        return isinstance(value, str) and check_contact(value) == value
    except UsageError:
        return False


# What each key of `node.json` may hold: in words, and how it is checked.
_ALLOWED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("text", lambda value: isinstance(value, str)),
    "coordinator": ("HOST:PORT", _is_address),
    "sources": ('{NAME: {"place": PATH, "query": null}} or {NAME: {"place": URL, "query": SELECT}}', _are_sources),
    "limits": ("{NAME: a positive number}", _are_limits),
    "kinds": (f"a list of {', '.join(KINDS)}", lambda value: _are_texts(value) and set(value) <= set(KINDS)),
    "code": ("a list of PACKAGE.MODULE:FUNCTION", _are_texts),
    "refuse_unsafe": ("true or false", lambda value: isinstance(value, bool)),
    "psi_protocol": ("any, ecdh", lambda value: value in ("any", "ecdh")),
    "consent": ("standing, ask", lambda value: value in CONSENTS),
    "contact": ("nothing, or one printable line of at most 200 characters", _is_contact),
}


class NodeFolder:
    """One node; `path` is its party's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, home: Home, name: str | None) -> NodeFolder:
        """The node of that name, or the only one of this home.  Raises `UsageError`."""
        made = sorted(p.parent.name for p in home.path.glob("parties/*/node.json"))
        if name is None and len(made) == 1:
            name = made[0]
        if name not in made:
            allowed = ", ".join(made) or "none yet: fedseal node init --name NAME --coordinator HOST:PORT"
            raise UsageError(f"--name {name or ''}: no such node in {home.path}; allowed: {allowed}")
        return cls(home.party(name))

    @classmethod
    def create(cls, home: Home, settings: Settings, *, authority: bytes) -> NodeFolder:
        """Make keys and settings of a new node; an identity that is there already is kept."""
        folder = cls(private_dir(home.party(settings.name)))
        if folder._settings.exists():
            raise UsageError(
                f"{folder._settings}: this node is made already; allowed: fedseal node set, or another --name"
            )
        Identity.load_or_create(folder.path, settings.name)
        write_atomic(folder.authority, authority)
        key = ec.generate_private_key(ec.SECP384R1())
        encoding, kind = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
        write_atomic(folder.flower_key, key.private_bytes(encoding, kind, serialization.NoEncryption()))
        write_atomic(folder.secret, secrets.token_bytes(32))
        folder.save(settings)
        return folder

    @property
    def _settings(self) -> Path:
        return self.path / "node.json"

    @property
    def authority(self) -> Path:
        """PEM of the pinned authority."""
        return self.path / "authority.pem"

    @property
    def flower_key(self) -> Path:
        """The key that Flower knows the node by."""
        return self.path / "flower.key"

    @property
    def secret(self) -> Path:
        """The secret between SuperNode and executor."""
        return self.path / "runtime.secret"

    @property
    def connection(self) -> Path:
        """How the connection to the coordinator is; see `clients.node.supernode`."""
        return self.path / "connection.json"

    @property
    def logs(self) -> Path:
        """Logs of the node's processes."""
        return self.path / "logs"

    @property
    def name(self) -> str:
        """The party's name."""
        return self.path.name

    def settings(self) -> Settings:
        """The owner's decisions as they stand now."""
        return Settings.decode(self._settings.read_bytes(), self._settings)

    def save(self, settings: Settings) -> None:
        """Store the owner's decisions; they hold from the next message on."""
        write_atomic(self._settings, settings.encode())

    def policy(self) -> Policy:
        """The same, as the guard of jobs asks."""
        held = self.settings()
        return Policy(
            sources={name: source.open() for name, source in held.sources.items()},
            limits=held.limits,
            kinds=held.kinds,
            code=held.code,
            refuse_unsafe=held.refuse_unsafe,
            psi_protocol=held.psi_protocol,
            consent=held.consent,
            paused=self.paused,
        )

    def line(self) -> Line:
        """How the node reaches the coordinator's exchange."""
        host = self.settings().coordinator.rpartition(":")[0]
        return Line(host, self.authority.read_bytes(), self.flower_key)

    @property
    def paused(self) -> bool:
        """Whether new jobs are refused."""
        return (self.path / "paused").exists()

    def pause(self, on: bool) -> None:
        """Take no new jobs, or take them again."""
        marker = self.path / "paused"
        if on:
            write_atomic(marker, b"")
        else:
            marker.unlink(missing_ok=True)

    def card(self) -> NodeCard:
        """What the operator registers: the party's identity and the node's Flower key, signed by the identity.

        Raises `UsageError` where one of the two is damaged.
        """
        identity = Identity.load_or_create(self.path, self.name)
        try:
            key = serialization.load_ssh_private_key(self.flower_key.read_bytes(), None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
            raise UsageError(
                f"{self.flower_key}: missing or damaged; allowed: the key that fedseal node init made"
            ) from None
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return NodeCard.make(identity, public.decode())

    def pin(self, coordinator: Any) -> None:
        """Remember the coordinator's card; a request under another one is refused."""
        CardBook(self.path / "cards.json").pin(coordinator)

    def agree(self, *, anew: bool = False) -> None:
        """Sign or revoke standing grants, as the settings say; for the log of the pinned coordinator, if there is one.

        They reach the ledger with the party's next join statement.  One that the owner revoked stays so, unless `anew`.
        """
        coordinator, held = CardBook(self.path / "cards.json").get(COORDINATOR), self.settings()
        if coordinator is None:
            return
        log, consent = log_id(coordinator), Consent(self.path, Identity.load_or_create(self.path, self.name))
        if held.consent != STANDING:
            consent.end_standing(log=log)
            return
        for name in dict.fromkeys([*held.sources, *consent.standing_names()]):
            consent.standing(name, held.kinds, log=log, first=not anew)

    def run_config(self, run: str) -> dict[str, str]:
        """The ClientApp's node configuration for one run."""
        return {
            "party": self.name,
            "home": str(self.path),
            "out": str(self.path / "outputs" / run),
            "base": str(self.path),
            "run": run,
            "own": canonical.encode({}).decode(),
        }
