"""The coordinator's folder of a deployment, in `coordinator/` of its home.

::

    coordinator.json            addresses
    authority.pem  .key         signs servers and people; the key is only needed for that and may be kept elsewhere
    server.pem  .key            of both doors, renewed once a year
    federation.json             what is public: the authority, the coordinator's card, addresses
    superexec.secret            between the SuperLink and the coordinator
    exchange.secret             authenticates the tokens of sessions
    exchange.pem  .key          certifies registered nodes for the exchange; both anew at each start of the service
    nodes.json  people.json     registered nodes; issued and revoked certificates
    state.db                    Flower's database: sealed messages in flight, pruned
    running.json                process and ports of the service that runs now
    logs/                       of the service's processes
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Sequence
from pathlib import Path

from fl_core.errors import UsageError
from fl_core.files import private_dir, write_atomic
from fl_core.home import Home
from fl_core.messages import COORDINATOR
from fl_core.schema import read, setting
from fl_core.session.token import SECRET_BYTES
from fl_core.trust import certificates
from fl_core.trust.certificates import Checked, Pair
from fl_core.trust.federation import Federation
from fl_core.trust.identity import Identity
from server.coordinator.nodes import Nodes
from server.coordinator.people import People

VERSION = 1
NODES_PORT, DOOR_PORT, HEALTH_PORT, EXCHANGE_PORT = 9443, 9444, 9445, 9446
SOON_DAYS = 30


@dataclasses.dataclass(frozen=True)
class Addresses:
    """Where the coordinator is reached.

    Parameters
    ----------
    hosts : names or addresses that its certificate holds for; the first is told to others.
    bind : address to listen on.
    nodes_port, door_port : where nodes and people come in.
    health_port : on loopback.
    exchange_port : where nodes come in for sessions.
    """

    hosts: tuple[str, ...]
    bind: str = "0.0.0.0"  # noqa: S104  # nodes come from other machines
    nodes_port: int = setting(NODES_PORT, low=0, high=65535)
    door_port: int = setting(DOOR_PORT, low=0, high=65535)
    health_port: int = setting(HEALTH_PORT, low=0, high=65535)
    exchange_port: int = setting(EXCHANGE_PORT, low=0, high=65535)
    version: int = VERSION

    @property
    def nodes(self) -> str:
        """HOST:PORT for nodes."""
        return at(self.hosts[0], self.nodes_port)

    @property
    def door(self) -> str:
        """HOST:PORT for people."""
        return at(self.hosts[0], self.door_port)


def at(host: str, port: int) -> str:
    """HOST:PORT, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class CoordinatorFolder:
    """The files; see the module."""

    def __init__(self, home: Home) -> None:
        self.home, self.path = home, home.coordinator

    @classmethod
    def create(cls, home: Home, addresses: Addresses) -> CoordinatorFolder:
        """Make authority, certificates and secrets.  Raises `UsageError` where they are there already."""
        folder = cls(home)
        private_dir(folder.path)
        if folder._config.exists():
            raise UsageError(f"{folder._config}: this coordinator is made already; allowed: fedseal coordinator renew")
        identity = folder.identity()
        authority = certificates.make_authority(f"fedseal {identity.card.fingerprint[:16]}")
        folder._write_pair("authority", authority)
        write_atomic(folder.secret, secrets.token_bytes(32))
        folder._serve_as(addresses)
        return folder

    @classmethod
    def open(cls, home: Home) -> CoordinatorFolder:
        """The folder made before.  Raises `UsageError`."""
        folder = cls(home)
        if not folder._config.exists():
            raise UsageError(f"{home.path}: no coordinator here; allowed: fedseal coordinator init first")
        return folder

    def renew(self, hosts: Sequence[str] = ()) -> Checked:
        """A new server certificate under the same authority, for other hosts where they are given."""
        before = self.addresses()
        self._serve_as(dataclasses.replace(before, hosts=tuple(hosts) or before.hosts))
        return self.check()

    def _serve_as(self, addresses: Addresses) -> None:
        pair = certificates.issue_server(self.authority(), list(_all(addresses.hosts)))
        self._write_pair("server", pair)
        write_atomic(self._config, json.dumps(dataclasses.asdict(addresses), indent=1).encode())
        write_atomic(self.public, self.federation().encode(), mode=0o644)

    def _write_pair(self, name: str, pair: Pair) -> None:
        write_atomic(self.path / f"{name}.key", pair.key)
        write_atomic(self.path / f"{name}.pem", pair.certificate, mode=0o644)

    # ---- what is there

    @property
    def _config(self) -> Path:
        return self.path / "coordinator.json"

    @property
    def secret(self) -> Path:
        """The secret between SuperLink and coordinator."""
        return self.path / "superexec.secret"

    @property
    def public(self) -> Path:
        """What is public of this coordinator, as a file."""
        return self.path / "federation.json"

    def renew_exchange(self) -> None:
        """A new secret and a new authority for the exchange; sessions that were open end."""
        write_atomic(self.path / "exchange.secret", secrets.token_bytes(SECRET_BYTES))
        self._write_pair("exchange", certificates.make_authority("fedseal exchange"))

    def exchange_secret(self) -> bytes:
        """Authenticates the tokens of sessions."""
        return (self.path / "exchange.secret").read_bytes()

    def exchange_authority(self) -> Pair:
        """Certifies registered nodes for the exchange."""
        return Pair((self.path / "exchange.pem").read_bytes(), (self.path / "exchange.key").read_bytes())

    def federation(self) -> Federation:
        """What is public of this coordinator."""
        addresses = self.addresses()
        return Federation(self.authority_pem, self.identity().card, addresses.nodes, addresses.door)

    @property
    def database(self) -> Path:
        """Flower's database."""
        return self.path / "state.db"

    @property
    def running(self) -> Path:
        """What runs now."""
        return self.path / "running.json"

    @property
    def logs(self) -> Path:
        """Logs of the service's processes."""
        return self.path / "logs"

    @property
    def nodes(self) -> Nodes:
        """The register of nodes."""
        return Nodes(self.path / "nodes.json")

    @property
    def people(self) -> People:
        """The register of people's certificates."""
        return People(self.path / "people.json")

    @property
    def authority_pem(self) -> bytes:
        """The authority's certificate."""
        return (self.path / "authority.pem").read_bytes()

    def server(self) -> Pair:
        """The server's certificate and key."""
        return Pair((self.path / "server.pem").read_bytes(), (self.path / "server.key").read_bytes())

    def authority(self) -> Pair:
        """The authority with its key.  Raises `UsageError` where the key is kept elsewhere."""
        key = self.path / "authority.key"
        if not key.exists():
            raise UsageError(f"{key}: not here; bring the authority's key back to sign certificates")
        return Pair(self.authority_pem, key.read_bytes())

    def identity(self) -> Identity:
        """The coordinator's identity, which signs the ledger."""
        return Identity.load_or_create(self.path, COORDINATOR)

    def addresses(self) -> Addresses:
        """Where it is reached.  Raises `UsageError`."""
        try:
            table = json.loads(self._config.read_bytes())
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{self._config}: not JSON ({error})") from None
        if not isinstance(table, dict) or table.get("version") != VERSION:
            version = table.get("version") if isinstance(table, dict) else None
            raise UsageError(f"{self._config}: version {version!r}; allowed: {VERSION}")
        found = read(Addresses, table, f"{self._config}: ")
        if not found.hosts:
            raise UsageError(f"{self._config}: hosts: empty; allowed: names or addresses, the first is told to others")
        return found

    def check(self) -> Checked:
        """The server's certificate, verified.  Raises `UsageError`."""
        pair, where = self.server(), str(self.path / "server.pem")
        certificates.check_key(pair, where)
        return certificates.check(pair.certificate, authority=self.authority_pem, purpose="server", where=where)


def _all(hosts: Sequence[str]) -> dict[str, None]:
    """The hosts, and those by which the coordinator reaches itself."""
    return dict.fromkeys([*hosts, "localhost", "127.0.0.1"])
