"""What the entries of a run say of it, and what MLflow must therefore show.

MLflow gets per round `float()` of the ledger's decimal texts, the job's public view as dotted parameters, and tags
with the run, the job's digest and the ledger's head; nothing else in it follows from the ledger.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from .format import Broken
from .report import PackReport

MAX_PARAM, MAX_TAG = 6000, 8000  # what the recorder leaves of a longer text
DERIVED = frozenset({"fedseal.run", "fedseal.job", "fedseal.kind", "mlflow.runName", "model.digest"})
HEAD = frozenset({"ledger.size", "ledger.root"})
_STATUS = {"failed": "FAILED", "refused": "FAILED", "stopped": "KILLED"}


def shown(text: object) -> str:
    """Return a value so that it can be printed: quoted, in ASCII, at most 80 characters of it."""
    return json.dumps(str(text)[:80])


class RunStory:
    """Follows one run's statements for what they show of each other: replays, and statements that must be there."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()  # half of each signature's point: 16 bytes tell statements apart
        self._updates: dict[int, set[str]] = {}
        self._round: int | None = None

    def take(self, entry: dict[str, Any], *, own: bool) -> None:
        """Take the next entry of the run; `own`: of the coordinator.  Raises Broken."""
        body = entry["body"]
        if not own:
            mark = bytes.fromhex(entry["sig"][:32])
            if mark in self._seen:
                raise Broken(f"{entry['by']}: a statement of it stands here again (replayed)")
            self._seen.add(mark)
            if entry["kind"] == "update" and type(body.get("round")) is int:
                self._updates.setdefault(body["round"], set()).add(entry["by"])
        elif entry["kind"] == "aggregate" and type(body.get("round")) is int:
            number, before = body["round"], self._round
            if before is not None and number != before + 1:
                raise Broken(f"a sum of round {number} after that of round {before}")
            there = self._updates.pop(number, set())
            parties = body.get("parties")
            missing = [p for p in parties if p not in there] if isinstance(parties, list) else []
            if missing:
                raise Broken(f"the sum of round {number} has a part of {shown(missing[0])}, whose update is not here")
            self._round = number


class MlflowValues:
    """Holds the values of `mlflow.json` against the coordinator's entries as they pass.

    Attributes
    ----------
    head, root
        Size and root of the log by MLflow's tags; 0 and empty where they say none.
    """

    def __init__(self, values: dict[str, Any], run: str, report: PackReport) -> None:
        self._report, self._run = report, run
        self._metrics: dict[tuple[str, str], list[str]] = {}
        for name, step, value in values["metrics"]:
            self._metrics.setdefault((name, step), []).append(value)
        self._params, self._tags = dict(values["params"]), dict(values["tags"])
        self._status = values["status"]
        self._steps: set[int] = set()
        self._job: dict[str, Any] | None = None
        self._model: str | None = None
        self._end = ""
        size, root = self._tags.get("ledger.size", ""), self._tags.get("ledger.root", "")
        self.head = int(size) if re.fullmatch("[1-9][0-9]{0,14}", size) else 0
        self.root = bytes.fromhex(root) if re.fullmatch("[0-9a-f]{64}", root) else b""

    def take(self, entry: dict[str, Any]) -> None:
        """Take the coordinator's next entry of the run."""
        kind, body = entry["kind"], entry["body"]
        if kind == "job" and self._job is None:
            self._job = body
        elif kind == "round":
            self._round(body, entry["seq"])
        elif kind == "end":
            self._model = body.get("model") or None
            self._end = "FINISHED"
        elif kind == "failure":
            self._end = _STATUS.get(str(body.get("status")), "FAILED")
        elif kind == "resume":
            self._end = ""

    def finish(self, root: bytes | None) -> None:
        """Compare what is left; `root`: of the log at the size that MLflow's tag names, None if it has no such size."""
        for (name, step), values in sorted(self._metrics.items()):
            self._differ("metric", f"{shown(name)} at step {step}", ", ".join(values[:3]), None)
        self._same("param", self._params, self._expected_params())
        self._same("tag", {k: v for k, v in self._tags.items() if k in DERIVED}, self._expected_tags())
        self._same_head(root)
        if self._end:
            self._same("status", {"of the run": self._status}, {"of the run": self._end})
        else:
            self._report.unchecked.append("MLflow's status of a run that has not ended")
        if underived := sorted(set(self._tags) - DERIVED - HEAD):
            names = ", ".join(shown(name) for name in underived[:20])
            self._report.unchecked.append(f"MLflow's tags of which no entry speaks: {names}")
        self._report.unchecked.append("MLflow's run id, and its times, which are not in the pack")

    def _round(self, body: dict[str, Any], seq: int) -> None:
        number, metrics = body.get("round"), body.get("metrics")
        if type(number) is not int or not isinstance(metrics, dict):
            self._report.differ(f"entry {seq}: a round without a number or metrics")
            return
        if number in self._steps:
            return  # MLflow keeps a round's first record
        self._steps.add(number)
        for name, text in metrics.items():
            values = self._metrics.pop((name, str(number)), [])
            self._count("metrics")
            if values != [_number(text)]:
                self._differ("metric", f"{shown(name)} at step {number}", ", ".join(values[:3]) or None, str(text)[:40])

    def _same(self, what: str, found: dict[str, str], expected: dict[str, str]) -> None:
        for name in sorted(set(expected) | set(found)):
            self._count(what if what == "status" else f"{what}s")
            if found.get(name) != expected.get(name):
                self._differ(what, shown(name), found.get(name), expected.get(name))

    def _same_head(self, root: bytes | None) -> None:
        """The ledger's head when the run ended: one of this log's, and there if the run ended."""
        size, told = (self._tags.get(name) for name in ("ledger.size", "ledger.root"))
        if size is None and told is None and self._end != "FINISHED":
            return
        self._count("tags")
        if root is None or (size, told) != (str(self.head), root.hex()):
            self._report.differ("tags ledger.size and ledger.root: MLflow has no size and root of this log there")

    def _expected_params(self) -> dict[str, str]:
        if self._job is None:
            return {}
        return {name: text[:MAX_PARAM] for name, text in flat(self._job.get("view")) if text != ""}

    def _expected_tags(self) -> dict[str, str]:
        expected = {"fedseal.run": self._run}
        view = (self._job or {}).get("view")
        if self._job is not None and isinstance(view, dict):
            expected |= {"fedseal.job": str(self._job.get("job")), "fedseal.kind": str(view.get("kind"))}
            expected["mlflow.runName"] = str(view.get("name"))
        if self._end == "FINISHED" and self._model:
            expected["model.digest"] = str(self._model)
        return {name: text[:MAX_TAG] for name, text in expected.items()}

    def _count(self, what: str) -> None:
        self._report.compared[what] = self._report.compared.get(what, 0) + 1

    def _differ(self, what: str, name: str, found: str | None, expected: str | None) -> None:
        has = "nothing" if found is None else shown(found)
        due = "nothing" if expected is None else shown(expected)
        self._report.differ(f"{what} {name}: MLflow has {has}, the ledger {due}")


class Artifacts:
    """Finds the entry of the run, the first one, that commits to each artifact's SHA-256."""

    def __init__(self, files: list[dict[str, Any]], report: PackReport) -> None:
        self._files, self._report = files, report
        self._entries: dict[str, int | None] = {file["sha256"]: None for file in files}

    def take(self, entry: dict[str, Any]) -> None:
        """Take the next entry of the run."""
        for text in texts(entry["body"]):
            if self._entries.get(text, 0) is None:
                self._entries[text] = entry["seq"]

    def finish(self) -> None:
        """Compare each artifact's entry with the one that was found."""
        free = []
        for file in self._files:
            found, named = self._entries[file["sha256"]], file.get("entry")
            self._report.compared["artifacts"] = self._report.compared.get("artifacts", 0) + 1
            if found != named:
                words = f"is said to be in entry {named}, and is in {'none' if found is None else f'entry {found}'}"
                self._report.differ(f"artifact {shown(file['name'])}: its SHA-256 {words}")
            elif found is None:
                free.append(file["name"])
        if free:
            names = ", ".join(shown(name) for name in free[:20])
            self._report.unchecked.append(f"artifacts to which no entry commits: {names}")
        if self._files:
            self._report.unchecked.append("names and sizes of artifacts; their contents are not in the pack")


def flat(table: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The job's public view as the parameters that MLflow gets: dotted names, texts."""
    for key, value in table.items() if isinstance(table, dict) else ():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            names = [str(v.get("name")) if isinstance(v, dict) else str(v) for v in value]
            yield prefix + key, ", ".join(names)
        else:
            yield prefix + key, str(value)


def texts(value: Any) -> Iterator[str]:
    """All strings in a JSON value, but for keys."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, (dict, list)):
            waiting += item.values() if isinstance(item, dict) else item


def _number(text: Any) -> str | None:
    """The one way in which a pack writes a metric: the shortest decimal text of the float."""
    try:
        return repr(float(text))
    except (TypeError, ValueError):
        return None
