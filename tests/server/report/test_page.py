"""The audit report: complete, self-contained, and harmless whatever the names in it are."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from fl_core.config import load_job
from server.report.chart import Series, chart
from server.report.page import write_report

EVIL = "<script>alert('x')</script>&\"'"


def facts(rounds: int = 6, **changes: Any) -> dict[str, Any]:
    table = {
        "kind": "horizontal",
        "name": "digits",
        "dataset": {"name": "digits", "parties": 4},
        "privacy": {"mechanism": "dp-sgd"},
    }
    names = [f"party_{i}" for i in range(1, 5)]
    bodies: list[dict[str, Any]] = []
    for n in range(rounds + 1):
        metrics = {"accuracy": f"{0.5 + n / 100:.6g}", "loss": "0.123457"}
        if n:
            metrics |= {
                "epsilon": f"{n / 10:.6g}",
                "bytes_up": "1234567",
                "bytes_down": "9",
                "seconds": "1.25",
                "parties": "3",
            }
        missing = ["party_2"] if n in (2, 3, 5) else []
        bodies.append(
            {"round": n, "metrics": metrics, "parties": [p for p in names if p not in missing], "missing": missing}
        )
    ledger = {
        "path": "/srv/home/ledger.db",
        "size": 42,
        "root": "ab" * 32,
        "log": "fedseal/0123456789abcdef",
        "checkpoint": "fedseal/0123456789abcdef\n42\ncm9vdA==\n\n— fedseal/0123456789abcdef c2ln\n",
        "cosigned": ["party_1", "party_3"],
    }
    base: dict[str, Any] = {
        "run": "0f3a",
        "name": "digits",
        "status": "done",
        "job": load_job(table).public(),
        "metrics": {"accuracy": 0.5 + rounds / 100},
        "rounds": bodies,
        "unsafe": [],
        "ledger": ledger,
        "model": "cd" * 32,
        "seconds": 12.5,
    }
    return base | changes


def page(tmp_path: Path, **changes: Any) -> str:
    write_report(tmp_path / "report.html", facts=facts(**changes))
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def figure(html: str, title: str) -> str:
    return next(f for f in re.findall(r"<figure[^>]*>.*?</figure>", html, re.S) if title in f)


class Tags(HTMLParser):
    """Every tag is closed in order; collects tags and attributes."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


# ---- attacks


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    base = facts(2)
    job = base["job"] | {"name": EVIL, "party": [{"name": EVIL}], "train": {"receivers": [EVIL], EVIL: EVIL}}
    ledger = base["ledger"] | dict.fromkeys(("path", "root", "log", "checkpoint"), EVIL) | {"cosigned": [EVIL]}
    bodies = [
        r | {"parties": [EVIL], "missing": [EVIL], "metrics": r["metrics"] | {EVIL: EVIL}} for r in base["rounds"]
    ]
    evil = {"name": EVIL, "run": EVIL, "status": EVIL, "unsafe": [EVIL], "model": EVIL}
    write_report(tmp_path / "evil.html", facts=base | evil | {"job": job, "ledger": ledger, "rounds": bodies})
    html = (tmp_path / "evil.html").read_text(encoding="utf-8")
    assert html.count("&lt;script&gt;alert(") > 12
    assert "<script" not in html and "alert(" not in html.replace("&lt;script&gt;alert(", "")


def test_page_needs_and_runs_nothing_else(tmp_path: Path) -> None:
    html = page(tmp_path)
    tags = Tags()
    tags.feed(html)
    assert not tags.open
    assert not tags.seen & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not tags.attributes & {"src", "href", "style", "onload", "onclick"}
    assert "url(" not in html and "@import" not in html and "http" not in html.replace("http-equiv", "")
    assert "default-src 'none'" in html


# ---- completeness


@pytest.mark.parametrize("rounds", [1, 6, 250])
def test_each_curve_has_one_point_a_round(tmp_path: Path, rounds: int) -> None:
    html = page(tmp_path, rounds=rounds)
    expected = {"Accuracy": rounds + 1, "Loss": rounds + 1, "Privacy spent": rounds, "Seconds": rounds}
    expected |= {"Bytes per party": 2 * rounds, "Parties that took part": rounds}
    for title, points in expected.items():
        assert figure(html, title).count("<circle") == points
    assert html.count("<circle") == sum(expected.values())


def test_table_holds_the_ledgers_own_texts(tmp_path: Path) -> None:
    base = facts()
    table = page(tmp_path).split("<h2>Rounds</h2>")[1]
    for body in base["rounds"]:
        for text in body["metrics"].values():
            assert f"<td>{text}</td>" in table


def test_who_was_missing_when(tmp_path: Path) -> None:
    html = page(tmp_path)
    assert "<td>party_2</td><td>1, 4, 6</td><td>2 to 3, 5</td>" in html
    assert "<td>party_1</td><td>1 to 6</td><td>none</td>" in html


def test_proof_tells_how_to_check(tmp_path: Path) -> None:
    html = page(tmp_path)
    assert "fedseal audit verify --ledger /srv/home/ledger.db" in html
    for text in ("fedseal/0123456789abcdef\n42\ncm9vdA==", "ab" * 32, "cd" * 32, "party_1, party_3"):
        assert text in html
    nobody = facts()["ledger"] | {"cosigned": []}
    assert "only the coordinator vouches" in page(tmp_path, ledger=nobody)


def test_given_up_protection_cannot_be_overlooked(tmp_path: Path) -> None:
    html = page(tmp_path, unsafe=["encryption is off"])
    assert 'class="unsafe"' in html and html.index("encryption is off") < html.index("How it went")
    assert "No protective setting was switched off" not in html
    assert "No protective setting was switched off" in page(tmp_path)


@pytest.mark.parametrize(
    ("privacy", "covers"),
    [
        ({"mechanism": "none", "noise": "os"}, "no differential privacy was used"),
        ({"mechanism": "dp-sgd", "noise": "seeded"}, "whoever knows the job can subtract it"),
        ({"mechanism": "client-dp", "noise": "os"}, "whole update"),
    ],
)
def test_privacy_claims_no_more_than_holds(tmp_path: Path, privacy: dict[str, str], covers: str) -> None:
    job = facts()["job"] | {"privacy": privacy}
    html = page(tmp_path, job=job)
    assert covers in html and "test rows: accuracy and loss are exact sums" in html
    assert "each row that a party trained on" not in html


def test_run_that_failed_before_its_first_round_still_has_a_report(tmp_path: Path) -> None:
    html = page(tmp_path, status="failed", metrics={}, rounds=-1)
    assert "Failed." in html and "No round was completed." in html and "<svg" not in html


# ---- charts


def test_values_that_are_not_finite_leave_a_gap() -> None:
    points = ((0, 1.0, "1"), (1, math.nan, "nan"), (2, 3.0, "3"))
    assert chart("t", [Series("a", points)]).count("<circle") == 2
    assert chart("t", [Series("a", ((0, math.nan, "nan"),))]) == ""
    assert chart("t", []) == ""


@pytest.mark.parametrize("values", [[0.0], [5.0], [-3.0, -3.0], [1e-9, 2e-9], [0.5, 1e12], [7.0] * 3, [0.1, 0.2, 0.95]])
@pytest.mark.parametrize("whole", [False, True])
def test_points_lie_within_the_axes_and_higher_is_up(values: list[float], whole: bool) -> None:
    svg = chart("t", [Series("a", tuple((n, v, str(v)) for n, v in enumerate(values)))], whole=whole)
    drawing = ElementTree.fromstring(svg[svg.index("<svg") : svg.index("</figure>")])
    dots = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in drawing.iter("circle")]
    ys = [float(line.attrib["y1"]) for line in drawing.iter("line") if line.attrib["class"] == "grid"]
    assert len(ys) >= 2 and all(min(ys) - 0.1 <= y <= max(ys) + 0.1 for _, y in dots)
    assert all(58 <= x <= 408 for x, _ in dots)
    for (_, y1), v1 in zip(dots, values, strict=True):
        for (_, y2), v2 in zip(dots, values, strict=True):
            assert v1 <= v2 or y1 <= y2
    labels = [t.text for t in drawing.iter("text") if t.attrib.get("text-anchor") == "end"]
    assert len(set(labels)) == len(labels)
