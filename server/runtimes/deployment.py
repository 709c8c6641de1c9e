"""The deployment runtime: a Flower `Grid` over a SuperLink, for the nodes of other organisations.

A message whose node is lost is sent again as long as patience lasts: a party that answered already sends the same
bytes, so nothing is done twice.  A SuperLink that is away is waited for; what it held it still holds when it is back.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import httpx
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode, SubStatus

from clients.runtime_api import MessageGone, Parcel, Polling, RuntimeApi, Task, TaskLost
from fl_core.errors import JobFailed
from server.runtimes.base import FederationGrid
from server.runtimes.exchange import Access

LINK_SECONDS = 120.0  # that the SuperLink may be away
PATIENCE = 60.0  # with a node once its loss is noted, which takes Flower up to 65 s: about two minutes in all
OFFLINE_PATIENCE = 10.0  # with one that was not connected when it was asked
NEEDED_PATIENCE = 120.0  # with one that the job cannot do without: after an outage Flower turns nodes away for a minute
ALIVE_SECONDS = 90.0  # a question that stood for so long was at a node that lived
PAUSE = 2.0
PARTS_LOOK = 0.2
PARTS_SECONDS = 240.0  # Flower forgets a half-sent reply after 180 s
AGAIN = frozenset(
    {
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.CLIENT_APP_CRASHED,
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    }
)
WORDS = {
    ErrorCode.NODE_UNAVAILABLE: "its node is not connected",
    ErrorCode.CLIENT_APP_CRASHED: "its executor died",
    ErrorCode.INVALID_FAB: "its node has another version of fedseal",
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION: "its node failed; the reason is in its log",
}


@dataclass(frozen=True)
class Link:
    """What the run's process needs of the SuperLink.

    Parameters
    ----------
    address, ca : host:port on loopback, and the authority's PEM.
    task : Flower's task of this run, taken by the coordinator.
    nodes : Flower's number of each party's node.
    exchange : the coordinator's, for jobs whose parties talk to each other.
    least : nodes without which the job cannot go on.
    """

    address: str
    ca: bytes
    task: Task
    nodes: dict[str, int]
    exchange: Access | None = None
    least: int = 0


@dataclass
class _Question:
    """A message that waits for its answer, as it can be sent again.

    Parameters
    ----------
    until : its time to live.
    patience : seconds from `lost`, the first failure since its node was last known to live.
    sent, again : when it was sent last, and is to be sent again.
    """

    name: str
    message: Message
    until: float
    patience: float
    sent: float = 0.0
    lost: float | None = None
    again: float = 0.0


def _patience(spare: int, *, connected: bool) -> float:
    """Seconds, where so many nodes more than the job needs are connected."""
    if spare < (1 if connected else 0):
        return NEEDED_PATIENCE
    return PATIENCE if connected else OFFLINE_PATIENCE


class DeploymentGrid(FederationGrid):
    """A Grid over the nodes of a deployment, within one Flower task."""

    def __init__(self, link: Link) -> None:
        self._api = RuntimeApi(link.address, ca=link.ca, secret=None, patience=LINK_SECONDS)
        self._flower_run = link.task.run_id
        self._least = link.least
        self._names = {number: party for party, number in link.nodes.items()}
        self._asked: dict[str, _Question] = {}
        self._later: list[_Question] = []
        self._untaken: list[_Question] = []
        self._arrived: deque[tuple[str, Parcel]] = deque()
        self._polling = Polling(longest=0.5)
        self._stack = ExitStack()
        self._stack.callback(self._api.close)
        try:
            self._api.begin(link.task)
            self._stack.enter_context(self._api.beating())
        except httpx.HTTPError as error:
            self._stack.close()
            self._failed(error)
        super().__init__(link.nodes, run_id=link.task.run_id)

    @classmethod
    def open(
        cls, configs: Mapping[str, Mapping[str, str]], *, run_id: int, log: Path, together: bool = False
    ) -> DeploymentGrid:
        """Nodes are not started from here."""
        raise JobFailed("a deployment's nodes are started by their owners; submit the job to a coordinator")

    def _failed(self, error: httpx.HTTPError) -> NoReturn:
        if isinstance(error, httpx.HTTPStatusError):
            raise JobFailed(f"the SuperLink refused a call ({error.response.status_code}); --resume goes on") from error
        raise JobFailed(f"the SuperLink was away for more than {LINK_SECONDS:g} s; --resume goes on") from error

    # ---- out

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; returns ids of ours, which stay when a message is sent again."""
        try:
            online, names = self._api.nodes_online(), []
            spare = len(online.intersection(self._names)) - self._least
            for message in messages:
                self._sent += 1
                now, connected = time.monotonic(), message.metadata.dst_node_id in online
                question = _Question(
                    f"{self._sent:064x}",
                    message,
                    now + message.metadata.ttl,
                    _patience(spare, connected=connected),
                )
                self._post(question)
                names.append(question.name)
        except httpx.HTTPError as error:
            self._failed(error)
        self._polling.busy()
        return names

    def _send(self, message: Message) -> None:
        self.push_messages([message])

    def _post(self, question: _Question) -> None:
        """Send it, as a new message of Flower's with the time that is left."""
        held, left = question.message, max(1.0, question.until - time.monotonic())
        meta = held.metadata
        message = Message(held.content, meta.dst_node_id, meta.message_type, ttl=left, group_id=meta.group_id)
        question.sent = time.monotonic()
        number = self._api.send(message, self._flower_run)
        if number:
            self._asked[number] = question
        else:  # Flower does not know the node, or not any more
            self._untaken.append(question)

    # ---- in

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """At most one reply among `message_ids`; waits up to half a second.  Other replies are dropped."""
        if self._api.lost:
            raise JobFailed("Flower gave this run up (its SuperLink was away too long); --resume goes on")
        wanted = set(message_ids)
        try:
            self._forget(wanted)
            self._ask_again()
            if self._asked:
                self._arrived.extend(self._api.arrived(list(self._asked)))
            if not self._arrived and not self._untaken:
                self._polling.sleep()
                return []
            self._polling.busy()
            reply = self._refused(self._untaken.pop(0)) if self._untaken else self._next()
        except TaskLost:
            return []
        except httpx.HTTPError as error:
            self._failed(error)
        return [reply] if reply is not None and reply.metadata.reply_to_message_id in wanted else []

    def _forget(self, wanted: set[str]) -> None:
        """Nobody waits any more for what is not asked for."""
        self._asked = {number: q for number, q in self._asked.items() if q.name in wanted}
        self._later = [q for q in self._later if q.name in wanted]
        self._untaken = [q for q in self._untaken if q.name in wanted]

    def _ask_again(self) -> None:
        now = time.monotonic()
        due = [q for q in self._later if q.again <= now]
        self._later = [q for q in self._later if q.again > now]
        for question in due:
            self._post(question)

    def _next(self) -> Message | None:
        """The oldest reply; None where it is not whole yet, or where its question is asked again or forgotten."""
        number, parcel = self._arrived.popleft()
        question = self._asked.get(number)
        if question is None:
            return None
        try:
            reply = self._api.advance(parcel, self._flower_run, PARTS_LOOK)
            if reply is None:  # a slow line; others first
                if time.monotonic() - parcel.began > PARTS_SECONDS:
                    raise MessageGone
                self._arrived.append((number, parcel))
                return None
        except MessageGone:
            reply = Message(Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ""), reply_to=question.message)
        del self._asked[number]
        if reply.has_error():
            return self._failure(question, reply, noted=parcel.began)
        return self._named(question, reply)

    def _refused(self, question: _Question) -> Message | None:
        """As for a node that is not connected."""
        reply = Message(Error(ErrorCode.NODE_UNAVAILABLE, ""), reply_to=question.message)
        return self._failure(question, reply, noted=question.sent)

    def _failure(self, question: _Question, reply: Message, *, noted: float) -> Message | None:
        """The error, or None where its question is asked again."""
        now, code = time.monotonic(), reply.error.code
        if noted - question.sent > ALIVE_SECONDS:
            question.lost, question.patience = None, PATIENCE
        if question.lost is None:
            question.lost = now
        if code in AGAIN and now + PAUSE < min(question.lost + question.patience, question.until):
            question.again = now + PAUSE
            self._later.append(question)
            return None
        self.notices[self._names[question.message.metadata.dst_node_id]] = WORDS.get(code, "")
        return self._named(question, reply)

    def _named(self, question: _Question, reply: Message) -> Message:
        """A reply under the name of its question."""
        reply.metadata.__dict__["_reply_to_message_id"] = question.name
        return reply

    def close(self) -> None:
        """End the Flower run."""
        try:
            status = SubStatus.FAILED if self.failed else SubStatus.COMPLETED
            if not self._api.lost:
                self._api.finish(status=status, details="")
        except httpx.HTTPError as error:
            self.notices[""] = f"the SuperLink did not take the end of the run ({type(error).__name__})"
        finally:
            self._stack.close()
