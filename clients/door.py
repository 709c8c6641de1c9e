"""The door of a coordinator from outside: what people call, each as far as their roles go.

TLS both ways: the coordinator's certificate is checked under the authority in the caller's pass, the caller shows the
certificate in it.  Errors come back as the classes that the coordinator raised; of what it says, only what can be
printed is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf.message_factory import GetMessageClass

from fl_core.errors import JobFailed, RefusedError, UsageError
from fl_core.text import printable
from fl_core.trust import order as order_module
from fl_core.trust.federation import Pass
from fl_core.wire import door_pb2
from fl_core.wire.door_pb2 import (
    BoardReply,
    BoardRequest,
    Event,
    ListRequest,
    LogsRequest,
    PostRequest,
    StopRequest,
    SubmitReply,
    SubmitRequest,
    WatchRequest,
)

CALL_SECONDS = 150.0
CONNECT_SECONDS = 20.0
KEEPALIVE = [  # a line that is dead is lost after half a minute
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # of gRPC's own pings, in whose place none is sent
]
_OPTIONS = [
    ("grpc.enable_retries", 0),
    ("grpc.http2.max_pings_without_data", 0),  # a round may be quiet for long
    ("grpc.max_metadata_size", 32 << 10),  # the text of an error, in whatever letters
    ("grpc.absolute_max_metadata_size", 32 << 10),
]
_SERVICE = door_pb2.DESCRIPTOR.services_by_name["Door"]
_ERRORS = {
    grpc.StatusCode.INVALID_ARGUMENT: UsageError,
    grpc.StatusCode.PERMISSION_DENIED: RefusedError,
    grpc.StatusCode.FAILED_PRECONDITION: JobFailed,
}


class DoorClient:
    """One connection; a context manager."""

    def __init__(self, held: Pass) -> None:
        self.address = held.federation.door
        credentials = grpc.ssl_channel_credentials(held.federation.authority, held.person.key, held.person.certificate)
        self._channel = grpc.secure_channel(self.address, credentials, options=[*_OPTIONS, *KEEPALIVE])

    def __enter__(self) -> DoorClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._channel.close()

    def submit(
        self, table: dict[str, Any], *, resume: bool, version: str, order: Mapping[str, bytes] | None = None
    ) -> SubmitReply:
        """Start a job; `order` is what its submitter signed, as `fl_core.trust.order.blobs` gives it."""
        request = _submission(table, version, order, resume=resume)
        reply: SubmitReply = self._call("Submit", request, timeout=CALL_SECONDS)
        return reply

    def check(self, table: dict[str, Any], *, version: str, order: Mapping[str, bytes] | None = None) -> dict[str, Any]:
        """Whether every party would join a job; `order` as in `submit`, to look only."""
        request = _submission(table, version, order, resume=False)
        return dict(json.loads(self._call("Check", request, timeout=CALL_SECONDS).result))

    def watch(self, run: str, after: int = 0) -> Iterator[Event]:
        """A run's events, live, until its end."""
        return self._stream("Watch", WatchRequest(run=run, after=after))

    def stop(self, run: str) -> tuple[str, str]:
        """Stop a run; returns its id and status."""
        reply = self._call("Stop", StopRequest(run=run), timeout=CALL_SECONDS)
        return str(reply.run), str(reply.status)

    def runs(self) -> list[dict[str, Any]]:
        """All runs of the coordinator."""
        return [json.loads(text) for text in self._call("List", ListRequest(), timeout=CONNECT_SECONDS).runs]

    def logs(self, run: str, *, follow: bool) -> Iterator[bytes]:
        """A run's log."""
        for chunk in self._stream("Logs", LogsRequest(run=run, follow=follow)):
            yield chunk.data

    def post(self, statements: Sequence[bytes]) -> tuple[int, int]:
        """Put statements on the board, all or none; returns the log's size and how many were new."""
        reply = self._call("Post", PostRequest(statements=statements), timeout=CONNECT_SECONDS)
        return int(reply.size), int(reply.added)

    def board(self, kinds: Sequence[str], since: int) -> BoardReply:
        """A page of the board, as the coordinator says it."""
        reply: BoardReply = self._call("Board", BoardRequest(kinds=kinds, since=since), timeout=CONNECT_SECONDS)
        return reply

    def _method(self, name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        method = _SERVICE.methods_by_name[name]
        request, reply = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        return make(
            f"/{_SERVICE.full_name}/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=reply.FromString,
        )

    def _call(self, name: str, request: Any, *, timeout: float) -> Any:
        try:
            return self._method(name, self._channel.unary_unary)(request, timeout=timeout)
        except grpc.RpcError as error:
            self._fail(error)

    def _stream(self, name: str, request: Any) -> Iterator[Any]:
        call = self._method(name, self._channel.unary_stream)(request)
        try:
            yield from call
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise Busy(f"coordinator {self.address}: {error.details()}") from None
            self._fail(error, stood=bool(call.initial_metadata()))

    def _fail(self, error: grpc.RpcError, *, stood: bool = False) -> NoReturn:
        code, details = error.code(), printable(str(error.details() or ""))
        if code in _ERRORS:
            raise _ERRORS[code](details) from None
        if code == grpc.StatusCode.UNAVAILABLE:
            text = f"coordinator {self.address} does not answer ({' '.join(details.split())[:160]})"
            raise Unreachable(text, stood=stood) from None
        raise JobFailed(f"coordinator {self.address}: {code.name} {' '.join(details.split())[:160]}") from None


def _submission(
    table: dict[str, Any], version: str, order: Mapping[str, bytes] | None, *, resume: bool
) -> SubmitRequest:
    held = order or {}
    return SubmitRequest(
        version=version,
        job=json.dumps(table),
        resume=resume,
        order=held.get(order_module.BLOB, b""),
        order_card=held.get(order_module.CARD_BLOB, b""),
    )


class Unreachable(JobFailed):
    """The connection to the coordinator is lost, or there was none.

    `stood`: it was there until now, whatever came over it.
    """

    code = "unreachable"

    def __init__(self, text: str, *, stood: bool = False) -> None:
        super().__init__(text)
        self.stood = stood


class Busy(Unreachable):
    """The coordinator has no place for another watcher at present."""

    code = "busy"
