"""A deployment on loopback, for benchmarks: a coordinator, nodes, an engineer, each with a home of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.process_tree import ROOT, fedseal

WAIT = 120.0
PORTS = ("--port", "--door-port", "--health-port", "--exchange-port")


class Loopback:
    """The processes; `home(who)` is a participant's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.services: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = [_free_port() for _ in range(4)]

    def home(self, who: str) -> Path:
        """Where a participant keeps everything."""
        return self.path / who

    def command(self, who: str, *words: str) -> str:
        """Run one command to its end; its stdout."""
        done = subprocess.run(fedseal(*words), env=self._env(who), cwd=self.path, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{who}: fedseal {' '.join(words)}: {done.stderr[-2000:]}")
        return done.stdout

    def start(self, who: str, *words: str, until: str) -> float:
        """Start a service and wait until its log holds `until`; the seconds that took."""
        log, began = self.path / f"{who}.log", time.monotonic()
        with log.open("wb") as out:
            self.services[who] = subprocess.Popen(fedseal(*words), env=self._env(who), cwd=self.path, stderr=out)
        wait_for(lambda: until in log.read_text(), f"{who}: {until}")
        return time.monotonic() - began

    def stop(self, who: str) -> None:
        """End a service in order."""
        service = self.services.pop(who)
        service.send_signal(signal.SIGTERM)
        service.wait(WAIT)

    def make(self, nodes: Sequence[str]) -> None:
        """Coordinator, nodes, an engineer called ann; all started."""
        self.path.mkdir(parents=True, exist_ok=True)
        ports = [w for pair in zip(PORTS, map(str, self._ports), strict=True) for w in pair]
        self.command("coordinator", "coordinator", "init", "--host", "localhost", "--bind", "127.0.0.1", *ports)
        self.start("coordinator", "coordinator", "start", until="ready")
        for name in nodes:
            allow = ("--allow-code", "experiments.million:dataset")
            where = ("--coordinator", f"localhost:{self._ports[0]}")
            card = json.loads(self.command(name, "node", "init", "--name", name, *where, *allow, "--json"))["card"]
            self.command("coordinator", "coordinator", "register", card)
            self.start(name, "node", "start", until="connected")
            log = self.home(name) / "parties" / name / "logs" / "executor.log"
            wait_for(lambda log=log: "ready" in log.read_text(), f"{name}: its executor")
        person = str(self.path / "ann.pass")
        self.command("coordinator", "coordinator", "admit", "ann", "--role", "engineer", "--out", person)
        self.command("ann", "login", person)

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run a job to its end; the summary."""
        path = self.path / f"{job['name']}.json"
        path.write_text(json.dumps(job))
        code = "import json, sys; from server import run_job; print(json.dumps(run_job(json.load(open(sys.argv[1])))))"
        words = [sys.executable, "-c", code, str(path)]
        done = subprocess.run(words, env=self._env("ann"), cwd=self.path, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{job['name']}: {done.stderr[-2000:]}")
        return dict(json.loads(done.stdout))

    def processes(self) -> dict[int, str]:
        """Process ids of all that runs, and what each is."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if str(self.path).encode() in (entry / "environ").read_bytes():
                        found[int(entry.name)] = _role((entry / "cmdline").read_bytes().decode().split("\0"))
                except OSError:
                    continue
        return found

    def end(self) -> None:
        """End all services."""
        for who in list(self.services)[::-1]:
            self.stop(who)

    def _env(self, who: str) -> dict[str, str]:
        return {**os.environ, "FEDSEAL_HOME": str(self.home(who)), "PYTHONPATH": str(ROOT)}


@contextmanager
def loopback(path: Path, nodes: Sequence[str]) -> Iterator[Loopback]:
    """A federation for as long as the block lasts."""
    made = Loopback(path)
    try:
        made.make(nodes)
        yield made
    finally:
        made.end()


def wait_for(condition: Any, what: str) -> None:
    """Wait up to `WAIT` seconds."""
    end = time.monotonic() + WAIT
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {WAIT:g} s for {what}")
        time.sleep(0.02)


def _role(words: list[str]) -> str:
    for mark in ("start_superlink", "run_process", "mlflow_process", "supernode", "executor"):
        if any(mark in word for word in words):
            return mark
    return " ".join(word for word in words if word in ("coordinator", "node"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
