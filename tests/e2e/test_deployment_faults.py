"""A deployment in bad weather: everything that the design promises to survive, with real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

import pytest

from tests.e2e.federation import DEPLOYED, Federation, Wire
from tests.e2e.process import Place, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
PARTIES = ("steady", "crashing", "killed", "blinking", "lost")
SLOW = "local_epochs = 150\nbatch_size = 8\n"  # some seconds a round, so that a fault falls into it


def job(place: Place, name: str, parties, *, rounds: int, least: int, slow: bool = True):
    tables = "\n".join(f'[[party]]\nname = "{n}"' for n in parties)
    text = DEPLOYED.format(name=name, rounds=rounds, parties=tables, least=least, more='[dataset]\nname = "digits"\n')
    if slow:
        text = text.replace("[train]\n", "[train]\n" + SLOW)
    path = place.path / f"{name}.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def weather(tmp_path_factory):
    """Five nodes; in one round an executor dies, a node loses its power and comes back, two networks are cut."""
    made = Federation(tmp_path_factory.mktemp("weather"))
    made.start()
    wires = {name: Wire(made.nodes_port) for name in ("blinking", "lost")}
    for name in PARTIES:
        made.node(name, port=wires[name].port if name in wires else None).start(wait=False)
    for node in made.nodes.values():
        node.service.wait_for("connected")
        node.wait_for_executor()
    ann = made.person("ann")
    run = ann.start("run", job(ann, "weather", PARTIES, rounds=3, least=3), "--json")
    run.wait_for("round 1:")
    began = time.monotonic()
    wires["lost"].cut()
    wires["blinking"].cut()
    os.kill(made.nodes["crashing"].child("executor"), signal.SIGKILL)
    made.nodes["killed"].kill_all()
    made.nodes["killed"].start(wait=False)
    time.sleep(max(0.0, 20.0 - (time.monotonic() - began)))
    wires["blinking"].join()
    done = run.end(600)
    yield made, done
    for wire in wires.values():
        wire.close()
    made.clear()


def aggregates(federation):
    return {e["body"]["round"]: e["body"] for e in federation.ledger("aggregate")}


def test_the_run_ends_well_and_its_ledger_is_valid(weather):
    federation, done = weather
    assert done.code == 0, done
    assert federation.verdict() == 0


def test_only_the_party_that_is_gone_for_good_is_missing(weather):
    federation, _ = weather
    rounds = aggregates(federation)
    assert set(rounds) == {1, 2, 3, 4}
    for number in (2, 3, 4):
        assert rounds[number]["missing"] == ["lost"], rounds
    drops = [e["body"] for e in federation.ledger("drop")]
    assert {d["party"] for d in drops} == {"lost"}
    assert {d["code"] for d in drops} == {"unreachable"}


def test_a_killed_node_says_that_it_waits_out_the_refusal(weather):
    federation, _ = weather
    said = "".join(federation.nodes["killed"].service.lines)
    assert "refused for about a minute" in said
    assert "connected; waiting for jobs" in said


def test_a_dead_executor_is_started_again(weather):
    federation, _ = weather
    assert any("executor ended" in line for line in federation.nodes["crashing"].service.lines)
    assert federation.nodes["crashing"].status()["runs"][0]["state"] == "done"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    made = Federation(tmp_path_factory.mktemp("small"))
    made.start()
    for name in ("a", "b", "c"):
        made.node(name).start(wait=False)
    for node in made.nodes.values():
        node.service.wait_for("connected")
        node.wait_for_executor()
    made.person("ann")
    yield made
    made.clear()


def test_a_superlink_that_is_killed_in_a_round_loses_nothing(small):
    ann = small.people["ann"]
    run = ann.start("run", job(ann, "superlink", "abc", rounds=3, least=3), "--json")
    run.wait_for("round 1:")
    time.sleep(1.0)
    os.kill(small.child("start_superlink"), signal.SIGKILL)
    done = run.end()
    assert done.code == 0, done
    assert small.ledger("drop") == []
    assert any("superlink ended" in line for line in small.service.lines)


def test_a_coordinator_that_is_killed_goes_on_with_resume(small):
    ann = small.people["ann"]
    path = job(ann, "coordinator", "abc", rounds=4, least=3)
    run = ann.start("run", path, "--json")
    run.wait_for("round 2:")
    for pid in small.place.processes():
        os.kill(pid, signal.SIGKILL)
    small.start()
    done = run.end(120)
    assert done.code == 1 and "--resume" in done.err, done
    assert any("was interrupted" in line for line in small.service.lines)
    for node in small.nodes.values():
        wait_until(lambda node=node: node.status()["connected"], f"{node.name} to come back", 120)
    done = ann.fedseal("run", path, "--resume", "--json")
    assert done.code == 0, done
    assert done.json["run"] in {r["run"] for r in ann.fedseal("runs", "--json").json["runs"] if r["status"] == "done"}
    assert len([e for e in small.ledger("resume") if e["run"] == done.json["run"]]) == 1
    assert small.verdict() == 0


def test_a_bundle_of_another_version_is_refused_by_name(small, tmp_path):
    """A node of another version compares bundles and runs nothing."""
    (tmp_path / "sitecustomize.py").write_text("import fl_core.bundle as b\nb._PYPROJECT += '# other'\n")
    old = small.node("old")
    old.start(PYTHONPATH=str(tmp_path))
    ann = small.people["ann"]
    done = ann.fedseal("run", job(ann, "old", ("a", "b", "c", "old"), rounds=1, least=3, slow=False))
    assert "old" in done.fails(1) and "version" in done.err


def test_shipped_code_runs_nowhere(small, tmp_path):
    """A coordinator that is not ours ships code under every name that might be imported or unpacked."""
    from tests.e2e.evil import ship

    mark = tmp_path / "evil-ran"
    code = ship(small, mark)
    assert code == 7  # Flower's INVALID_FAB
    assert not mark.exists()
    for place in (small.place, *(node.place for node in small.nodes.values())):
        assert not list(place.path.rglob("evil*")), place
    assert small.nodes["a"].status()["connected"]


@pytest.mark.skipif(os.geteuid() != 0, reason="a disk of its own needs root")
def test_a_full_disk_at_the_coordinator_fails_the_run_and_nothing_else(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no right to mount a disk")
    made = Federation(tmp_path / "federation", coordinator=disk / "coordinator")
    try:
        made.start()
        for name in "abc":
            made.node(name).start()
        ann = made.person("ann")
        path = job(ann, "disk", "abc", rounds=4, least=3)
        run = ann.start("run", path)
        run.wait_for("round 1:")
        fill(disk / "filling")
        said = run.end().fails(1)
        assert "disk" in said or "SuperLink" in said, said
        (disk / "filling").unlink()
        for node in made.nodes.values():
            wait_until(lambda node=node: made.sees(node.name), f"{node.name} to come back", 120)
        done = ann.fedseal("run", path, "--resume", "--json")
        assert done.code == 0, done
        assert made.verdict() == 0
    finally:
        made.clear()
        subprocess.run(["umount", "-l", str(disk)], check=False)


def fill(path):
    """Take every block that is left."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
