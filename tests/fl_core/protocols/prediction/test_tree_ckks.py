"""Joint scores of boosted trees under the active party's key, against the plain evaluation of the same trees."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fl_core.errors import BadFrame, DataError, PeerTimeout
from fl_core.learning.tree_parts import empty_part
from fl_core.messages import COORDINATOR
from fl_core.protocols.prediction import tree_ckks
from fl_core.protocols.prediction.program import NewTable
from fl_core.protocols.prediction.tree_ckks import Frame, score_active, score_passive
from fl_core.protocols.vertical.dealer import OVER, PHASE
from fl_core.protocols.vertical.logistic import probabilities
from tests.fl_core.protocols.parties import converse, hashed
from tests.fl_core.protocols.prediction import trained
from tests.fl_core.protocols.prediction.trained import Model, columns_of

KEY, ASKED, ANSWERS = "key of scores", "encrypted leaves", "encrypted scores"
TREES = {"algorithm": "gbdt", "trees": 6, "bins": 8}
HALF_A_UNIT = 3e-4  # of a logit, as a probability, and of three classes


class Short(Model):
    """A small world, so that a prediction takes a second or less."""

    def new_rows(self, name, *, strange=True):
        table, rows = super().new_rows(name, strange=strange)
        kept = np.flatnonzero((rows >= 850) & (rows < 930))
        return NewTable(table.items[kept], table.ids[kept], table.columns.take(kept), None, table.where), rows[kept]


class Cancer(Model):
    """scikit-learn's breast_cancer, 15 columns at each party; the last 169 rows are new."""

    def new_rows(self, name, *, strange=True):
        rows = np.random.default_rng(ord(name[0])).permutation(np.arange(400, 569))
        made = columns_of(self.x, rows, self.chosen[name], strange=strange)
        return NewTable(hashed(rows.tolist()), np.array([f"{i:05d}" for i in rows]), made, None, name), rows


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("models"), {}
    (folder / "x.csv").write_text("id\n1\n")

    def get(kind=Short, settings=TREES, **more):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            if kind is Cancer:
                from sklearn.datasets import load_breast_cancer

                x, y = load_breast_cancer(return_X_y=True)
                patch.setattr(trained, "ROWS", 400)
                patch.setattr(trained, "world", lambda classes: (x, y))
                patch.setattr(trained, "COLUMNS", {2: {"bank": tuple(range(15)), "lab": tuple(range(15, 30))}})
            key = (kind, *more.items())
            if key not in made:
                made[key] = kind(settings, **more)
            return made[key]

    return get


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "x.csv").write_text("id\n1\n")
    monkeypatch.chdir(tmp_path)


def plain_scores(model, rows, parts=()):
    """All parts in one place, leaves rounded."""
    columns, held = model.plain(rows), {name: model.part(name) for name in model.chosen} | dict(parts)
    trees, other = held["bank"].trees, held["lab"]
    codes, others = held["bank"].codes(columns["bank"]), [(other.trees, other.codes(columns["lab"]))]
    return trained.whole_scores(trees, model.objective, codes, others)


def predict(model, **more):
    done, common = model.predict(model.plan("bank", protocol="ckks"), **more)
    return done, common


# ------------------------------------------------------------------------------------------------ right results


def test_every_row_of_breast_cancer_gets_the_score_of_the_whole_forest(models):
    model = models(Cancer, {"algorithm": "gbdt", "trees": 30, "bins": 16, "depth": 3})
    done, common = predict(model)
    done.result(COORDINATOR)
    got, expected = done.result("bank").predictions, probabilities(plain_scores(model, common))[:, 0]
    assert len(common) == 169 and (model.new_rows("bank")[1][done.result("bank").rows] == common).all()
    assert np.abs(got - expected).max() < HALF_A_UNIT
    assert ((got > 0.5) == model.y[common]).mean() > 0.9
    dealt, _ = model.predict(model.plan("bank"))
    assert (got == dealt.result("bank").predictions).all()  # the same whole numbers
    assert done.result("lab").predictions is None


def test_more_classes(models):
    model = models(classes=3)
    done, common = predict(model)
    got = done.result("bank")
    assert got.classes == ("a", "b", "c")
    assert np.abs(got.predictions - probabilities(plain_scores(model, common))).max() < HALF_A_UNIT


def test_regression(models):
    model = models(objective="regression")
    done, common = predict(model)
    expected = plain_scores(model, common)[:, 0]
    assert np.abs(done.result("bank").predictions - expected).max() < 0.0051 and expected.std() > 10  # half a unit


def test_a_large_base_score_needs_no_room(models):
    model = models(objective="regression")
    bank = model.part("bank")
    bank.trees = dataclasses.replace(bank.trees, base=np.array([1e9]))
    done, common = predict(model, parts={"bank": bank})
    assert np.abs(done.result("bank").predictions - plain_scores(model, common, {"bank": bank})[:, 0]).max() < 0.0051


def test_where_the_other_party_splits_nothing_nothing_is_asked(models):
    model = models()
    bank, lab = model.part("bank"), model.part("lab")
    lab.trees = empty_part(lab.trees.trees, lab.trees.depth, lab.trees.sizes)
    owner = np.where(bank.trees.owner > 0, -1, bank.trees.owner).astype(np.int16)
    bank.trees = dataclasses.replace(bank.trees, owner=owner)
    done, common = predict(model, parts={"bank": bank, "lab": lab})
    expected = probabilities(plain_scores(model, common, {"bank": bank, "lab": lab}))[:, 0]
    assert np.abs(done.result("bank").predictions - expected).max() < HALF_A_UNIT
    assert not {KEY, ASKED, ANSWERS} & {m.step for m in done.said}


# ------------------------------------------------------------------------------------------------ what travels


def test_nothing_goes_to_the_dealer_and_what_travels_is_fresh_each_time(models):
    model = models()
    done, common = predict(model)
    to_coordinator = [(m.sender, m.step, m.data) for m in done.said if m.to == COORDINATOR]
    assert to_coordinator == [("bank", PHASE, OVER)]
    assert not [m for m in done.said if m.sender == COORDINATOR]
    assert {(m.to, m.step) for m in done.said if m.step in (KEY, ASKED)} == {("lab", KEY), ("lab", ASKED)}
    assert {m.to for m in done.said if m.step == ANSWERS} == {"bank"}
    width = sum(model.part("bank").layout().widths)
    asked = sum(len(m.data) for m in done.said if m.step == ASKED)
    assert asked == len(common) * (12 * width + 32)
    again, _ = predict(model)
    assert sorted(m.outline for m in again.said) == sorted(m.outline for m in done.said)
    held = {step: [m.data for m in done.said if m.step == step] for step in (KEY, ASKED, ANSWERS)}
    for step, sent in held.items():
        fresh = [m.data for m in again.said if m.step == step]
        for one, other in zip(sent, fresh, strict=True):
            assert (np.frombuffer(one, np.uint8) == np.frombuffer(other, np.uint8)).mean() < 0.05


def test_blocks_of_rows_join_and_are_bounded(models, monkeypatch):
    monkeypatch.setattr(tree_ckks, "BLOCK_BYTES", 200_000)
    model = models()
    done, common = predict(model)
    assert np.abs(done.result("bank").predictions - probabilities(plain_scores(model, common))[:, 0]).max() < HALF_A_UNIT
    sent = [m for m in done.said if m.step in (ASKED, ANSWERS)]
    assert len(sent) > 12 and max(len(m.data) for m in sent) <= 200_000


# ------------------------------------------------------------------------------------------------ pieces

FRAME = Frame(5, (3, 0, 2))


def numbers(block):
    made = np.arange(25.0).reshape(5, 5) - 7
    return made[block], np.full((5, 3), 100.0)[block]


def flags(block):
    return (np.arange(25).reshape(5, 5)[block] % 3 == 0).astype(bool)


def test_outputs_without_columns_keep_what_needs_no_product():
    done = converse(
        {
            "bank": lambda c: score_active(c, "lab", FRAME, numbers),
            "lab": lambda c: score_passive(c, "bank", FRAME, flags),
        }
    )
    every = slice(0, 5)
    product = numbers(every)[0] * flags(every)
    expected = 100 + np.stack([product[:, :3].sum(1), np.zeros(5), product[:, 3:].sum(1)], axis=1)
    assert (done.result("bank") == expected).all() and done.result("lab") is None


def test_no_rows_are_no_work():
    frame = Frame(0, (3,))
    done = converse(
        {
            "bank": lambda c: score_active(c, "lab", frame, numbers),
            "lab": lambda c: score_passive(c, "bank", frame, flags),
        }
    )
    assert done.result("bank").shape == (0, 1) and done.result("lab") is None


def test_blocks_are_asked_ahead_but_not_without_bound(monkeypatch):
    """Both parties work at the same time; an asker whose peer is slow does not fill its memory."""
    monkeypatch.setattr(tree_ckks, "BLOCK_BYTES", 1)
    heard = []

    def slow(channel):
        channel.recv("bank", step=KEY, max_bytes=1 << 20)
        while True:
            heard.append(len(channel.recv("bank", step=ASKED, max_bytes=FRAME.question_bytes, timeout=1.0)))

    done = converse({"bank": lambda c: score_active(c, "lab", FRAME, numbers), "lab": slow}, timeout=1.5)
    assert isinstance(done.results["lab"], PeerTimeout) and isinstance(done.results["bank"], Exception)
    assert heard == [FRAME.question_bytes] * (tree_ckks.AHEAD + 1)


FAULTS = {
    "a short key": (KEY, "lab", lambda data: data[:-1]),
    "a key of zeros": (KEY, "lab", lambda data: bytes(len(data))),
    "a short question": (ASKED, "lab", lambda data: data[:-1]),
    "a row too many": (ASKED, "lab", lambda data: data + data[: FRAME.question_bytes]),
    "questions of zeros": (ASKED, "lab", lambda data: bytes(len(data))),
    "numbers beyond the modulus": (ASKED, "lab", lambda data: b"\xff" * len(data)),
    "a short answer": (ANSWERS, "bank", lambda data: data[:-1]),
    "an answer too many": (ANSWERS, "bank", lambda data: data + data[: FRAME.answer_bytes // 2]),
    "answers of zeros": (ANSWERS, "bank", lambda data: bytes(len(data))),
    "answers beyond the modulus": (ANSWERS, "bank", lambda data: b"\xff" * len(data)),
}


@pytest.mark.parametrize("what", FAULTS)
def test_what_cannot_be_is_refused_by_who_gets_it(what):
    wrong, victim, change = FAULTS[what]

    def fault(sender, to, step, data):
        return change(data) if step == wrong else data

    programs = {
        "bank": lambda c: score_active(c, "lab", FRAME, numbers),
        "lab": lambda c: score_passive(c, "bank", FRAME, flags),
    }
    done = converse(programs, fault=fault)
    caught = done.results[victim]
    assert isinstance(caught, BadFrame) and "\n" not in str(caught) and wrong in str(caught)


# ------------------------------------------------------------------------------------------------ limits


def test_trees_without_room_are_refused_before_anything_is_sent(models, monkeypatch):
    model, plan = models(), models().plan("bank", protocol="ckks")
    bank = model.part("bank")
    bank.trees = dataclasses.replace(bank.trees, leaves=bank.trees.leaves * 1e4)
    done, _ = predict(model, parts={"bank": bank})
    assert isinstance(done.results["bank"], DataError) and "protocol = shared" in str(done.results["bank"])
    assert not [m for m in done.said if m.sender == "bank"]
    bank.check(dataclasses.replace(plan, protocol="shared"))
    monkeypatch.setattr("fl_core.protocols.prediction.forest.MAX_LEAVES", 10)
    for name in ("bank", "lab"):
        with pytest.raises(DataError, match="leaves a score"):
            model.part(name).check(plan)
