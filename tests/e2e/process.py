"""The command line as a person has it: real processes in a folder and a home of their own."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
DEMO = REPO / "experiments" / "demo.toml"
FEDSEAL = [str(Path(sys.executable).with_name("fedseal"))]
LONG = 300.0
TAG = "FEDSEAL_TEST_TAG"

QUICK = """
kind = "horizontal"
name = "{name}"
seed = 3
{parties}
[model]
name = "logistic"
[train]
rounds = {rounds}
learning_rate = 0.5
batch_size = 64
"""
OWN = '[[party]]\nname = "{name}"\ndata = "{data}"\nid = "id"\nlabel = "y"\n'
DIGITS = '[dataset]\nname = "digits"\nparties = 4'


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Stdout as the one JSON object it must be."""
        return dict(json.loads(self.out))

    def fails(self, code: int) -> str:
        """The one line on stderr of a command that failed with `code`; progress lines may stand before it."""
        assert self.code == code, self
        assert "Traceback" not in self.err, self.err
        said = [line for line in self.err.splitlines() if line.startswith("fedseal: ")]
        assert len(said) == 1, self.err
        assert self.err.rstrip().endswith(said[0]), self.err
        return said[0]


class Running:
    """A command that goes on; its stderr is read as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.lines = process, []
        self._out: list[str] = []
        self._readers = [threading.Thread(target=t, daemon=True) for t in (self._read_err, self._read_out)]
        for reader in self._readers:
            reader.start()

    def _read_err(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    def _read_out(self) -> None:
        assert self.process.stdout is not None
        self._out.append(self.process.stdout.read())

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_for(self, text: str, seconds: float = LONG) -> None:
        """Wait until a line of stderr holds `text`."""
        wait_until(lambda: any(text in line for line in self.lines) or self.process.poll() is not None, text, seconds)
        assert any(text in line for line in self.lines), "".join(self.lines)

    def wait_for_silence(self, seconds: float) -> None:
        """Wait until nothing was said for so long."""
        said = -1
        while said != len(self.lines):
            said = len(self.lines)
            time.sleep(seconds)

    def end(self, seconds: float = LONG) -> Done:
        """Wait for the end."""
        code = self.process.wait(seconds)
        for reader in self._readers:
            reader.join(seconds)
        return Done(code, "".join(self._out), "".join(self.lines))

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


class Place:
    """A folder with a home; all processes started from it carry a tag, so that none can get lost."""

    def __init__(self, path: Path, command: list[str] = FEDSEAL) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path, self.home, self.command = path, path / "home", command
        self.tag = uuid.uuid4().hex
        ours = ("FEDSEAL_HOME", "MLFLOW_TRACKING_URI", "PYTHONPATH", "PYTEST_CURRENT_TEST", "COLUMNS")
        self.env = {k: v for k, v in os.environ.items() if k not in ours}
        self.env |= {"FEDSEAL_HOME": str(self.home), TAG: self.tag, "COLUMNS": "200"}

    def job(self, name: str = "quick", *, rounds: int = 3, parties: str = DIGITS, more: str = "") -> Path:
        """Write a small job file."""
        path = self.path / f"{name}.toml"
        path.write_text(QUICK.format(name=name, rounds=rounds, parties=parties) + more, encoding="utf-8")
        return path

    def table(self, name: str, rows: int, *, columns: str = "abc", labels: int = 2) -> str:
        """Write a csv of a party's own; features of about one, labels that depend on them."""
        rng = random.Random(name)
        lines = [",".join(["id", *columns, "y"])]
        for row in range(rows):
            values = [rng.gauss(0.0, 1.0) for _ in columns]
            label = row % labels if row < labels else int(values[0] > 0)
            lines.append(",".join([f"{name}{row}", *(f"{v:.5f}" for v in values), str(label)]))
        (self.path / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return f"{name}.csv"

    def start(self, *arguments: object, command: list[str] | None = None, **env: str) -> Running:
        """Start `fedseal ARGUMENTS`."""
        words = [*(command or self.command), *map(str, arguments)]
        return Running(
            subprocess.Popen(
                words,
                cwd=self.path,
                env={**self.env, **env},
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )

    def fedseal(self, *arguments: object, **env: str) -> Done:
        """Run `fedseal ARGUMENTS` to its end."""
        return self.start(*arguments, **env).end()

    def processes(self) -> dict[int, str]:
        """Every live process that was started from here, and its command line."""
        mark = f"{TAG}={self.tag}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it ended while we looked
                continue
        return {pid: words for pid, words in found.items() if words and state(pid) not in "ZX"}

    def workers(self, run: Running) -> list[int]:
        """The worker processes of a run: children of its fork server, oldest first."""
        found = self.processes()
        servers = [p for p, words in found.items() if "multiprocessing.forkserver" in words and parent(p) == run.pid]
        return sorted(p for p in found if parent(p) in servers)

    def clear(self) -> None:
        """End what a failed test left."""
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)


def state(pid: int) -> str:
    """The letter of a process's state; X when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def parent(pid: int) -> int:
    """The process's parent; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def wait_until(condition: Callable[[], object], what: str, seconds: float = LONG) -> None:
    """Wait, and say for what when it was too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.01)
