"""Line charts as inline SVG: no script, no font, no file; colours come from the page's CSS (`s0`, `s1`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 14, 38


@dataclass(frozen=True)
class Series:
    """One line: its name, and for each round that has one its value, as number and as the text recorded."""

    name: str
    points: tuple[tuple[int, float, str], ...]


def chart(title: str, series: Sequence[Series], *, from_zero: bool = False, whole: bool = False) -> str:
    """A figure with one point for each round and series; empty when there is nothing finite to draw.

    Parameters
    ----------
    title : of the figure, with the unit.
    from_zero : the vertical axis starts at 0.
    whole : values are counts: ticks are integers.
    """
    series = [Series(s.name, tuple(p for p in s.points if math.isfinite(p[1]))) for s in series]
    series = [s for s in series if s.points]
    if not series:
        return ""
    rounds = [p[0] for s in series for p in s.points]
    values = [p[1] for s in series for p in s.points] + ([0.0] if from_zero or whole else [])
    xticks, yticks = _ticks(min(rounds), max(rounds), 8, whole=True), _ticks(min(values), max(values), 5, whole=whole)
    across = _Scale(min(rounds), max(rounds), _LEFT + 6, WIDTH - _RIGHT - 6)
    up = _Scale(min(yticks[0], min(values)), max(yticks[-1], max(values)), HEIGHT - _BOTTOM, _TOP)
    parts = [_axes([x for x in xticks if min(rounds) <= x <= max(rounds)], yticks, across, up)]
    parts += [_line(s, i, across, up) for i, s in enumerate(series)]
    legend = "".join(f'<span class="key s{i}">{escape(s.name)}</span>' for i, s in enumerate(series))
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(title)}{legend if len(series) > 1 else ''}</figcaption>{svg}</figure>"


@dataclass(frozen=True)
class _Scale:
    """Values low … high onto pixels start … stop; a single value lies in the middle."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = 0.5 if self.high == self.low else (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.stop - self.start), 2)


def _ticks(low: float, high: float, about: int, *, whole: bool) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from at most `low` to at least `high`."""
    span = high - low or abs(high) or 1.0
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    if whole:
        step = max(1.0, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _axes(xticks: Sequence[float], yticks: Sequence[float], across: _Scale, up: _Scale) -> str:
    parts = []
    for y, text in zip(yticks, _labels(yticks), strict=True):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{up(y)}" y2="{up(y)}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{up(y) + 4}" text-anchor="end">{text}</text>')
    base = HEIGHT - _BOTTOM
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>')
    for x in xticks:
        parts.append(f'<line class="axis" x1="{across(x)}" x2="{across(x)}" y1="{base}" y2="{base + 4}"/>')
        parts.append(f'<text class="tick" x="{across(x)}" y="{base + 17}" text-anchor="middle">{x:.0f}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">round</text>')
    return "".join(parts)


def _line(series: Series, index: int, across: _Scale, up: _Scale) -> str:
    places = [(across(number), up(value), number, text) for number, value, text in series.points]
    radius = 3.0 if len(places) <= 40 else 1.5 if len(places) <= 200 else 0.8
    path = " ".join(f"{x},{y}" for x, y, _, _ in places)
    name = escape(series.name)
    dots = "".join(
        f'<circle cx="{x}" cy="{y}" r="{radius}"><title>{name}, round {number}: {escape(text)}</title></circle>'
        for x, y, number, text in places
    )
    return f'<g class="s{index}"><polyline points="{path}"/>{dots}</g>'


def _labels(ticks: Sequence[float]) -> list[str]:
    """The ticks with just the digits that tell them apart; thousands as k, M, G."""
    largest = max(abs(t) for t in ticks)
    divisor, suffix = next(((d, s) for d, s in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if largest >= 2 * d), (1.0, ""))
    step = (ticks[1] - ticks[0]) / divisor
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return ["0" if t == 0 else f"{t / divisor:.{digits}f}{suffix}" if digits < 7 else f"{t:.3g}" for t in ticks]
