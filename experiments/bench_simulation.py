"""Many parties on one machine: what the simulation runtime costs, by the number of clients.

`python -m experiments.bench_simulation [--clients N ...]` runs the job of `simulation.toml` with 10, 50, 200 and 1,000
clients, each in an empty home, once for the seconds and once more for the memory of the whole process tree.  The data
are digits as long as a client has `ENOUGH` rows of them, else digits shifted by a pixel; the table says which.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import statistics
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.figures import Figure, as_json, table
from experiments.process_tree import ROOT, Finished, _descendants, run_tree

JOB = ROOT / "experiments" / "simulation.toml"
CLIENTS = (10, 50, 200, 1_000)
ROWS, ENOUGH = 1_797, 8  # of digits; what a client has at least
SHIFTED = "experiments.bench_simulation:shifted_digits"
HELD_TO = 200  # the number of clients that limits are set for
PATIENCE = 7_200.0  # seconds a round may take
TICKS = os.sysconf("SC_CLK_TCK")

Rows = NDArray[np.float32]
Labels = NDArray[np.int64]


@functools.lru_cache(maxsize=1)
def shifted_digits() -> tuple[Rows, Labels, Rows, Labels]:
    """digits five times over: as they are, and moved by a pixel to each side; 7,185 training and 1,800 test rows.

    A picture and its copies are all in the one set or all in the other.
    """
    from fl_core.learning import datasets

    raw = datasets.load("digits")
    order = np.random.default_rng(0).permutation(len(raw.y_train))
    cut = round(0.8 * len(order))
    (x, y), (x_test, y_test) = (_moved(raw.x_train[part], raw.y_train[part]) for part in (order[:cut], order[cut:]))
    return x, y, x_test, y_test


def _moved(x: Rows, y: Labels) -> tuple[Rows, Labels]:
    wide = np.pad(x.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    corners = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    moved = [wide[:, top : top + 8, left : left + 8].reshape(len(x), -1) for top, left in corners]
    return np.concatenate(moved), np.tile(y, len(corners))


def job(clients: int) -> dict[str, Any]:
    """The job of `simulation.toml` with so many parties; three quarters of them are a quorum, as there."""
    found = tomllib.loads(JOB.read_text(encoding="utf-8"))
    found["name"] = f"simulation-{clients}"
    found["dataset"] = {"name": "digits" if clients * ENOUGH <= ROWS else SHIFTED, "parties": clients}
    found["train"] |= {"min_parties": -(-3 * clients // 4), "round_timeout": PATIENCE}
    return found


@dataclass(frozen=True)
class Row:
    """One line of the table.

    clients, contributed : parties of the job, and the fewest of them in any round.
    rows : pictures a client has, held out ones included.
    round_seconds : median over the training rounds, from one aggregate on the ledger to the next.
    start_seconds : until all have joined, signed the roster and the group key is sealed.
    cpu_seconds : of all processes; `coordinator_seconds` those of the process with ServerApp, ledger and engine.
    peak_gb : largest sum of PSS over the process tree, 10^9 bytes; 0 when memory was not watched.
    up_kb : a party and round, 10^3 bytes.
    """

    clients: int
    contributed: int
    data: str
    rows: float
    round_seconds: float
    start_seconds: float
    seconds: float
    cpu_seconds: float
    coordinator_seconds: float
    peak_gb: float
    up_kb: float


def measure(clients: int, *, memory: bool = True) -> Row:
    """Run the job once or, with `memory`, twice."""
    done = _run(clients)
    told, watched = done.json(), _run(clients, memory=True) if memory else None
    shifted = job(clients)["dataset"]["name"] == SHIFTED
    return Row(
        clients,
        min(told["contributed"]),
        "digits, shifted" if shifted else "digits",
        (5 * ROWS if shifted else ROWS) / clients,
        statistics.median(after - before for before, after in itertools.pairwise([told["joined"], *told["rounds"]])),
        told["joined"],
        done.seconds,
        done.cpu_seconds,
        told["coordinator_seconds"],
        watched.peak_mb / 1e3 if watched else 0.0,
        told["bytes_up"] / 1e3,
    )


def _run(clients: int, *, memory: bool = False) -> Finished:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job(clients)), encoding="utf-8")
        command = [sys.executable, "-m", "experiments.bench_simulation", "--job", str(path)]
        # a cluster's processes are not in the tree
        env = {"FEDSEAL_HOME": folder, "RAY_ADDRESS": ""}
        with _Clock() as clock:
            done = run_tree(command, memory=memory, cwd=Path(folder), env=env)
        return replace(done, cpu_seconds=clock.seconds)


class _Clock:
    """CPU seconds of all descendants, read from /proc: raylet reaps its workers in a way that tells nobody theirs."""

    def __enter__(self) -> _Clock:
        self._seen: dict[int, int] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.3):
            for pid in _descendants(os.getpid()):
                with contextlib.suppress(OSError):  # it has just ended
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    self._seen[pid] = int(fields[11]) + int(fields[12])

    @property
    def seconds(self) -> float:
        """The sum, as each process was seen last."""
        return sum(self._seen.values()) / TICKS


def run_one(path: Path) -> dict[str, Any]:
    """Run a job in this process; when it had joined, when each training round ended, and this process's CPU seconds."""
    from server.run import run_job
    from strategies.coordination import Event

    began, joined, rounds, contributed = time.perf_counter(), 0.0, [], []

    def seen(event: Event) -> None:
        nonlocal joined
        now = time.perf_counter() - began
        print(f"{now:8.1f} s  {event.kind} {event.round}", file=sys.stderr, flush=True)
        if event.kind == "joined":
            joined = now
        elif event.kind == "round":
            contributed.append(len(event.facts["parties"]))
            if event.facts["act"] == "train":
                rounds.append(now)

    summary = run_job(json.loads(path.read_text(encoding="utf-8")), on_event=seen)
    return {
        "joined": joined,
        "rounds": rounds,
        "contributed": contributed,
        "bytes_up": summary["metrics"]["bytes_up"],
        "coordinator_seconds": time.process_time(),
    }


def figures(rows: Sequence[Row] | None = None) -> list[Figure]:
    """What is held to a limit: the run with `HELD_TO` clients, measured now unless it is among `rows`."""
    row = next((r for r in rows or () if r.clients == HELD_TO), None) or measure(HELD_TO)
    name = f"simulation, {row.clients} clients, {row.data}"
    return [
        Figure(f"{name}: fewest in a round", row.contributed, "", row.clients, at_least=True),
        Figure("  a round", row.round_seconds, "s"),
        Figure("  from start to end", row.seconds, "s"),
        Figure("  CPU seconds, all processes", row.cpu_seconds, "s"),
        Figure("  peak memory of the tree (PSS)", row.peak_gb, "GB", 24.0),
    ]


def as_markdown(rows: Sequence[Row]) -> str:
    """The table of the documentation."""
    titles = ("clients", "data", "rows a client", "a round, s", "start, s", "wall, s", "CPU, s", "coordinator's CPU, s")
    lines = [f"| {' | '.join((*titles, 'peak memory, GB', 'up a party, kB'))} |", "|" + "---|" * (len(titles) + 2)]
    for r in rows:
        numbers = (r.round_seconds, r.start_seconds, r.seconds, r.cpu_seconds, r.coordinator_seconds)
        told = [f"{r.clients:,}", r.data, f"{r.rows:.0f}", *(f"{n:,.3g}" if n < 100 else f"{n:,.0f}" for n in numbers)]
        lines.append(f"| {' | '.join((*told, f'{r.peak_gb:.2f}', f'{r.up_kb:.1f}'))} |")
    return "\n".join(lines)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What the simulation runtime costs, by the number of clients.")
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS), metavar="N")
    parser.add_argument("--no-memory", action="store_true", help="leave out the second run, which watches memory")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)  # what the measured process runs
    options = parser.parse_args()
    if options.job is not None:
        print(json.dumps(run_one(options.job)))
        return 0
    rows = []
    for clients in options.clients:
        print(f"{clients} clients; load before the start: {os.getloadavg()[0]:.1f}", file=sys.stderr)
        rows.append(measure(clients, memory=not options.no_memory))
    held = figures(rows) if any(r.clients == HELD_TO for r in rows) else []
    if options.json:
        print(json.dumps({"rows": [asdict(r) for r in rows], **json.loads(as_json(held))}, indent=1))
    else:
        print("\n\n".join([as_markdown(rows), *([table(held)] if held else [])]))
    return 0 if all(f.met for f in held) else 1


if __name__ == "__main__":
    sys.exit(main())
