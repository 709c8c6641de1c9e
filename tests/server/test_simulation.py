"""The simulation runtime with a real Ray: equal results, dead and silent actors, stopping, and nothing left behind."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from fl_core.errors import UsageError
from server.run import run_job
from tests.e2e.process import LONG, Place, state, wait_until
from tests.server.echo import EchoPlace, question
from tests.support import digits

THREE = '[dataset]\nname = "digits"\nparties = 3'


def test_missing_extra_is_one_line_and_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "ray" else real(name, *a))
    with pytest.raises(UsageError) as caught:
        run_job(digits(runtime="simulation"), home=tmp_path / "home", out=tmp_path / "out")
    assert str(caught.value) == "runtime 'simulation' needs the extra: pip install 'fedseal[simulation]'"
    assert caught.value.exit_code == 2
    assert not list(tmp_path.iterdir())


# ---- whole runs

with_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.clear()


@pytest.mark.e2e
@with_ray
class TestRuns:
    """The command line."""

    @pytest.mark.parametrize(("scheme", "tolerance"), [("none", 1e-6), ("ckks", 1e-4)])
    def test_metrics_equal_those_of_the_local_runtime(self, fresh: Place, scheme: str, tolerance: float) -> None:
        job = fresh.job("same", rounds=2, parties=THREE, more=f'[encryption]\nscheme = "{scheme}"\n')
        ends = {r: fresh.fedseal("run", job, "--json", "--runtime", r, "--out", r) for r in ("local", "simulation")}
        assert [done.code for done in ends.values()] == [0, 0], ends["simulation"].err
        local, simulation = (ends[r].json["metrics"] for r in ends)
        assert local.keys() == simulation.keys()
        for name in ("accuracy", "loss"):
            assert simulation[name] == pytest.approx(local[name], abs=tolerance)
        assert ends["simulation"].json["runtime"] == "simulation"
        assert sorted(ends["simulation"].json["outputs"]) == ["party_1", "party_2", "party_3"]
        wait_until(lambda: not fresh.processes(), "the process tree to end", 10)
        assert fresh.fedseal("audit", "verify").code == 0

    def test_interrupted_run_stops_leaves_nothing_and_is_resumed(self, fresh: Place) -> None:
        job = fresh.job("long", rounds=40, parties=THREE)
        run = fresh.start("run", job, "--json", "--runtime", "simulation")
        run.wait_for("round 2:")
        for pid in fresh.processes():  # as a terminal does
            os.kill(pid, signal.SIGINT)
        stopped = run.end()
        assert "stopped while waiting for" in stopped.fails(1)
        assert stopped.json["status"] == "stopped"
        wait_until(lambda: not fresh.processes(), "the process tree to end", 10)
        run = fresh.start("run", job, "--json", "--runtime", "simulation", "--resume")
        run.wait_for("round 5:")
        assert fresh.fedseal("stop", "long", "--json").json["status"] == "stopped"
        assert run.end().json["status"] == "stopped"

    def test_kill_9_leaves_no_orphan(self, fresh: Place) -> None:
        run = fresh.start("run", fresh.job(rounds=40, parties=THREE), "--runtime", "simulation")
        run.wait_for("round 1:")
        assert any("raylet" in words for words in fresh.processes().values())
        os.kill(run.pid, signal.SIGKILL)
        wait_until(lambda: not fresh.processes(), "the process tree to end", 60)

    def test_party_that_fails_says_why_to_the_person_at_this_machine(self, fresh: Place) -> None:
        good, bad = fresh.table("good", 60), fresh.table("bad", 60, columns="ab")
        own = '[[party]]\nname = "{0}"\ndata = "{1}"\nid = "id"\nlabel = "{2}"\n'
        parties = "".join(own.format(*p) for p in (("a", good, "y"), ("b", good, "y"), ("c", bad, "nothing")))
        done = fresh.fedseal("run", fresh.job(parties=parties), "--runtime", "simulation")
        assert "'nothing'" in done.fails(2)


# ---- a cluster that is there already

RUNTIMES = ("local", "simulation")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@dataclass(frozen=True)
class Head:
    """A Ray that somebody else started, in a folder and an environment of its own.

    While the file `absent` exists, fedseal is not installed for its processes.
    """

    place: Place
    port: int

    @property
    def address(self) -> dict[str, str]:
        return {"RAY_ADDRESS": f"127.0.0.1:{self.port}"}

    @property
    def absent(self) -> Path:
        return self.place.path / "absent"

    def actors(self) -> list[int]:
        return [pid for pid, words in self.place.processes().items() if words.startswith("ray::ClientAppActor")]


@pytest.fixture(scope="class")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    place = Place(tmp_path_factory.mktemp("head"), [str(Path(sys.executable).with_name("ray"))])
    made = Head(place, free_port())
    (place.path / "sitecustomize.py").write_text(ABSENT.format(flag=str(made.absent)), encoding="utf-8")
    folder = Path(tempfile.mkdtemp(prefix="head-"))  # short: its sockets' paths are limited
    options = ("--num-cpus=2", "--include-dashboard=false", "--object-store-memory=100000000", "--disable-usage-stats")
    port, temp = f"--port={made.port}", f"--temp-dir={folder}"
    head = place.start("start", "--head", "--block", port, temp, *options, PYTHONPATH=str(place.path))
    wait_until((folder / "ray_current_cluster").exists, "the head to start", 120)
    yield made
    os.kill(head.pid, signal.SIGTERM)
    head.end(60)
    place.clear()
    shutil.rmtree(folder, ignore_errors=True)


ABSENT = """
import os, sys

class Absent:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] == "server" and os.path.exists({flag!r}):
            raise ModuleNotFoundError(f"No module named {{name!r}}")

sys.meta_path.insert(0, Absent())
"""


@pytest.mark.e2e
@with_ray
class TestCluster:
    """`RAY_ADDRESS`."""

    def test_metrics_equal_those_of_the_local_runtime_and_the_cluster_stays(self, fresh: Place, cluster: Head) -> None:
        rng, images = np.random.default_rng(0), fresh.path / "data"
        images.mkdir()
        arrays = {f"x_{part}": rng.integers(0, 256, (60, 28, 28), dtype=np.uint8) for part in ("train", "test")}
        labels = {f"y_{part}": np.arange(60) % 10 for part in ("train", "test")}
        np.savez(images / "mnist10k.npz", **arrays, **labels)
        job = fresh.job("same", rounds=2, parties='[dataset]\nname = "mnist10k"\nparties = 3')
        # the folder of the data, relative at that, is in this environment and not in the cluster's
        env = {**cluster.address, "FEDSEAL_DATA": "data"}
        ends = {r: fresh.fedseal("run", job, "--json", "--runtime", r, "--out", r, **env) for r in RUNTIMES}
        assert [done.code for done in ends.values()] == [0, 0], ends["simulation"].err
        local, simulation = (ends[r].json["metrics"] for r in RUNTIMES)
        assert local.keys() == simulation.keys()
        for name in ("accuracy", "loss"):
            assert simulation[name] == pytest.approx(local[name], abs=1e-4)
        wait_until(lambda: not fresh.processes(), "the process tree to end", 10)
        wait_until(lambda: not cluster.actors(), "the actors to end", 30)
        assert any("raylet" in words for words in cluster.place.processes().values())

    def test_actors_of_the_cluster_did_the_work(self, fresh: Place, cluster: Head) -> None:
        run = fresh.start("run", fresh.job(rounds=40, parties=THREE), "--runtime", "simulation", **cluster.address)
        run.wait_for("round 1:")
        assert len(cluster.actors()) == 2
        assert not any("raylet" in words for words in fresh.processes().values())
        os.kill(run.pid, signal.SIGINT)
        assert "stopped" in run.end().fails(1)
        wait_until(lambda: not cluster.actors(), "the actors to end", 30)

    def test_machine_without_fedseal_is_named_as_the_cause(self, fresh: Place, cluster: Head) -> None:
        cluster.absent.touch()
        done = fresh.fedseal("run", fresh.job(parties=THREE), "--runtime", "simulation", **cluster.address)
        cluster.absent.unlink()
        assert "party_1: the Ray actor failed: ModuleNotFoundError: No module named 'server'" in done.fails(1)

    def test_address_without_a_cluster_is_told_at_once(self, fresh: Place) -> None:
        address = f"127.0.0.1:{free_port()}"
        run = fresh.start("run", fresh.job(parties=THREE), "--runtime", "simulation", RAY_ADDRESS=address)
        assert f"RAY_ADDRESS {address}: nothing answers" in run.end(60).fails(2)


# ---- the grid


@pytest.mark.e2e
@pytest.mark.timeout(120)
@with_ray
class TestGrid:
    """Messages and actors."""

    @pytest.fixture(scope="class")
    def grid(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
        from server.runtimes import simulation

        patch = pytest.MonkeyPatch()
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr(simulation, "Place", EchoPlace)
        patch.setattr(os, "cpu_count", lambda: 2)
        log = tmp_path_factory.mktemp("grid") / "log.txt"
        made = simulation.SimulationGrid.open({f"p{i}": {} for i in range(5)}, run_id=1, log=log)
        patch.undo()
        yield made
        pids = {said(r)["pid"] for r in made.send_and_receive([ask(made, n) for n in made.get_node_ids()], timeout=60)}
        made.close()
        assert all(state(pid) in "ZX" for pid in pids)

    def test_every_message_is_answered_once_by_one_of_two_actors(self, grid: Any) -> None:
        nodes = [*grid.get_node_ids()] * 3
        replies = list(grid.send_and_receive([ask(grid, node) for node in nodes], timeout=LONG))
        assert sorted(said(r)["node"] for r in replies) == sorted(nodes)
        assert len({r.metadata.reply_to_message_id for r in replies}) == 15
        assert len({said(r)["pid"] for r in replies}) == 2

    def test_dead_actors_cost_their_messages_only(self, grid: Any) -> None:
        for _ in range(3):  # one more than there are actors
            (lost,) = grid.send_and_receive([ask(grid, 2, "query.exit")], timeout=60)
            assert lost.error.code == 8
        replies = list(grid.send_and_receive([ask(grid, n) for n in grid.get_node_ids()], timeout=60))
        assert len(replies) == 5
        assert all(said(r) for r in replies)

    def test_silent_actor_is_ended_after_the_time_to_live(self, grid: Any) -> None:
        (first,) = grid.send_and_receive([ask(grid, 2)], timeout=60)
        (mute,) = grid.send_and_receive([ask(grid, 2, ttl=2.0, seconds=60.0)], timeout=30)
        assert mute.error.code == 9
        (again,) = grid.send_and_receive([ask(grid, 2)], timeout=60)
        assert said(again)["node"] == said(first)["node"] == 2

    def test_message_that_waited_too_long_is_not_begun(self, grid: Any) -> None:
        late = ask(grid, 3)
        late.metadata.__dict__["_created_at"] -= 100.0
        (reply,) = grid.send_and_receive([late], timeout=30)
        assert reply.error.code == 9

    def test_one_party_is_served_by_one_actor_at_a_time(self, grid: Any) -> None:
        replies = list(grid.send_and_receive([ask(grid, 4, seconds=0.5) for _ in range(4)], timeout=60))
        spans = sorted((said(r)["began"], said(r)["ended"]) for r in replies)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


def ask(grid: Any, node: int, step: str = "query.echo", ttl: float = 60.0, **what: Any) -> Message:
    return grid.create_message(question(**what), step, node, "0", ttl=ttl)


def said(reply: Message) -> dict[str, Any]:
    assert not reply.has_error(), reply.error
    return dict(reply.content.config_records["said"])
