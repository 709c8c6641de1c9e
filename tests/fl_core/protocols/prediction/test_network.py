"""Scores by split networks at prediction time: those of the training, noise where it had noise, one receiver."""

from __future__ import annotations

import numpy as np
import pytest

from fl_core.errors import DataError, JobFileError, RefusedError
from tests.fl_core.protocols.prediction.trained import Model

NETWORK = {
    "algorithm": "split-nn", "epochs": 2, "hidden": [8], "embedding": 8, "top_hidden": [8], "learning_rate": 0.01,
    "gradient": "none",
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "x.csv").write_text("id\n1\n")
    monkeypatch.chdir(tmp_path)


def plain_scores(model, rows):
    import torch

    columns, parts = model.plain(rows), [model.part(name) for name in model.told["bank"]["parties"]]
    with torch.no_grad():
        inputs = [p._features.transform(columns[p.party]).astype(np.float32) for p in parts]
        made = [p._part.bottom(torch.from_numpy(x)) for p, x in zip(parts, inputs, strict=True)]
        return parts[0]._part.top(torch.cat(made, dim=1)).numpy().astype(float)


@pytest.mark.parametrize("parties", [2, 3])
def test_a_score_is_that_of_the_whole_network(parties):
    model = Model(NETWORK, parties=parties)
    done, common = model.predict(model.plan("bank"))
    got = done.result("bank").predictions
    assert np.abs(got - 1 / (1 + np.exp(-plain_scores(model, common)[:, 0]))).max() < 1e-6
    assert all(done.result(name).predictions is None for name in model.chosen if name != "bank")


def test_more_classes():
    model = Model(NETWORK, classes=3)
    done, common = model.predict(model.plan("bank"))
    z = np.exp(plain_scores(model, common))
    assert np.abs(done.result("bank").predictions - z / z.sum(axis=1, keepdims=True)).max() < 1e-6


def test_only_the_party_with_the_top_can_be_the_receiver():
    model = Model(NETWORK)
    with pytest.raises(JobFileError, match="bank, which has the top"):
        model.plan("lab")
    done, _ = model.predict(model.plan("lab", algorithm="gbdt"))
    assert isinstance(done.results["lab"], DataError)
    plan = model.plan("bank")
    object.__setattr__(plan, "receivers", ("lab",))
    with pytest.raises(RefusedError, match="which has its top"):
        model.part("lab").check(plan)


def test_noise_of_the_training_is_on_new_rows_too():
    model = Model(NETWORK, privacy={"mechanism": "cut-layer", "target_epsilon": 2.0})
    assert model.part("bank").noise_multiplier is None
    assert model.part("lab").noise_multiplier == pytest.approx(model.told["lab"]["network"]["settings"]["noise_multiplier"])
    plan = model.plan("bank")
    one, two = (model.predict(plan)[0].result("bank").predictions for _ in range(2))
    assert np.abs(one - two).max() > 1e-3


@pytest.mark.parametrize("change", [{"embeddings": 5}, {"outputs": 3}, {"input_shape": [99]}, {"settings": {}}, None])
def test_a_network_that_cannot_be_one_is_refused(change):
    model = Model(NETWORK)
    network = None if change is None else model.told["bank"]["network"] | change
    with pytest.raises(DataError) as caught:
        model.part("bank", network=network)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("party bank")
