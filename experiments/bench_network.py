"""Encrypted networks: one row's time at the server, rows a second in blocks, bytes and errors, against TenSEAL's `mm`.

TenSEAL's side is what its users write: `mm`, `square`, `mm` on a `ckks_vector`, N = 8192, neither flooded nor
re-randomised.  Both sides read and write bytes as a server does, keys held.  Networks are random, hidden units and
outputs about 1; features of the larger one are uniform in [0, 1], as pixels are.

Run: ``python -m experiments.bench_network``
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.bench_aggregation import quiet
from experiments.bench_predict import median
from experiments.figures import Figure, command_line
from fl_core.crypto.network_inference import EvaluationKeys, NetworkSide
from fl_core.crypto.network_keys import NetworkKey
from fl_core.crypto.network_ring import open_network_ring

BIG, SMALL = (784, 64, 10), (30, 32, 1)
NAMES = {20: "CKKS_NETWORK", 40: "CKKS_NETWORK_40"}


def problem(sizes: tuple[int, int, int], rows: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """Layers, rows, and what they should give."""
    rng, (d, h, o) = np.random.default_rng(0), sizes
    first, hidden = rng.normal(size=(h, d)) / np.sqrt(d), 0.1 * rng.normal(size=h)
    last, bias = rng.normal(size=(o, h)) / np.sqrt(h), 0.1 * rng.normal(size=o)
    x = rng.uniform(size=(rows, d)) if d > 100 else rng.normal(size=(rows, d)).clip(-8, 8)
    return [(first, hidden), (last, bias)], x, (x @ first.T + hidden) ** 2 @ last.T + bias


class Ours:
    """Both parties of one network."""

    def __init__(self, sizes: tuple[int, int, int], bits: int) -> None:
        self.sizes = sizes
        self.layers, self.x, self.true = problem(sizes, 8)
        self.ring = open_network_ring(NAMES[bits])
        self.side = NetworkSide(self.ring, self.layers)
        self.key = NetworkKey(self.ring, self.side.layout.rotations)
        start = time.perf_counter()
        self.keys = EvaluationKeys(self.ring, self.side.layout.rotations, self.key.public)
        self.key_seconds = time.perf_counter() - start
        self.row = self.encrypt()

    def work(self) -> bytes:
        """The server's, from bytes to bytes."""
        return self.side.answer_row(self.row, self.keys)

    def encrypt(self) -> bytes:
        """The client's."""
        return self.key.encrypt_row(self.x[0], self.side.layout)

    def error(self) -> float:
        """The largest of eight rows."""
        worst = 0.0
        for row, true in zip(self.x, self.true, strict=True):
            answer = self.side.answer_row(self.key.encrypt_row(row, self.side.layout), self.keys)
            worst = max(worst, float(np.abs(self.key.open_row(answer, self.side.layout) - true).max()))
        return worst

    def block(self) -> tuple[float, float, float]:
        """Rows a second at the server, seconds of encrypting, largest error: one full block."""
        _, x, true = problem(self.sizes, self.side.block_rows)
        sums, server, client = self.side.begin(), 0.0, 0.0
        columns, start = self.key.encrypt_columns(x), time.perf_counter()
        for column in columns:
            client, start = client + time.perf_counter() - start, time.perf_counter()
            self.side.add(sums, column)
            server, start = server + time.perf_counter() - start, time.perf_counter()
        answers = self.side.finish(sums, self.keys, len(x))
        server += time.perf_counter() - start
        return len(x) / server, client, float(np.abs(self.key.open_columns(answers, len(x)) - true).max())


def tenseal_row(sizes: tuple[int, int, int]) -> Callable[[], bytes]:
    """TenSEAL's server, from bytes to bytes."""
    import tenseal as ts

    layers, x, _ = problem(sizes, 1)
    context = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[50, 39, 39, 39, 50])
    context.global_scale = 2.0**39
    context.generate_galois_keys()
    (first, hidden), (last, bias) = [(w.T.tolist(), b.tolist()) for w, b in layers]
    data, public = ts.ckks_vector(context, x[0].tolist()).serialize(), context.copy()
    public.make_context_public()

    def work() -> bytes:
        units = ts.ckks_vector_from(public, data).mm(first) + hidden
        units.square_()
        return (units.mm(last) + bias).serialize()

    return work


def row_figures(sizes: tuple[int, int, int], limits: dict[int, float]) -> list[Figure]:
    """Of one row; server times of all in turn, so that a busy machine is busy for all."""
    where, both = "-".join(map(str, sizes)), {bits: Ours(sizes, bits) for bits in NAMES}
    with quiet():
        peer = tenseal_row(sizes)
        peer()
        turns = [([median(one.work, 3) for one in both.values()], median(peer, 1)) for _ in range(3)]
    theirs = float(np.median([turn[1] for turn in turns]))
    found = []
    for i, (bits, one) in enumerate(both.items()):
        ours = float(np.median([turn[0][i] for turn in turns]))
        name = f"{where}, λ = {bits}"
        times = f"TenSEAL's mm, unflooded: {theirs * 1e3:,.0f} ms"
        found += [
            Figure(f"{name}: one row at the server", ours * 1e3, "ms", limits[bits], peer=times),
            Figure(f"{name}: TenSEAL's time over ours", theirs / ours, "x", 20 if sizes == BIG else 1, at_least=True),
            Figure(f"{name}: largest error of an output, rows", one.error(), "", 1e-3),
            Figure(f"{name}: encrypting a row", median(one.encrypt, 5) * 1e3, "ms"),
            Figure(f"{name}: keys, once", len(one.key.public) / 1e6, "MB"),
            Figure(f"{name}: reading the keys, once", one.key_seconds * 1e3, "ms"),
            Figure(f"{name}: bytes up, a row", len(one.row) / 1e3, "kB"),
            Figure(f"{name}: bytes down, a row", len(one.work()) / 1e3, "kB"),
        ]
    return found


def block_figures(sizes: tuple[int, int, int], bits: int, limit: float) -> list[Figure]:
    """Of a full block of rows."""
    one = Ours(sizes, bits)
    rate, client, error = one.block()
    name = f"{'-'.join(map(str, sizes))}, λ = {bits}, blocks"
    up = sizes[0] * one.ring.ciphertext_bytes / one.side.block_rows
    return [
        Figure(f"{name}: rows a second at the server", rate, "", limit, at_least=True),
        Figure(f"{name}: largest error of an output", error, "", 1e-3),
        Figure(f"{name}: encrypting a block", client, "s"),
        Figure(f"{name}: bytes up, a row", up / 1e3, "kB"),
    ]


def figures() -> list[Figure]:
    """All of it."""
    found = row_figures(BIG, {20: 300, 40: 700}) + row_figures(SMALL, {20: 150, 40: 150})
    found += block_figures(SMALL, 20, 2000) + block_figures(SMALL, 40, 2000)
    return found + block_figures(BIG, 20, 200) + block_figures(BIG, 40, 200)


if __name__ == "__main__":
    sys.exit(command_line(__doc__, figures))
