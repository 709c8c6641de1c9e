"""A round with one million parameters: what encryption adds, what travels, and what the coordinator keeps in memory.

`python -m experiments.bench_rounds` runs the same job with and without encryption, four parties, in turn, and looks at
steady rounds: from one aggregate on the ledger to the next, local training and evaluation included, the first round
left out.  Then two rounds with 8 and with 64 parties: the coordinator adds updates one by one, so that its memory does
not depend on their number.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments import million
from experiments.figures import Figure, command_line
from experiments.process_tree import run_tree

TURNS, ROUNDS, PARTIES = 3, 6, 4
FEW, MANY = 8, 64
PEER = "NVFlare with TenSEAL"


def run(job: dict[str, Any], *, memory: bool = False) -> dict[str, Any]:
    """Run a job in an empty home; `timed_run`'s report, CPU seconds and memory of the tree."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "experiments.timed_run", str(path)]
        done = run_tree(command, memory=memory, cwd=Path(folder), env={"FEDSEAL_HOME": folder})
        return done.json() | {"cpu": done.cpu_seconds, "tree_mb": done.peak_mb, "parts_mb": done.peak_parts}


def steady_rounds(report: dict[str, Any]) -> list[float]:
    """Seconds of each training round but the first."""
    ends = [at for at, kind, _, act in report["events"] if kind == "round" and act == "train"]
    return [after - before for before, after in itertools.pairwise(ends)]


def figures() -> list[Figure]:
    """Seconds a round, bytes a parameter, the coordinator's memory."""
    seconds: dict[str, list[float]] = {"none": [], "ckks": []}
    cpu: dict[str, list[float]] = {"none": [], "ckks": []}
    metrics: dict[str, float] = {}
    for _ in range(TURNS):
        for scheme, found in seconds.items():
            report = run(million.job(parties=PARTIES, rounds=ROUNDS, scheme=scheme))
            found += steady_rounds(report)
            cpu[scheme].append(report["cpu"])
            metrics = report["summary"]["metrics"]  # of ckks in the end
    plain, sealed = (statistics.median(found) for found in seconds.values())
    more_cpu = (statistics.median(cpu["ckks"]) - statistics.median(cpu["none"])) / ROUNDS
    up, down = (metrics[f"bytes_{way}"] / million.PARAMETERS for way in ("up", "down"))
    few, many = (run(million.job(parties=n, rounds=2, scheme="ckks"), memory=True) for n in (FEW, MANY))
    growth = many["peak_rss_mb"] / few["peak_rss_mb"] - 1
    return [
        Figure("1 M parameters, 4 parties: plain round", plain, "s", peer=f"{PEER}, plain: 3.2 s"),
        Figure("1 M parameters, 4 parties: encrypted round", sealed, "s", peer=f"{PEER}: 15.0 s"),
        Figure("encryption adds, a round", sealed - plain, "s", 1.3, peer=f"{PEER}: 11.8 s"),
        Figure("  in CPU seconds, all processes", more_cpu, "s"),
        Figure("bytes up, a parameter", up, "B", 7.7, peer=f"{PEER}: 61.9 MB, 62 B a parameter"),
        Figure("bytes down, a parameter", down, "B", 15.2, peer=f"{PEER}: 32.3 MB, 32 B a parameter"),
        Figure(f"coordinator's peak RSS, {FEW} parties", few["peak_rss_mb"], "MB"),
        Figure(f"coordinator's peak RSS, {MANY} parties", many["peak_rss_mb"], "MB"),
        Figure("coordinator's memory grows by", 100 * growth, "%", 10.0),
        Figure(f"peak memory of the tree (PSS), {FEW} parties", few["tree_mb"] / 1000, "GB"),
        Figure(f"peak memory of the tree (PSS), {MANY} parties", many["tree_mb"] / 1000, "GB"),
    ]


if __name__ == "__main__":
    sys.exit(command_line(__doc__ or "", figures))
