"""Vertical learning by the command line: what each party gets, what nobody sees, and when a party is killed."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import sqlite3
import time

import numpy as np
import pytest

from fl_core.learning.scores import auc
from tests.e2e.federation import Federation
from tests.e2e.process import Place

pytestmark = pytest.mark.e2e

JOB = """
kind = "vertical"
name = "{name}"
seed = 5
runtime = "{runtime}"
{parties}
[vertical]
algorithm = "{algorithm}"
{more}
"""
PEOPLE = 1200


def person(number: int) -> str:
    return f"person {number:06d}"


def world():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(PEOPLE, 6))
    score = x @ np.array([0.5, -0.4, 0.3, 1.2, -1.0, 0.8]) + rng.logistic(size=PEOPLE)
    return x, (score > 0).astype(int)


def write(path, numbers, columns, *, label=None, names=None, seed=0):
    """A party's csv in an order of its own, with a category and some missing values."""
    x, y = world()
    rng = np.random.default_rng(seed)
    names = names or [f"hush_{j}" for j in columns]
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["who", *names, f"kind_{seed}", *([label] if label else [])])
        for n in rng.permutation(numbers).tolist():
            values = [f"{x[n, j]:.5f}" if rng.random() > 0.02 else "" for j in columns]
            kind = ["red", "green", "blue"][n % 3]
            out.writerow([person(n), *values, kind, *([y[n]] if label else [])])


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def job(place, names, *, algorithm="logistic", name="credit", runtime="local", more="", data="{}.csv", active="bank"):
    lines = []
    for party in names:
        lines.append(f'[[party]]\nname = "{party}"\ndata = "{data.format(party)}"\nid = "who"')
        if party == active:
            lines.append('label = "defaulted"')
    path = place.path / f"{name}.toml"
    text = JOB.format(name=name, runtime=runtime, algorithm=algorithm, parties="\n".join(lines), more=more)
    path.write_text(text)
    return path


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path / "place")
    write(made.path / "bank.csv", np.arange(0, 1100), (0, 1, 2), label="defaulted", seed=1)
    write(made.path / "bureau.csv", np.arange(100, 1200), (3, 4, 5), seed=2)
    yield made
    made.clear()


def check_private(place):
    """No id, column or value in what others see."""
    for path in (place.home / "ledger.db", place.home / "mlflow.db"):
        data = path.read_bytes()
        log = path.with_name(path.name + "-wal")
        data += log.read_bytes() if log.exists() else b""
        for word in (b"person 000", b"hush_", b"kind_1"):
            assert word not in data, (path, word)


ALGORITHMS = {
    "open": ("logistic", ""),
    "strict": ("logistic", "bins = 8"),
    "woe": ("logistic", 'bins = 8\nencoding = "woe"'),
    "ckks": ("logistic", 'protocol = "ckks"\nepochs = 20'),
    "trees": ("gbdt", "trees = 8"),
    "split": ("split-nn", "epochs = 8\nlearning_rate = 0.005"),
}


@pytest.mark.parametrize("which", ALGORITHMS)
def test_each_party_gets_its_part_and_nobody_sees_the_others(place, which):
    algorithm, more = ALGORITHMS[which]
    done = place.fedseal(
        "run", job(place, ["bank", "bureau"], algorithm=algorithm, more=more), "--out", "out", "--json"
    )
    assert done.code == 0, done
    metrics = done.json["metrics"]
    assert metrics["rows_aligned"] == 1000 and metrics["auc"] > 0.8, metrics
    assert ("seconds_per_tree" if algorithm == "gbdt" else "seconds_per_epoch") in metrics and "loss" in metrics
    out = place.path / "out"
    assert sorted(done.json["outputs"]) == ["bank", "bureau"]
    assert done.json["outputs"]["bureau"] == {"model": str(out / "bureau" / "model")}
    rows = read(out / "bank" / "predictions.csv")
    assert len(rows) == 200 and set(rows[0]) == {"who", "score"}
    _, y = world()
    truth = [y[int(row["who"].split()[1])] for row in rows]
    assert auc(truth, [float(row["score"]) for row in rows]) == pytest.approx(metrics["auc"], abs=1e-4)
    mine, theirs = (json.loads((out / name / "model" / "model.json").read_text()) for name in ("bank", "bureau"))
    assert "hush_0" in json.dumps(mine) and "hush_3" not in json.dumps(mine)
    assert "hush_3" in json.dumps(theirs) and "hush_0" not in json.dumps(theirs)
    assert "hush_3" in (out / "bureau" / "model" / "card.md").read_text() or which == "split"
    assert (out / "bureau" / "model" / "arrays.npz").stat().st_mode & 0o777 == 0o600
    check_private(place)
    assert place.fedseal("audit", "verify").code == 0
    assert not list((place.home / "parties").glob("*/runs/*/vertical/*.npz"))


def test_three_parties(place):
    write(place.path / "bureau.csv", np.arange(100, 1200), (3, 4), seed=2)
    write(place.path / "shop.csv", np.arange(50, 1150), (5,), seed=3)
    names = ["bureau", "bank", "shop"]
    for which in ("open", "strict", "trees"):
        algorithm, more = ALGORITHMS[which]
        path = job(place, names, algorithm=algorithm, more=more, name=which)
        done = place.fedseal("run", path, "--out", f"out-{which}", "--json")
        assert done.code == 0, done
        assert done.json["metrics"]["rows_aligned"] == 1000 and done.json["metrics"]["auc"] > 0.8, done.json


def test_rows_named_in_a_file_are_held_out(place):
    with (place.path / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["who"], *([person(n)] for n in range(90, 260))])
    path = job(place, ["bank", "bureau"], more='[evaluate]\ntest_ids = "test.csv"')
    done = place.fedseal("run", path, "--out", "out", "--json")
    assert done.code == 0, done
    got = [row["who"] for row in read(place.path / "out" / "bank" / "predictions.csv")]
    assert got == [person(n) for n in range(100, 260)]
    check_private(place)


def test_the_same_job_gives_the_same_figures(place):
    path = job(place, ["bank", "bureau"], algorithm="gbdt", more="trees = 4")
    one, two = (place.fedseal("run", path, "--out", f"out{i}", "--json").json["metrics"] for i in (1, 2))
    assert one["auc"] == two["auc"] and one["loss"] == pytest.approx(two["loss"], abs=1e-6)


@pytest.mark.parametrize(("algorithm", "more"), [("logistic", "bins = 8"), ("gbdt", "trees = 5")])
def test_hidden_membership_gives_figures_and_no_scores(place, algorithm, more):
    path = job(place, ["bank", "bureau"], algorithm=algorithm, more=more + '\n[psi]\noutput = "union"')
    done = place.fedseal("run", path, "--out", "out", "--json")
    assert done.code == 0, done
    metrics = done.json["metrics"]
    assert metrics["rows_aligned"] == 1200 and metrics["auc"] > 0.65  # the rows held out differ each time
    assert not (place.path / "out" / "bank" / "predictions.csv").exists()
    assert "predictions" not in done.json["outputs"]["bank"]
    check_private(place)


@pytest.mark.parametrize(("victim", "which"), [("bank", "trees"), ("bureau", "open")])
def test_a_killed_party_ends_the_job_and_it_goes_on_from_the_last_step(place, victim, which):
    algorithm, _ = ALGORITHMS[which]
    more = "trees = 60" if which == "trees" else "epochs = 60\nbatch_size = 64"
    path = job(place, ["bank", "bureau"], algorithm=algorithm, more=more)
    running = place.start("run", path, "--out", "out", "--json")
    running.wait_for("20")
    time.sleep(0.3)
    workers = sorted(pid for pid, said in place.processes().items() if "forkserver" in said)
    os.kill(workers[-1 if victim == "bureau" else -2], signal.SIGKILL)
    done = running.end(60)
    assert "session" in done.fails(1), done
    again = place.fedseal("run", path, "--resume", "--json")
    assert again.code == 0, again
    assert "going on after" in again.err and "aligning" not in again.err
    whole = place.fedseal("run", path, "--out", "whole", "--json").json["metrics"]
    assert again.json["metrics"]["auc"] == pytest.approx(whole["auc"], abs=2e-3)
    assert place.fedseal("audit", "verify").code == 0


BAD = {
    "two labels": (["--set", "party.1.label=kind_2"], "party[1].label: 'kind_2': party bank has a label already", 2),
    "label and id": (["--set", "party.0.label=who"], "both label and id", 2),
    "small batches by ckks": (["--set", "vertical.protocol=ckks", "--set", "vertical.batch_size=40"], "batch_size", 2),
    "unknown column": (["--set", 'party.0.columns=["hush_9"]'], "hush_9", 2),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_clear_line(place, what):
    words, said, code = BAD[what]
    assert said in place.fedseal("run", job(place, ["bank", "bureau"]), *words).fails(code)


def test_bad_data_is_one_clear_line(place):
    path = job(place, ["bank", "bureau"])
    write(place.path / "bureau.csv", np.arange(5000, 5001), (), seed=2)
    (place.path / "bureau.csv").write_text("who,a\nnobody,1\nno one,2\n")
    assert "no common ids" in place.fedseal("run", path).fails(2)
    (place.path / "bureau.csv").write_text("who,a\n" + "".join(f"{person(n)},\n" for n in range(1000)))
    assert "'a'" in place.fedseal("run", path).fails(2)
    rows = (place.path / "bank.csv").read_text().splitlines()
    (place.path / "bank.csv").write_text("\n".join([rows[0], *(r[:-1] + "1" for r in rows[1:])]) + "\n")
    assert "one class only" in place.fedseal("run", path).fails(2)


def test_more_bins_than_values_and_constant_columns_train_all_the_same(place):
    text = (place.path / "bureau.csv").read_text().splitlines()
    lines = [text[0] + ",flag,same", *(f"{row},{i % 2},7" for i, row in enumerate(text[1:]))]
    (place.path / "bureau.csv").write_text("\n".join(lines) + "\n")
    done = place.fedseal(
        "run", job(place, ["bank", "bureau"], algorithm="gbdt", more="trees = 3"), "--out", "out", "--json"
    )
    assert done.code == 0, done
    card = (place.path / "out" / "bureau" / "model" / "card.md").read_text()
    assert "same" in card and "constant" in card
    assert "same" not in done.err.replace("the same", "")


def test_noise_at_the_cut_layer_counts_against_the_owners_limit(place):
    more = 'epochs = 2\n[privacy]\nmechanism = "cut-layer"\ntarget_epsilon = 6.0'
    path = job(place, ["bank", "bureau"], algorithm="split-nn", more=more)
    limited = ["--set", "party.1.max_epsilon=8.0"]
    done = place.fedseal("run", path, *limited, "--out", "out", "--json")
    assert done.code == 0, done
    assert place.fedseal("run", path, *limited, "--out", "out2").code == 3


def test_simulation_gives_what_local_gives(place):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("the extra fedseal[simulation] is not installed")
    path = job(place, ["bank", "bureau"], algorithm="gbdt", more="trees = 4")
    local = place.fedseal("run", path, "--out", "a", "--json").json["metrics"]
    done = place.fedseal("run", path, "--runtime", "simulation", "--out", "b", "--json")
    assert done.code == 0, done
    ray = done.json["metrics"]
    assert ray["auc"] == pytest.approx(local["auc"], abs=1e-6)


def test_nodes_of_a_deployment_train_together(tmp_path):
    federation = Federation(tmp_path)
    try:
        federation.start()
        bank = federation.path / "bank.csv"
        write(bank, np.arange(0, 1100), (0, 1, 2), label="defaulted", seed=1)
        write(federation.path / "bureau.csv", np.arange(100, 1200), (3, 4, 5), seed=2)
        database = federation.path / "bureau.db"
        rows = list(csv.reader((federation.path / "bureau.csv").open()))
        with sqlite3.connect(database) as connection:
            connection.execute("CREATE TABLE people (who TEXT, a REAL, b REAL, c REAL, kind TEXT)")
            values = [[v if v != "" else None for v in row] for row in rows[1:]]
            connection.executemany("INSERT INTO people VALUES (?, ?, ?, ?, ?)", values)
        one = federation.node("bank", "--data", f"people={bank}")
        query = "people=SELECT who, a, b, c, kind FROM people"
        two = federation.node("bureau", "--data", f"people=sqlite:///{database}", "--query", query)
        for node in (one, two):
            node.start(wait=False)
        for node in (one, two):
            node.service.wait_for("connected")
            node.wait_for_executor()
        ann = federation.person("ann")
        figures = {}
        for which in ("open", "trees"):
            algorithm, more = ALGORITHMS[which]
            path = job(
                ann, ["bank", "bureau"], algorithm=algorithm, more=more, runtime="deployment", data="people", name=which
            )
            done = ann.fedseal("run", path, "--json")
            assert done.code == 0, done
            figures[which] = done.json["metrics"]
            assert figures[which]["rows_aligned"] == 1000 and figures[which]["auc"] > 0.8
            assert done.json["outputs"]["bureau"] == {"model": None}
        assert len(list(one.folder.glob("outputs/*/bank/predictions.csv"))) == 2
        assert len(list(two.folder.glob("outputs/*/bureau/model/model.json"))) == 2
        assert federation.verdict() == 0
        checked = ann.fedseal("check", path, "--json")
        assert checked.code == 0 and [p["status"] for p in checked.json["parties"]] == ["ready", "ready"], checked
    finally:
        federation.clear()
