"""The way to an exchange, for the coordinator and for what it tells the parties.

In the runtimes of one machine the exchange is a service of the run's own process on loopback; in a deployment it is a
process of the coordinator's service, which the run reaches on loopback and the parties through TLS.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from clients.exchange import Stream
from fl_core.session.sealed import SealedChannel
from fl_core.session.token import SECRET_BYTES, Token
from fl_core.trust import certificates
from server.exchange import Exchange, serve

CERTIFICATE_DAYS = 1


class Host:
    """Tokens and streams to an exchange at `address`."""

    def __init__(self, address: str, secret: bytes) -> None:
        self._address, self._secret = address, secret

    def offer(self, token: Token) -> dict[str, Any]:
        """As `SessionHost.offer`."""
        return {"address": self._address, "token": token.encode(self._secret)}

    def attend(self, channel: SealedChannel, token: Token) -> Stream:
        """As `SessionHost.attend`."""
        return Stream(channel, self._address, token.encode(self._secret))


@contextmanager
def local_host() -> Iterator[Host]:
    """An exchange of this process, for as long as the context lasts."""
    secret = secrets.token_bytes(SECRET_BYTES)
    server, port = serve(Exchange(secret), "127.0.0.1:0")
    try:
        yield Host(f"127.0.0.1:{port}", secret)
    finally:
        server.stop(None)


@dataclass(frozen=True)
class Access:
    """What a run's process needs of the coordinator's exchange.

    Parameters
    ----------
    address : host:port on loopback, without TLS.
    port : where the parties come in.
    secret : authenticates tokens.
    authority : signs the parties' certificates for the exchange.
    keys : each party's registered key, PEM.
    """

    address: str
    port: int
    secret: bytes
    authority: certificates.Pair
    keys: dict[str, bytes]


class RemoteHost(Host):
    """The coordinator's exchange.  A party comes with the key that it registered, certified for the session."""

    def __init__(self, access: Access) -> None:
        super().__init__(access.address, access.secret)
        self._access = access

    def offer(self, token: Token) -> dict[str, Any]:
        """As `SessionHost.offer`."""
        access = self._access
        own = certificates.certify(access.authority, access.keys[token.party], name=token.party, days=CERTIFICATE_DAYS)
        return {"port": access.port, "token": token.encode(access.secret), "certificate": own.decode()}
