"""Encrypted inference under load: a real `fedseal serve` and fifty clients, at its peak, below it, and far above it.

A logistic model of 30 features; nine calls in ten are a single row, the tenth a block of 256 rows.  Each client has an
identity, a key and a connection of its own, and checks every answer (`load_clients`).

- *Peak*: 50 clients, each with a call under way all the time.
- *Below*: calls come at random (Poisson) at 60 % of the peak, whatever the server does.
- *Above*: the same at ten times the peak.  Half of the clients wait as the server's hint says, the others come again at
  once; a call is given up after five seconds.  A client has at most 16 calls on the wire: what comes while they are all
  under way is dropped at the client and counts as offered.

Goodput counts right answers in time, a block as many rows as it costs the server alone, so that a server that takes
the cheap ones does not look better.  The server has the first core to itself, the clients the others.

Run: ``python -m experiments.bench_load``, five minutes; ``--quick`` for two; ``--json``
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from experiments.figures import Figure, as_json, table
from experiments.load_clients import FEATURES, GRACE, Load, Tally, run_clients
from experiments.loopback import _free_port, wait_for
from experiments.process_tree import ROOT, fedseal

PROCESSES = 2
PATIENCE = 5.0  # seconds after which a call is given up, above capacity


# ---------------------------------------------------------------------------------------------- server


def model_file(path: Path) -> tuple[Any, float]:
    """Write a logistic `model.pt`; its weights and bias in the scale that clients send in."""
    from fl_core.job import Model
    from fl_core.learning.models import Meta, build_model, save_model
    from server.serving.sources import load_linear

    spec = Model("logistic", classes=("no", "yes"))
    net = build_model(spec, input_shape=(FEATURES,), image_shape=None, num_classes=2, seed=1)
    names = tuple(f"measure_{i:02d}" for i in range(FEATURES))
    mean, std = np.linspace(-3, 3, FEATURES), np.linspace(0.5, 4, FEATURES)
    save_model(path, net, spec, Meta((FEATURES,), None, ("no", "yes"), names, mean, std))
    linear = load_linear(path)
    return linear.weights[0], float(linear.bias[0])


@contextmanager
def first_core() -> Iterator[None]:
    """What is started in here runs on the first core, this process on the others."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores[1:] or cores)


class Service:
    """`fedseal serve` in a folder, for clients whose folders are given."""

    def __init__(self, path: Path, clients: list[Path]) -> None:
        from fl_core.trust.identity import Identity

        self.model = model_file(path / "model.pt")
        cards = []
        for client in clients:
            card = client.with_suffix(".card")
            card.write_text(json.dumps(Identity.load_or_create(client, client.name).card.to_dict()))
            cards += ["--client", str(card)]
        listen = f"127.0.0.1:{_free_port()}"
        words = ["serve", "--model", f"bench={path / 'model.pt'}", "--listen", listen, *cards]
        words += ["--rows-a-day", str(10**9), "--requests-a-second", str(10**6)]
        log = path / "serve.log"
        env = {**os.environ, "FEDSEAL_HOME": str(path / "home"), "PYTHONPATH": str(ROOT)}
        with first_core(), log.open("wb") as out:
            self._process = subprocess.Popen(fedseal(*words), env=env, cwd=path, stderr=out)
        wait_for(lambda: "serving 1 models" in log.read_text(), "fedseal serve")
        self.log, self.address = log, f"localhost:{listen.rpartition(':')[2]}"
        (authority,) = (path / "home").rglob("authority.pem")
        self.authority = authority.read_bytes()

    def resident(self) -> float:
        """MB of 10^6 bytes."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmRSS"))

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> float:
        """End it in order; the seconds that took."""
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)
        return time.monotonic() - began


class Clients:
    """All processes of clients."""

    def __init__(self, service: Service, folders: list[Path]) -> None:
        spawn, self._pipes, self._ended = multiprocessing.get_context("spawn"), [], []
        for i in range(PROCESSES):
            ours, theirs = spawn.Pipe()
            told = [str(folder) for folder in folders[i::PROCESSES]]
            process = spawn.Process(
                target=run_clients, args=(service.address, service.authority, told, service.model, theirs), daemon=True
            )
            process.start()
            self._pipes.append(ours)
            self._ended.append(process)
        for pipe in self._pipes:
            if not pipe.poll(120):
                raise RuntimeError("clients did not start")
            pipe.recv()

    def run(self, seconds: float, rate: float = 0.0, **options: Any) -> Tally:
        """All under the same load, `rate` in all."""
        for pipe in self._pipes:
            pipe.send(Load(seconds, rate / len(self._pipes), **options))
        total = Tally()
        for pipe in self._pipes:
            if not pipe.poll(seconds + options.get("patience", 30.0) + 4 * GRACE):
                raise RuntimeError("clients hang")
            total.add(pipe.recv())
        return total

    def stop(self) -> None:
        """End them."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._ended:
            process.join(30)


# ---------------------------------------------------------------------------------------------- measures


def percentile(values: list[float], q: float) -> float:
    """The q-th, in milliseconds."""
    return float(np.percentile(values, q)) * 1e3 if values else float("nan")


def measure(seconds: float, count: int) -> tuple[list[Figure], dict[str, Any]]:
    """All phases against one server; figures, and what was counted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        folders = [path / f"client{i:02d}" for i in range(count)]
        service = Service(path, folders)
        clients = Clients(service, folders)
        try:
            return _phases(service, clients, seconds, count)
        finally:
            clients.stop()
            service.stop()


class _Phases:
    """Phases against one server, and what was counted in each."""

    def __init__(self, service: Service, clients: Clients) -> None:
        self._service, self._clients = service, clients
        self.cost = _cost(service, clients)
        self.told: dict[str, list[dict[str, Any]]] = {}

    def mean(self, name: str, what: str) -> float:
        """Of the phases of one name."""
        return statistics.fmean(phase[what] for phase in self.told[name])

    def run(self, name: str, seconds: float, rate: float = 0.0, **options: Any) -> Tally:
        """One of them; memory is looked at all the time, as it goes up and down with what is under way."""
        cpu, ended, spent, resident = self._service.cpu(), threading.Event(), [0.0], list[float]()

        def watch() -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end and not ended.wait(min(0.25, max(end - time.monotonic(), 0.01))):
                resident.append(self._service.resident())
            spent.append(self._service.cpu() - cpu)

        watcher = threading.Thread(target=watch)
        watcher.start()
        tally = self._clients.run(seconds, rate, **options)
        ended.set()
        watcher.join()
        fifth = max(len(resident) // 5, 1)
        told = {
            "seconds": seconds,
            "calls": tally.in_time / seconds,
            "goodput": (tally.counts["row in time"] + self.cost * tally.counts["columns in time"]) / seconds,
            "offered": tally.counts["offered"] / seconds,
            "sent": tally.counts["sent"] / seconds,
            **{f"row_p{q}_ms": percentile(tally.rows, q) for q in (50, 99)},
            **{f"block_p{q}_ms": percentile(tally.blocks, q) for q in (50, 99)},
            "counts": dict(tally.counts),
            "codes": dict(tally.codes),
            "longest_s": tally.longest,
            "server_cores": spent[-1] / seconds,
            "resident_mb": [statistics.median(part) for part in (resident[:fifth], resident[-fifth:])],
        }
        self.told.setdefault(name, []).append(told)
        print(name, json.dumps(told), file=sys.stderr)
        return tally


def _phases(service: Service, clients: Clients, seconds: float, count: int) -> tuple[list[Figure], dict[str, Any]]:
    phases = _Phases(service, clients)
    run, mean, short, above = phases.run, phases.mean, max(seconds / 6, 5.0), Tally()
    clients.run(short, 2000.0, patience=PATIENCE)  # all threads have been there
    run("warm-up", short)
    rate = run("peak", short).in_time / short
    below = run("below", seconds, 0.6 * rate)
    for _ in range(3):  # in turn, as other programs use the machine too
        run("peak", short)
        run("above, all polite", short, 10 * rate, patience=PATIENCE)
        above.add(run("above", short, 10 * rate, patience=PATIENCE, rude=0.5))
    run("after", short, 0.6 * rate)
    everyone = [phase for each in phases.told.values() for phase in each]
    bad = sum(phase["counts"].get(how, 0) for phase in everyone for how in ("wrong", "failed", "hung"))
    calls = mean("peak", "calls")
    share = {name: mean(name, "goodput") / mean("peak", "goodput") for name in phases.told}
    began, ended = phases.told["below"][0]["resident_mb"]
    everything = below.rows + below.blocks
    return [
        Figure("wrong answers, failed calls, calls that hang", bad, "", 0),
        Figure(f"peak, {count} clients: calls a second", calls, ""),
        Figure("60 % of the peak: memory at its end, of at its begin", ended / began, "x", 1.05),
        Figure("  rows: p50", percentile(below.rows, 50), "ms"),
        Figure("  rows: p99 of p50", percentile(below.rows, 99) / percentile(below.rows, 50), "x", 5),
        Figure("  blocks: p50", percentile(below.blocks, 50), "ms"),
        Figure("  blocks: p99 of p50", percentile(below.blocks, 99) / percentile(below.blocks, 50), "x", 5),
        Figure("  both: p99 of p50", percentile(everything, 99) / percentile(everything, 50), "x"),
        Figure("ten times the peak: offered, of the peak", mean("above", "offered") / calls, "x", 9.0, at_least=True),
        Figure("  sent to the server, of the peak", mean("above", "sent") / calls, "x"),
        Figure("  goodput, of the peak", share["above"], "", 0.8, at_least=True),
        Figure("  the same, all clients polite", share["above, all polite"], "", 0.8, at_least=True),
        Figure("  rows that were answered: p50", percentile(above.rows, 50), "ms"),
        Figure("  longest until a call ends", above.longest, "s", PATIENCE + GRACE),
        Figure("after it: rows p50", mean("after", "row_p50_ms"), "ms"),
        Figure("  memory, of before", phases.told["after"][0]["resident_mb"][1] / began, "x"),
    ], {"phases": phases.told, "block_cost": phases.cost}


def _cost(service: Service, clients: Clients) -> float:
    """CPU of a block, of a row's, at the server."""
    spent = []
    for share in (0.0, 1.0):
        clients.run(0.5, blocks=share)
        before = service.cpu()
        tally = clients.run(1.5, blocks=share)
        spent.append((service.cpu() - before) / (len(tally.rows) + len(tally.blocks)))
    return spent[1] / spent[0]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench_load", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of the time below capacity; others follow from it")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="10 seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    found, told = measure(10.0 if options.quick else options.seconds, options.clients)
    if options.json:
        print(json.dumps({**json.loads(as_json(found)), **told}, indent=1))
    else:
        print(table(found))
    return 0 if all(f.met for f in found) else 1


if __name__ == "__main__":
    sys.exit(main())
