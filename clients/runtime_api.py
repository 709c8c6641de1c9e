"""Flower's Runtime API as an executor of ours uses it: take a task, read its messages, answer, finish.

A SuperLink and a SuperNode in process isolation offer tasks to whoever signs with their secret; everything after that
goes by the task's own token.  Flower's helpers for this stop the process on a refused call or a lost task, so they are
not used.  All private names of Flower on this path are imported here only.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
from flwr.app import Context, Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import context_from_proto, context_to_proto, fab_from_proto, message_to_proto, run_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    GetNodesRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TASK_TOKEN_HEADER, TaskType
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    ObjectUnavailableError,
    inflate_object_from_contents,
    push_objects,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClientInterceptor, ProtobufRequestContext
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

CLIENT_TASK, SERVER_TASK = TaskType.CLIENT_APP, TaskType.SERVER_APP
BEAT_SECONDS = 10.0  # Flower gives a task up after 60 s of silence
PUSHES = 3
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_log = logging.getLogger("fedseal.runtime")


@dataclass(frozen=True)
class Task:
    """A task that is ours: `token` is its password."""

    task_id: int
    run_id: int
    token: str

    def __repr__(self) -> str:
        return f"Task({self.task_id}, run {self.run_id})"


@dataclass(frozen=True)
class TaskInput:
    """What a task comes with; `bundle` is what Flower shipped, not unpacked."""

    context: Context
    run_id: int
    bundle: bytes


class RuntimeApi:
    """One connection to a Runtime API; one task at a time.

    Parameters
    ----------
    address : host:port.
    ca : PEM of the authority behind its certificate; None: plain HTTP, on loopback only.
    secret : signs `acquire`; a holder of a token does not need it.
    patience : seconds that a lost connection is tried again before the call fails.
    """

    def __init__(self, address: str, *, ca: bytes | None, secret: bytes | None, patience: float) -> None:
        self._token, self._lost = "", threading.Event()
        interceptors: list[ProtobufClientInterceptor] = [
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            self,
        ]
        if secret is not None:
            interceptors.insert(1, SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={_ACQUIRE}))
        retry = RetryInvoker(
            lambda: exponential(base_delay=0.1, max_delay=2),
            httpx.TransportError,
            max_tries=None,
            max_time=patience,
        )
        self._client = RuntimeHttpClient.from_server_address(address, ca is None, ca, interceptors, retry_invoker=retry)
        self._node = Node()

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Show the task's token with every call but the one that asks for a task."""
        if context.rpc_method != _ACQUIRE:
            context.request.headers[TASK_TOKEN_HEADER] = self._token
        return call_next(context)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    # ---- tasks

    def acquire(self, kind: str) -> Task | None:
        """The oldest task of this kind that nobody has taken."""
        got = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[kind]))
        return Task(got.task.task_id, got.task.run_id, got.token) if got.token else None

    def begin(self, task: Task) -> TaskInput:
        """Start working on a task: from here on messages made in this process are its own."""
        self._token = task.token
        self._lost.clear()
        got = self._client.PullTaskInput(PullTaskInputRequest())
        context, run = context_from_proto(got.context), run_from_proto(got.run)
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = got.task_id, run.run_id, context.node_id
        self._node = Node(node_id=context.node_id)
        return TaskInput(context, run.run_id, fab_from_proto(got.fab).content)

    def finish(self, *, status: str, details: str, context: Context | None = None) -> None:
        """End the task: `status` is Flower's sub-status, `details` is stored at the SuperLink or SuperNode."""
        proto = None if context is None else context_to_proto(context)
        self._client.PushTaskOutput(PushTaskOutputRequest(context=proto, sub_status=status, details=details))

    def beat(self) -> bool:
        """Say that the task is alive; False when Flower has given it up."""
        return bool(self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success)

    @property
    def lost(self) -> bool:
        """Whether Flower gave the task up, as far as a heartbeat has told."""
        return self._lost.is_set()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Say so from a thread for as long as the block lasts; see `lost`."""
        done = threading.Event()

        def run() -> None:
            while not done.wait(BEAT_SECONDS):
                try:
                    if not self.beat():
                        return self._lost.set()
                except httpx.HTTPError as error:
                    _log.warning("no heartbeat: %s", type(error).__name__)
            return None

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(BEAT_SECONDS)

    # ---- messages

    def nodes_online(self) -> set[int]:
        """Node ids that the SuperLink counts as connected."""
        return {node.node_id for node in self._client.GetNodes(GetNodesRequest()).nodes}

    def send(self, message: Message, run_id: int) -> str:
        """Push a message with what it carries; returns its id, empty when it was not taken.

        Content that the other side holds already (a sum that goes to every party) is not sent again.  It stops taking
        a push whose next part comes after three minutes, or comes twice because its answer was lost: the message is
        pushed again, which sends what is missing.  Raises `httpx.WriteError` where that does not help.
        """
        message.metadata.__dict__["_message_id"] = message.object_id
        proto = message_to_proto(remove_content_from_message(message))
        with no_object_id_recompute():
            objects, tree = get_all_nested_objects(message), get_object_tree(message)
            asked = PushAppMessagesRequest(messages_list=[proto], message_object_trees=[tree])
            for _ in range(PUSHES):
                got = self._client.PushMessages(asked)
                push = make_push_object_fn_protobuf(self._client.PushObject, self._node, run_id, got.session_id)
                try:
                    push_objects(objects, push, object_ids_to_push=set(got.objects_to_push), keep_objects=True)
                except ObjectPushError:
                    continue
                return next(iter(got.message_ids), message.metadata.message_id)
        raise httpx.WriteError(f"the other side stopped taking a message, {PUSHES} times")

    def arrived(self, message_ids: Iterable[str] = ()) -> list[tuple[str, Parcel]]:
        """Messages (of an executor), or replies to these messages, with the id they answer; each is told once."""
        got = self._client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
        pairs = zip(got.messages_list, got.message_object_trees, strict=False)  # a SuperNode tells the trees alone
        answered = [message.metadata.reply_to_message_id for message, _ in pairs]
        answered += [""] * (len(got.message_object_trees) - len(answered))
        return [(name, Parcel(tree)) for name, tree in zip(answered, got.message_object_trees, strict=True)]

    def advance(self, parcel: Parcel, run_id: int, seconds: float) -> Message | None:
        """Fetch what has come of a message; the message once it is whole, and confirmed.

        Raises `MessageGone` where the rest will not come, `TaskLost` where nobody waits for it any more.
        """
        pull = make_pull_object_fn_protobuf(self._client.PullObject, self._node, run_id)
        end = time.monotonic() + seconds
        for part in parcel.missing():
            while part not in parcel.contents:
                if self._lost.is_set():
                    raise TaskLost
                try:
                    parcel.contents[part] = pull(part)
                except ObjectUnavailableError:
                    if time.monotonic() > end:
                        return None
                    time.sleep(0.05)
                except ObjectPullError:
                    raise MessageGone from None
        name = parcel.tree.object_id
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self._node, run_id=run_id, message_object_id=name)
        )
        message = inflate_object_from_contents(name, parcel.contents)
        assert isinstance(message, Message)
        message.metadata.__dict__["_message_id"] = name
        return message


class TaskLost(Exception):
    """Flower has given the task up."""


class MessageGone(Exception):
    """The other side no longer has the message."""


@dataclass
class Parcel:
    """A message that comes in parts: its tree, and the parts by their ids that are here."""

    tree: ObjectTree
    contents: dict[str, bytes] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def missing(self) -> list[str]:
        """Parts that are still to come."""
        return [part.object_id for part in iterate_object_tree(self.tree) if part.object_id not in self.contents]


class Polling:
    """How long to wait between two looks: short while something happens, up to a second when nothing does."""

    def __init__(self, *, shortest: float = 0.05, longest: float = 1.0) -> None:
        self._shortest, self._longest, self._since = shortest, longest, time.monotonic()

    def busy(self) -> None:
        """Something happened."""
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """A twentieth of the time for which nothing has happened, within the bounds."""
        return max(self._shortest, min(self._longest, (time.monotonic() - self._since) / 20))

    def sleep(self) -> None:
        """Wait."""
        time.sleep(self.seconds)
