"""Products, truncation and weights with a dealer, against integers; and that nothing but uniform elements travels."""

from __future__ import annotations

import numpy as np
import pytest

from fl_core.crypto import ring
from fl_core.crypto.ring import U32, U64
from fl_core.errors import BadFrame, FedsealError
from fl_core.protocols.vertical.dealer import ORDER, Dealer, Script, from_bits, to_bits
from fl_core.protocols.vertical.dealt import Dealt
from tests.fl_core.protocols.parties import converse


def dealer(channel):
    Dealer(channel, "g", list(channel.peers)).serve()


def session(active, passive, **more):
    return converse({"g": active, "h": passive, "d": dealer} | more)


@pytest.mark.parametrize("dtype", [U32, U64])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", [slice(3, 40), slice(0, 0), np.array([0, 5, 6, 49])])
def test_shares_of_a_product_add_up(dtype, transposed, rows):
    x = ring.Stream(b"x" * 32).draw(50, 7, dtype=dtype)
    chosen = x[rows].T if transposed else x[rows]
    v = ring.Stream(b"v" * 32).draw(chosen.shape[1], 2, dtype=dtype)

    def active(channel):
        dealt, script = Dealt(channel, "d"), Script()
        script.matrix("h", 50, 7, 8 * dtype.itemsize)
        script.product(0, "g", rows, 2, transposed=transposed)
        dealt.order(script)
        matrix = dealt.peer_matrix("h", (50, 7), dtype)
        channel.send("h", matrix.mask(v), step="f")
        share = matrix.share(v, rows, transposed=transposed)
        dealt.end()
        return share

    def passive(channel):
        dealt = Dealt(channel, "d")
        matrix = dealt.own_matrix(["g"], lambda a, b: x[a:b], x.shape, dtype)
        f = np.frombuffer(channel.recv_exactly("g", step="f", size=v.nbytes), dtype).reshape(v.shape)
        return matrix.share(f, rows, transposed=transposed)

    done = session(active, passive)
    done.result("d")
    expected = ring.product(np.ascontiguousarray(chosen), v)
    assert (done.result("g") + done.result("h") == expected).all()
    if expected.size:
        assert not (done.result("g") == expected).all() and not (done.result("h") == expected).all()


@pytest.mark.parametrize("holders", [["g", "h"], ["h", "g"], ["g", "h", "i"]])
@pytest.mark.parametrize("shift", [1, 16, 39])
def test_truncation_is_off_by_at_most_one_and_not_biased(holders, shift):
    rng = np.random.default_rng(0)
    size = 40_000
    x = rng.integers(-(2**61), 2**61, size=size, dtype=np.int64)
    x[:6] = [0, 1, -1, 2**62 - 1, -(2**62) + 1, 12345]
    parts = {p: ring.Stream(p.encode() * 32).draw(size) for p in holders[1:]}
    parts[holders[0]] = x.view(np.uint64) - np.sum(list(parts.values()), axis=0, dtype=np.uint64)

    def party(channel, script=None):
        dealt = Dealt(channel, "d")
        if script:
            dealt.order(script)
        work = dealt.truncation(holders, size, shift)
        mine = work.mask(parts[channel.me])
        others = [p for p in holders if p != channel.me]
        for p in others:
            channel.send(p, mine, step="open")
        opened = mine + np.sum(
            [np.frombuffer(channel.recv_exactly(p, step="open", size=8 * size), np.uint64) for p in others],
            axis=0,
            dtype=np.uint64,
        )
        if script:
            dealt.end()
        return work.share(opened)

    script = Script()
    script.truncate(holders, size, shift)
    more = {"i": party} if "i" in holders else {}
    done = converse({"g": lambda c: party(c, script), "h": party, "d": dealer} | more)
    total = np.sum([done.result(p) for p in holders], axis=0, dtype=np.uint64).view(np.int64)
    error = total - (x >> shift)
    assert set(np.unique(error)) <= {0, 1}
    rest = (x & ((1 << shift) - 1)) / 2.0**shift
    assert abs((error - rest).mean()) < 4 * 0.5 / np.sqrt(size)


def test_an_order_again_is_dealt_afresh():
    x = np.arange(6, dtype=np.uint64).reshape(3, 2)
    v = np.array([[5], [7]], dtype=np.uint64)

    def active(channel):
        dealt, setup, script = Dealt(channel, "d"), Script(), Script()
        setup.matrix("h", 3, 2, 64)
        dealt.order(setup)
        script.product(0, "g", slice(0, 3), 1, transposed=False)
        dealt.order(script)
        dealt.again()
        matrix, shares = dealt.peer_matrix("h", (3, 2)), []
        for _ in range(2):
            channel.send("h", matrix.mask(v), step="f")
            shares.append(matrix.share(v, slice(0, 3), transposed=False))
        dealt.end()
        return shares

    def passive(channel):
        dealt = Dealt(channel, "d")
        matrix, shares, seen = dealt.own_matrix(["g"], lambda a, b: x[a:b], x.shape), [], []
        for _ in range(2):
            f = np.frombuffer(channel.recv_exactly("g", step="f", size=16), np.uint64).reshape(2, 1)
            seen.append(f.copy())
            shares.append(matrix.share(f, slice(0, 3), transposed=False))
        assert (seen[0] != seen[1]).any()
        return shares

    done = session(active, passive)
    for one, two in zip(done.result("g"), done.result("h"), strict=True):
        assert (one + two == ring.product(x, v)).all()


def test_all_that_travels_looks_uniform():
    """Of constant data every byte value comes about equally often: chi-square over 255 degrees of freedom."""
    x, v = np.full((4000, 4), 3, dtype=np.uint64), np.full((4, 1), 2, dtype=np.uint64)

    def active(channel):
        dealt, script = Dealt(channel, "d"), Script()
        script.matrix("h", 4000, 4, 64)
        script.product(0, "g", slice(0, 4000), 1, transposed=False)
        script.product(0, "g", slice(0, 4000), 1, transposed=True)
        dealt.order(script)
        matrix, r = dealt.peer_matrix("h", (4000, 4)), np.full((4000, 1), 9, dtype=np.uint64)
        channel.send("h", matrix.mask(v), step="f")
        matrix.share(v, slice(0, 4000), transposed=False)
        channel.send("h", matrix.mask(r), step="f2")
        dealt.end()

    def passive(channel):
        dealt = Dealt(channel, "d")
        matrix = dealt.own_matrix(["g"], lambda a, b: x[a:b], x.shape)
        f = np.frombuffer(channel.recv_exactly("g", step="f", size=32), np.uint64).reshape(4, 1)
        channel.recv_exactly("g", step="f2", size=32_000)
        return matrix.share(f, slice(0, 4000), transposed=False)

    done = session(active, passive)
    done.result("d")
    for sender, to in (("h", "g"), ("g", "h"), ("d", "g")):
        data = b"".join(m.data for m in done.said if (m.sender, m.to) == (sender, to))
        counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
        chi = ((counts - len(data) / 256) ** 2 / (len(data) / 256)).sum()
        assert chi < 255 + 6 * np.sqrt(2 * 255), (sender, to, chi)
    assert not [m for m in done.said if m.sender == "h" and m.to == "d"]


@pytest.mark.parametrize(
    "order",
    [
        b"\0\0",
        b"nonsense that is no order",
        Script([{"op": "steal"}]),
        Script([{"op": "matrix", "owner": "nobody", "rows": 1, "columns": 1, "bits": 64}]),
        Script([{"op": "matrix", "owner": "h", "rows": 1 << 40, "columns": 1, "bits": 64}]),
        Script([{"op": "matrix", "owner": "h", "rows": 4, "columns": 1, "bits": 64},
                {"op": "product", "matrix": 0, "to": "g", "count": 1, "t": 0, "start": 0, "stop": 5}]),
        Script([{"op": "matrix", "owner": "h", "rows": 4, "columns": 1, "bits": 64},
                {"op": "product", "matrix": 0, "to": "g", "count": 1, "t": 0, "set": 0}], [to_bits(np.array([1, 9]))]),
    ],
)  # fmt: skip
def test_a_bad_order_ends_the_dealer_with_an_error_that_names_the_step(order):
    parts = [order] if isinstance(order, bytes) else order.encode()

    def active(channel):
        Dealt(channel, "d")
        channel.send("d", *parts, step=ORDER)

    done = session(active, lambda channel: Dealt(channel, "d"))
    assert isinstance(done.results["d"], FedsealError)


def test_too_little_from_the_dealer_is_noticed():
    def active(channel):
        dealt, script = Dealt(channel, "d"), Script()
        script.truncate(["h", "g"], 3, 5)
        dealt.order(script)
        dealt.explicit(10)

    done = session(active, lambda channel: Dealt(channel, "d"))
    assert isinstance(done.results["g"], BadFrame)


@pytest.mark.parametrize("rows", [[], [0], [7], [8], [0, 3, 8, 64]])
def test_row_sets_as_bits_and_back(rows):
    assert from_bits(to_bits(np.array(rows, dtype=np.int64))).tolist() == rows


@pytest.mark.parametrize("dtype", [U32, U64])
@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("holders", [["g"], ["h"], ["g", "h"]])
def test_shares_of_numbers_times_anothers_own_add_up(dtype, summed, holders):
    rows, widths = 9, [3, 0, 4]
    parts = {p: ring.Stream(p.encode() * 32).draw(rows, 7, dtype=dtype) for p in holders}
    own = ring.Stream(b"o" * 32).draw(rows, 7, dtype=dtype)
    other = "i"

    def party(channel):
        dealt = Dealt(channel, "d")
        if channel.me == "g":
            script = Script()
            script.multiply(holders, other, rows, widths, summed=summed, bits=8 * dtype.itemsize)
            dealt.order(script)
        share = None
        if channel.me == other:
            share = dealt.multiply_own(own, holders, widths, summed=summed)
        elif channel.me in holders:
            share = dealt.multiply_shared(parts[channel.me], other, widths, summed=summed)
        if channel.me == "g":
            dealt.end()
        return share

    done = converse(dict.fromkeys(("g", "h", "i"), party) | {"d": dealer})
    done.result("d")
    shares = [done.result(p) for p in [*holders, other]]
    expected = np.sum(list(parts.values()), axis=0, dtype=dtype) * own
    if summed:
        expected = np.stack([expected[:, a:b].sum(axis=1, dtype=dtype) for a, b in ((0, 3), (3, 3), (3, 7))], axis=1)
    assert (np.sum(shares, axis=0, dtype=dtype) == expected).all()
    assert not any((share == expected).any() for share in shares if not summed)
    heard = [m.data for m in done.said if m.step == "masked factors"]
    assert all(own.tobytes() != data and parts[p].tobytes() != data for data in heard for p in holders)


@pytest.mark.parametrize(
    "change",
    [{"rows": 1 << 31}, {"rows": -1}, {"widths": []}, {"widths": [-1]}, {"other": "g"}, {"other": "x"}, {"bits": 16}],
)
def test_a_product_that_cannot_be_dealt_is_refused(change):
    def active(channel):
        dealt, script = Dealt(channel, "d"), Script()
        script.multiply(["g"], "h", 5, [2], summed=True, bits=64)
        script.ops[0] |= change
        dealt.order(script)

    done = session(active, lambda channel: Dealt(channel, "d"))
    assert isinstance(done.results["d"], BadFrame)
