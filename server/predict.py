"""Encrypted inference as a service: gRPC over TLS; clients are known by their cards and sign each request.

A client sees rough ranges of the features, the classes and scores (`fl_core.crypto.linear_inference` says what follows
from scores); the service sees ciphertexts and counts.  A request is refused before it costs anything where its signer
is unknown or expired, its signature, time or nonce is not right, or its quota is used up; above capacity a call is
turned away with a hint when to come again.  Each answered block leaves a receipt, signed by both: on the model owner's
ledger (kind `served`) and at the client.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fl_core.crypto.linear_inference import PublicKey, block_rows
from fl_core.crypto.linear_ring import open_ring
from fl_core.errors import BadMessage, BadSignature, FedsealError, JobFailed, RefusedError, UsageError
from fl_core.serving import MAX_MESSAGE, RETRY_KEY, ROW, RunningDigest, digest, make_receipt, read_request
from fl_core.trust import canonical
from fl_core.trust.certificates import Pair
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Card, Identity, is_hex
from fl_core.trust.ledger import Ledger
from fl_core.wire import predict_pb2
from fl_core.wire.predict_pb2 import (
    ContextReply,
    ContextRequest,
    DescribeReply,
    DescribeRequest,
    PredictReply,
    PredictRequest,
)
from server.predict_accounts import Accounts, OverQuota, Quota
from server.predict_model import Served

SERVICE = predict_pb2.DESCRIPTOR.services_by_name["Prediction"]
CAPACITY = 8  # blocks at a time
WORKERS = CAPACITY + 24  # the others turn calls away
CALL_SECONDS = 60.0
FIRST_SECONDS = 5.0  # for whom nobody knows yet
BUSY_SECONDS = 0.25
CONTEXTS, CONTEXTS_EACH = 512, 8
_log = logging.getLogger("fedseal.predict")


@dataclass(frozen=True)
class Client:
    """Who may ask; `until` is in seconds since 1970, 0 for no end."""

    card: Card
    until: float = 0.0


class Busy(JobFailed):
    """All places are taken; `wait` is in seconds."""

    code = "busy"

    def __init__(self, wait: float = BUSY_SECONDS) -> None:
        super().__init__("all places are taken; come again")
        self.wait = wait


class NoContext(JobFailed):
    """The client's public key is not here (any more)."""

    code = "context"


_CODES = (
    (OverQuota, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Busy, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (NoContext, grpc.StatusCode.FAILED_PRECONDITION),
    (BadSignature, grpc.StatusCode.UNAUTHENTICATED),
    (RefusedError, grpc.StatusCode.PERMISSION_DENIED),
    (BadMessage, grpc.StatusCode.INVALID_ARGUMENT),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
)


class Prediction:
    """The service's methods.

    Parameters
    ----------
    ledger : of the model's owner, open for writing under `identity`.
    clients, models : by name; `models` may be replaced as a whole while serving.
    """

    def __init__(
        self,
        identity: Identity,
        ledger: Ledger,
        accounts: Accounts,
        clients: dict[str, Client],
        models: dict[str, Served],
        quota: Quota,
        *,
        capacity: int = CAPACITY,
    ) -> None:
        self.models, self.refusals, self.rows = models, 0, 0
        self._identity, self._ledger, self._accounts = identity, ledger, accounts
        self._clients, self._quota = clients, quota
        self._places = threading.Semaphore(capacity)
        self._keys: OrderedDict[tuple[str, str, str], PublicKey] = OrderedDict()
        self._lock = threading.Lock()

    def Describe(self, request: DescribeRequest, context: grpc.ServicerContext) -> DescribeReply:
        """The models, this server's card and its log."""
        statement = self._admit(request.statement, "Describe")
        self._take(statement, rows=0)
        models = json.dumps([model.offer.to_dict() for model in self.models.values()])
        card = canonical.encode(self._identity.card.to_dict())
        return DescribeReply(card=card, log=self._ledger.log, models=models)

    def OpenContext(self, request: ContextRequest, context: grpc.ServicerContext) -> ContextReply:
        """Keep a public key."""
        statement = self._admit(request.statement, "OpenContext")
        parameters, name = statement.body["set"], statement.body["key"]
        if not isinstance(parameters, str) or not is_hex(name, 32) or digest([request.public_key]) != name:
            raise BadMessage("a public key of another digest than signed")
        if parameters not in {model.offer.parameters for model in self.models.values()}:
            raise BadMessage(f"parameter set {parameters[:40]!r}: no model here has it")
        self._take(statement, rows=0)
        with self._place():
            key = PublicKey(open_ring(parameters), request.public_key)
        self._keep_key((statement.by, parameters, name), key)
        return ContextReply()

    def Predict(self, requests: Iterator[PredictRequest], context: grpc.ServicerContext) -> PredictReply:
        """Answer one block."""
        with _limited(context, FIRST_SECONDS):
            first = next(requests, None)
        if first is None or first.WhichOneof("what") != "statement":
            raise BadMessage("the first message of a block is not a statement")
        statement = self._admit(first.statement, "Predict")
        with self._place():
            model, key = self._wanted(statement)
            self._take(statement, rows=statement.body["rows"])
            answers, received = self._answer(model, key, statement.body, requests)
        receipt = make_receipt(
            self._identity,
            self._ledger.log,
            statement,
            self._clients[statement.by].card,
            answers=digest(answers),
            received=received,
            answered=sum(map(len, answers)),
        )
        self._accounts.keep(receipt)
        self.rows += statement.body["rows"]
        return PredictReply(answers=answers, receipt=receipt.encode())

    def _admit(self, data: bytes, method: str) -> Statement:
        """The request of a known client.  Raises `BadMessage`, `BadSignature`, `RefusedError`."""
        statement = read_request(data, method, self._identity.card.fingerprint)
        client = self._clients.get(statement.by)
        if client is None:
            raise RefusedError("not a client here")
        statement.verify(client.card)
        if client.until and time.time() > client.until:
            raise RefusedError(f"{statement.by}: its time here has ended")
        return statement

    def _take(self, statement: Statement, *, rows: int) -> None:
        self._accounts.take(statement.by, statement.body["nonce"], rows, self._quota)

    def _wanted(self, statement: Statement) -> tuple[Served, PublicKey]:
        """Model and key of a request; whatever is wrong with it costs the client no rows."""
        body = statement.body
        model = self.models.get(body["model"])
        if model is None or model.offer.version != body["version"]:
            raise BadMessage(f"no model {body['model']!r:.60} of version {body['version']!r:.20} here; ask again")
        if body["rows"] > block_rows(model.side.ring):
            raise BadMessage(f"{body['rows']} rows in a block; allowed: {block_rows(model.side.ring)}")
        name = (statement.by, model.offer.parameters, body["key"])
        with self._lock:
            key = self._keys.get(name)
            if key is None:
                raise NoContext("no such public key here; open the context first")
            self._keys.move_to_end(name)
        return model, key

    def _answer(
        self, model: Served, key: PublicKey, body: dict[str, Any], requests: Iterator[PredictRequest]
    ) -> tuple[list[bytes], int]:
        """Answers to the ciphertexts that follow, which must be those that the request names; and their bytes."""
        side, by_row = model.side, body["form"] == ROW
        expected = 1 if by_row else model.offer.features
        sums, seen, last, count, size = side.begin(), RunningDigest(), b"", 0, 0
        for request in requests:
            if request.WhichOneof("what") != "ciphertext" or count == expected:
                raise BadMessage(f"more than {expected} ciphertexts, or something else")
            last, count, size = request.ciphertext, count + 1, size + len(request.ciphertext)
            seen.add(last)
            if not by_row:
                side.add(sums, last)
        if count != expected or seen.hex() != body["sent"]:
            raise BadMessage("the ciphertexts are not those that the request names")
        return side.answer_row(last, key) if by_row else side.finish(sums, key, body["rows"]), size

    def _keep_key(self, name: tuple[str, str, str], key: PublicKey) -> None:
        """Keep a key; a client's oldest goes where it has many, then anybody's oldest."""
        with self._lock:
            self._keys[name] = key
            self._keys.move_to_end(name)
            own = [n for n in self._keys if n[0] == name[0]]
            surplus = own[: max(len(own) - CONTEXTS_EACH, 0)] or list(self._keys)[: max(len(self._keys) - CONTEXTS, 0)]
            for old in surplus:
                del self._keys[old]

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise Busy
        try:
            yield
        finally:
            self._places.release()


@contextmanager
def _limited(context: grpc.ServicerContext, seconds: float) -> Iterator[None]:
    """Cancel the call after so long in here."""
    limit = threading.Timer(seconds, context.cancel)
    limit.daemon = True
    limit.start()
    try:
        yield
    finally:
        limit.cancel()


class _Guarded(grpc.GenericRpcHandler):
    """Every error as a status with one line; no call holds its place for longer than `CALL_SECONDS`."""

    def __init__(self, service: Prediction) -> None:
        self._service = service
        self._methods = {f"/{SERVICE.full_name}/{m.name}": m for m in SERVICE.methods}

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """gRPC's handler of a call."""
        method = self._methods.get(call.method)
        if method is None:
            return None
        request, reply = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        make = grpc.stream_unary_rpc_method_handler if method.client_streaming else grpc.unary_unary_rpc_method_handler
        return make(
            self._behave(getattr(self._service, method.name)),
            request_deserializer=request.FromString,
            response_serializer=reply.SerializeToString,
        )

    def _behave(self, method: Callable[[Any, grpc.ServicerContext], Message]) -> Callable[..., Message]:
        def behave(request: Any, context: grpc.ServicerContext) -> Message:
            left = context.time_remaining()
            try:
                with _limited(context, CALL_SECONDS if left is None else min(left, CALL_SECONDS)):
                    return method(request, context)
            except Exception as error:  # each becomes a status with one line
                self._service.refusals += 1
                _abort(context, error)

        return behave


def _abort(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    if not isinstance(error, FedsealError):
        if context.is_active():  # else it is the end of a client that went away
            _log.error("a call failed", exc_info=error)
        context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}; the server's output says more")
    code = next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    if isinstance(error, OverQuota | Busy):
        context.set_trailing_metadata(((RETRY_KEY, str(round(error.wait * 1000))),))
    context.abort(code, " ".join(str(error).split())[:500])
    raise error  # not reached: abort raises


class Receipts:
    """Puts kept receipts on the ledger, from a thread of its own, in groups with a checkpoint each."""

    def __init__(self, ledger: Ledger, accounts: Accounts, *, seconds: float = 0.5) -> None:
        self._ledger, self._accounts, self._seconds = ledger, accounts, seconds
        self._ending = threading.Event()
        last = list(ledger.entries(max(ledger.size - 1000, 0), kind="served"))
        self._there = {entry.statement.digest for entry in last}  # a crash may have come before `drop`
        self._thread = threading.Thread(target=self._run, name="receipts", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ending.wait(self._seconds):
            try:
                self.flush()
            except FedsealError as error:
                _log.error("receipts wait for the ledger: %s", error)

    def flush(self) -> None:
        """Put all there are on the ledger now."""
        while kept := self._accounts.kept():
            new = [statement for _, statement in kept if statement.digest not in self._there]
            if new:
                self._ledger.commit(new)
            self._accounts.drop(kept[-1][0])
            self._there.clear()

    def close(self) -> None:
        """Write the last and end."""
        self._ending.set()
        self._thread.join()
        self.flush()


class Server:
    """The listening service.  Raises `JobFailed` where the address is taken.

    Attributes
    ----------
    port : where it listens, also where 0 was asked for.
    """

    def __init__(self, service: Prediction, listen: str, pair: Pair) -> None:
        self.health = health.HealthServicer()
        self._server = grpc.server(
            ThreadPoolExecutor(WORKERS, thread_name_prefix="predict"),
            handlers=[_Guarded(service)],
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MAX_MESSAGE)],
        )
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        credentials = grpc.ssl_server_credentials([(pair.key, pair.certificate)])
        try:
            self.port = self._server.add_secure_port(listen, credentials)
        except RuntimeError:
            raise JobFailed(f"serve: {listen} cannot be listened on; is another program there?") from None
        for name in ("", SERVICE.full_name):
            self.health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._server.start()

    def stop(self, grace: float = 10.0) -> None:
        """Take no new call, give those under way `grace` seconds."""
        self.health.enter_graceful_shutdown()
        self._server.stop(grace).wait()
