"""Joint scores of boosted trees by shares, against the plain evaluation of the same trees with rounded leaves."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.crypto.ring import U32, U64
from fl_core.errors import BadFrame, DataError, RefusedError, TrainingDiverged
from fl_core.learning.tree_parts import OWN, empty_part, empty_trees, joint_scores
from fl_core.messages import COORDINATOR
from fl_core.protocols.prediction.forest import Layout, WholeLeaves, marks, values
from fl_core.protocols.prediction.reading import part_of
from fl_core.protocols.vertical.dealer import ORDER, PHASE
from fl_core.protocols.vertical.logistic import probabilities
from tests.fl_core.protocols.prediction.trained import Model, whole_scores

TREES = {"algorithm": "gbdt", "trees": 6, "bins": 8}
HALF_A_UNIT = 3e-4  # of a logit, as a probability, and of three classes


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("models"), {}
    (folder / "x.csv").write_text("id\n1\n")

    def get(**more):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            key = tuple(more.items())
            if key not in made:
                made[key] = Model(TREES, **more)
            return made[key]

    return get


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "x.csv").write_text("id\n1\n")
    monkeypatch.chdir(tmp_path)


def plain_scores(model, rows, *, rounded=True):
    """All parts in one place."""
    columns = model.plain(rows)
    active = model.part("bank")
    trees, codes = active.trees, active.codes(columns["bank"])
    held = [model.part(name) for name in model.told["bank"]["parties"][1:]]
    others = [(part.trees, part.codes(columns[part.party])) for part in held]
    return whole_scores(trees, model.objective, codes, others) if rounded else joint_scores(trees, codes, others)


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("receiver", ["bank", "lab"])
def test_a_score_is_that_of_the_whole_model(models, parties, receiver):
    model = models(parties=parties)
    done, common = model.predict(model.plan(receiver))
    done.result(COORDINATOR)
    got, expected = done.result(receiver), probabilities(plain_scores(model, common))[:, 0]
    assert (model.new_rows(receiver)[1][got.rows] == common).all()
    assert np.abs(got.predictions - expected).max() < HALF_A_UNIT
    exact = probabilities(plain_scores(model, common, rounded=False))[:, 0]
    assert 0 < np.abs(got.predictions - exact).max() < 1e-3
    assert expected.std() > 0.1
    assert all(done.result(name).predictions is None for name in model.chosen if name != receiver)


@pytest.mark.parametrize("parties", [2, 3])
def test_more_classes(models, parties):
    model = models(parties=parties, classes=3)
    done, common = model.predict(model.plan("lab", "bank"))
    expected = probabilities(plain_scores(model, common))
    for name in ("lab", "bank"):
        got = done.result(name)
        assert got.classes == ("a", "b", "c")
        assert np.abs(got.predictions - expected).max() < HALF_A_UNIT


def test_regression_for_a_receiver_without_labels(models):
    model = models(objective="regression")
    done, common = model.predict(model.plan("lab"))
    got, expected = done.result("lab").predictions, plain_scores(model, common)[:, 0]
    unit = WholeLeaves.of(model.part("bank").trees, "regression").unit
    assert np.abs(got - expected).max() <= unit / 2 + 1e-9 and expected.std() > 10
    assert unit == pytest.approx(0.01)
    assert np.abs(got - plain_scores(model, common, rounded=False)[:, 0]).max() < 7 * unit / 2 + 1e-9


def test_blocks_of_rows_join(models, monkeypatch):
    from fl_core.protocols.prediction import tree_shares

    model = models(parties=3)
    monkeypatch.setattr(tree_shares, "BLOCK_BYTES", 50_000)
    done, common = model.predict(model.plan("lab"))
    done.result(COORDINATOR)
    assert np.abs(done.result("lab").predictions - probabilities(plain_scores(model, common))[:, 0]).max() < HALF_A_UNIT
    assert len([m for m in done.said if m.step == ORDER]) > 3


@pytest.mark.parametrize("receiver", ["bank", "lab"])
@pytest.mark.parametrize("parties", [2, 3])
def test_nothing_but_uniform_elements_travels_and_no_sum_to_others(models, parties, receiver):
    model = models(parties=parties)
    plan = model.plan(receiver)
    done, _ = model.predict(plan)
    assert {m.to for m in done.said if m.step == "share of scores"} == {receiver}
    for m in done.said:
        if m.step in ("masked factors", "share of scores") or (m.sender == COORDINATOR and m.step == "dealer"):
            data = np.frombuffer(m.data, np.uint8)
            if len(data) >= 4096:
                counts = np.bincount(data, minlength=256)
                assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 400, m.outline  # 255 ± 23
    # sizes depend on rows and columns alone, and no number reaches the dealer
    again, _ = model.predict(plan)
    assert sorted(m.outline for m in again.said) == sorted(m.outline for m in done.said)
    told = [m for m in done.said if m.to == COORDINATOR and not m.step.startswith(("psi", "ring", "ecdh"))]
    assert {(m.sender, m.step) for m in told} == {("bank", PHASE), ("bank", ORDER)}, {m.step for m in told}


def test_shares_of_one_score_are_new_each_time(models):
    model = models()
    heard = []
    for _ in range(2):
        done, _ = model.predict(model.plan("bank"))
        heard.append(np.concatenate([np.frombuffer(m.data, np.uint32) for m in done.said if m.step == "share of scores"]))
    assert (heard[0] == heard[1]).mean() < 0.01


def test_a_party_that_splits_nothing_and_trees_of_one_party(models):
    model = models()
    part = model.part("lab")
    part.trees = empty_part(part.trees.trees, part.trees.depth, part.trees.sizes)
    bank = model.part("bank")
    owner = np.where(bank.trees.owner == OWN, OWN, -1).astype(np.int16)
    bank.trees = dataclasses.replace(bank.trees, owner=owner)
    done, common = model.predict(model.plan("lab"), parts={"bank": bank, "lab": part})
    whole = WholeLeaves.of(bank.trees, "binary")
    trees = dataclasses.replace(bank.trees, leaves=whole.leaves * whole.unit, base=whole.base * whole.unit)
    codes = bank.codes(model.plain(common)["bank"])
    assert np.abs(done.result("lab").predictions - probabilities(joint_scores(trees, codes, []))[:, 0]).max() < HALF_A_UNIT


def test_few_trees_are_refused_unless_the_job_says_so(models):
    model = models()
    done, _ = model.predict(model.plan("bank", min_trees=20))
    for name in ("bank", "lab"):
        assert isinstance(done.results[name], RefusedError) and "6 trees" in str(done.results[name])


def test_parts_of_two_trainings_are_refused_before_anything_is_aligned(models):
    model = models()
    done, _ = model.predict(model.plan("bank"), parts={"lab": model.part("lab", job="cd" * 32)})
    assert isinstance(done.results["bank"], DataError) and "of another training" in str(done.results["bank"])
    assert isinstance(done.results["lab"], DataError)
    assert {m.step for m in done.said} == {"model"}


@pytest.mark.parametrize("changes", [{"run": "f" * 16}, {"parties": ["bank", "lab", "shop"]}, {"parties": ["lab", "bank"]}])
def test_a_part_of_another_run_or_other_parties_is_refused(models, changes):
    model = models()
    if changes.get("parties") == ["lab", "bank"]:
        with pytest.raises(DataError):  # no leaves: the part says itself that its owner is passive
            model.part("lab", **changes)
        return
    with pytest.raises((DataError, RefusedError)):
        model.part("lab", **changes).check(model.plan("bank"))


BAD = {
    "splits of other columns": lambda a: a | {"sizes": a["sizes"] + 1},
    "a feature that is not there": lambda a: a | {"feature": np.where(a["feature"] >= 0, 99, -1).astype(np.int32)},
    "trees of no depth": lambda a: a | {"feature": a["feature"][:, :2]},
    "cuts of another shape": lambda a: a | {"cut": a["cut"][:-1]},
    "no cuts": lambda a: {k: v for k, v in a.items() if k != "cut"},
    "gains that are not finite": lambda a: a | {"gain": a["gain"] * np.nan},
    "objects": lambda a: a | {"gain": a["gain"].astype(object)},
}
BAD_ACTIVE = {
    "leaves that are not finite": lambda a: a | {"leaves": a["leaves"] * np.nan},
    "leaves of fewer trees": lambda a: a | {"leaves": a["leaves"][1:]},
    "an owner who is nobody": lambda a: a | {"owner": np.full_like(a["owner"], 7)},
    "more parties": lambda a: a | {"parties": np.array(5)},
    "more outputs": lambda a: a | {"base": np.zeros(2)},
}


@pytest.mark.parametrize("what", [*BAD, *BAD_ACTIVE])
def test_trees_that_cannot_be_are_refused_in_one_line(models, what):
    model = models()
    name = "bank" if what in BAD_ACTIVE else "lab"
    arrays = (BAD | BAD_ACTIVE)[what](dict(model.arrays[name]))
    with pytest.raises(DataError) as caught:
        part_of(model.told[name], arrays, party=name, where=f"party {name}")
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"party {name}")


# ---- pieces


def random_trees(seed, *, trees, depth, parties, outputs=1, scale=1.0):
    rng = np.random.default_rng(seed)
    sizes = np.array([4, 3, 5])
    made = empty_trees(trees, depth, sizes, rng.normal(size=outputs), parties)
    others = [empty_part(trees, depth, sizes) for _ in range(parties)]
    for tree in range(trees):
        for node in range(2**depth - 1):
            owner = int(rng.integers(-1, parties + 1))
            made.owner[tree, node] = owner
            part = made if owner == OWN else others[owner - 1] if owner > 0 else None
            if part is not None:
                part.feature[tree, node] = rng.integers(3)
                part.cut[tree, node] = rng.integers(sizes[part.feature[tree, node]] - 1)
    made.leaves[:] = rng.normal(size=made.leaves.shape) * scale
    codes = [np.stack([rng.integers(size, size=40) for size in sizes], axis=1).astype(np.uint8) for _ in range(parties + 1)]
    return made, others, codes


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.sampled_from([U32, U64]))
def test_values_times_marks_sum_to_the_score(seed, depth, parties, outputs, dtype):
    trees, others, codes = random_trees(seed, trees=2 * outputs, depth=depth, parties=parties, outputs=outputs)
    whole = WholeLeaves.of(trees, "binary")
    split = trees.owner > OWN if parties == 1 else None
    layout = Layout(split, trees.leaves.shape, outputs)
    if parties == 1:
        same = Layout(others[0].feature >= 0, trees.leaves.shape, outputs)
        assert same.widths == layout.widths and same.order == layout.order
        assert layout.columns <= trees.leaves.size
    product, alone = values(trees, whole, layout, codes[0], dtype)
    for part, theirs in zip(others, codes[1:], strict=True):
        product = product * marks(part, layout, theirs, dtype)
    ends = np.cumsum([0, *layout.widths])
    sums = np.stack([product[:, a:b].sum(axis=1, dtype=dtype) for a, b in pairwise(ends)], axis=1) + alone
    got = sums.view(np.int32 if dtype == U32 else np.int64) * whole.unit
    expected = whole_scores(trees, "binary", codes[0], list(zip(others, codes[1:], strict=True)))
    assert np.abs(got - expected).max() <= whole.unit / 2 + 1e-9


def test_leaves_are_told_apart_only_where_the_other_party_splits():
    split = np.zeros((3, 7), bool)
    split[1, 0] = split[2, 4] = True
    layout = Layout(split, (3, 8), 1)
    assert [len(leaders) for leaders in layout.leaders] == [1, 2, 3]
    assert layout.order == [1, 2] and layout.widths == [5]
    assert layout.groups[2].tolist() == layout.groups[2][[0, 0, 2, 3, 0, 0, 0, 0]].tolist()


def test_sums_take_64_bits_where_32_do_not_reach_and_none_where_float64_does_not():
    trees, _, _ = random_trees(0, trees=4, depth=2, parties=1)
    assert WholeLeaves.of(trees, "binary").bits == 32
    assert WholeLeaves.of(dataclasses.replace(trees, base=np.array([1e7])), "binary").bits == 64
    with pytest.raises(TrainingDiverged):
        WholeLeaves.of(dataclasses.replace(trees, base=np.array([1e14])), "binary")
    assert WholeLeaves.of(dataclasses.replace(trees, leaves=trees.leaves * 1e5), "regression").bits == 32


def test_large_values_travel_in_64_bits_and_stay_exact(models):
    model = models(objective="regression")
    bank = model.part("bank")
    bank.trees = dataclasses.replace(bank.trees, base=np.array([1e9]))
    done, common = model.predict(model.plan("bank"), parts={"bank": bank})
    whole = WholeLeaves.of(bank.trees, "regression")
    assert whole.bits == 64
    moved = plain_scores(model, common)[:, 0] - model.part("bank").trees.base[0]
    assert np.abs(done.result("bank").predictions - 1e9 - moved).max() < whole.unit / 2 + 1e-5


@pytest.mark.parametrize("form", [b'{"bits":16}', b"[]", b'{"bits":32,"unit":"nan"}', b'{"bits":32,"unit":"-1"}', b'{"unit":"1"}'])
def test_a_form_that_cannot_be_is_refused(models, form):
    model = models()

    def fault(sender, to, step, data):
        return form if step == "form of scores" else data

    done, _ = model.predict(model.plan("lab"), fault=fault)
    assert isinstance(done.results["lab"], BadFrame)


def test_an_order_that_is_none_and_a_short_share_are_refused(models):
    model = models()

    def order(sender, to, step, data):
        return bytes(len(data)) if step == "order of rows" else data

    def short(sender, to, step, data):
        return data[:-4] if step == "share of scores" else data

    for fault, receiver, victim in ((order, "bank", "lab"), (short, "bank", "bank")):
        done, _ = model.predict(model.plan(receiver), fault=fault)
        assert isinstance(done.results[victim], BadFrame)
