"""The exchange of a deployment: `python -m server.coordinator.start_exchange HOME HOST:PORT`.

Parties come in on the port of the coordinator's settings, with TLS, the key that their node registered and a token; the
coordinator's own runs at HOST:PORT on loopback, with a token.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading

import grpc

from fl_core.home import Home
from fl_core.processes import die_with_parent
from server.coordinator.folder import CoordinatorFolder, at
from server.exchange import Exchange, serve

STOP_SECONDS = 2.0


def main() -> None:
    """Serve until SIGTERM."""
    die_with_parent()
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stdout)
    folder, inside = CoordinatorFolder.open(Home.open(sys.argv[1])), sys.argv[2]
    addresses, pair = folder.addresses(), folder.server()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    secret, authority = folder.exchange_secret(), folder.exchange_authority()
    exchange = Exchange(secret, tls=True)
    credentials = grpc.ssl_server_credentials(
        [(pair.key, pair.certificate)], root_certificates=authority.certificate, require_client_auth=True
    )
    outside, _ = serve(exchange, at(addresses.bind, addresses.exchange_port), credentials)
    own, _ = serve(exchange.on_loopback(), inside)
    ended.wait()
    for server in (outside, own):
        server.stop(STOP_SECONDS).wait()


if __name__ == "__main__":
    main()
