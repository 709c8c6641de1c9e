"""How our local web pages are written: Jinja templates that escape everything, in the look of the audit report.

Names come from other parties: each value is escaped, and what is no printable character is shown as U+FFFD.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from fl_core.text import printable
from server.report.style import CSS

_CSS = """
body { max-width: 74rem; }
.notes { border: 1px solid var(--line); border-left: 4px solid var(--warn); background: var(--card);
  border-radius: 8px; padding: .6rem 1rem; margin: 1rem 0; }
.notes p { margin: .15rem 0; }
td.n, th.n { text-align: right; white-space: nowrap; }
td.n + td:not(.n), th.n + th:not(.n) { padding-left: .6rem; }
.wide td:last-child, .wide th:last-child { padding-right: 0; }
@media screen { .wide table { min-width: 46rem; } }
.once { white-space: nowrap; }
.spark { width: 11rem; height: 2.1rem; }
.spark rect { fill: var(--s0); }
.spark .base { fill: var(--line); }
.bar { width: 6rem; height: .45rem; margin: .25rem 0 .1rem auto; }
.bar .all { fill: var(--line); }
.bar .part { fill: var(--s0); }
.bar .much { fill: var(--warn); }
nav { display: flex; flex-wrap: wrap; gap: .4rem 1.1rem; align-items: baseline; font-size: .9rem;
  margin: 0 0 1.2rem; }
a { color: var(--s0); }
form { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin: .8rem 0; }
nav form { margin: 0 0 0 auto; }
input, select, button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; padding: .2rem .5rem; }
button { cursor: pointer; }
.tag { border: 1px solid var(--line); border-radius: 6px; padding: 0 .4rem; font-size: .85rem; white-space: nowrap; }
.pages { display: flex; gap: 1.2rem; margin: .7rem 0; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
.side { display: block; font-size: .85rem; }
footer { margin-top: 2.5rem; font-size: .85rem; color: var(--soft); }
"""
_SHELL = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{% if policy %}<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
{% endif %}{% if refresh %}<meta http-equiv="refresh" content="{{ refresh }}">
{% endif %}<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>{{ css }}</style>
</head>
<body>
{{ body }}
</body>
</html>
"""


def _shown(value: Any) -> Any:
    """What an expression of a template puts on the page; `Markup` is ours and stays."""
    return value if hasattr(value, "__html__") else printable(value)


def lines(text: str) -> Markup:
    """Text of several lines for a `pre`, each escaped."""
    return Markup("\n").join(printable(line) for line in text.split("\n"))


def ago(now: float, then: float) -> str:
    """How long ago, in words; `then` is in seconds since 1970, 0 for never."""
    return "never" if not then else "just now" if now - then < 2 else f"{span(now - then)} ago"


def span(seconds: float) -> str:
    """A time in its two largest units: `3 h 20 min`."""
    left = max(int(seconds), 0)
    parts = []
    for word, unit in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, unit)
        parts.append((count, word))
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{count} {word}" for i, (count, word) in enumerate(parts[:2]) if count or not i)


def duration(seconds: float) -> str:
    """Of a call, with three digits: `3.21 ms`, `1.25 s`."""
    value, unit = (seconds, "s") if seconds >= 1 else (seconds * 1000, "ms")
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def clock(seconds: float) -> str:
    """A time since 1970 as UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def size(count: float) -> str:
    """Bytes in their largest unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def sparkline(values: Sequence[float], words: str) -> Markup:
    """Bars as an inline SVG, the last value rightmost; `words` for those who do not see them."""
    most, width = max([*values, 1e-12]), 3
    bars = [
        f'<rect x="{i * width}" y="{29 - height:.2f}" width="2" height="{height:.2f}"/>'
        for i, value in enumerate(values)
        if (height := max(28 * value / most, 1.0 if value else 0.0))
    ]
    box = f'viewBox="0 0 {max(len(values), 1) * width} 30" preserveAspectRatio="none"'
    base = f'<rect class="base" x="0" y="29" width="{len(values) * width}" height="1"/>'
    svg = Markup('<svg class="spark" {} role="img" aria-label="{}">').format(Markup(box), printable(words))  # noqa: S704
    return svg + Markup(base + "".join(bars) + "</svg>")  # noqa: S704


def bar(part: float, whole: float) -> Markup:
    """How much of something is used, as an inline SVG; of another colour from four fifths."""
    share = min(max(part / whole, 0.0), 1.0) if whole > 0 else 0.0
    tone = "much" if share >= 0.8 else "part"
    return Markup(  # noqa: S704
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="all" width="100" height="8" rx="3"/>'
        f'<rect class="{tone}" width="{100 * share:.2f}" height="8" rx="3"/></svg>'
    )


_environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_shown, trim_blocks=True)
_environment.filters |= {"count": "{:,}".format, "duration": duration, "clock": clock}
_environment.filters |= {"lines": lines, "size": size, "span": span}
_environment.globals |= {"ago": ago, "bar": bar, "sparkline": sparkline}
_shell = _environment.from_string(_SHELL)


def template(source: str) -> Template:
    """A template of a page's body."""
    return _environment.from_string(source)


def page(body: Template, *, title: str, refresh: int = 0, policy: str = "", **facts: Any) -> str:
    """A whole page; with `refresh` it asks for itself again after so many seconds.

    A page that becomes a file, which no server's headers protect, holds its `policy` itself.
    """
    inner = Markup(body.render(title=title, refresh=refresh, **facts))  # noqa: S704  each value in it is escaped
    shell = {"title": title, "refresh": refresh, "policy": policy, "css": Markup(CSS + _CSS)}  # noqa: S704
    return _shell.render(**shell, body=inner)
