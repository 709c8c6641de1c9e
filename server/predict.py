"""Encrypted inference as a service: gRPC over TLS; clients are known by their cards and sign each request.

A client sees rough ranges of the features, the classes and scores (`fl_core.crypto.linear_inference` and
`network_inference` say what follows from scores), and of a network its sizes; the service sees ciphertexts and counts.
Who may call, and what is kept of it, is decided at the door (`server.serving.door`).
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fl_core.errors import BadMessage, JobFailed
from fl_core.serving import MAX_MESSAGE, ROW, RunningDigest
from fl_core.trust.certificates import Pair
from fl_core.trust.entry import Statement
from fl_core.trust.identity import is_hex
from fl_core.wire import predict_pb2
from fl_core.wire.predict_pb2 import (
    ContextReply,
    ContextRequest,
    DescribeReply,
    DescribeRequest,
    PredictReply,
    PredictRequest,
)
from server.serving.door import CAPACITY, CROWD, Door, Guarded, NoContext, ahead, rest
from server.serving.keys import MAX_ROTATIONS, HeldKey, Keys, open_key
from server.serving.model import Served
from server.serving.places import ROOM, Pool

STREAMS = 128  # calls of one connection at a time; more of them wait in the client's own library
SWITCH_SECONDS = 0.001  # a thread keeps Python's lock for so long, so that rows do not wait for blocks
WINDOW = 1 << 19  # bytes that a call may send before they are read
SERVICE = predict_pb2.DESCRIPTOR.services_by_name["Prediction"]


class Prediction:
    """The service's methods; `models` may be replaced as a whole while serving."""

    def __init__(self, door: Door, models: dict[str, Served]) -> None:
        self.door, self.models, self._keys = door, models, Keys()

    def Describe(self, request: DescribeRequest, context: grpc.ServicerContext) -> DescribeReply:
        """The models, this server's card and its log."""
        offers = [model.offer for model in self.models.values()]
        return DescribeReply(**self.door.described(request.statement, "Describe", offers))

    def OpenContext(self, requests: Iterator[ContextRequest], context: grpc.ServicerContext) -> ContextReply:
        """Keep a client's public keys."""
        statement = self.door.first(requests, context, "OpenContext")
        parameters, name, rotations = (statement.body[field] for field in ("set", "key", "rotations"))
        self._check_set(parameters, name, rotations)
        self.door.take(statement, rows=0)
        with self.door.place():
            key = open_key(parameters, tuple(rotations), name, rest(requests, "part"))
        self._keys.keep((statement.by, parameters, name), key)
        return ContextReply()

    def _check_set(self, parameters: Any, name: Any, rotations: Any) -> None:
        if not is_hex(name, 32) or not isinstance(rotations, list) or len(rotations) > MAX_ROTATIONS:
            raise BadMessage("a request to OpenContext with a field of another type")
        wanted = {model.offer.parameters: set[tuple[int, ...]]() for model in self.models.values()}
        for model in self.models.values():
            wanted[model.offer.parameters] |= {(), model.rotations}
        if not isinstance(parameters, str) or parameters not in wanted:
            raise BadMessage(f"parameter set {str(parameters)[:40]!r}: no model here has it")
        if tuple(rotations) not in wanted[parameters]:
            raise BadMessage(f"{len(rotations)} rotations that no model of {parameters} here needs")

    def Predict(self, requests: Iterator[PredictRequest], context: grpc.ServicerContext) -> PredictReply:
        """Answer one block."""
        statement = self.door.first(requests, context, "Predict")
        model, key = self._wanted(statement)
        requests = ahead(requests)
        started = time.monotonic()
        with self.door.place(f"{model.offer.name} {statement.body['form']}"):
            self.door.take(statement, rows=statement.body["rows"])
            answers, received = _answer(model, key, statement.body, rest(requests, "ciphertext"))
        receipt = self.door.receipt(statement, answers, received, time.monotonic() - started)
        return PredictReply(answers=answers, receipt=receipt.encode())

    def _wanted(self, statement: Statement) -> tuple[Served, HeldKey]:
        """Model and key of a request; whatever is wrong with it costs the client no rows."""
        body = statement.body
        asked = body["model"], body["version"]
        model = next((m for m in self.models.values() if (m.offer.name, m.offer.version) == asked), None)
        if model is None:
            raise BadMessage(f"no model {body['model']!r:.60} of version {body['version']!r:.20} here; ask again")
        if body["rows"] > model.block_rows:
            raise BadMessage(f"{body['rows']} rows in a block; allowed: {model.block_rows}")
        key = self._keys.get((statement.by, model.offer.parameters, body["key"]))
        if key is None or (body["form"] == ROW and key.rotations != model.rotations):
            raise NoContext("no such public key here; open the context first")
        return model, key


def _answer(
    model: Served, key: HeldKey, body: dict[str, Any], ciphertexts: Iterator[bytes]
) -> tuple[list[bytes], int]:
    """Answers to the ciphertexts that follow, which must be those that the request names; and their bytes."""
    by_row = body["form"] == ROW
    expected = 1 if by_row else model.offer.features
    sums, seen, last, count, size = None if by_row else model.begin(), RunningDigest(), b"", 0, 0
    for last in ciphertexts:
        if count == expected:
            raise BadMessage(f"more than {expected} ciphertexts")
        count, size = count + 1, size + len(last)
        seen.add(last)
        if not by_row:
            model.add(sums, last)
    if count != expected or seen.hex() != body["sent"]:
        raise BadMessage("the ciphertexts are not those that the request names")
    return model.answer_row(last, key) if by_row else model.finish(sums, key, body["rows"]), size


class Server:
    """The listening service, with gRPC's own health and reflection.  Raises `JobFailed` where the address is taken.

    Parameters
    ----------
    handlers : of the services, and `names` their full names. capacity : blocks at a time, of all services together.

    Attributes
    ----------
    port : where it listens, also where 0 was asked for.
    """

    def __init__(
        self, handlers: dict[str, grpc.GenericRpcHandler], listen: str, pair: Pair, *, capacity: int = CAPACITY
    ) -> None:
        self.health = health.HealthServicer()
        sys.setswitchinterval(SWITCH_SECONDS)
        gc.freeze()  # a full collection would look at all that was imported, while calls wait
        self._guarded = [one for one in handlers.values() if isinstance(one, Guarded)]
        for one in self._guarded:
            one.pool = Pool(capacity + ROOM + 2 * CROWD, one.places)  # most of its threads are asleep
        self._server = grpc.server(
            ThreadPoolExecutor(8, thread_name_prefix="health"),
            handlers=list(handlers.values()),
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_concurrent_streams", STREAMS),
                ("grpc.http2.bdp_probe", 0),  # else a call that waits is sent whole, and kept
                ("grpc.http2.lookahead_bytes", WINDOW),
            ],
        )
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        names = (*handlers, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        credentials = grpc.ssl_server_credentials([(pair.key, pair.certificate)])
        try:
            self.port = self._server.add_secure_port(listen, credentials)
        except RuntimeError:
            raise JobFailed(f"serve: {listen} cannot be listened on; is another program there?") from None
        for name in ("", *handlers):
            self.health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._server.start()

    def stop(self, grace: float = 10.0) -> None:
        """Take no new call, give those under way `grace` seconds."""
        self.health.enter_graceful_shutdown()
        self._server.stop(grace).wait()
        for one in self._guarded:
            if one.pool is not None:
                one.pool.shutdown()


def handler(service: Prediction) -> dict[str, grpc.GenericRpcHandler]:
    """Of the service, for `Server`."""
    return {SERVICE.full_name: Guarded(SERVICE, service, service.door.watcher)}
