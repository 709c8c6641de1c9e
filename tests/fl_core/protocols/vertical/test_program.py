"""A whole vertical job over channels in memory: alignment, split, training, evaluation, and going on after a break."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fl_core.config import load_job
from fl_core.errors import BadFrame, DataError
from fl_core.learning.columns import Column, Columns
from fl_core.learning.scores import auc
from fl_core.messages import COORDINATOR
from fl_core.protocols.vertical.alignment import Stand
from fl_core.protocols.vertical.course import MemoryCourse
from fl_core.protocols.vertical.dealer import PHASE
from fl_core.protocols.vertical.plan import Task, plan_of
from fl_core.protocols.vertical.program import Site, Table, coordinate, run
from tests.fl_core.protocols.parties import converse, hashed

PARTIES = [{"name": "lab", "data": "x.csv", "id": "id"}, {"name": "bank", "data": "x.csv", "id": "id", "label": "y"}]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "x.csv").write_text("id\n1\n")
    monkeypatch.chdir(tmp_path)


def job(vertical, *, parties=PARTIES, **tables):
    return load_job({"kind": "vertical", "seed": 4, "party": parties, "vertical": vertical, **tables})


class MemorySite(Site):
    """Keeps everything in memory; what a broken session left can be given to the next one."""

    def __init__(self, before=None):
        self.aligned = before.aligned if before else None
        self.told, self.said = [], []
        self.last = before.last if before else MemoryCourse()

    def stand(self):
        if self.aligned is None:
            return Stand()
        return Stand(self.aligned.token, tuple(sorted(self.last.kept)[-3:]))

    def kept_alignment(self):
        return self.aligned

    def keep(self, aligned):
        self.aligned, self.last = aligned, MemoryCourse()

    def course(self, begun):
        kept = self.last.kept
        self.last = MemoryCourse(begun, dict(kept[begun]) if begun else {}, kept=dict(kept))
        return self.last

    def record(self, number, metrics):
        self.told.append((number, dict(metrics)))

    def say(self, text):
        self.said.append(text)


def people(n, share, seed, *, columns, offset=0):
    """Ids that a party has, with columns that everybody's label depends on."""
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(n, int(share * n), replace=False)) + offset
    return rng.permutation(ids), columns


def world(n=1500, classes=2):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 6))
    score = x @ rng.normal(size=(6, classes)) * 1.5 + rng.gumbel(size=(n, classes))
    return x, score.argmax(axis=1)


def table(ids, x, columns, y=None, classes=("no", "yes"), objective="binary"):
    made = tuple(Column(f"c{j}", numbers=x[ids, j]) for j in columns)
    labels = None if y is None else y[ids]
    names = np.array([f"{i:05d}" for i in ids])
    extra = {} if y is None else {"labels": labels, "classes": classes, "objective": objective}
    return Table(hashed(ids.tolist()), names, Columns(made, len(ids)), None, "party", **extra)


def session(read, tables, sites=None):
    plan = plan_of(read)
    sites = sites or {name: MemorySite() for name in tables}

    def party(name):
        return lambda channel: run(channel, plan, tables[name], sites[name], threads=1)

    programs = {name: party(name) for name in tables}
    if plan.coordinator is not None:
        programs[COORDINATOR] = lambda channel: coordinate(channel, plan)
    return sites, converse(programs)


@pytest.fixture
def two():
    x, y = world()
    bank, lab = people(1500, 0.9, 1, columns=(0, 1, 2))[0], people(1500, 0.8, 2, columns=(3, 4, 5))[0]
    common = np.sort(np.intersect1d(bank, lab))
    return {"bank": table(bank, x, (0, 1, 2), y), "lab": table(lab, x, (3, 4, 5))}, x, y, common, bank, lab


ALGORITHMS = [
    {"algorithm": "logistic"},
    {"algorithm": "logistic", "mode": "strict"},
    {"algorithm": "logistic", "bins": 6},
    {"algorithm": "logistic", "protocol": "ckks", "epochs": 30},
    {"algorithm": "logistic", "bins": 6, "encoding": "woe"},
    {"algorithm": "gbdt", "trees": 8},
    {"algorithm": "split-nn", "epochs": 5, "hidden": [8], "embedding": 8, "top_hidden": [8], "learning_rate": 0.01, "gradient": "none"},
]


@pytest.mark.parametrize("vertical", ALGORITHMS, ids=lambda v: "-".join(map(str, v.values())))
def test_a_job_aligns_trains_and_scores_better_than_either_party_could(folder, two, vertical):
    tables, x, y, common, bank, _ = two
    sites, done = session(job(vertical), tables)
    active, passive = done.result("bank"), done.result("lab")
    assert active.figures["rows_aligned"] == len(common)
    ids = bank[active.aligned.rows]
    assert (ids == common).all()  # in the order of the ids as text
    assert (active.aligned.split.test == passive.aligned.split.test).all()
    assert len(active.test) == round(0.2 * len(common))
    truth = y[bank[active.test]]
    assert active.figures["auc"] == pytest.approx(auc(truth, active.predictions), abs=1e-9)
    alone = max(auc(truth, s * x[bank[active.test], j]) for j in range(6) for s in (1, -1))
    assert active.figures["auc"] > max(0.8, alone)
    assert active.predictions.min() >= 0 and active.predictions.max() <= 1
    assert passive.predictions is None and not passive.figures
    numbers = [number for number, _ in sites["bank"].told]
    assert numbers == [0, plan_of(job(vertical)).steps + 1] == [number for number, _ in sites["lab"].told]
    assert [n for n, _ in sites["bank"].last.told] == list(range(1, plan_of(job(vertical)).steps + 1))
    assert sites["bank"].last.told[-1][1]["loss"] < sites["bank"].last.told[0][1]["loss"]
    assert all(not any(f"c{j}" in name for j in (3, 4, 5)) for name in active.method.importance())
    assert all(not any(f"c{j}" in name for j in (0, 1, 2)) for name in passive.method.importance())


def test_the_second_party_helps(folder, two):
    tables, *_ = two
    _, done = session(job({"algorithm": "logistic"}), tables)
    nothing = dataclasses.replace(tables["lab"], columns=Columns((Column("c9", numbers=np.random.default_rng(3).normal(size=1200)),), 1200))
    _, without = session(job({"algorithm": "logistic"}), {"bank": tables["bank"], "lab": nothing})
    assert done.result("bank").figures["auc"] > without.result("bank").figures["auc"] + 0.05


@pytest.mark.parametrize("vertical", [ALGORITHMS[0], ALGORITHMS[2], ALGORITHMS[5]], ids=["open", "strict", "trees"])
def test_more_than_two_classes(folder, vertical):
    x, y = world(classes=3)
    ids = np.arange(1500)
    tables = {"bank": table(ids, x, (0, 1, 2), y, ("a", "b", "c"), "multiclass"), "lab": table(ids, x, (3, 4, 5))}
    _, done = session(job(vertical), tables)
    active = done.result("bank")
    assert active.figures["accuracy"] > 0.65
    assert active.predictions.shape == (300, 3)
    assert np.abs(active.predictions.sum(axis=1) - 1).max() < 1e-9


def test_regression_by_trees(folder):
    x, _ = world()
    ids, y = np.arange(1500), x[:, 0] * 20 + x[:, 4] * 30 + 100
    tables = {"bank": table(ids, x, (0, 1, 2), y, (), "regression"), "lab": table(ids, x, (3, 4, 5))}
    _, done = session(job({"algorithm": "gbdt", "trees": 20}), tables)
    assert done.result("bank").figures["r2"] > 0.8
    _, refused = session(job({"algorithm": "logistic"}), tables)
    assert isinstance(refused.results["bank"], DataError)


@pytest.mark.parametrize("vertical", [{"algorithm": "logistic", "bins": 6}, {"algorithm": "gbdt", "trees": 6}])
def test_a_union_hides_members_and_learns_as_well(folder, two, vertical):
    tables, *_, common, bank, lab = two
    _sites, done = session(job(vertical, psi={"output": "union"}), tables)
    done.result(COORDINATOR)
    active = done.result("bank")
    assert active.predictions is None and not len(active.test)
    assert len(active.aligned.rows) == len(np.union1d(bank, lab))
    assert active.figures["auc"] > 0.85
    assert 0.1 * len(common) < active.figures["test_rows"] < 0.3 * len(common)
    assert np.all(np.asarray(list(active.roc)) <= 1)


@pytest.mark.parametrize("vertical", [v for v in ALGORITHMS if v.get("protocol") != "ckks"], ids=lambda v: "-".join(map(str, v.values())))
def test_a_training_that_broke_off_goes_on_without_aligning_again(folder, two, vertical):
    tables, *_ = two
    sites, done = session(job(vertical), tables)
    whole = done.result("bank").figures
    for name, site in sites.items():  # one party is a step ahead of the other
        last = max(site.last.kept) - (2 if name == "bank" else 1)
        for number in [n for n in site.last.kept if n > last]:
            del site.last.kept[number]
    again = {name: MemorySite(site) for name, site in sites.items()}
    later, done = session(job(vertical), tables, again)
    assert not [m for m in done.said if m.step.startswith("psi")]
    assert [number for number, _ in later["bank"].told] == [plan_of(job(vertical)).steps + 1]
    assert len(later["bank"].last.told) == 2
    measure = "auc"
    assert done.result("bank").figures[measure] == pytest.approx(whole[measure], abs=2e-3)


def test_parties_that_kept_different_alignments_begin_anew(folder, two):
    tables, *_ = two
    sites, done = session(job(ALGORITHMS[0]), tables)
    sites["lab"].aligned = dataclasses.replace(sites["lab"].aligned, token="00" * 16)
    later, done = session(job(ALGORITHMS[0]), tables, {n: MemorySite(s) for n, s in sites.items()})
    assert done.result("bank").figures["auc"] > 0.8
    assert next(number for number, _ in later["bank"].told) == 0


def test_no_common_ids_is_one_clear_line_at_every_party(folder):
    x, y = world()
    tables = {"bank": table(np.arange(700), x, (0, 1), y), "lab": table(np.arange(800, 1500), x, (3,))}
    _, done = session(job({"algorithm": "logistic"}), tables)
    for name in ("bank", "lab"):
        assert str(done.results[name]) == "the parties: no common ids; allowed: ids that some rows of all parties share"


def test_one_class_among_the_common_rows_is_one_clear_line(folder):
    x, y = world()
    ids = np.flatnonzero(y == 1)
    tables = {"bank": table(np.arange(1500), x, (0, 1), y), "lab": table(ids, x, (3,))}
    _, done = session(job({"algorithm": "logistic"}), tables)
    assert "common rows: one class only; allowed: two or more" in str(done.results["bank"])


@pytest.mark.parametrize("bad", [np.nan, 3.0])
@pytest.mark.parametrize("algorithm", ["logistic", "gbdt"])
def test_columns_that_say_nothing_are_left_out_or_refused(folder, bad, algorithm):
    x, y = world()
    ids = np.arange(1500)
    good, dull = table(ids, x, (3, 4, 5)), Column("it's dull", numbers=np.full(1500, bad))
    with_dull = dataclasses.replace(good, columns=Columns((*good.columns, dull), 1500))
    sites, done = session(job({"algorithm": algorithm, "trees": 3}), {"bank": table(ids, x, (0,), y), "lab": with_dull})
    assert done.result("bank").figures["auc"] > 0.6
    assert [s for s in sites["lab"].said if "left out" in s and "dull" not in s]  # the name stays at its owner
    only = dataclasses.replace(good, columns=Columns((dull,), 1500))
    _, done = session(job({"algorithm": algorithm}), {"bank": table(ids, x, (0,), y), "lab": only})
    assert isinstance(done.results["lab"], DataError)


def test_a_strange_word_from_the_active_party_ends_the_coordinator(folder):
    plan = plan_of(job({"algorithm": "logistic"}))

    def active(channel):
        channel.send(COORDINATOR, b'{"aligns":0,"begun":0}', step="where we stand")
        channel.send(COORDINATOR, b"steal", step=PHASE)

    done = converse({"bank": active, "lab": lambda c: None, COORDINATOR: lambda c: coordinate(c, plan)})
    assert isinstance(done.results[COORDINATOR], BadFrame)


@pytest.mark.parametrize(
    "data",
    [b"[]", b"{}", b'{"objective":"binary","outputs":0,"weights":[]}', b'{"objective":"theft","outputs":1,"weights":[]}',
     b'{"objective":"binary","outputs":1,"weights":["-1"]}', b'{"objective":"binary","outputs":1,"weights":["nan"]}'],
)  # fmt: skip
def test_a_task_that_is_none_is_refused(data):
    with pytest.raises(ValueError):
        Task.decode(data)
    assert Task.decode(Task("binary", 1, (0.5, 2.0)).encode()) == Task("binary", 1, (0.5, 2.0))
