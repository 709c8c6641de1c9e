"""The simulation runtime: Flower's simulation engine over a pool of Ray actors, on this machine or on a Ray cluster.

Flower's engine hands each message to a free actor and takes the reply; the ServerApp runs in this process, as in the
other runtimes.  The pool is ours: Flower's returns a dead actor to the pool, where it fails every later message, and
waits without end for a silent one.  One message a party is in hand at a time.

Ray is started for the run and ended with it, its folder removed; `RAY_ADDRESS` names a running cluster instead.  All
private names of Flower's engine are imported here only.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import ray
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.compat.client.run_info_store import DeprecatedRunInfoStore
from flwr.server.superlink.fleet.vce.backend import Backend
from flwr.server.superlink.fleet.vce.metrics import VceMetrics
from flwr.server.superlink.fleet.vce.vce_api import run_api
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.simulation.ray_transport.ray_actor import ClientAppActor, pool_size_from_resources

from fl_core.errors import JobFailed, UsageError
from fl_core.learning.datasets import DATA_VARIABLE
from server.runtimes.actor import NOTICE, Place
from server.runtimes.base import POLL, WORKER_DIED, WORKER_SILENT, FederationGrid, numbered

RESOURCES: dict[str, int | float] = {"num_cpus": 1}  # of an actor: as many work at a time as there are cores
OBJECT_STORE_BYTES = 512 << 20
DEATH_SECONDS = 10.0
CONNECT_SECONDS = 10.0


class RayPool(Backend):
    """Actors that take messages; a dead or silent one is replaced.

    Parameters
    ----------
    parties : the party of each node id.
    notices : takes the parties' accounts of their failures.
    together : an actor a party, so that all can work at once.
    """

    def __init__(self, parties: Mapping[int, str], notices: dict[str, str], *, together: bool = False) -> None:
        self._parties, self._notices, self._together = parties, notices, together
        self._turns = {node: threading.Lock() for node in parties}
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._actors: set[Any] = set()
        self._closing = False
        self._app_fn: Callable[[], ClientApp] | None = None
        self._share = 1.0  # of a core, that an actor asks for
        self._ray = _Ray()

    def build(self, app_fn: Callable[[], ClientApp]) -> None:
        """Start the actors."""
        self._app_fn = app_fn
        cores = pool_size_from_resources(RESOURCES)
        self._share = min(1.0, cores / len(self._parties)) if self._together else 1.0
        for _ in range(len(self._parties) if self._together else min(len(self._parties), cores)):
            self._idle.put(self._start())

    @property
    def num_workers(self) -> int:
        """Messages that are worked on at a time."""
        return len(self._actors)

    def is_worker_idle(self) -> bool:
        """Whether an actor is free."""
        return not self._idle.empty()

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        """The party's reply, or a Flower error."""
        node = message.metadata.dst_node_id
        with self._turns[node]:
            left = message.metadata.created_at + message.metadata.ttl - time.time()
            if left <= 0 or self._closing:
                return _error(WORKER_SILENT, "no answer in time", message), context
            actor = self._idle.get()
            future = actor.run.remote(self._app_fn, message, self._parties[node], context)
            try:
                _, reply, context = ray.get(future, timeout=left)
            except ray.exceptions.GetTimeoutError:
                self._replace(actor, future)
                return _error(WORKER_SILENT, "no answer in time; the actor was ended", message), context
            except ray.exceptions.RayError as error:
                self._account(self._parties[node], error)
                self._replace(actor, future)
                return _error(WORKER_DIED, "the actor died", message), context
            self._idle.put(actor)
        if text := str(context.state.config_records.pop(NOTICE)["text"]):
            self._notices[self._parties[node]] = text
        return reply, context

    def _account(self, party: str, error: Exception) -> None:
        """Say what became of an actor: in full in the run's log, in a line to the person if it raised something."""
        if self._closing:
            return
        text = str(error).strip()
        logging.getLogger("flwr").warning("%s: %s", party, text)
        if isinstance(error, ray.exceptions.RayTaskError):
            self._notices[party] = f"the Ray actor failed: {text.splitlines()[-1]}"

    def _start(self) -> Any:
        wanted = {name: math.floor(1000 * self._share * count) / 1000 for name, count in RESOURCES.items()}
        actor = ClientAppActor.options(**wanted, **self._ray.settings()).remote()  # type: ignore[attr-defined]
        self._actors.add(actor)
        return actor

    def _replace(self, actor: Any, future: Any) -> None:
        """End an actor for good: its party may be served by another one next."""
        ray.kill(actor)
        ray.wait([future], timeout=DEATH_SECONDS)
        self._actors.discard(actor)
        self._idle.put(actor if self._closing else self._start())

    def abort(self) -> None:
        """End the actors with what they have in hand."""
        self._closing = True
        for actor in list(self._actors):
            ray.kill(actor)

    def terminate(self) -> None:
        """End Ray, as far as it is ours."""
        self._ray.end()


class _Mail:
    """The messages between Grid and engine, in the two calls that the engine makes of Flower's link state.

    Flower's own walks through all messages for each node, ten times a second: with hundreds of clients it does little
    else.
    """

    def __init__(self, nodes: Iterable[int]) -> None:
        self._waiting: dict[int, deque[Message]] = {node: deque() for node in nodes}
        self._replies: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def state(self) -> _Mail:
        """What Flower calls a state factory."""
        return self

    def send(self, message: Message) -> None:
        """Queue a message at its node."""
        self._waiting[message.metadata.dst_node_id].append(message)

    def get_message_ins(self, node_id: int, limit: int) -> list[Message]:
        """The oldest message that waits for a node; the engine asks for one at a time."""
        waiting = self._waiting[node_id]
        return [waiting.popleft()] if waiting else []

    def store_message_res(self, reply: Message) -> None:
        """Take a reply."""
        self._replies.put(reply)

    def reply(self, seconds: float) -> Message | None:
        """The oldest reply; waits for one so long."""
        try:
            return self._replies.get(timeout=seconds)
        except queue.Empty:
            return None


class SimulationGrid(FederationGrid):
    """A Grid with Flower's simulation engine in a thread behind it."""

    def __init__(
        self, configs: Mapping[str, Mapping[str, str]], *, run_id: int, log: Path, together: bool = False
    ) -> None:
        super().__init__(numbered(configs), run_id=run_id)
        self._mail = _Mail(self.nodes.values())
        parties = {node: party for party, node in self.nodes.items()}
        self._pool = RayPool(parties, self.notices, together=together)
        self._stop, self._failure, self._log = threading.Event(), "", _FlowerLog(log)
        stores = {}
        for party, node in self.nodes.items():
            stores[node] = DeprecatedRunInfoStore(node, dict(configs[party]))
            stores[node].register_context(run_id)
        place = Place(os.getcwd(), tuple(sys.path), str(log))
        self._engine = threading.Thread(target=self._run_engine, args=(place, stores), daemon=True)
        self._engine.start()

    @classmethod
    def open(
        cls, configs: Mapping[str, Mapping[str, str]], *, run_id: int, log: Path, together: bool = False
    ) -> SimulationGrid:
        """Start Ray and the engine; with `together` an actor a party, however few the cores."""
        return cls(configs, run_id=run_id, log=log, together=together)

    def _run_engine(self, place: Place, stores: dict[int, Any]) -> None:
        partitions = {node: i for i, node in enumerate(stores)}
        app, mail = cast(Callable[[], ClientApp], place), cast(LinkStateFactory, self._mail)
        try:
            run_api(app, lambda: self._pool, partitions, mail, stores, self._stop, VceMetrics())
        except Exception as error:  # Flower wraps whatever it was
            self._failure = str(error.__cause__ or error)

    def _send(self, message: Message) -> None:
        self._mail.send(message)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """At most one reply among `message_ids`; waits up to 50 ms.  Other replies are dropped."""
        reply = self._mail.reply(POLL)
        if reply is None and not self._engine.is_alive():
            raise JobFailed(f"Flower's simulation engine ended: {self._failure or 'no reason given'}")
        return [reply] if reply is not None and reply.metadata.reply_to_message_id in set(message_ids) else []

    def close(self) -> None:
        """End the actors, the engine and Ray."""
        self._stop.set()
        self._pool.abort()
        self._engine.join()
        self._log.close()


class _Ray:
    """A Ray of our own in a folder of its own, or the one that `RAY_ADDRESS` or the caller has."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._ours = not ray.is_initialized()
        if not self._ours:
            return
        address, before = os.environ.get("RAY_ADDRESS", ""), signal.getsignal(signal.SIGTERM)
        options: dict[str, Any] = {"address": address}
        if address:
            _knock(address)
        else:
            self._folder = Path(tempfile.mkdtemp(prefix="fedseal-ray-"))  # short: its sockets' paths are limited
            options = {
                "address": "local",
                "num_cpus": os.cpu_count(),
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
                "_temp_dir": str(self._folder),
            }
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except BaseException as error:  # it raises what its parts raise, and takes seconds that Ctrl-C may cut short
            self.end()
            if not isinstance(error, Exception):
                raise
            raise JobFailed(f"Ray did not start: {error}") from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)

    def settings(self) -> dict[str, Any]:
        """What an actor is told beyond its resources: another Ray's does not have this process's environment."""
        told = {DATA_VARIABLE: os.environ[DATA_VARIABLE]} if DATA_VARIABLE in os.environ else {}
        return {"runtime_env": {"env_vars": told}} if told and self._folder is None else {}

    def end(self) -> None:
        """Leave Ray; what was started for the run ends."""
        if self._ours:
            ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _knock(address: str) -> None:
    """Refuse (`UsageError`) a `RAY_ADDRESS` of the form host:port where nothing listens; Ray tries for minutes."""
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        return  # "auto", "ray://…"
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError):
        allowed = "the address of a running Ray cluster, or unset"
        raise UsageError(f"RAY_ADDRESS {address}: nothing answers there; allowed: {allowed}") from None


class _FlowerLog:
    """Flower's warnings go to the run's log for as long as it is open."""

    def __init__(self, path: Path) -> None:
        self._logger = logging.getLogger("flwr")
        self._handler = logging.FileHandler(path)
        self._before, self._logger.handlers = self._logger.handlers, [self._handler]

    def close(self) -> None:
        self._logger.handlers = self._before
        self._handler.close()


def _error(code: int, reason: str, message: Message) -> Message:
    return Message(Error(code, reason), reply_to=message)
