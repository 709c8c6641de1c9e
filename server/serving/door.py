"""The door of a model owner's services: who may call, how often, how many at a time, and what is kept of it.

Clients are known by their cards and sign each request.  One is refused before it costs anything where its signer is
unknown or expired, its signature, time or nonce is not right, or its quota is used up; above capacity it waits a little
and may be turned away with a hint when to come again (`server.serving.places`).  Strangers get no place, nor one in the
queue; where many say nothing, those who have for longest are cut off.  What was answered leaves a receipt, signed by
both.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from fl_core.errors import BadMessage, BadSignature, FedsealError, JobFailed, RefusedError, UsageError
from fl_core.serving import RETRY_KEY, digest, make_receipt, read_request
from fl_core.trust import canonical
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Card, Identity
from fl_core.trust.ledger import Ledger
from server.serving.accounts import Accounts, OverQuota, Quota
from server.serving.places import Busy, Places, Pool

CAPACITY = max(4, os.cpu_count() or 1)  # blocks at a time; more of them only wait for Python's lock
CALL_SECONDS = 180.0  # a block of wide rows for a network takes some tens
FIRST_SECONDS = 5.0  # for whom nobody knows yet
CROWD = 32  # of whom nobody knows yet; those beyond have
CROWD_SECONDS = 0.25
AHEAD = 2 << 20  # bytes of a call, read before it has a place
_log = logging.getLogger("fedseal.predict")


@dataclass(frozen=True)
class Client:
    """Who may ask; `until` is in seconds since 1970, 0 for no end."""

    card: Card
    until: float = 0.0


class Gone(JobFailed):
    """The caller went away before it had a place."""

    code = "gone"

    def __init__(self) -> None:
        super().__init__("the caller has gone")


class NoContext(JobFailed):
    """The client's public key is not here (any more)."""

    code = "context"


_CODES = (
    (OverQuota, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Busy, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Gone, grpc.StatusCode.CANCELLED),
    (NoContext, grpc.StatusCode.FAILED_PRECONDITION),
    (BadSignature, grpc.StatusCode.UNAUTHENTICATED),
    (RefusedError, grpc.StatusCode.PERMISSION_DENIED),
    (BadMessage, grpc.StatusCode.INVALID_ARGUMENT),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
)


class Watcher(Protocol):
    """Hears what happens at the door; called from several threads."""

    def served(self, *, client: str, model: str, version: str, rows: int, seconds: float) -> None:
        """A block was answered."""

    def refused(self, *, client: str, code: str) -> None:
        """A call was refused or failed; `client` is empty where it is not known, `code` is of `fl_core.errors`."""


class Counts:
    """The least a watcher does."""

    def __init__(self) -> None:
        self.rows = self.refusals = 0
        self._lock = threading.Lock()

    def served(self, *, client: str, model: str, version: str, rows: int, seconds: float) -> None:
        """See `Watcher`."""
        with self._lock:
            self.rows += rows

    def refused(self, *, client: str, code: str) -> None:
        """See `Watcher`."""
        with self._lock:
            self.refusals += 1


class Door:
    """What all services of one owner share.

    Parameters
    ----------
    ledger : of the model's owner, open for writing under `identity`.
    clients : by name. capacity : blocks at a time.
    standing : raises RefusedError for a client's card that opens nothing (any more).
    """

    def __init__(
        self,
        identity: Identity,
        ledger: Ledger,
        accounts: Accounts,
        clients: dict[str, Client],
        quota: Quota,
        *,
        capacity: int = CAPACITY,
        watcher: Watcher | None = None,
        standing: Callable[[Card], None] = lambda _: None,
    ) -> None:
        self._standing = standing
        self.card, self.log = identity.card, ledger.log
        self.clients, self.quota, self.accounts = clients, quota, accounts
        self.watcher: Watcher = watcher or Counts()
        self._identity, self.places = identity, Places(capacity)

    def admit(self, data: bytes, method: str) -> Statement:
        """The request of a known client.  Raises `BadMessage`, `BadSignature`, `RefusedError`, `Busy`."""
        statement = read_request(data, method, self.card.fingerprint)
        client = self.clients.get(statement.by)
        if client is None:
            raise RefusedError("not a client here")
        statement.verify(client.card)
        _caller.name = statement.by
        if client.until and time.time() > client.until:
            raise RefusedError(f"{statement.by}: its time here has ended")
        self._standing(client.card)
        if _caller.context is not None and not _caller.entered:  # until the call ends, see `Guarded`
            self.places.enter(statement.by)
            _caller.entered = True
        return statement

    def first(self, requests: Iterator[Any], context: grpc.ServicerContext, method: str) -> Statement:
        """The request that a stream begins with.  Raises as `admit`, and `BadMessage` for anything else."""
        with limited(context, FIRST_SECONDS):
            first = next(requests, None)
        if first is None or first.WhichOneof("what") != "statement":
            raise BadMessage("the first message is not a statement")
        return self.admit(first.statement, method)

    def described(self, data: bytes, method: str, offers: Iterable[Any]) -> dict[str, Any]:
        """Answer a request to describe what is served: fields of the reply.  Raises as `admit` and `take`."""
        self.take(self.admit(data, method), rows=0)
        models = json.dumps([offer.to_dict() for offer in offers])
        return {"card": canonical.encode(self.card.to_dict()), "log": self.log, "models": models}

    def take(self, statement: Statement, *, rows: int) -> None:
        """Count a request and its rows.  Raises `BadMessage` for one that was made before, `OverQuota`."""
        self.accounts.take(statement.by, statement.body["nonce"], rows, self.quota)

    @contextmanager
    def place(self, work: str = "") -> Iterator[None]:
        """One of the places for work, which the caller of this thread waits for a little; `work` as `Places.one`.

        Raises
        ------
        Busy : none in time. Gone : the caller has left the queue.
        """
        context = _caller.context
        with self.places.one(work, left=None if context is None else context.time_remaining()):
            if context is not None and not context.is_active():
                raise Gone
            yield

    def receipt(self, statement: Statement, answers: list[bytes], received: int, seconds: float) -> Statement:
        """Make, keep and return the receipt of an answered block; `received`: bytes of ciphertexts."""
        body = statement.body
        receipt = make_receipt(
            self._identity,
            self.log,
            statement,
            self.clients[statement.by].card,
            answers=digest(answers),
            received=received,
            answered=sum(map(len, answers)),
        )
        self.accounts.keep(receipt)
        self.watcher.served(
            client=statement.by, model=body["model"], version=body["version"], rows=body["rows"], seconds=seconds
        )
        return receipt


class _Caller(threading.local):
    """Who calls on this thread, once that is known, and the call."""

    name, entered = "", False
    context: grpc.ServicerContext | None = None


_caller = _Caller()


class Limits:
    """Cancels calls that take too long, from one thread for all of them.

    Calls in a crowd may take `seconds` while it is small; of one beyond `CROWD` the oldest have `CROWD_SECONDS`.
    """

    def __init__(self, *, tick: float = 0.1) -> None:
        self._tick, self._lock, self._some = tick, threading.Lock(), threading.Event()
        self._ends: dict[int, tuple[float, grpc.ServicerContext]] = {}
        self._crowd: dict[int, tuple[float, grpc.ServicerContext]] = {}  # since when; the oldest first
        self._next, self._thread = 0, threading.Thread(target=self._run, name="limits", daemon=True)

    @contextmanager
    def within(self, context: grpc.ServicerContext, seconds: float, *, crowd: bool = False) -> Iterator[None]:
        """Cancel the call after so long in here."""
        now = time.monotonic()
        with self._lock:
            self._next += 1
            number = self._next
            self._ends[number] = now + seconds, context
            if crowd:
                self._crowd[number] = now, context
            if not self._thread.is_alive():
                self._thread.start()
        if not self._some.is_set():
            self._some.set()
        try:
            yield
        finally:
            with self._lock:
                del self._ends[number]
                self._crowd.pop(number, None)

    def _run(self) -> None:
        while True:
            self._some.wait()
            time.sleep(self._tick)
            for context in self.over(time.monotonic()):
                context.cancel()

    def over(self, now: float) -> list[grpc.ServicerContext]:
        """Calls whose time has passed."""
        with self._lock:
            if not self._ends:
                self._some.clear()
            found = [context for end, context in self._ends.values() if end <= now]
            beyond = list(self._crowd.values())[: max(len(self._crowd) - CROWD, 0)]
            return found + [context for since, context in beyond if since + CROWD_SECONDS <= now]


_limits = Limits()


def limited(context: grpc.ServicerContext, seconds: float) -> AbstractContextManager[None]:
    """Cancel the call of somebody unknown after so long in here, or sooner where many of them come."""
    return _limits.within(context, seconds, crowd=True)


def rest(requests: Iterator[Any], field: str) -> Iterator[Any]:
    """What follows the statement: that field of each message.  Raises `BadMessage` for another one."""
    for request in requests:
        if request.WhichOneof("what") != field:
            raise BadMessage(f"something else than {field}")
        yield getattr(request, field)


def ahead(requests: Iterator[Any], size: int = AHEAD) -> Iterator[Any]:
    """A stream whose beginning is here already, up to about `size` bytes: who sends slowly keeps no place meanwhile."""
    read, here = list[Any](), 0
    for request in requests:
        read.append(request)
        here += request.ByteSize()
        if here >= size:
            break
    return itertools.chain(read, requests)


class Guarded(grpc.GenericRpcHandler):
    """A service whose errors become a status with one line; no call holds its place for longer than `CALL_SECONDS`.

    Parameters
    ----------
    description : of the service, from its messages' module. service : has a method for each of its methods, and `door`.

    Attributes
    ----------
    pool : where calls run; gRPC's own where there is none.
    """

    def __init__(self, description: Any, service: Any, watcher: Watcher) -> None:
        self._service, self._watcher = service, watcher
        self._methods = {f"/{description.full_name}/{m.name}": m for m in description.methods}
        self.places: Places = service.door.places
        self.pool: Pool | None = None

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """gRPC's handler of a call."""
        method = self._methods.get(call.method)
        if method is None:
            return None
        request, reply = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        behave = self._behave(getattr(self._service, method.name), method.client_streaming)
        behave.experimental_thread_pool = self.pool  # type: ignore[attr-defined]
        # also for a single message, as gRPC would wait for it before the limits hold
        return grpc.stream_unary_rpc_method_handler(
            behave, request_deserializer=request.FromString, response_serializer=reply.SerializeToString
        )

    def _behave(self, method: Callable[[Any, grpc.ServicerContext], Message], streams: bool) -> Callable[..., Message]:
        def behave(requests: Iterator[Any], context: grpc.ServicerContext) -> Message:
            _caller.name, _caller.entered, _caller.context = "", False, context
            try:
                if not context.is_active():
                    raise Gone
                self.places.check()
                with _limits.within(context, CALL_SECONDS):
                    return method(requests if streams else _only(requests, context), context)
            except Exception as error:  # each becomes a status with one line
                code = error.code if isinstance(error, FedsealError) else "internal"
                self._watcher.refused(client=_caller.name, code=code)
                _abort(context, error)
            finally:
                _caller.context = None
                if _caller.entered:
                    self.places.leave(_caller.name)

        return behave


def _only(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
    with limited(context, FIRST_SECONDS):
        found = next(requests, None)
    if found is None:
        raise BadMessage("a call without a message")
    return found


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
