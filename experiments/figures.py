"""A measured figure, its limit, and the table that benchmarks print."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Figure:
    """One number.

    limit : what it is held to; None for a number that only explains another.
    at_least : the limit is a lower one.
    peer : the same job elsewhere, in words.
    skipped : why there is no value.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    at_least: bool = False
    peer: str = ""
    skipped: str = ""

    @property
    def met(self) -> bool:
        """Whether the limit holds; a skipped figure misses none."""
        if self.limit is None or self.skipped:
            return True
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def table(figures: Sequence[Figure]) -> str:
    """The figures as text, one a line."""
    width = max(len(f.name) for f in figures)
    lines = []
    for f in figures:
        value = "skipped" if f.skipped else f"{f.value:,.4g}" if f.value < 1e5 else f"{f.value:,.0f}"
        limit = "" if f.limit is None else f"{'≥' if f.at_least else '≤'} {f.limit:,g}"
        verdict = "" if f.limit is None or f.skipped else "met" if f.met else "MISSED"
        told = f"{f.name:{width}}  {value:>10} {f.unit:8} {limit:>10}  {verdict:6}  {f.skipped or f.peer}"
        lines.append(told.rstrip())
    return "\n".join(lines)


def as_json(figures: Sequence[Figure]) -> str:
    """The figures and their verdicts as one JSON object."""
    rows = [asdict(f) | {"value": None if f.skipped else f.value, "met": f.met} for f in figures]
    return json.dumps({"load": os.getloadavg()[0], "figures": rows}, indent=1)


def command_line(doc: str, measure: Callable[[], list[Figure]]) -> int:
    """`main` of a benchmark: measure, print, and return 1 if a limit is missed."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    figures = measure()
    print(as_json(figures) if options.json else table(figures))
    return 0 if all(f.met for f in figures) else 1
