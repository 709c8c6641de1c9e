"""The report, plots and model card of a vertical job: what the ledger holds, said truly, harmless whatever is in it."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from fl_core.errors import JobFileError
from server.artifacts import write_artifacts
from server.model_card import model_card
from server.report.chart import Chart, Series, write_svg
from server.report.learned import learned, plan_shown
from server.report.vertical import roc_of
from tests.server.report.test_page import Tags, figure
from tests.server.vertical_facts import evil, facts, job

SVG = "{http://www.w3.org/2000/svg}"


def page(tmp_path: Path, **changes: Any) -> str:
    write_artifacts(tmp_path, facts(**changes))
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def privacy(view: dict[str, Any]) -> str:
    return " | ".join(f"{who}: {what}" for who, what in learned(plan_shown(view)))


def combinations() -> list[dict[str, Any]]:
    """Every algorithm, protocol, mode, way of binning and hiding that a job file can have."""
    found = []
    for algorithm, protocol, mode, bins, encoding, output, parties in itertools.product(
        ("logistic", "gbdt", "split-nn"), ("shared", "ckks"), ("auto", "open", "strict"), (None, 8),
        ("one-hot", "woe"), ("receivers", "union"), (2, 3),
    ):  # fmt: skip
        vertical = {"algorithm": algorithm, "protocol": protocol, "mode": mode, "encoding": encoding}
        try:
            found.append(job(parties, vertical=vertical | ({"bins": bins} if bins else {}), psi={"output": output}))
        except JobFileError:
            continue
    return found


# ---- attacks


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    written = write_artifacts(tmp_path, evil())
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count("&lt;script&gt;alert(") > 12
    assert "<script" not in html and "alert(" not in html.replace("&lt;script&gt;alert(", "")
    drawn = [path for path, folder in written.files if folder == "plots"]
    assert {path.name for path in drawn} == {"learning_curve.svg", "roc.svg"}
    for path in drawn:
        assert "<script" not in path.read_text(encoding="utf-8")
        ElementTree.parse(path)
    assert "KS &lt;script" in (tmp_path / "roc.svg").read_text(encoding="utf-8")
    assert "<" not in written.note and "\u202e" not in written.note
    assert written.note.startswith("# &lt;script&gt;alert('x')&lt;/script&gt;&amp;\"'\\|\\`\\_\\*")


def test_page_needs_and_runs_nothing_else(tmp_path: Path) -> None:
    html, tags = page(tmp_path), Tags()
    tags.feed(html)
    assert not tags.open
    assert not tags.seen & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not tags.attributes & {"src", "href", "style", "onload", "onclick"}
    assert "url(" not in html and "http" not in html.replace("http-equiv", "") and "default-src 'none'" in html


@pytest.mark.parametrize(
    "told",
    [None, "0 0", [], ["0 0"], ["0 0", "1 nan"], ["0 0", "1 2"], ["0 0", "-1 1"], ["0 0", "1"], ["0 0", "1 1 1"],
     ["1 1", "0 0"], ["0 0", "x 1"], [["0", "0"], 3], ["0 0"] * 5000, 7, {"0 0": 1, "1 1": 2}],
)  # fmt: skip
def test_a_curve_that_is_none_is_not_drawn(tmp_path: Path, told: Any) -> None:
    said = {"bank": {"model": "00", "roc": told}}
    written = write_artifacts(tmp_path, facts(said=said))
    assert roc_of(facts(said=said), plan_shown(job())) == []
    assert "roc.svg" not in {path.name for path, _ in written.files}
    assert "<figcaption>ROC" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_passive_partys_curve_is_not_believed(tmp_path: Path) -> None:
    base = facts()
    base["said"]["bureau"]["roc"] = base["said"]["bank"].pop("roc")
    assert roc_of(base, plan_shown(base["job"])) == []


# ---- the page


@pytest.mark.parametrize(("algorithm", "unit"), [("gbdt", "tree"), ("logistic", "epoch"), ("split-nn", "epoch")])
def test_each_curve_has_one_point_a_step_and_the_result_is_none_of_them(
    tmp_path: Path, algorithm: str, unit: str
) -> None:
    html = page(tmp_path, view=job(vertical={"algorithm": algorithm}), steps=10)
    for title in ("Loss, training rows", "AUC, held-out rows", f"Seconds per {unit}", f"Bytes of messages per {unit}"):
        assert figure(html, title).count("<circle") == 10
        assert f">{unit}</text>" in figure(html, title)
    assert "result" not in figure(html, "Loss") and "0.43" not in figure(html, "Loss")
    assert figure(html, "ROC").count("<circle") == 4 and "KS 0.41" in figure(html, "ROC")
    assert f"<h2>{unit.capitalize()}s</h2>" in html and "<td>alignment</td>" in html and "<td>result</td>" in html
    assert "round" not in re.sub(r"<style>.*?</style>", "", html, flags=re.S).replace('class="rounds"', "")


def test_the_verdict_says_what_the_ledger_holds_and_no_more(tmp_path: Path) -> None:
    trees = {"algorithm": "gbdt"}
    html = page(tmp_path, view=job(vertical=trees))
    assert "2 parties trained boosted trees on 30,000 common rows; AUC 0.776 on the held-out rows." in html
    assert "10 of 30" in html and "<b>0.0751</b><span>seconds a tree" in html
    html = page(tmp_path, view=job(vertical=trees), ended=False)
    assert "2 parties trained boosted trees on 30,000 common rows." in html and "<span>AUC" not in html
    hidden = facts(job(vertical=trees, psi={"output": "union"}))
    hidden["rounds"][-1]["metrics"]["test_rows"] = "6000"
    write_artifacts(tmp_path, hidden)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "on the 30,000 rows of their union; AUC 0.776 on 6,000 held-out rows that both have." in html


def test_a_run_without_a_step_still_has_a_report(tmp_path: Path) -> None:
    html = page(tmp_path, status="failed", rounds=[], said={})
    assert "Failed." in html and "No epoch was completed." in html.replace("No tree", "No epoch")
    assert "<svg" not in html and not list(tmp_path.glob("*.svg"))


def test_losses_on_other_rows_are_lines_of_their_own(tmp_path: Path) -> None:
    base = facts()
    for record in base["rounds"][1:11]:
        record["metrics"] |= {"valid_loss": "0.61", "test_loss": "0.62"}
    write_artifacts(tmp_path, base)
    html, svg = ((tmp_path / name).read_text(encoding="utf-8") for name in ("report.html", "learning_curve.svg"))
    for shown in (html, svg):
        for i, name in enumerate(("training rows", "validation rows", "held-out rows")):
            assert re.search(rf'class="key s{i}"[^>]*>{name}<', shown) and f".s{i} circle" in shown
    drawn = figure(html, "<figcaption>Loss<")
    assert drawn.count("<circle") == 30


def test_table_holds_the_ledgers_own_texts(tmp_path: Path) -> None:
    table = page(tmp_path).split("<h2>Trees</h2>")[1]
    for body in facts()["rounds"]:
        for text in body["metrics"].values():
            assert f"<td>{text}</td>" in table


# ---- who learned what


@pytest.mark.parametrize("view", combinations(), ids=lambda v: "-".join(map(str, (*v["vertical"].values(),)[:4])))
def test_every_job_that_can_be_written_is_told(tmp_path: Path, view: dict[str, Any]) -> None:
    base = facts(view)
    write_artifacts(tmp_path, base)
    said = privacy(view)
    union, dealt = view["psi"]["output"] == "union", view["vertical"]["protocol"] == "shared"
    for party in view["party"]:
        assert party["name"] in said
    for who in ("every party learned", "(active, has the labels) learned", "(passive) learned", "the coordinator saw"):
        assert said.count(who) == 1
    assert ("how many are common, but not which" in said) == union
    assert ("labels and which of them are common" in said) == union
    assert ("compared without keys" in said) == (union or len(view["party"]) > 2)
    deals = dealt and view["vertical"]["algorithm"] != "split-nn"
    assert ("dealt the random numbers" in said) == deals
    assert ("read the other parties' columns, or the labels" in said) == deals


@pytest.mark.parametrize(
    ("vertical", "holds", "absent"),
    [
        ({"algorithm": "logistic"}, "up to an unknown mixing", "same bins"),
        ({"algorithm": "logistic", "bins": 8, "mode": "open"}, "which rows lie in the same bins", "mean squared"),
        ({"algorithm": "logistic", "bins": 8}, "the mean squared error", "adds to its score"),
        ({"algorithm": "logistic", "mode": "strict"}, "no training row's score", "adds to its score"),
        ({"algorithm": "logistic", "bins": 8, "encoding": "woe"}, "how many positive ones", "same bins"),
        ({"algorithm": "logistic", "protocol": "ckks"}, "up to a rotation", "dealt"),
        ({"algorithm": "gbdt", "min_rows_open": 77}, "groups of at least 77 training rows", "score of each"),
        ({"algorithm": "split-nn"}, "neither encrypted against it nor noised", "dealt"),
        ({"algorithm": "split-nn", "gradient": "none"}, "length and direction give labels away", "no guarantee"),
    ],
)
def test_each_protection_is_told_as_it_is(vertical: dict[str, Any], holds: str, absent: str) -> None:
    said = privacy(job(vertical=vertical))
    assert holds in said and absent not in said


def test_noise_at_the_cut_claims_no_more_than_holds(tmp_path: Path) -> None:
    cut = {"mechanism": "cut-layer", "target_epsilon": 2.5}
    html = page(tmp_path, view=job(vertical={"algorithm": "split-nn"}, privacy=cut))
    assert "that its network was not trained on" in html and "2.5" in html
    assert "what a training row did to the weights" in html and "clipped and noised" in html
    assert "no differential privacy was used" not in html
    bare = page(tmp_path, view=job(vertical={"algorithm": "split-nn"}))
    assert "no differential privacy was used" in bare and "alike up to (ε, δ)" not in bare


# ---- plots


@pytest.mark.parametrize("steps", [1, 10, 250])
def test_plots_stand_alone_and_are_finite(tmp_path: Path, steps: int) -> None:
    written = write_artifacts(tmp_path, facts(job(vertical={"trees": 300}), steps=steps))
    assert [(path.name, folder) for path, folder in written.files] == [
        ("report.html", "audit"), ("learning_curve.svg", "plots"), ("roc.svg", "plots"), ("model_card.md", "model")
    ]  # fmt: skip
    for name in ("learning_curve.svg", "roc.svg"):
        root = ElementTree.parse(tmp_path / name).getroot()
        assert root.tag == f"{SVG}svg"
        tags = {element.tag.removeprefix(SVG) for element in root.iter()}
        assert tags <= {"svg", "title", "style", "rect", "text", "tspan", "g", "line", "polyline", "circle"}
        attributes = {attribute for element in root.iter() for attribute in element.attrib}
        assert not {a for a in attributes if a.startswith("on") or "href" in a}
        style = root.find(f"{SVG}style").text
        assert "var(" not in style and "url(" not in style and "@import" not in style
        *_, width, height = map(float, root.attrib["viewBox"].split())
        page_ = root.find(f"{SVG}rect")
        assert (float(page_.attrib["width"]), float(page_.attrib["height"])) == (width, height)
        for element in root.iter():
            for key in {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy"} & element.attrib.keys():
                value = float(element.attrib[key])
                assert math.isfinite(value) and 0 <= value <= (width if "x" in key else height)


def test_roc_shows_chance_and_the_largest_distance(tmp_path: Path) -> None:
    write_artifacts(tmp_path, facts())
    root = ElementTree.parse(tmp_path / "roc.svg").getroot()
    chance, ks = ([float(g.attrib[k]) for k in ("x1", "y1", "x2", "y2")] for g in root.iter(f"{SVG}line")
                  if g.attrib["class"] == "guide")  # fmt: skip
    dots = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter(f"{SVG}circle")]
    assert chance == [*dots[0], *dots[-1]]
    assert ks[0] == ks[2] and (ks[2], ks[3]) == dots[1]  # 0.51 - 0.1 is the largest
    share = (ks[0] - chance[0]) / (chance[2] - chance[0])
    assert ks[1] == pytest.approx(chance[1] + share * (chance[3] - chance[1]), abs=0.02)


def test_a_curve_below_chance_has_its_distance_too(tmp_path: Path) -> None:
    base = facts()
    base["said"]["bank"]["roc"] = ["0 0", "0.9 0.2", "1 1"]
    write_artifacts(tmp_path, base)
    words = [t.text for t in ElementTree.parse(tmp_path / "roc.svg").getroot().iter(f"{SVG}text")]
    assert "KS 0.41" in words and "chance" in words


def test_nothing_finite_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    assert not write_svg(path, []) and not write_svg(path, [Chart("t", [Series("a", ((1, math.nan, "nan"),))])])
    assert not path.exists()
    assert write_svg(path, [Chart("t", [Series("a", ((1, math.inf, "inf"), (2, 1.0, "1")))])]) and path.exists()


# ---- the card


def test_card_names_the_run_and_keeps_what_is_the_parties_own(tmp_path: Path) -> None:
    base = facts(job(3), unsafe=["histograms of 3 rows are opened"])
    card = model_card(base)
    for text in ("ef" * 32, "ab" * 32, "fedseal/0123456789abcdef", "0f3a", "AUC: 0.776", "KS: 0.41", "⚠ histograms"):
        assert text in card
    assert "**bank** (active" in card and "**bureau** (passive)" in card and "**shop** (passive)" in card
    assert "/srv/home" not in card and "mean radius" not in card and "777777" not in card
    assert write_artifacts(tmp_path, base).note == card == (tmp_path / "model_card.md").read_text(encoding="utf-8")
    assert len(card) < 8000  # as much as MLflow takes as a run's description


def test_card_promises_no_command_that_does_not_exist() -> None:
    from typer.main import get_command

    from server.cli.main import app

    known = get_command(app).commands
    commands = re.findall(r"`fedseal (\w+)", model_card(facts()))
    assert commands and set(commands) <= set(known)
