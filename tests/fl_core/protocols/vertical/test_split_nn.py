"""Split training is training of the one joint network; what is refused, what is seen, what a resumed run does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from fl_core.crypto.noise import SeededStream
from fl_core.errors import BadFrame, DataError, JobFileError, PeerLost, TrainingDiverged
from fl_core.learning.gradient_protection import norm_attack_auc, plan_cut_layer
from fl_core.learning.seeds import generator
from fl_core.learning.split_models import SplitPart, SplitSettings, build_part, row_losses
from fl_core.protocols.vertical import split_messages
from fl_core.protocols.vertical.course import MemoryCourse, Split
from fl_core.protocols.vertical.split_nn import score_active, score_passive, train_active, train_passive
from tests.fl_core.protocols.parties import converse

SETTINGS = SplitSettings(epochs=3, batch_size=16, learning_rate=0.01, hidden=(8,), embedding=4, top_hidden=(6,))
TASKS = {"binary": 1, "multiclass": 3, "regression": 1}


def table(objective="binary", n=150, share=0.5, seed=0):
    """Columns of G, H and I, and a target that needs all of them."""
    rng = np.random.default_rng(seed)
    x = {name: rng.normal(size=(n, d)).astype(np.float32) for name, d in (("g", 3), ("h", 4), ("i", 2))}
    score = x["g"][:, 0] + 2 * x["h"][:, 1] + x["i"][:, 0] + 0.3 * rng.normal(size=n)
    if objective == "regression":
        return x, 1000.0 + 50.0 * score
    cuts = np.quantile(score, [1 - share] if objective == "binary" else [1 / 3, 2 / 3])
    return x, np.searchsorted(cuts, score).astype(np.int64)


def thirds(n=150):
    order = np.random.default_rng(9).permutation(n)
    return Split(*(np.sort(part) for part in np.split(order, [n - 60, n - 30])))


def train(x, y, settings=SETTINGS, *, objective="binary", split=None, courses=None, fault=None, noise=None):
    """Train G with all others in `x`; `x["g"]` may be missing."""
    split, passives = split or thirds(len(y)), [name for name in x if name != "g"]
    courses = courses or {name: MemoryCourse() for name in ("g", *passives)}
    drawn = {name: noise(name) if noise else None for name in courses}
    outputs = TASKS.get(objective, 1)

    def passive(name):
        return lambda c: train_passive(c, "g", x[name], split, settings, course=courses[name], noise=drawn[name])

    return converse(
        {
            "g": lambda c: train_active(
                c, passives, x.get("g"), y, objective, outputs, split, settings, course=courses["g"], noise=drawn["g"]
            ),
            **{name: passive(name) for name in passives},
        },
        fault=fault,
    )


def score(x, parts, rows, noise=None):
    passives = [name for name in x if name != "g"]

    def passive(name):
        return lambda c: score_passive(c, "g", parts[name], x[name], rows, noise=noise(name) if noise else None)

    return converse(
        {
            "g": lambda c: score_active(c, passives, parts["g"], x.get("g"), rows),
            **{name: passive(name) for name in passives},
        }
    )


def parts_of(session):
    return {name: session.result(name) for name in session.results}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def joint(x, y, settings, objective, split):
    """The slow reference: the same network in one place, by one optimiser, on the same batches."""
    names = sorted(x)
    bottoms = [build_part(settings, x[name].shape[1:], party=name).bottom for name in names]
    top = build_part(settings, None, party="g", embeddings=len(names), outputs=TASKS[objective]).top
    model = torch.nn.ModuleList([*bottoms, top])
    mean, std = (y[split.train].mean(), y[split.train].std()) if objective == "regression" else (0.0, 1.0)
    target = torch.from_numpy(((y - mean) / std).astype(np.int64 if objective == "multiclass" else np.float32))
    weight = torch.ones(len(y))
    if settings.class_weight:
        weight = torch.tensor(settings.class_weight)[torch.from_numpy(y)]
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[settings.optimizer]
    options = {"momentum": settings.momentum} if settings.optimizer == "sgd" else {}
    optimizer = kind(model.parameters(), lr=settings.learning_rate, weight_decay=settings.l2, **options)

    def forward(rows):
        inputs = [bottom(torch.from_numpy(x[name][rows])) for name, bottom in zip(names, bottoms, strict=True)]
        return top(torch.cat(inputs, dim=1))

    for epoch in range(1, settings.epochs + 1):
        order = generator(settings.seed, "batches", epoch).permutation(split.train)
        for start in range(0, len(order), settings.batch_size):
            rows = order[start : start + settings.batch_size]
            losses = row_losses(objective, forward(rows), target[rows])
            optimizer.zero_grad()
            ((losses * weight[rows]).sum() / weight[rows].sum()).backward()
            optimizer.step()
    with torch.no_grad():
        return forward(np.arange(len(y))).numpy() * std + mean


SGD = {"optimizer": "sgd", "momentum": 0.8, "l2": 0.01}
CASES = [(objective, changes) for objective in TASKS for changes in ({}, SGD)]
CASES += [("binary", {"class_weight": (1.0, 3.0)}), ("multiclass", {"class_weight": (1.0, 3.0, 2.0)})]


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(("objective", "changes"), CASES, ids=str)
def test_split_training_is_training_of_the_joint_network(objective, own, changes, monkeypatch):
    monkeypatch.setattr(split_messages, "BLOCK", 7)
    x, y = table(objective)
    if not own:
        del x["g"]
    settings = dataclasses.replace(SETTINGS, **changes)
    parts = parts_of(train(x, y, settings, objective=objective))
    found = score(x, parts, np.arange(len(y))).result("g")
    expected = joint(x, y, settings, objective, thirds())
    assert found == pytest.approx(expected if objective == "multiclass" else expected[:, 0], rel=1e-4, abs=1e-4)


def test_two_halves_of_pictures_give_what_neither_has_alone():
    digits = load_digits()
    pictures, y = (digits.images / 16).astype(np.float32), digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(y))
    split = Split(np.sort(order[:1400]), np.arange(0), np.sort(order[1400:]))
    settings = SplitSettings(epochs=8, batch_size=64, learning_rate=0.01, channels=(12, 24), embedding=32)
    left, right, found = pictures[:, :, :4].copy(), pictures[:, :, 4:].copy(), []
    for half in (left, np.zeros_like(left)):
        course = MemoryCourse()
        converse(
            {
                "g": lambda c: train_active(c, ["h"], right, y, "multiclass", 10, split, settings, course=course),
                "h": lambda c: train_passive(c, "g", half, split, settings, course=MemoryCourse()),
            }
        ).result("h")
        found.append(course.told[-1][1]["accuracy"])
    assert found[0] > 0.95 and found[0] > found[1] + 0.03


@pytest.mark.parametrize(
    ("objective", "metric"), [("binary", "auc"), ("multiclass", "accuracy"), ("regression", "rmse")]
)
def test_the_active_party_tells_metrics_and_the_others_nothing(objective, metric):
    x, y = table(objective)
    split, courses = thirds(), {name: MemoryCourse() for name in "ghi"}
    session = train(x, y, dataclasses.replace(SETTINGS, epochs=8), objective=objective, courses=courses)
    rows = split.test
    scores = score(x, parts_of(session), rows).result("g")
    oracle = {
        "auc": lambda: roc_auc_score(y[rows], scores),
        "accuracy": lambda: (scores.argmax(axis=1) == y[rows]).mean(),
        "rmse": lambda: np.sqrt(((scores - y[rows]) ** 2).mean()),
    }[metric]()
    told = courses["g"].told
    assert [number for number, _ in told] == list(range(1, 9)) and set(told[-1][1]) == {"loss", metric}
    assert told[-1][1][metric] == pytest.approx(oracle, rel=1e-5) and told[-1][1]["loss"] < told[0][1]["loss"]
    assert all(metrics == {} for name in "hi" for _, metrics in courses[name].told)


def test_without_test_rows_or_without_both_classes_there_is_no_score():
    x, y = table()
    for test in (np.arange(0), np.flatnonzero(y == 1)[:5]):
        courses = {name: MemoryCourse() for name in "ghi"}
        train(x, y, split=Split(thirds().train, np.arange(0), test), courses=courses).result("g")
        assert all(set(metrics) == {"loss"} for _, metrics in courses["g"].told)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("early_stopping", [0, 2])
def test_a_resumed_training_gives_what_an_unbroken_one_gives(optimizer, early_stopping):
    x, y = table()
    settings = dataclasses.replace(SETTINGS, epochs=5, optimizer=optimizer, early_stopping=early_stopping)
    courses = {name: MemoryCourse() for name in "ghi"}
    whole = parts_of(train(x, y, settings, courses=courses))
    for begun in (1, 3, 5):
        again = {name: MemoryCourse(begun, courses[name].kept[begun]) for name in "ghi"}
        parts = parts_of(train(x, y, settings, courses=again))
        assert all(same(parts[name].to_arrays(), whole[name].to_arrays()) for name in "ghi")
        assert again["g"].told == courses["g"].told[begun:]


def overfitting():
    """Labels of chance: the validation loss soon rises."""
    x, _ = table()
    y = np.random.default_rng(5).integers(0, 2, 150)
    return x, y, dataclasses.replace(SETTINGS, epochs=30, learning_rate=0.05, early_stopping=3)


def test_early_stopping_leaves_the_best_epochs_part_at_all_parties():
    x, y, settings = overfitting()
    courses = {name: MemoryCourse() for name in "ghi"}
    parts = parts_of(train(x, y, settings, courses=courses))
    losses = [metrics["valid_loss"] for _, metrics in courses["g"].told]
    best = int(np.argmin(losses)) + 1
    assert len(losses) == best + 3 < 30
    for name in "ghi":
        assert len(courses[name].told) == len(losses)
        kept = courses[name].kept[best]
        assert all(np.array_equal(kept[key], value) for key, value in parts[name].to_arrays().items())


def test_a_training_that_had_stopped_stays_stopped_when_resumed():
    x, y, settings = overfitting()
    courses = {name: MemoryCourse() for name in "ghi"}
    parts = parts_of(train(x, y, settings, courses=courses))
    last = len(courses["g"].told)
    again = {name: MemoryCourse(last, courses[name].kept[last]) for name in "ghi"}
    session = train(x, y, settings, courses=again)
    assert not session.said and not again["g"].told
    assert all(same(session.result(name).to_arrays(), parts[name].to_arrays()) for name in "ghi")


def test_the_same_seed_gives_the_same_and_another_another():
    x, y = table()
    first, again = parts_of(train(x, y)), parts_of(train(x, y))
    other = parts_of(train(x, y, dataclasses.replace(SETTINGS, seed=1)))
    assert all(same(first[name].to_arrays(), again[name].to_arrays()) for name in "ghi")
    assert not any(same(first[name].to_arrays(), other[name].to_arrays()) for name in "ghi")


def test_sizes_of_messages_do_not_depend_on_values_and_passives_do_not_talk():
    outlines = []
    for seed in (0, 1):
        x, y = table(seed=seed)
        said = train(x, y).said
        outlines.append({name: [m.outline for m in said if m.sender == name] for name in "ghi"})
    assert outlines[0] == outlines[1]
    assert {to for name in "hi" for _, to, _, _ in outlines[0][name]} == {"g"}
    assert len(outlines[0]["h"]) == 3 * (6 + 1) and outlines[0]["h"][0] == ("h", "g", "split embedding", 16 * 4 * 4)


VALUES = {
    "NaN": (np.nan, "a value that is not finite"),
    "infinite": (np.inf, "a value that is not finite"),
    "outside": (1.0001, r"an embedding outside \[-1, 1\]"),
}


@pytest.mark.parametrize("step", ["split embedding", "split rows"])
@pytest.mark.parametrize("value", VALUES)
def test_an_embedding_that_cannot_be_is_refused(step, value):
    def fault(sender, to, said, data):
        if (sender, said) != ("h", step):
            return data
        return data[:8] + np.float32(VALUES[value][0]).astype("<f4").tobytes() + data[12:]

    refused = train(*table(), fault=fault).results["g"]
    assert isinstance(refused, BadFrame)
    with pytest.raises(BadFrame, match=f"from party h in step '{step}': {VALUES[value][1]}"):
        raise refused


def test_a_gradient_that_is_not_finite_is_refused():
    def fault(sender, to, said, data):
        return np.float32(np.nan).tobytes() + data[4:] if (to, said) == ("i", "split gradient") else data

    refused = train(*table(), fault=fault).results["i"]
    assert isinstance(refused, BadFrame) and "party g in step 'split gradient': a value that is not" in str(refused)


@pytest.mark.parametrize("change", [lambda data: data + b"\0", lambda data: data[:-1]], ids=["longer", "shorter"])
@pytest.mark.parametrize("step", ["split embedding", "split rows", "split gradient", "split verdict"])
def test_a_message_of_another_size_is_refused(step, change):
    def fault(sender, to, said, data):
        return change(data) if said == step and "h" in (sender, to) else data

    session = train(*table(), fault=fault)
    refused = session.results["g" if step in ("split embedding", "split rows") else "h"]
    assert isinstance(refused, BadFrame) and f"in step {step!r}" in str(refused)


def test_a_verdict_that_is_none_is_refused():
    session = train(*table(), fault=lambda sender, to, said, data: b"\7" if said == "split verdict" else data)
    assert isinstance(session.results["h"], BadFrame) and "a verdict of 7" in str(session.results["h"])


def test_a_training_that_diverges_ends_at_all_parties():
    x, y = table("regression")
    settings = dataclasses.replace(SETTINGS, optimizer="sgd", learning_rate=1e30)
    results = train(x, y, settings, objective="regression").results
    assert any(isinstance(result, TrainingDiverged) for result in results.values())
    assert all(isinstance(result, TrainingDiverged | PeerLost) for result in results.values())


def test_noise_on_embeddings_is_drawn_for_each_release_and_learnt_with():
    x, y = table()
    settings = dataclasses.replace(SETTINGS, noise_multiplier=2.0, clipping_norm=0.5)
    parts = parts_of(session := train(x, y, settings, noise=lambda name: SeededStream(name.encode())))
    values = floats(session, "h", "g", "split rows") + floats(session, "h", "g", "split embedding")
    flat = np.concatenate([value.ravel() for value in values])
    assert flat.std() == pytest.approx(1.0, rel=0.1) and np.abs(flat).max() > 1.0
    rows = np.arange(150)
    scores = [
        score(x, parts, rows, noise=lambda name: SeededStream(seed + name.encode())).result("g")
        for seed in (b"1", b"1", b"2")
    ]
    assert np.array_equal(scores[0], scores[1]) and np.isclose(scores[0], scores[2]).mean() < 0.1
    again = [score(x, parts, rows).result("g") for _ in range(2)]
    assert np.isclose(*again).mean() < 0.1


def test_scored_rows_stay_within_the_norm_under_noise_of_the_planned_spread():
    x, y = table()
    sigma = plan_cut_layer(1, 1.0, 1e-5)
    parts = parts_of(train(x, y, dataclasses.replace(SETTINGS, epochs=1, noise_multiplier=sigma, clipping_norm=0.1)))
    sent = np.concatenate(floats(score(x, parts, np.zeros(4000, np.int64)), "h", "g", "split rows"))
    clean = parts["h"].bottom(torch.from_numpy(x["h"][:1])).detach().numpy()[0]
    expected = 0.1 * clean / np.linalg.norm(clean)
    assert np.linalg.norm(clean) > 0.2 and sent.std(axis=0) == pytest.approx(np.full(4, 0.1 * sigma), rel=0.06)
    assert sent.mean(axis=0) == pytest.approx(expected, abs=5 * 0.1 * sigma / 4000**0.5)


def floats(session, sender, to, step):
    return [
        np.frombuffer(m.data, "<f4").reshape(-1, 4)
        for m in session.said
        if (m.sender, m.to, m.step) == (sender, to, step)
    ]


def attack(session, y, settings):
    """The norm attack on each batch of the last epoch that H got, mean over them."""
    order = generator(settings.seed, "batches", settings.epochs).permutation(thirds(len(y)).train)
    batches = [order[at : at + settings.batch_size] for at in range(0, len(order), settings.batch_size)]
    gradients = floats(session, "g", "h", "split gradient")[-len(batches) :]
    pairs = [(g, y[rows]) for g, rows in zip(gradients, batches, strict=True) if 0 < y[rows].sum() < len(rows)]
    return np.mean([norm_attack_auc(g, labels) for g, labels in pairs])


def test_a_passive_party_reads_rare_labels_off_norms_unless_they_are_protected():
    x, y = table(n=1200, share=0.1)
    settings = dataclasses.replace(SETTINGS, epochs=8, batch_size=200)
    found = {}
    for kind in ("none", "max-norm", "marvell"):
        protected = dataclasses.replace(settings, gradient=kind)
        session = train(x, y, protected, noise=lambda name: SeededStream(name.encode()))
        session.result("h")
        found[kind] = attack(session, y, protected)
    assert found["none"] > 0.95 and found["max-norm"] < 0.65 and found["marvell"] < 0.65


def test_protected_gradients_still_teach():
    """Of the active party's own columns one counts, with an AUC of .63."""
    x, y = table(n=600)
    for kind in ("max-norm", "marvell"):
        courses = {name: MemoryCourse() for name in "ghi"}
        settings = dataclasses.replace(SETTINGS, epochs=6, gradient=kind)
        train(x, y, settings, courses=courses, noise=lambda name: SeededStream(name.encode())).result("g")
        assert courses["g"].told[-1][1]["auc"] > 0.85


def spoiled():
    x, y = table()
    split = thirds()
    yield (
        "marvell",
        {"settings": dataclasses.replace(SETTINGS, gradient="marvell"), "objective": "multiclass"},
        JobFileError,
    )
    yield "objective", {"objective": "ranking"}, JobFileError
    yield "labels", {"y": y + 1}, DataError
    yield "targets", {"y": np.where(y == 1, np.nan, 0.0), "objective": "regression"}, DataError
    yield "column", {"y": y[:, None]}, DataError
    yield "weights", {"settings": dataclasses.replace(SETTINGS, class_weight=(1.0,))}, JobFileError
    yield "valid", {"settings": dataclasses.replace(SETTINGS, early_stopping=1),
                    "split": Split(split.train, np.arange(0), split.test)}, DataError  # fmt: skip
    yield "train", {"split": Split(np.arange(0), np.arange(0), split.test)}, DataError
    yield "rows", {"split": Split(split.train, np.arange(0), np.array([150]))}, DataError
    yield "negative", {"split": Split(split.train, np.arange(0), np.array([-1]))}, DataError
    yield "precision", {"x": x | {"g": x["g"].astype(np.float64)}}, DataError
    yield "length", {"x": x | {"g": x["g"][:-1]}}, DataError
    yield "finite", {"x": x | {"g": np.full_like(x["g"], np.inf)}}, DataError


@pytest.mark.parametrize(
    ("case", "error"), [(case, error) for _, case, error in spoiled()], ids=[c[0] for c in spoiled()]
)
def test_data_and_settings_that_do_not_fit_are_refused_before_anything_is_sent(case, error):
    x, y = table()
    given = {"x": x, "y": y} | case
    session = train(given.pop("x"), given.pop("y"), **given)
    assert isinstance(session.results["g"], error) and "allowed" in str(session.results["g"])
    assert not [m for m in session.said if m.sender == "g"]


def test_parts_are_asked_for_what_they_were_trained_with():
    x, y = table()
    parts = parts_of(train(x, y))
    rows = np.arange(5)
    without = {"h": x["h"], "i": x["i"]}
    fewer = {"g": x["g"], "h": x["h"]}
    wider = x | {"g": x["h"]}
    for columns in (without, fewer, wider):
        assert isinstance(score(columns, parts, rows).results["g"], DataError)
    assert isinstance(score(x | {"h": x["g"]}, parts, rows).results["h"], DataError)
    assert isinstance(score(x, parts, np.array([150])).results["h"], DataError)
    assert score(x, parts, np.arange(0)).result("g").shape == (0,)


def test_saved_parts_score_as_those_in_memory():
    x, y = table("regression")
    parts = parts_of(train(x, y, objective="regression"))
    saved = {name: SplitPart.from_arrays(part.describe(), part.to_arrays()) for name, part in parts.items()}
    rows = np.array([5, 3, 3, 149])
    assert np.array_equal(score(x, parts, rows).result("g"), score(x, saved, rows).result("g"))
