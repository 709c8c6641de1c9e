"""What client and server of encrypted inference agree on: signed requests, receipts, and what is said of a model.

A request is a `Statement` of kind `request` by the client: which method, of which server, when, and a nonce that is
used once.  To predict, its body also holds the digest of the ciphertexts that follow and the number of rows: with the
server's statement of kind `served`, which names the request and the digest of the answers, it is the receipt of a
block.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from fl_core.errors import BadMessage
from fl_core.trust import canonical
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Card, Identity, is_hex

WINDOW = 120.0  # seconds that a request's time may be off
RETRY_KEY = "retry-after-ms"  # in the trailing metadata of RESOURCE_EXHAUSTED
MAX_MESSAGE = 1 << 20
COLUMNS, ROW, IDS = "columns", "row", "ids"  # what is sent of a block: columns, one row, or ids (`Score`)
_FORMS = {"Predict": (COLUMNS, ROW), "Score": (IDS,)}
_FIELDS: dict[str, frozenset[str]] = {
    "Describe": frozenset(),
    "OpenContext": frozenset({"set", "key", "rotations"}),
    "Predict": frozenset({"model", "version", "form", "key", "rows", "sent"}),
    "DescribeVertical": frozenset(),
    "OpenVertical": frozenset({"key"}),
    "Score": frozenset({"model", "version", "form", "key", "rows", "sent"}),
}
_COMMON = frozenset({"method", "server", "nonce", "time"})


class RunningDigest:
    """SHA-256 over byte strings and their lengths, as they come."""

    def __init__(self) -> None:
        self._total = hashlib.sha256()

    def add(self, part: bytes) -> None:
        """The next one."""
        self._total.update(len(part).to_bytes(8, "big") + part)

    def hex(self) -> str:
        """64 hex digits over those so far."""
        return self._total.hexdigest()


def digest(parts: Iterable[bytes]) -> str:
    """The `RunningDigest` of all of `parts`."""
    total = RunningDigest()
    for part in parts:
        total.add(part)
    return total.hex()


def features_digest(names: Iterable[str]) -> str:
    """SHA-256, hex, of the names of features in alphabetical order: how client and model compare theirs."""
    return canonical.digest({"features": sorted(names)})


def make_request(identity: Identity, method: str, server: str, **body: Any) -> Statement:
    """A client's signed request to the server whose card has the fingerprint `server` ("" before it is known)."""
    common = {"method": method, "server": server, "nonce": secrets.token_hex(16), "time": int(time.time() * 1000)}
    return Statement.make(identity, log="", kind="request", run="", body={**common, **body})


def read_request(data: bytes, method: str, server: str) -> Statement:
    """Read a request of a client, its signature not yet verified.

    Raises
    ------
    BadMessage : malformed, of another kind or method, for another server, or not of this time.
    """
    statement = Statement.decode(data)
    body = statement.body
    if statement.kind != "request" or set(body) != _COMMON | _FIELDS[method] or body["method"] != method:
        raise BadMessage(f"not a request to {method}")
    if body["server"] != server and not (method.startswith("Describe") and body["server"] == ""):
        raise BadMessage("a request to another server")
    if not is_hex(body["nonce"], 16) or type(body["time"]) is not int:
        raise BadMessage("a request without a proper nonce and time")
    if abs(body["time"] / 1000 - time.time()) > WINDOW:
        raise BadMessage(f"a request of another time; allowed: within {WINDOW:g} s of this server's clock")
    if "sent" in body:
        _check_block(body)
    return statement


def _check_block(body: dict[str, Any]) -> None:
    texts = all(isinstance(body[name], str) and len(body[name]) <= 128 for name in ("model", "version", "form"))
    if not texts or body["form"] not in _FORMS[body["method"]] or type(body["rows"]) is not int or body["rows"] < 1:
        raise BadMessage(f"a request to {body['method']} with a field of another type")
    if not is_hex(body["key"], 32) or not is_hex(body["sent"], 32) or (body["form"] == ROW and body["rows"] != 1):
        raise BadMessage(f"a request to {body['method']} with a field of another type")


def make_receipt(
    identity: Identity, log: str, request: Statement, card: Card, *, answers: str, received: int, answered: int
) -> Statement:
    """The server's receipt of an answered block: digests and counts only.

    Parameters
    ----------
    card : the client's. answers : digest of the answers. received, answered : bytes of ciphertexts.
    """
    body = {
        "request": request.to_dict(),
        "client": card.fingerprint,
        "answers": answers,
        "received": received,
        "answered": answered,
    }
    return Statement.make(identity, log=log, kind="served", run="", body=body)


def check_receipt(data: bytes, request: Statement, card: Card, answers: str) -> Statement:
    """The server's receipt, if it is one of this request and these answers; raises `BadMessage`, `BadSignature`."""
    receipt = Statement.decode(data)
    if receipt.kind != "served" or receipt.body.get("request") != request.to_dict():
        raise BadMessage("a receipt of another request")
    if receipt.body.get("answers") != answers:
        raise BadMessage("a receipt of other answers")
    receipt.verify(card)
    return receipt


@dataclass(frozen=True)
class Offer:
    """What a client is told of a model.

    name, version : version is of the weights and the settings. parameters : the set's name.
    features : how many; feature_digest as `features_digest`. classes : in order.
    centre, unit_bits : (features,) a client sends (x - centre) / 2^unit_bits, features in alphabetical order.
    bits, row_bits : of a linear model's scales, of a network 0. labels : whether scores have a random factor.
    layers : a network's sizes, features first; empty for a linear model.
    """

    name: str
    version: str
    parameters: str
    features: int
    feature_digest: str
    classes: tuple[str, ...]
    centre: tuple[float, ...]
    unit_bits: tuple[int, ...]
    bits: int
    row_bits: int
    labels: bool
    layers: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, table: Any) -> Offer:
        """From untrusted JSON; raises `BadMessage`."""
        try:
            told: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
            offer = cls(**told)
            sound = (
                len(offer.centre) == len(offer.unit_bits) == offer.features > 0
                and len(offer.classes) >= 2
                and all(isinstance(c, str) for c in offer.classes)
                and all(abs(float(c)) < 1e300 for c in offer.centre)
                and all(type(b) is int and -1000 < b < 1000 for b in offer.unit_bits)
                and all(type(b) is int and 0 <= b < 64 for b in (offer.bits, offer.row_bits))
                and bool(offer.layers) == (offer.bits == 0) == (offer.row_bits == 0)
                and all(type(n) is int and 0 < n <= 1 << 16 for n in offer.layers)
                and (offer.layers[:1] + offer.layers[-1:] in ((), (offer.features, len(offer.classes) - 1)))
            )
        except (TypeError, AttributeError, ValueError):
            sound = False
        if not sound:
            raise BadMessage("a model described in another way")
        return offer
