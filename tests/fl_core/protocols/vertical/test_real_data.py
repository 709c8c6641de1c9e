"""Vertical training on credit defaults of 30,000 people: as good as the figures asked for, and equal to plain numpy.

The data are not part of the product: FEDSEAL_DATA, or ../shared/data, else these tests skip by name.
"""

from __future__ import annotations

import csv
import gzip

import numpy as np
import pytest

from fl_core.config import load_job
from fl_core.learning.binning import BinnedFeatures, one_hot
from fl_core.learning.columns import Column, Columns, LinearFeatures
from fl_core.learning.datasets import folder
from fl_core.learning.scores import auc
from fl_core.protocols.vertical import logistic_open, logistic_strict, plan, trees
from fl_core.protocols.vertical.course import MemoryCourse, Split
from fl_core.protocols.vertical.dealer import Dealer
from tests.fl_core.learning import plain_boosting
from tests.fl_core.protocols.parties import converse
from tests.fl_core.protocols.vertical import plain_logistic

pytestmark = pytest.mark.slow
FILES = ("default_credit_hetero_guest.csv.gz", "default_credit_hetero_host.csv.gz")


@pytest.fixture(scope="module")
def credit():
    """(columns of both parties, labels, split) in the order of the ids; the split is scikit-learn's, seed 42."""
    model_selection = pytest.importorskip("sklearn.model_selection")
    places = [folder() / name for name in FILES]
    for place in places:
        if not place.is_file():
            pytest.skip(f"no {place}")
    parts = []
    for place in places:
        with gzip.open(place, "rt") as file:
            header, *rows = csv.reader(file)
        table = np.array(rows, dtype=float)
        parts.append((header, table[np.argsort(table[:, 0])]))
    (guest, g), (_, h) = parts
    assert (g[:, 0] == h[:, 0]).all()
    y = g[:, guest.index("y")].astype(np.int64)
    tables = []
    for header, table in parts:
        names = [name for name in header if name not in ("id", "y")]
        columns = tuple(Column(name, numbers=table[:, header.index(name)]) for name in names)
        tables.append(Columns(columns, len(y)))
    train, test = model_selection.train_test_split(np.arange(len(y)), test_size=0.2, random_state=42, stratify=y)
    return tables, y, Split(np.sort(train), np.empty(0, np.int64), np.sort(test))


def settings_of(vertical, rows):
    parties = [{"name": n, "data": __file__, "id": "id"} | ({"label": "y"} if n == "g" else {}) for n in "gh"]
    job = load_job({"kind": "vertical", "party": parties, "vertical": vertical})
    task = plan.Task("binary", 1)
    made = plan.plan_of(job)
    return made.trees(task) if vertical["algorithm"] == "gbdt" else made.logistic(task, rows)


def together(active, passive):
    done = converse({"g": active, "h": passive, "d": lambda c: Dealer(c, "g", ["g", "h"]).serve()}, timeout=120)
    done.result("d")
    return done.result("g"), done.result("h")


def test_logistic_regression_on_standardised_columns(credit):
    tables, y, split = credit
    xs = [LinearFeatures.fit(t, split.train, where="here").transform(t) for t in tables]
    settings = settings_of({"algorithm": "logistic"}, len(split.train))
    found = together(
        lambda c: logistic_open.train_active(c, "d", ["h"], xs[0], y, 1, split, settings, course=MemoryCourse()),
        lambda c: logistic_open.train_passive(c, "d", "g", xs[1], 1, split, settings, course=MemoryCourse()),
    )
    plain, _ = plain_logistic.train(xs, y, 1, split, settings)
    ours, theirs = (auc(y[split.test], plain_logistic.logits(xs, w)[split.test, 0]) for w in (found, plain))
    assert ours >= 0.706
    assert ours == pytest.approx(theirs, abs=0.002)


def test_logistic_regression_on_bins_with_hidden_logits(credit):
    tables, y, split = credit
    xs = []
    for t in tables:
        bins = BinnedFeatures.fit(t, split.train, bins=10, where="here")
        xs.append(one_hot(bins.transform(t), bins.sizes).astype(float))
    settings = settings_of({"algorithm": "logistic", "bins": 10}, len(split.train))

    def party(x, labels):
        setup = logistic_strict.Setup(x, 1, split, settings, None, labels)
        return lambda c: logistic_strict.Strict(c, "d", ("g", "h"), setup, MemoryCourse()).run()

    found = together(party(xs[0], y), party(xs[1], None))
    plain, _ = plain_logistic.train(xs, y, 1, split, settings, linear=True, intercept_l2=True)
    ours, theirs = (auc(y[split.test], plain_logistic.logits(xs, w)[split.test, 0]) for w in (found, plain))
    assert ours >= 0.765
    assert ours == pytest.approx(theirs, abs=0.002)


def test_boosted_trees(credit):
    tables, y, split = credit
    fitted = [BinnedFeatures.fit(t, split.train, bins=32, where="here") for t in tables]
    codes, sizes = [f.transform(t) for f, t in zip(fitted, tables, strict=True)], [f.sizes for f in fitted]
    settings, course = settings_of({"algorithm": "gbdt"}, len(split.train)), MemoryCourse()
    together(
        lambda c: trees.train_active(
            c, "d", ["h"], codes[0], sizes[0], y, "binary", 1, split, settings, course=course
        ),
        lambda c: trees.train_passive(c, "d", "g", codes[1], sizes[1], split, settings, course=MemoryCourse()),
    )
    ours = course.told[-1][1]["auc"]
    assert ours >= 0.774
    plain = plain_boosting.train(codes, sizes, y, "binary", 1, split, settings)
    assert ours == pytest.approx(auc(y[split.test], plain.scores[split.test, 0]), abs=0.003)
