"""The local runtime: a Flower `Grid` over worker processes forked from one preloaded server.

Every message passes through its serialised form, as in a deployment.  A worker gets its next message only when it has
answered the last, so at most one reply a worker is in memory.
A worker that dies fails its message and is forked again for the next; one that is silent past a message's time to live
is killed first.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from flwr.app import Error, Message

from fl_core.errors import JobFailed
from server.runtimes.base import POLL, WORKER_DIED, WORKER_SILENT, FederationGrid, numbered
from server.runtimes.warm import on_its_own
from server.runtimes.wire import from_bytes, to_bytes
from server.runtimes.worker import NODE, Node, serve


class _Worker:
    """One process and the messages of the parties that live in it.

    A thread of its own sends a message and reads the answer, so that a process that stops in the middle of either
    holds up nobody; what it read it puts into `answers`.
    """

    def __init__(self, nodes: list[Node], run_id: int, log: Path, answers: Answers) -> None:
        self.nodes, self.run_id, self.log, self.answers = nodes, run_id, log, answers
        self.queue: deque[Message] = deque()
        self.busy: Message | None = None
        self.deadline = 0.0
        self.process: ForkServerProcess | None = None
        self.conn: Connection | None = None
        self.talk: threading.Thread | None = None

    def start(self) -> None:
        if self.process is None or not self.process.is_alive():
            self.kill()
            context = multiprocessing.get_context("forkserver")
            ours, theirs = context.Pipe()
            self.process = context.Process(
                target=serve, args=(theirs, self.nodes, self.run_id, str(self.log)), daemon=True
            )
            try:
                with on_its_own():
                    self.process.start()
            except (EOFError, OSError) as error:
                self.process = None
                raise JobFailed(f"the fork server did not start a worker ({type(error).__name__})") from error
            theirs.close()
            self.conn = ours

    def send_next(self) -> None:
        """Hand over the next message if idle."""
        if self.busy is None and self.queue:
            self.start()
            self.busy = self.queue.popleft()
            self.deadline = time.monotonic() + self.busy.metadata.ttl
            frame = NODE.pack(self.busy.metadata.dst_node_id) + to_bytes(self.busy)
            self.talk = threading.Thread(target=self._talk, args=(self.conn, self.busy, frame), daemon=True)
            self.talk.start()

    def _talk(self, conn: Connection, message: Message, frame: bytes) -> None:
        try:
            conn.send_bytes(frame)
            self.answers.put((self, message, conn.recv_bytes(), conn.recv_bytes().decode()))
        except (EOFError, OSError):  # the process died
            self.answers.put((self, message, b"", ""))

    def give_up(self, code: int, why: str) -> Message:
        """End the process and answer the message in hand with a Flower error."""
        assert self.busy is not None
        message, self.busy = self.busy, None
        self.kill()
        return Message(Error(code, why), reply_to=message)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join(10)
            self.process = None
        if self.talk is not None:
            self.talk.join(10)  # the pipe is broken now, so it ends
            self.talk = None
        if self.conn is not None:
            self.conn.close()
            self.conn = None


Answers = queue.SimpleQueue[tuple[_Worker, Message, bytes, str]]


class LocalGrid(FederationGrid):
    """Flower's Grid within one process tree.

    Parameters
    ----------
    nodes : one per party.
    workers : processes to share among them.
    run_id : Flower's number of the run.
    log : file that takes what the workers print.
    """

    def __init__(self, nodes: list[Node], *, workers: int, run_id: int, log: Path) -> None:
        super().__init__({n.party: n.node_id for n in nodes}, run_id=run_id)
        self._names = {n.node_id: n.party for n in nodes}
        count = max(1, min(workers, len(nodes)))
        self._answers: Answers = queue.SimpleQueue()
        self._workers = [_Worker(nodes[i::count], run_id, log, self._answers) for i in range(count)]
        self._home = {n.node_id: worker for worker in self._workers for n in worker.nodes}
        for worker in self._workers:
            worker.start()

    @classmethod
    def open(
        cls, configs: Mapping[str, Mapping[str, str]], *, run_id: int, log: Path, together: bool = False
    ) -> LocalGrid:
        """A node a party, and the default number of workers; with `together` one each."""
        nodes = [Node(number, party, dict(configs[party])) for party, number in numbered(configs).items()]
        workers = len(nodes) if together else default_workers(len(nodes))
        return cls(nodes, workers=workers, run_id=run_id, log=log)

    @property
    def pids(self) -> dict[str, int]:
        """Which process serves which party, for those who watch or test."""
        return {n.party: w.process.pid or 0 for w in self._workers if w.process for n in w.nodes}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages at their workers; returns their ids."""
        ids = super().push_messages(messages)
        self._pump()
        return ids

    def _send(self, message: Message) -> None:
        self._home[message.metadata.dst_node_id].queue.append(message)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """At most one finished reply among `message_ids`; waits up to 50 ms.  Other replies are dropped."""
        reply = self._next()
        self._pump()
        return [reply] if reply is not None and reply.metadata.reply_to_message_id in set(message_ids) else []

    def _next(self) -> Message | None:
        """The next answer, or a Flower error for a worker that died or is silent past its message's time to live."""
        for worker in self._workers:
            if worker.busy is not None and time.monotonic() > worker.deadline:
                return worker.give_up(WORKER_SILENT, "no answer in time; the worker was ended")
        try:
            worker, message, data, notice = self._answers.get(timeout=POLL)
        except queue.Empty:
            return None
        if worker.busy is not message:  # given up on before it came
            return None
        if not data:
            return worker.give_up(WORKER_DIED, "the worker process died")
        worker.busy = None
        if notice:
            self.notices[self._names[message.metadata.dst_node_id]] = notice
        return from_bytes(data)

    def _pump(self) -> None:
        for worker in self._workers:
            worker.send_next()

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.kill()


def default_workers(parties: int) -> int:
    """A process a party up to four, or up to the number of cores where there are more."""
    return min(parties, max(4, os.cpu_count() or 1))
