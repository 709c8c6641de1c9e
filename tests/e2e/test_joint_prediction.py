"""Joint prediction by the command line: the scores of the training again, new rows, who gets them, what nobody sees."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

from clients.model_folder import read_part
from fl_core.learning.tree_parts import joint_scores
from fl_core.protocols.prediction.reading import part_of
from tests.e2e.federation import Federation
from tests.e2e.process import Place
from tests.e2e.test_vertical import check_private, job, person, read, write

pytestmark = pytest.mark.e2e

JOB = """
kind = "predict"
name = "scores"
runtime = "{runtime}"
{parties}
[predict]
model = "{model}"
{more}
"""
ALGORITHMS = {
    "open": ("logistic", "epochs = 10"),
    "strict": ("logistic", "bins = 8\nepochs = 10"),
    "woe": ("logistic", 'bins = 8\nencoding = "woe"\nepochs = 10'),
    "ckks": ("logistic", 'protocol = "ckks"\nepochs = 5'),
    "trees": ("gbdt", "trees = 20"),
    "split": ("split-nn", "epochs = 2\nlearning_rate = 0.005"),
}


def asked(place, names, *, model="model", more="", runtime="local", data="{}_new.csv", name="scores"):
    parties = [f'[[party]]\nname = "{party}"\ndata = "{data.format(party)}"\nid = "who"' for party in names]
    path = place.path / f"{name}.toml"
    path.write_text(JOB.format(runtime=runtime, parties="\n".join(parties), model=model, more=more))
    return path


def write_new(place):
    """Some of the training's rows and some new ones, of which each party lacks some; no labels."""
    rows = np.arange(1000)
    write(place.path / "bank_new.csv", rows[rows % 11 > 0], (0, 1, 2), seed=1)
    write(place.path / "bureau_new.csv", rows[rows % 13 > 0], (3, 4, 5), seed=2)
    return [person(n) for n in rows if n % 11 and n % 13]


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path / "place")
    write(made.path / "bank.csv", np.arange(0, 1100), (0, 1, 2), label="defaulted", seed=1)
    write(made.path / "bureau.csv", np.arange(100, 1200), (3, 4, 5), seed=2)
    yield made
    made.clear()


def train(place, which, names=("bank", "bureau"), **options):
    algorithm, more = ALGORITHMS[which]
    path = job(place, list(names), algorithm=algorithm, more=more, **options)
    done = place.fedseal("run", path, "--out", "model", "--json")
    assert done.code == 0, done
    return done.json


@pytest.mark.parametrize("which", ALGORITHMS)
def test_rows_of_the_training_get_the_scores_of_the_training(place, which):
    train(place, which)
    # the same rows, as the parties had them: missing values are drawn anew in another file
    path = asked(place, ["bureau", "bank"], data="{}.csv")
    done = place.fedseal("run", path, "--out", "out", "--json")
    assert done.code == 0, done
    assert done.json["outputs"] == {"bank": {"scores": str(place.path / "out" / "bank" / "scores.csv")}}
    assert done.json["metrics"]["rows_aligned"] == 1000 and done.json["metrics"]["rows_per_second"] > 0
    scores = read(place.path / "out" / "bank" / "scores.csv")
    assert list(scores[0]) == ["who", "score"] and [row["who"] for row in scores] == [
        person(n) for n in range(100, 1100)
    ]
    new = {row["who"]: float(row["score"]) for row in scores}
    old = {row["who"]: float(row["score"]) for row in read(place.path / "model" / "bank" / "predictions.csv")}
    assert len(old) == 200
    apart = max(abs(new[who] - score) for who, score in old.items())
    assert apart < (1e-3 if which != "trees" else 2e-3), apart  # leaf weights are rounded
    assert not (place.path / "out" / "bureau" / "scores.csv").exists()
    assert (place.path / "out" / "bank" / "scores.csv").stat().st_mode & 0o777 == 0o600
    check_private(place)
    assert place.fedseal("audit", "verify").code == 0
    assert (done.json["unsafe"] != []) == (which == "split")


def test_new_rows_reach_the_named_receiver_alone(place):
    train(place, "trees")
    expected = write_new(place)
    path = asked(place, ["bank", "bureau"], more='receivers = ["bureau"]')
    done = place.fedseal("run", path, "--out", "out", "--json")
    assert done.code == 0, done
    scores = read(place.path / "out" / "bureau" / "scores.csv")
    assert [row["who"] for row in scores] == expected
    assert not (place.path / "out" / "bank").exists() or not list((place.path / "out" / "bank").iterdir())
    folder = place.path / "model"
    parts = {n: part_of(*read_part(folder / n / "model", n), party=n, where=n) for n in ("bank", "bureau")}
    assert parts["bank"].trees.trees == 20
    trees, codes = (
        parts["bank"].trees,
        {n: part.codes(columns_of(place, n, part, expected)) for n, part in parts.items()},
    )
    z = joint_scores(trees, codes["bank"], [(parts["bureau"].trees, codes["bureau"])])[:, 0]
    assert np.abs(1 / (1 + np.exp(-z)) - [float(row["score"]) for row in scores]).max() < 1e-3  # leaves are rounded
    check_private(place)


def columns_of(place, name, part, people):
    from clients.columns import read_columns

    source, kinds = place.path / f"{name}_new.csv", part.kinds
    loaded = read_columns(source, id_columns=["who"], label=None, only=tuple(kinds), kinds=kinds, where=name)
    at = {who: row for row, who in enumerate(loaded.ids["who"].to_pylist())}
    return loaded.columns.take(np.array([at[who] for who in people]))


def test_three_parties_two_receivers_and_a_run_by_its_name(place):
    write(place.path / "bureau.csv", np.arange(100, 1200), (3, 4), seed=2)
    write(place.path / "shop.csv", np.arange(50, 1150), (5,), seed=3)
    for which in ("open", "trees"):
        algorithm, more = ALGORITHMS[which]
        path = job(place, ["bureau", "bank", "shop"], algorithm=algorithm, more=more, name=which)
        done = place.fedseal("run", path, "--out", f"model-{which}", "--json")
        assert done.code == 0, done
        receivers = 'receivers = ["shop", "bank"]'
        path = asked(place, ["bank", "bureau", "shop"], model=which, more=receivers, data="{}.csv", name=which)
        again = place.fedseal("run", path, "--out", f"out-{which}", "--json")
        assert again.code == 0, again
        one, two = (read(place.path / f"out-{which}" / name / "scores.csv") for name in ("shop", "bank"))
        assert one == two and len(one) == 1000
        before = read(place.path / f"model-{which}" / "bank" / "predictions.csv")
        new = {row["who"]: float(row["score"]) for row in one}
        assert max(abs(new[row["who"]] - float(row["score"])) for row in before) < 2e-3


def test_a_check_shows_rows_and_columns_and_starts_nothing(place):
    train(place, "open")
    path = asked(place, ["bank", "bureau"], data="{}.csv")
    done = place.fedseal("check", path, "--json")
    assert done.code == 0, done
    assert [(p["status"], p["table"], p["columns"]) for p in done.json["parties"]] == [("ready", "1,100", "4")] * 2
    (place.path / "bureau.csv").write_text("who,hush_3\nx,1\n")
    done = place.fedseal("check", path, "--json")
    assert done.code == 2 and [p["status"] for p in done.json["parties"]] == ["ready", "problem"]


BAD = {
    "no model": (["--set", "predict.model=nowhere"], "predict.model: 'nowhere': no such training", 2),
    "a strange receiver": (["--set", 'predict.receivers=["ministry"]'], "predict.receivers: 'ministry'", 2),
    "a label": (["--set", "party.0.label=defaulted"], "party[0].label: in a prediction", 2),
    "a cardinality": (["--set", "psi.output=cardinality"], "psi.output", 2),
    "another party": (["--set", "party.1.name=shop"], "a model of bank, bureau for a job of bank, shop", 2),
    "a table of another kind": (["--set", "vertical.trees=3"], "vertical: is not read by a predict job", 2),
    "another active party": (["--set", "predict.active=bureau"], "predict.active: 'bureau'; allowed: 'bank'", 2),
    "few trees": ([], "8 trees a score", 3),
}


def test_bad_input_is_one_clear_line(place):
    path = job(place, ["bank", "bureau"], algorithm="gbdt", more="trees = 8")
    assert place.fedseal("run", path, "--out", "model", "--json").code == 0
    asking = asked(place, ["bank", "bureau"], data="{}.csv")
    for words, said, code in BAD.values():
        assert said in place.fedseal("run", asking, *words).fails(code)
    few = place.fedseal("run", asking, "--set", "predict.min_trees=8", "--json", "--out", "few")
    assert few.code == 0 and "8 trees" in few.json["unsafe"][0], few


def test_a_part_that_was_changed_mixed_up_or_is_of_another_training_is_refused(place):
    train(place, "open")
    path = asked(place, ["bank", "bureau"], data="{}.csv")
    model = place.path / "model" / "bureau" / "model"
    kept = {name: (model / name).read_bytes() for name in ("model.json", "arrays.npz")}
    about = json.loads(kept["model.json"])
    for name, data, said in (
        ("model.json", json.dumps(about | {"algorithm": "gbdt"}).encode(), "changed since"),
        ("model.json", b"[", "no JSON object"),
        ("model.json", b'{"format": "fedseal-vertical/9"}', "fedseal-vertical/9"),
        ("arrays.npz", kept["arrays.npz"][:-40], "changed since"),
    ):
        (model / name).write_bytes(data)
        assert said in place.fedseal("run", path).fails(2)
        (model / name).write_bytes(kept[name])
    (model / "arrays.npz").unlink()
    assert "no arrays.npz" in place.fedseal("run", path).fails(2)
    shutil.rmtree(model)
    done = place.fedseal("run", place.path / "credit.toml", "--out", "other", "--json")
    assert done.code == 0, done
    shutil.copytree(place.path / "other" / "bureau" / "model", model)
    assert "is of run" in place.fedseal("run", path).fails(2)
    shutil.rmtree(model)
    shutil.copytree(place.path / "other" / "bank" / "model", model)
    assert "a part of party 'bank'" in place.fedseal("run", path).fails(2)


def test_columns_that_are_missing_or_of_another_kind_are_one_clear_line(place):
    train(place, "open")
    write_new(place)
    path = asked(place, ["bank", "bureau"])
    text = (place.path / "bureau_new.csv").read_text()
    (place.path / "bureau_new.csv").write_text(text.replace("hush_4", "hushed_4", 1))
    assert "'hush_4'" in place.fedseal("run", path).fails(2)
    rows = list(csv.reader(text.splitlines()))
    rows[5][1] = "much"
    (place.path / "bureau_new.csv").write_text("\n".join(map(",".join, rows)) + "\n")
    assert "not a number" in place.fedseal("run", path).fails(2)


def test_noise_at_the_cut_layer_counts_against_the_owners_limit(place):
    more = 'epochs = 2\n[privacy]\nmechanism = "cut-layer"\ntarget_epsilon = 3.0'
    path = job(place, ["bank", "bureau"], algorithm="split-nn", more=more)
    assert place.fedseal("run", path, "--out", "model").code == 0
    path = asked(place, ["bank", "bureau"], data="{}.csv")
    done = place.fedseal("run", path, "--out", "out", "--set", "party.1.max_epsilon=8.0")
    assert done.code == 0, done
    assert place.fedseal("run", path, "--out", "out2", "--set", "party.1.max_epsilon=3.5").code == 3


def test_nodes_of_a_deployment_predict_with_what_they_keep(tmp_path):
    federation = Federation(tmp_path)
    try:
        federation.start()
        people = {
            "bank": (np.arange(0, 1100), (0, 1, 2), "defaulted"),
            "bureau": (np.arange(100, 1200), (3, 4, 5), None),
        }
        nodes = {}
        for seed, (name, (rows, columns, label)) in enumerate(people.items(), start=1):
            write(federation.path / f"{name}.csv", rows, columns, label=label, seed=seed)
            write(federation.path / f"{name}_new.csv", rows[::2], columns, seed=seed)
            bound = [f"--data=people={federation.path / name}.csv", f"--data=new={federation.path / name}_new.csv"]
            nodes[name] = federation.node(name, *bound)
            nodes[name].start(wait=False)
        for node in nodes.values():
            node.service.wait_for("connected")
            node.wait_for_executor()
        ann = federation.person("ann")
        algorithm, more = ALGORITHMS["trees"]
        path = job(ann, list(people), algorithm=algorithm, more=more, runtime="deployment", data="people")
        trained = ann.fedseal("run", path, "--out", "model", "--json")
        assert trained.code == 0, trained
        more = 'receivers = ["bureau"]'
        for model in ("model", trained.json["run"]):
            asking = asked(ann, list(people), model=model, runtime="deployment", data="new", more=more)
            checked = ann.fedseal("check", asking, "--json")
            assert checked.code == 0 and [p["status"] for p in checked.json["parties"]] == ["ready", "ready"], checked
            done = ann.fedseal("run", asking, "--json")
            assert done.code == 0, done
            assert done.json["outputs"] == {"bureau": {"scores": None}} and done.json["metrics"]["rows_aligned"] == 500
            (scores,) = nodes["bureau"].folder.glob(f"outputs/{done.json['run']}/bureau/scores.csv")
            assert len(read(scores)) == 500
        assert not list(nodes["bank"].folder.glob("outputs/*/bank/scores.csv"))
        nobody = asked(ann, list(people), model="nobody", runtime="deployment", data="new")
        assert "no such training" in ann.fedseal("run", nobody).fails(2)
        assert federation.verdict() == 0
    finally:
        federation.clear()
