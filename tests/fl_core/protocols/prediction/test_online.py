"""Blocks of ids and what is found of them, as bytes from somebody else."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_core.errors import BadMessage, DataError
from fl_core.protocols.prediction.online import (
    VerticalOffer,
    check_online,
    make_block,
    make_found,
    read_block,
    read_found,
)


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=5), st.integers(0, 6), st.binary(max_size=3))
def test_a_block_comes_back_and_no_other_size_is_one(ids, rows, more):
    hashes = np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32)
    data = make_block(hashes) + more
    if rows == len(ids) and not more:
        assert (read_block(data, rows) == hashes).all()
    elif len(data) != 16 + 32 * rows:
        with pytest.raises(BadMessage):
            read_block(data, rows)
    assert make_block(hashes)[:16] != data[:16]


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(0, 3), st.randoms())
def test_what_is_found_comes_back(here, outputs, random):
    count = sum(here)
    sums = np.array([random.getrandbits(64) for _ in range(count * outputs)], np.uint64).reshape(count, outputs)
    data = make_found(np.array(here), sums if outputs else None)
    flags, found = read_found(data, len(here), outputs)
    assert flags.tolist() == here and found.shape == (count, outputs) and (found == sums).all()


@given(st.binary(max_size=60), st.integers(1, 8), st.integers(0, 2))
def test_whatever_is_sent_for_what_is_found_is_read_in_full_or_refused(data, rows, outputs):
    try:
        flags, sums = read_found(data, rows, outputs)
    except BadMessage:
        return
    assert len(flags) == rows and len(data) == 16 + rows + 8 * sums.size and sums.shape == (flags.sum(), outputs)


OFFER = {"name": "n", "version": "0", "run": "r", "training": "0" * 64, "algorithm": "gbdt", "block": 5}


@pytest.mark.parametrize(
    "change",
    [{"name": 1}, {"run": "x" * 129}, {"training": "0" * 63}, {"training": None}, {"block": 0}, {"block": 1001},
     {"block": True}, {"block": "5"}, {"more": 1}, None],
)  # fmt: skip
def test_a_model_described_in_another_way_is_refused(change):
    assert VerticalOffer.from_dict(VerticalOffer.from_dict(OFFER).to_dict()) == VerticalOffer(**OFFER)
    with pytest.raises(BadMessage):
        VerticalOffer.from_dict([OFFER] if change is None else OFFER | change)


def test_a_split_network_has_no_scores_by_id():
    training = SimpleNamespace(algorithm="split-nn", parties=("a", "b"))
    with pytest.raises(DataError, match="a model by split-nn; allowed: logistic or gbdt"):
        check_online(SimpleNamespace(training=training, where="party a", is_active=True), active=True)
