"""Joint scores of linear models, against plain numpy; and what each party hears of them."""

from __future__ import annotations

import numpy as np
import pytest

from fl_core.crypto import ring
from fl_core.errors import DataError, TrainingDiverged
from fl_core.learning.binning import BinnedFeatures, one_hot
from fl_core.learning.columns import LinearFeatures
from fl_core.protocols.vertical.logistic import probabilities
from fl_core.protocols.vertical.meaning import linear_probabilities
from tests.fl_core.protocols.prediction.trained import Model

MODELS = {
    "open": {"epochs": 3},
    "strict": {"epochs": 3, "mode": "strict"},
    "bins": {"epochs": 3, "bins": 6},
    "woe": {"epochs": 3, "bins": 6, "encoding": "woe"},
    "ckks": {"epochs": 3, "protocol": "ckks"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("models"), {}
    (folder / "x.csv").write_text("id\n1\n")

    def get(which, **more):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            key = which, tuple(more.items())
            if key not in made:
                made[key] = Model({"algorithm": "logistic", **MODELS[which]}, **more)
            return made[key]

    return get


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "x.csv").write_text("id\n1\n")
    monkeypatch.chdir(tmp_path)


def plain_scores(model, rows):
    """The slow way: features of all parties as matrices."""
    total = 0.0
    for name, columns in model.plain(rows).items():
        told, weights = model.told[name], model.arrays[name]["weights"]
        if told["encoding"] == "standardised":
            x = LinearFeatures.from_dict(told["features"]).transform(columns)
        else:
            binned = BinnedFeatures.from_dict(told["features"])
            codes = binned.transform(columns)
            x = one_hot(codes, binned.sizes).astype(float)
            if told["encoding"] == "woe":
                worth = x * model.arrays[name]["woe"]
                ends = np.cumsum(binned.sizes)
                x = np.stack([part.sum(axis=1) for part in np.split(worth, ends[:-1], axis=1)], axis=1)
        total = total + x @ (weights[:-1] if name == "bank" else weights) + (weights[-1] if name == "bank" else 0)
    return total


@pytest.mark.parametrize("receiver", ["bank", "lab"])
@pytest.mark.parametrize("which", MODELS)
def test_a_score_is_that_of_the_whole_model(models, which, receiver):
    model = models(which)
    done, common = model.predict(model.plan(receiver))
    got, expected = done.result(receiver), plain_scores(model, common)
    assert (model.new_rows(receiver)[1][got.rows] == common).all()  # in the order of the ids
    p = (linear_probabilities if model.told["bank"]["link"] == "linear" else probabilities)(expected)[:, 0]
    assert np.abs(got.predictions - p).max() < 1e-6
    assert p.std() > 0.05 and (model.told["bank"]["link"] == "linear") == (which in ("strict", "bins"))
    other = done.result("lab" if receiver == "bank" else "bank")
    assert other.predictions is None and len(other.rows) == len(common)


@pytest.mark.parametrize("which", ["open", "woe"])
def test_new_rows_seen_in_training_get_the_scores_that_training_gave_them(models, which):
    model = models(which)
    outcome = model.outcomes["bank"]
    rows = np.random.default_rng(ord("b")).permutation(900)[outcome.test]
    columns = {name: model._training_table(name, 2).columns for name in ("bank", "lab")}
    at = {name: np.argsort(np.random.default_rng(ord(name[0])).permutation(900)) for name in columns}
    z = sum(model.part(name).partial(columns[name].take(at[name][rows])) for name in columns)
    assert np.abs(probabilities(z)[:, 0] - outcome.predictions).max() < 1e-6


@pytest.mark.parametrize("receivers", [("bank",), ("shop",), ("lab", "bank")])
def test_three_parties_and_several_receivers(models, receivers):
    model = models("open", parties=3)
    done, common = model.predict(model.plan(*receivers))
    p = probabilities(plain_scores(model, common))[:, 0]
    for name in model.chosen:
        got = done.result(name)
        if name in receivers:
            assert np.abs(got.predictions - p).max() < 1e-6
            assert (model.new_rows(name)[1][got.rows] == common).all()
        else:
            assert got.predictions is None


@pytest.mark.parametrize("which", ["open", "bins"])
def test_more_classes_reach_a_receiver_without_labels_with_their_names(models, which):
    model = models(which, classes=3)
    done, common = model.predict(model.plan("lab"))
    got, z = done.result("lab"), plain_scores(model, common)
    p = linear_probabilities(z) if which == "bins" else probabilities(z)
    assert got.classes == ("a", "b", "c")
    assert np.abs(got.predictions - p / p.sum(axis=1, keepdims=True)).max() < 1e-6
    names = [m for m in done.said if m.step == "classes"]
    assert [(m.sender, m.to) for m in names] == [("bank", "lab")]


def test_a_receiver_hears_shares_of_the_sum_and_the_others_hear_nothing(models):
    model = models("open", parties=3)
    done, common = model.predict(model.plan("lab"))
    scores = [m for m in done.said if m.step == "scores"]
    assert {m.to for m in scores} == {"lab"} and {m.sender for m in scores} == {"bank", "shop"}
    rows = model.plain(common)
    parts = {name: ring.encode(model.part(name).partial(rows[name]), 32) for name in rows}
    heard = {m.sender: np.frombuffer(m.data, np.uint64)[:, None] for m in scores}
    assert (heard["bank"] + heard["shop"] == parts["bank"] + parts["shop"]).all()
    for name, share in heard.items():
        assert not (share == parts[name]).any()
        high = (share >> np.uint64(60)).ravel()  # 16 values alike often
        assert np.bincount(high.astype(int), minlength=16).min() > 0
    said = {m.step for m in done.said if m.to != "lab"}
    assert not [step for step in said if not step.startswith(("psi", "ring", "ecdh")) and "scores" in step]


def test_scores_that_the_ring_cannot_hold_are_an_error_and_no_other_number(models):
    model = models("open")
    part = model.part("bank")
    part._weights[:] *= 1e12
    done, _ = model.predict(model.plan("bank"), parts={"bank": part})
    assert isinstance(done.results["bank"], TrainingDiverged)


BAD = {
    "no weights": ({}, {"weights": None}),
    "weights of another width": ({}, {"weights": np.zeros((3, 1))}),
    "weights that are not finite": ({}, {"weights": np.nan}),
    "single precision": ({}, {"weights": np.float32}),
    "an unknown link": ({"link": "probit"}, {}),
    "an unknown encoding": ({"encoding": "hashed"}, {}),
    "features of another kind": ({"encoding": "one-hot"}, {}),
    "features of a strange shape": ({"features": {"columns": 7}}, {}),
    "no class of two outputs": ({"outputs": 2}, {}),
    "outputs by the million": ({"outputs": 10**7}, {}),
    "an unknown algorithm": ({"algorithm": "oracle"}, {}),
    "an unknown objective": ({"objective": "profit"}, {}),
    "a run that is a path": ({"run": "../../../etc"}, {}),
    "another party's": ({"party": "lab"}, {}),
    "a model without it": ({"parties": ["lab", "shop"]}, {}),
    "parties that are numbers": ({"parties": [1, 2]}, {}),
    "no parties": ({"parties": None}, {}),
}


@pytest.mark.parametrize("what", BAD)
def test_a_part_that_cannot_be_one_is_refused_in_one_line(models, what):
    from fl_core.protocols.prediction.reading import part_of

    model = models("open")
    told, arrays = BAD[what]
    held = dict(model.arrays["bank"])
    for name, value in arrays.items():
        if value is None:
            del held[name]
        elif value is np.float32:
            held[name] = held[name].astype(np.float32)
        else:
            held[name] = held[name] * value if np.isscalar(value) else value
    with pytest.raises(DataError) as caught:
        part_of(model.told["bank"] | told, held, party="bank", where="party bank")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("party bank")
