"""A deployment with TLS on loopback: a round, large messages, what it costs idle, how fast a node is at work.

`python -m experiments.bench_deployment` takes about four minutes; `--soak MINUTES` adds rounds for so long and looks
for growth of memory, open files and Flower's database.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from experiments.figures import Figure, as_json, table
from experiments.loopback import Loopback, loopback, wait_for

NODES = ("bank", "bureau")
FLOWER = "Flower's own way: 6 to 10 s, and 5 s of imports a message"
IDLE_SECONDS = 60.0
TICKS = os.sysconf("SC_CLK_TCK")


def job(name: str, *, rounds: int, large: bool = False) -> dict[str, Any]:
    """digits with the default MLP, or a model whose sums are messages of 8 MB."""
    found: dict[str, Any] = {
        "kind": "horizontal",
        "name": name,
        "seed": 1,
        "runtime": "deployment",
        "dataset": {"name": "experiments.million:dataset" if large else "digits"},
        "party": [{"name": n} for n in NODES],
        "model": {"name": "mlp", "hidden": [560, 870]} if large else {"name": "mlp"},
        "train": {"rounds": rounds, "min_parties": 2, "learning_rate": 0.05},
    }
    if large:
        found["train"]["batch_size"] = 1024
    return found


def figures(*, soak: float = 0.0) -> list[Figure]:
    """Everything, in one federation."""
    with tempfile.TemporaryDirectory() as folder, loopback(Path(folder) / "deployment", NODES) as federation:
        federation.run(job("warm", rounds=1))
        digits = federation.run(job("digits", rounds=12))
        large = federation.run(job("large", rounds=6, large=True))
        found = [
            Figure("a round of digits, 2 warm nodes", digits["metrics"]["round_seconds"], "s", 3.0, peer=FLOWER),
            Figure("a round with messages of 8 MB", large["metrics"]["round_seconds"], "s", 4.0),
            Figure("  bytes down, a party", large["metrics"]["bytes_down"] / 1e6, "MB"),
            Figure("idle: coordinator and 2 nodes", _idle(federation), "cores", 0.3),
            Figure("node start to first answer", _start(federation), "s", 10.0),
        ]
        return found + (_soak(federation, soak) if soak else [])


def _idle(federation: Loopback) -> float:
    """Cores in use while nothing happens."""
    time.sleep(15.0)
    before, began = _cpu(federation), time.monotonic()
    time.sleep(IDLE_SECONDS)
    return (_cpu(federation) - before) / (time.monotonic() - began)


def _cpu(federation: Loopback) -> float:
    total = 0.0
    for pid in federation.processes():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / TICKS
    return total


def _start(federation: Loopback) -> float:
    """From the command to the answer to a message that waits for the node."""
    name = NODES[0]
    federation.stop(name)
    began: list[float] = []

    def again() -> None:
        began.append(time.monotonic())
        federation.start(name, "node", "start", until="connected")

    starting = threading.Timer(3.0, again)
    starting.start()
    activity = federation.home(name) / "parties" / name / "runs"
    known = set(activity.iterdir())
    running = threading.Thread(target=federation.run, args=(job("start", rounds=1),))
    running.start()
    wait_for(
        lambda: any((p / "state.npz").exists() for p in set(activity.iterdir()) - known), "the node's first answer"
    )
    seconds = time.monotonic() - began[0]
    running.join()
    starting.join()
    return seconds


def _soak(federation: Loopback, minutes: float) -> list[Figure]:
    """Rounds for so long: memory and open files of each process after a tenth of the time and at the end."""
    rounds = 100_000
    running = threading.Thread(target=_until_stopped, args=(federation, rounds), daemon=True)
    running.start()
    time.sleep(max(60.0, 6.0 * minutes))
    early = _sizes(federation)
    time.sleep(54.0 * minutes)
    late = _sizes(federation)
    database = federation.home("coordinator") / "coordinator" / "state.db"
    size = sum(p.stat().st_size for p in database.parent.glob("state.db*")) / 1e6
    federation.command("ann", "stop", "soak")
    running.join(120)
    grown = {
        pid: (late[pid][0] - early[pid][0], late[pid][1] - early[pid][1], late[pid][2]) for pid in early if pid in late
    }
    worst = max(grown.values())
    files = max(grown.values(), key=lambda g: g[1])
    return [
        Figure(f"soak of {minutes:g} min: rounds", _rounds(federation), ""),
        Figure("  memory grows by at most", worst[0], "MB", 30.0, peer=worst[2]),
        Figure("  open files grow by at most", files[1], "", 4, peer=files[2]),
        Figure("  Flower's database at the end", size, "MB", 50.0),
    ]


def _until_stopped(federation: Loopback, rounds: int) -> None:
    try:
        federation.run(job("soak", rounds=rounds))
    except RuntimeError as error:
        if "stopped" not in str(error):
            print(error, file=sys.stderr)


def _rounds(federation: Loopback) -> int:
    shown = federation.command("coordinator", "audit", "show", "soak", "--kind", "aggregate")
    return len(shown.splitlines()) - 1


def _sizes(federation: Loopback) -> dict[int, tuple[float, int, str]]:
    """Resident MB, open files and role of each process."""
    found = {}
    for pid, role in federation.processes().items():
        status = Path(f"/proc/{pid}/status").read_text()
        rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        found[pid] = (rss * 1024 / 1e6, len(list(Path(f"/proc/{pid}/fd").iterdir())), role)
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="A deployment on loopback.")
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    found = figures(soak=options.soak)
    print(as_json(found) if options.json else table(found))
    return 0 if all(f.met for f in found) else 1


if __name__ == "__main__":
    sys.exit(main())
