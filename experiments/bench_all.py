"""All benchmarks behind docs/performance.md, and whether each limit is met.

`python -m experiments.bench_all [--only NAME] [--json]` prints one table and returns 1 if a limit is missed.  It takes
about a quarter of an hour on two cores; the seconds mean something only while nothing else runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

from experiments import (
    bench_accuracy,
    bench_aggregation,
    bench_deployment,
    bench_digits,
    bench_exchange,
    bench_ledger,
    bench_network,
    bench_predict,
    bench_psi,
    bench_rounds,
    bench_vertical,
    bench_vertical_online,
)
from experiments.figures import Figure, as_json, table
from experiments.process_tree import fedseal, run_tree


def command_line_start() -> list[Figure]:
    """How long a person waits for the list of commands."""
    seconds = [run_tree(fedseal("--help")).seconds for _ in range(6)][1:]
    return [Figure("fedseal --help", statistics.median(seconds), "s", 0.4)]


def aggregation() -> list[Figure]:
    """The cipher alone, against TenSEAL at the peer's setting in the same process."""
    report = bench_aggregation.run()
    ours, peer = report["rows"]["CKKS_2048"], report["rows"][bench_aggregation.PEER]
    rows = {
        "up": ("bytes up, a parameter", "B", "up"),
        "down": ("bytes down, a parameter", "B", "down"),
        "error": ("largest error of a sum", "", "error"),
        "encrypt_ratio": ("encrypting, of the peer's time", "", "encrypt_s"),
        "decrypt_ratio": ("decrypting, of the peer's time", "", "decrypt_s"),
    }
    return [
        Figure(f"CKKS_2048: {words}", ours[key], unit, limit, peer=f"TenSEAL, 8192, now: {peer[theirs]:.3g}")
        for key, limit in report["targets"].items()
        for words, unit, theirs in [rows[key]]
    ]


def ledger() -> list[Figure]:
    """Appending and verifying."""
    measured = bench_ledger.run()
    out = []
    for name, value in measured.items():
        relation, limit = bench_ledger.TARGETS.get(name, ("", None))
        out.append(Figure(f"ledger: {name.replace('_', ' ')}", value, "", limit, at_least=relation == ">="))
    return out


BENCHES: dict[str, Callable[[], list[Figure]]] = {
    "help": command_line_start,
    "digits": bench_digits.figures,
    "rounds": bench_rounds.figures,
    "accuracy": bench_accuracy.figures,
    "aggregation": aggregation,
    "ledger": ledger,
    "deployment": bench_deployment.figures,
    "exchange": bench_exchange.figures,
    "psi": bench_psi.figures,
    "predict": bench_predict.figures,
    "network": bench_network.figures,
    "online": bench_vertical_online.figures,
    "vertical": bench_vertical.figures,
}


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="bench_all", description="Measure, and compare with the limits.")
    parser.add_argument("--only", choices=BENCHES, metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    print(f"load before the start: {os.getloadavg()[0]:.1f}", file=sys.stderr)
    figures: list[Figure] = []
    for name in [options.only] if options.only else BENCHES:
        began = time.perf_counter()
        figures += BENCHES[name]()
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    print(as_json(figures) if options.json else table(figures))
    missed = [f.name for f in figures if not f.met]
    if missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
