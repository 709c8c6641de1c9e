"""What people see of a vertical run by the command line: progress, summary, list of runs, report, plots and card."""

from __future__ import annotations

import csv
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.e2e.process import Place

pytestmark = pytest.mark.e2e

JOB = """
kind = "vertical"
name = "shown"
[[party]]
name = "bank"
data = "bank.csv"
id = "who"
label = "secret_label"
[[party]]
name = "bureau"
data = "bureau.csv"
id = "who"
[vertical]
trees = 3
"""


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("shown"))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 4))
    y = (x.sum(axis=1) + rng.normal(size=600) > 0).astype(int)
    tables = {
        "bank": (["who", "secret_label", "secret_a"], lambda n: [n, y[n], x[n, 0]]),
        "bureau": (["who", "secret_b", "secret_c"], lambda n: [n, x[n, 1] + x[n, 2], x[n, 3]]),
    }
    for name, (head, row) in tables.items():
        with (place.path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([head, *map(row, range(600))])
    (place.path / "shown.toml").write_text(JOB)
    yield place, place.fedseal("run", "shown.toml", "--out", "out")
    place.clear()


def test_progress_names_alignment_trees_and_result(story):
    _, done = story
    assert done.code == 0, done
    assert "aligned 600 rows" in done.err and re.search(r"tree 3: auc 0\.\d+ ", done.err)
    assert re.search(r"result: auc 0\.\d+ +ks 0\.\d+ +loss", done.err) and "round" not in done.err
    assert re.search(r"AUC on all test rows +0\.\d+", done.out) and re.search(r"rows aligned +600$", done.out, re.M)


def test_list_of_runs_shows_the_auc(story):
    place, _ = story
    assert re.search(r"done +shown +AUC 0\.\d{4}", place.fedseal("runs").out)


def test_check_shows_each_partys_table(story):
    place, _ = story
    bank, bureau = place.fedseal("check", "shown.toml", "--json").json["parties"]
    assert (bank["table"], bank["columns"], bank["classes"]) == ("600", "1", "2")
    assert (bureau["table"], bureau["columns"], bureau["classes"]) == ("600", "2", "")


def test_mlflow_has_report_plots_and_card_without_anything_of_a_party(story, tmp_path):
    from mlflow.tracking import MlflowClient

    place, done = story
    client = MlflowClient(f"sqlite:///{place.home / 'mlflow.db'}")
    number = re.search(r"MLflow run +(\w+)", done.out)[1]
    found = {f.path for folder in client.list_artifacts(number) for f in client.list_artifacts(number, folder.path)}
    assert found == {"audit/report.html", "plots/learning_curve.svg", "plots/roc.svg", "model/model_card.md"}
    for path in found:
        text = (tmp_path / client.download_artifacts(number, path, str(tmp_path))).read_text(encoding="utf-8")
        assert "secret_" not in text and ".csv" not in text
        if path.endswith(".svg"):
            ElementTree.fromstring(text)
        if path == "model/model_card.md":
            assert text == client.get_run(number).data.tags["mlflow.note.content"]
            assert "**bank** (active" in text
        if path == "audit/report.html":
            assert "2 parties trained boosted trees on 600 common rows; AUC 0." in text
            assert text.count("<figcaption>") == 5
