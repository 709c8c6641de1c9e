"""A finished run as a home holds it, without its parties' work: ledger, MLflow and artifacts, for tests of the audit."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fl_core.config import load_job
from fl_core.home import Home
from fl_core.messages import COORDINATOR
from fl_core.records import RoundRecord, decimal
from fl_core.trust.checkpoint import cosign
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from server.reconcile.compare import Reconciled, Reconciler
from server.recorders.mlflow import MlflowRecorder
from server.recorders.mlflow_process import Delivery
from server.recorders.mlflow_writer import make_store
from server.registry import RunFolder, RunInfo
from server.run import Running

PARTIES = ("ann", "bob", "cy")
MODEL = "cd" * 32
ROUNDS = 3
TABLE = {
    "kind": "horizontal",
    "name": "digits",
    "dataset": {"name": "digits", "parties": 3},
    "privacy": {"mechanism": "dp-sgd", "target_epsilon": 4.0},
    "train": {"rounds": ROUNDS},
}


def empty_store(path: Path) -> Path:
    """A SQLite store whose schema is made: that takes seconds."""
    make_store(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once."""
    return empty_store(tmp_path_factory.mktemp("store") / "mlflow.db")


@dataclass
class World:
    """A home with one run; `say` signs for anybody.

    up : MLflow can be reached while the run goes on. publish : the model. commits : digests of artifacts go on the
    ledger. cosigners : of the end. joined : what else a party's join holds.
    """

    path: Path
    schema: Path
    run: str = "00000000000000aa"
    up: bool = True
    publish: bool = True
    commits: bool = True
    cosigners: int = 3
    name: str = "digits"
    joined: dict[str, dict[str, Any]] = field(default_factory=dict)
    before: Callable[[World], None] = lambda world: None
    during: Callable[[World], None] = lambda world: None

    def __post_init__(self) -> None:
        self.home = Home.open(self.path / "home")
        self.db = self.home.path / "mlflow.db"
        if not self.db.exists():
            shutil.copy(self.schema, self.db)
        self.coordinator = Identity.load_or_create(self.home.coordinator, COORDINATOR)
        self.parties = {name: Identity.create(name) for name in PARTIES}
        self.folder = RunFolder(self.home.runs / self.run)
        with Ledger.open(self.home.ledger, self.coordinator) as self.ledger, pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", "")  # put back at the end: a delivery sets it
            patch.setattr(MlflowRecorder, "_keep_child", lambda recorder: self._deliver(recorder))
            if not self.commits:
                patch.setattr(Running, "_commit_to", lambda running, files, ledger: {})
            self._live()

    # ---- the run

    def say(self, by: str, kind: str, body: dict[str, Any], run: str | None = None) -> Statement:
        identity = self.coordinator if by == COORDINATOR else self.parties[by]
        return Statement.make(identity, log=self.ledger.log, kind=kind, run=self.run if run is None else run, body=body)

    def witness(self, number: int | None = None) -> None:
        note, names = self.ledger.checkpoint(), list(PARTIES)[:number]
        self.ledger.add_cosignatures(self.ledger.size, {n: cosign(self.parties[n], note) for n in names})

    def _live(self) -> None:
        job = load_job(TABLE | {"name": self.name})
        info = RunInfo(self.run, job.name, job.kind, job.runtime, job.digest(), str(self.path / "out"), time.time(), 1)
        (self.path / "out").mkdir(exist_ok=True)
        RunFolder.create(self.home, info)
        running = Running(job, self.home, self.folder, info, lambda event: None, resume=False)
        mlflow = running._mlflow()
        cards = [self.say(n, "card", {"card": p.card.to_dict()}, "") for n, p in self.parties.items()]
        self.ledger.append(cards)
        self.before(self)
        submitted = {"name": "mona", "roles": ["model-owner"], "certificate": "ee" * 32}
        body = {"job": job.digest(), "view": job.public(), "unsafe": [], "submitted": submitted}
        self.ledger.append([self.say(COORDINATOR, "job", body)])
        data = {name: f"{i:02x}" * 32 for i, name in enumerate(PARTIES, 1)}
        joins = [self.say(n, "join", {"data": d, "blobs": {}, **self.joined.get(n, {})}) for n, d in data.items()]
        roster = self.say(COORDINATOR, "roster", {"parties": list(PARTIES), "min_parties": 2, "receivers": []})
        self.ledger.commit([*joins, roster])
        mlflow.add_datasets([{"name": n, "digest": d, "context": "training"} for n, d in data.items()])
        for number in range(1, ROUNDS + 1):
            self._round(mlflow, number)
        self.during(self)
        end = self.say(COORDINATOR, "end", {"status": "done", "model": MODEL, "metrics": {"accuracy": "0.9"}})
        self.ledger.commit([end])
        self.witness(self.cosigners)
        self.finished = self.ledger.size
        summary = running._summary(self.ledger, {"accuracy": 0.9}, MODEL, 2.5)
        with pytest.MonkeyPatch.context() as patch:
            if not self.up:
                patch.setattr("server.run.MLFLOW_SECONDS", 0.0)
            running._finish(summary, self.ledger, mlflow, b"weights" if self.publish else None)
        self.summary = summary

    def _round(self, mlflow: MlflowRecorder, number: int) -> None:
        update = {"round": number, "epsilon": f"{number}.25"}
        facts = {"round": number, "act": "train", "parties": list(PARTIES), "missing": []}
        self.ledger.commit(
            [*(self.say(n, "update", update) for n in PARTIES), self.say(COORDINATOR, "aggregate", facts)]
        )
        self.witness()
        metrics = {"accuracy": decimal(0.5 + number / 37), "loss": decimal(2.3 / number), "bytes_up": "123457"}
        record = RoundRecord(self.run, number, metrics | {"epsilon": f"{number}.25"}, PARTIES)
        self.ledger.append([self.say(COORDINATOR, "round", record.body())])
        mlflow.record(record)

    def _deliver(self, recorder: MlflowRecorder) -> None:
        if self.up and [line["do"] for line, _ in recorder._spool.lines()][-1] == "end":
            Delivery(recorder._spool, os.getppid()).run()

    # ---- what an administrator does

    @property
    def mlflow_run(self) -> str:
        return str(self.summary["mlflow_run_id"])

    @property
    def artifacts(self) -> Path:
        return self.home.path / "artifacts" / self.mlflow_run / "artifacts"

    def sql(self, *statements: str) -> None:
        """Run statements on MLflow's database; `:run` is MLflow's id of the run."""
        with sqlite3.connect(self.db) as db:
            for statement in statements:
                changed = db.execute(statement.replace(":run", f"'{self.mlflow_run}'")).rowcount
                assert changed > 0, f"changes nothing: {statement}"
        db.close()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.db) as db:
            found = db.execute(query.replace(":run", f"'{self.mlflow_run}'")).fetchall()
        db.close()
        return found

    def compare(self) -> Reconciled:
        with Ledger.open(self.home.ledger) as ledger:
            return Reconciler(self.home, ledger).compare(self.run)


class Kept:
    """MLflow's database and artifacts as they were, to put back under a process that has them open."""

    def __init__(self, world: World) -> None:
        self._world, self._copy = world, world.path / "kept"
        shutil.copytree(world.home.path / "artifacts", self._copy / "artifacts")
        self._move(world.db, self._copy / "mlflow.db")
        shutil.copytree(world.folder.path, self._copy / "run")

    def put_back(self) -> None:
        self._move(self._copy / "mlflow.db", self._world.db)
        for name, place in (("artifacts", self._world.home.path / "artifacts"), ("run", self._world.folder.path)):
            shutil.rmtree(place)
            shutil.copytree(self._copy / name, place)

    @staticmethod
    def _move(source: Path, target: Path) -> None:
        one, other = sqlite3.connect(source), sqlite3.connect(target)
        one.backup(other)
        one.close()
        other.close()
