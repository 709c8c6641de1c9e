"""Flower's database after pruning: made, filled and read again by Flower's own code, so that its schema is the real one."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SubStatus
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager

import server.coordinator.prune as pruning
from fl_core.errors import JobFailed
from server.coordinator.prune import prune

MB = 1 << 20


class FlowerRun:
    """One run at the SuperLink, used as the coordinator and a node use it."""

    def __init__(self, link: Link, *, begun: bool = True) -> None:
        self.link, self.state = link, link.state
        config = {"run": "0123456789abcdef"}
        kind = TaskType.SERVER_APP
        self.id = self.state.create_run("f/a", "1", "ab", config, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, kind)
        self.task = self.state.get_run_info(run_ids=[self.id])[0].primary_task_id
        if begun:
            assert self.state.claim_task(self.task)
            assert self.state.activate_task(self.task)

    def ask(self, data: bytes, *, whole: bool = True) -> Message:
        """A message to the node with its content; `whole=False`: the last part does not come."""
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self.id, 1, self.task
        content = RecordDict({"packet": ConfigRecord({"blob": data})})
        return self._store(Message(content, self.link.node, "train", ttl=3600.0), whole)

    def answer(self, question: Message, data: bytes) -> Message:
        """The node's reply."""
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self.id, self.link.node, self.task
        content = RecordDict({"packet": ConfigRecord({"blob": data})})
        return self._store(Message(content, reply_to=question), True)

    def _store(self, message: Message, whole: bool) -> Message:
        message.metadata.__dict__["_message_id"] = message.object_id
        bare = remove_content_from_message(message)
        with no_object_id_recompute():
            objects, tree = get_all_nested_objects(message), get_object_tree(message)
            session = self.state.start_session(self.id)
            stored, missing = self.state.store_message_and_object_tree(bare, tree, session)
            assert stored
            for part in missing if whole else missing[:-1]:
                assert self.state.store_object(self.id, session, part, objects[part].deflate())
        return message

    def is_whole(self, message: Message) -> bool:
        """Whether Flower still has every part of a message."""
        store = self.state.object_store
        if message.object_id not in store:
            return False
        return all(store.get(part.object_id) for part in iterate_object_tree(store.get_object_tree(message.object_id)))

    def live(self, data: bytes = b"x" * 1000) -> FlowerRun:
        """What a run leaves behind: messages answered, unanswered, fetched and half sent; logs."""
        question = self.ask(data + b"1")
        self.answer(question, data + b"2")
        assert len(self.state.get_message_res({question.object_id}, self.id)) == 1
        self.answer(self.ask(data + b"3"), b"4")
        self.ask(b"5" + data[:10], whole=False)
        self.state.get_message_ins(self.link.node, limit=1)
        self.state.add_task_log(self.task, "a line")
        return self

    def end(self, status: str = SubStatus.COMPLETED) -> None:
        assert self.state.finish_task(self.task, status, "")


class Link:
    """A SuperLink's state with one connected node."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state: Any = LinkStateFactory(str(path), NoOpFederationManager(), ObjectStoreFactory(str(path))).state()
        self.node = self.register(b"key")

    def register(self, key: bytes) -> int:
        number = self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 30.0)
        self.state.activate_node(number, 30.0)
        return int(number)

    def rows(self) -> dict[str, list[Any]]:
        """Every row of every table that holds any, but for the lock that Flower keeps for good."""
        with closing(sqlite3.connect(self.path)) as db:
            tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            own = set(tables) - {"sqlite_sequence", "alembic_version", "objectstore_locks"}
            found = {name: sorted(db.execute(f"SELECT * FROM {name}").fetchall(), key=repr) for name in own}
        return {name: rows for name, rows in found.items() if rows}

    def size(self) -> int:
        return sum(p.stat().st_size for p in self.path.parent.glob("state.db*"))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Iterator[tuple[Link, sqlite3.Connection]]:
    """A SuperLink's state as Flower's migrations make it, and a copy of it."""
    made = Link(tmp_path_factory.mktemp("superlink") / "state.db")
    with closing(sqlite3.connect(made.path)) as db, closing(sqlite3.connect(":memory:")) as copy:
        db.backup(copy)
        yield made, copy


@pytest.fixture
def link(fresh) -> Link:
    """As it was made: migrations take longer than all that is tested here."""
    made, copy = fresh
    with closing(sqlite3.connect(made.path)) as db:
        copy.backup(db)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return made


# ---- what must stay


def test_a_run_that_has_not_ended_loses_nothing(link):
    """Waiting, taken, at work, and at work with an ended task of its own beside it."""
    FlowerRun(link, begun=False)
    taken = FlowerRun(link, begun=False)
    assert link.state.claim_task(taken.task)
    FlowerRun(link).live()
    partly = FlowerRun(link).live(b"y" * 1000)
    other = link.state.create_task(TaskType.CLIENT_APP, partly.id)
    assert other and link.state.finish_task(other, SubStatus.FAILED, "")
    before = link.rows()
    assert prune(link.path, vacuum=True) == 0
    assert link.rows() == before


def test_a_run_at_work_goes_on_after_its_neighbour_was_pruned(link):
    running, ended = FlowerRun(link), FlowerRun(link).live()
    question = running.ask(b"the question")
    ended.end()
    assert prune(link.path, vacuum=True) == 1
    (asked,) = link.state.get_message_ins(link.node, limit=None)
    assert asked.metadata.message_id == question.object_id and running.is_whole(question)
    reply = running.answer(question, b"the answer")
    (told,) = link.state.get_message_res({question.object_id}, running.id)
    assert told.metadata.message_id == reply.object_id and running.is_whole(reply)


def test_content_that_a_running_run_shares_with_an_ended_one_stays(link):
    """Flower stores equal content once."""
    ended, running = FlowerRun(link), FlowerRun(link)
    ended.ask(b"the same sum")
    question = running.ask(b"the same sum")
    ended.end()
    prune(link.path, vacuum=False)
    assert running.is_whole(question)
    running.end()
    prune(link.path, vacuum=False)
    assert "objects" not in link.rows()


def test_registered_nodes_stay_and_removed_ones_can_be_registered_again(link):
    gone = link.register(b"another key")
    link.state.delete_node(NOOP_FLWR_AID, gone)
    with pytest.raises(ValueError, match="already in use"):
        link.register(b"another key")
    prune(link.path, vacuum=False)
    assert link.register(b"another key") not in (gone, link.node)
    assert link.state.get_node_id_by_public_key(b"key") == link.node


# ---- what must go


def test_nothing_of_an_ended_run_is_left_in_any_table(link):
    before = link.rows()
    for status in (SubStatus.COMPLETED, SubStatus.FAILED, SubStatus.STOPPED):
        FlowerRun(link).live(status.encode() * 100).end(status)
    assert len(link.rows()) > len(before) + 5
    assert prune(link.path, vacuum=False) == 3
    assert link.rows() == before


def test_a_run_that_was_stopped_before_it_began_goes_too(link):
    before = link.rows()
    run = FlowerRun(link, begun=False)
    assert link.state.stop_run(run.id)
    assert prune(link.path, vacuum=False) == 1
    assert link.rows() == before


def test_what_a_late_call_of_a_node_does_to_an_ended_run_leaves_nothing_behind(link):
    """A node that asks for an ended run has Flower clean up itself, in whatever order."""
    before = link.rows()
    one, other = FlowerRun(link).live(), FlowerRun(link).live(b"y" * 1000)
    one.end()
    link.state.cleanup_run(one.id)
    prune(link.path, vacuum=False)
    other.end()
    prune(link.path, vacuum=False)
    link.state.cleanup_run(other.id)
    assert link.rows() == before


def test_shared_content_is_not_left_behind_when_flower_cleans_up_the_second_run(link):
    ended, running = FlowerRun(link), FlowerRun(link)
    ended.ask(b"the same sum")
    running.ask(b"the same sum")
    ended.end()
    prune(link.path, vacuum=False)
    running.end()
    link.state.cleanup_run(running.id)
    prune(link.path, vacuum=False)
    assert "objects" not in link.rows()


def test_shared_content_counts_the_references_that_are_left(link):
    runs = [FlowerRun(link) for _ in range(3)]
    for run in runs:
        run.ask(b"the same sum")
    runs[0].end()
    prune(link.path, vacuum=False)
    with closing(sqlite3.connect(link.path)) as db:
        counted = dict(db.execute("SELECT object_id, ref_count FROM objects"))
        held = dict(db.execute("SELECT child_id, count(*) FROM object_children GROUP BY child_id"))
    assert max(counted.values()) == 2
    assert counted == dict.fromkeys(counted, 0) | held


def test_pruning_twice_finds_nothing(link):
    FlowerRun(link).live().end()
    assert [prune(link.path, vacuum=False), prune(link.path, vacuum=True)] == [1, 0]


# ---- size


def test_the_file_does_not_grow_with_the_number_of_runs(link):
    """Also where there is never a moment to give the space back."""
    sizes = []
    for n in range(5):
        FlowerRun(link).live(bytes([n]) * (MB // 4)).end()
        prune(link.path, vacuum=False)
        sizes.append(link.size())
    assert max(sizes[2:]) <= sizes[1] + MB // 10


@pytest.fixture
def grown(link) -> Link:
    """After a run of some megabytes, beside one that is at work."""
    FlowerRun(link).ask(b"the question")
    FlowerRun(link).live(b"z" * (2 * MB)).end()
    assert link.size() > 6 * MB
    return link


def test_the_space_of_ended_runs_is_back_on_the_disk_after_the_next_pruning_at_the_latest(grown):
    prune(grown.path, vacuum=True)
    prune(grown.path, vacuum=True)
    assert grown.size() < MB
    assert len(grown.rows()["run"]) == len(grown.rows()["message_ins"]) == 1


def test_the_space_of_ended_runs_is_back_on_the_disk_at_once(grown):
    prune(grown.path, vacuum=True)
    assert grown.size() < MB


# ---- when it cannot be done


def refused(path: Path) -> str:
    with pytest.raises(JobFailed) as caught:
        prune(path, vacuum=True)
    assert len(str(caught.value).splitlines()) == 1 and str(path) in str(caught.value)
    return str(caught.value)


def test_before_the_first_start_there_is_nothing_to_prune_and_nothing_is_made(tmp_path):
    assert prune(tmp_path / "state.db", vacuum=True) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_another_process_holds_is_left_as_it_is(link, monkeypatch):
    monkeypatch.setattr(pruning, "BUSY_SECONDS", 0.05)
    FlowerRun(link).live().end()
    before = link.rows()
    with closing(sqlite3.connect(link.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert "locked" in refused(link.path)
        other.execute("ROLLBACK")
    assert link.rows() == before
    assert prune(link.path, vacuum=True) == 1


def test_a_reader_does_not_keep_the_rows_in_place(link, monkeypatch):
    monkeypatch.setattr(pruning, "BUSY_SECONDS", 0.05)
    FlowerRun(link).live().end()
    with closing(sqlite3.connect(link.path, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM run").fetchone()
        assert prune(link.path, vacuum=False) == 1
        other.execute("ROLLBACK")
    assert "run" not in link.rows()


def test_a_reader_holds_the_coordinator_up_for_a_moment_only(grown):
    """Its main loop prunes: while it waits nobody starts or stops a run."""
    with closing(sqlite3.connect(grown.path, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM run").fetchone()
        began = time.monotonic()
        assert prune(grown.path, vacuum=True) == 1
        assert time.monotonic() - began < 3
        other.execute("ROLLBACK")
    prune(grown.path, vacuum=True)
    assert grown.size() < MB


def test_pruning_that_fails_in_between_removes_nothing(link):
    FlowerRun(link).live().end()
    with closing(sqlite3.connect(link.path)) as db:
        db.execute("CREATE TRIGGER full BEFORE DELETE ON run BEGIN SELECT RAISE(ABORT, 'no'); END")
    before = link.rows()
    refused(link.path)
    assert link.rows() == before


@pytest.mark.parametrize("content", [b"not a database " * 100, b""], ids=["another file", "an empty one"])
def test_a_file_that_is_not_flowers_database_is_one_line(tmp_path, content):
    path = tmp_path / "state.db"
    path.write_bytes(content)
    refused(path)
    assert path.read_bytes()[: len(content)] == content
