"""The client of encrypted inference: an application asks a model's owner for scores of rows that it does not show.

The key is new in each `PredictClient` and never leaves it; the server gets the public key once, and ciphertexts.  What
scores tell of the model, and what the server learns, says `fl_core.crypto.linear_inference`.  The server is checked
twice: its certificate under the authority that was handed over, and its card, pinned when first seen, which signs
receipts.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import grpc
import numpy as np
from google.protobuf.message_factory import GetMessageClass
from numpy.typing import NDArray

from fl_core.crypto.linear_inference import ClientKey, block_rows, check_features, fits
from fl_core.crypto.linear_ring import LinearRing, open_ring
from fl_core.errors import BadMessage, DataError, JobFailed, RefusedError, UsageError
from fl_core.files import private_dir
from fl_core.serving import (
    COLUMNS,
    MAX_MESSAGE,
    RETRY_KEY,
    ROW,
    Offer,
    check_receipt,
    digest,
    features_digest,
    make_request,
)
from fl_core.trust import canonical
from fl_core.trust.identity import Card, CardBook, Identity
from fl_core.wire import predict_pb2
from fl_core.wire.predict_pb2 import ContextRequest, DescribeRequest, PredictReply, PredictRequest

Floats = NDArray[np.float64]
CALL_SECONDS = 60.0
ROWS_ONE_BY_ONE = 4
PATIENCE = 5.0  # seconds that a hint may ask to wait
TRIES = 40
PART = MAX_MESSAGE - 1024
_SERVICE = predict_pb2.DESCRIPTOR.services_by_name["Prediction"]


class OverQuota(RefusedError):
    """This client has used what the model's owner allows."""

    code = "quota"


@dataclass(frozen=True, eq=False)
class Scores:
    """The answer to n rows.

    logits : (n, K - 1) float64, of each class against the first one; with labels only, nothing but their signs counts.
    """

    offer: Offer
    logits: Floats

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,) the likeliest class, an index into `offer.classes`."""
        return np.argmax(self._all(), axis=1)

    @property
    def probabilities(self) -> Floats:
        """(n, K) the probability of each class.  `UsageError` where the owner gives labels only."""
        if self.offer.labels:
            raise UsageError(f"model {self.offer.name}: its owner gives labels only")
        logits = self._all()
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def _all(self) -> Floats:
        return np.concatenate([np.zeros((len(self.logits), 1)), self.logits], axis=1)


class PredictClient:
    """A connection to one server; a context manager.  Several threads may use it.

    Parameters
    ----------
    address : HOST:PORT. authority : PEM, under which the server's certificate is.
    folder : of this client: pinned cards of servers and `receipts.jsonl`.
    """

    def __init__(self, address: str, *, authority: bytes, identity: Identity, folder: Path) -> None:
        self._address, self._identity, self._folder = address, identity, private_dir(folder)
        credentials = grpc.ssl_channel_credentials(authority)
        options = [("grpc.enable_retries", 0), ("grpc.max_receive_message_length", 64 * MAX_MESSAGE)]
        self._channel = grpc.secure_channel(address, credentials, options=options)
        self._server: Card | None = None
        self._offers: dict[str, Offer] = {}
        self._keys: dict[str, tuple[ClientKey, str]] = {}
        self._lock = threading.RLock()

    def __enter__(self) -> PredictClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._channel.close()

    # ---- what there is

    def models(self) -> list[Offer]:
        """What the server offers to this client, asked anew.

        Raises
        ------
        RefusedError : this client is not known there, or over its quota. JobFailed : no answer.
        WrongKey : the server shows another card than before.
        """
        request = lambda: DescribeRequest(statement=self._statement("Describe"))  # noqa: E731
        reply = self._call("Describe", request)
        card = Card.from_dict(canonical.decode(reply.card))
        CardBook(self._folder / "servers.json").pin(card)
        try:
            offers = [Offer.from_dict(table) for table in json.loads(reply.models)]
        except (ValueError, TypeError, RecursionError):
            raise BadMessage("the server describes its models in another way") from None
        with self._lock:
            self._server, self._offers = card, {offer.name: offer for offer in offers}
        return offers

    def model(self, name: str = "") -> Offer:
        """One model; without a name the only one.  Raises `UsageError`."""
        if not self._offers:
            self.models()
        if not name and len(self._offers) == 1:
            return next(iter(self._offers.values()))
        if name not in self._offers:
            raise UsageError(f"model {name!r}; allowed: {', '.join(self._offers) or 'none is served'}")
        return self._offers[name]

    # ---- scores

    def predict(self, x: Floats, names: Sequence[str], model: str = "") -> Scores:
        """Scores of rows.

        Parameters
        ----------
        x : (n, d) finite, n ≥ 1, features as the model was trained on.
        names : (d,) of the features, in the order of `x`; those of the model, in any order.

        Raises
        ------
        DataError : other features than the model's, or a value far outside of what it was trained on.
        OverQuota, RefusedError, JobFailed : as `models`.
        """
        offer = self.model(model)
        if features_digest(names) != offer.feature_digest or len(names) != offer.features:
            allowed = f"the {offer.features} that the model was trained on"
            raise DataError("features", f"{len(names)} columns, {', '.join(names)[:200]}", allowed=allowed)
        if x.ndim != 2 or x.shape[1] != len(names) or not len(x):
            raise DataError("features", f"an array of shape {x.shape}", allowed=f"(rows, {len(names)})")
        order = np.argsort(np.array(names))
        scaled = (np.asarray(x, dtype=np.float64)[:, order] - np.array(offer.centre)) / np.exp2(offer.unit_bits)
        check_features(scaled)
        ring = open_ring(offer.parameters)
        if len(scaled) <= ROWS_ONE_BY_ONE and 2 * len(scaled) <= offer.features:
            parts = [self._row(ring, offer, row) for row in scaled]
        else:
            parts = [self._block(ring, offer, block) for block in _blocks(ring, scaled)]
        return Scores(offer, np.concatenate(parts))

    def _row(self, ring: LinearRing, offer: Offer, row: Floats) -> Floats:
        key = self._key(ring, offer)[0]
        answers = self._ask(ring, offer, ROW, 1, [key.encrypt_row(row)])
        return np.array([[key.open_row(answer, offer.row_bits) for answer in answers]])

    def _block(self, ring: LinearRing, offer: Offer, block: Floats) -> Floats:
        key = self._key(ring, offer)[0]
        answers = self._ask(ring, offer, COLUMNS, len(block), key.encrypt_columns(block))
        return np.stack([key.open_columns(answer, len(block), offer.bits) for answer in answers], axis=1)

    def _ask(self, ring: LinearRing, offer: Offer, form: str, rows: int, sent: list[bytes]) -> list[bytes]:
        """Send a block, check the receipt and keep it."""
        body = {"model": offer.name, "version": offer.version, "form": form, "rows": rows, "sent": digest(sent)}
        made: list[Any] = []

        def messages() -> Iterator[PredictRequest]:
            request = self._request("Predict", key=self._key(ring, offer)[1], **body)
            made.append(request)
            head = [PredictRequest(statement=request.encode())]
            return iter(head + [PredictRequest(ciphertext=c) for c in sent])

        reply: PredictReply = self._call("Predict", messages, again=lambda: self._open(ring, offer))
        answers = list(reply.answers)
        if len(answers) != len(offer.classes) - 1:
            raise BadMessage(f"{len(answers)} answers for {len(offer.classes)} classes")
        assert self._server is not None
        receipt = check_receipt(reply.receipt, made[-1], self._server, digest(answers))
        with self._lock, (self._folder / "receipts.jsonl").open("ab") as file:
            file.write(receipt.encode() + b"\n")
        return answers

    # ---- keys

    def _key(self, ring: LinearRing, offer: Offer) -> tuple[ClientKey, str]:
        """The key of a parameter set and its public half's digest; sent to the server when it is made."""
        with self._lock:
            if offer.parameters not in self._keys:
                key = ClientKey(ring)
                self._keys[offer.parameters] = key, digest([key.public])
                self._open(ring, offer)
            return self._keys[offer.parameters]

    def _open(self, ring: LinearRing, offer: Offer) -> None:
        key, name = self._keys[offer.parameters]

        def messages() -> Iterator[ContextRequest]:
            yield ContextRequest(statement=self._statement("OpenContext", set=offer.parameters, key=name, rotations=[]))
            for at in range(0, len(key.public), PART):
                yield ContextRequest(part=key.public[at : at + PART])

        self._call("OpenContext", messages)

    # ---- calls

    def _request(self, method: str, **body: Any) -> Any:
        server = "" if self._server is None or method == "Describe" else self._server.fingerprint
        return make_request(self._identity, method, server, **body)

    def _statement(self, method: str, **body: Any) -> bytes:
        return bytes(self._request(method, **body).encode())

    def _call(self, name: str, make: Callable[[], Any], *, again: Callable[[], None] | None = None) -> Any:
        """Call, with a new request at each try; wait where the server says so, up to `PATIENCE` at a time."""
        method = _SERVICE.methods_by_name[name]
        request, reply = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        kind = self._channel.stream_unary if method.client_streaming else self._channel.unary_unary
        call = kind(
            f"/{_SERVICE.full_name}/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=reply.FromString,
        )
        for tried in range(TRIES):
            try:
                return call(make(), timeout=CALL_SECONDS)
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


def _blocks(ring: LinearRing, x: Floats) -> Iterator[Floats]:
    """Rows in blocks as large as fit."""
    at, most = 0, block_rows(ring)
    while at < len(x):
        size = min(most, len(x) - at)
        while not fits(ring, x[at : at + size]):
            size = size // 2
        yield x[at : at + size]
        at += size
