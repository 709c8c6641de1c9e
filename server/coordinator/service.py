"""The coordinator as one foreground process: its SuperLink, MLflow where wanted, the door, the runs.

Everything that starts a process happens in the main thread, whose loop also watches, brings the SuperLink in line with
the register of nodes, and prunes Flower's database.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

from fl_core.errors import FedsealError, JobFailed, UsageError, WaitTimeout
from fl_core.files import locked, write_atomic
from fl_core.processes import Child, Service, free_port, options
from fl_core.trust.entry import Statement
from fl_core.trust.ledger import Ledger
from server.coordinator.door import Door, open_door
from server.coordinator.folder import SOON_DAYS, CoordinatorFolder
from server.coordinator.health import open_health
from server.coordinator.prune import prune
from server.coordinator.runs import Runs
from server.registry import UNFINISHED
from server.runtimes.superlink import SuperLink

START_SECONDS = 90.0
CALL_SECONDS = 120.0
TICK = 0.5
PRUNE_EVERY = 300.0
Say = Callable[[str], None]


class Coordinator:
    """The service.

    Parameters
    ----------
    mlflow : host:port of an MLflow server to start on this home's runs; None: none.
    say : takes a line for the operator.
    """

    def __init__(self, folder: CoordinatorFolder, *, mlflow: str | None, say: Say) -> None:
        self.folder, self._say, self._mlflow = folder, say, mlflow
        self._addresses = folder.addresses()
        self._identity = folder.identity()
        self._requests: queue.Queue[tuple[Callable[[], Any], Future[Any]]] = queue.Queue()
        self._stopping = False
        self.link = SuperLink(f"127.0.0.1:{free_port()}", folder.authority_pem, folder.secret.read_bytes())
        self._exchange = f"127.0.0.1:{free_port()}"
        self.runs = Runs(folder, self.link, self._exchange)
        self.service = Service(self._children(), self._died)
        self._synced, self._pruned = -1, -PRUNE_EVERY
        self._problems: list[str] = []

    # ---- life

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        checked = self.folder.check()
        if checked.days_left < SOON_DAYS:
            self._say(f"the server's certificate ends in {checked.days_left} days: fedseal coordinator renew")
        with ExitStack() as stack:
            if not stack.enter_context(locked(self.folder.path / "service.lock", wait=False)):
                raise JobFailed(f"{self.folder.path}: this coordinator runs already (see running.json there)")
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._stop)
            with Ledger.open(self.folder.home.ledger, self._identity) as ledger:
                self._say(f"ledger {ledger.log}: {ledger.size} entries")
            self.folder.renew_exchange()
            stack.callback(self.service.stop)
            self.service.start()
            self._await_superlink()
            health = stack.enter_context(open_health(self))
            door = open_door(Door(self.folder, self.runs, self._on_main, self.note), self.folder, self.note)
            stack.callback(self.runs.stop_all)
            stack.callback(lambda: door.stop(2.0).wait(5.0))
            self._tell(health)
            self._loop()
            self._say("stopping: runs are stopped so that they can be resumed")

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _loop(self) -> None:
        while not self._stopping:
            try:
                act, future = self._requests.get(timeout=TICK)
            except queue.Empty:
                self._look()
                continue
            try:
                future.set_result(act())
            except BaseException as error:  # it is the caller's
                future.set_exception(error)

    def _look(self) -> None:
        """What is done twice a second."""
        self.service.watch()
        for run, code in self.runs.reap():
            self._say(f"run {run} ended ({'done' if code == 0 else f'exit code {code}'})")
            self._pruned = -PRUNE_EVERY
        try:
            if time.monotonic() - self._pruned > PRUNE_EVERY:
                self._pruned = time.monotonic()
                prune(self.folder.database, vacuum=not self.runs.active)
            self._sync()
        except FedsealError as error:
            self._say(str(error))

    def _on_main(self, act: Callable[[], Any]) -> Any:
        future: Future[Any] = Future()
        self._requests.put((act, future))
        try:
            return future.result(CALL_SECONDS)
        except TimeoutError:
            raise WaitTimeout("the coordinator's main loop", CALL_SECONDS) from None

    # ---- parts

    def _children(self) -> list[Child]:
        log = self.folder.logs
        children = [Child("superlink", self._superlink_command, log / "superlink.log", {"FLWR_HOME": self._flwr_home})]
        exchange = [sys.executable, "-m", "server.coordinator.start_exchange"]
        exchange += [str(self.folder.home.path), self._exchange]
        children.append(Child("exchange", lambda: exchange, log / "exchange.log"))
        if self._mlflow:
            children.append(Child("mlflow", self._mlflow_command, log / "mlflow.log"))
        return children

    @property
    def _flwr_home(self) -> str:
        return str(self.folder.path / "flwr")

    def _superlink_command(self) -> list[str]:
        path, addresses = self.folder.path, self._addresses
        host, port = self.link.address.split(":")
        own = {
            "--nodes-host": addresses.bind,
            "--nodes-port": addresses.nodes_port,
            "--nodes": self.folder.nodes.path,
            "--federation": self.folder.public,
        }
        flower = {
            "--host": host,
            "--port": port,
            "--ssl-ca-certfile": path / "authority.pem",
            "--ssl-certfile": path / "server.pem",
            "--ssl-keyfile": path / "server.key",
            "--database": self.folder.database,
            "--isolation": "process",
            "--superexec-auth-secret-file": self.folder.secret,
        }
        words = [sys.executable, "-m", "server.coordinator.start_superlink", *options(own), "--", *options(flower)]
        return [*words, "--enable-supernode-auth", "--disable-runtime-dependency-installation"]

    def _mlflow_command(self) -> list[str]:
        assert self._mlflow is not None
        host, _, port = self._mlflow.rpartition(":")
        home = self.folder.home.path
        own = {
            "--backend-store-uri": f"sqlite:///{home / 'mlflow.db'}",
            "--default-artifact-root": home / "artifacts",
            "--host": host,
            "--port": port,
            "--workers": 1,
        }
        return [sys.executable, "-m", "fl_core.processes", "-m", "mlflow", "server", *options(own)]

    def _died(self, child: Child, code: int) -> None:
        last = [line for line in child.last_words().splitlines() if line.strip()]
        self._say(f"{child.name} ended (code {code}), again in {child.pause:g} s: {last[-1][:200] if last else ''}")

    def _await_superlink(self) -> None:
        end = time.monotonic() + START_SECONDS
        while not self._stopping:
            self.service.watch()
            try:
                self.link.online()
                return
            except FedsealError:
                if time.monotonic() > end:
                    raise WaitTimeout(
                        f"the SuperLink; see {self.folder.logs / 'superlink.log'}", START_SECONDS
                    ) from None
                time.sleep(0.2)

    def _tell(self, health: str) -> None:
        addresses = self._addresses
        held = {"pid": os.getpid(), "superlink": self.link.address, "health": health, "since": time.time()}
        write_atomic(self.folder.running, json.dumps(held, indent=1).encode())
        interrupted = [i for i in self.runs.all() if i.status in UNFINISHED and i.status == "interrupted"]
        for info in interrupted[-5:]:
            self._say(f"run {info.run} ({info.name}) was interrupted; its submitter can resume it (--resume)")
        self._say(f"nodes come in at {addresses.nodes}, people at {addresses.door}; health: {health}")
        if self._mlflow:
            self._say(f"MLflow at http://{self._mlflow}")
        self._say(f"authority {self.folder.federation().fingerprint}")
        self._say("ready")

    def _sync(self) -> None:
        """Have Flower know every registered node, and no other."""
        register = self.folder.nodes
        changed = register.path.stat().st_mtime_ns if register.path.exists() else 0
        if changed == self._synced:
            return
        try:
            nodes, problems = register.all().values(), register.damaged()
        except UsageError:
            self._synced = changed  # said once
            raise
        known = self.link.online().keys()
        for number in known - {n.flower_id for n in nodes}:
            self.link.unregister(number)
            self._pruned = -PRUNE_EVERY
        strangers = [n for n in nodes if n.flower_id not in known]  # new, or Flower's database is
        for node in strangers:
            try:
                register.set_flower_id(node.name, self.link.register(node.key))
                self._say(f"node {node.name} registered ({node.fingerprint[:16]}…)")
            except JobFailed as error:
                problems.append(f"node {node.name}: {error}")
        for problem in problems:
            if problem not in self._problems:
                self._say(problem)
        self._problems = problems
        if not strangers:  # else the register has changed by now, or one is to be tried again
            self._synced = changed

    def note(self, kind: str, run: str, body: dict[str, Any]) -> None:
        """Put a statement of the coordinator on the ledger."""
        with Ledger.open(self.folder.home.ledger, self._identity) as ledger:
            ledger.append([Statement.make(self._identity, log=ledger.log, kind=kind, run=run, body=body)])
