"""Speed of the ledger: signed appends, a round of ten parties, the verification of 100,000 entries.

`python -m experiments.bench_ledger [ENTRIES]` prints a table. Targets: 5,000 appends a second, signing
included, in groups of 1,000; under 10 ms a round; 100,000 entries verified in 25 s and 100 MB.

The coordinator's own statements are checked by signing again, the parties' by verifying, which takes three
times as long; signing counts in both figures, though parties sign on machines of their own. Ed25519 is the
bottleneck. `verify_cpu_seconds` tells a slow verifier from a busy machine.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fl_core.trust.checkpoint import cosign
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger

GROUP = 1000
PARTIES = 10
ROUNDS = 50
TARGETS = {
    "appends_per_second_coordinator": (">=", 5000),
    "appends_per_second_parties": (">=", 5000),
    "round_ms": ("<", 10),
    "verify_seconds": ("<=", 25),
    "verify_peak_mb": ("<=", 100),
}
VERIFY = """
import json, resource, sys
from fl_core.trust.verify import verify_ledger
report = verify_ledger(sys.argv[1])
used = resource.getrusage(resource.RUSAGE_SELF)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
figures = {"seconds": report.seconds, "cpu": used.ru_utime + used.ru_stime, "mb": peak / 1024}
print(json.dumps({"first_bad": report.first_bad, "size": report.size, **figures}))
"""


def run(entries: int = 100_000) -> dict[str, float]:
    """Measure in a temporary folder; return the figures by the names of `TARGETS`, and two more."""
    coordinator = Identity.create("coordinator")
    parties = [Identity.create(f"party-{number}") for number in range(PARTIES)]
    with tempfile.TemporaryDirectory() as folder, Ledger.open(Path(folder) / "l.db", coordinator) as ledger:
        cards = [say(ledger, party, "card", {"card": party.card.to_dict()}) for party in parties]
        ledger.commit(cards)
        figures = {"round_ms": 1000 * statistics.median(one_round(ledger, parties, n) for n in range(ROUNDS))}
        groups = max((entries - ledger.size) // GROUP, 2)
        for name, signers in (("coordinator", [coordinator]), ("parties", parties)):
            count = groups // 2
            started = time.perf_counter()
            for number in range(count):
                ledger.commit(group(ledger, signers, number))
            figures[f"appends_per_second_{name}"] = count * GROUP / (time.perf_counter() - started)
        while (missing := entries - ledger.size) > 0:
            ledger.commit(group(ledger, parties, groups)[:missing])
        return figures | verify(Path(folder) / "l.db")


def say(ledger: Ledger, identity: Identity, kind: str, body: dict[str, object]) -> Statement:
    """Sign a statement of the size that rounds make."""
    return Statement.make(identity, log=ledger.log, kind=kind, run="bench", body=body)


def group(ledger: Ledger, signers: list[Identity], number: int) -> list[Statement]:
    """Sign one group."""
    return [
        say(ledger, signers[n % len(signers)], "update", {"round": number, "n": n, "digest": "5a" * 32})
        for n in range(GROUP)
    ]


def one_round(ledger: Ledger, parties: list[Identity], number: int) -> float:
    """Return the coordinator's seconds to order ten statements, sign a checkpoint, store co-signatures."""
    statements = [say(ledger, party, "update", {"round": number, "digest": "5a" * 32}) for party in parties]
    started = time.perf_counter()
    entries, note = ledger.commit(statements)
    seconds = time.perf_counter() - started
    lines = {party.name: cosign(party, note) for party in parties}
    started = time.perf_counter()
    ledger.add_cosignatures(entries[-1].seq + 1, lines)
    return seconds + time.perf_counter() - started


def verify(path: Path) -> dict[str, float]:
    """Verify in a fresh process, as an auditor would."""
    command = [sys.executable, "-c", VERIFY, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    if result["first_bad"] is not None:
        raise RuntimeError(f"the ledger does not verify at entry {result['first_bad']}")
    return {
        "verify_entries": result["size"],
        "verify_seconds": result["seconds"],
        "verify_cpu_seconds": result["cpu"],
        "verify_peak_mb": result["mb"],
    }


def main() -> int:
    """Print the figures against their targets; return 1 if one is missed."""
    figures = run(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
    missed = 0
    for name, value in figures.items():
        relation, target = TARGETS.get(name, ("", None))
        met = target is None or (value >= target if relation == ">=" else value <= target)
        missed += not met
        print(f"{name:34} {value:12,.1f}   {relation:>2} {target or '':<8} {'' if met else 'MISSED'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
