"""Encrypted inference under load: a real `fedseal serve` and fifty clients, at its peak, below it, and far above it.

A logistic model of 30 features; nine calls in ten are a single row, the tenth a block of 256 rows.  Each client has an
identity, a key and a connection of its own.  Requests are signed anew each time; ciphertexts are made once and sent
again, so that clients cost little.  Every answer is decrypted and compared with the plain model, every receipt checked.

- *Peak*: 50 clients, each with a call under way all the time.
- *Below*: calls come at random (Poisson) at 60 % of the peak, whatever the server does.
- *Above*: the same at ten times the peak.  Half of the clients wait as the server's hint says, the others come again at
  once; a call is given up after five seconds.  A client has at most 16 calls on the wire: what comes while they are all
  under way is dropped at the client and counts as offered.

Goodput counts right answers in time, a block as many rows as it costs the server alone, so that a server that takes
the cheap ones does not look better.  The server has the first core to itself, the clients the others.

Run: ``python -m experiments.bench_load``, three minutes; ``--quick`` for half a minute; ``--json``
"""

from __future__ import annotations

import argparse
import heapq
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.figures import Figure, as_json, table
from experiments.loopback import _free_port, wait_for
from experiments.process_tree import ROOT, fedseal

FEATURES, BLOCK, BLOCK_SHARE = 30, 256, 0.1
PROCESSES, ON_THE_WIRE = 2, 16
PATIENCE = 5.0  # seconds after which a call is given up
GRACE = 3.0  # beyond which it hangs
ERROR = 1e-2  # of a logit


# ---------------------------------------------------------------------------------------------- clients


@dataclass
class Tally:
    """What a process of clients saw; times in seconds from a call's arrival to its checked answer."""

    rows: list[float] = field(default_factory=list)
    blocks: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0

    def add(self, other: Tally) -> None:
        """Take another process' in."""
        self.rows += other.rows
        self.blocks += other.blocks
        self.counts += other.counts
        self.codes += other.codes
        self.longest = max(self.longest, other.longest)


@dataclass(frozen=True)
class Load:
    """What a process shall do.

    rate : calls a second of all its clients; 0: each client has `each` calls under way all the time.
    patience : seconds until a call is given up. rude : the share of clients that ignore hints.
    """

    seconds: float
    rate: float = 0.0
    each: int = 1
    patience: float = 30.0
    rude: float = 0.0
    blocks: float = BLOCK_SHARE


class Caller:
    """One client, with requests that are ready but for their signature."""

    def __init__(self, address: str, authority: bytes, identity: Any, weights: Any, bias: float, seed: int) -> None:
        import grpc

        from fl_core.crypto.linear_inference import ClientKey
        from fl_core.crypto.linear_ring import open_ring
        from fl_core.serving import Offer, digest
        from fl_core.trust import canonical
        from fl_core.trust.identity import Card
        from fl_core.wire.predict_pb2 import ContextRequest, DescribeRequest, PredictRequest

        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(authority), options)
        self._identity, self._server = identity, ""
        told = self._stub("Describe")(DescribeRequest(statement=self._signed("Describe")), timeout=30)
        self._card = Card.from_dict(canonical.decode(told.card))
        self._server = self._card.fingerprint
        (self.offer,) = (Offer.from_dict(one) for one in json.loads(told.models))
        self._ring, rng = open_ring(self.offer.parameters), np.random.default_rng(seed)
        self.key = ClientKey(self._ring)
        self._name = digest([self.key.public])
        body = {"set": self.offer.parameters, "key": self._name, "rotations": []}
        head = ContextRequest(statement=self._signed("OpenContext", **body))
        self._stub("OpenContext")(iter([head, ContextRequest(part=self.key.public)]), timeout=30)
        self.rude, self.busy = False, 0
        self._call = self._stub("Predict")
        self._ready = {}
        for form, count in (("row", 1), ("columns", BLOCK)):
            x = rng.normal(size=(count, FEATURES)).clip(-8, 8)
            sent = [self.key.encrypt_row(x[0])] if form == "row" else self.key.encrypt_columns(x)
            messages = [PredictRequest(ciphertext=c) for c in sent]
            self._ready[form] = count, digest(sent), messages, x @ weights + bias

    def _stub(self, name: str) -> Any:
        from google.protobuf.message_factory import GetMessageClass

        from fl_core.wire import predict_pb2

        service = predict_pb2.DESCRIPTOR.services_by_name["Prediction"]
        method = service.methods_by_name[name]
        kind = self._channel.stream_unary if method.client_streaming else self._channel.unary_unary
        return kind(
            f"/{service.full_name}/{name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )

    def _request(self, method: str, **body: Any) -> Any:
        from fl_core.serving import make_request

        return make_request(self._identity, method, self._server, **body)

    def _signed(self, method: str, **body: Any) -> bytes:
        return bytes(self._request(method, **body).encode())

    def send(self, form: str, timeout: float) -> tuple[Any, Any]:
        """A call under way, and its signed request."""
        from fl_core.wire.predict_pb2 import PredictRequest

        rows, sent, messages, _ = self._ready[form]
        told = {"model": self.offer.name, "version": self.offer.version, "form": form, "key": self._name}
        request = self._request("Predict", rows=rows, sent=sent, **told)
        head = PredictRequest(statement=request.encode())
        return self._call.future(iter([head, *messages]), timeout=timeout), request

    def right(self, form: str, request: Any, reply: Any) -> bool:
        """Whether an answer and its receipt are what they must be."""
        from fl_core.serving import check_receipt, digest

        rows, _, _, expected = self._ready[form]
        check_receipt(reply.receipt, request, self._card, digest(reply.answers))
        (answer,) = reply.answers
        if form == "row":
            found = np.array([self.key.open_row(answer, self.offer.row_bits)])
        else:
            found = self.key.open_columns(answer, rows, self.offer.bits)
        return bool(np.abs(found - expected).max() < ERROR)


class Crowd:
    """The clients of one process, under one `Load` at a time."""

    def __init__(self, callers: list[Caller], seed: int) -> None:
        self._callers, self._random = callers, random.Random(seed)
        self._lock = threading.Condition()

    def run(self, load: Load) -> Tally:
        """Until its time has passed and the last call has ended."""
        self._load, self._tally, self._under_way = load, Tally(), 0
        self._again: list[tuple[float, int, Any]] = []  # calls that wait as they were told
        for i, caller in enumerate(self._callers):
            caller.rude, caller.busy = i < load.rude * len(self._callers), 0
        began = time.monotonic()
        self._end = began + load.seconds
        if not load.rate:
            for caller in self._callers:
                for _ in range(load.each):
                    self._arrive(caller)
        self._schedule(began)
        with self._lock:
            self._lock.wait_for(lambda: not self._under_way, timeout=load.patience + GRACE)
            self._tally.counts["hung"] += self._under_way
            return self._tally

    def _schedule(self, arrival: float) -> None:
        """Let calls arrive, and come again, each at its time."""
        rate, random_, last = self._load.rate, self._random, self._end + self._load.patience
        arrival = arrival + random_.expovariate(rate) if rate else last
        while (now := time.monotonic()) < last and (now < self._end or self._under_way):
            if rate and arrival <= now and arrival < self._end:
                self._arrive(random_.choice(self._callers))
                arrival += random_.expovariate(rate)
                continue
            with self._lock:
                due = heapq.heappop(self._again)[2] if self._again and self._again[0][0] <= now else None
                after = self._again[0][0] if self._again else last
            if due is not None:
                self._send(*due)
                continue
            limit = arrival if rate and arrival < self._end else last
            time.sleep(max(min(after, limit, now + 0.005) - now, 0.0))
        for _, _, (caller, _, arrived) in self._again:
            self._done(caller, arrived, "refused")

    def _arrive(self, caller: Caller) -> None:
        form = "columns" if self._random.random() < self._load.blocks else "row"
        with self._lock:
            self._tally.counts["offered"] += 1
            if caller.busy >= ON_THE_WIRE:
                self._tally.counts["dropped"] += 1
                return
            caller.busy += 1
            self._under_way += 1
        self._send(caller, form, time.monotonic())

    def _send(self, caller: Caller, form: str, arrived: float) -> None:
        left = arrived + self._load.patience - time.monotonic()
        if left <= 0:
            self._done(caller, arrived, "late")
            return
        with self._lock:
            self._tally.counts["sent"] += 1
        call, request = caller.send(form, left)
        call.add_done_callback(lambda call: self._ended(caller, form, arrived, call, request))

    def _ended(self, caller: Caller, form: str, arrived: float, call: Any, request: Any) -> None:
        code = call.code().name
        with self._lock:
            self._tally.codes[code] += 1
        if code == "OK":
            try:
                right = caller.right(form, request, call.result())
            except Exception as error:
                print(f"wrong: {error}", file=sys.stderr)
                right = False
            now = time.monotonic()
            taken = now - arrived
            with self._lock:
                self._tally.counts[f"{form} in time"] += right and now < self._end
                (self._tally.rows if form == "row" else self._tally.blocks).append(taken)
            self._done(caller, arrived, "right" if right else "wrong")
        elif code == "RESOURCE_EXHAUSTED":
            self._refused(caller, form, arrived, dict(call.trailing_metadata() or ()))
        elif code == "DEADLINE_EXCEEDED":
            self._done(caller, arrived, "late")
        else:
            with self._lock:
                self._tally.codes[f"{code}: {call.details()}"] += 1
            self._done(caller, arrived, "failed")

    def _refused(self, caller: Caller, form: str, arrived: float, told: dict[str, Any]) -> None:
        from fl_core.serving import RETRY_KEY

        wait = 0.0 if caller.rude else int(told[RETRY_KEY]) / 1000 * self._random.uniform(1.0, 1.5)
        at = time.monotonic() + wait
        if at >= arrived + self._load.patience:
            self._done(caller, arrived, "refused")
            return
        with self._lock:
            heapq.heappush(self._again, (at, self._random.getrandbits(60), (caller, form, arrived)))

    def _done(self, caller: Caller, arrived: float, how: str) -> None:
        with self._lock:
            self._tally.counts[how] += 1
            self._tally.longest = max(self._tally.longest, time.monotonic() - arrived)
            caller.busy -= 1
            self._under_way -= 1
            if not self._under_way:
                self._lock.notify_all()
            again = not self._load.rate and time.monotonic() < self._end
        if again:
            self._arrive(caller)


def _clients(address: str, authority: bytes, folders: list[str], model: tuple[Any, float], pipe: Any) -> None:
    """A process of clients; ends at None."""
    from fl_core.trust.identity import Identity

    callers = []
    for number, folder in enumerate(folders):
        path = Path(folder)
        identity = Identity.load_or_create(path, path.name)
        callers.append(Caller(address, authority, identity, *model, seed=number))
    crowd = Crowd(callers, seed=len(folders[0]))
    pipe.send(len(callers))
    while (load := pipe.recv()) is not None:
        pipe.send(crowd.run(load))


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
                target=_clients, args=(service.address, service.authority, told, service.model, theirs), daemon=True
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


def _phases(service: Service, clients: Clients, seconds: float, count: int) -> tuple[list[Figure], dict[str, Any]]:
    told: dict[str, Any] = {}
    cost = _cost(service, clients)
    goodput: dict[str, float] = {}

    def phase(name: str, length: float, rate: float = 0.0, **options: Any) -> Tally:
        cpu, spent = service.cpu(), [0.0]
        timer = threading.Timer(length, lambda: spent.append(service.cpu() - cpu))
        timer.start()
        tally = clients.run(length, rate, **options)
        timer.join()
        goodput[name] = (tally.counts["row in time"] + cost * tally.counts["columns in time"]) / length
        told[name] = {
            "seconds": length,
            "goodput": goodput[name],
            "offered_a_second": tally.counts["offered"] / length,
            "sent_a_second": tally.counts["sent"] / length,
            "rows": len(tally.rows),
            "blocks": len(tally.blocks),
            **{f"row_p{q}_ms": percentile(tally.rows, q) for q in (50, 99)},
            **{f"block_p{q}_ms": percentile(tally.blocks, q) for q in (50, 99)},
            "counts": dict(tally.counts),
            "codes": dict(tally.codes),
            "longest_s": tally.longest,
            "server_cores": spent[-1] / length,
            "resident_mb": service.resident(),
        }
        print(name, json.dumps(told[name]), file=sys.stderr)
        return tally

    clients.run(max(seconds / 6, 2.0), 2000.0, patience=PATIENCE)  # all threads have been there, and all buffers
    told["start"] = {"resident_mb": service.resident(), "counts": {}}
    phase("warm-up", max(seconds / 6, 2.0))
    warm = service.resident()
    full = phase("peak", seconds / 2)
    calls = (full.counts["row in time"] + full.counts["columns in time"]) / (seconds / 2)
    below = phase("below", seconds, 0.6 * calls)
    phase("above, all polite", seconds / 2, 10 * calls, patience=PATIENCE)
    above = phase("above", seconds / 2, 10 * calls, patience=PATIENCE, rude=0.5)
    phase("after", seconds / 6, 0.6 * calls)
    bad = {how: sum(phase["counts"].get(how, 0) for phase in told.values()) for how in ("wrong", "failed", "hung")}
    offered = above.counts["offered"] / (seconds / 2) / calls
    everything = below.rows + below.blocks
    ratio = {name: value / goodput["peak"] for name, value in goodput.items()}
    told["block_cost"] = cost
    return [
        Figure("wrong answers, failed calls, calls that hang", sum(bad.values()), "", 0),
        Figure(f"peak, {count} clients: calls a second", calls, ""),
        Figure("memory after all of it, of that after the warm-up", service.resident() / warm, "x", 1.05),
        Figure("memory at the end of the time below, the same", told["below"]["resident_mb"] / warm, "x", 1.05),
        Figure("60 % of the peak: p50 of all calls", percentile(everything, 50), "ms"),
        Figure("  p99 of p50", percentile(everything, 99) / percentile(everything, 50), "x", 5),
        Figure("  rows: p50", percentile(below.rows, 50), "ms"),
        Figure("  rows: p99 of p50", percentile(below.rows, 99) / percentile(below.rows, 50), "x", 5),
        Figure("  blocks: p50", percentile(below.blocks, 50), "ms"),
        Figure("  blocks: p99 of p50", percentile(below.blocks, 99) / percentile(below.blocks, 50), "x", 5),
        Figure("ten times the peak: offered, of the peak", offered, "x", 9.0, at_least=True),
        Figure("  sent to the server, of the peak", above.counts["sent"] / (seconds / 2) / calls, "x"),
        Figure("  goodput, of the peak", ratio["above"], "", 0.8, at_least=True),
        Figure("  the same, all clients polite", ratio["above, all polite"], "", 0.8, at_least=True),
        Figure("  rows: p99", percentile(above.rows, 99), "ms"),
        Figure("  longest until a call ends", above.longest, "s", PATIENCE + 1),
    ], told


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
        print(json.dumps({**json.loads(as_json(found)), "phases": told}, indent=1))
    else:
        print(table(found))
    return 0 if all(f.met for f in found) else 1


if __name__ == "__main__":
    sys.exit(main())
