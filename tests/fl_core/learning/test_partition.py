from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.errors import JobFileError
from fl_core.learning.partition import deal, holdout, split_rows

LABELS = st.lists(st.integers(0, 4), max_size=60).map(lambda v: np.array(v, dtype=np.int64))


@settings(deadline=None)
@given(
    LABELS,
    st.integers(1, 12),
    st.sampled_from(["iid", "dirichlet"]),
    st.sampled_from([1e-6, 0.05, 0.5, 100.0]),
    st.integers(0, 99),
)
def test_no_row_is_lost_doubled_or_moved_and_no_party_is_empty(y, parties, partition, alpha, seed):
    if len(y) < parties:
        with pytest.raises(JobFileError, match=rf"dataset.parties: {parties} parties for {len(y)} rows"):
            split_rows(y, parties, partition=partition, alpha=alpha, seed=seed)
        return
    parts = split_rows(y, parties, partition=partition, alpha=alpha, seed=seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(y)))
    assert all(len(part) > 0 for part in parts) and len(parts) == parties
    again = split_rows(y, parties, partition=partition, alpha=alpha, seed=seed)
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))
    if partition == "iid":
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_tiny_dirichlet_part_cannot_stop_a_run():
    y = np.repeat(np.arange(10), 180)
    for seed in range(5):
        sizes = [len(p) for p in split_rows(y, 20, partition="dirichlet", alpha=0.02, seed=seed)]
        assert min(sizes) >= 10 and sum(sizes) == 1800


def test_a_small_alpha_skews_classes_and_a_large_one_does_not():
    y = np.repeat(np.arange(10), 200)

    def largest_share(alpha):
        parts = split_rows(y, 4, partition="dirichlet", alpha=alpha, seed=3)
        return np.mean([np.bincount(y[p], minlength=10).max() / len(p) for p in parts])

    assert largest_share(1000.0) < 0.13 < 0.2 < largest_share(0.1)


def test_many_parties_are_dealt_in_time():
    y = np.arange(20_000) % 10
    assert min(map(len, split_rows(y, 5_000, partition="dirichlet", alpha=0.3, seed=0))) >= 2


def test_an_unknown_partition_is_named():
    with pytest.raises(JobFileError, match=r"'columns'; allowed: iid \| dirichlet"):
        split_rows(np.zeros(9, dtype=np.int64), 3, partition="columns", alpha=1.0, seed=0)


def test_fewer_test_rows_than_parties_leave_some_without():
    parts = deal(2, 5, seed=1, purpose="test rows")
    assert sorted(map(len, parts)) == [0, 0, 0, 1, 1]


@given(LABELS, st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9]), st.integers(0, 99))
def test_a_holdout_keeps_a_training_row_of_every_class(y, fraction, seed):
    train, test = holdout(y, fraction, seed)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(y)))
    assert set(y[train].tolist()) == set(y.tolist())
    taken, counts = np.array([(np.sum(y[test] == c), np.sum(y == c)) for c in np.unique(y)]).reshape(-1, 2).T
    assert (np.abs(taken - fraction * counts) <= 1).all() and (taken < counts).all()
    if (fraction * counts <= counts - 1).all():
        assert len(test) == round(fraction * len(y))
    assert (holdout(y, fraction, seed)[1] == test).all()


def test_a_holdout_matches_scikit_learn_in_class_counts():
    from sklearn.model_selection import train_test_split

    y = np.repeat([0, 1, 2], [50, 30, 20])
    _, theirs = train_test_split(y, test_size=0.2, stratify=y, random_state=0)
    assert np.bincount(y[holdout(y, 0.2, 7)[1]]).tolist() == np.bincount(theirs).tolist() == [10, 6, 4]


def test_another_seed_holds_out_other_rows():
    y = np.zeros(100, dtype=np.int64)
    assert holdout(y, 0.2, 1)[1].tolist() != holdout(y, 0.2, 2)[1].tolist()
