"""Networks made ones with x²: they answer as the original did on rows they have not seen, and numbers stay small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fl_core.errors import UsageError
from fl_core.learning import datasets
from server.serving.convert import _nearest, convert
from server.serving.folding import activate
from server.serving.sources import Found, Network, find, ready, save_converted

MNIST = datasets.folder() / "mnist10k.npz"


def found_of(fitted, tmp_path: Path) -> Found:
    import joblib

    joblib.dump(fitted, tmp_path / "model")
    return find(str(tmp_path / "model"))


def learned(x, y, hidden, activation, tmp_path):
    """A network of scikit-learn, and rows to convert with and to judge by."""
    x, apart, y, labels = train_test_split(x, y, test_size=0.4, random_state=0)
    network = MLPClassifier(hidden, activation, random_state=0, max_iter=60)
    return found_of(make_pipeline(StandardScaler(), network).fit(x, y), tmp_path), x, y, apart, labels


def share(first, second) -> float:
    return float(np.mean(np.asarray(first) == np.asarray(second)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("data", "hidden", "activation"),
    [
        (load_breast_cancer, (16,), "relu"),
        (load_digits, (32,), "relu"),
        (load_digits, (32, 16), "relu"),
        (load_digits, (32,), "tanh"),
        (load_digits, (32,), "logistic"),
    ],
)
def test_a_converted_network_loses_next_to_no_accuracy(tmp_path, data, hidden, activation):
    found, x, y, apart, labels = learned(*data(return_X_y=True), hidden, activation, tmp_path)
    made, told = convert(found, x, [str(label) for label in y])
    before, after = found.logits(apart).argmax(axis=1), made.logits(apart).argmax(axis=1)
    assert share(after, labels) >= share(before, labels) - (0.01 if activation == "relu" else 0.02)
    assert share(before, after) >= (0.97 if activation == "relu" else 0.96)
    assert (told.rows, told.fitted) == (int(len(x) * 0.2), len(x) - int(len(x) * 0.2))
    assert told.agreement >= 0.95 and 0 <= told.mean_difference <= 0.02
    assert abs(told.accuracy_after - told.accuracy_before) <= 0.05
    assert len(told.largest) == len(hidden) and all(0.1 < largest < 3 for largest in told.largest)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not MNIST.exists(), reason="mnist10k.npz is not here")
def test_a_network_for_pictures_keeps_97_of_100_answers(tmp_path):
    with np.load(MNIST) as file:
        x, y = file["x_train"].reshape(-1, 784) / 255.0, file["y_train"]
        apart, labels = file["x_test"].reshape(-1, 784) / 255.0, file["y_test"]
    found = found_of(MLPClassifier((64,), random_state=0, max_iter=8).fit(x, y), tmp_path)
    made, _ = convert(found, x)
    before, after = found.logits(apart).argmax(axis=1), made.logits(apart).argmax(axis=1)
    assert share(before, after) >= 0.97
    assert share(after, labels) >= share(before, labels) - 0.01


def network(activation="relu", hidden=6, inputs=4, classes=3, seed=0) -> Found:
    rng = np.random.default_rng(seed)
    layers = (
        (rng.normal(size=(hidden, inputs)), rng.normal(size=hidden)),
        (rng.normal(size=(classes, hidden)), rng.normal(size=classes)),
    )
    names = tuple(f"f{i}" for i in range(inputs)), tuple("abcdefgh"[:classes])
    return Found(*names, layers, (activation,), rng.normal(size=inputs) * 9, np.exp(rng.normal(size=inputs)))


def rows(found: Found, count=300, seed=1):
    return np.random.default_rng(seed).normal(size=(count, len(found.features))) * found.std + found.mean


def test_the_same_rows_make_the_same_network_and_nothing_else_is_touched():
    found = network()
    x = rows(found)
    kept = x.copy()
    threads = torch.get_num_threads()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, told = convert(found, x)
    assert torch.equal(torch.get_rng_state(), state) and np.array_equal(x, kept)
    torch.manual_seed(4)
    second, again = convert(found, x)
    assert told == again and torch.get_num_threads() == threads
    for one, two in zip(first.layers, second.layers, strict=True):
        assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1])
    other, _ = convert(found, x, seed=1)
    assert not np.array_equal(other.layers[0][0], first.layers[0][0])


def test_a_converted_network_is_served_with_nothing_squared_beyond_one(tmp_path):
    found = network("gelu")
    x = rows(found)
    made, told = convert(found, x)
    save_converted(made, tmp_path / "made")
    model = ready(find(str(tmp_path / "made")))
    assert isinstance(model, Network) and [part.shape for part, _ in model.layers] == [(6, 4), (2, 6)]
    z = (x - model.centre) / np.exp2(model.unit_bits) @ model.layers[0][0].T + model.layers[0][1]
    scores = z**2 @ model.layers[1][0].T + model.layers[1][1]
    logits = made.logits(x)
    assert scores == pytest.approx(logits[:, 1:] - logits[:, :1], abs=1e-9)
    fitted = np.random.default_rng(0).permutation(len(x))[told.rows :]
    assert np.abs(z[fitted]).max(axis=0) == pytest.approx(1.0), "each unit, over the rows it was made with"
    assert told.largest[0] == pytest.approx(np.abs(np.delete(z, fitted, axis=0)).max())


def test_figures_are_of_rows_that_were_kept_apart():
    """Answers on kept rows that are made nonsense by their own numbers: no fit could follow them."""
    found = network()
    x = rows(found)
    kept = np.random.default_rng(0).permutation(len(x))[: len(x) // 5]
    labels = np.array(list(found.classes))[found.logits(x).argmax(axis=1)]
    wrong = labels.copy()
    wrong[kept] = [found.classes[(found.classes.index(label) + 1) % 3] for label in labels[kept]]
    _, told = convert(found, x, list(wrong))
    assert told.accuracy_before == 0.0 and told.rows == len(kept)
    _, told = convert(found, x, list(labels))
    assert told.accuracy_before == 1.0 and told.accuracy_after == told.agreement
    _, told = convert(found, x)
    assert told.accuracy_before is None and told.accuracy_after is None


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "gelu", "gelu_tanh"])
def test_quadratics_are_nearly_the_best_and_stay_squares(activation):
    z = np.random.default_rng(0).normal(size=(4000, 5)) * [0.3, 1, 1, 2, 4] + [0, 0, 1, -1, 2]
    curves = _nearest(z, activation)
    a, b, _ = curves.T
    assert (np.abs(b / (2 * a)) <= np.abs(z).max(axis=0) + 3.01 * z.std(axis=0)).all()
    wanted = activate(activation, z)
    error = np.sqrt(np.mean((activate(curves, z) - wanted) ** 2, axis=0))
    for j in range(z.shape[1]):
        best = np.polyval(np.polyfit(z[:, j], wanted[:, j], 2), z[:, j])
        assert error[j] <= np.sqrt(np.mean((best - wanted[:, j]) ** 2)) + 0.3 * wanted[:, j].std()


def test_a_network_on_raw_features_gets_a_scale_that_a_client_can_send_in():
    found = network()
    raw = replace(
        found, layers=((found.layers[0][0] / found.std, found.layers[0][1]), found.layers[1]), mean=None, std=None
    )
    x = rows(found)
    made, told = convert(raw, x * 3)
    assert told.agreement >= 0.9
    model = ready(made)
    assert np.abs((x * 3 - model.centre) / np.exp2(model.unit_bits)).max() < 8 < np.abs(x * 3).max()
    small, _ = convert(raw, x / np.abs(x).max())
    assert small.mean is None and set(ready(small).unit_bits) == {0}


def test_units_that_never_change_and_features_that_are_constant_do_no_harm():
    found = network()
    weights, bias = found.layers[0]
    weights[0], weights[1], bias[2] = 0.0, 1e-12, -1e3  # constant, nearly so, and never above 0
    x = rows(found)
    x[:, 1] = 7.0
    made, told = convert(found, x)
    assert all(np.isfinite(part).all() for layer in made.layers for part in layer)
    assert told.agreement >= 0.9


def test_what_cannot_be_converted_gives_one_line():
    found = network()
    x = rows(found)
    linear = Found(found.features, found.classes, found.layers[:1])
    bad = x.copy()
    bad[3, 1] = np.nan
    cases = [
        (linear, x, None, "without hidden layers"),
        (found, x[:, :3], None, r"shape \(300, 3\); allowed: \(rows, 4\)"),
        (found, x[:19], None, "19 rows"),
        (found, bad, None, "not finite"),
        (found, x, ["a"] * 299, "not 300 of the model's classes"),
        (found, x, ["z"] * 300, "allowed: a, b, c"),
    ]
    for model, given_rows, labels, message in cases:
        with pytest.raises(UsageError, match=message):
            convert(model, given_rows, labels)
