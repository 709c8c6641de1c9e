"""Run a command and watch all that it starts: seconds, CPU seconds, and memory summed over the process tree (Linux).

Memory is PSS: a page shared by k processes counts 1/k in each, so that the sum over a forked tree counts it once.
Pages shared with strangers, other programs on the same libraries, are missing from it: measure on a quiet machine.
Looking at it costs the watched processes time, so seconds and memory are taken in runs of their own.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
_PROC = Path("/proc")
_SUBREAPER = 36  # prctl: orphans become children of this process, so that none escapes the sum
_LINGER = 20.0


@dataclass(frozen=True)
class Finished:
    """A command that has ended well, with all that it started.

    seconds : from start to exit of the command itself, wall clock.
    cpu_seconds : user and system time of the whole tree.
    lines : of standard error, each with the second at which it came.
    peak_mb : largest sum of PSS over the tree, MB of 10^6 bytes; 0 when memory was not watched.
    peak_parts : that sum by process, "role pid" to MB.
    """

    seconds: float
    cpu_seconds: float
    stdout: str
    lines: tuple[tuple[float, str], ...]
    peak_mb: float
    peak_parts: dict[str, float]

    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.stdout)


def fedseal(*arguments: str) -> list[str]:
    """The installed command, as a shell would start it."""
    return [str(Path(sys.executable).with_name("fedseal")), *arguments]


def run_tree(
    command: Sequence[str], *, memory: bool = False, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Finished:
    """Run `command` to its end and that of its descendants; `env` is added to the environment.

    Raises
    ------
    RuntimeError : it exited with another status than 0; the text holds the end of its standard error.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0)
    lines: list[tuple[float, str]] = []
    cpu = _children_cpu()
    with tempfile.TemporaryFile("w+") as stdout:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stderr is not None
        reader = threading.Thread(target=_stamp, args=(process.stderr, began, lines), daemon=True)
        reader.start()
        watch = _Watch(process.pid) if memory else None
        try:
            seconds = _wait(process, began, watch)
        finally:
            _reap(process)
        reader.join(_LINGER)
        stdout.seek(0)
        text = stdout.read()
    if process.returncode != 0:
        told = "\n".join(line for _, line in lines[-15:])
        raise RuntimeError(f"{' '.join(command)}: exit status {process.returncode}\n{told}")
    peak, parts = (watch.peak, watch.parts) if watch else (0.0, {})
    return Finished(seconds, _children_cpu() - cpu, text, tuple(lines), peak, parts)


def peak_rss_mb() -> float:
    """The calling process's own peak of resident memory so far, MB of 10^6 bytes."""
    return _kilobytes(_PROC / "self" / "status", "VmHWM:") * 1024 / 1e6


def _wait(process: subprocess.Popen[str], began: float, watch: _Watch | None) -> float:
    if watch is None:
        process.wait()
        return time.perf_counter() - began
    while process.poll() is None:
        watch.look()
        time.sleep(0.1)
    return time.perf_counter() - began


def _stamp(stream: IO[str], began: float, lines: list[tuple[float, str]]) -> None:
    lines.extend((time.perf_counter() - began, line.rstrip()) for line in stream)


def _reap(process: subprocess.Popen[str]) -> None:
    """Wait for what the command left behind; what stays too long is ended, being ours."""
    if process.poll() is None:
        process.kill()
        process.wait()
    end = time.monotonic() + _LINGER
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            if time.monotonic() > end:
                for child in _descendants(os.getpid()):
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.02)


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class _Watch:
    """The largest sum of PSS seen over a process and its descendants."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak = 0.0
        self.parts: dict[str, float] = {}

    def look(self) -> None:
        # all descendants of this process: with the subreaper set, none of the command's can be elsewhere
        pids = _descendants(os.getpid())
        parts = {f"{_role(pid)} {pid}": _kilobytes(_PROC / str(pid) / "smaps_rollup", "Pss:") for pid in pids}
        megabytes = {name: kb * 1024 / 1e6 for name, kb in parts.items() if kb}
        if _descendants(os.getpid()) != pids:
            return  # a fork between two readings would count its pages twice
        if (total := sum(megabytes.values())) > self.peak:
            self.peak, self.parts = total, megabytes


def _descendants(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                # the name in parentheses may hold spaces; what follows it does not
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue  # it has just ended
    found, frontier = [], [pid]
    while frontier:
        frontier = [child for child, parent in parents.items() if parent in frontier]
        found += frontier
    return found


def _role(pid: int) -> str:
    try:
        command = (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "gone"
    if not command:
        return "gone"
    for mark, role in (("mlflow_process", "mlflow"), ("resource_tracker", "tracker"), ("forkserver", "workers")):
        if mark in command:
            return role
    return "run"


def _kilobytes(path: Path, key: str) -> int:
    """The value of a `Key:  123 kB` line; 0 when the process is gone."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1])
    except OSError:
        return 0
    return 0
