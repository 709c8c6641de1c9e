"""The exchange: how fast messages pass, with TLS and sealing, and what it keeps in memory.

`python -m experiments.bench_exchange` starts an exchange and two parties, a process each, on loopback with mutual TLS.
The same relay without sealing is run in turn with it, for the ratio.
"""

from __future__ import annotations

import multiprocessing
import secrets
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc

from clients.exchange import Stream, Tls
from experiments.figures import Figure, command_line
from fl_core.session import keys
from fl_core.session.keys import SessionName
from fl_core.session.sealed import SealedChannel
from fl_core.session.token import Token
from fl_core.trust import certificates
from fl_core.trust.identity import Identity
from server.exchange import Exchange, serve

ECHOES, KILOBYTE = 1000, 1024
MESSAGE, MESSAGES = 8 << 20, 64
GIGABYTE = 1 << 30
TURNS = 3
SECONDS = 300.0
NAMES = ("a", "b")


def _exchange(pipe: Connection, secret: bytes, pair: certificates.Pair, authority: bytes) -> None:
    held = grpc.ssl_server_credentials([(pair.key, pair.certificate)], authority, require_client_auth=True)
    server, port = serve(Exchange(secret, tls=True), "127.0.0.1:0", held)
    pipe.send(port)
    pipe.recv()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    pipe.send(int(peak) * 1024 / 1e6)
    server.stop(None)


def _unseal() -> None:
    """The same relay, pieces in the clear."""
    keys.Sealer.seal = lambda self, kind, number, data: data + bytes(keys.TAG_BYTES)  # type: ignore[method-assign]
    keys.Opener.open = lambda self, kind, number, sealed: sealed[: -keys.TAG_BYTES]  # type: ignore[method-assign]


def _party(pipe: Connection, identity: tuple[Any, ...], sealed: bool, work: str) -> None:
    own, name, address, token, tls = identity
    if not sealed:
        _unseal()
    channel = SealedChannel(own, name, timeout=SECONDS)
    with Stream(channel, address, token, tls=tls):
        channel.gather(60)
        pipe.send(WORK[work][own.name](channel))
        channel.finish()


def _ask(channel: SealedChannel) -> float:
    """Median seconds of an echo."""
    seconds, data = [], secrets.token_bytes(KILOBYTE)
    for _ in range(ECHOES):
        began = time.perf_counter()
        channel.send("b", data, step="echo")
        channel.recv("b", step="echo", max_bytes=KILOBYTE)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _answer(channel: SealedChannel) -> float:
    for _ in range(ECHOES):
        channel.send("a", channel.recv("a", step="echo", max_bytes=KILOBYTE), step="echo")
    return 0.0


def _pour(channel: SealedChannel, size: int = MESSAGE, count: int = MESSAGES) -> float:
    """Bytes a second."""
    data, began = secrets.token_bytes(MESSAGE) * (size // MESSAGE), time.perf_counter()
    for _ in range(count):
        channel.send("b", data, step="bulk")
    channel.recv("b", step="end", max_bytes=1)
    return size * count / (time.perf_counter() - began)


def _drain(channel: SealedChannel, size: int = MESSAGE, count: int = MESSAGES) -> float:
    for _ in range(count):
        channel.recv_exactly("a", step="bulk", size=size)
    channel.send("a", b".", step="end")
    return 0.0


WORK: dict[str, dict[str, Callable[[SealedChannel], float]]] = {
    "echo": {"a": _ask, "b": _answer},
    "bulk": {"a": _pour, "b": _drain},
    "large": {"a": lambda c: _pour(c, GIGABYTE, 1), "b": lambda c: _drain(c, GIGABYTE, 1)},
}


def measure(work: str, *, sealed: bool) -> tuple[float, float]:
    """What party a measured, and the exchange's peak of resident memory in MB."""
    fork = multiprocessing.get_context("fork")  # this process never touches gRPC
    authority, secret = certificates.make_authority("bench"), secrets.token_bytes(32)
    pair = certificates.issue_server(authority, ["localhost"])
    exchange_pipe, end = fork.Pipe()
    exchange = fork.Process(target=_exchange, args=(end, secret, pair, authority.certificate), daemon=True)
    exchange.start()
    address = f"localhost:{exchange_pipe.recv()}"
    identities = {name: Identity.create(name) for name in NAMES}
    name = SessionName("ab" * 8, secrets.token_bytes(32), {n: i.card for n, i in identities.items()})
    pipes, parties = {}, []
    for party, identity in identities.items():
        token = Token(name.session.hex(), name.run, party, NAMES, int(time.time()) + 3600).encode(secret)
        own = certificates.issue_client(authority, name=party, roles=["engineer"])
        tls = Tls(authority.certificate, own.certificate, own.key)
        pipes[party], end = fork.Pipe()
        given = (end, (identity, name, address, token, tls), sealed, work)
        parties.append(fork.Process(target=_party, args=given, daemon=True))
        parties[-1].start()
    found = pipes["a"].recv()
    for process in parties:
        process.join(60)
    exchange_pipe.send(None)
    peak = exchange_pipe.recv()
    exchange.join(10)
    return found, peak


def figures() -> list[Figure]:
    """Echo, bulk against the same relay without sealing, and memory."""
    echo = statistics.median(measure("echo", sealed=True)[0] for _ in range(TURNS))
    sealed, plain = [], []
    for _ in range(TURNS):
        sealed.append(measure("bulk", sealed=True)[0] / 1e6)
        plain.append(measure("bulk", sealed=False)[0] / 1e6)
    _, peak = measure("large", sealed=True)
    best, other = statistics.median(sealed), statistics.median(plain)
    return [
        Figure("exchange: echo of 1 KB, median", echo * 1e3, "ms", 2.0),
        Figure("exchange: bulk, TLS and sealed", best, "MB/s", 200.0, at_least=True),
        Figure("  the same without sealing", other, "MB/s"),
        Figure("  sealed to unsealed", best / other, "", 0.8, at_least=True),
        Figure("exchange: resident while 1 GB passes", peak, "MB", 200.0),
    ]


if __name__ == "__main__":
    sys.exit(command_line(__doc__ or "", figures))
