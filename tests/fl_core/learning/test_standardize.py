from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_core.errors import DataError, TrainingDiverged
from fl_core.learning import standardize

ROWS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 6), st.just(2)),
    elements=st.one_of(
        st.floats(-1e9, 1e9, width=32, allow_subnormal=False),
        st.floats(-(2**-10), 2**-10, width=32),
        st.just(3.0),
    ),
)


@settings(deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=8), st.integers(0, 99))
def test_pooled_sums_equal_the_concatenated_data(parts, seed):
    every = np.concatenate(parts).astype(np.longdouble)
    ckks_error = np.random.default_rng(seed).uniform(-1e-4, 1e-4, standardize.num_limbs(2))
    total = np.sum([standardize.to_limbs(p) for p in parts], axis=0) + ckks_error
    if len(every) == 0:
        with pytest.raises(TrainingDiverged, match="row count is 0"):
            standardize.from_limbs(total, 2)
        return
    count, mean, std = standardize.from_limbs(total, 2)
    assert count == len(every)
    assert np.allclose(mean, every.mean(axis=0).astype(float), rtol=1e-12, atol=1e-15)
    expected = every.std(axis=0).astype(float)
    for got, want in zip(std, expected, strict=True):
        assert got == pytest.approx(want, rel=1e-4) or (got == 1.0 and want < 2**-27)


def test_a_large_mean_does_not_eat_the_deviation():
    x = (np.float32(1e6) + np.array([0, 1, 2, 3], dtype=np.float32))[:, None]
    _, mean, std = standardize.from_limbs(standardize.to_limbs(x[:2]) + standardize.to_limbs(x[2:]), 1)
    assert mean[0] == 1e6 + 1.5 and std[0] == pytest.approx(1.25**0.5, rel=1e-12)


def test_64_parties_stay_within_the_ciphertexts_headroom():
    x = np.full((50, 3), -98765.4, dtype=np.float32)
    limbs = standardize.to_limbs(x)
    assert np.abs(limbs).max() <= standardize.LIMB_BOUND and (limbs == np.rint(limbs)).all()
    assert np.abs(limbs * standardize.MAX_PARTIES).max() < 2**13
    count, mean, std = standardize.from_limbs(limbs * standardize.MAX_PARTIES, 3)
    assert count == 3200 and mean == pytest.approx([np.float32(-98765.4)] * 3, rel=1e-15) and std.tolist() == [1, 1, 1]


def test_a_feature_too_large_is_refused_by_its_number():
    x = np.zeros((2, 3), dtype=np.float32)
    x[1, 2] = 1e25
    with pytest.raises(DataError, match="feature 2: too large"):
        standardize.to_limbs(x)


def test_a_sum_under_a_wrong_key_is_not_taken_for_statistics():
    good = standardize.to_limbs(np.ones((3, 2), dtype=np.float32))
    noise = np.random.default_rng(1).uniform(-4000, 4000, len(good))
    for bad in (noise, good[:-1], good + 0.45, good * np.nan, np.zeros_like(good)):
        with pytest.raises(TrainingDiverged):
            standardize.from_limbs(bad, 2)


def test_a_negative_variance_is_refused():
    good = standardize.to_limbs(np.array([[1.0], [3.0]], dtype=np.float32))
    good[2 * standardize.LIMBS :] = 0  # sum of squares gone
    with pytest.raises(TrainingDiverged, match="negative"):
        standardize.from_limbs(good, 1)


def test_standardised_features_are_float32_and_clipped():
    x = np.array([[1.0, 1e9], [3.0, -1e9]], dtype=np.float32)
    out = standardize.apply_standardization(x, np.array([2.0, 0.0]), np.array([1.0, 1.0]))
    assert out.dtype == np.float32 and out.tolist() == [[-1.0, 10.0], [1.0, -10.0]]
