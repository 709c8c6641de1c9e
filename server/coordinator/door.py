"""The door: submit, watch, stop, list and read runs, post on the board and read it, over TLS with client certificates.

Who calls and with which roles is read from the certificate and looked up in the register of people, at every call; what
each role may do is `fl_core.trust.roles`.  A submission, a stop and a refusal go on the ledger with the caller's name,
roles and certificate.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from fl_core.errors import FedsealError, JobFailed, RefusedError, UsageError
from fl_core.trust import canonical, order, roles
from fl_core.trust.roles import Action
from fl_core.wire import door_pb2
from fl_core.wire.door_pb2 import (
    BoardReply,
    BoardRequest,
    CheckReply,
    Event,
    ListReply,
    ListRequest,
    LogChunk,
    LogsRequest,
    PostReply,
    PostRequest,
    StopReply,
    StopRequest,
    SubmitReply,
    SubmitRequest,
    WatchRequest,
)
from server.coordinator.board import PublicBoard
from server.coordinator.folder import CoordinatorFolder, at
from server.coordinator.people import Person, Rejected
from server.coordinator.rights import MissingRole
from server.coordinator.runs import Runs
from server.coordinator.submission import ENDS, Caller, Events, load
from server.registry import RunFolder, facts

SERVICE = door_pb2.DESCRIPTOR.services_by_name["Door"]
ACTIONS: dict[str, tuple[Action, ...]] = {  # any of them opens a method; none: it asks itself, by what is posted
    "Submit": (Action.SUBMIT_JOB,),
    "Check": (Action.SUBMIT_JOB,),
    "Watch": (Action.SEE_RUNS,),
    "Stop": (Action.STOP_OWN_RUN, Action.STOP_ANY_RUN),
    "List": (Action.SEE_RUNS,),
    "Logs": (Action.SEE_RUNS,),
    "Post": (),
    "Board": (Action.SEE_CATALOG,),
}
WORKERS = 32  # calls at a time; a watcher holds one
KEPT = 8  # of them that watchers leave free: whoever stops a run comes in
MAX_REQUEST = 4 << 20
MAX_TEXT = 2000  # characters of an error
LOOK = 0.2
_CHUNK = 64 << 10
_KEEPALIVE = [  # a watcher whose machine is gone gives its place back; those of a quiet run may ask whether we are here
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
]
Note = Callable[[str, str, dict[str, Any]], None]
_log = logging.getLogger("fedseal.door")


class Full(JobFailed):
    """No place is free for another watcher."""


_CODES = (
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    (RefusedError, grpc.StatusCode.PERMISSION_DENIED),
    (Full, grpc.StatusCode.RESOURCE_EXHAUSTED),
)


class Door:
    """The service's methods, called with a caller that may call them.

    Parameters
    ----------
    on_main : runs a function in the coordinator's main thread and returns what it returns.
    note : puts a statement of the coordinator on the ledger: kind, run, body.
    """

    def __init__(
        self, folder: CoordinatorFolder, runs: Runs, on_main: Callable[[Callable[[], Any]], Any], note: Note
    ) -> None:
        self._folder, self._runs, self._on_main, self._note = folder, runs, on_main, note
        self._board = PublicBoard(folder, note)

    @contextmanager
    def _noted(self, caller: Caller, method: str) -> Iterator[None]:
        """A refusal for want of a role goes on the ledger."""
        try:
            yield
        except MissingRole:
            self._note("refusal", "", {"caller": caller.to_dict(), "method": method, "code": "role"})
            raise

    def Submit(self, request: SubmitRequest, caller: Caller, context: grpc.ServicerContext) -> SubmitReply:
        """Start a job."""
        table, ordered = _table(request), _order(request)
        start = self._runs.start
        with self._noted(caller, "Submit"):
            info, events = self._on_main(lambda: start(table, caller, resume=request.resume, order=ordered))
        return SubmitReply(run=info.run, digest=info.job, events=events)

    def Check(self, request: SubmitRequest, caller: Caller, context: grpc.ServicerContext) -> CheckReply:
        """Whether every party would join."""
        table, ordered = _table(request), _order(request)
        with self._noted(caller, "Check"):
            process = self._on_main(lambda: self._runs.start_check(table, order=ordered))
        return CheckReply(result=json.dumps(self._runs.end_check(process)))

    def Watch(self, request: WatchRequest, caller: Caller, context: grpc.ServicerContext) -> Iterator[Event]:
        """Events of a run, until its end."""
        run, _ = self._runs.find(request.run)
        events = Events(run.path).read(request.after)
        while context.is_active():
            going_on = self._runs.is_going_on(run)  # asked before reading: then the last events are there
            found = events.new()
            for number, event in found:
                last = number == found[-1][0]
                if event["kind"] in ENDS and not last:
                    continue  # it was resumed
                yield _event(number, event)
                if event["kind"] in ENDS:
                    return
            if not going_on and not found:
                yield _event(events.number, {"kind": "interrupted", "round": 0, "facts": {}, "time": time.time()})
                return
            time.sleep(LOOK)

    def Stop(self, request: StopRequest, caller: Caller, context: grpc.ServicerContext) -> StopReply:
        """Stop a run; it can be resumed."""
        run, info = self._runs.find(request.run)
        submitter = self._submitter(run)
        if not roles.may(roles.held(caller.roles), Action.STOP_ANY_RUN) and submitter != caller.name:
            self._note("refusal", info.run, {"caller": caller.to_dict(), "method": "Stop", "code": "submitter"})
            whose = f"submitted by {submitter}" if submitter else "started at the coordinator"
            raise RefusedError(f"run {info.run} was {whose}; an operator may stop it too")
        if not self._runs.is_going_on(run):
            raise UsageError(f"run {info.name} ({info.run}) is not running: {info.status}")
        self._note("stop", info.run, {"caller": caller.to_dict()})
        run.ask_to_stop()
        while self._runs.is_going_on(run) and context.is_active():
            time.sleep(LOOK)
        return StopReply(run=info.run, status=run.info().status)

    def _submitter(self, run: RunFolder) -> str:
        """Who submitted a run; nobody did where it was started at the coordinator's own machine."""
        try:
            return str(load(run.path)[1]["name"])
        except FileNotFoundError:
            return ""

    def List(self, request: ListRequest, caller: Caller, context: grpc.ServicerContext) -> ListReply:
        """All runs."""
        return ListReply(runs=[json.dumps(facts(info)) for info in self._runs.all()])

    def Logs(self, request: LogsRequest, caller: Caller, context: grpc.ServicerContext) -> Iterator[LogChunk]:
        """A run's log."""
        run, _ = self._runs.find(request.run)
        at = request.offset
        while context.is_active():
            going_on = request.follow and self._runs.is_going_on(run)
            if run.log.exists() and run.log.stat().st_size > at:
                with run.log.open("rb") as file:
                    file.seek(at)
                    while data := file.read(_CHUNK):
                        at += len(data)
                        yield LogChunk(data=data)
            if not going_on:
                return
            time.sleep(LOOK)

    def Post(self, request: PostRequest, caller: Caller, context: grpc.ServicerContext) -> PostReply:
        """Put statements on the board."""
        with self._noted(caller, "Post"):
            size, added = self._board.post(request.statements, caller)
        return PostReply(size=size, added=added)

    def Board(self, request: BoardRequest, caller: Caller, context: grpc.ServicerContext) -> BoardReply:
        """A page of the board."""
        found, following = self._board.read(request.kinds, request.since)
        entries = [posted.entry.encode() for posted in found]
        cards = [canonical.encode(posted.card.to_dict()) for posted in found]
        return BoardReply(entries=entries, cards=cards, next=following)


def _order(request: SubmitRequest) -> dict[str, bytes]:
    """What the submitter signed of the job, as it came; the parties check it.  Raises `UsageError`."""
    held = {order.BLOB: request.order, order.CARD_BLOB: request.order_card}
    for name, data in held.items():
        if len(data) > order.MAX_BYTES or not data.isascii():
            raise UsageError(f"{name}: {len(data)} bytes; allowed: at most {order.MAX_BYTES}, in ASCII")
    return {name: data for name, data in held.items() if data}


def _table(request: SubmitRequest) -> dict[str, Any]:
    """The job's table, from a fedseal of this version.  Raises `UsageError`."""
    if request.version != version("fedseal"):
        raise UsageError(f"fedseal {request.version[:20]} here; the coordinator has {version('fedseal')}")
    try:
        table = json.loads(request.job)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise UsageError("the submitted job is not a JSON table")
    return table


def _event(number: int, event: dict[str, Any]) -> Event:
    facts = json.dumps(event["facts"])
    return Event(number=number, kind=event["kind"], round=event["round"], facts=facts, time=event["time"])


class _Guarded(grpc.GenericRpcHandler):
    """Every method behind the check of who calls, and every error as a status with one line."""

    def __init__(self, door: Door, folder: CoordinatorFolder, note: Note) -> None:
        self._door, self._folder, self._note = door, folder, note
        self._methods = {f"/{SERVICE.full_name}/{m.name}": m for m in SERVICE.methods}
        self._places = threading.Semaphore(WORKERS - KEPT)

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """gRPC's handler of a call."""
        method = self._methods.get(call.method)
        if method is None:
            return None
        request, reply = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        behave = self._stream(method.name) if method.server_streaming else self._unary(method.name)
        return make(behave, request_deserializer=request.FromString, response_serializer=reply.SerializeToString)

    def _unary(self, name: str) -> Callable[[Message, grpc.ServicerContext], Message]:
        def behave(request: Message, context: grpc.ServicerContext) -> Message:
            try:
                return getattr(self._door, name)(request, self._caller(name, context), context)
            except Exception as error:  # each becomes a status with one line
                _abort(context, error)

        return behave

    def _stream(self, name: str) -> Callable[[Message, grpc.ServicerContext], Iterator[Message]]:
        def behave(request: Message, context: grpc.ServicerContext) -> Iterator[Message]:
            try:
                caller = self._caller(name, context)
                with self._place():
                    context.send_initial_metadata((("taken", "1"),))  # at once: what is quiet is not away
                    yield from getattr(self._door, name)(request, caller, context)
            except Exception as error:  # each becomes a status with one line
                _abort(context, error)

        return behave

    @contextmanager
    def _place(self) -> Iterator[None]:
        """One of the places for watchers.  Raises `Full`."""
        if not self._places.acquire(blocking=False):
            raise Full(f"{WORKERS - KEPT} calls watch or follow runs here; allowed: again when one has ended")
        try:
            yield
        finally:
            self._places.release()

    def _caller(self, method: str, context: grpc.ServicerContext) -> Caller:
        shown = context.auth_context().get("x509_pem_cert", [b""])[0]
        try:
            person = self._folder.people.admit(shown, authority=self._folder.authority_pem)
        except Rejected as error:
            self._refused(method, error.person, error.why)
            raise
        caller = Caller(person.name, person.roles, person.fingerprint)
        if actions := ACTIONS[method]:
            try:
                roles.require(person.name, person.held, *actions)
            except RefusedError:
                self._refused(method, person, "role")
                raise
        return caller

    def _refused(self, method: str, person: Person, code: str) -> None:
        caller = Caller(person.name, person.roles, person.fingerprint)
        self._note("refusal", "", {"caller": caller.to_dict(), "method": method, "code": code})


def _abort(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    if not isinstance(error, FedsealError):
        if context.is_active():  # else it is the end of a watcher who went away
            _log.error("a call failed", exc_info=error)
        context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}; the coordinator's output says more")
    code = next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.FAILED_PRECONDITION)
    context.abort(code, " ".join(str(error).split())[:MAX_TEXT])
    raise error  # not reached: abort raises


def open_door(door: Door, folder: CoordinatorFolder, note: Note) -> grpc.Server:
    """Start serving.  Raises `JobFailed` where the port is taken."""
    addresses, pair = folder.addresses(), folder.server()
    server = grpc.server(
        ThreadPoolExecutor(WORKERS, thread_name_prefix="door"),
        handlers=[_Guarded(door, folder, note)],
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MAX_REQUEST), *_KEEPALIVE],
        maximum_concurrent_rpcs=WORKERS,
    )
    credentials = grpc.ssl_server_credentials(
        [(pair.key, pair.certificate)], root_certificates=folder.authority_pem, require_client_auth=True
    )
    where = at(addresses.bind, addresses.door_port)
    try:
        server.add_secure_port(where, credentials)
    except RuntimeError:
        raise JobFailed(f"door: {where} is taken by another program") from None
    server.start()
    return server
