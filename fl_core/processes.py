"""Processes of one service: started together, started again when they die, ended together.

A child dies with its parent (`PR_SET_PDEATHSIG`), whatever kills that one, so that no part of a service goes on alone.
It asks for that itself when it starts: nothing of ours may run between fork and exec in a process that holds gRPC.
Whoever starts it puts `from_here()` into its environment: it shows a child that its parent ended before it could ask.
`python -m fl_core.processes ARGUMENTS` does it for a program that is not ours, then becomes `python ARGUMENTS`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PR_SET_PDEATHSIG = 1
QUIET_SECONDS = 60.0  # a child that lived so long is started again at once
LONGEST_PAUSE = 15.0
GRACE = 10.0
LOG_LIMIT = 10 << 20
_PARENT = "FEDSEAL_PARENT"


def from_here() -> dict[str, str]:
    """What the environment of a process that calls `die_with_parent` needs: who started it."""
    return {_PARENT: str(os.getpid())}


def die_with_parent() -> None:
    """Have this process killed when the thread that started it ends (Linux); called in the child."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    started_by = os.environ.pop(_PARENT, None)  # it is not about our own children
    if started_by not in (None, str(os.getppid())):  # it ended before we could ask
        os._exit(1)


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def options(table: Mapping[str, object]) -> list[str]:
    """`{"--host": h, …}` as words of a command line."""
    return [str(word) for pair in table.items() for word in pair]


@dataclass
class Child:
    """One process of a service.

    Parameters
    ----------
    name : for messages and logs.
    command : what to start; asked anew at each start, for whatever changed.
    log : takes its stdout and stderr; what is there goes to `<log>.1` when it has grown over 10 MB.
    """

    name: str
    command: Callable[[], Sequence[str]]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    _began: float = 0.0
    _again: float = 0.0
    _pause: float = 0.5

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self.process.pid if self.alive and self.process else None

    def start(self) -> None:
        """Start it, its output at the end of its log."""
        self.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self.process = subprocess.Popen(
                list(self.command()),
                stdin=subprocess.DEVNULL,
                stdout=fd,
                stderr=fd,
                env={**os.environ, **from_here(), **self.environment},
                start_new_session=True,  # Ctrl-C at the terminal is for the service, which ends its children in order
            )
        finally:
            os.close(fd)
        self.starts += 1
        self._began = time.monotonic()

    def watch(self) -> int | None:
        """Start it again when it is due; its exit code at the moment it is found dead, else None."""
        self._rotate()
        if self.process is None:
            if time.monotonic() >= self._again:
                self.start()
            return None
        code = self.process.poll()
        if code is None:
            return None
        lived = time.monotonic() - self._began
        self._pause = 0.5 if lived > QUIET_SECONDS else min(LONGEST_PAUSE, self._pause * 2)
        self._again, self.process = time.monotonic() + self._pause, None
        return code

    def _rotate(self) -> None:
        """Copy and empty a long log: the process goes on writing at its end."""
        if self.log.exists() and self.log.stat().st_size > LOG_LIMIT:
            moved = self.log.with_name(self.log.name + ".1")
            with contextlib.suppress(OSError):  # a full disk costs old lines, not the service
                moved.unlink(missing_ok=True)
                moved.touch(mode=0o600)
                shutil.copyfile(self.log, moved)
            os.truncate(self.log, 0)

    @property
    def pause(self) -> float:
        """Seconds until it is started again after its last death."""
        return self._pause

    def last_words(self, size: int = 4096) -> str:
        """The end of its log."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - size))
            return file.read().decode(errors="replace")


class Service:
    """Children that are watched until `stop`.

    `on_death(child, code)` is told of each that ends on its own.
    """

    def __init__(self, children: Sequence[Child], on_death: Callable[[Child, int], None]) -> None:
        self.children = list(children)
        self._on_death = on_death

    def start(self) -> None:
        """Start all, in order."""
        for child in self.children:
            child.start()

    def watch(self) -> None:
        """One look at all: dead ones are reported, due ones started."""
        for child in self.children:
            code = child.watch()
            if code is not None:
                self._on_death(child, code)

    def stop(self, grace: float = GRACE) -> None:
        """End all in reverse order: SIGTERM, and SIGKILL for who is still there after `grace` seconds."""
        running = [c.process for c in reversed(self.children) if c.process is not None and c.alive]
        for process in running:
            process.terminate()
        end = time.monotonic() + grace
        for process in running:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(grace)


if __name__ == "__main__":
    die_with_parent()
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])  # noqa: S606
