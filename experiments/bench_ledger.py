"""Speed of the ledger: signed appends, a round of ten parties, the verification of 100,000 entries and of packs.

`python -m experiments.bench_ledger [ENTRIES]` prints a table. Targets: 5,000 appends a second, signing
included, in groups of 1,000; under 10 ms a round; 100,000 entries, as a ledger and as a pack of the whole log,
verified on two cores in 15 s and 100 MB; the pack of a run of 50 rounds and 10 parties in 2 s.

The coordinator's own statements are checked by signing again, the parties' by verifying, which takes three
times as long; signing counts in both figures, though parties sign on machines of their own. Ed25519 is the
bottleneck. CPU seconds, of the verifier and its worker, tell a slow verifier from a busy machine; memory is the
sum of both peaks.
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
from fl_core.trust.pack import write_pack

GROUP = 1000
PARTIES = 10
ROUNDS = 50
TARGETS = {
    "appends_per_second_coordinator": (">=", 5000),
    "appends_per_second_parties": (">=", 5000),
    "round_ms": ("<", 10),
    "verify_seconds": ("<=", 15),
    "verify_peak_mb": ("<=", 100),
    "pack_verify_seconds": ("<=", 15),
    "pack_verify_peak_mb": ("<=", 100),
    "run_pack_verify_seconds": ("<=", 2),
}
VERIFY = """
import json, os, resource, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
from fl_core.trust.verify import verify_ledger, verify_pack
report = (verify_pack if os.path.isdir(sys.argv[1]) else verify_ledger)(sys.argv[1])
own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
cpu = own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime
figures = {"seconds": report.seconds, "cpu": cpu, "mb": (peak + others.ru_maxrss) / 1024}
print(json.dumps({"status": report.status, "reason": report.reason, "size": report.size, **figures}))
"""


def run(entries: int = 100_000) -> dict[str, float]:
    """Measure in a temporary folder; return the figures by the names of `TARGETS`, and some more."""
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
            ledger.commit(group(ledger, parties, ledger.size)[:missing])
        pack = write_pack(ledger, "bench", Path(folder) / "pack", whole=True).path
        figures |= {"verify_entries": ledger.size} | verify(Path(folder) / "l.db", "verify")
        figures |= verify(pack, "pack_verify")
        return figures | verify(run_pack(Path(folder), coordinator, parties), "run_pack_verify")


def run_pack(folder: Path, coordinator: Identity, parties: list[Identity]) -> Path:
    """Write the pack of a finished run on a ledger of its own: `ROUNDS` rounds, each co-signed by all."""
    with Ledger.open(folder / "run.db", coordinator) as ledger:
        names = [party.name for party in parties]
        ledger.commit([say(ledger, party, "card", {"card": party.card.to_dict()}) for party in parties])
        ledger.commit([say(ledger, coordinator, "roster", {"parties": names, "min_parties": 2})])
        for number in range(1, ROUNDS + 1):
            one_round(ledger, parties, number)
            total = {"round": number, "parties": names, "missing": []}
            ledger.append([say(ledger, coordinator, kind, total | {"metrics": {}}) for kind in ("aggregate", "round")])
        note = ledger.commit([say(ledger, coordinator, "end", {"status": "done"})])[1]
        ledger.add_cosignatures(ledger.size, {party.name: cosign(party, note) for party in parties})
        return write_pack(ledger, "bench", folder / "run-pack").path


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


def verify(path: Path, name: str) -> dict[str, float]:
    """Verify in a fresh process on two cores, as an auditor would."""
    command = [sys.executable, "-c", VERIFY, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    if result["status"] == 1:
        raise RuntimeError(f"{path.name} does not verify: {result['reason']}")
    return {f"{name}_seconds": result["seconds"], f"{name}_cpu_seconds": result["cpu"], f"{name}_peak_mb": result["mb"]}


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
