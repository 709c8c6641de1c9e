"""`fedseal audit reconcile --repair`: write what MLflow missed while it was down, and nothing over what is there.

What waits in the run's spool is delivered as a run would have; what is then still missing is written from the ledger,
artifacts from the run's folder if their SHA-256 is the ledger's.  A value that differs is left for people to explain.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fl_core.errors import JobFailed
from server.reconcile.compare import DELETED, MISSING, Difference, Reconciled, Reconciler
from server.reconcile.due import HEAD_ROOT, HEAD_SIZE, Due
from server.reconcile.found import EXPERIMENT, Found, Store
from server.recorders.spool import State

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

_BATCH = 100


def repair(reconciler: Reconciler, run: str) -> Reconciled:
    """Repair one run in MLflow and compare it again; a run that goes on is left to its own process.

    Raises
    ------
    UsageError, JobFailed
        As `Reconciler.compare`; also if MLflow refuses to be written.
    """
    _, found, before = reconciler.weigh(run)
    if before.equal:
        return before
    if reconciler.spool(run).is_alive():
        before.unrepaired.append("the run goes on; its own process delivers")
        return before
    done = _deliver(reconciler, run, lost=found is None)
    due, found, result = reconciler.weigh(run)
    if not result.equal:
        done += _Repair(reconciler, due, found, result).run()
        result = reconciler.compare(run)
    result.repaired = done
    result.unrepaired = [f"left as it is: {d.words}" for d in result.differences if d.problem not in (MISSING, DELETED)]
    result.unrepaired += [f"could not be written: {d.words}" for d in result.differences if d.problem == MISSING]
    return result


def _deliver(reconciler: Reconciler, run: str, *, lost: bool) -> list[str]:
    """Deliver what waits in the spool; all of it to a new run where MLflow has lost the one there was."""
    spool, store = reconciler.spool(run), reconciler.store(run)
    begin = spool.begin()
    if begin is None or begin["uri"] != store.uri or not (lost or spool.is_behind()):
        return []
    from server.recorders.mlflow_process import Delivery

    with spool.held(wait=False) as mine:
        if not mine:
            return []
        if lost:
            spool.save(State())
        waiting = sum(1 for _ in spool.lines(spool.load().offset))
        if not Delivery(spool, None).run():
            raise JobFailed(f"run {run}: MLflow took not all of what waits: {spool.load().error}")
    _remember(reconciler, run, spool.load().mlflow_run_id or "")
    return [f"{waiting} lines that waited for MLflow were delivered"]


def _remember(reconciler: Reconciler, run: str, mlflow_run: str) -> None:
    """Note in the home which run in MLflow it is now."""
    if run in reconciler.folders and mlflow_run:
        folder, info = reconciler.folders[run]
        if info.mlflow_run_id != mlflow_run:
            info.mlflow_run_id = mlflow_run
            folder.save(info)


class _Repair:
    """Writes from the ledger what one run in MLflow lacks."""

    def __init__(self, reconciler: Reconciler, due: Due, found: Found | None, result: Reconciled) -> None:
        self.reconciler, self.due, self.found = reconciler, due, found
        self.store: Store = reconciler.store(due.run)
        self.missing = [d for d in result.differences if d.problem == MISSING]
        self.run_id = found.run_id if found is not None else ""
        self.done: list[str] = []

    def run(self) -> list[str]:
        """Write it; return what was done, in words."""
        if self.found is None:
            self.run_id = self._create()
            self.missing = [*self._everything()]
        self.client = self.store.client
        with self.store.answering():
            if self.found is not None and self.found.deleted:
                self.client.restore_run(self.run_id)
                self.done.append("the deleted run was restored")
            self._values()
            self._datasets()
            self._artifacts()
            if self._of("status") or self.found is None:
                self._end()
        return self.done

    def _of(self, what: str) -> list[Difference]:
        return [d for d in self.missing if d.what == what]

    def _everything(self) -> list[Difference]:
        due = self.due
        missing = [Difference("metric", MISSING, name, step) for name, step in due.metrics]
        missing += [Difference("param", MISSING, name) for name in due.params]
        missing += [Difference("tag", MISSING, name) for name in due.tags]
        missing += [Difference("dataset", MISSING, name, ledger=digest) for name, digest in due.datasets]
        missing += [Difference("artifact", MISSING, name) for name in due.artifacts or {}]
        return [*missing, *([Difference("tag", MISSING, HEAD_SIZE)] if due.head else [])]

    def _create(self) -> str:
        """A run for what the ledger holds; a spool that is still there will know it."""
        from server.recorders.mlflow_writer import Writer

        spool, uri = self.reconciler.spool(self.due.run), self.store.uri
        held = spool.begin() or {}
        remote = uri.startswith(("http://", "https://"))
        begin = {
            "uri": uri,
            "spool": held.get("spool") or secrets.token_hex(8),
            "started": self.due.started,
            "artifacts": None if remote else (self.reconciler.home.path / "artifacts").as_uri(),
            "experiment": EXPERIMENT,
            "name": self.due.name,
        }
        refused: list[Exception] = []
        with self.store.answering():
            run_id = Writer(begin, refused.append).open(None)
        self.done.append("the run was made again from the ledger; its description is lost")
        if held:
            spool.save(dataclasses.replace(spool.load(), mlflow_run_id=run_id))
        _remember(self.reconciler, self.due.run, run_id)
        return run_id

    def _values(self) -> None:
        from mlflow.entities import Metric, Param, RunTag

        due = self.due
        wanted = [(d.name, d.step or 0) for d in self._of("metric")]
        held = {name: {m.step for m in self.client.get_metric_history(self.run_id, name)} for name, _ in wanted}
        keys = [(name, step) for name, step in wanted if step not in held[name]]
        metrics = [Metric(n, float(due.metrics[n, s].text), due.metrics[n, s].t, s) for n, s in keys]
        params = [Param(d.name, due.params[d.name]) for d in self._of("param")]
        tags = [RunTag(d.name, due.tags[d.name]) for d in self._of("tag") if d.name in due.tags]
        if due.head and any(d.name.startswith(HEAD_SIZE) for d in self._of("tag")):
            tags += [RunTag(HEAD_SIZE, str(due.head)), RunTag(HEAD_ROOT, self._root(due.head))]
        for what, items in (("metrics", metrics), ("params", params), ("tags", tags)):
            for i in range(0, len(items), _BATCH):
                part: dict[str, Any] = {what: items[i : i + _BATCH]}
                self.client.log_batch(self.run_id, **part)
            if items:
                self.done.append(f"{len(items)} {what} were written")

    def _root(self, size: int) -> str:
        from fl_core.trust.checkpoint import parse_checkpoint, parse_note

        note = self.reconciler.ledger.checkpoint_at(size)
        return parse_checkpoint(parse_note(note).text).root.hex() if note else ""

    def _datasets(self) -> None:
        if missing := self._of("dataset"):
            self.client.log_inputs(self.run_id, [_dataset(d.name, d.ledger or "") for d in missing])
            self.done.append(f"{len(missing)} datasets were written")

    def _artifacts(self) -> None:
        folder = self.reconciler.home.runs / self.due.run
        for missing in self._of("artifact"):
            name, committed = PurePosixPath(missing.name), (self.due.artifacts or {})[missing.name]
            path = folder / name.name
            if _sha256(path) == committed.sha256:
                self.client.log_artifact(self.run_id, str(path), str(name.parent))
                self.done.append(f"artifact {missing.name} was written")

    def _end(self) -> None:
        if self.due.status:
            self.client.set_terminated(self.run_id, self.due.status, end_time=self.due.ended)
            self.done.append(f"the run was ended as {self.due.status}")


def _sha256(path: Path) -> str:
    """Of a file; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _dataset(name: str, digest: str) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"commitment": digest})
    return DatasetInput(Dataset(name, digest, "commitment", source), [InputTag("mlflow.data.context", "training")])
