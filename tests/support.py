"""A federation within one process: a Grid that calls the ClientApp directly, with a hook on every message."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

import clients.app
from fl_core.config import load_job
from fl_core.home import Home
from fl_core.job import Job
from fl_core.messages import COORDINATOR, PACKET
from fl_core.records import RoundRecord
from fl_core.trust.identity import CardBook, Identity
from fl_core.trust.ledger import Ledger
from server import orders
from server.app import activated, app, outcome
from server.recorders.ledger import LedgerRecorder
from server.runtimes.exchange import local_host
from strategies.coordination import Coordination, Event
from strategies.rounds import Outcome

Hook = Callable[[str, str, dict[str, bytes]], dict[str, bytes] | None]


def as_is(party: str, step: str, arrays: dict[str, bytes]) -> dict[str, bytes] | None:
    """The hook that changes nothing."""
    return arrays


@dataclass
class InlineGrid(Grid):
    """Answers a message when it is pulled.  `request` and `reply` change the arrays, or return None to lose them."""

    configs: dict[int, dict[str, str]]
    request: Hook = as_is
    reply: Hook = as_is
    seen: list[tuple[str, str, bytes]] = field(default_factory=list)
    notices: dict[str, str] = field(default_factory=dict)
    _queue: dict[str, Message] = field(default_factory=dict)
    _count: int = 0

    @property
    def run(self) -> Any:
        raise AttributeError

    def set_run(self, run: Any) -> None:
        raise AttributeError

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self):
        return list(self.configs)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            self._count += 1
            message.metadata.__dict__["_message_id"] = str(self._count)
            self._queue[str(self._count)] = message
            ids.append(str(self._count))
        return ids

    def pull_messages(self, message_ids):
        for number in message_ids:
            if number in self._queue:
                reply = self._answer(self._queue.pop(number))
                return [] if reply is None else [reply]
        return []

    def send_and_receive(self, messages, *, timeout=None):
        return [r for i in self.push_messages(messages) for r in self.pull_messages([i])]

    def _answer(self, message: Message) -> Message | None:
        node = message.metadata.dst_node_id
        party, step = self.configs[node]["party"], message.metadata.message_type
        message = message_from_proto(ProtoMessage.FromString(message_to_proto(message).SerializeToString()))
        if not self._change(message, self.request, party, step):
            return Message(Error(8, "lost"), reply_to=message)
        context = Context(run_id=1, node_id=node, node_config=self.configs[node], state=RecordDict(), run_config={})
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, node, 1
        reply = clients.app.app(message, context)
        if text := clients.app.last_failure():
            self.notices[party] = text
        wire = message_to_proto(reply).SerializeToString()
        self.seen.append((party, step, wire))
        reply = message_from_proto(ProtoMessage.FromString(wire))
        if not self._change(reply, self.reply, party, step):
            return Message(Error(8, "lost"), reply_to=message)
        return reply

    def _change(self, message: Message, hook: Hook, party: str, step: str) -> bool:
        record = message.content.array_records[PACKET]
        arrays = hook(party, step, {k: a.data for k, a in record.items()})
        if arrays is None:
            return False
        from flwr.app import Array, ArrayRecord

        message.content[PACKET] = ArrayRecord(
            {k: Array("uint8", (len(v),), "fedseal.bytes", v) for k, v in arrays.items()}
        )
        return True


@dataclass
class ThreadGrid(InlineGrid):
    """Answers each message in a thread of its own, as parties that talk to each other must be."""

    _done: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)

    def push_messages(self, messages):
        ids = super().push_messages(messages)
        for number in ids:
            message = self._queue.pop(number)
            threading.Thread(target=lambda m=message: self._done.put(self._answer(m)), daemon=True).start()
        return ids

    def pull_messages(self, message_ids):
        try:
            reply = self._done.get(timeout=0.05)
        except queue.Empty:
            return []
        return [reply] if reply.metadata.reply_to_message_id in message_ids else []


class Memory:
    """A recorder that remembers."""

    def __init__(self, inner: LedgerRecorder) -> None:
        self.inner, self.records = inner, []

    def record(self, record: RoundRecord) -> None:
        self.inner.record(record)
        self.records.append(record)


class Federation:
    """One home; each call of `run` runs a job in it."""

    def __init__(self, path: Path) -> None:
        self.home = Home.open(path / "home")
        self.out = path / "out"
        self.identity = Identity.load_or_create(self.home.coordinator, COORDINATOR)
        self.engineer = orders.person(self.home, orders.ENGINEER)
        self.events: list[Event] = []
        self.records: list[RoundRecord] = []
        self.grid: InlineGrid | None = None

    def ledger(self) -> Ledger:
        return Ledger.open(self.home.ledger, self.identity)

    def run(
        self, job: Job | dict[str, Any], *, run: str = "run-1", request: Hook = as_is, reply: Hook = as_is,
        stopped: Callable[[], bool] = lambda: False, progress: Callable[[Event], None] | None = None,
    ) -> Outcome:  # fmt: skip
        job = job if isinstance(job, Job) else load_job(job)
        names = [p.name for p in job.parties] + list(job.train.receivers)
        nodes = {name: i + 2 for i, name in enumerate(names)}
        kind = ThreadGrid if job.is_session else InlineGrid
        self.grid = kind({nodes[n]: self._config(job, n, run) for n in names}, request, reply)
        clients.app._participants.clear()
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

        def tell(event: Event) -> None:
            self.events.append(event)
            if progress:
                progress(event)

        with self.ledger() as ledger, local_host() if job.is_session else nullcontext() as host:
            memory = Memory(LedgerRecorder(ledger, self.identity, run))
            workdir = self.home.runs / run
            workdir.mkdir(parents=True, exist_ok=True)
            co = Coordination(
                job=job, run=run, nodes=nodes, identity=self.identity,
                cards=CardBook(self.home.coordinator / "cards.json"), ledger=ledger, workdir=workdir,
                recorder=memory, progress=tell, stopped=stopped, step_timeout=20.0, host=host,
                order=orders.of_run(workdir, lambda: orders.local(self.home, self.engineer, job)),
            )  # fmt: skip
            try:
                with activated(co):
                    app(
                        self.grid,
                        Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={"run": run}),
                    )
                return outcome(run)
            finally:
                self.records += memory.records

    def _config(self, job: Job, name: str, run: str) -> dict[str, str]:
        return {
            "party": name,
            "home": str(self.home.party(name)),
            "out": str(self.out),
            "base": str(job.base),
            "run": run,
            "own": json.dumps(job.own_part(name)),
        }

    def entries(self, kind: str | None = None, run: str | None = None) -> list[Any]:
        with self.ledger() as ledger:
            return list(ledger.entries(kind=kind, run=run))


def digits(**changes: Any) -> dict[str, Any]:
    """A small job: 3 parties, logistic, TEST_ONLY encryption unless changed (`train__rounds=2`)."""
    job: dict[str, Any] = {
        "kind": "horizontal",
        "name": "test",
        "seed": 3,
        "dataset": {"name": "digits", "parties": 3},
        "model": {"name": "logistic"},
        "train": {"rounds": 3, "learning_rate": 0.5, "batch_size": 64},
        "encryption": {"profile": "CKKS_2048"},
    }
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        (job.setdefault(section, {}) if section else job)[key] = value
    return job
