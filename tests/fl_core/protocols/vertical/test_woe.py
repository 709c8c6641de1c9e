"""Weights of evidence under shares are those of counting in one place; no bin of few rows is told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.errors import BadFrame, DataError
from fl_core.protocols.vertical.dealer import Dealer
from fl_core.protocols.vertical.woe import merge_bins, plain_woe, woe_active, woe_passive
from tests.fl_core.protocols.parties import converse

LEAST = 50


def data(n=1200, seed=0):
    rng = np.random.default_rng(seed)
    sizes = np.array([8, 2, 32, 5, 3])
    codes = np.stack([np.minimum(rng.geometric(0.2, n) - 1, s - 1) for s in sizes], axis=1).astype(np.uint8)
    codes[:, 4] = 1
    y = (rng.random(n) < 0.1 + 0.08 * codes[:, 0]).astype(float)
    return codes, sizes, y, np.sort(rng.permutation(n)[: n * 3 // 4])


def train(passives, y, rows, *, fault=None, least=LEAST):
    """A session; `passives`: name → (codes, sizes, its own least)."""
    programs = {"g": lambda c: woe_active(c, "d", list(passives), y, rows, min_rows_open=least)}
    for name, (codes, sizes, own) in passives.items():
        programs[name] = lambda c, codes=codes, sizes=sizes, own=own: woe_passive(
            c, "d", "g", codes, sizes, rows, min_rows_open=own
        )
    programs["d"] = lambda c: Dealer(c, "g", ["g", *passives]).serve()
    return converse(programs, fault=fault, timeout=3)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=80), st.integers(1, 30))
@settings(max_examples=100, deadline=None)
def test_merged_bins_are_neighbours_and_none_is_small(codes, least):
    codes = np.array(codes, dtype=np.uint8)
    bins = merge_bins(codes, 10, least)
    assert bins[0] == 0 and set(np.diff(bins)) <= {0, 1}
    counts = np.bincount(bins[codes], minlength=bins.max() + 1)
    assert counts.min() >= least or bins.max() == 0
    if least == 1:
        assert bins.max() + 1 == len(np.unique(codes))


def test_weights_are_those_of_counting_in_one_place():
    codes, sizes, y, rows = data()
    more = codes[::-1][:, :2].copy()
    session = train({"h": (codes, sizes, LEAST), "i": (more, sizes[:2], LEAST)}, y, rows)
    session.result("d")
    for name, own, count in (("h", codes, sizes), ("i", more, sizes[:2])):
        made, plain = session.result(name), plain_woe(own, count, y, rows, LEAST)
        assert [v.shape for v in made.values] == [(s,) for s in count]
        assert all((a == b).all() for a, b in zip(made.values, plain.values, strict=True))
        assert (made.iv == plain.iv).all()
        told = session.result("g")[name]
        assert sorted(told) == sorted(
            plain.iv[[len(np.unique(v)) > 1 or i > 0 for v, i in zip(plain.values, plain.iv, strict=True)]]
        )
    assert session.result("h").iv[0] > 0.2 and session.result("h").iv[4] == 0


def test_the_formula_by_hand():
    codes = np.repeat(np.array([0, 1], np.uint8), 100)[:, None]
    y = np.concatenate([np.arange(100) < 20, np.arange(100) < 80]).astype(float)
    woe = plain_woe(codes, np.array([2]), y, np.arange(200), LEAST)
    assert np.allclose(woe.values[0], [round(np.log(0.2 / 0.8), 3), round(np.log(0.8 / 0.2), 3)])
    assert woe.iv[0] == round(2 * 0.6 * np.log(4), 3)


def test_features_stand_in_another_order_each_time():
    codes, sizes, y, rows = data()
    seen = {tuple(train({"h": (codes, sizes, LEAST)}, y, rows).result("g")["h"]) for _ in range(8)}
    assert len(seen) > 1 and len({tuple(sorted(one)) for one in seen}) == 1


def test_a_bin_of_few_rows_ends_the_session_at_the_active_party():
    codes, sizes, y, rows = data()
    session = train({"h": (codes[:, :2], sizes[:2], 3)}, y, rows)
    assert isinstance(session.results["g"], BadFrame) and "50" in str(session.results["g"])


def test_a_party_without_a_feature_of_two_bins_is_no_error():
    codes, sizes, y, rows = data()
    session = train({"h": (codes[:, 4:], sizes[4:], LEAST)}, y, rows)
    session.result("d")
    assert session.result("g")["h"].size == 0
    assert session.result("h").values[0].tolist() == [0, 0, 0] and session.result("h").iv.tolist() == [0]


@pytest.mark.parametrize("y", [np.zeros(1200), np.full(1200, 2.0), np.full(1200, np.nan)])
def test_labels_of_another_kind_are_refused(y):
    codes, sizes, _, rows = data()
    assert isinstance(train({"h": (codes, sizes, LEAST)}, y, rows).results["g"], DataError)


def test_too_few_rows_are_refused_by_both():
    codes, sizes, y, rows = data()
    session = train({"h": (codes, sizes, LEAST)}, y, rows[:49])
    assert isinstance(session.results["g"], DataError) and isinstance(session.results["h"], DataError)


@pytest.mark.parametrize(
    ("sender", "step", "change", "at"),
    [
        ("h", "bins of features", lambda d: bytes(len(d)), "g"),
        ("h", "bins of features", lambda d: b"\xff" * len(d), "g"),
        ("h", "histogram shares", lambda d: d[:-4], "g"),
        ("h", "histogram shares", lambda d: bytes(len(d)), "g"),
        ("g", "weights of evidence", lambda d: d[:-8], "h"),
        ("g", "weights of evidence", lambda d: b"\x7f" * len(d), "h"),
        ("g", "weights of evidence", lambda d: b"\xff" * len(d), "h"),
    ],
)
def test_what_does_not_fit_is_named(sender, step, change, at):
    codes, sizes, y, rows = data()
    session = train(
        {"h": (codes, sizes, LEAST)}, y, rows,
        fault=lambda who, to, what, d: change(d) if (who, what) == (sender, step) else d,
    )  # fmt: skip
    assert isinstance(session.results[at], BadFrame)
