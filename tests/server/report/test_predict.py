"""The report of a joint prediction: to whom the scores went, what they could tell, and no text that acts."""

from __future__ import annotations

import dataclasses

import pytest

from fl_core.config import check_shared, load_job
from server.report.page import write_report
from tests.server.vertical_facts import EVIL, facts


def job(algorithm="gbdt", *, parties=2, receivers=("bureau",), **predict):
    names = [{"name": n, "data": "people", "id": "id"} for n in ("bank", "bureau", "shop")[:parties]]
    table = {
        "kind": "predict",
        "name": "scores",
        "runtime": "deployment",
        "party": names,
        "predict": {"model": "credit", **predict},
    }
    read = load_job(table)
    filled = {
        "model": "0" * 16,
        "active": "bank",
        "algorithm": algorithm,
        "receivers": receivers,
        "folder": "/srv/secret",
    }
    return check_shared(dataclasses.replace(read, predict=dataclasses.replace(read.predict, **filled)))


def page(tmp_path, view, **changes):
    metrics = {"rows_aligned": "12345", "rows_per_second": "60000.5", "bytes": "777777", "seconds": "2.5"}
    rounds = [{"round": 1, "metrics": metrics, "parties": ["bank", "bureau"], "missing": []}]
    said = {name: {"model": "0" * 16, "training": "cd" * 32} for name in ("bank", "bureau")}
    told = facts() | {"job": view, "rounds": rounds, "said": said} | changes
    write_report(tmp_path / "report.html", facts=told)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("algorithm", "receivers", "words"),
    [
        ("logistic", ("bureau",), "subtract its own"),
        ("gbdt", ("bureau", "bank"), "paths"),
        ("split-nn", ("bank",), "embedding"),
    ],
)
def test_it_says_who_got_scores_and_what_these_tell(tmp_path, algorithm, receivers, words):
    html = page(tmp_path, job(algorithm, receivers=receivers).public())
    assert f"the scores of 12,345 rows went to {', '.join(receivers)}" in html
    assert words in html and "60,000" in html and "cd" * 32 in html and "0" * 16 in html
    assert ("must not collude" in html) == (algorithm == "gbdt")
    assert "/srv/secret" not in html


def test_trees_under_encryption_name_no_dealer(tmp_path):
    html = page(tmp_path, job(receivers=("bank",), protocol="ckks").public())
    assert "under its own key" in html and "paths" in html and "must not collude" not in html


def test_names_and_values_from_outside_are_text(tmp_path):
    view = job().public()
    view["party"] = [{"name": EVIL}]
    view["predict"] = {name: [EVIL] if name == "receivers" else EVIL for name in view["predict"]}
    html = page(tmp_path, view, said={EVIL: {"training": EVIL}}, name=EVIL)
    assert "<script>" not in html


def test_a_run_that_broke_off_has_a_report(tmp_path):
    html = page(tmp_path, job().public(), rounds=[], said={}, status="failed")
    assert "the scores went to bureau" in html
