"""Opened sums are those of counting; products over several row sets, and of numbers of every size, are exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.crypto import ring
from fl_core.crypto.ring import U32, U64
from fl_core.errors import BadFrame
from fl_core.protocols.vertical.dealer import Dealer, Script, to_bits
from fl_core.protocols.vertical.dealt import Dealt
from fl_core.protocols.vertical.histograms import (
    Answerer,
    Candidates,
    FixedPoint,
    Opener,
    recv_nodes,
    send_nodes,
)
from tests.fl_core.protocols.parties import converse


def session(data, sets, values, *, least=1, fault=None, names=("h",)):
    """Open `sets` of the candidates of (codes, sizes), the same at each of `names`; sums and candidates."""
    codes, sizes = data
    n, fixed = len(codes), FixedPoint.of(len(codes), (2.0, 1.0))
    candidates = Candidates(sizes)

    def active(channel):
        dealt = Dealt(channel, "d")
        opener = Opener.begin(dealt, dict.fromkeys(names, len(candidates)), n, 2, fixed.dtype)
        rng = np.random.default_rng(0)
        sums = [opener.open(part, [fixed.encode(values[rows], rng) for rows in part]) for part in sets]
        dealt.end()
        return [[[fixed.decode(one) for one in party] for party in level] for level in sums]

    def passive(channel):
        columns = candidates.columns(codes, np.arange(n), fixed.dtype)
        answerer = Answerer(
            Dealt(channel, "d"), "g", columns, (n, len(candidates)), fixed.dtype, columns=2, most=4, least=least
        )
        return [answerer.answer() for _ in sets]

    programs = {"g": active, "d": lambda c: Dealer(c, "g", ["g", *names]).serve()} | dict.fromkeys(names, passive)
    return converse(programs, fault=fault, timeout=2), candidates


@pytest.mark.parametrize("names", [("h",), ("h", "i")])
def test_opened_sums_are_those_of_counting(names):
    rng = np.random.default_rng(3)
    sizes = np.array([5, 2, 9])
    codes = np.stack([rng.integers(0, s, 300) for s in sizes], axis=1).astype(np.uint8)
    values = np.round(rng.uniform(-1, 1, (300, 2)), 2)
    sets = [[np.arange(300)], [np.arange(0, 300, 7), np.array([1, 2, 299])], []]
    done, candidates = session((codes, sizes), sets, values, names=names)
    done.result("d")
    assert done.result("h") == [1, 2, 0]
    for level, opened in zip(sets, done.result("g"), strict=True):
        for party in opened:
            for rows, sums in zip(level, party, strict=True):
                left = codes[rows][:, candidates.features] <= candidates.cuts
                assert np.allclose(sums, left.T @ values[rows], atol=300 * 2.0**-21)


def test_an_order_is_a_permutation_that_differs_each_time():
    sizes = np.array([40, 2, 30])
    orders = [Candidates(sizes) for _ in range(2)]
    cuts = {(f, c) for f, s in enumerate(sizes) for c in range(s - 1)}
    assert all(set(zip(o.features.tolist(), o.cuts.tolist(), strict=True)) == cuts for o in orders)
    assert (orders[0].order != orders[1].order).any()
    assert (Candidates(sizes, orders[0].order).features == orders[0].features).all()


@given(n=st.integers(1, 40), seed=st.integers(0, 999), dtype=st.sampled_from([U32, U64]))
@settings(max_examples=40, deadline=None)
def test_nodes_come_as_they_were_sent(n, seed, dtype):
    rng = np.random.default_rng(seed)
    sets = [np.flatnonzero(rng.random(n) < p) for p in (0.3, 1.0, 0.9)]
    sets = [rows for rows in sets if len(rows)]
    masked = [ring.Stream(b"m" * 32).draw(len(rows), 3, dtype=dtype) for rows in sets]
    done = converse({
        "g": lambda c: send_nodes(c, "h", sets, masked, n),
        "h": lambda c: recv_nodes(c, "g", n, 3, dtype, most=3, least=1),
    })  # fmt: skip
    for got, sent in zip(done.result("h"), (sets, masked), strict=True):
        assert all((a == b).all() for a, b in zip(got, sent, strict=True)) and len(got) == len(sent)


def test_rows_that_do_not_exist_are_refused():
    done = converse({
        "g": lambda c: send_nodes(c, "h", [np.array([1, 14])], [np.zeros((2, 1), np.uint32)], 15),
        "h": lambda c: recv_nodes(c, "g", 14, 1, U32, most=1, least=1),
    })  # fmt: skip
    assert isinstance(done.results["h"], BadFrame)


# ---- what is under it


@pytest.mark.parametrize("keep", [0, 1 << 20])
@pytest.mark.parametrize("dtype", [U32, U64])
def test_products_over_several_row_sets_are_those_of_one_after_the_other(dtype, keep):
    mask = ring.Mask(b"k" * 32, 3000, 300, dtype, keep=keep)
    whole = ring.Mask(b"k" * 32, 3000, 300, dtype).rows(0, 3000)
    sets = [np.arange(3000), np.arange(1, 3000, 3), np.array([0, 1023, 1024, 2999]), np.empty(0, np.int64)]
    vectors = [ring.Stream(bytes([i]) * 32).draw(len(rows), 2, dtype=dtype) for i, rows in enumerate(sets)]
    for chosen in (sets, sets[1:], sets[2:3]):
        mine = vectors[len(sets) - len(chosen) :] if len(chosen) > 1 else vectors[2:3]
        made = ring.rows_products_t(mask, chosen, mine)
        want = [ring.product_t(np.ascontiguousarray(whole[rows]), v) for rows, v in zip(chosen, mine, strict=True)]
        assert all((a == b).all() for a, b in zip(made, want, strict=True))


@pytest.mark.parametrize("bits", [0, 10, 11, 12, 21, 22, 23, 31])
@pytest.mark.parametrize("off", [-1, 0, 1])
def test_products_are_exact_at_the_edges_of_limbs(bits, off):
    """Few limbs serve small numbers: none is lost where they are just too large for that."""
    top = min(2**bits + off, 2**31 - 1)
    m = ring.Stream(b"e" * 32).draw(600, 3, dtype=U32)
    m[0], m[1] = 2**31, 2**31 - 1
    for value in (top, -top):
        v = np.full((600, 1), value % 2**32, dtype=np.uint32)
        v[300:] = 5
        want = [sum(int(a) * int(b) for a, b in zip(m[:, j], v[:, 0], strict=True)) % 2**32 for j in range(3)]
        assert ring.product_t(m, v)[:, 0].tolist() == want


@pytest.mark.parametrize(
    "wrong", [{"sets": [1]}, {"matrix": 1}, {"to": "nobody"}, {"sets": [0], "rows": [9]}, {"count": -1}]
)
def test_a_bad_order_of_histograms_ends_the_dealer(wrong):
    def active(channel):
        script = Script()
        script.matrix("h", 8, 3, 32)
        script.sets.append(to_bits(np.array(wrong.get("rows", [7]))))
        script.histograms(0, "g", [0], 2)
        script.ops[-1] |= wrong
        Dealt(channel, "d").order(script)

    done = converse({"g": active, "h": lambda c: Dealt(c, "d"), "d": lambda c: Dealer(c, "g", ["g", "h"]).serve()})
    assert isinstance(done.results["d"], BadFrame)
