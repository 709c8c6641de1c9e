"""Processes of a service: they die, they are deaf, they write too much, and their parent goes first."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from fl_core import processes
from fl_core.processes import Child, Service, free_port, options

DEAF = 'trap "" TERM; echo ready; while :; do sleep 0.02; done'
OBEDIENT = "echo ready; exec sleep 60"


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(processes, "time", made)
    return made


@pytest.fixture
def make(tmp_path):
    """Children that run a line of shell; whoever is left at the end is killed."""
    made = []

    def child(script: str, name: str = "part", **more) -> Child:
        made.append(Child(name, lambda: ["sh", "-c", script], tmp_path / "logs" / f"{name}.log", **more))
        return made[-1]

    yield child
    for child in made:
        if child.process is not None:
            child.process.kill()
            child.process.wait()


def until(condition, what: str) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, f"waited 10 s for {what}"
        time.sleep(0.005)


def ended(child: Child) -> int | None:
    """Its exit code as `watch` tells it."""
    child.process.wait()
    return child.watch()


# ---- starting again


def test_a_child_that_keeps_dying_is_started_at_a_slower_and_slower_pace(make, clock):
    child = make("exit 3")
    child.start()
    for starts, pause in enumerate([1, 2, 4, 8, 15, 15], 1):
        assert ended(child) == 3
        assert child.pause == pause
        clock.now += pause - 0.01
        assert child.watch() is None and child.starts == starts, "started before its pause was over"
        clock.now += 0.01
        assert child.watch() is None and child.starts == starts + 1


def test_a_child_that_ran_well_for_long_does_not_wait_for_old_failures(make, clock):
    child = make("exit 1")
    for _ in range(4):
        child.start()
        ended(child)
    assert child.pause == 8
    child.start()
    clock.now += 61
    assert ended(child) == 1
    assert child.pause == 0.5


def test_a_death_is_told_once(make):
    child = make("exit 7")
    child.start()
    assert [ended(child), child.watch(), child.watch()] == [7, None, None]
    assert not child.alive and child.pid is None


def test_a_child_that_was_killed_says_by_which_signal(make):
    child = make(OBEDIENT)
    child.start()
    assert child.alive and child.watch() is None
    os.kill(child.pid, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL


def test_a_restart_asks_for_its_command_anew(tmp_path):
    words = iter(["first", "second"])
    child = Child("part", lambda: ["echo", next(words)], tmp_path / "part.log")
    for _ in range(2):
        child.start()
        ended(child)
    assert child.last_words() == "first\nsecond\n"


def test_a_program_that_is_not_there_fails_at_its_start_and_leaves_no_file_open(tmp_path):
    child = Child("part", lambda: [str(tmp_path / "missing")], tmp_path / "part.log")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            child.start()
    assert len(os.listdir("/proc/self/fd")) == before
    assert not child.alive


# ---- what a child gets, and what it leaves


def test_a_child_cannot_wait_for_a_keyboard_and_says_all_in_its_log(make):
    child = make("cat; echo out; echo err >&2")
    child.start()
    assert ended(child) == 0
    assert child.last_words() == "out\nerr\n"


def test_its_environment_goes_over_the_inherited_one(make, monkeypatch):
    monkeypatch.setenv("FIRST", "inherited")
    monkeypatch.setenv("SECOND", "inherited")
    child = make('echo "$FIRST $SECOND"', environment={"SECOND": "own"})
    child.start()
    ended(child)
    assert child.last_words() == "inherited own\n"


def test_ctrl_c_at_the_terminal_does_not_reach_a_child(make):
    child = make(OBEDIENT)
    child.start()
    assert os.getpgid(child.pid) != os.getpgid(0)


def test_others_cannot_read_a_log(make):
    child = make("echo secret")
    child.start()
    ended(child)
    assert child.log.stat().st_mode & 0o777 == 0o600
    assert child.log.parent.stat().st_mode & 0o777 == 0o700


def test_a_long_log_is_moved_and_its_process_writes_on_without_a_hole(make, monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "LOG_LIMIT", 1000)
    go = tmp_path / "go"
    child = make(f'printf "%01500d" 0; while [ ! -e "{go}" ]; do sleep 0.01; done; echo after; exec sleep 60')
    child.start()
    until(lambda: child.log.stat().st_size == 1500, "the first lines")
    child.watch()
    assert child.log.with_name("part.log.1").read_text() == "0" * 1500
    go.touch()
    until(lambda: child.log.stat().st_size, "the line after the move")
    assert child.log.read_bytes() == b"after\n"


def test_a_short_log_stays(make):
    child = make("echo few")
    child.start()
    ended(child)
    child.watch()
    assert child.last_words() == "few\n" and not child.log.with_name("part.log.1").exists()


@pytest.mark.parametrize("before", [None, 0o644], ids=["first", "again"])
def test_others_cannot_read_the_moved_log_either(make, monkeypatch, before):
    monkeypatch.setattr(processes, "LOG_LIMIT", 1)
    child = make("echo secret")
    child.start()
    child.process.wait()
    moved = child.log.with_name("part.log.1")
    if before is not None:
        moved.touch()
        moved.chmod(before)
    child.watch()
    assert moved.stat().st_mode & 0o777 == 0o600 and moved.read_text() == "secret\n"


def test_the_last_words_are_the_end_even_of_a_log_that_is_no_text(make):
    child = make("exit 0")
    assert child.last_words() == ""
    child.log.parent.mkdir()
    child.log.write_bytes(b"x" * 5000 + "é".encode() * 3 + b"\xff")
    assert child.last_words(6) == "�é" + "é" + "�"  # six bytes: the first é is cut in two
    assert len(child.last_words()) == 4096 - 3


# ---- all together


def test_one_death_is_reported_by_name_and_harms_nobody_else(make):
    told = []
    steady, dying = make(OBEDIENT, "steady"), make("exit 5", "dying")
    service = Service([steady, dying], lambda child, code: told.append((child.name, code)))
    service.start()
    dying.process.wait()
    service.watch()
    service.watch()
    assert told == [("dying", 5)]
    assert steady.alive and steady.starts == 1
    service.stop()


def test_stop_asks_first_and_kills_who_does_not_listen(make):
    polite, deaf, dead = make(OBEDIENT, "polite"), make(DEAF, "deaf"), make("exit 0", "dead")
    service = Service([polite, deaf, dead], lambda child, code: None)
    service.start()
    for child in (polite, deaf):
        until(lambda child=child: "ready" in child.last_words(), child.name)
    dead.process.wait()
    began = time.monotonic()
    service.stop(grace=0.3)
    assert 0.3 <= time.monotonic() - began < 5
    assert polite.process.returncode == -signal.SIGTERM
    assert deaf.process.returncode == -signal.SIGKILL
    assert dead.process.returncode == 0


def test_stop_does_not_wait_for_who_listens(make):
    service = Service([make(OBEDIENT)], lambda child, code: None)
    service.start()
    began = time.monotonic()
    service.stop(grace=30)
    assert time.monotonic() - began < 5
    service.stop()  # and once more is nothing


# ---- dying with the parent


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_part_outlives_a_service_that_was_killed():
    part = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-m', 'fl_core.processes', '-c', {part!r}])"
    service = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(service.stdout.readline())
    try:
        assert alive(pid)
        service.kill()
        service.wait()
        until(lambda: not alive(pid), "the part to die")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_another_program_gets_its_arguments_and_its_exit_code_counts():
    code = "import sys; print(sys.argv[1:]); sys.exit(9)"
    command = [sys.executable, "-m", "fl_core.processes", "-c", code, "--host", "a b"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("['--host', 'a b']\n", 9)


NAMESPACE = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]


@pytest.fixture(scope="module")
def container():
    """Words before a command that make it process 1, as a container's first process is."""
    if shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode:
        pytest.skip("no right to make a process namespace")
    return NAMESPACE


SERVICE = """
import sys
from pathlib import Path
from fl_core.processes import Child
part = Child("part", lambda: [sys.executable, "-m", "fl_core.processes", "part.py"], Path("part.log"))
part.start()
"""
WAITS = "part.process.wait()"


@pytest.fixture
def service(tmp_path):
    """Writes a service whose part leaves a file `began`, and words that start it."""
    (tmp_path / "part.py").write_text("open('began', 'w')")

    def written(end: str) -> list[str]:
        (tmp_path / "service.py").write_text(SERVICE + end)
        return [sys.executable, "service.py"]

    return written


# It is stopped before it could ask, and goes on when its service is gone.
LATE = """
import os, signal
os.kill(part.pid, signal.SIGSTOP)
os.waitid(os.P_PID, part.pid, os.WSTOPPED)
Path("pid").write_text(str(part.pid))
"""
ADOPTS = """
import ctypes, os, signal, subprocess, sys
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
subprocess.run(sys.argv[1:])
pid = int(open("pid").read())
os.kill(pid, signal.SIGCONT)
os.waitpid(pid, 0)
"""


def test_a_part_whose_service_is_gone_already_does_not_begin(service, tmp_path):
    """Whoever adopts it: here not process 1 but another one, as under systemd."""
    subprocess.run([sys.executable, "-c", ADOPTS, *service(LATE)], cwd=tmp_path, check=True, timeout=30)
    assert not (tmp_path / "began").exists() and (tmp_path / "part.log").read_text() == ""


def test_an_orphan_of_a_container_does_not_begin(container, service, tmp_path):
    script = f"{' '.join(service(LATE))}; kill -CONT $(cat pid); while kill -0 $(cat pid); do sleep 0.01; done"
    subprocess.run([*container, "sh", "-c", script], cwd=tmp_path, check=True, timeout=30)
    assert not (tmp_path / "began").exists()


def test_the_parts_of_a_containers_first_process_run(container, service, tmp_path):
    subprocess.run([*container, *service(WAITS)], cwd=tmp_path, check=True, timeout=30)
    assert (tmp_path / "began").exists()


def test_a_parts_own_children_are_not_taken_for_orphans(service, tmp_path):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'fl_core.processes', 'inner.py'])"
    command = service(WAITS)
    (tmp_path / "part.py").write_text(code)
    (tmp_path / "inner.py").write_text("open('began', 'w')")
    subprocess.run(command, cwd=tmp_path, check=True, timeout=30)
    assert (tmp_path / "began").exists()


def test_a_part_that_somebody_starts_by_hand_runs(monkeypatch):
    monkeypatch.delenv("FEDSEAL_PARENT", raising=False)
    command = [sys.executable, "-m", "fl_core.processes", "-c", "print('runs')"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "runs\n"


# ---- small things


def test_a_free_port_can_be_listened_on():
    with (
        socket.create_server(("127.0.0.1", free_port())) as one,
        socket.create_server(("127.0.0.1", free_port())) as two,
    ):
        assert one.getsockname() != two.getsockname()


def test_options_become_words_whatever_their_type(tmp_path):
    assert options({"--port": 80, "--file": tmp_path / "a b"}) == ["--port", "80", "--file", f"{tmp_path}/a b"]
    assert options({}) == []
