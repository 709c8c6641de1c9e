from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_core.errors import BadMessage
from fl_core.job import Train
from fl_core.learning import optimizers

STRATEGIES = ["fedavg", "fedprox", "fedavgm", "fedadam"]


def test_fedadam_follows_the_papers_algorithm_by_hand():
    train = Train(strategy="fedadam", server_learning_rate=0.1, server_momentum=0.5)
    w, state = optimizers.apply(train, optimizers.init("fedadam", 1), np.array([1.0]), np.array([2.0]))
    # m = .5·0 + .5·2 = 1;  v = .99·1e-6 + .01·4 = .04000099;  w = 1 + .1·1/(sqrt(v) + .001)
    assert w[0] == pytest.approx(1 + 0.1 / (0.04000099**0.5 + 0.001), rel=1e-15)
    w2, state = optimizers.apply(train, state, w, np.array([-1.0]))
    # m = .5·1 - .5 = 0: no step whatever v is;  v = .99·.04000099 + .01
    assert w2[0] == w[0] and state.moments[1, 0] == pytest.approx(0.0496009801, rel=1e-12)


def test_fedavgm_by_hand():
    train = Train(strategy="fedavgm", server_momentum=0.9)
    w, state = optimizers.apply(train, optimizers.init("fedavgm", 2), np.zeros(2), np.array([1.0, -2.0]))
    assert w.tolist() == [1.0, -2.0]
    w, _ = optimizers.apply(train, state, w, np.array([1.0, 0.0]))
    assert w == pytest.approx([1 + 1.9, -2 - 1.8])


def test_fedavg_takes_the_mean_update_as_it_is():
    for strategy in ("fedavg", "fedprox"):
        w, _ = optimizers.apply(
            Train(strategy=strategy), optimizers.init(strategy, 2), np.ones(2), np.array([0.1, 0.2])
        )
        assert w.tolist() == [1.1, 1.2]
    half = Train(server_learning_rate=0.5)
    assert optimizers.apply(half, optimizers.init("fedavg", 1), np.ones(1), np.ones(1))[0].tolist() == [1.5]


@given(st.sampled_from(STRATEGIES), st.integers(0, 2**32 - 1))
def test_parties_that_apply_the_same_updates_agree_to_the_bit_also_after_a_restart(strategy, seed):
    rng = np.random.default_rng(seed)
    train, w1 = Train(strategy=strategy), rng.normal(size=5)
    w2, s1 = w1.copy(), optimizers.init(strategy, 5)
    s2 = s1
    for _ in range(3):
        update = rng.normal(size=5)
        before = (w1.copy(), s1.moments.copy(), update.copy())
        new, after = optimizers.apply(train, s1, w1, update)
        assert (w1 == before[0]).all() and (s1.moments == before[1]).all() and (update == before[2]).all()
        w1, s1 = new, after
        w2, s2 = optimizers.apply(train, optimizers.load(optimizers.dump(s2)), w2, update)
    assert w1.tobytes() == w2.tobytes() and optimizers.dump(s1) == optimizers.dump(s2)


def test_a_state_of_another_strategy_or_size_is_refused():
    with pytest.raises(ValueError, match="fedadam"):
        optimizers.apply(Train(strategy="fedadam"), optimizers.init("fedavg", 3), np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="update"):
        optimizers.apply(Train(), optimizers.init("fedavg", 3), np.zeros(3), np.zeros(1))


def test_an_unreadable_state_is_refused():
    import io

    wrong = io.BytesIO()
    np.savez(wrong, moments=np.zeros(3))
    for data in (b"", b"PK\x03\x04", optimizers.dump(optimizers.init("fedadam", 9))[:60], wrong.getvalue()):
        with pytest.raises(BadMessage):
            optimizers.load(data)
