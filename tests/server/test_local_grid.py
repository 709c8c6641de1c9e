"""The local runtime's Grid with real worker processes: order, dead and silent workers, large messages, equal results."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

import tests.support
from server.runtimes.local import WORKER_DIED, WORKER_SILENT, LocalGrid
from server.runtimes.warm import warm_up
from server.runtimes.worker import Node
from tests.e2e.process import state, wait_until
from tests.server.echo import EchoNode, question
from tests.support import Federation, digits

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]
MEGABYTES_20 = 20 << 20
Make = Callable[..., LocalGrid]


@pytest.fixture
def make_grid(tmp_path: Path) -> Iterator[Make]:
    made: list[LocalGrid] = []

    def make(parties: int, workers: int) -> LocalGrid:
        warm_up()
        nodes = [EchoNode(i + 2, f"p{i}", {}) for i in range(parties)]
        made.append(LocalGrid(nodes, workers=workers, run_id=1, log=tmp_path / "log.txt"))
        return made[-1]

    yield make
    for grid in made:
        grid.close()


def threads(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except FileNotFoundError:
        return 0


def ask(grid: LocalGrid, node: int, step: str = "query.echo", ttl: float = 60.0, **what: Any) -> Message:
    return grid.create_message(question(**what), step, node, "0", ttl=ttl)


def said(reply: Message) -> dict[str, Any]:
    assert not reply.has_error(), reply.error
    return dict(reply.content.config_records["said"])


def collect(grid: LocalGrid, ids: list[str], seconds: float = 60.0) -> dict[str, Message]:
    """Replies by the message they answer, in the order of their coming."""
    replies: dict[str, Message] = {}
    end = time.monotonic() + seconds
    while len(replies) < len(ids):
        assert time.monotonic() < end, f"{len(ids) - len(replies)} without an answer"
        for reply in grid.pull_messages([i for i in ids if i not in replies]):
            replies[reply.metadata.reply_to_message_id] = reply
    return replies


def test_parties_that_share_a_worker_are_answered_once_each_and_in_order(make_grid: Make) -> None:
    grid = make_grid(5, 2)
    nodes = [*grid.get_node_ids()] * 3
    ids = list(grid.push_messages([ask(grid, node) for node in nodes]))
    assert len(set(ids)) == 15
    replies = collect(grid, ids)
    assert [said(replies[i])["node"] for i in ids] == nodes
    by_worker: dict[int, list[int]] = {}
    for i in ids:
        by_worker.setdefault(said(replies[i])["pid"], []).append(said(replies[i])["number"])
    assert len(by_worker) == 2
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in by_worker.values())
    assert set(grid.pids.values()) == set(by_worker)


def test_workers_answer_at_the_same_time(make_grid: Make) -> None:
    grid = make_grid(4, 4)
    grid.send_and_receive([ask(grid, node) for node in grid.get_node_ids()], timeout=60)
    began = time.monotonic()
    replies = list(grid.send_and_receive([ask(grid, node, seconds=1.0) for node in grid.get_node_ids()], timeout=60))
    assert len(replies) == 4
    assert time.monotonic() - began < 3.0  # one after the other: four


def test_dead_worker_costs_its_message_only_and_is_forked_again(make_grid: Make) -> None:
    grid = make_grid(2, 1)
    (first,) = grid.send_and_receive([ask(grid, 2)], timeout=60)
    deadly, behind = grid.push_messages([ask(grid, 2, "query.exit"), ask(grid, 3)])
    replies = collect(grid, [deadly, behind])
    assert replies[deadly].error.code == WORKER_DIED
    assert said(replies[behind])["node"] == 3
    (again,) = grid.send_and_receive([ask(grid, 2)], timeout=60)
    assert said(again)["pid"] == said(replies[behind])["pid"] != said(first)["pid"]


def test_worker_killed_while_idle_is_forked_again_without_an_error(make_grid: Make) -> None:
    grid = make_grid(1, 1)
    (first,) = grid.send_and_receive([ask(grid, 2)], timeout=60)
    os.kill(said(first)["pid"], signal.SIGKILL)
    pid = said(first)["pid"]
    wait_until(lambda: state(pid) in "ZX" and threads(pid) <= 1, "all its threads to die", 60)
    (again,) = grid.send_and_receive([ask(grid, 2)], timeout=60)
    assert said(again)["pid"] != said(first)["pid"]


def test_silent_worker_is_ended_after_the_time_to_live(make_grid: Make) -> None:
    grid = make_grid(2, 1)
    (first,) = grid.send_and_receive([ask(grid, 2)], timeout=60)
    os.kill(said(first)["pid"], signal.SIGSTOP)
    began = time.monotonic()
    mute, behind = grid.push_messages([ask(grid, 2, ttl=1.0), ask(grid, 3)])
    replies = collect(grid, [mute, behind])
    assert replies[mute].error.code == WORKER_SILENT
    assert 1.0 <= time.monotonic() - began < 30
    assert said(replies[behind])["node"] == 3
    assert state(said(first)["pid"]) in "ZX"


def test_twenty_megabytes_both_ways_at_once_do_not_deadlock(make_grid: Make) -> None:
    grid = make_grid(4, 2)
    nodes = grid.get_node_ids()
    ids = list(grid.push_messages([ask(grid, node, size=MEGABYTES_20, back=MEGABYTES_20) for node in nodes]))
    for reply in collect(grid, ids).values():
        assert said(reply)["got"] == MEGABYTES_20
        assert len(reply.content.array_records["data"]["bytes"].data) == MEGABYTES_20


def test_large_message_to_a_worker_that_does_not_read_ends_after_the_time_to_live(make_grid: Make) -> None:
    grid = make_grid(1, 1)
    (first,) = grid.send_and_receive([ask(grid, 2)], timeout=60)
    pid = said(first)["pid"]
    os.kill(pid, signal.SIGSTOP)
    replies: list[Message] = []
    big = [ask(grid, 2, ttl=1.0, size=MEGABYTES_20)]
    thread = threading.Thread(target=lambda: replies.extend(grid.send_and_receive(big, timeout=4)), daemon=True)
    thread.start()
    thread.join(6)
    hangs = thread.is_alive()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # so that the thread can end
    thread.join(30)
    assert not hangs
    assert [r.error.code for r in replies] == [WORKER_SILENT]


def test_reply_that_nobody_asks_for_any_more_is_dropped(make_grid: Make) -> None:
    grid = make_grid(2, 2)
    late, wanted = grid.push_messages([ask(grid, 2), ask(grid, 3, seconds=0.5)])
    assert list(collect(grid, [wanted])) == [wanted]
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        assert list(grid.pull_messages([late])) == []
    assert len(list(grid.send_and_receive([ask(grid, 2)], timeout=60))) == 1


def test_close_ends_every_worker(make_grid: Make) -> None:
    grid = make_grid(4, 4)
    pids = {said(r)["pid"] for r in grid.send_and_receive([ask(grid, n) for n in grid.get_node_ids()], timeout=60)}
    assert len(pids) == 4
    grid.close()
    assert all(state(pid) in "ZX" for pid in pids)


# ---- against the grid of one process


@pytest.mark.parametrize("model", [{"name": "logistic"}, {"name": "mlp", "hidden": [16]}])
def test_metrics_equal_those_of_a_run_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]
) -> None:
    import torch

    torch.set_num_threads(1)
    job = digits(encryption={"scheme": "none"}, model=model)
    inline = Federation(tmp_path / "inline")
    expected = inline.run(job).metrics
    grids: list[LocalGrid] = []

    def local(configs: dict[int, dict[str, str]], request: Any, reply: Any) -> LocalGrid:
        nodes = [Node(number, config["party"], config) for number, config in configs.items()]
        grids.append(LocalGrid(nodes, workers=2, run_id=1, log=tmp_path / "log.txt"))
        return grids[-1]

    warm_up()
    monkeypatch.setattr(tests.support, "InlineGrid", local)
    forked = Federation(tmp_path / "forked")
    try:
        metrics = forked.run(job).metrics
    finally:
        grids[0].close()
    for name in ("accuracy", "loss"):
        assert metrics[name] == pytest.approx(expected[name], abs=1e-6)
    for one, two in zip(inline.records, forked.records, strict=True):
        for name in ("accuracy", "loss"):
            assert two.values()[name] == pytest.approx(one.values()[name], abs=1e-6)
