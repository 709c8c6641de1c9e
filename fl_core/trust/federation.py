"""What is public of a coordinator, as a file or as the coordinator tells it: its authority, its card, its addresses."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fl_core.errors import IntegrityError, UsageError
from fl_core.messages import COORDINATOR
from fl_core.trust import certificates
from fl_core.trust.identity import Card

VERSION = 1
_FIELDS = {"version", "authority", "coordinator", "nodes", "door"}
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s\x00-\x1f\x7f/@\[\]]+):([0-9]{1,5})")


def host_port(address: Any) -> tuple[str, int]:
    """HOST:PORT in two; brackets around an IPv6 address go.  Raises `ValueError`."""
    found = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    if found is None or int(found[2]) > 65535:
        raise ValueError
    host = found[1].strip("[]")
    host.encode("idna")  # UnicodeError, which is a ValueError, where a resolver could not take it
    return host, int(found[2])


@dataclass(frozen=True)
class Federation:
    """One coordinator; `nodes` and `door` are host:port for nodes and for people, `authority` is PEM."""

    authority: bytes
    coordinator: Card
    nodes: str
    door: str

    @property
    def fingerprint(self) -> str:
        """SHA-256, hex, of the authority's certificate: what two people compare."""
        return certificates.fingerprint(self.authority)

    @classmethod
    def decode(cls, data: bytes, where: str) -> Federation:
        """Read untrusted JSON.  Raises `UsageError`."""
        try:
            table = json.loads(data)
            if set(table) != _FIELDS or table["version"] != VERSION:
                raise ValueError
            card = Card.from_dict(table["coordinator"])
            if card.name != COORDINATOR:
                raise ValueError
            for address in (table["nodes"], table["door"]):
                host_port(address)
            return cls(_authority(table["authority"]), card, table["nodes"], table["door"])
        except (ValueError, TypeError, KeyError, AttributeError, IntegrityError, RecursionError):
            raise UsageError(f"{where}: not a federation of version {VERSION}") from None

    def encode(self) -> bytes:
        """As stored."""
        table: dict[str, Any] = {
            "version": VERSION,
            "authority": self.authority.decode(),
            "coordinator": self.coordinator.to_dict(),
            "nodes": self.nodes,
            "door": self.door,
        }
        return json.dumps(table, indent=1).encode()


def _authority(text: str) -> bytes:
    """One certificate and nothing else: a second one would be trusted without being in the fingerprint."""
    pem = text.encode("ascii")
    try:
        found = x509.load_pem_x509_certificate(pem)
    except x509.InvalidVersion:  # not a ValueError
        raise ValueError from None
    if found.public_bytes(Encoding.PEM) != pem:
        raise ValueError
    return pem


@dataclass(frozen=True)
class Pass:
    """A person's way into a federation: a file (0600) that the operator hands over, or that was made from it."""

    federation: Federation
    person: certificates.Pair

    @classmethod
    def decode(cls, data: bytes, where: str) -> Pass:
        """Read a file and verify the certificate in it.  Raises `UsageError`."""
        try:
            table = json.loads(data)
            federation = Federation.decode(json.dumps(table["federation"]).encode(), where)
            person = certificates.Pair(table["certificate"].encode(), table["key"].encode())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise UsageError(f"{where}: not a pass; allowed: the file of fedseal coordinator admit") from None
        certificates.check_key(person, where)
        found = cls(federation, person)
        found.holder(where)
        return found

    def holder(self, where: str = "certificate") -> certificates.Checked:
        """Whom it is for, and with which roles, verified.  Raises `UsageError` for a certificate that does not hold."""
        authority = self.federation.authority
        return certificates.check(self.person.certificate, authority=authority, purpose="client", where=where)

    def encode(self) -> bytes:
        """As stored."""
        table = {
            "federation": json.loads(self.federation.encode()),
            "certificate": self.person.certificate.decode(),
            "key": self.person.key.decode(),
        }
        return json.dumps(table, indent=1).encode()
