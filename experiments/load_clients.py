"""Clients of encrypted inference that put a load on a server, cheaply: what `bench_load` runs in its processes.

They speak the protocol as `clients.predict` does; calls that wait need no thread of their own.  Requests are signed
anew each time; ciphertexts are made once and sent again.  Every answer is decrypted and compared with the plain model,
every receipt checked.
"""

from __future__ import annotations

import heapq
import json
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FEATURES, BLOCK, BLOCK_SHARE = 30, 256, 0.1
ON_THE_WIRE = 16  # calls of one client
GRACE = 3.0  # seconds beyond a call's patience after which it hangs
ERROR = 1e-2  # of a logit


@dataclass
class Tally:
    """What a process of clients saw; times in seconds from a call's arrival to its checked answer."""

    rows: list[float] = field(default_factory=list)
    blocks: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0

    @property
    def in_time(self) -> int:
        """Right answers before the load ended."""
        return self.counts["row in time"] + self.counts["columns in time"]

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


def run_clients(address: str, authority: bytes, folders: list[str], model: tuple[Any, float], pipe: Any) -> None:
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
