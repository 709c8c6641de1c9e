from __future__ import annotations

import math
import time
import warnings

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from fl_core.errors import DataError, JobFileError
from fl_core.job import Privacy, Train
from fl_core.learning import privacy
from fl_core.learning.privacy import Plan, Spend, epsilon, find_noise_multiplier


def opacus_epsilon(spends, delta):
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(s.noise_multiplier, s.sample_rate, s.steps) for s in spends]
    return accountant.get_epsilon(delta, alphas=list(privacy.ORDERS))


@pytest.mark.parametrize(
    "spends",
    [
        [Spend(1.1, 0.01, 1000)],
        [Spend(2.0, 0.356, 60)],
        [Spend(2.0, 0.356, 60), Spend(4.0, 0.1, 200), Spend(1.0, 0.001, 5000)],
        [Spend(8.0, 1.0, 5), Spend(3.0, 0.5, 7), Spend(8.0, 1.0, 5)],
        [Spend(50.0, 0.01, 3)],
    ],
)
@pytest.mark.parametrize("delta", [1e-5, 1e-7])
def test_epsilon_is_that_of_opacus_over_several_jobs(spends, delta):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = opacus_epsilon(spends, delta)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert epsilon(spends, delta) == pytest.approx(theirs, rel=1e-12)


def test_full_batches_compose_as_the_gaussian_mechanism():
    """Without sampling RDP is α·steps/(2σ²); the conversion is theorem 21 of arXiv 1905.09982."""
    orders = [1 + x / 1000 for x in range(1, 60_000)]
    delta, rho = 1e-5, 10 / (2 * 16.0)
    best = min(a * rho - (math.log(delta) + math.log(a)) / (a - 1) + math.log1p(-1 / a) for a in orders)
    assert best <= epsilon([Spend(4.0, 1.0, 10)], delta) <= best * 1.002


@settings(deadline=None, max_examples=20)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.8, 2.0]), st.sampled_from([0.1, 1.0]), st.integers(0, 50)),
        max_size=4,
    )
)
def test_epsilon_never_falls_when_a_job_is_added_and_forgets_no_order(history):
    spends = [Spend(*h) for h in history]
    everything = epsilon(spends, 1e-5)
    assert everything == pytest.approx(epsilon(reversed(spends), 1e-5), rel=1e-12)
    assert all(epsilon(spends[:i], 1e-5) <= everything + 1e-12 for i in range(len(spends)))


def test_nothing_spent_is_zero_and_no_noise_is_infinite():
    assert epsilon([], 1e-5) == 0.0 == epsilon([Spend(1.0, 0.5, 0)], 1e-5)
    assert epsilon([Spend(0.0, 0.5, 1)], 1e-5) == math.inf == epsilon([Spend(0.0, 1.0, 1)], 1e-5)


@pytest.mark.parametrize("spend", [Spend(-1.0, 0.5, 1), Spend(1.0, 0.0, 1), Spend(1.0, 1.1, 1), Spend(1.0, 0.5, -1)])
def test_a_spending_that_would_lower_epsilon_is_refused(spend):
    with pytest.raises(ValueError, match="not a spending"):
        epsilon([spend], 1e-5)


def test_a_reported_epsilon_is_never_rounded_down():
    assert [privacy.round_up(e) for e in (0.0, 0.001, 2.99, 2.9901, 3, 3.0000001)] == [
        "0.00", "0.01", "2.99", "3.00", "3.00", "3.01",
    ]  # fmt: skip
    assert privacy.round_up(math.inf) == "inf"


@settings(deadline=None, max_examples=15, phases=[Phase.explicit, Phase.generate])
@example(3.0, 1e-8, 1.0, 2)  # the best order lies between two of the coarse search
@given(
    st.floats(0.05, 50.0),
    st.sampled_from([1e-3, 1e-5, 1e-8]),
    st.sampled_from([1.0, 0.5, 0.1, 0.01, 0.001]),
    st.integers(1, 20_000),
)
def test_the_noise_found_always_meets_the_target_and_hardly_more(target, delta, q, steps):
    sigma = find_noise_multiplier(target, delta, sample_rate=q, steps=steps)
    assert epsilon([Spend(sigma, q, steps)], delta) <= target
    assert sigma == privacy.MIN_NOISE or epsilon([Spend(sigma * 0.998, q, steps)], delta) > target


def test_planning_takes_well_under_a_second():
    epsilon([Spend(1.0, 0.5, 1)], 1e-5)  # imports
    started = time.perf_counter()
    find_noise_multiplier(3.1, 1e-5, sample_rate=0.3121, steps=77)
    assert time.perf_counter() - started < 1.0


def test_a_target_below_what_can_be_proven_names_its_key():
    with pytest.raises(JobFileError, match=r"privacy\.target_epsilon: 1e-05 cannot be reached"):
        find_noise_multiplier(1e-5, 1e-5, sample_rate=1.0, steps=5)


def test_a_plan_counts_every_step_of_every_round():
    train = Train(rounds=5, local_epochs=4, batch_size=128)
    plan = privacy.plan_dp_sgd(train, Privacy(mechanism="dp-sgd", target_epsilon=8.0), 360)
    assert (plan.sample_rate, plan.steps_per_round, plan.rounds) == (128 / 360, 4 * 3, 5)
    assert plan.total() == Spend(plan.noise_multiplier, 128 / 360, 60) and plan.spend(2).steps == 24
    assert 7.9 < epsilon([plan.total()], 1e-5) <= 8.0


def test_a_batch_larger_than_the_data_takes_every_row():
    plan = privacy.plan_dp_sgd(Train(rounds=1, batch_size=500), Privacy(), 20)
    assert plan.sample_rate == 1.0 and plan.steps_per_round == 1
    with pytest.raises(DataError, match="no training rows"):
        privacy.plan_dp_sgd(Train(), Privacy(), 0)


def test_a_plan_for_whole_updates_takes_one_step_a_round():
    plan = privacy.plan_client_dp(Train(rounds=7), Privacy(target_epsilon=2.0))
    assert plan.total() == Spend(plan.noise_multiplier, 1.0, 7)
    assert isinstance(plan, Plan) and epsilon([plan.total()], 1e-5) <= 2.0


def test_no_rounds_spend_nothing():
    plan = privacy.plan_client_dp(Train(rounds=0), Privacy())
    assert epsilon([plan.total()], 1e-5) == 0.0
