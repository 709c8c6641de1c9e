"""The demo job from shell to shell: digits, four parties, five rounds, CKKS and DP-SGD.

`python -m experiments.bench_digits` runs the installed `fedseal` command as a process of its own in an empty home: once
to warm the disk cache, `RUNS` times for the seconds, once more for the memory of the whole process tree.
"""

from __future__ import annotations

import re
import statistics
import sys
import tempfile
from pathlib import Path

from experiments.figures import Figure, command_line
from experiments.process_tree import ROOT, Finished, fedseal, run_tree

DEMO = ROOT / "experiments" / "demo.toml"
RUNS = 5
PEER = "NVFlare simulator, no encryption, no DP: 46 to 54 s, 2.0 GB"
STAGES = (  # what ends a stage, as the command says it on standard error
    ("start, data, keys", re.compile(r"joined: ")),
    ("first round", re.compile(r"round 1: ")),
    ("other rounds", re.compile(r"evaluation: ")),
    ("closing", re.compile(r"model after round 5: ")),  # its last line: told by the closing replies
)


def demo(*, memory: bool = False) -> Finished:
    """One run in an empty home."""
    with tempfile.TemporaryDirectory() as folder:
        return run_tree(
            fedseal("run", str(DEMO), "--json"), memory=memory, cwd=Path(folder), env={"FEDSEAL_HOME": folder}
        )


def stages(done: Finished) -> dict[str, float]:
    """Seconds of each stage; the last is the report, MLflow's delivery and the exit."""
    out, before = {}, 0.0
    for name, pattern in STAGES:
        at = next(second for second, line in done.lines if pattern.search(line))
        out[name], before = at - before, at
    return out | {"report, MLflow, exit": done.seconds - before}


def figures() -> list[Figure]:
    """Seconds, where they go, and memory."""
    demo()
    runs = [demo() for _ in range(RUNS)]
    watched = demo(memory=True)
    out = [
        Figure("digits: seconds, shell to shell", statistics.median(r.seconds for r in runs), "s", 10.0, peer=PEER),
        Figure("digits: slowest run", max(r.seconds for r in runs), "s"),
        Figure("digits: CPU seconds, all processes", statistics.median(r.cpu_seconds for r in runs), "s"),
    ]
    parts = [stages(r) for r in runs]
    for name in parts[0]:
        out.append(Figure(f"digits:   {name}", statistics.median(p[name] for p in parts), "s"))
    out.append(Figure("digits: peak memory of the tree (PSS)", watched.peak_mb / 1000, "GB", 0.8, peer=PEER))
    roles: dict[str, float] = {}
    for name, megabytes in watched.peak_parts.items():
        role = name.split()[0]
        roles[role] = roles.get(role, 0.0) + megabytes
    out += [Figure(f"digits:   {role}", value / 1000, "GB") for role, value in sorted(roles.items())]
    return out


if __name__ == "__main__":
    sys.exit(command_line(__doc__ or "", figures))
