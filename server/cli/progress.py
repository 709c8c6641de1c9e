"""What a person sees while a run goes on and when it has ended."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from fl_core.text import printable

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
    "lost": "it lost another party; its log says more",
    "exchange": "it does not reach the exchange; its log says more",
}

CHECKED = {
    "ids": "ids",
    "rows": "rows to train / test",
    "table": "rows",
    "columns": "columns",
    "features": "features",
    "classes": "classes",
    "epsilon": "ε planned",
    "epsilon_left": "ε left",
}
SHOWN = (
    "accuracy", "auc", "ks", "rmse", "r2", "loss", "valid_loss", "test_loss", "epsilon", "intersection_size",
    "rows_per_second", "seconds",
)  # fmt: skip

NAMES = {
    "accuracy": "accuracy on all test rows",
    "auc": "AUC on all test rows",
    "ks": "KS on all test rows",
    "rmse": "RMSE on all test rows",
    "r2": "R² on all test rows",
    "loss": "loss",
    "epsilon": "ε spent, largest of the parties",
    "intersection_size": "ids in the intersection",
    "rows_aligned": "rows aligned",
    "rows_per_second": "rows scored a second",
    "test_rows": "test rows",
    "bytes_up": "bytes up, a party and round",
    "bytes_down": "bytes down, a party and round",
    "round_seconds": "seconds a round, median",
    "seconds_per_epoch": "seconds an epoch, median",
    "seconds_per_tree": "seconds a tree, median",
    "bytes": "bytes of messages, all parties",
    "seconds": "seconds of the session",
}
WHOLE = (
    "bytes", "bytes_up", "bytes_down", "intersection_size", "rows_aligned", "rows_per_second", "test_rows"
)  # fmt: skip
HEADLINES = {
    "accuracy": "accuracy", "auc": "AUC", "rmse": "RMSE", "intersection_size": "ids in common",
    "rows_aligned": "rows scored",
}  # fmt: skip


class Progress:
    """Lines on stderr as things happen; on a terminal also what is being waited for."""

    def __init__(self, *, enabled: bool = True) -> None:
        self.console = Console(stderr=True, quiet=not enabled, highlight=False, emoji=False)
        self.status: Status | None = None
        self.began = time.monotonic()
        self.latest: dict[str, str] = {}
        self.unit, self.steps = "", 0  # of a vertical job, by its session

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
            self._line(f"submitted to {_plain(facts['coordinator'])}: run {facts['run']}; Ctrl-C leaves it running")
            self.say("waiting for the nodes")
        elif event.kind == "lost":
            self._line(f"[yellow]{_plain(facts['text'])}; trying on[/yellow]")
        elif event.kind == "joined":
            key = f"; group key {_plain(facts['key'])}" if facts["key"] else ""
            self._line(f"joined: {_plain(_some(facts['parties']))}{key}")
            self.say("round 1" if key else "the session")
        elif event.kind == "session":
            self._line(f"session {event.round} of {_plain(_some(facts['parties']))} is open")
            self.unit, self.steps = str(facts.get("unit", "")), int(facts.get("steps", 0))
        elif event.kind == "progress":
            self._line(f"  {_plain(facts['party'])}: {_plain(facts['text'])}")
        elif event.kind == "round":
            self._round(event.round, facts)
        elif event.kind == "record":
            self.latest = facts
            self._record(event.round, facts)
        elif event.kind in ("dropped", "refused"):
            why = facts.get("text") or WORDS.get(str(facts["code"]), str(facts["code"]))
            self._line(f"[yellow]  {_plain(facts['party'])} {event.kind}[/yellow]: {_plain(why)}")

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
        self._line(_plain(f"{line}, {facts['seconds']} s"))
        self.say(f"round {number + 1}")

    def _record(self, number: int, facts: Mapping[str, str]) -> None:
        shown = "  ".join(f"{k} {facts[k]}" for k in SHOWN if k in facts)
        if not self.unit:
            model = "accuracy" in facts or "loss" in facts
            line = f"{'model after round' if model else 'round'} {number}: {shown}"
        elif number == 0:
            line = f"aligned {_whole(facts.get('rows_aligned', ''))} rows  {shown}"
        elif number > self.steps:
            line = f"result: {shown}"
        else:
            line = f"{self.unit} {number}: {shown}"
            self.say(f"{self.unit} {number + 1} of {self.steps}" if number < self.steps else "the result")
        self._line(_plain(f"  {line}"))

    def _line(self, text: str) -> None:
        self.console.print(f"[dim]{time.monotonic() - self.began:6.1f} s[/dim]  {text}")


def _whole(text: str) -> str:
    """A count as a record tells it, thousands apart."""
    try:
        return f"{float(text):,.0f}"
    except ValueError:
        return text


def _plain(text: object) -> str:
    """Text from outside within a line of markup: shown as it is."""
    return escape(printable(text))


def _some(names: Sequence[str], most: int = 12) -> str:
    """Names, or the first of them and how many there are in all."""
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[: most // 2])}, … ({len(names)})"


def show_summary(summary: Mapping[str, Any]) -> None:
    """What a run came to, one fact a line; nothing is cut, so that it can be copied."""
    console = Console(highlight=False, emoji=False, soft_wrap=True)
    console.print(f"\n[bold]{_plain(summary['job'])}[/bold]: {_plain(summary['status'])}")
    metrics, ledger = summary["metrics"], summary["ledger"]
    known = [k for k in NAMES if k in metrics]
    ordered = [*known, *(k for k in metrics if k not in NAMES)]
    lines = [(NAMES.get(k, k), f"{metrics[k]:,.0f}" if k in WHOLE else f"{metrics[k]:.4g}") for k in ordered]
    lines.append(("seconds in all", f"{summary['seconds']:.1f}"))
    for party, files in summary["outputs"].items():
        lines += [(f"{party} got", path or f"its {name}, at its own node") for name, path in files.items()]
    lines.append(("ledger head", f"{ledger['root']} ({ledger['size']} entries)"))
    lines.append(("MLflow run", str(summary["mlflow_run_id"])))
    lines.append(("browse", f"mlflow ui --backend-store-uri {summary['mlflow']['uri']}"))
    lines.append(("verify", f"fedseal audit verify --ledger {ledger['path']}"))
    for name, value in lines:
        console.print(_plain(f"  {name:<32} {value}"))
    if summary.get("witnesses"):
        console.print(_witnesses(summary["witnesses"]))
    for text in summary["unsafe"]:
        console.print(f"[bold red]UNSAFE[/bold red] {_plain(text)}")
    if not summary["mlflow"]["delivered"]:
        console.print(f"[yellow]MLflow is behind[/yellow]: {_plain(summary['mlflow']['reason'])}")


def _witnesses(told: Mapping[str, Any]) -> str:
    """One line on the witnesses from outside: who co-signed, who did not and why."""
    if "error" in told:
        return f"[yellow]no witness was asked[/yellow]: {_plain(told['error'])}"
    signed, missing, quorum = told["signed"], told["missing"], told["quorum"]
    words = f"{len(signed)} of {len(signed) + len(missing)} co-signed, {quorum} must"
    words = "; ".join([f"{words}: {', '.join(signed)}" if signed else words, *missing.values()])
    if len(signed) < quorum:
        return f"[yellow]short of witnesses[/yellow]: {_plain(words)}"
    return _plain(f"  {'witnesses':<32} {words}")


def show_runs(runs: Sequence[Mapping[str, Any]]) -> None:
    """The list of runs, oldest first; ids whole, so that they can be copied."""
    console = Console(highlight=False, emoji=False, soft_wrap=True)
    if not runs:
        console.print("no runs yet")
    for r in runs:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(r["started"]))
        mlflow = r["mlflow_run_id"] or ""
        result = _headline(r["metrics"]) or r["error"]
        console.print(_plain(f"{r['run']}  {started}  {r['status']:<11} {r['name']:<24} {result}  {mlflow}"))


def _headline(metrics: Mapping[str, float]) -> str:
    """The one figure that a run is known by; empty without one."""
    for name, words in HEADLINES.items():
        if name in metrics:
            value = metrics[name]
            return f"{value:,.0f} {words}" if name in WHOLE else f"{words} {value:.4f}"
    return ""


def show_check(result: Mapping[str, Any]) -> None:
    """What a dry run found."""
    console = Console(highlight=False, emoji=False)
    shown = {k: v for k, v in CHECKED.items() if any(k in p for p in result["parties"])}
    table = Table("party", *shown.values(), "verdict")
    for p in result["parties"]:
        table.add_row(*map(_plain, [p["party"], *(p.get(k, "") for k in shown), p["problem"] or p["status"]]))
    console.print(table)
    for problem in result["problems"]:
        console.print(f"[red]{_plain(problem)}[/red]")
    for text in result["unsafe"]:
        console.print(f"[bold red]UNSAFE[/bold red] {_plain(text)}")
    console.print("ready" if result["ok"] else "not ready")
