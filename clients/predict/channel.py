"""What clients of a model owner's services share: signed calls over TLS, retries, the pinned card, receipts.

The server is checked twice: its certificate under the authority that was handed over, and its card, pinned when first
seen, which signs receipts.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.message_factory import GetMessageClass

from fl_core.errors import BadMessage, JobFailed, RefusedError, UsageError
from fl_core.files import private_dir
from fl_core.serving import MAX_MESSAGE, RETRY_KEY, check_receipt, digest, make_request
from fl_core.trust import canonical
from fl_core.trust.identity import Card, CardBook, Identity

CALL_SECONDS = 180.0  # a block of wide rows for a network takes some tens
PATIENCE = 5.0  # seconds that a hint may ask to wait
TRIES = 40
PART = MAX_MESSAGE - 1024
_Self = TypeVar("_Self", bound="ServiceClient")


class OverQuota(RefusedError):
    """This client has used what the model's owner allows."""

    code = "quota"


class ServiceClient:
    """A connection to one service; a context manager.  Several threads may use it.

    Parameters
    ----------
    service : its description, from its messages' module; `describes` is the method that tells what is served.
    address : HOST:PORT. authority : PEM, under which the server's certificate is.
    folder : of this client: pinned cards of servers and `receipts.jsonl`.
    """

    describes = "Describe"

    def __init__(self, service: Any, address: str, *, authority: bytes, identity: Identity, folder: Path) -> None:
        self._service, self._address, self._identity, self._folder = service, address, identity, private_dir(folder)
        credentials = grpc.ssl_channel_credentials(authority)
        # gRPC's own retries stay on: without a policy they are of calls alone that no service has seen, so no replays
        options = [("grpc.max_receive_message_length", 64 * MAX_MESSAGE)]
        self._channel = grpc.secure_channel(address, credentials, options=options)
        self._server: Card | None = None
        self._lock = threading.RLock()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._channel.close()

    def _described(self, request: Callable[[bytes], Any], read: Callable[[Any], Any]) -> list[Any]:
        """What is served, `read` from a list of JSON; the server's card is compared with the pinned one.

        Parameters
        ----------
        request : the message around a statement.
        """
        reply = self._call(self.describes, lambda: request(self._statement(self.describes)))
        card = Card.from_dict(canonical.decode(reply.card))
        CardBook(self._folder / "servers.json").pin(card)
        try:
            offers = [read(table) for table in json.loads(reply.models)]
        except (ValueError, TypeError, RecursionError):
            raise BadMessage("the server describes its models in another way") from None
        with self._lock:
            self._server = card
        return offers

    def _received(self, receipt: bytes, request: Any, answers: list[bytes]) -> None:
        """Check the receipt of a request and its answers, and keep it."""
        assert self._server is not None
        checked = check_receipt(receipt, request, self._server, digest(answers))
        with self._lock, (self._folder / "receipts.jsonl").open("ab") as file:
            file.write(checked.encode() + b"\n")

    def _request(self, method: str, **body: Any) -> Any:
        server = "" if self._server is None or method == self.describes else self._server.fingerprint
        return make_request(self._identity, method, server, **body)

    def _statement(self, method: str, **body: Any) -> bytes:
        return bytes(self._request(method, **body).encode())

    @property
    def _seconds(self) -> float:
        """That a call may take."""
        return CALL_SECONDS

    def _call(self, name: str, make: Callable[[], Any], *, again: Callable[[], None] | None = None) -> Any:
        """Call, with a new request at each try; wait where the server says so, up to `PATIENCE` at a time.

        Parameters
        ----------
        again : opens the context where the server has it no more.
        """
        method = self._service.methods_by_name[name]
        request, reply = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        kind = self._channel.stream_unary if method.client_streaming else self._channel.unary_unary
        call = kind(
            f"/{self._service.full_name}/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=reply.FromString,
        )
        for tried in range(TRIES):
            try:
                return call(make(), timeout=self._seconds)
            except grpc.RpcError as error:
                last = tried == TRIES - 1
                if error.code() == grpc.StatusCode.FAILED_PRECONDITION and again is not None and not last:
                    again()  # the server was started anew, or had no room for the key
                    again = None
                elif error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED or last or (wait := _hint(error)) > PATIENCE:
                    self._fail(error)
                else:
                    time.sleep(wait)
        raise AssertionError  # the last try returns or raises

    def _fail(self, error: Any) -> NoReturn:
        code, details = error.code(), " ".join(str(error.details() or "").split())[:300]
        where = f"server {self._address}"
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise OverQuota(f"{where}: {details}") from None
        if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
            raise RefusedError(f"{where}: {details}") from None
        if code == grpc.StatusCode.INVALID_ARGUMENT:
            raise UsageError(f"{where}: {details}") from None
        raise JobFailed(f"{where}: {code.name} {details}") from None


def _hint(error: Any) -> float:
    """Seconds that the server asks to wait."""
    told = dict(error.trailing_metadata() or ()).get(RETRY_KEY, "")
    return int(told) / 1000 if told.isdecimal() and len(told) < 12 else float("inf")
