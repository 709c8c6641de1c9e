"""A run in the words that MLflow shows: its parameters and its description."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The job's settings as MLflow's parameters: dotted keys, texts."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            names = [str(v["name"]) if isinstance(v, Mapping) else str(v) for v in value]
            yield prefix + key, ", ".join(names)
        else:
            yield prefix + key, str(value)


def note(summary: dict[str, Any]) -> str:
    """The run's description in MLflow, Markdown."""
    lines = [f"**{summary['job']}** ({summary['kind']}, runtime {summary['runtime']})", ""]
    lines += [f"- {name}: {value:.6g}" for name, value in summary["metrics"].items()]
    lines += [f"- ⚠ {text}" for text in summary["unsafe"]]
    lines += ["", f"Ledger: {summary['ledger']['size']} entries, root `{summary['ledger']['root'][:32]}…`"]
    lines += ["Verify: `fedseal audit verify`. The report lies under Artifacts, `audit/report.html`."]
    return "\n".join(lines)
