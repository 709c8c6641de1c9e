"""Flower's Runtime API over a real connection to a stand-in: lost tasks, gone messages, refusals, a link that is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.common.serde import context_to_proto, fab_to_proto, message_to_proto, run_to_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    AcquireTaskResponse,
    GetNodesResponse,
    PullAppMessagesResponse,
    PullTaskInputResponse,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
    PushTaskOutputRequest,
    PushTaskOutputResponse,
    SendTaskHeartbeatResponse,
)
from flwr.proto.task_pb2 import Task as ProtoTask
from flwr.supercore.auth import derive_auth_secret, verify_superexec_request
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from clients import runtime_api
from clients.runtime_api import CLIENT_TASK, MessageGone, Parcel, Polling, RuntimeApi, Task, TaskLost
from fl_core.processes import free_port

Answer = Callable[[bytes], Any]
SECRET = b"s" * 32
OURS = Task(5, 9, "password-of-the-task")


class Link:
    """A Runtime API as far as a test needs one: it keeps objects, and answers else as it is told.

    `answers` holds what a call gives: a message, a status code, or a function of the request's bytes.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            "pull-task-input": task_input(),
            "push-task-output": PushTaskOutputResponse(),
            "send-task-heartbeat": SendTaskHeartbeatResponse(success=True),
            "push-messages": self._push_messages,
            "push-object": self._push_object,
            "pull-messages": lambda _: PullAppMessagesResponse(message_object_trees=self.trees),
            "pull-object": self._pull_object,
            "confirm-message-received": ConfirmMessageReceivedResponse(),
        }
        self.calls: list[tuple[str, dict[str, str], bytes]] = []
        self.objects: dict[str, bytes] = {}
        self.known: set[str] = set()
        self.trees: list[Any] = []
        self.dropped = 0  # connections to close without an answer
        link = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body are two writes: 40 ms a call otherwise

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if link.dropped:
                    link.dropped -= 1
                    self.close_connection = True
                    return
                name = self.path.rpartition("/")[2]
                link.calls.append((name, {k.lower(): v for k, v in self.headers.items()}, body))
                got = link.answers[name]
                got = got(body) if callable(got) else got
                data = b"" if isinstance(got, int) else got.SerializeToString()
                self.send_response(got if isinstance(got, int) else 200)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Be quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def called(self, name: str) -> list[bytes]:
        """Bodies of the calls of a name."""
        return [body for called, _, body in self.calls if called == name]

    def _push_messages(self, body: bytes) -> PushAppMessagesResponse:
        self.trees = list(PushAppMessagesRequest.FromString(body).message_object_trees)
        wanted = {part.object_id for tree in self.trees for part in iterate_object_tree(tree)}
        return PushAppMessagesResponse(message_ids=["its-id"], objects_to_push=wanted - self.known, session_id="s")

    def _push_object(self, body: bytes) -> PushObjectResponse:
        pushed = PushObjectRequest.FromString(body)
        self.objects[pushed.object_id] = pushed.object_content
        return PushObjectResponse(stored=True)

    def _pull_object(self, body: bytes) -> PullObjectResponse:
        content = self.objects.get(PullObjectRequest.FromString(body).object_id, b"")
        return PullObjectResponse(object_found=True, object_available=bool(content), object_content=content)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def task_input() -> PullTaskInputResponse:
    context = Context(run_id=9, node_id=4, node_config={}, state=RecordDict(), run_config={"run": "00" * 8})
    fab = Fab("", b"what Flower shipped", {})
    run = run_to_proto(Run.create_empty(9))
    return PullTaskInputResponse(context=context_to_proto(context), run=run, fab=fab_to_proto(fab), task_id=5)


@pytest.fixture
def link():
    made = Link()
    yield made
    made.close()


@pytest.fixture
def api(link):
    made = RuntimeApi(link.address, ca=None, secret=SECRET, patience=0.3)
    yield made
    made.close()


@pytest.fixture
def working(api):
    """An API that has begun a task."""
    api.begin(OURS)
    return api


def message(**blobs: bytes) -> Message:
    record = ArrayRecord({k: Array("uint8", (len(v),), "bytes", v) for k, v in blobs.items()})
    return Message(RecordDict({"packet": record}), 2, "train.round", ttl=60.0, group_id="3")


def arrive(api: RuntimeApi, link: Link, sent: Message) -> Parcel:
    """The same message as it arrives, none of its parts here yet."""
    api.send(sent, 9)
    ((_, parcel),) = api.arrived()
    return parcel


# ---- tasks


def test_nothing_to_do_is_no_task(api, link):
    link.answers["acquire-task"] = AcquireTaskResponse()
    assert api.acquire(CLIENT_TASK) is None


def test_a_task_is_asked_for_by_its_kind_and_with_the_secrets_signature(api, link):
    link.answers["acquire-task"] = AcquireTaskResponse(task=ProtoTask(task_id=5, run_id=9), token=OURS.token)
    assert api.acquire(CLIENT_TASK) == OURS
    ((_, headers, body),) = link.calls
    asked = AcquireTaskRequest.FromString(body)
    assert list(asked.supported_task_types) == ["flwr-clientapp"]

    class AnyNonce:
        def reserve_nonce(self, namespace: str, nonce: str, expires_at: float) -> bool:
            return True

    def holds(secret: bytes) -> bool:  # as Flower's own server checks it
        return verify_superexec_request(
            request=asked,
            method="/flwr.proto.Runtime/AcquireTask",
            auth_secret=derive_auth_secret(secret),
            timestamp_raw=headers["flwr-superexec-ts"],
            nonce=headers["flwr-superexec-nonce"],
            body_sha256_header=headers["flwr-superexec-body-sha256"],
            signature=headers["flwr-superexec-signature"],
            nonce_store=AnyNonce(),
        )

    assert holds(SECRET) and not holds(b"x" * 32)


def test_the_tasks_password_goes_with_every_call_but_the_next_tasks(working, link):
    link.answers["acquire-task"] = AcquireTaskResponse()
    link.answers["get-nodes"] = GetNodesResponse(nodes=[NodeInfo(node_id=3), NodeInfo(node_id=8)])
    assert working.nodes_online() == {3, 8}
    working.beat()
    working.acquire(CLIENT_TASK)
    shown = {name: headers.get("flwr-task-token") for name, headers, _ in link.calls}
    assert shown.pop("acquire-task") is None
    assert set(shown.values()) == {OURS.token} and len(shown) == 3
    signed = [name for name, headers, _ in link.calls if "flwr-superexec-signature" in headers]
    assert signed == ["acquire-task"]


def test_a_task_in_a_log_does_not_show_its_password():
    assert OURS.token not in f"{OURS!r} {OURS}"


def test_what_flower_shipped_is_handed_over_as_it_came(api):
    given = api.begin(OURS)
    assert (given.bundle, given.run_id, given.context.run_config) == (b"what Flower shipped", 9, {"run": "00" * 8})
    assert (TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id) == (5, 9, 4)


def test_the_end_of_a_task_is_told_with_its_status(working, link):
    working.finish(status="failed", details="its coordinator is gone")
    (body,) = link.called("push-task-output")
    told = PushTaskOutputRequest.FromString(body)
    assert (told.sub_status, told.details, told.HasField("context")) == ("failed", "its coordinator is gone", False)


# ---- refusals, and a link that is away


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_refused_call_is_an_error_of_that_call_and_not_the_end_of_the_process(api, link, status):
    """Flower's own client interrupts its process on 401 and waits on 503."""
    link.answers["acquire-task"] = status
    with pytest.raises(httpx.HTTPStatusError) as refused:
        api.acquire(CLIENT_TASK)
    assert refused.value.response.status_code == status
    assert len(link.calls) == 1, "a refusal is not tried again"


def test_a_lost_connection_is_tried_again_for_as_long_as_patience_lasts(link):
    patient = RuntimeApi(link.address, ca=None, secret=None, patience=30)
    link.dropped = 2
    assert patient.beat() is True
    patient.close()
    began = time.monotonic()
    nobody = RuntimeApi(f"127.0.0.1:{free_port()}", ca=None, secret=None, patience=0.2)
    with pytest.raises(httpx.ConnectError):
        nobody.beat()
    nobody.close()
    assert 0.1 < time.monotonic() - began < 5


def test_an_answer_that_is_no_message_is_not_taken_for_one(api, link):
    class Garbage:
        def SerializeToString(self) -> bytes:
            return b"\xff" * 9

    link.answers["acquire-task"] = Garbage()
    with pytest.raises(ValueError, match="payload"):
        api.acquire(CLIENT_TASK)


# ---- heartbeats


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited 10 s"
        time.sleep(0.005)


def test_a_task_that_flower_gave_up_is_lost_until_the_next_one_begins(working, link, monkeypatch):
    monkeypatch.setattr(runtime_api, "BEAT_SECONDS", 0.01)
    link.answers["send-task-heartbeat"] = SendTaskHeartbeatResponse(success=False)
    assert not working.lost
    with working.beating():
        until(lambda: working.lost)
    working.begin(OURS)
    assert not working.lost


def test_a_heartbeat_that_fails_is_not_a_lost_task(working, link, monkeypatch):
    monkeypatch.setattr(runtime_api, "BEAT_SECONDS", 0.01)
    link.answers["send-task-heartbeat"] = 503
    with working.beating():
        until(lambda: len(link.called("send-task-heartbeat")) > 2)
        link.answers["send-task-heartbeat"] = SendTaskHeartbeatResponse(success=True)
        before = len(link.called("send-task-heartbeat"))
        until(lambda: len(link.called("send-task-heartbeat")) > before + 1)
    assert not working.lost


def test_nobody_beats_for_a_task_that_is_over(working, link, monkeypatch):
    monkeypatch.setattr(runtime_api, "BEAT_SECONDS", 0.02)
    with pytest.raises(KeyError), working.beating():
        until(lambda: link.called("send-task-heartbeat"))
        raise KeyError
    after = len(link.called("send-task-heartbeat"))
    time.sleep(0.1)
    assert len(link.called("send-task-heartbeat")) == after


# ---- messages


def test_a_message_arrives_as_it_was_sent_and_is_confirmed_once(working, link):
    sent = message(head=b"{}", sum=bytes(range(256)) * 40)
    parcel = arrive(working, link, sent)
    got = working.advance(parcel, 9, 1.0)
    assert got.content == sent.content
    assert (got.metadata.message_type, got.metadata.group_id) == ("train.round", "3")
    (body,) = link.called("confirm-message-received")
    confirmed = ConfirmMessageReceivedRequest.FromString(body)
    assert (confirmed.message_object_id, confirmed.run_id, confirmed.node.node_id) == (parcel.tree.object_id, 9, 4)
    assert got.metadata.message_id == parcel.tree.object_id


def test_what_the_other_side_holds_is_not_sent_again(working, link):
    """The sum of a round goes to every party: once to the SuperLink."""
    working.send(message(head=b"for a", sum=b"x" * 5000), 9)
    link.known, link.objects = set(link.objects), {}
    working.send(message(head=b"for b", sum=b"x" * 5000), 9)
    assert link.objects and not any(b"x" * 5000 in content for content in link.objects.values())
    assert sum(b"for b" in content for content in link.objects.values()) == 1


def test_a_message_that_was_not_taken_has_no_id(working, link):
    link.answers["push-messages"] = PushAppMessagesResponse(message_ids=[""])
    assert working.send(message(head=b"{}"), 9) == ""
    link.answers["push-messages"] = PushAppMessagesResponse(message_ids=["its-id"])
    assert working.send(message(head=b"{}"), 9) == "its-id"


def test_a_reply_is_told_with_the_message_that_it_answers(working, link):
    sent = message(head=b"{}")
    parcel = arrive(working, link, sent)
    TaskIdentity.node_id = 2
    answer = message_to_proto(Message(RecordDict({}), reply_to=sent))
    both = PullAppMessagesResponse(messages_list=[answer], message_object_trees=[parcel.tree])
    link.answers["pull-messages"] = both
    assert [name for name, _ in working.arrived(["a"])] == [sent.metadata.message_id]
    link.answers["pull-messages"] = PullAppMessagesResponse()
    assert working.arrived(["a"]) == []


def test_a_message_on_a_slow_line_keeps_what_has_come(working, link):
    parcel = arrive(working, link, message(head=b"{}", sum=b"x" * 5000))
    (big,) = [name for name, content in link.objects.items() if b"x" * 5000 in content]
    held = link.objects.pop(big)
    assert working.advance(parcel, 9, 0.0) is None
    assert not link.called("confirm-message-received")
    first = {PullObjectRequest.FromString(body).object_id for body in link.called("pull-object")} - {big}
    link.calls.clear()
    link.objects[big] = held
    while (got := working.advance(parcel, 9, 1.0)) is None:
        pass
    assert got.content["packet"]["sum"].data == b"x" * 5000
    again = {PullObjectRequest.FromString(body).object_id for body in link.called("pull-object")}
    assert big in again and not again & first


def test_a_message_that_the_other_side_threw_away_is_gone(working, link):
    parcel = arrive(working, link, message(head=b"{}"))
    link.answers["pull-object"] = PullObjectResponse(object_found=False)
    with pytest.raises(MessageGone):
        working.advance(parcel, 9, 30.0)
    assert not link.called("confirm-message-received")


def test_nobody_waits_for_the_message_of_a_lost_task(working, link, monkeypatch):
    monkeypatch.setattr(runtime_api, "BEAT_SECONDS", 0.05)
    parcel = arrive(working, link, message(head=b"{}"))
    link.objects.clear()
    link.answers["send-task-heartbeat"] = SendTaskHeartbeatResponse(success=False)
    began = time.monotonic()
    with pytest.raises(TaskLost), working.beating():
        working.advance(parcel, 9, 30.0)
    assert time.monotonic() - began < 10


def test_a_reply_that_the_other_side_stopped_taking_is_an_error_that_callers_know(working, link):
    """A SuperLink forgets a push that takes longer than three minutes."""
    link.answers["push-object"] = PushObjectResponse(stored=False)
    with pytest.raises((MessageGone, TaskLost, httpx.HTTPError)):
        working.send(message(head=b"{}"), 9)


def test_a_part_whose_answer_was_lost_does_not_cost_the_message(working, link):
    """Flower's client asks again, and Flower says no: it has the part."""
    sent, took = message(head=b"{}", sum=b"x" * 5000), []

    def push(body: bytes) -> PushObjectResponse:
        first = not took
        took.append(PushObjectRequest.FromString(body).object_id)
        link._push_object(body)
        link.known.add(took[-1])
        return PushObjectResponse(stored=not first)

    link.answers["push-object"] = push
    assert working.send(sent, 9) == "its-id"
    ((_, parcel),) = working.arrived()
    assert working.advance(parcel, 9, 1.0).content == sent.content
    assert len(link.called("push-messages")) == 2
    assert took.count(took[0]) == 1, "what has come is not pushed again"


# ---- polling


def test_polling_slows_down_to_a_second_and_is_quick_again_when_something_happens(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(runtime_api, "time", SimpleNamespace(monotonic=lambda: now[0]))
    polling = Polling()
    seen = []
    for idle in (0, 1, 2, 10, 19, 20, 3600):
        now[0] = 100.0 + idle
        seen.append(polling.seconds)
    assert seen == pytest.approx([0.05, 0.05, 0.1, 0.5, 0.95, 1.0, 1.0])
    polling.busy()
    assert polling.seconds == 0.05


def test_an_idle_executor_leaves_the_processor_alone(monkeypatch):
    slept = []
    monkeypatch.setattr(runtime_api, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=slept.append))
    polling = Polling(shortest=0.2, longest=0.3)
    for _ in range(3):
        polling.sleep()
    assert slept == [0.2, 0.2, 0.2]
