"""Vertical jobs as a person runs them: how good the joint model is, and how long an epoch or a tree takes.

`python -m experiments.bench_vertical [--only NAME] [--seeds N] [--large] [--json]`.  Each figure is a whole `fedseal
run`: both parties, the coordinator and the exchange in processes of their own, aligned by private intersection, sealed.
Beside an AUC stands, measured in the same run by scikit-learn, what the label party reaches alone and what one who
held all columns would reach.  Data that are not there are skipped by name; see `experiments.vertical_data`.
`--large` adds a million made-up rows.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.figures import Figure, as_json, table
from experiments.process_tree import Finished, fedseal, run_tree
from experiments.vertical_data import ACTIVE, LOADERS, PASSIVE, Joined, folder, missing, references, toml
from fl_core.learning import datasets

METHODS: dict[str, dict[str, Any]] = {
    "logistic": {"algorithm": "logistic"},
    "binned": {"algorithm": "logistic", "bins": 10},
    "trees": {"algorithm": "gbdt", "trees": 30, "depth": 3, "learning_rate": 0.3, "bins": 32},
}
WORDS = {"logistic": "logistic", "binned": "logistic on 10 bins, strict", "trees": "30 trees"}
PICTURES = {  # data set: metric, its least value, whether the draw of the weights matters, what is known of peers
    "mnist10k": ("accuracy", 0.95, False, "earlier: left half alone 0.917, centralised 0.947"),
    "pneumoniamnist": ("auc", 0.905, True, ""),
}
CKKS_EPOCHS = 20
SEEDS = 5
LARGE_ROWS, LARGE_COLUMNS, LARGE_TREES = 1_000_000, 20, 4


@dataclass(frozen=True)
class Case:
    """A data set, a method of `METHODS`, the least AUC, the most seconds of an epoch or tree.

    peer : other systems' seconds, measured earlier.
    """

    data: str
    method: str
    auc: float | None = None
    seconds: float | None = None
    peer: str = ""


CASES = (
    Case("default_credit", "logistic", 0.706, 0.08, "earlier: SecretFlow SS-LR 0.53 s, FATE over 88 s"),
    Case("default_credit", "binned", 0.765, 0.3),
    Case("default_credit", "trees", 0.774, 0.35, "earlier: SecretFlow SGB 3.1 s"),
    Case("default_credit_raw", "logistic", 0.706),
    Case("default_credit_raw", "binned", 0.765),
    Case("default_credit_raw", "trees", 0.774),
    Case("adult", "logistic", 0.903),
    Case("adult", "trees", 0.908),
    Case("bank_marketing", "logistic", 0.798),
    Case("bank_marketing", "trees", 0.808),
    Case("diabetes130", "logistic", 0.688),
    Case("diabetes130", "trees", 0.689),
    Case("breast", "logistic", None, 0.05, "earlier: FATE coordinated / SSHE 4.2 / 9.1 s"),
    Case("breast", "trees", None, 0.1, "earlier: FATE SecureBoost / SecretFlow 13.5 / 1.5 s"),
)


def run(place: Path, *, memory: bool = False) -> Finished:
    """Run `job.toml` of a folder in a home of its own."""
    with tempfile.TemporaryDirectory() as home:
        words = fedseal("run", str(place / "job.toml"), "--json", "-q", "--home", home, "--out", str(Path(home) / "o"))
        env = {datasets.DATA_VARIABLE: str(folder())}
        return run_tree(words, memory=memory, env=env)


def metrics(place: Path, job: str) -> dict[str, float]:
    """What the summary of a job tells, run beside the files of `place`."""
    (place / "job.toml").write_text(job)
    return dict(run(place).json()["metrics"])


# ---- tables


def tables(name: str) -> list[Figure]:
    """AUC and seconds of one data set by all methods that have a limit."""
    files, load = LOADERS[name]
    cases = [case for case in CASES if case.data == name]
    if absent := missing(*files):
        return [Figure(f"{name}, {WORDS[c.method]}: AUC", 0.0, "", c.auc, at_least=True, skipped=absent) for c in cases]
    data, found = load(), []
    with tempfile.TemporaryDirectory() as place:
        data.write(Path(place))
        for case in cases:
            told = metrics(Path(place), data.job(METHODS[case.method]))
            found += _case(case, told, references(data, case.method))
        if name == "default_credit":
            found += _ckks(data, Path(place))
    return found


def _case(case: Case, told: Mapping[str, float], known: tuple[float, float]) -> list[Figure]:
    head, unit = f"{case.data}, {WORDS[case.method]}", "tree" if case.method == "trees" else "epoch"
    beside = f"alone {known[0]:.4f}, pooled {known[1]:.4f}"
    seconds = told[f"seconds_per_{unit}"]
    return [
        Figure(f"{head}: AUC", told["auc"], "", case.auc, at_least=True, peer=beside),
        Figure(f"{head}: {'a tree' if unit == 'tree' else 'an epoch'}", seconds, "s", case.seconds, peer=case.peer),
    ]


def _ckks(data: Joined, place: Path) -> list[Figure]:
    """Encrypted, without a dealer, beside the same regression under shares, both trained until they change no more."""
    settings = {"algorithm": "logistic", "epochs": CKKS_EPOCHS}
    sealed = metrics(place, data.job({**settings, "protocol": "ckks"}))
    shared = metrics(place, data.job(settings))
    head = "default_credit, logistic, CKKS"
    return [
        Figure(f"{head}: AUC", sealed["auc"], "", peer=f"shares, {CKKS_EPOCHS} epochs: {shared['auc']:.4f}"),
        Figure(f"{head}: AUC, difference to shares", abs(sealed["auc"] - shared["auc"]), "", 0.002),
        Figure(f"{head}: an epoch", sealed["seconds_per_epoch"], "s", 1.5),
    ]


# ---- pictures


def pictures(name: str, seeds: int) -> list[Figure]:
    """Pictures cut in two, the left half at the party with the label; tested on the official pictures."""
    metric, limit, drawn, peer = PICTURES[name]
    head, runs = f"{name} halves, split networks", seeds if drawn else 1
    if absent := missing(f"{name}.npz"):
        return [Figure(f"{head}: {metric}", 0.0, "", limit, at_least=True, skipped=absent)]
    with tempfile.TemporaryDirectory() as place:
        told = [metrics(Path(place), halves(name, seed)) for seed in range(1, runs + 1)]
    found = [t[metric] for t in told]
    out = [Figure(f"{head}: {metric}, least of {runs}", min(found), "", limit, at_least=True, peer=peer)]
    if runs > 1:
        out.append(Figure(f"{head}: {metric}, median of {runs}", statistics.median(found), ""))
    return [*out, Figure(f"{head}: an epoch", statistics.median(t["seconds_per_epoch"] for t in told), "s")]


def halves(name: str, seed: int) -> str:
    """The job of `pictures`."""
    parties = [("[party]", {"name": ACTIVE}), ("[party]", {"name": PASSIVE})]
    head = {"kind": "vertical", "name": "bench", "seed": seed}
    return toml(head, [("dataset", {"name": name}), *parties, ("vertical", {"algorithm": "split-nn"})])


# ---- a million rows


def million() -> list[Figure]:
    """Some trees on a million rows of made-up numbers, with the memory of all processes."""
    settings = {**METHODS["trees"], "trees": LARGE_TREES}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        _made_up(place)
        parties = [("[party]", {"name": p, "data": f"{p}.csv", "id": ["id"]}) for p in (ACTIVE, PASSIVE)]
        parties[0][1]["label"] = "y"
        sections = [*parties, ("vertical", settings), ("session", {"timeout": 3600})]
        (place / "job.toml").write_text(toml({"kind": "vertical", "name": "bench", "seed": 7}, sections))
        done = run(place, memory=True)
    told = done.json()["metrics"]
    words = f"1 million rows, {LARGE_COLUMNS} + {LARGE_COLUMNS} columns"
    return [
        Figure(f"{words}: a tree", told["seconds_per_tree"], "s", 15.0),
        Figure(f"{words}: memory of all processes", done.peak_mb / 1000, "GB", 8.0),
        Figure(f"{words}: the whole job, {LARGE_TREES} trees", done.seconds, "s"),
        Figure(f"{words}: AUC", told["auc"], ""),
    ]


def _made_up(place: Path) -> None:
    import pyarrow as pa
    import pyarrow.csv

    rng, n = np.random.default_rng(1), LARGE_ROWS
    ids = pa.array(np.char.add("c", np.arange(n).astype("U7")))
    logits = rng.normal(size=n)
    for party in (PASSIVE, ACTIVE):
        x = rng.normal(size=(n, LARGE_COLUMNS)).round(4)
        logits += x[:, :5].sum(axis=1) / 2
        held = pa.table({"id": ids, **{f"x{i}": x[:, i] for i in range(LARGE_COLUMNS)}})
        if party == ACTIVE:
            held = held.append_column("y", pa.array((logits > 0).astype(np.int8)))
        pa.csv.write_csv(held.take(pa.array(rng.permutation(n))), place / f"{party}.csv")


# ---- all of them

PARTS = (*LOADERS, *PICTURES)


def figures(only: Sequence[str] = (), *, seeds: int = 1, large: bool = False) -> list[Figure]:
    """All parts, or those named."""
    found = []
    for name in only or PARTS:
        began = time.perf_counter()
        found += tables(name) if name in LOADERS else pictures(name, seeds)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return found + (million() if large else [])


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Vertical learning.")
    parser.add_argument("--only", choices=PARTS, action="append", default=[], metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--seeds", type=int, help=f"runs of the x-rays; default {SEEDS}, with --only 1")
    parser.add_argument("--large", action="store_true", help="a million rows too")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    print(f"load before the start: {os.getloadavg()[0]:.1f}", file=sys.stderr)
    seeds = options.seeds or (1 if options.only else SEEDS)
    found = figures(options.only, seeds=seeds, large=options.large)
    print(as_json(found) if options.json else table(found))
    return 0 if all(f.met for f in found) else 1


if __name__ == "__main__":
    sys.exit(main())
