"""The Grid of a deployment in bad weather: what is sent again, for how long, and what is dropped.

The SuperLink is a script of what each node's messages come to; time passes only when somebody sleeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.message_pb2 import ObjectTree

import clients.runtime_api as runtime_api
from clients.runtime_api import MessageGone, Parcel, Task, TaskLost
from fl_core.errors import JobFailed
from server.runtimes import deployment
from server.runtimes.deployment import (
    AGAIN,
    NEEDED_PATIENCE,
    OFFLINE_PATIENCE,
    PARTS_SECONDS,
    PATIENCE,
    DeploymentGrid,
    Link,
)

NODES = {"bank": 5, "clinic": 6, "bureau": 2**63 + 7}
Step = Any  # of a reply that comes: an error's code, bytes, an exception, or None: not whole yet


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Sent:
    """A message at the SuperLink; `steps`: what fetching its reply comes to, empty while there is none."""

    name: str
    message: Message
    at: float
    steps: list[Step]
    told: bool = False


@dataclass
class SuperLink:
    """In place of `RuntimeApi`.  `script` holds, for each node, what its next messages come to."""

    clock: Clock
    script: dict[int, list[list[Step]]] = field(default_factory=dict)
    online: set[int] = field(default_factory=lambda: set(NODES.values()))
    sent: list[Sent] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    closed: int = 0
    lost: bool = False
    error: httpx.HTTPError | None = None
    unknown: set[int] = field(default_factory=set)
    asked_for: set[str] = field(default_factory=set)

    def _call(self) -> None:
        if self.error is not None:
            raise self.error

    def begin(self, task: Task) -> None:
        self._call()

    @contextmanager
    def beating(self) -> Iterator[None]:
        yield

    def close(self) -> None:
        self.closed += 1

    def finish(self, *, status: str, details: str) -> None:
        self._call()
        self.ended.append(status)

    def nodes_online(self) -> set[int]:
        self._call()
        return self.online

    def send(self, message: Message, run_id: int) -> str:
        self._call()
        steps = self.script.get(message.metadata.dst_node_id, [])
        name = f"flower-{len(self.sent)}" if message.metadata.dst_node_id not in self.unknown else ""
        self.sent.append(Sent(name, message, self.clock.now, steps.pop(0) if steps else []))
        return name

    def arrived(self, names: Iterable[str]) -> list[tuple[str, Parcel]]:
        self._call()
        self.asked_for |= set(names)
        new = [s for s in self.sent if s.name in set(names) and s.steps and not s.told]
        for sent in new:
            sent.told = True
        return [(s.name, Parcel(ObjectTree(object_id=s.name), began=self.clock.now)) for s in new]

    def advance(self, parcel: Parcel, run_id: int, seconds: float) -> Message | None:
        self._call()
        (sent,) = [s for s in self.sent if s.name == parcel.tree.object_id]
        step = sent.steps.pop(0) if len(sent.steps) > 1 else sent.steps[0]
        if step is None:
            self.clock.sleep(seconds)
            return None
        if isinstance(step, type):
            raise step
        if isinstance(step, bytes):
            return Message(RecordDict({"c": ConfigRecord({"data": step})}), reply_to=sent.message)
        return Message(Error(step, ""), reply_to=sent.message)

    def to(self, party: str) -> list[Sent]:
        return [s for s in self.sent if s.message.metadata.dst_node_id == NODES[party]]


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    parts = SimpleNamespace(monotonic=lambda: made.now, sleep=made.sleep)
    monkeypatch.setattr(deployment, "time", parts)
    monkeypatch.setattr(runtime_api, "time", parts)
    return made


@pytest.fixture
def superlink(clock, monkeypatch):
    made = SuperLink(clock)
    monkeypatch.setattr(deployment, "RuntimeApi", lambda *_, **__: made)
    return made


@pytest.fixture
def grid(superlink):
    return DeploymentGrid(Link("127.0.0.1:1", b"ca", Task(11, 2**63 + 1, "f3" * 16), NODES))


def ask(grid: DeploymentGrid, *parties: str, ttl: float = 3600.0) -> list[str]:
    messages = [
        Message(RecordDict({"c": ConfigRecord({"to": p})}), NODES[p], "train", ttl=ttl, group_id="3") for p in parties
    ]
    return list(grid.push_messages(messages))


def hear(grid: DeploymentGrid, names: list[str], *, seconds: float) -> dict[str, Any]:
    """What comes for these messages within a time: bytes, or an error's code."""
    clock, heard = grid._api.clock, {}
    end = clock.now + seconds
    while len(heard) < len(names) and clock.now < end:
        for reply in grid.pull_messages([n for n in names if n not in heard]):
            name = reply.metadata.reply_to_message_id
            assert name not in heard
            heard[name] = reply.error.code if reply.has_error() else reply.content["c"]["data"]
        clock.sleep(0.01)
    return heard


# ---- asked again


@pytest.mark.parametrize("code", sorted(AGAIN))
def test_a_party_whose_node_was_lost_for_a_while_still_takes_part(grid, superlink, code):
    superlink.script = {5: [[code], [code], [b"answer"]]}
    names = ask(grid, "bank")
    assert hear(grid, names, seconds=60) == {names[0]: b"answer"}
    assert len(superlink.to("bank")) == 3
    assert grid.notices == {}


def test_what_is_sent_again_is_the_same_question_with_the_time_that_is_left(grid, superlink):
    """A node that has answered before knows the question by its bytes, and sends the same answer."""
    superlink.script = {5: [[ErrorCode.NODE_UNAVAILABLE], [b"answer"]]}
    names = ask(grid, "bank", ttl=100.0)
    superlink.clock.sleep(30.0)
    hear(grid, names, seconds=60)
    first, second = superlink.to("bank")
    assert second.message.content == first.message.content
    assert second.message.metadata.message_type == "train" and second.message.metadata.group_id == "3"
    assert second.message.metadata.dst_node_id == 5
    assert first.message.metadata.ttl == pytest.approx(100.0)
    assert second.message.metadata.ttl == pytest.approx(100.0 - (second.at - first.at))


def test_a_lost_node_is_not_asked_without_a_pause(grid, superlink):
    superlink.script = {5: [[ErrorCode.NODE_UNAVAILABLE]] * 1000}
    hear(grid, ask(grid, "bank"), seconds=2 * PATIENCE)
    at = [s.at for s in superlink.to("bank")]
    assert min(later - earlier for earlier, later in pairwise(at)) >= 2.0


@pytest.mark.parametrize(
    ("connected", "patience"), [(True, PATIENCE), (False, OFFLINE_PATIENCE)], ids=["connected", "not connected"]
)
def test_a_node_that_stays_away_is_given_up_after_its_patience(grid, superlink, connected, patience):
    superlink.script = {5: [[ErrorCode.NODE_UNAVAILABLE]] * 1000}
    if not connected:
        superlink.online.discard(5)
    began = superlink.clock.now
    names = ask(grid, "bank")
    assert hear(grid, names, seconds=1000) == {names[0]: ErrorCode.NODE_UNAVAILABLE}
    assert patience - 5 < superlink.clock.now - began <= patience + 1
    assert superlink.to("bank")[-1].at <= began + patience
    assert grid.notices == {"bank": "its node is not connected"}
    before = len(superlink.sent)
    assert hear(grid, names, seconds=60) == {}
    assert len(superlink.sent) == before


@pytest.mark.parametrize(
    ("away", "patience"),
    [(set(), PATIENCE), ({6}, NEEDED_PATIENCE), ({5}, OFFLINE_PATIENCE), ({5, 6}, NEEDED_PATIENCE)],
    ids=["one to spare", "none to spare", "enough others", "too few others"],
)
def test_a_node_that_the_job_cannot_do_without_is_waited_for(superlink, away, patience):
    grid = DeploymentGrid(Link("127.0.0.1:1", b"ca", Task(11, 2**63 + 1, "f3" * 16), NODES, least=2))
    superlink.script = {5: [[ErrorCode.NODE_UNAVAILABLE]] * 1000}
    superlink.online -= away
    began = superlink.clock.now
    names = ask(grid, "bank")
    assert hear(grid, names, seconds=1000) == {names[0]: ErrorCode.NODE_UNAVAILABLE}
    assert patience - 5 < superlink.clock.now - began <= patience + 1


def test_one_lost_node_does_not_hold_up_the_others(grid, superlink):
    superlink.script = {5: [[ErrorCode.NODE_UNAVAILABLE]] * 1000, 6: [[b"six"]], NODES["bureau"]: [[b"seven"]]}
    began = superlink.clock.now
    bank, clinic, bureau = names = ask(grid, "bank", "clinic", "bureau")
    assert hear(grid, names, seconds=5) == {clinic: b"six", bureau: b"seven"}
    assert superlink.clock.now - began < 6
    assert hear(grid, [bank], seconds=1000) == {bank: ErrorCode.NODE_UNAVAILABLE}


def test_nothing_is_sent_again_after_the_time_to_live_of_the_question(grid, superlink):
    superlink.script = {5: [[ErrorCode.NODE_UNAVAILABLE]] * 1000}
    began = superlink.clock.now
    names = ask(grid, "bank", ttl=20.0)
    assert hear(grid, names, seconds=1000) == {names[0]: ErrorCode.NODE_UNAVAILABLE}
    assert superlink.clock.now <= began + 21
    assert superlink.to("bank")[-1].at < began + 20


def test_a_node_that_is_lost_late_in_a_long_round_still_takes_part(grid, superlink):
    """Its executor dies five minutes after it was asked, and is there again at once."""
    superlink.script = {5: [[], [b"answer"]]}
    names = ask(grid, "bank")
    assert hear(grid, names, seconds=300) == {}
    superlink.sent[0].steps = [ErrorCode.CLIENT_APP_CRASHED]
    assert hear(grid, names, seconds=60) == {names[0]: b"answer"}


def test_a_node_that_is_lost_twice_in_a_long_round_still_takes_part(grid, superlink):
    superlink.script = {5: [[], [], [b"answer"]]}
    names = ask(grid, "bank")
    for number in range(2):
        assert hear(grid, names, seconds=300) == {}
        superlink.to("bank")[number].steps = [ErrorCode.NODE_UNAVAILABLE]
    assert hear(grid, names, seconds=60) == {names[0]: b"answer"}
    assert len(superlink.sent) == 3


def test_a_node_that_came_back_for_a_while_is_waited_for_as_long_as_any_other(grid, superlink):
    """It was not connected when it was asked; what counts is that it was since."""
    superlink.script = {5: [[ErrorCode.NODE_UNAVAILABLE], []] + [[ErrorCode.NODE_UNAVAILABLE]] * 15 + [[b"answer"]]}
    superlink.online.discard(5)
    names = ask(grid, "bank")
    assert hear(grid, names, seconds=300) == {}
    superlink.sent[1].steps = [ErrorCode.NODE_UNAVAILABLE]
    assert hear(grid, names, seconds=60) == {names[0]: b"answer"}


def test_a_node_that_stays_away_in_a_long_round_is_given_up_two_minutes_after_its_loss(grid, superlink):
    """Flower notes a loss after up to 65 s, as docs/deployment.md counts."""
    superlink.script = {5: [[]] + [[ErrorCode.NODE_UNAVAILABLE]] * 1000}
    names = ask(grid, "bank")
    hear(grid, names, seconds=300)
    lost = superlink.clock.now
    hear(grid, names, seconds=65)
    superlink.sent[0].steps = [ErrorCode.NODE_UNAVAILABLE]
    assert hear(grid, names, seconds=1000) == {names[0]: ErrorCode.NODE_UNAVAILABLE}
    assert 110 < superlink.clock.now - lost <= 130


def test_an_executor_that_dies_of_its_work_is_not_asked_without_end(grid, superlink):
    """Flower notes each of its deaths after 65 s."""
    superlink.script = {}
    names, heard = ask(grid, "bank", ttl=100_000.0), {}
    while not heard:
        heard = hear(grid, names, seconds=65)
        superlink.sent[-1].steps = [ErrorCode.CLIENT_APP_CRASHED]
        heard = heard or hear(grid, names, seconds=5)
        assert len(superlink.sent) < 10
    assert heard == {names[0]: ErrorCode.CLIENT_APP_CRASHED}
    assert len(superlink.sent) > 1 and grid.notices == {"bank": "its executor died"}


# ---- passed on


@pytest.mark.parametrize(
    ("code", "notice"),
    [
        (ErrorCode.INVALID_FAB, "its node has another version of fedseal"),
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "its node failed; the reason is in its log"),
        (ErrorCode.UNKNOWN, ""),
        (99, ""),
    ],
)
def test_an_error_that_asking_again_does_not_mend_is_passed_on_at_once(grid, superlink, code, notice):
    superlink.script = {6: [[code], [b"never asked for"]]}
    began = superlink.clock.now
    names = ask(grid, "clinic")
    assert hear(grid, names, seconds=60) == {names[0]: code}
    assert superlink.clock.now - began < 1
    assert len(superlink.sent) == 1 and grid.notices == {"clinic": notice}


def test_replies_come_under_the_names_of_their_questions_in_whatever_order(grid, superlink):
    superlink.script = {5: [[b"1"], [b"3"]], 6: [[b"2"]]}
    one, two, three = names = ask(grid, "bank", "clinic", "bank")
    assert len(set(names)) == 3
    assert hear(grid, names, seconds=10) == {one: b"1", two: b"2", three: b"3"}


def test_at_most_one_reply_is_handed_over_at_a_time(grid, superlink):
    """Each is taken in, and may free its memory, before the next is fetched."""
    superlink.script = {5: [[b"1"]], 6: [[b"2"]]}
    names = ask(grid, "bank", "clinic")
    assert len(list(grid.pull_messages(names))) == 1
    assert len(list(grid.pull_messages(names))) == 1
    assert list(grid.pull_messages(names)) == []


# ---- dropped


def test_a_reply_that_nobody_waits_for_any_more_is_dropped(grid, superlink):
    superlink.script = {5: [[b"late"]], 6: [[], [b"wanted"]]}
    late, _ = ask(grid, "bank", "clinic")
    superlink.to("bank")[0].told = True  # on its way
    assert hear(grid, [late], seconds=1) == {}
    (wanted,) = ask(grid, "clinic")
    assert hear(grid, [wanted], seconds=1) == {wanted: b"wanted"}
    superlink.to("bank")[0].told = False
    assert hear(grid, [late, "0" * 64], seconds=2) == {}


def test_a_reply_that_had_come_before_it_was_forgotten_is_not_handed_to_another(grid, superlink):
    superlink.script = {5: [[b"old"]], 6: [[b"old too"], [b"new"]]}
    old = ask(grid, "bank", "clinic")
    assert len(list(grid.pull_messages(old))) == 1  # the other has arrived with it
    (new,) = ask(grid, "clinic")
    assert hear(grid, [new], seconds=5) == {new: b"new"}


def test_a_question_that_nobody_waits_for_is_not_asked_again(grid, superlink):
    superlink.script = {5: [[ErrorCode.NODE_UNAVAILABLE]] * 1000}
    (bank,) = ask(grid, "bank")
    assert list(grid.pull_messages([bank])) == []
    (clinic,) = ask(grid, "clinic")
    hear(grid, [clinic], seconds=60)
    assert len(superlink.to("bank")) == 1


# ---- replies that come in parts


def test_a_reply_over_a_slow_line_comes_whole_and_others_before_it(grid, superlink):
    superlink.script = {5: [[None] * 20 + [b"slow"]], 6: [[b"quick"]]}
    bank, clinic = names = ask(grid, "bank", "clinic")
    heard = hear(grid, names, seconds=60)
    assert heard == {bank: b"slow", clinic: b"quick"} and list(heard) == [clinic, bank]
    assert len(superlink.sent) == 2


def test_a_reply_whose_rest_never_comes_does_not_hold_up_the_run_for_ever(grid, superlink):
    superlink.script = {5: [[None]] * 1000}
    began = superlink.clock.now
    names = ask(grid, "bank")
    assert hear(grid, names, seconds=1000) == {names[0]: ErrorCode.REPLY_MESSAGE_UNAVAILABLE}
    assert superlink.clock.now - began > PARTS_SECONDS  # Flower itself waits for the rest as long


def test_a_reply_whose_rest_never_comes_is_asked_for_again(grid, superlink):
    superlink.script = {5: [[None], [b"answer"]]}
    names = ask(grid, "bank")
    assert hear(grid, names, seconds=1000) == {names[0]: b"answer"}


def test_a_reply_that_is_gone_at_the_superlink_is_asked_for_again(grid, superlink):
    superlink.script = {5: [[None, None, MessageGone], [b"answer"]]}
    names = ask(grid, "bank")
    assert hear(grid, names, seconds=60) == {names[0]: b"answer"}
    assert len(superlink.sent) == 2


# ---- the SuperLink itself


def request_error(kind: type[httpx.HTTPError]) -> httpx.HTTPError:
    request = httpx.Request("POST", "https://127.0.0.1:1/v1/runtime/x")
    if kind is httpx.HTTPStatusError:
        return httpx.HTTPStatusError("no", request=request, response=httpx.Response(401, request=request))
    return kind("no", request=request)


ACTS: dict[str, Callable[[DeploymentGrid, list[str]], Any]] = {
    "push": lambda grid, names: ask(grid, "bank"),
    "pull": lambda grid, names: list(grid.pull_messages(names)),
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (httpx.HTTPStatusError, r"the SuperLink refused a call \(401\); --resume goes on"),
        (httpx.ConnectError, "the SuperLink was away for more than 120 s; --resume goes on"),
        (httpx.ReadTimeout, "the SuperLink was away for more than 120 s; --resume goes on"),
    ],
)
def test_a_superlink_that_fails_the_run_says_how_to_go_on(grid, superlink, act, kind, says):
    names = ask(grid, "clinic")
    superlink.error = request_error(kind)
    with pytest.raises(JobFailed, match=says):
        ACTS[act](grid, names)


def test_a_superlink_that_does_not_take_the_run_leaves_no_connection_open(superlink):
    superlink.error = request_error(httpx.ConnectError)
    with pytest.raises(JobFailed, match="--resume"):
        DeploymentGrid(Link("127.0.0.1:1", b"ca", Task(11, 12, "f3" * 16), NODES))
    assert superlink.closed == 1


def test_a_run_that_flower_gave_up_ends_instead_of_waiting_for_ever(grid, superlink):
    names = ask(grid, "bank")
    superlink.lost = True
    with pytest.raises(JobFailed, match=r"Flower gave this run up .*--resume goes on"):
        grid.pull_messages(names)
    grid.close()
    assert (superlink.ended, superlink.closed) == ([], 1)


def test_a_run_that_is_given_up_while_a_reply_is_fetched_ends_at_the_next_look(grid, superlink):
    superlink.script = {5: [[TaskLost]]}
    names = ask(grid, "bank")
    assert list(grid.pull_messages(names)) == []
    superlink.lost = True
    with pytest.raises(JobFailed, match="gave this run up"):
        grid.pull_messages(names)


@pytest.mark.parametrize(("is_failed", "status"), [(False, SubStatus.COMPLETED), (True, SubStatus.FAILED)])
def test_the_end_of_a_run_is_told_to_flower_as_it_was(grid, superlink, is_failed, status):
    grid.failed = is_failed
    grid.close()
    assert (superlink.ended, superlink.closed) == ([status], 1)


def test_an_end_that_flower_does_not_take_does_not_undo_the_run(grid, superlink):
    superlink.error = request_error(httpx.ConnectError)
    grid.close()
    assert superlink.closed == 1
    assert grid.notices == {"": "the SuperLink did not take the end of the run (ConnectError)"}


def test_parties_whose_nodes_were_removed_in_the_run_are_all_answered_for(grid, superlink):
    """Flower gives a message to a node that it does not know no id."""
    superlink.unknown = {5, 6}
    superlink.script = {NODES["bureau"]: [[b"seven"]]}
    began = superlink.clock.now
    bank, clinic, bureau = names = ask(grid, "bank", "clinic", "bureau")
    assert hear(grid, names, seconds=5) == {bureau: b"seven"}
    unavailable = ErrorCode.NODE_UNAVAILABLE
    assert hear(grid, [bank, clinic], seconds=1000) == {bank: unavailable, clinic: unavailable}
    assert PATIENCE - 5 < superlink.clock.now - began <= PATIENCE + 1
    assert grid.notices == dict.fromkeys(("bank", "clinic"), "its node is not connected")
    assert "" not in superlink.asked_for


def test_a_party_whose_node_is_known_again_still_takes_part(grid, superlink):
    superlink.unknown = {5}
    names = ask(grid, "bank")
    assert hear(grid, names, seconds=5) == {}
    at = [s.at for s in superlink.to("bank")]
    assert len(at) > 1 and min(later - earlier for earlier, later in pairwise(at)) >= 2.0
    superlink.unknown, superlink.script = set(), {5: [[b"answer"]]}
    assert hear(grid, names, seconds=5) == {names[0]: b"answer"}


def test_a_question_that_was_not_taken_and_that_nobody_waits_for_is_forgotten(grid, superlink):
    superlink.unknown = {5}
    ask(grid, "bank")
    (clinic,) = ask(grid, "clinic")
    hear(grid, [clinic], seconds=60)
    assert len(superlink.to("bank")) == 1


def test_nodes_are_not_started_from_here(tmp_path):
    with pytest.raises(JobFailed, match="submit the job to a coordinator"):
        DeploymentGrid.open({}, run_id=1, log=tmp_path / "log")
