"""Trees over shared histograms: against the same trees grown in one place, and that no small node is ever opened."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from fl_core.errors import BadFrame, DataError, JobFileError, TrainingDiverged
from fl_core.learning.boosting import TreeSettings
from fl_core.learning.tree_parts import joint_scores
from fl_core.protocols.vertical.course import MemoryCourse, Split
from fl_core.protocols.vertical.dealer import Dealer
from fl_core.protocols.vertical.histograms import OPEN, FixedPoint
from fl_core.protocols.vertical.tree_messages import SIDES, SPLITS
from fl_core.protocols.vertical.tree_scoring import score_active, score_passive
from fl_core.protocols.vertical.trees import train_active, train_passive
from tests.fl_core.learning import plain_boosting
from tests.fl_core.protocols.parties import converse

NAMES = ("h", "i", "j")


class Data:
    """Codes of the active party and of the passive ones, labels that hang on all of them."""

    def __init__(self, objective="binary", *, outputs=1, parties=2, own=3, n=700, seed=0):
        rng = np.random.default_rng(seed)
        self.objective, self.outputs = objective, outputs
        self.sizes = [np.array([9, 4, 7][: own if p == 0 else 3]) for p in range(parties)]
        self.codes = [
            np.stack([rng.integers(0, s, n) for s in sizes], axis=1).astype(np.uint8) if len(sizes) else
            np.zeros((n, 0), np.uint8) for sizes in self.sizes
        ]  # fmt: skip
        z = sum((c[:, 0] > 3) + 0.3 * c[:, -1] for c in self.codes if c.shape[1]) + rng.normal(size=n)
        z = z + 1.5 * (self.codes[-1][:, 1] > 1) * (self.codes[-2][:, 1] > 1 if own else 1)
        cuts = np.quantile(z, np.linspace(0, 1, max(outputs, 2) + 1)[1:-1])
        self.y = z * 1000 - 77 if objective == "regression" else np.searchsorted(cuts, z).astype(float)
        order = rng.permutation(n)
        ends = n * 6 // 10, n * 7 // 10, n * 9 // 10
        self.split = Split(*(np.sort(part) for part in np.split(order, ends)[:3]))

    @property
    def passives(self):
        return list(NAMES[: len(self.codes) - 1])

    def train(self, settings, *, courses=None, fault=None, **more):
        """A session; the courses by party beside it."""
        courses = courses or {name: MemoryCourse() for name in ("g", *self.passives)}
        programs = {"g": lambda c: train_active(
            c, "d", self.passives, self.codes[0], self.sizes[0], self.y, self.objective, self.outputs, self.split,
            settings, course=courses["g"])}  # fmt: skip
        for codes, sizes, name in zip(self.codes[1:], self.sizes[1:], self.passives, strict=True):
            programs[name] = lambda c, codes=codes, sizes=sizes, name=name: train_passive(
                c, "d", "g", codes, sizes, self.split, settings, course=courses[name]
            )
        programs["d"] = lambda c: Dealer(c, "g", ["g", *self.passives]).serve()
        return converse(programs, fault=fault, **more), courses

    def scores(self, session):
        parts = [session.result(name) for name in self.passives]
        return joint_scores(session.result("g"), self.codes[0], list(zip(parts, self.codes[1:], strict=True)))

    def plain(self, settings):
        return plain_boosting.train(
            self.codes, self.sizes, self.y, self.objective, self.outputs, self.split, settings
        )  # fmt: skip


CASES = [
    (Data(), {}),
    (Data(parties=3), {}),
    (Data(own=0), {}),
    (Data(), {"subsample": 0.6, "class_weight": (1.0, 2.5), "depth": 2}),
    (Data("multiclass", outputs=3, parties=3), {}),
    (Data("regression"), {"l2": 0.5}),
    (Data("regression", parties=3, own=0), {"depth": 4, "min_rows_open": 12}),
]


@pytest.mark.parametrize(("data", "more"), CASES)
def test_trees_are_those_that_grow_in_one_place(data, more):
    settings = TreeSettings(**{"trees": 4, "min_rows_open": 25} | more)
    session, courses = data.train(settings)
    session.result("d")
    plain, scores = data.plain(settings), data.scores(session)
    unit = 1000 if data.objective == "regression" else 1
    assert np.abs(scores - plain.scores)[data.split.train].max() < 1e-3 * unit
    told = [metrics["loss"] for _, metrics in courses["g"].told]
    assert np.allclose(told, plain.losses, rtol=1e-5)
    assert told[-1] < 0.9 * told[0]
    assert {party for *_, party, _ in plain.splits} == set(range(len(data.codes))) - (
        {0} if not data.sizes[0].size else set()
    )


@pytest.mark.parametrize("objective", ["binary", "multiclass", "regression"])
def test_metrics_are_those_of_the_scores(objective):
    data = Data(objective, outputs=3 if objective == "multiclass" else 1)
    session, courses = data.train(TreeSettings(trees=2))
    scores, test = data.scores(session), data.split.test
    name, value = {
        "binary": ("auc", lambda: _auc(data.y[test], scores[test, 0])),
        "multiclass": ("accuracy", lambda: (scores[test].argmax(axis=1) == data.y[test]).mean()),
        "regression": ("rmse", lambda: np.sqrt(((scores[test, 0] - data.y[test]) ** 2).mean())),
    }[objective]
    assert courses["g"].told[-1][1][name] == pytest.approx(value(), rel=1e-9)
    assert all(metrics == {} for _, metrics in courses["h"].told)


def _auc(y, score):
    pairs = score[y == 1][:, None] - score[y == 0][None]
    return (pairs > 0).mean() + (pairs == 0).mean() / 2


# ---- resuming, stopping


def test_a_resumed_training_ends_as_an_uninterrupted_one():
    data, settings = Data("multiclass", outputs=3), TreeSettings(trees=5, subsample=0.7, min_rows_open=20)
    whole, courses = data.train(settings)
    again = {name: MemoryCourse(begun=2, state=course.kept[2]) for name, course in courses.items()}
    rest, later = data.train(settings, courses=again)
    assert [n for n, _ in later["g"].told] == [3, 4, 5]
    assert (data.scores(rest) == data.scores(whole)).all()
    for name in ("g", "h"):
        one, two = whole.result(name).to_arrays(), rest.result(name).to_arrays()
        assert all((one[key] == two[key]).all() for key in one)


def test_early_stopping_keeps_the_best_round_at_all_parties():
    data = Data(n=400, seed=3)
    settings = TreeSettings(trees=60, learning_rate=1.0, early_stopping=3, min_rows_open=20)
    session, courses = data.train(settings)
    losses = [metrics["valid_loss"] for _, metrics in courses["g"].told]
    best = int(np.argmin(losses)) + 1
    assert len(losses) == best + 3 < 60
    assert session.result("g").rounds == best == session.result("h").trees
    valid = data.split.valid
    z = data.scores(session)[valid, 0]
    assert np.log1p(np.exp(np.where(data.y[valid] > 0, -z, z))).mean() == pytest.approx(min(losses), rel=1e-9)
    again = {name: MemoryCourse(begun=len(losses), state=course.kept[len(losses)]) for name, course in courses.items()}
    rest, later = data.train(settings, courses=again)
    assert not later["g"].told and rest.result("g").rounds == best


# ---- what is opened


def opened_rows(session, rows, name="h"):
    """Row sets of the nodes that a passive party was asked to open, a list for each level."""
    for said in session.said:
        if said.to == name and said.step == OPEN:
            count = int(np.frombuffer(said.data, "<i8", 1)[0])
            sizes = np.frombuffer(said.data, "<i8", count, 8).tolist()
            at, sets = 8 + 8 * count + 8 * sum(sizes), []
            for size in sizes:
                bits = (rows + 7) // 8 if size < rows else 0
                flags = np.unpackbits(np.frombuffer(said.data, np.uint8, bits, at))
                sets.append(np.flatnonzero(flags) if bits else np.arange(rows))
                assert len(sets[-1]) == size
                at += bits
            yield sets


@pytest.mark.parametrize("more", [{}, {"subsample": 0.5}, {"class_weight": (1.0, 4.0)}])
@pytest.mark.parametrize("objective", ["binary", "regression"])
def test_neither_a_small_node_nor_its_sibling_is_opened(objective, more):
    more = {} if objective == "regression" and "class_weight" in more else more
    settings = TreeSettings(trees=12, depth=4, min_rows_open=40, min_child_weight=0, **more)
    data = Data(objective, n=1500)
    session, _ = data.train(settings)
    session.result("d")
    root, known, split_twice = round(900 * settings.subsample), [], 0
    for level in opened_rows(session, 900):
        if level and len(level[0]) == root:
            known = level
            continue
        parents = [next(rows for rows in known if np.isin(child, rows).all()) for child in level]
        siblings = [np.setdiff1d(rows, child) for rows, child in zip(parents, level, strict=True)]
        known = level + siblings
        assert all(40 <= len(child) <= len(other) for child, other in zip(level, siblings, strict=True))
        split_twice += len(level) > 1
    assert split_twice


def test_too_few_rows_to_open_the_root_are_refused():
    session, _ = Data(n=100).train(TreeSettings(min_rows_open=61), timeout=2)
    assert isinstance(session.results["g"], DataError)


def test_a_passive_party_refuses_to_open_a_small_node():
    """An active party that leaves out its own check gets no answer."""
    data = Data(n=200)
    session = converse({
        "g": lambda c: train_active(c, "d", ["h"], data.codes[0], data.sizes[0], data.y, "binary", 1, data.split,
                                    TreeSettings(min_rows_open=5), course=MemoryCourse()),
        "h": lambda c: train_passive(c, "d", "g", data.codes[1], data.sizes[1], data.split,
                                     TreeSettings(min_rows_open=50), course=MemoryCourse()),
        "d": lambda c: Dealer(c, "g", ["g", "h"]).serve(),
    })  # fmt: skip
    assert isinstance(session.results["h"], BadFrame) and "50" in str(session.results["h"])


def identify(g, h, left):
    """Which rows of a node are on the left, from their sums alone: every subset is tried."""
    found = []
    for size in range(len(g) + 1):
        for rows in combinations(range(len(g)), size):
            if abs(g[list(rows)].sum() - left[0]) < 1e-6 and abs(h[list(rows)].sum() - left[1]) < 1e-6:
                found.append(rows)
    return found


def test_sums_of_a_small_node_would_show_which_rows_are_left_of_a_cut():
    """Why nodes under `min_rows_open` stay closed: ten rows of one pair of sums are told apart."""
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.6, 10)
    y, code = rng.integers(0, 2, 10), rng.integers(0, 8, 10)
    g, h = p - y, p * (1 - p)
    for cut in range(7):
        left = code <= cut
        assert identify(g, h, (g[left].sum(), h[left].sum())) == [tuple(np.flatnonzero(left))]


def test_two_sessions_number_the_candidates_differently():
    data, settings = Data(), TreeSettings(trees=1, depth=1)
    orders = [data.train(settings)[1]["h"].kept[1]["order"].tolist() for _ in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(17)) and orders[0] != orders[1]


def test_what_the_active_party_gets_beside_sides_and_the_dealers_part_looks_uniform():
    data, settings = Data(n=2000), TreeSettings(trees=3)
    session, _ = data.train(settings)
    heard = [m for m in session.said if m.sender == "h" and m.step != SIDES and len(m.data) > 8]
    counts = np.bincount(np.frombuffer(b"".join(m.data for m in heard), np.uint8), minlength=256)
    mean = counts.sum() / 256
    assert ((counts - mean) ** 2 / mean).sum() < 255 + 6 * np.sqrt(2 * 255)


# ---- faults


def broken(session, at):
    assert isinstance(session.results[at], BadFrame), session.results[at]
    return str(session.results[at])


def once(sender, step, change):
    left = [1]

    def fault(who, _to, what, data):
        if (who, what) == (sender, step) and left:
            left.clear()
            return change(bytearray(data))
        return data

    return fault


def _set(data, at, value):
    data[at] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("sender", "step", "change", "at"),
    [
        ("g", OPEN, lambda d: d[:-1], "h"),
        ("g", OPEN, lambda d: d[:5], "h"),
        ("g", OPEN, lambda d: _set(d, 0, 200), "h"),
        ("g", OPEN, lambda d: _set(d, 8, 3), "h"),
        ("g", OPEN, lambda d: _set(d, 15, 255), "h"),
        ("g", SPLITS, lambda d: d[:-1], "h"),
        ("g", SPLITS, lambda d: _set(d, 8, 7), "h"),
        ("g", SPLITS, lambda d: _set(d, 12, 7), "h"),
        ("g", SPLITS, lambda d: _set(d, 17, 7), "h"),
        ("g", SPLITS, lambda d: _set(d, -1, d[-1] ^ 0x80), "h"),
        ("g", SPLITS, lambda d: bytes(d[:30]) + b"\xf0\x7f" + bytes(d[32:]), "h"),
        ("h", SIDES, lambda d: d[:-1], "g"),
        ("h", SIDES, lambda d: _set(d, -1, 255), "g"),
        ("h", SIDES, lambda d: bytes(255 - b for b in d[:-1]) + bytes(d[-1:]), "g"),
        ("h", SIDES, lambda d: _set(d, 3, d[3] ^ 255), "g"),
    ],
)
def test_what_does_not_fit_is_named(sender, step, change, at):
    data = Data(own=0, n=603)
    session, _ = data.train(TreeSettings(trees=2), fault=once(sender, step, change), timeout=2)
    assert step in broken(session, at)


def test_a_regression_that_runs_away_is_refused():
    data = Data("regression")
    settings = TreeSettings(trees=1)
    courses = {"g": MemoryCourse(), "h": MemoryCourse()}
    _, kept = data.train(settings)
    state = kept["g"].kept[1]
    courses["g"] = MemoryCourse(begun=1, state=state | {"scores": state["scores"] + 5.0})
    courses["h"] = MemoryCourse(begun=1, state=kept["h"].kept[1])
    session, _ = data.train(TreeSettings(trees=2), courses=courses, timeout=2)
    assert isinstance(session.results["g"], TrainingDiverged)


@pytest.mark.parametrize(
    ("more", "error"), [({"early_stopping": 2}, JobFileError), ({"class_weight": (1.0, 2.0, 3.0)}, JobFileError)]
)
def test_settings_that_cannot_be_are_refused_at_once(more, error):
    data = Data(n=200)
    data.split = Split(data.split.train, np.empty(0, np.int64), data.split.test)
    session, _ = data.train(TreeSettings(**more), timeout=2)
    assert isinstance(session.results["g"], error)


# ---- fixed point


@pytest.mark.parametrize("rows", [1, 50, 24_000, 1_000_000, 3_000_000, 1 << 28])
def test_a_sum_over_all_rows_fits_whatever_its_sign(rows):
    fixed = FixedPoint.of(rows, (4.0, 0.25))
    assert fixed.fraction >= 10
    for sign in (1, -1):
        top = fixed.encode(np.array([[4.0 * sign, 0.25 * sign]]), np.random.default_rng(0))
        assert np.allclose(fixed.decode(top), [[4.0 * sign, 0.25 * sign]])
        with np.errstate(over="ignore"):
            total = top * fixed.dtype.type(rows)
        assert np.allclose(fixed.decode(total), [[4.0 * sign * rows, 0.25 * sign * rows]])


def test_rounding_is_unbiased_and_under_the_bound():
    fixed, rng = FixedPoint.of(1_000_000, (1.0,)), np.random.default_rng(0)
    value = 0.3 * 2.0**-fixed.fraction
    made = fixed.decode(fixed.encode(np.full((40_000, 1), value), rng))
    assert abs(made.mean() - value) < 4 * 0.46 * 2.0**-fixed.fraction / 200
    for wrong in (1.01, -1.01, np.nan, np.inf):
        with pytest.raises(TrainingDiverged):
            fixed.encode(np.array([[wrong]]), rng)


# ---- scoring as in the training


@pytest.mark.parametrize("data", [Data(parties=3), Data("multiclass", outputs=3, own=0)])
def test_scores_of_rows_that_are_routed_are_those_of_the_parts(data):
    session, courses = data.train(TreeSettings(trees=3, min_rows_open=20))
    trees, rows = session.result("g"), np.arange(len(data.y))[::3]
    programs = {"g": lambda c: score_active(c, data.passives, trees, data.codes[0][rows])}
    for name, codes in zip(data.passives, data.codes[1:], strict=True):
        programs[name] = lambda c, name=name, codes=codes: score_passive(c, "g", session.result(name), codes[rows])
    asked = converse(programs)
    assert np.allclose(asked.result("g"), data.scores(session)[rows], atol=1e-12)
    if data.objective == "binary":
        assert np.allclose(data.scores(session)[data.split.train], courses["g"].kept[3]["scores"][data.split.train])


def test_routing_that_does_not_fit_is_named():
    data = Data()
    session, _ = data.train(TreeSettings(trees=3, min_rows_open=20))
    for sender, at in (("g", "h"), ("h", "g")):
        asked = converse(
            {"g": lambda c: score_active(c, ["h"], session.result("g"), data.codes[0]),
             "h": lambda c: score_passive(c, "g", session.result("h"), data.codes[1])},
            fault=lambda who, _to, _step, d, sender=sender: d[:-1] if who == sender and d else d, timeout=2,
        )  # fmt: skip
        assert isinstance(asked.results[at], BadFrame)
