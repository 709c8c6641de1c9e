"""What a person sees while a run goes on and when it has ended."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.status import Status
from rich.table import Table

if TYPE_CHECKING:
    from strategies.coordination import Event

WORDS = {
    "died": "its process died",
    "timeout": "no answer in time",
    "unreachable": "its node is not connected",
    "version": "its node has another version",
    "paused": "takes no new jobs at present",
    "budget": "privacy budget",
    "data": "its data",
}


NAMES = {
    "accuracy": "accuracy on all test rows",
    "epsilon": "ε spent, largest of the parties",
    "bytes_up": "bytes up, a party and round",
    "bytes_down": "bytes down, a party and round",
    "round_seconds": "seconds a round, median",
}


class Progress:
    """Lines on stderr as things happen; on a terminal also what is being waited for."""

    def __init__(self, *, enabled: bool = True) -> None:
        self.console = Console(stderr=True, quiet=not enabled, highlight=False)
        self.status: Status | None = None
        self.began = time.monotonic()
        self.latest: dict[str, str] = {}

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.status = self.console.status("starting")
            self.status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.status is not None:
            self.status.stop()

    def say(self, text: str) -> None:
        """Change what is being waited for."""
        if self.status is not None:
            self.status.update(f"{text} …")

    def event(self, event: Event) -> None:
        """Show one event."""
        facts = event.facts
        if event.kind == "submitted":
            self._line(f"submitted to {facts['coordinator']}: run {facts['run']}; Ctrl-C leaves it running")
            self.say("waiting for the nodes")
        elif event.kind == "lost":
            self._line(f"[yellow]{facts['text']}; trying on[/yellow]")
        elif event.kind == "joined":
            self._line(f"joined: {_some(facts['parties'])}; group key {facts['key']}")
            self.say("round 1")
        elif event.kind == "round":
            self._round(event.round, facts)
        elif event.kind == "record":
            self.latest = facts
            shown = "  ".join(f"{k} {facts[k]}" for k in ("accuracy", "loss", "epsilon") if k in facts)
            self._line(f"  model after round {event.round}: {shown}")
        elif event.kind in ("dropped", "refused"):
            why = facts.get("text") or WORDS.get(str(facts["code"]), str(facts["code"]))
            self._line(f"[yellow]  {facts['party']} {event.kind}[/yellow]: {why}")

    def _round(self, number: int, facts: Mapping[str, Any]) -> None:
        names = {"train": f"round {number}", "evaluate": "evaluation", "standardize": "pooled statistics"}
        there, missing = len(facts["parties"]), len(facts["missing"])
        line = (
            f"{names[facts['act']]}: {there}/{there + missing} parties, {facts['bytes_up'] / 1000:,.1f} kB up a party"
        )
        if "epsilon" in facts:
            line += f", ε {facts['epsilon']}"
        if "ledger" in facts:
            line += f", ledger {facts['ledger']['size']} {facts['ledger']['root'][:8]}…"
        self._line(f"{line}, {facts['seconds']} s")
        self.say(f"round {number + 1}")

    def _line(self, text: str) -> None:
        self.console.print(f"[dim]{time.monotonic() - self.began:6.1f} s[/dim]  {text}")


def _some(names: Sequence[str], most: int = 12) -> str:
    """Names, or the first of them and how many there are in all."""
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[: most // 2])}, … ({len(names)})"


def show_summary(summary: Mapping[str, Any]) -> None:
    """What a run came to, one fact a line; nothing is cut, so that it can be copied."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"\n[bold]{summary['job']}[/bold]: {summary['status']}")
    metrics, ledger = summary["metrics"], summary["ledger"]
    lines = [(NAMES.get(k, k), f"{v:,.0f}" if k.startswith("bytes") else f"{v:.4g}") for k, v in metrics.items()]
    lines.append(("seconds in all", f"{summary['seconds']:.1f}"))
    for party, files in summary["outputs"].items():
        lines += [(f"{party} got", path or f"its {name}, at its own node") for name, path in files.items()]
    lines.append(("ledger head", f"{ledger['root']} ({ledger['size']} entries)"))
    lines.append(("MLflow run", str(summary["mlflow_run_id"])))
    lines.append(("browse", f"mlflow ui --backend-store-uri {summary['mlflow']['uri']}"))
    lines.append(("verify", f"fedseal audit verify --ledger {ledger['path']}"))
    for name, value in lines:
        console.print(f"  {name:<32} {value}")
    for text in summary["unsafe"]:
        console.print(f"[bold red]UNSAFE[/bold red] {text}")
    if not summary["mlflow"]["delivered"]:
        console.print(f"[yellow]MLflow is behind[/yellow]: {summary['mlflow']['reason']}")


def show_runs(runs: Sequence[Mapping[str, Any]]) -> None:
    """The list of runs, oldest first; ids whole, so that they can be copied."""
    console = Console(highlight=False, soft_wrap=True)
    if not runs:
        console.print("no runs yet")
    for r in runs:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(r["started"]))
        accuracy = f"accuracy {r['metrics']['accuracy']:.4f}" if "accuracy" in r["metrics"] else r["error"]
        mlflow = r["mlflow_run_id"] or ""
        console.print(f"{r['run']}  {started}  {r['status']:<11} {r['name']:<24} {accuracy}  {mlflow}")


def show_check(result: Mapping[str, Any]) -> None:
    """What a dry run found."""
    console = Console(highlight=False)
    table = Table("party", "rows to train / test", "features", "classes", "ε planned", "ε left", "verdict")
    for p in result["parties"]:
        cells = [str(p.get(k, "")) for k in ("rows", "features", "classes", "epsilon", "epsilon_left")]
        table.add_row(p["party"], *cells, p["problem"] or p["status"])
    console.print(table)
    for problem in result["problems"]:
        console.print(f"[red]{problem}[/red]")
    for text in result["unsafe"]:
        console.print(f"[bold red]UNSAFE[/bold red] {text}")
    console.print("ready" if result["ok"] else "not ready")
