"""What is put over Flower's SuperNode: lost tasks end, sleeps follow the work, each call is accounted for.

Flower's own loop and node state run here; only what lies behind the network is made up.
"""

from __future__ import annotations

import ast
import inspect
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import httpx
import pytest
from flwr.app import Message, RecordDict
from flwr.common.constant import Status, SubStatus
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal as loop
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.nodestate import NodeStateFactory

from clients import runtime_api
from clients.node import supernode
from clients.node.connection import Connection, read
from clients.node.supernode import end_lost_tasks, follow_the_work, tell
from clients.runtime_api import Polling
from fl_core import bundle
from fl_core.processes import free_port

RUN = 9


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    """What the launcher replaces in Flower is put back."""
    monkeypatch.setattr(loop, "time", loop.time)
    monkeypatch.setattr(loop, "_pull_and_store_message", loop._pull_and_store_message)
    monkeypatch.setattr(loop, "_push_messages", loop._push_messages)
    monkeypatch.setattr(FleetHttpClient, "_unary_unary", FleetHttpClient._unary_unary)


class Node:
    """Flower's node state and one message on its way to it."""

    def __init__(self) -> None:
        factory = NodeStateFactory(ObjectStoreFactory())
        self.state, self.store = factory.state(), factory.objectstore_factory.store()
        self.state.set_node_id(4)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, 4, 1
        self.message = Message(RecordDict({}), 4, "train.round", ttl=60.0, group_id="3")
        self.message.metadata.__dict__["_message_id"] = self.message.object_id
        self.message.metadata.__dict__["_run_id"] = RUN
        self.objects = {name: part.deflate() for name, part in get_all_nested_objects(self.message).items()}
        self.waiting = True

    def look(self, *, pull=None, confirm=lambda run, message: None, get_run=Run.create_empty):
        """One look for a message, as Flower's loop makes it."""
        return loop._pull_and_store_message(
            state=self.state,
            object_store=self.store,
            node_config={},
            receive=self._receive,
            get_run=get_run,
            get_fab=lambda name, run: Fab(bundle.digest(), bundle.content(), {}),
            pull_object=pull or (lambda run, name: self.objects[name]),
            confirm_message_received=confirm,
            trusted_entities=None,
        )

    def _receive(self):
        if not self.waiting:
            return None
        self.waiting = False
        return self.message, get_object_tree(self.message)

    def tasks(self) -> list[tuple[str, str]]:
        return [(task.status.status, task.status.sub_status) for task in self.state.get_tasks()]

    def messages(self) -> list[str]:
        return [m.metadata.message_id for m in self.state.get_messages_legacy(is_reply=False)]


@pytest.fixture
def node():
    return Node()


def stopped(*_):
    raise RunNotRunningException


# ---- lost tasks


@pytest.mark.parametrize(
    "moment", [{"pull": stopped}, {"confirm": stopped}], ids=["while it comes", "as it is confirmed"]
)
def test_flower_alone_leaves_a_task_without_a_message(node, moment):
    """Why the launcher ends it; once this fails, it need not any more."""
    assert node.look(**moment) is None
    assert node.tasks() == [(Status.PENDING, "")]


@pytest.mark.parametrize(
    "moment", [{"pull": stopped}, {"confirm": stopped}], ids=["while it comes", "as it is confirmed"]
)
def test_the_task_of_a_run_that_ended_under_way_is_ended(node, moment):
    end_lost_tasks()
    assert node.look(**moment) is None
    assert node.tasks() == [(Status.FINISHED, SubStatus.FAILED)]
    assert node.messages() == [], "the message would be given to the next task"


def test_the_next_message_gets_its_task_after_a_lost_one(node):
    end_lost_tasks()
    node.look(pull=stopped)
    node.waiting = True
    assert node.look() == RUN
    assert sorted(node.tasks()) == [(Status.FINISHED, SubStatus.FAILED), (Status.PENDING, "")]
    assert node.messages() == [node.message.metadata.message_id]


class Sender:
    """Takes what the loop sends; `answer` is put into the node's state when the loop waits for one."""

    def __init__(self, node, monkeypatch, answer) -> None:
        self.node, self.sent = node, []
        self.waits = [answer]
        monkeypatch.setattr(loop, "time", SimpleNamespace(sleep=self._sleep))

    def _sleep(self, _seconds) -> None:
        assert self.waits, "it waits for nothing"
        loop._insert_message(self.waits.pop(), self.node.state, self.node.store)

    def push(self) -> list[str]:
        loop._push_messages(
            state=self.node.state,
            object_store=self.node.store,
            send=self._send,
            push_object=lambda run, session, name, content: None,
        )
        return self.sent

    def _send(self, message, tree, seconds):
        self.sent.append(message.metadata.reply_to_message_id)
        return set(), ""


def after_a_lost_one(node) -> tuple[str, Message]:
    """A lost message's half answer is in the state, the next message has come; its name, and the answer to it."""
    lost = node.message
    assert node.look(confirm=stopped) is None
    loop._insert_message(Message(RecordDict({}), reply_to=lost), node.state, node.store)
    other = Node()
    node.message, node.objects, node.waiting = other.message, other.objects, True
    assert node.look() == RUN
    return other.message.metadata.message_id, Message(RecordDict({}), reply_to=other.message)


def test_flower_alone_takes_the_answer_to_a_lost_message_for_that_to_the_next(node, monkeypatch):
    message, answer = after_a_lost_one(node)
    assert message not in Sender(node, monkeypatch, answer).push()


def test_the_answer_to_a_lost_message_is_dropped_and_the_next_one_is_waited_for(node, monkeypatch):
    end_lost_tasks()
    message, answer = after_a_lost_one(node)
    assert Sender(node, monkeypatch, answer).push() == [message]
    assert node.state.get_messages_legacy(is_reply=True) == []
    assert len(node.state.msg_store) == 0


def test_an_answer_whose_executor_died_over_it_does_not_hold_the_node(node, monkeypatch):
    end_lost_tasks()
    assert node.look() == RUN
    answer = Message(RecordDict({}), reply_to=node.message)
    answer.metadata.__dict__["_message_id"] = answer.object_id
    node.state.store_message(answer)
    node.store.preregister(RUN, get_object_tree(answer))  # as `PushMessages` leaves it
    now = [0.0]
    monkeypatch.setattr(supernode, "time", SimpleNamespace(monotonic=lambda: now[0]))
    sender = Sender(node, monkeypatch, answer)
    monkeypatch.setattr(loop, "time", SimpleNamespace(sleep=lambda seconds: now.__setitem__(0, now[0] + seconds)))
    sender._send = lambda message, tree, seconds: ({part.object_id for part in iterate_object_tree(tree)}, "")
    sender.push()
    assert supernode.PART_SECONDS < now[0] < supernode.PART_SECONDS + 2
    assert len(node.state.msg_store) == 0


def test_a_message_that_came_keeps_its_task(node):
    end_lost_tasks()
    assert node.look() == RUN
    assert node.tasks() == [(Status.PENDING, "")]
    assert node.messages() == [node.message.metadata.message_id]


def test_a_task_that_flower_ended_itself_keeps_its_reason(node):
    end_lost_tasks()

    def broken(run: int, name: str) -> bytes:
        raise ValueError("a broken line")

    assert node.look(pull=broken) is None
    (task,) = node.state.get_tasks()
    assert (task.status.status, task.status.sub_status) == (Status.FINISHED, SubStatus.FAILED)
    assert "a broken line" in task.status.details


def test_no_message_and_a_run_that_is_over_touch_no_task(node):
    end_lost_tasks()
    assert node.look(get_run=stopped) is None
    assert node.look() is None
    assert node.tasks() == []


# ---- sleeps


@pytest.fixture
def clock(monkeypatch):
    """Time as the launcher and its polling see it; `slept` is what they slept."""
    made = SimpleNamespace(now=100.0, slept=[])
    monkeypatch.setattr(runtime_api, "time", SimpleNamespace(monotonic=lambda: made.now))
    monkeypatch.setattr(supernode, "time", SimpleNamespace(sleep=made.slept.append))
    return made


def test_an_idle_nodes_next_look_comes_after_a_second_and_not_three(clock):
    follow_the_work(Polling(shortest=0.05, longest=1.0))
    clock.now += 60
    loop.time.sleep(3)
    assert clock.slept == [1.0]


def test_a_busy_nodes_next_look_comes_at_once(clock):
    follow_the_work(Polling(shortest=0.05, longest=1.0))
    clock.now += 60
    for seconds in (0.5, 3, 0.01):  # it waits for its executor, then looks for a message, then waits again
        loop.time.sleep(seconds)
    assert clock.slept == [0.05, 0.05, 0.01]


def test_flowers_loop_uses_nothing_else_of_time():
    """The launcher gives it a `time` with one function, and takes three seconds for idle."""
    tree = ast.parse(inspect.getsource(loop))
    used = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "time"]
    assert {n.attr for n in used} == {"sleep"}
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and n.func in used]
    assert sorted(ast.literal_eval(call.args[0]) for call in calls)[-1] == 3


# ---- the account of calls


@pytest.fixture
def coordinator():
    """A nodes' port that answers heartbeats with `status`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(server.status)
            self.end_headers()
            self.wfile.write(
                SendNodeHeartbeatResponse(success=True).SerializeToString() if server.status == 200 else b""
            )

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.status = 200
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_each_outcome_of_a_call_is_told_and_still_reaches_flower(coordinator, tmp_path):
    path = tmp_path / "connection.json"
    tell(Connection(path))
    assert read(path) is None
    client = FleetHttpClient(f"http://127.0.0.1:{coordinator.server_address[1]}")
    assert client.SendNodeHeartbeat(SendNodeHeartbeatRequest()).success
    assert read(path).state == "connected"
    coordinator.status = 401
    with pytest.raises(httpx.HTTPStatusError):
        client.SendNodeHeartbeat(SendNodeHeartbeatRequest())
    assert (read(path).state, read(path).detail) == ("refused", "HTTP 401")
    client.close()
    nobody = FleetHttpClient(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(httpx.ConnectError):
        nobody.SendNodeHeartbeat(SendNodeHeartbeatRequest())
    nobody.close()
    assert read(path).state == "unreachable" and read(path).detail.startswith("ConnectError: ")
