"""Line charts as SVG, inline or as files: no script, no font, nothing to fetch.

Within a page colours come from the page's CSS; a file brings its own (`s0`, `s1`, …).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from fl_core.files import write_atomic
from fl_core.text import printable
from server.report.style import SVG_CSS

WIDTH, HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 14, 38
_TITLE, _SCALE = 30, 1.5  # of a file: height of a panel's title, pixels on the screen for one of the drawing


@dataclass(frozen=True)
class Series:
    """One line: its name, and for each round that has one its value, as number and as the text recorded."""

    name: str
    points: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class Guide:
    """A dashed line to read the others by: its ends, its words, and the point that these stand below, to the right."""

    ends: tuple[tuple[float, float], tuple[float, float]]
    words: str
    at: tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """A chart with one point for each step and series.

    title : with the unit. across : what the horizontal axis counts, or measures.
    from_zero : the vertical axis starts at 0. whole : values are counts: ticks are integers.
    rates : both axes go from 0 to 1. height : of the drawing, which is `WIDTH` wide.
    """

    title: str
    series: Sequence[Series]
    guides: Sequence[Guide] = ()
    across: str = "round"
    from_zero: bool = False
    whole: bool = False
    rates: bool = False
    height: int = HEIGHT

    @property
    def shown(self) -> list[Series]:
        """The series' finite points; none where there is nothing to draw."""
        finite = (Series(s.name, tuple(p for p in s.points if math.isfinite(p[1]))) for s in self.series)
        return [s for s in finite if s.points]


def chart(
    title: str, series: Sequence[Series], *, from_zero: bool = False, whole: bool = False, across: str = "round"
) -> str:
    """A `Chart` for a page; see `figure`."""
    return figure(Chart(title, series, across=across, from_zero=from_zero, whole=whole))


def figure(drawn: Chart) -> str:
    """A chart for a page whose CSS is `report_style.CSS`; empty when there is nothing finite to draw."""
    if not (shown := drawn.shown):
        return ""
    title = _text(drawn.title)
    legend = "".join(f'<span class="key s{i}">{_text(s.name)}</span>' for i, s in enumerate(shown))
    box = f'viewBox="0 0 {WIDTH} {drawn.height}"'
    svg = f'<svg {box} role="img" aria-label="{title}">{_drawing(drawn, shown)}</svg>'
    tall = ' class="tall"' if drawn.height > 1.5 * HEIGHT else ""
    return f"<figure{tall}><figcaption>{title}{legend if len(shown) > 1 else ''}</figcaption>{svg}</figure>"


def write_svg(path: Path, charts: Sequence[Chart]) -> bool:
    """Write charts side by side as an SVG file that stands alone; nothing where there is nothing finite to draw.

    Returns
    -------
    Whether there was something to draw.

    Raises
    ------
    JobFailed
        If the file cannot be written.
    """
    panels = [(c, shown) for c in charts if (shown := c.shown)]
    if not panels:
        return False
    width, height = WIDTH * len(panels), _TITLE + max(c.height for c, _ in panels)
    parts = [_panel(drawn, shown, i * WIDTH) for i, (drawn, shown) in enumerate(panels)]
    size = f'width="{width * _SCALE:.0f}" height="{height * _SCALE:.0f}"'
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size} role="img">'
        f"<title>{_text('; '.join(c.title for c, _ in panels))}</title><style>{SVG_CSS}</style>"
        f'<rect class="page" width="{width}" height="{height}"/>{"".join(parts)}</svg>\n'
    )
    write_atomic(path, svg.encode(), mode=0o644)
    return True


def _panel(drawn: Chart, shown: Sequence[Series], x: int) -> str:
    """A chart below its title, whose legend it holds."""
    legend = "".join(f'<tspan class="key s{i}" dx="12">{_text(s.name)}</tspan>' for i, s in enumerate(shown))
    title = f"{_text(drawn.title)}{legend if len(shown) > 1 else ''}"
    return (
        f'<text class="title" x="{x + _LEFT}" y="{_TITLE - 9}">{title}</text>'
        f'<g transform="translate({x} {_TITLE})">{_drawing(drawn, shown)}</g>'
    )


# ---- the drawing, the same in a page and in a file


def _drawing(drawn: Chart, shown: Sequence[Series]) -> str:
    steps = [0.0, 1.0] if drawn.rates else [p[0] for s in shown for p in s.points]
    values = [p[1] for s in shown for p in s.points] + ([0.0] if drawn.from_zero or drawn.whole else [])
    values += [0.0, 1.0] if drawn.rates else []
    first, final = min(steps), max(steps)
    xticks = [x for x in _ticks(first, final, 5 if drawn.rates else 8, whole=not drawn.rates) if first <= x <= final]
    yticks = _ticks(min(values), max(values), 5, whole=drawn.whole)
    across = _Scale(first, final, _LEFT + 6, WIDTH - _RIGHT - 6)
    up = _Scale(min(yticks[0], min(values)), max(yticks[-1], max(values)), drawn.height - _BOTTOM, _TOP)
    parts = [_axes(xticks, yticks, across, up), _named(drawn)]
    parts += [_guide(guide, across, up) for guide in drawn.guides]
    parts += [_line(s, i, drawn.across, across, up) for i, s in enumerate(shown)]
    return "".join(parts)


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
    for y, words in zip(yticks, _labels(yticks), strict=True):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{up(y)}" y2="{up(y)}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{up(y) + 4}" text-anchor="end">{words}</text>')
    base = up.start
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>')
    for x, words in zip(xticks, [f"{x:.0f}" for x in xticks] if _are_whole(xticks) else _labels(xticks), strict=True):
        parts.append(f'<line class="axis" x1="{across(x)}" x2="{across(x)}" y1="{base}" y2="{base + 4}"/>')
        parts.append(f'<text class="tick" x="{across(x)}" y="{base + 17}" text-anchor="middle">{words}</text>')
    return "".join(parts)


def _are_whole(ticks: Sequence[float]) -> bool:
    return all(tick == round(tick) for tick in ticks)


def _named(drawn: Chart) -> str:
    """What the horizontal axis counts."""
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    words = _text(drawn.across)
    return f'<text class="tick" x="{middle}" y="{drawn.height - 4}" text-anchor="middle">{words}</text>'


def _guide(guide: Guide, across: _Scale, up: _Scale) -> str:
    (x1, y1), (x2, y2) = ((across(x), up(y)) for x, y in guide.ends)
    line = f'<line class="guide" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'
    x, y = across(guide.at[0]), up(guide.at[1])
    return f'{line}<text class="tick" x="{x + 7:.2f}" y="{y + 14:.2f}">{_text(guide.words)}</text>'


def _line(series: Series, index: int, step: str, across: _Scale, up: _Scale) -> str:
    places = [(across(number), up(value), number, words) for number, value, words in series.points]
    radius = 3.0 if len(places) <= 40 else 1.5 if len(places) <= 200 else 0.8
    path = " ".join(f"{x},{y}" for x, y, _, _ in places)
    name = f"{_text(series.name)}, {_text(step)}"
    dots = "".join(
        f'<circle cx="{x}" cy="{y}" r="{radius}"><title>{name} {number:g}: {_text(words)}</title></circle>'
        for x, y, number, words in places
    )
    return f'<g class="s{index}"><polyline points="{path}"/>{dots}</g>'


def _text(value: str) -> str:
    """As text of the drawing; a character that XML does not take would spoil the file."""
    return escape(printable(value))


def _labels(ticks: Sequence[float]) -> list[str]:
    """The ticks with just the digits that tell them apart; thousands as k, M, G."""
    largest = max(abs(t) for t in ticks)
    divisor, suffix = next(((d, s) for d, s in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if largest >= 2 * d), (1.0, ""))
    step = (ticks[1] - ticks[0]) / divisor
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return ["0" if t == 0 else f"{t / divisor:.{digits}f}{suffix}" if digits < 7 else f"{t:.3g}" for t in ticks]
