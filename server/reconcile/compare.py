"""`fedseal audit reconcile`: MLflow is a view, so each value that fedseal writes there must be the ledger's.

Compared are every metric at every step and the newest value of each, which MLflow keeps beside it, parameters, tags,
datasets by commitment, status, artifacts by SHA-256 and registered models by digest.  The ledger decides; what MLflow
alone has is named as not compared.  Nothing is written here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fl_core.errors import UsageError
from fl_core.home import Home
from fl_core.trust.ledger import Ledger
from server.reconcile.due import HEAD_ROOT, HEAD_SIZE, Due, is_head
from server.reconcile.found import Found, Store
from server.recorders.spool import Spool
from server.registry import RunFolder, all_runs

OURS = ("fedseal.", "ledger.", "model.digest")  # tags that only fedseal writes
ALONE = {"fedseal.spool": "the name of the spool", "mlflow.note.content": "the description"}
SYSTEM = "system/"  # metrics of MLflow itself
MISSING, ALTERED, EXTRA, DELETED = "missing", "altered", "extra", "deleted"


@dataclass(frozen=True)
class Difference:
    """One place in which MLflow and the ledger differ.

    `what` is run, name, status, metric, newest, param, tag, dataset, artifact or model; `problem` is missing, altered,
    extra or deleted; `mlflow` and `ledger` are what each has, None for nothing.
    """

    what: str
    problem: str
    name: str = ""
    step: int | None = None
    mlflow: str | None = None
    ledger: str | None = None

    @property
    def words(self) -> str:
        """As one line."""
        where = f"{self.what} {self.name}".strip() + (f", step {self.step}" if self.step is not None else "")
        has, due = ("nothing" if text is None else text for text in (self.mlflow, self.ledger))
        return f"{where}: {self.problem}: MLflow has {has}, the ledger {due}"


@dataclass
class Reconciled:
    """What comparing one run came to.

    Attributes
    ----------
    mlflow_run_id : empty where MLflow has no such run.
    compared : how many of what.
    unchecked, repaired, unrepaired : in words.
    """

    run: str
    name: str
    mlflow_run_id: str = ""
    compared: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    unrepaired: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether MLflow shows what the ledger holds."""
        return not self.differences

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        differences = [asdict(d) | {"words": d.words} for d in self.differences]
        return asdict(self) | {"differences": differences, "equal": self.equal}


class Reconciler:
    """Compares the runs of one ledger with MLflow.

    Parameters
    ----------
    home : knows which run in MLflow is which, and where MLflow is unless `MLFLOW_TRACKING_URI` says so.
    """

    def __init__(self, home: Home, ledger: Ledger) -> None:
        self.home, self.ledger = home, ledger
        self.folders = {info.run: (folder, info) for folder, info in all_runs(home)}
        self._stores: dict[str, Store] = {}
        self._said = os.environ.get("MLFLOW_TRACKING_URI")  # before a delivery sets it

    def runs(self) -> list[str]:
        """Every run that the ledger has a job of, in its order."""
        return list(dict.fromkeys(entry.run for entry in self.ledger.entries(kind="job")))

    def compare(self, run: str) -> Reconciled:
        """Compare one run.

        Raises
        ------
        UsageError
            If the ledger has no job of it.
        JobFailed
            If MLflow does not answer.
        """
        return self.weigh(run)[2]

    def weigh(self, run: str) -> tuple[Due, Found | None, Reconciled]:
        """`compare`, with both sides."""
        due = Due.of(self.ledger, run)
        if not due.name:
            raise UsageError(f"run {run}: the ledger has no job of it")
        store, known = self.store(run), self.mlflow_run(run)
        copies = store.with_tag("fedseal.run", run)
        chosen = known if known and store.has(known) else next((c.run_id for c in copies if not c.deleted), "")
        result = Reconciled(run, due.name, chosen)
        second = "a second run that says it is this one"
        others = (copy.run_id for copy in copies if copy.run_id != chosen)
        result.differences += [Difference("run", EXTRA, other, mlflow=second) for other in others]
        found = store.read(chosen) if chosen else None
        if found is None:
            lost = f"; the one it was delivered to, {known}, is gone" if known else ""
            result.differences.append(Difference("run", MISSING, due.name, ledger=f"a run that MLflow lacks{lost}"))
            return due, None, result
        result.differences += _Comparison(due, found, result).differences(self._head(due, found))
        return due, found, result

    def strays(self) -> list[Difference]:
        """Runs in fedseal's experiment of which the ledger knows nothing."""
        known, found = set(self.runs()), []
        for store in {self.store(run).uri: self.store(run) for run in known}.values() or [self.store("")]:
            for shown in store.all_runs():
                if shown.tag not in known:
                    said = f"a run that calls itself {shown.tag or 'nothing'}"
                    found.append(Difference("run", EXTRA, shown.run_id, mlflow=said))
        return found

    def store(self, run: str) -> Store:
        """Where MLflow is: as the environment says, else where the run was delivered to, else in the home."""
        held = self.spool(run).begin() if run in self.folders else None
        default = f"sqlite:///{self.home.path / 'mlflow.db'}"
        uri = self._said or (held or {}).get("uri") or default
        return self._stores.setdefault(uri, Store(uri))

    def spool(self, run: str) -> Spool:
        """The spool of a run of this home, which may not exist."""
        folder = self.folders[run][0] if run in self.folders else RunFolder(self.home.runs / run)
        return Spool(folder.spool)

    def mlflow_run(self, run: str) -> str:
        """MLflow's id of a run as this home remembers it; empty for none."""
        info = self.folders[run][1] if run in self.folders else None
        return (info and info.mlflow_run_id) or self.spool(run).load().mlflow_run_id or ""

    def _head(self, due: Due, found: Found) -> bool:
        size, root = found.tags.get(HEAD_SIZE, ""), found.tags.get(HEAD_ROOT, "")
        return is_head(self.ledger, size, root) and (not due.head or size == str(due.head))


class _Comparison:
    """One run on both sides; counts into `result.compared` and says there what is not compared."""

    def __init__(self, due: Due, found: Found, result: Reconciled) -> None:
        self.due, self.found, self.result = due, found, result

    def differences(self, head: bool) -> Iterator[Difference]:
        """All of them; `head`: the tags of the ledger's head are those of this log."""
        if self.found.deleted:
            yield Difference("run", DELETED, self.due.name, mlflow="it among the deleted runs", ledger="the run")
        yield from self._same("name", {"of the run": self.found.name}, {"of the run": self.due.name})
        yield from self._status()
        yield from self._metrics()
        yield from self._same("param", self.found.params, self.due.params)
        yield from self._tags(head)
        yield from self._datasets()
        yield from self._artifacts()
        yield from self._models()
        self.result.unchecked += [
            "MLflow's run id, experiment, order and times",
            *(["descriptions, which anybody may edit in MLflow"] if "mlflow.note.content" in self.found.tags else []),
        ]

    def _count(self, what: str, number: int = 1) -> None:
        self.result.compared[what] = self.result.compared.get(what, 0) + number

    def _status(self) -> Iterator[Difference]:
        status, found = self.due.status, self.found.status
        if not status:
            self.result.unchecked.append(f"the status ({found}) of a run that has no end on the ledger")
            return
        self._count("status")
        if found != status:
            problem = MISSING if found in ("RUNNING", "SCHEDULED") else ALTERED
            yield Difference("status", problem, "", None, found, status)

    def _metrics(self) -> Iterator[Difference]:
        found = dict(self.found.metrics)
        for (name, step), recorded in self.due.metrics.items():
            self._count("metrics")
            values, due = found.pop((name, step), []), repr(float(recorded.text))
            if values != [due]:
                shown = ", ".join(values) or None
                yield Difference("metric", ALTERED if values else MISSING, name, step, shown, recorded.text)
        system = sorted({name for name, _ in found if name.startswith(SYSTEM)})
        if system:
            self.result.unchecked.append(f"MLflow's own metrics: {', '.join(system[:10])}")
        for (name, step), values in found.items():
            if not name.startswith(SYSTEM):
                yield Difference("metric", EXTRA, name, step, ", ".join(values))
        newest = self.due.newest()
        for name, text in self.found.newest.items():  # a table of its own, which MLflow's lists show
            if name in newest and text != repr(float(newest[name])):
                yield Difference("newest", ALTERED, name, None, text, newest[name])

    def _tags(self, head: bool) -> Iterator[Difference]:
        found, due = self.found.tags, self.due.tags
        mine = {name: text for name, text in found.items() if name in due or _is_ours(name)}
        told = {name: mine.pop(name, None) for name in (HEAD_SIZE, HEAD_ROOT)}
        yield from self._same("tag", mine, due)
        if self.due.status == "FINISHED" or any(told.values()):
            self._count("tags", 2)
            shown = f"{told[HEAD_SIZE]} {told[HEAD_ROOT]}" if any(told.values()) else None
            if not head:
                problem = ALTERED if shown else MISSING
                exact = f"the head of {self.due.head} entries" if self.due.head else "no such head"
                yield Difference("tag", problem, f"{HEAD_SIZE} and {HEAD_ROOT}", None, shown, exact)
        if others := sorted(set(found) - set(due) - set(mine) - {HEAD_SIZE, HEAD_ROOT, *ALONE}):
            self.result.unchecked.append(f"tags that fedseal does not write: {', '.join(others[:20])}")

    def _same(self, what: str, found: Mapping[str, str], due: Mapping[str, str]) -> Iterator[Difference]:
        self._count(f"{what}s", len(due))
        for name in sorted(set(found) | set(due)):
            has, must = found.get(name), due.get(name)
            if has != must:
                problem = MISSING if has is None else EXTRA if must is None else ALTERED
                yield Difference(what, problem, name, None, has, must)

    def _datasets(self) -> Iterator[Difference]:
        self._count("datasets", len(self.due.datasets))
        for name, digest in sorted(self.due.datasets - self.found.datasets):
            yield Difference("dataset", MISSING, name, None, None, digest)
        for name, digest in sorted(self.found.datasets - self.due.datasets):
            yield Difference("dataset", EXTRA, name, None, digest)

    def _artifacts(self) -> Iterator[Difference]:
        if self.due.artifacts is None:
            if names := sorted(self.found.artifacts):
                self.result.unchecked.append(f"artifacts, to which no entry of this run commits: {', '.join(names)}")
            return
        due = {name: file.sha256 for name, file in self.due.artifacts.items()}
        yield from self._same("artifact", self.found.artifacts, due)

    def _models(self) -> Iterator[Difference]:
        for label, digest, ours in self.found.models:
            self._count("models")
            if digest != self.due.model:
                yield Difference("model", ALTERED, label, None, digest or None, self.due.model or None)
            elif not ours:
                yield Difference("model", ALTERED, label, None, "files from elsewhere", "this run's artifact")


def _is_ours(name: str) -> bool:
    return name.startswith(OURS) and name not in ALONE
