"""The client of encrypted inference: an application asks a model's owner for scores of rows that it does not show.

The key is new in each `PredictClient` and never leaves it; the server gets the public key once, and ciphertexts.  What
scores tell of the model, and what the server learns, say `fl_core.crypto.linear_inference` and `network_inference`; how
calls are made, and the server is checked, `clients.predict.channel`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.predict import channel
from clients.predict.askers import Asker, make_asker, rotations_for
from clients.predict.channel import PART, OverQuota, ServiceClient
from fl_core.errors import DataError, UsageError
from fl_core.serving import COLUMNS, ROW, Offer, digest, features_digest
from fl_core.trust.identity import Identity
from fl_core.wire import predict_pb2
from fl_core.wire.predict_pb2 import ContextRequest, DescribeRequest, PredictReply, PredictRequest

__all__ = ["OverQuota", "PredictClient", "Scores"]
Floats = NDArray[np.float64]
CALL_SECONDS = channel.CALL_SECONDS
_SERVICE = predict_pb2.DESCRIPTOR.services_by_name["Prediction"]


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


class PredictClient(ServiceClient):
    """A connection to one server; a context manager.  Several threads may use it.

    Parameters
    ----------
    address : HOST:PORT. authority : PEM, under which the server's certificate is.
    folder : of this client: pinned cards of servers and `receipts.jsonl`.
    """

    def __init__(self, address: str, *, authority: bytes, identity: Identity, folder: Path) -> None:
        super().__init__(_SERVICE, address, authority=authority, identity=identity, folder=folder)
        self._offers: list[Offer] = []
        self._keys: dict[tuple[str, tuple[int, ...]], tuple[Asker, str]] = {}

    @property
    def _seconds(self) -> float:
        return CALL_SECONDS

    # ---- what there is

    def models(self) -> list[Offer]:
        """What the server offers to this client, asked anew.

        Raises
        ------
        RefusedError : this client is not known there, or over its quota. JobFailed : no answer.
        WrongKey : the server shows another card than before.
        """
        offers = self._described(lambda statement: DescribeRequest(statement=statement), Offer.from_dict)
        with self._lock:
            self._offers = offers
        return offers

    def model(self, name: str = "") -> Offer:
        """One model: NAME, of several versions the one served last, or NAME@VERSION; without a name the only one.

        Raises `UsageError`.
        """
        if not self._offers:
            self.models()
        offers = {offer.name: offer for offer in self._offers}
        if not name and len(offers) == 1:
            return next(iter(offers.values()))
        named = offers | {f"{offer.name}@{offer.version}": offer for offer in self._offers}
        if name not in named:
            raise UsageError(f"model {name!r}; allowed: {', '.join(offers) or 'none is served'}")
        return named[name]

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
        asker = self._key(offer)[0]
        asker.check(scaled)
        if asker.by_row(len(scaled), offer.features):
            parts = [self._row(offer, row) for row in scaled]
        else:
            parts = [self._block(offer, block) for block in asker.blocks(scaled)]
        return Scores(offer, np.concatenate(parts))

    def _row(self, offer: Offer, row: Floats) -> Floats:
        asker = self._key(offer)[0]
        return asker.open_row(offer, self._ask(offer, ROW, 1, [asker.row(offer, row)]))

    def _block(self, offer: Offer, block: Floats) -> Floats:
        asker = self._key(offer)[0]
        return asker.open_columns(offer, self._ask(offer, COLUMNS, len(block), asker.columns(block)), len(block))

    def _ask(self, offer: Offer, form: str, rows: int, sent: list[bytes]) -> list[bytes]:
        """Send a block, check the receipt and keep it."""
        body = {"model": offer.name, "version": offer.version, "form": form, "rows": rows, "sent": digest(sent)}
        made: list[Any] = []

        def messages() -> Iterator[PredictRequest]:
            request = self._request("Predict", key=self._key(offer)[1], **body)
            made.append(request)
            yield PredictRequest(statement=request.encode())
            for ciphertext in sent:
                yield PredictRequest(ciphertext=ciphertext)

        reply: PredictReply = self._call("Predict", messages, again=lambda: self._open(offer))
        answers = list(reply.answers)
        self._received(reply.receipt, made[-1], answers)
        return answers

    # ---- keys

    def _key(self, offer: Offer) -> tuple[Asker, str]:
        """The keys for a model and their public half's digest; sent to the server when they are made."""
        with self._lock:
            name = offer.parameters, rotations_for(offer)
            if name not in self._keys:
                asker = make_asker(offer)
                self._keys[name] = asker, digest([asker.public])
                self._open(offer)
            return self._keys[name]

    def _open(self, offer: Offer) -> None:
        asker, name = self._keys[offer.parameters, rotations_for(offer)]

        def messages() -> Iterator[ContextRequest]:
            about = {"set": offer.parameters, "key": name, "rotations": list(asker.rotations)}
            yield ContextRequest(statement=self._statement("OpenContext", **about))
            for at in range(0, len(asker.public), PART):
                yield ContextRequest(part=asker.public[at : at + PART])

        self._call("OpenContext", messages)
