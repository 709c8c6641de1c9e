"""Parts of a split network: built alike everywhere, kept without code, gone on with exactly."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fl_core.errors import DataError, JobFileError
from fl_core.learning.split_models import Learner, SplitPart, SplitSettings, build_part, row_losses

SETTINGS = SplitSettings(
    epochs=1, batch_size=8, learning_rate=0.01, hidden=(5,), channels=(2, 3), embedding=4, top_hidden=(6,)
)


def active(settings=SETTINGS, shape=(3,), party="g"):
    return build_part(
        settings, shape, party=party, embeddings=2, objective="multiclass", outputs=3, mean=0.5, scale=2.0
    )


@pytest.mark.parametrize("shape", [(3,), (1,), (28, 14), (8, 3), (1, 1), (3, 9, 7)])
def test_rows_of_every_shape_become_embeddings_within_one(shape):
    part = build_part(SETTINGS, shape, party="h")
    x = 100 * np.random.default_rng(0).normal(size=(7, *shape)).astype(np.float32)
    embedding = part.bottom(torch.from_numpy(x)).detach()
    assert embedding.shape == (7, 4) and embedding.abs().max() <= 1.0 and embedding.std() > 0.01
    assert part.top is None and set(part.modules) == {"bottom"}


@pytest.mark.parametrize("shape", [(), (1, 2, 3, 4), (0,), (3, 0)])
def test_rows_that_no_bottom_model_takes_are_refused(shape):
    with pytest.raises(DataError, match="rows of shape"):
        build_part(SETTINGS, shape, party="h")


def test_weights_depend_on_seed_and_party_alone_and_leave_torchs_state():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = active().to_arrays()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = active().to_arrays(), active(party="h").to_arrays()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


def test_weights_have_the_spread_that_torch_gives_its_layers():
    settings = SplitSettings(epochs=1, batch_size=1, learning_rate=1.0, hidden=(300,))
    weight = build_part(settings, (200,), party="h").to_arrays()["bottom.0.0.weight"]
    assert np.abs(weight).max() == pytest.approx(200**-0.5, rel=0.01)
    assert weight.std() == pytest.approx(torch.nn.Linear(200, 300).weight.std().item(), rel=0.02)


@pytest.mark.parametrize("shape", [(3,), (8, 4), None])
def test_a_part_comes_back_from_json_and_arrays(shape):
    part = active(shape=shape)
    described = json.loads(json.dumps(part.describe()))
    back = SplitPart.from_arrays(described, part.to_arrays())
    assert back.describe() == part.describe() and (back.settings, back.input_shape) == (SETTINGS, shape)
    joined = torch.randn(5, 8)
    assert torch.equal(back.top(joined), part.top(joined))
    if shape:
        x = torch.randn(5, *shape)
        assert torch.equal(back.bottom(x), part.bottom(x))


def spoiled_arrays():
    good = active().to_arrays()
    name = next(iter(good))
    yield {k: v for k, v in good.items() if k != name}
    yield good | {"top.9.weight": np.zeros(1, np.float32)}
    yield good | {name: good[name].T}
    yield good | {name: good[name].astype(np.float64)}
    yield good | {name: np.full_like(good[name], np.nan)}


@pytest.mark.parametrize("arrays", spoiled_arrays())
def test_weights_that_do_not_fit_are_refused(arrays):
    with pytest.raises(DataError, match="its weights are not"):
        SplitPart.from_arrays(active().describe(), arrays)


@pytest.mark.parametrize(
    "change",
    [{"format": "other"}, {"settings": None}, {"settings": {"epochs": 1}}, {"input_shape": "abc"}, {"outputs": "x"}],
    ids=str,
)
def test_a_description_of_something_else_is_refused(change):
    with pytest.raises(DataError, match=r"^model: "):
        SplitPart.from_arrays(active().describe() | change, active().to_arrays())


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("batch_size", 0), ("learning_rate", 0.0), ("learning_rate", float("nan")), ("optimizer", "lbfgs"),
     ("hidden", (0,)), ("channels", (0,)), ("embedding", 0), ("gradient", "noise"), ("gradient_power", 0.0),
     ("clipping_norm", 0.0), ("noise_multiplier", 0.0), ("noise_multiplier", float("inf")), ("early_stopping", -1),
     ("class_weight", (1.0, 0.0)), ("l2", -1.0), ("momentum", 1.0), ("device", "tpu")],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(name, value):
    with pytest.raises(JobFileError, match=f"^vertical.{name}: .*allowed: "):
        SplitSettings(**{"epochs": 1, "batch_size": 1, "learning_rate": 1.0} | {name: value})


def test_losses_are_cross_entropy_and_squared_error():
    z = np.array([[-2.0], [0.5], [3.0]], np.float32)
    y = np.array([1.0, 0.0, 1.0], np.float32)
    p = 1 / (1 + np.exp(-z[:, 0]))
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    assert row_losses("binary", torch.from_numpy(z), torch.from_numpy(y)).numpy() == pytest.approx(expected, rel=1e-5)
    assert row_losses("regression", torch.from_numpy(z), torch.from_numpy(y)).numpy() == pytest.approx([9.0, 0.25, 4.0])
    logits = np.array([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]], np.float32)
    found = row_losses("multiclass", torch.from_numpy(logits), torch.tensor([2, 1])).numpy()
    assert found == pytest.approx(-np.log([np.exp(2) / np.exp([0, 1, 2]).sum(), 1 / (np.exp(3) + 2)]), rel=1e-5)


def steps(learner, count):
    for _ in range(count):
        loss = sum((p**3).sum() for p in learner.part.parameters().values())
        loss.backward()
        learner.step()


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.0}, {"l2": 0.1}], ids=str
)
def test_an_optimiser_goes_on_where_it_was(changes):
    settings = SplitSettings(epochs=1, batch_size=1, learning_rate=0.05, hidden=(3,), embedding=2, **changes)
    whole, broken = Learner(active(settings)), Learner(active(settings))
    steps(whole, 5)
    steps(broken, 2)
    broken.keep()
    resumed = Learner(active(settings, party="other"))
    resumed.load({name: value.copy() for name, value in broken.to_arrays().items()})
    steps(resumed, 3)
    ours, theirs = resumed.to_arrays(), whole.to_arrays()
    assert all(np.array_equal(ours[name], value) for name, value in theirs.items())
    best, kept = resumed.finish().to_arrays(), broken.part.to_arrays()
    assert all(np.array_equal(best[name], value) for name, value in kept.items())


@pytest.mark.parametrize("name", ["optimizer.exp_avg:bottom.9.weight", "optimizer.exp_avg:bottom.0.0.weight"])
def test_an_optimiser_of_another_model_is_refused(name):
    learner = Learner(active())
    with pytest.raises(DataError, match="optimiser's state"):
        learner.load(learner.to_arrays() | {name: np.zeros((1, 1), np.float32)})
