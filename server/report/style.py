"""The CSS of the audit report, light and dark by the reader's setting, and for paper; and that of charts as files."""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --bg: #fff; --fg: #1b2430; --soft: #5a6676; --line: #dfe4ea; --card: #f6f8fa;
  --s0: #1f5fbf; --s1: #c05a12; --s2: #7a4fb5; --good: #1a7f4b; --warn: #9a6200; --bad: #b42318; --badbg: #fdf0ee;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --bg: #12171e; --fg: #e4e9f0; --soft: #9aa7b8; --line: #2c3643; --card: #1a212b;
    --s0: #7fb0ff; --s1: #f2a265; --s2: #c7a6ff; --good: #5fcf95; --warn: #e6b450; --bad: #ff8a7d; --badbg: #2e1b1b;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 60rem; padding: 2rem 1.5rem 3rem; background: var(--bg); color: var(--fg);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
h1 { font-size: 1.9rem; line-height: 1.2; margin: .1rem 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .7rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .4rem 0; }
.soft, .eyebrow { color: var(--soft); }
.eyebrow { font-size: .85rem; margin: 0; }
.verdict { font-size: 1.05rem; }
.good { color: var(--good); }
.warn { color: var(--warn); }
.bad { color: var(--bad); }

.stamp { border: 1px solid var(--line); border-left: 8px solid currentColor; border-radius: 8px; padding: .7rem 1.1rem;
  margin: .8rem 0 1rem; background: var(--card); }
.stamp p { color: var(--fg); }
.stamp .soft { color: var(--soft); font-size: .9rem; }
.stamp .mark { color: inherit; font-size: 1.5rem; font-weight: 700; letter-spacing: .02em; margin: 0; }
.stamp .good { color: var(--good); }
.stamp .bad { color: var(--bad); }
.stamp.bad { background: var(--badbg); }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.2rem, 1fr)); gap: .7rem; margin: 1.2rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.tile span { color: var(--soft); font-size: .82rem; }
.unsafe { border: 2px solid var(--bad); background: var(--badbg); border-radius: 8px; padding: .7rem 1rem; }
.unsafe h2 { border: 0; margin: 0; padding: 0; color: var(--bad); }
.unsafe ul { margin: .3rem 0; padding-left: 1.2rem; }

.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; font-size: .85rem; }
tr { break-inside: avoid; }
.rounds td, .rounds th { text-align: right; white-space: nowrap; }
.rounds td:last-child, .rounds th:last-child { text-align: left; }
.who td:first-child { font-weight: 600; width: 8rem; }
.who td:nth-child(2) { width: 25%; }
.who td:last-child { width: 11rem; }
.bar { width: 7.5rem; height: .65rem; margin-top: .4rem; }
.bar .rest { fill: var(--line); }
.bar .part { fill: var(--s0); }
.bar .over { fill: var(--bad); }
.open { margin: .4rem 0; padding-left: 1.2rem; }
.open li { margin: .15rem 0; }
.facts td:first-child, .settings td:first-child { color: var(--soft); width: 11rem; }
.settings { columns: 2 20rem; column-gap: 2.2rem; font-size: .9rem; }
.settings table { margin-bottom: 1rem; }
.settings caption { text-align: left; font-weight: 600; padding: .2rem 0; }

.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem; }
figure {
  margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .7rem .8rem .4rem; break-inside: avoid;
}
.tall { grid-row: span 2; }
figcaption { font-weight: 600; font-size: .9rem; }
svg { display: block; width: 100%; height: auto; }
.grid { stroke: var(--line); }
.axis { stroke: var(--soft); }
.guide { stroke: var(--soft); stroke-dasharray: 3 3; }
.tick { fill: var(--soft); font-size: 11px; }
polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.s0 polyline { stroke: var(--s0); }
.s1 polyline { stroke: var(--s1); stroke-dasharray: 6 3; }
.s2 polyline { stroke: var(--s2); stroke-dasharray: 2 3; }
.s0 circle { fill: var(--s0); }
.s1 circle { fill: var(--s1); }
.s2 circle { fill: var(--s2); }
.key { font-weight: 400; margin-left: .9rem; }
.key::before {
  content: ""; display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .35em;
  print-color-adjust: exact;
}
.key.s0::before { background: var(--s0); }
.key.s1::before { background: var(--s1); }
.key.s2::before { background: var(--s2); }

code, pre { font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre {
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem;
  white-space: pre-wrap;
}
@media print {
  :root { font-size: 11px; }
  body { max-width: none; padding: 0; font-size: 1rem; }
  code, pre { font-size: .9rem; }
  .charts { grid-template-columns: 1fr 1fr; }
  .unsafe, .tiles, .stamp, pre { break-inside: avoid; }
  .stamp, .bar { print-color-adjust: exact; }
  h2, h3 { break-after: avoid; }
}
"""

SVG_CSS = """
.page { fill: #fff; }
text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #5a6676; }
.title { font-size: 13px; font-weight: 600; fill: #1b2430; }
.key { font-weight: 400; }
.grid { stroke: #dfe4ea; }
.axis { stroke: #5a6676; }
.guide { stroke: #5a6676; stroke-dasharray: 3 3; }
polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.s0 polyline { stroke: #1f5fbf; }
.s1 polyline { stroke: #c05a12; stroke-dasharray: 6 3; }
.s2 polyline { stroke: #7a4fb5; stroke-dasharray: 2 3; }
.s0 circle, .key.s0 { fill: #1f5fbf; }
.s1 circle, .key.s1 { fill: #c05a12; }
.s2 circle, .key.s2 { fill: #7a4fb5; }
"""
