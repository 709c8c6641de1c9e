"""Encrypted inference: rows a second at the server against TenSEAL's column layout, bytes a row, latency of one row.

TenSEAL's side is what its users write: a `ckks_vector` a feature, times the weight, summed, in the same ring, neither
flooded nor re-randomised, over 2,048 rows a vector.  Both sides read and write bytes as a server does.  The latency is
a client's in another process than the server's, over TLS, receipt and quota included.

Run: ``python -m experiments.bench_predict``
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench_aggregation import quiet
from experiments.figures import Figure, command_line
from fl_core.crypto.linear_inference import ClientKey, ModelSide, PublicKey
from fl_core.crypto.linear_ring import open_ring

FEATURES, ROWS, SINGLES = 30, 4096, 100


def median(work: Callable[[], Any], repeats: int) -> float:
    """Median seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def problem() -> tuple[np.ndarray, np.ndarray, float]:
    """Rows, weights, bias."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(ROWS, FEATURES)), rng.normal(size=FEATURES), 0.3


def ours() -> tuple[Callable[[], list[bytes]], dict[str, float]]:
    """The server's work on one block, from bytes to bytes, and what a row takes on the wire."""
    x, weights, bias = problem()
    ring = open_ring("CKKS_LINEAR")
    key, side = ClientKey(ring), ModelSide(ring, weights[None, :], np.array([bias]))
    columns, public = key.encrypt_columns(x), PublicKey(ring, key.public)

    def work() -> list[bytes]:
        sums = side.begin()
        for column in columns:
            side.add(sums, column)
        return side.finish(sums, public, ROWS)

    (answer,) = work()
    error = float(np.abs(key.open_columns(answer, ROWS, side.bits) - (x @ weights + bias)).max())
    seconds = median(lambda: key.encrypt_columns(x), 3)
    sizes = {"up": len(columns[0]) * FEATURES / ROWS, "down": len(answer) / ROWS, "error": error}
    return work, {**sizes, "encrypt_s": seconds}


def tenseal_columns() -> Callable[[], list[bytes]]:
    """TenSEAL's, from bytes to bytes: two vectors a feature, as it has one row a slot."""
    import tenseal as ts

    x, weights, bias = problem()
    context = ts.context(ts.SCHEME_TYPE.CKKS, 4096, coeff_mod_bit_sizes=[46, 47, 16])
    context.global_scale = 2.0**40
    halves = [[ts.ckks_vector(context, c.tolist()).serialize() for c in part.T] for part in np.split(x, 2)]
    public = context.copy()
    public.make_context_public()

    def work() -> list[bytes]:
        out = []
        for half in halves:
            total = None
            for data, weight in zip(half, weights.tolist(), strict=True):
                product = ts.ckks_vector_from(public, data) * weight
                total = product if total is None else total + product
            out.append((total + bias).serialize())
        return out

    work()
    return work


def _serve(folder: str, port: Any, card: dict[str, str], end: Any) -> None:
    """The server's process."""
    from fl_core.trust.identity import Card, Identity
    from fl_core.trust.ledger import Ledger
    from server.predict import Prediction, Server, handler
    from server.serving.accounts import Accounts, Quota
    from server.serving.door import Client, Door
    from server.serving.host import certificate
    from server.serving.model import fold, serve_linear
    from server.serving.receipts import Receipts

    path = Path(folder)
    _, weights, bias = problem()
    names = tuple(f"measure_{i:02d}" for i in range(FEATURES))
    matrix = np.stack([np.zeros(FEATURES), weights])
    linear = fold(names, ("no", "yes"), matrix, np.array([0.0, bias]), None, None)
    models = {"bench": serve_linear("bench", linear, parameters="CKKS_LINEAR", version_key=b"bench")}
    identity, accounts = Identity.load_or_create(path, "owner"), Accounts(path / "accounts.db")
    clients = {"bench": Client(Card.from_dict(card))}
    with Ledger.open(path / "ledger.db", identity) as ledger:
        service = Prediction(Door(identity, ledger, accounts, clients, Quota(10**9, 10**6)), models)
        server = Server(handler(service), "127.0.0.1:0", certificate(path, ("localhost",)))
        receipts = Receipts(ledger, accounts)
        port.put(server.port)
        end.wait()
        server.stop(1.0)
        receipts.close()
        accounts.close()


def over_tls() -> dict[str, float]:
    """Seconds of one row, and rows a second of four blocks, as a client sees them."""
    from clients.predict import PredictClient
    from fl_core.trust.identity import Identity

    x, weights, bias = problem()
    names = [f"measure_{i:02d}" for i in range(FEATURES)]
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        identity, port, end = Identity.create("bench"), spawn.Queue(), spawn.Event()
        process = spawn.Process(target=_serve, args=(folder, port, identity.card.to_dict(), end))
        process.start()
        address, own = f"localhost:{port.get(timeout=60)}", Path(folder) / "client"
        authority = (Path(folder) / "authority.pem").read_bytes()
        with PredictClient(address, authority=authority, identity=identity, folder=own) as client:
            client.predict(x[:1], names)
            singles = []
            for row in x[:SINGLES]:
                start = time.perf_counter()
                client.predict(row[None, :], names)
                singles.append(time.perf_counter() - start)
            start = time.perf_counter()
            scores = client.predict(np.vstack([x] * 4), names)
            batch = time.perf_counter() - start
        end.set()
        process.join(30)
    true = 1 / (1 + np.exp(-(x @ weights + bias)))
    error = float(np.abs(scores.probabilities[:ROWS, 1] - true).max())
    p99 = sorted(singles)[int(0.99 * len(singles))]
    return {"p50": statistics.median(singles), "p99": p99, "batch": 4 * ROWS / batch, "error": error}


def figures() -> list[Figure]:
    """All of it; server times of both in turn, so that a busy machine is busy for both."""
    work, sizes = ours()
    with quiet():
        peer = tenseal_columns()
        pairs = [(median(work, 3), median(peer, 1)) for _ in range(7)]
        seconds, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    told = over_tls()
    where = f"logistic, {FEATURES} features"
    return [
        Figure(f"{where}: rows a second at the server, of TenSEAL's", theirs / seconds, "x", 3.0, at_least=True),
        Figure(
            f"{where}: rows a second at the server", ROWS / seconds, "", peer=f"TenSEAL, unflooded: {ROWS / theirs:.0f}"
        ),
        Figure(f"{where}: bytes up, a row", sizes["up"], "B", 420),
        Figure(f"{where}: bytes down, a row", sizes["down"], "B", 15),
        Figure(f"{where}: largest error of a logit", sizes["error"], "", 1e-3),
        Figure(f"{where}: encrypting 4,096 rows", sizes["encrypt_s"], "s"),
        Figure(f"{where}: one row over TLS, p50", told["p50"] * 1e3, "ms", 25),
        Figure(f"{where}: one row over TLS, p99", told["p99"] * 1e3, "ms"),
        Figure(f"{where}: rows a second over TLS, one client", told["batch"], ""),
        Figure(f"{where}: largest error of a probability", told["error"], "", 1e-3),
    ]


if __name__ == "__main__":
    sys.exit(command_line(__doc__, figures))
