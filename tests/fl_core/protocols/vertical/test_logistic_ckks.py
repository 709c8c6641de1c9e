"""Vertical logistic regression with CKKS is plain minibatch gradient descent, and refuses what it must not take."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score

from fl_core.errors import BadFrame, DataError, JobFailed, JobFileError
from fl_core.protocols.vertical import logistic_ckks
from fl_core.protocols.vertical.course import MemoryCourse, Split
from fl_core.protocols.vertical.logistic_ckks import score_active, score_passive, train_active, train_passive
from fl_core.protocols.vertical.logistic_ckks_party import CkksSettings, Labels, batches
from tests.fl_core.protocols.parties import converse


def split_of(n, *, valid=0, test=0, seed=0):
    order = np.random.default_rng(seed).permutation(n)
    return Split(np.sort(order[valid + test :]), np.sort(order[:valid]), np.sort(order[valid : valid + test]))


def standardised(x):
    return np.clip((x - x.mean(axis=0)) / x.std(axis=0), -10, 10)


def breast():
    data = load_breast_cancer()
    return standardised(data.data), data.target.astype(np.int64)


def iris():
    data = load_iris()
    rng = np.random.default_rng(0)
    twice = np.vstack([data.data, data.data + rng.normal(0, 0.1, data.data.shape)])
    return standardised(twice), np.tile(data.target, 2).astype(np.int64)


def run(parts, y, outputs, split, settings, *, courses=None, fault=None, score=True):
    """A training and the scores of the test rows; parts: columns of g, the active party, and of the passive ones."""
    courses = courses or {name: MemoryCourse() for name in parts}
    others = [name for name in parts if name != "g"]

    def active(channel):
        weights = train_active(channel, others, parts["g"], y, outputs, split, settings, course=courses["g"])
        return weights, score_active(channel, others, parts["g"], weights, split.test) if score else None

    def passive(name):
        def program(channel):
            weights = train_passive(channel, "g", parts[name], split, settings, course=courses[name])
            if score:
                score_passive(channel, "g", parts[name], weights, split.test)
            return weights

        return program

    return converse({"g": active, **{name: passive(name) for name in others}}, fault=fault), courses


def plain(x, y, outputs, split, settings):
    """Minibatch gradient descent in the clear, by the formula; the intercept is the last row."""
    x = np.hstack([x, np.ones((len(x), 1))])
    w = np.zeros((x.shape[1], outputs))
    weight = np.array(settings.class_weight or [1.0] * max(outputs, 2))[y]
    for _ in range(settings.epochs):
        for rows in batches(split, settings):
            z = x[rows] @ w
            if outputs == 1:
                r = 1 / (1 + np.exp(-z)) - y[rows][:, None]
            else:
                r = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) - np.eye(outputs)[y[rows]]
            decay = settings.l2 * w
            decay[-1] = 0
            w = w - settings.learning_rate * (x[rows].T @ (weight[rows][:, None] * r) / len(rows) + decay)
    return w


def joined(session, names):
    """All weights in one array, the active party's first, its intercept last."""
    own, _ = session.result("g")
    return np.vstack([own[:-1], *(session.result(name) for name in names), own[-1:]])


# ------------------------------------------------------------------------------------------------ right results


@pytest.mark.parametrize("weights", [(), (0.7, 2.5)])
def test_binary_weights_and_auc_are_those_of_plain_descent(weights):
    x, y = breast()
    split = split_of(len(y), test=150)
    settings = CkksSettings(epochs=8, batch_size=200, learning_rate=0.3, l2=0.01, class_weight=weights, seed=4)
    session, courses = run({"g": x[:, :10], "h": x[:, 10:]}, y, 1, split, settings)
    expected = plain(x, y, 1, split, settings)
    assert np.abs(joined(session, ["h"]) - expected).max() < 1e-4
    scores = session.result("g")[1][:, 0]
    clear = x[split.test] @ expected[:-1, 0] + expected[-1, 0]
    assert np.abs(scores - clear).max() < 1e-3
    assert abs(roc_auc_score(y[split.test], scores) - roc_auc_score(y[split.test], clear)) < 0.002
    assert courses["g"].told[-1][1]["auc"] == pytest.approx(roc_auc_score(y[split.test], scores))


def test_three_classes_and_two_passive_parties():
    x, y = iris()
    split = split_of(len(y), test=60)
    settings = CkksSettings(epochs=12, batch_size=80, learning_rate=0.5, l2=0.001, seed=1)
    session, courses = run({"g": x[:, :1], "h": x[:, 1:3], "i": x[:, 3:]}, y, 3, split, settings)
    expected = plain(x, y, 3, split, settings)
    assert np.abs(joined(session, ["h", "i"]) - expected).max() < 1e-4
    scores = session.result("g")[1]
    assert scores.shape == (60, 3)
    right = accuracy_score(y[split.test], scores.argmax(axis=1))
    assert courses["g"].told[-1][1]["accuracy"] == pytest.approx(right) and right > 0.85


def test_an_active_party_without_features_and_batches_of_several_ciphertexts():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5000, 2))
    y = (x @ [1.0, -2.0] + rng.normal(size=5000) > 0).astype(np.int64)
    split, settings = split_of(5000), CkksSettings(epochs=3, batch_size=2100, learning_rate=0.5)
    session, _ = run({"g": np.empty((5000, 0)), "h": x}, y, 1, split, settings)
    assert np.abs(joined(session, ["h"]) - plain(x, y, 1, split, settings)).max() < 1e-4


def test_full_batches_come_to_what_scikit_learn_finds():
    x, y = breast()
    x = x[:, :6]
    split, settings = split_of(len(y)), CkksSettings(epochs=400, batch_size=569, learning_rate=1.0, l2=0.1)
    session, courses = run({"g": x[:, :3], "h": x[:, 3:]}, y, 1, split, settings)
    oracle = LogisticRegression(C=1 / (0.1 * len(y)), tol=1e-8).fit(x, y)
    expected = np.append(oracle.coef_[0], oracle.intercept_)
    assert np.abs(joined(session, ["h"])[:, 0] - expected).max() < 2e-3
    assert courses["g"].told[-1][1].keys() == {"loss"}  # no test rows, no figure of them


def test_more_replies_than_go_into_one_message(monkeypatch):
    monkeypatch.setattr(logistic_ckks, "_REPLIES", 4)
    x, y = iris()
    split, settings = split_of(len(y)), CkksSettings(epochs=1, batch_size=100, learning_rate=0.5)
    session, _ = run({"g": x[:, :1], "h": x[:, 1:]}, y, 3, split, settings)
    sizes = [len(m.data) for m in session.said if m.step == "ckks replies"]
    assert sizes == [4 * 7 * 2049, 4 * 7 * 2049, 7 * 2049] * 3
    assert np.abs(joined(session, ["h"]) - plain(x, y, 3, split, settings)).max() < 1e-4


def test_without_room_columns_are_encoded_again(monkeypatch):
    x, y = iris()
    split, settings = split_of(len(y)), CkksSettings(epochs=2, batch_size=100, learning_rate=0.5)
    parts = {"g": x[:, :1], "h": x[:, 1:]}
    kept = joined(run(parts, y, 3, split, settings)[0], ["h"])
    monkeypatch.setattr(logistic_ckks, "CACHE_BYTES", 0)
    assert np.abs(joined(run(parts, y, 3, split, settings)[0], ["h"]) - kept).max() < 1e-4


@pytest.mark.parametrize("outputs", [1, 3])
def test_residuals_are_the_derivative_of_the_loss(outputs):
    rng = np.random.default_rng(0)
    y, rows = rng.integers(0, max(outputs, 2), 20), np.arange(20)
    labels, z, step = Labels(y, outputs, ()), rng.normal(0, 3, (20, outputs)), 1e-6
    r = labels.residuals(z, rows)
    for i, c in ((0, 0), (7, outputs - 1)):
        up, down = z.copy(), z.copy()
        up[i, c], down[i, c] = up[i, c] + step, down[i, c] - step
        slope = 20 * (labels.loss(up, rows) - labels.loss(down, rows)) / (2 * step)
        assert r[i, c] == pytest.approx(slope, abs=1e-6)
    far = labels.residuals(np.full((20, outputs), 1e4) * np.arange(1, outputs + 1), rows)
    assert np.isfinite(far).all() and np.abs(far).max() <= 1


# ------------------------------------------------------------------------------------------------ batches


@given(st.integers(1, 200), st.integers(1, 80), st.integers(0, 9))
def test_batches_deal_every_row_once_and_none_is_smaller_than_asked(n, size, seed):
    split = Split(np.arange(1000, 1000 + n), np.arange(0), np.arange(0))
    settings = CkksSettings(epochs=1, batch_size=size, learning_rate=1.0, seed=seed)
    parts = batches(split, settings)
    assert sorted(np.concatenate(parts).tolist()) == split.train.tolist()
    assert min(map(len, parts)) >= min(size, n) and max(map(len, parts)) < max(2 * size, n + 1)
    assert all((a == b).all() for a, b in zip(parts, batches(split, settings), strict=True))


def test_a_batch_under_ten_rows_a_column_is_refused_with_the_number():
    x, y = iris()
    split, settings = split_of(len(y)), CkksSettings(epochs=1, batch_size=29, learning_rate=0.5)
    session, _ = run({"g": x[:, :1], "h": x[:, 1:]}, y, 3, split, settings)
    refused = session.results["h"]
    assert isinstance(refused, JobFileError) and refused.key == "vertical.batch_size"
    assert "29 rows for the 3 columns of party h" in str(refused) and "at least 30" in str(refused)
    assert not [m for m in session.said if m.sender == "h"]


def test_an_active_party_refuses_small_batches_too():
    x, y = iris()
    split, settings = split_of(len(y)), CkksSettings(epochs=1, batch_size=100, learning_rate=0.5)

    def fault(sender, to, step, data):
        return (11).to_bytes(4, "big") if step == "ckks columns" else data

    session, _ = run({"g": x[:, :1], "h": x[:, 1:]}, y, 3, split, settings, fault=fault)
    refused = session.results["g"]
    assert isinstance(refused, JobFileError) and "11 columns of party h" in str(refused)
    assert not [m for m in session.said if m.sender == "g"]


# ------------------------------------------------------------------------------------------------ course


def keep_on(courses, epoch):
    """What each party has kept after an epoch, to begin again from."""
    return {name: MemoryCourse(begun=epoch, state=dict(c.kept[epoch])) for name, c in courses.items()}


@pytest.mark.parametrize("patience", [0, 2])
def test_going_on_from_an_epoch_ends_where_an_unbroken_training_does(patience):
    x, y = breast()
    parts, split = {"g": x[:, :20], "h": x[:, 20:]}, split_of(len(y), valid=100, test=100)
    settings = CkksSettings(epochs=6, batch_size=150, learning_rate=0.3, early_stopping=patience)
    whole, courses = run(parts, y, 1, split, settings)
    again, resumed = run(parts, y, 1, split, settings, courses=keep_on(courses, 3))
    assert np.abs(joined(again, ["h"]) - joined(whole, ["h"])).max() < 1e-4
    assert [n for n, _ in resumed["g"].told] == [4, 5, 6]
    assert resumed["g"].told[-1][1] == pytest.approx(courses["g"].told[-1][1], abs=1e-4)


def overfitting():
    """Labels that are half noise, a step too large: the validation loss gets worse soon."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(400, 8))
    y = (x[:, 0] + 3 * rng.normal(size=400) > 0).astype(np.int64)
    settings = CkksSettings(epochs=40, batch_size=80, learning_rate=6.0, early_stopping=3)
    return {"g": x[:, :4], "h": x[:, 4:]}, x, y, split_of(400, valid=150), settings


def test_early_stopping_ends_all_parties_with_the_best_epoch():
    parts, x, y, split, settings = overfitting()
    session, courses = run(parts, y, 1, split, settings, score=False)
    last = len(courses["g"].told)
    assert last < 40 and last == len(courses["h"].told)
    losses = []
    for epoch in range(1, last + 1):
        g, h = courses["g"].kept[epoch]["weights"], courses["h"].kept[epoch]["weights"]
        z = (x @ np.vstack([g[:-1], h]) + g[-1])[split.valid, 0]
        losses.append(np.mean(np.log1p(np.exp(np.where(y[split.valid] == 1, -z, z)))))
    best = int(np.argmin(losses)) + 1
    assert last == best + 3
    assert (session.result("g")[0] == courses["g"].kept[best]["weights"]).all()
    assert (session.result("h") == courses["h"].kept[best]["weights"]).all()


def test_a_training_that_has_stopped_does_not_go_on_when_taken_up_again():
    parts, _, y, split, settings = overfitting()
    session, courses = run(parts, y, 1, split, settings, score=False)
    last = len(courses["g"].told)
    again, resumed = run(parts, y, 1, split, settings, courses=keep_on(courses, last), score=False)
    assert not again.said and not resumed["h"].told
    assert (joined(again, ["h"]) == joined(session, ["h"])).all()


def test_passive_parties_report_nothing():
    x, y = iris()
    split, settings = split_of(len(y), test=20), CkksSettings(epochs=2, batch_size=100, learning_rate=0.5)
    _, courses = run({"g": x[:, :1], "h": x[:, 1:]}, y, 3, split, settings)
    assert courses["h"].told == [(1, {}), (2, {})]
    assert [set(m) for _, m in courses["g"].told] == [{"loss", "accuracy"}] * 2


def test_weights_that_were_kept_of_another_model_are_refused():
    x, y = iris()
    split, settings = split_of(len(y)), CkksSettings(epochs=3, batch_size=100, learning_rate=0.5)
    _, courses = run({"g": x[:, :1], "h": x[:, 1:]}, y, 3, split, settings)
    again, _ = run({"g": x[:, :2], "h": x[:, 2:]}, y, 3, split, settings, courses=keep_on(courses, 1))
    assert all(isinstance(again.results[name], JobFailed) for name in "gh")
    assert "cannot go on" in str(again.results["g"])


# ------------------------------------------------------------------------------------------------ refusals


def faulty(step, change, *, liar, columns=slice(1, None)):
    x, y = iris()
    split, settings = split_of(len(y), test=20), CkksSettings(epochs=1, batch_size=100, learning_rate=0.5)

    def fault(sender, to, said, data):
        return change(data) if (sender, said) == (liar, step) else data

    session, _ = run({"g": x[:, :1], "h": x[:, columns]}, y, 3, split, settings, fault=fault)
    return session.results["h" if liar == "g" else "g"]


STEPS = [("h", "ckks columns"), ("g", "ckks public key"), ("h", "ckks scores"), ("g", "ckks residuals"),
         ("h", "ckks replies"), ("g", "ckks gradient"), ("g", "ckks verdict")]  # fmt: skip


@pytest.mark.parametrize("change", [lambda data: data + b"\0", lambda data: data[:-1]], ids=["longer", "shorter"])
@pytest.mark.parametrize(("liar", "step"), STEPS)
def test_a_message_of_another_size_is_refused_by_step(liar, step, change):
    refused = faulty(step, change, liar=liar)
    assert isinstance(refused, BadFrame) and f"from party {liar} in step {step!r}" in str(refused)


FORGED = [
    ("h", "ckks columns", lambda d: bytes(4), "no columns"),
    ("g", "ckks public key", lambda d: bytes(len(d)), "0 outputs"),
    ("g", "ckks public key", lambda d: d[:4] + bytes(len(d) - 4), "zeros"),
    ("h", "ckks scores", lambda d: np.full(len(d) // 8, np.nan).tobytes(), "not finite"),
    ("g", "ckks residuals", lambda d: bytes(len(d)), "zeros"),
    ("g", "ckks residuals", lambda d: b"\xff" * len(d), "beyond the modulus"),
    ("h", "ckks replies", lambda d: b"\xff" * len(d), "beyond the modulus"),
    ("g", "ckks gradient", lambda d: b"\xff" * len(d), "beyond the modulus"),
    ("g", "ckks verdict", lambda d: b"\0\0\0\0\x07", "epoch 7 as the best after epoch 1"),
]


@pytest.mark.parametrize(("liar", "step", "change", "problem"), FORGED)
def test_content_that_cannot_be_is_refused(liar, step, change, problem):
    refused = faulty(step, change, liar=liar)
    assert isinstance(refused, BadFrame) and problem in str(refused) and f"from party {liar}" in str(refused)


def test_a_ciphertext_under_another_key_is_detected():
    """The other key's residuals come out as noise at the passive party, nine numbers at once."""
    x, y = iris()
    split, settings = split_of(len(y)), CkksSettings(epochs=1, batch_size=100, learning_rate=0.5)
    parts = {"g": x[:, :1], "h": x[:, 1:]}
    other = next(m.data for m in run(parts, y, 3, split, settings)[0].said if m.step == "ckks residuals")

    def fault(sender, to, step, data):
        return other if step == "ckks residuals" else data

    refused = run(parts, y, 3, split, settings, fault=fault)[0].results["h"]
    assert isinstance(refused, BadFrame) and "another key" in str(refused)


@pytest.mark.parametrize("value", [10.5, np.nan, np.inf])
def test_features_that_could_overflow_are_refused_before_anything_is_sent(value):
    x, y = iris()
    x[7, 2] = value
    split, settings = split_of(len(y)), CkksSettings(epochs=1, batch_size=100, learning_rate=0.5)
    session, _ = run({"g": x[:, :1], "h": x[:, 1:]}, y, 3, split, settings)
    assert isinstance(session.results["h"], DataError) and "within ±10" in str(session.results["h"])
    assert not [m for m in session.said if m.sender == "h"]


def test_descent_that_diverges_ends_and_gives_no_weights():
    x, y = iris()
    split, settings = split_of(len(y)), CkksSettings(epochs=80, batch_size=100, learning_rate=1e3, l2=1e3)
    session, _ = run({"g": x[:, :1], "h": x[:, 1:]}, y, 3, split, settings)
    assert all(isinstance(session.results[name], JobFailed) for name in "gh")
    assert any("not finite" in str(session.results[name]) for name in "gh")


@pytest.mark.parametrize(("y", "outputs"), [([0, 1, 2, 0], 1), ([0, 1, 3, 2], 3), ([0.5, 1, 0, 1], 1)])
def test_labels_that_are_no_classes_are_refused(y, outputs):
    with pytest.raises(DataError, match="no class"):
        Labels(np.array(y), outputs, ())


@pytest.mark.parametrize(
    ("key", "values"),
    [("epochs", {"epochs": 0}), ("batch_size", {"batch_size": 0}), ("learning_rate", {"learning_rate": 0.0}),
     ("l2", {"l2": -1.0}), ("class_weight", {"class_weight": (1.0, 0.0)}), ("early_stopping", {"early_stopping": -1})],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(key, values):
    with pytest.raises(JobFileError, match=rf"vertical\.{key}"):
        CkksSettings(**{"epochs": 1, "batch_size": 10, "learning_rate": 0.1, **values})


def test_settings_that_do_not_fit_the_data_are_refused():
    x, y = iris()
    base = {"epochs": 1, "batch_size": 100, "learning_rate": 0.5}
    for extra, key in (({"early_stopping": 2}, "early_stopping"), ({"class_weight": (1.0, 2.0)}, "class_weight")):
        session, _ = run({"g": x[:, :1], "h": x[:, 1:]}, y, 3, split_of(len(y)), CkksSettings(**base, **extra))
        assert isinstance(session.results["g"], JobFileError) and key in str(session.results["g"])


# ------------------------------------------------------------------------------------------------ what shows


def test_messages_have_one_shape_whatever_the_data():
    outlines = []
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(200, 4)), rng.integers(0, 2, 200)
        x[:, 2] *= seed  # a column of zeros in one of them
        session, _ = run({"g": x[:, :2], "h": x[:, 2:]}, y, 1, split_of(200, test=50), CkksSettings(2, 60, 0.1))
        outlines.append([[m.outline for m in session.said if m.sender == name] for name in "gh"])
    assert outlines[0] == outlines[1]


def test_keys_and_ciphertexts_are_new_in_every_training():
    x, y = iris()
    split, settings = split_of(len(y)), CkksSettings(epochs=2, batch_size=150, learning_rate=0.5)
    seen = [m.data[-64:] for _ in range(2) for m in run({"g": x[:, :1], "h": x[:, 1:]}, y, 3, split, settings)[0].said
            if m.step in ("ckks public key", "ckks residuals", "ckks replies")]  # fmt: skip
    assert len(seen) == len(set(seen)) == 2 * (1 + 2 * 2 * 2)
