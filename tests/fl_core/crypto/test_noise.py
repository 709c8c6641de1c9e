from __future__ import annotations

import math
import multiprocessing

import numpy as np
import pytest
from scipy import stats

from fl_core.crypto.noise import OsStream, SeededStream

N = 200_000


@pytest.mark.parametrize("stream", [OsStream(), SeededStream(seed=b"moments")], ids=["os", "seeded"])
def test_gaussian_is_gaussian(stream) -> None:
    sample = stream.gaussian(N, 2.5) / 2.5
    assert abs(sample.mean()) < 6 / math.sqrt(N)
    assert abs(sample.var() - 1) < 6 * math.sqrt(2 / N)
    assert abs(stats.skew(sample)) < 6 * math.sqrt(6 / N)
    assert abs(stats.kurtosis(sample)) < 6 * math.sqrt(24 / N)
    assert stats.kstest(sample, "norm").pvalue > 1e-6


def test_neighbouring_samples_are_not_correlated() -> None:
    """A Box-Muller pair's two halves go to neighbours, and must still be independent."""
    sample = SeededStream(b"pairs").gaussian(N, 1.0)
    for lag in (1, 2):
        for f in (np.asarray, np.square, np.abs):
            x = f(sample)
            assert abs(np.corrcoef(x[:-lag], x[lag:])[0, 1]) < 6 / math.sqrt(N)


def test_uniform_has_53_bits_and_excludes_one() -> None:
    sample = SeededStream(b"uniform").uniform(N)
    assert sample.min() >= 0 and sample.max() < 1
    words = sample * 2.0**53
    assert np.array_equal(words, np.floor(words))
    bits = (words.astype(np.uint64)[:, None] >> np.arange(53, dtype=np.uint64)) & 1
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 6 * 0.5 / math.sqrt(N)
    assert stats.kstest(sample, "uniform").pvalue > 1e-6


def test_coins_have_the_stated_probability() -> None:
    stream = SeededStream(b"coins")
    for p in (0.001, 0.3, 0.97):
        assert abs(stream.bernoulli_mask(N, p).mean() - p) < 6 * math.sqrt(p * (1 - p) / N)
    assert not stream.bernoulli_mask(N, 0.0).any() and stream.bernoulli_mask(N, 1.0).all()


@pytest.mark.parametrize("n", [0, 1, 2, 3, 65535, 65536, 65537])
def test_every_length_is_served(n: int) -> None:
    sample = OsStream().gaussian(n, 1.0)
    assert sample.shape == (n,) and sample.dtype == np.float64 and np.isfinite(sample).all()
    assert OsStream().bernoulli_mask(n, 0.5).dtype == np.bool_
    assert len(np.unique(sample)) == n


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_meaningless_parameters_are_refused(bad: float) -> None:
    with pytest.raises(ValueError):
        OsStream().gaussian(3, bad)
    with pytest.raises(ValueError):
        OsStream().bernoulli_mask(3, bad)


def test_seeded_stream_repeats_and_seeds_differ() -> None:
    assert np.array_equal(SeededStream(b"a").gaussian(50, 1.0), SeededStream(b"a").gaussian(50, 1.0))
    assert not np.array_equal(SeededStream(b"a").uniform(50), SeededStream(b"b").uniform(50))
    stream = SeededStream(b"a")
    assert not np.array_equal(stream.uniform(50), stream.uniform(50))


def test_neither_stream_touches_numpys_global_generator() -> None:
    np.random.seed(3)
    before = OsStream().gaussian(10, 1.0)
    state = np.random.get_state()[1].copy()
    np.random.seed(3)
    assert not np.array_equal(before, OsStream().gaussian(10, 1.0))
    assert np.array_equal(state, np.random.get_state()[1])


def _child(queue, stream: OsStream) -> None:
    queue.put(stream.uniform(8).tolist())


def test_fork_does_not_repeat_the_parents_noise() -> None:
    context = multiprocessing.get_context("fork")
    stream, queue = OsStream(), context.SimpleQueue()
    stream.uniform(1)
    children = [context.Process(target=_child, args=(queue, stream)) for _ in range(2)]
    for child in children:
        child.start()
    drawn = [tuple(queue.get()) for _ in children] + [tuple(stream.uniform(8).tolist())]
    for child in children:
        child.join()
    assert len(set(drawn)) == 3
