"""Private set intersection from csv to csv, beside SecretFlow's C++ and openmined-psi.

`python -m experiments.bench_psi [--spu PYTHON] [--openmined PYTHON] [--large]`: the peers run in environments of their
own (`pip install spu==0.9.5`, `pip install openmined-psi==2.0.6`; each pins versions that fedseal cannot use), whose
Python is named here or in FEDSEAL_SPU_PYTHON, FEDSEAL_OPENMINED_PYTHON; without one its figures are skipped by name.
Ours is the whole job: both parties and the exchange on this machine, sealed.  Its seconds are those of the session
(keys, protocol, files written) and those of reading and hashing both csv files at once, which happens before it.
`--large` adds 10 million by 10 million ids.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.figures import Figure, as_json, table
from experiments.process_tree import fedseal, run_tree

PEERS = Path(__file__).with_name("peers")
SMALL, LARGE, HUGE = 1 << 16, 1 << 20, 10_000_000
FEW, THREE = 1000, 1 << 17
SPU, OPENMINED = os.environ.get("FEDSEAL_SPU_PYTHON"), os.environ.get("FEDSEAL_OPENMINED_PYTHON")
NAMES = "abc"
JOB = 'kind = "psi"\nname = "bench"\n{parties}\n[psi]\nreceivers = {receivers}\n[session]\ntimeout = 3600\n'
PARTY = '[[party]]\nname = "{name}"\ndata = "{name}.csv"\nid = "id"\n'


def write(folder: Path, *sizes: int, receivers: str = "") -> None:
    """A csv a party, of which half the smallest one's ids are common, and the job."""
    start = common = min(sizes) // 2
    for name, size in zip(NAMES, sizes, strict=False):
        own = [*range(common), *range(start, start + size - common)]
        start += size - common
        random.Random(name).shuffle(own)
        (folder / f"{name}.csv").write_text("id\n" + "\n".join(f"id{n:016d}" for n in own) + "\n")
    names = NAMES[: len(sizes)]
    parties = "".join(PARTY.format(name=name) for name in names)
    (folder / "job.toml").write_text(JOB.format(parties=parties, receivers=list(receivers or names)))


def ours(folder: Path, *, memory: bool = False) -> dict[str, Any]:
    """Run the job; seconds of the session and of reading, bytes, CPU seconds, memory of the largest party."""
    with tempfile.TemporaryDirectory() as home:
        words = fedseal(
            "run", str(folder / "job.toml"), "--json", "-q", "--home", home, "--out", str(Path(home) / "out")
        )
        done = run_tree(words, memory=memory)
        metrics = done.json()["metrics"]
    # the parties are the two largest of the fork server's children
    parts = sorted((mb for role, mb in done.peak_parts.items()), reverse=True)
    found = {"session": metrics["seconds"], "bytes": metrics["bytes"], "count": metrics["intersection_size"]}
    return found | {"cpu": done.cpu_seconds, "mb": parts[0] if parts else 0.0, "tree_mb": done.peak_mb}


def reading(folder: Path, parties: int) -> float:
    """Seconds until all parties have read and hashed their files, at the same time."""
    fork = multiprocessing.get_context("fork")
    began = time.perf_counter()
    processes = [fork.Process(target=_read, args=(str(folder / f"{name}.csv"),)) for name in NAMES[:parties]]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return time.perf_counter() - began


def _read(path: str) -> None:
    from clients.sources import read_ids
    from fl_core.protocols.psi.ids import hash_ids

    hash_ids(read_ids(Path(path), ["id"], where="bench").columns, ["id"], where="bench")


def peer(script: str, python: str | None, *arguments: str) -> dict[str, Any] | None:
    """Run a peer's script; None where its environment is not named."""
    if not python:
        return None
    words = [python, str(PEERS / script), *arguments]
    out = subprocess.run(words, capture_output=True, text=True, check=True, timeout=900).stdout
    return dict(json.loads(out.splitlines()[-1]))


def figures(spu: str | None = SPU, openmined: str | None = OPENMINED, *, large: bool = False) -> list[Figure]:
    """All sizes; see the module."""
    import pyarrow.csv  # noqa: F401  # the children that read find it imported, as the parties do

    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found += _million(folder, spu)
        found += _small(folder, openmined)
        found += _others(folder)
        if large:
            found += _huge(folder)
    return found


def _million(folder: Path, spu: str | None) -> list[Figure]:
    write(folder, LARGE, LARGE)
    theirs = peer("psi_spu.py", spu, "RR22", str(folder))
    run, read = ours(folder), reading(folder, 2)
    assert run["count"] == LARGE // 2
    again, more = peer("psi_spu.py", spu, "RR22", str(folder)), ours(folder)
    seconds = min(run["session"], more["session"]) + read
    base = min(theirs["seconds"], again["seconds"]) if theirs and again else 0.0
    party = ours(folder, memory=True)["mb"]
    return [
        Figure("2^20 × 2^20, csv to csv", seconds, "s", peer=f"spu RR22, now: {base:.3g} s" if base else ""),
        Figure("  of it reading and hashing", read, "s"),
        Figure("  of spu's time", seconds / base if base else 0.0, "", 1.2, skipped="" if base else "no --spu PYTHON"),
        Figure("  messages", run["bytes"] / 1e6, "MB", 110.0),
        Figure("  CPU of the whole job", run["cpu"], "s", peer=f"spu: {theirs['cpu_seconds']:.3g} s" if theirs else ""),
        Figure("  a party's memory", party, "MB", 350.0),
    ]


def _small(folder: Path, openmined: str | None) -> list[Figure]:
    write(folder, 10, 10)
    few = min(ours(folder)["cpu"] for _ in range(3))  # what starting, recording and ending a job costs
    write(folder, SMALL, SMALL)
    theirs = peer("psi_openmined.py", openmined, str(folder))
    cpu = min(ours(folder)["cpu"] for _ in range(3)) - few
    told = f"openmined-psi, now: {theirs['cpu_seconds']:.3g} s" if theirs else ""
    skipped = "" if theirs else "no --openmined PYTHON"
    return [
        Figure("2^16 × 2^16: CPU over a job of ten ids", cpu, "s", peer=told),
        Figure(
            "  openmined-psi's CPU to ours",
            theirs["cpu_seconds"] / cpu if theirs else 0.0,
            "",
            25.0,
            at_least=True,
            skipped=skipped,
        ),
    ]


def _others(folder: Path) -> list[Figure]:
    write(folder, THREE, THREE, THREE)
    three = ours(folder)["session"]
    write(folder, FEW, LARGE, receivers="a")
    few = ours(folder)
    return [
        Figure("three parties × 2^17, ecdh", three, "s", 60.0),
        Figure("1,000 against 2^20", few["session"], "s", 15.0),
        Figure("  messages", few["bytes"] / 1e6, "MB", 20.0),
    ]


def _huge(folder: Path) -> list[Figure]:
    write(folder, HUGE, HUGE)
    run = ours(folder, memory=True)
    return [
        Figure("10 million × 10 million", run["session"] + reading(folder, 2), "s", 240.0),
        Figure("  memory of all processes", run["tree_mb"] / 1000, "GB", 8.0),
        Figure("  messages", run["bytes"] / 1e6, "MB"),
    ]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Private set intersection.")
    parser.add_argument("--spu", default=SPU, metavar="PYTHON")
    parser.add_argument("--openmined", default=OPENMINED, metavar="PYTHON")
    parser.add_argument("--large", action="store_true", help="10 million ids too")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    found = figures(options.spu, options.openmined, large=options.large)
    print(as_json(found) if options.json else table(found))
    return 0 if all(f.met for f in found) else 1


if __name__ == "__main__":
    sys.exit(main())
