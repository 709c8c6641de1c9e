"""Scores of a vertical model by id, as a service of the party without labels; gRPC over TLS, at the owner's `Door`.

Who learns what stands in `fl_core.protocols.prediction.online`: here, that the asker is told which of its ids have a
row, and this party which rows are meant.  **Every client of this process may ask every model.**  An id counts as a row
of the quota whether it is here or not.  Ids are in no log, error, ledger or receipt.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np

from fl_core.crypto.marked_sum import Marker, public_bytes
from fl_core.errors import BadMessage
from fl_core.protocols.prediction.online import NO_KEY, make_found, read_block
from fl_core.serving import RunningDigest
from fl_core.trust.entry import Statement
from fl_core.trust.identity import is_hex
from fl_core.wire import vertical_predict_pb2
from fl_core.wire.vertical_predict_pb2 import (
    Ciphertexts,
    ContextReply,
    ContextRequest,
    DescribeReply,
    DescribeRequest,
    ScoreReply,
    ScoreRequest,
)
from server.serving.door import Door, Guarded, NoContext, ahead, rest
from server.serving.keys import HeldKey, Keys, joined
from server.serving.vertical_model import ServedPart, Trees

SERVICE = vertical_predict_pb2.DESCRIPTOR.services_by_name["VerticalPrediction"]
_SET, _KEY_BYTES = "marked_sum", 1 << 20


class VerticalPrediction:
    """The service's methods; `models`, by name, may be replaced as a whole while serving."""

    def __init__(self, door: Door, models: dict[str, ServedPart]) -> None:
        self.door, self.models, self._keys = door, models, Keys()

    def DescribeVertical(self, request: DescribeRequest, context: grpc.ServicerContext) -> DescribeReply:
        """The models, this server's card and its log."""
        offers = [model.offer for model in self.models.values()]
        return DescribeReply(**self.door.described(request.statement, "DescribeVertical", offers))

    def OpenVertical(self, requests: Iterator[ContextRequest], context: grpc.ServicerContext) -> ContextReply:
        """Keep a client's public key."""
        statement = self.door.first(requests, context, "OpenVertical")
        name = statement.body["key"]
        if not is_hex(name, 32):
            raise BadMessage("a request to OpenVertical with a field of another type")
        self.door.take(statement, rows=0)
        with self.door.place():
            marker = Marker(joined(rest(requests, "part"), public_bytes(), name))
        self._keys.keep((statement.by, _SET, name), HeldKey(marker, (), _KEY_BYTES))
        return ContextReply()

    def Score(self, requests: Iterator[ScoreRequest], context: grpc.ServicerContext) -> ScoreReply:
        """Answer one block of ids."""
        statement = self.door.first(requests, context, "Score")
        model, marker = self._wanted(statement)
        requests, rows = ahead(requests), statement.body["rows"]
        started = time.monotonic()
        with self.door.place(f"{model.offer.name} ids {rows.bit_length()}"):
            self.door.take(statement, rows=rows)
            found, answers, received = _answer(model, marker, statement.body, requests)
        flat = [found, *(one for answer in answers for one in answer)]
        receipt = self.door.receipt(statement, flat, received, time.monotonic() - started)
        told = [Ciphertexts(ciphertexts=answer) for answer in answers]
        return ScoreReply(found=found, answers=told, receipt=receipt.encode())

    def _wanted(self, statement: Statement) -> tuple[ServedPart, Marker | None]:
        """Model and key of a request; whatever is wrong with it costs the client no rows."""
        body = statement.body
        model = self.models.get(body["model"])
        if model is None or model.offer.version != body["version"]:
            raise BadMessage(f"no model {body['model']!r:.60} of version {body['version']!r:.20} here; ask again")
        if body["rows"] > model.offer.block:
            raise BadMessage(f"{body['rows']} ids in a request; allowed: {model.offer.block}")
        if model.trees is None:
            if body["key"] != NO_KEY:
                raise BadMessage("a key for a model that is asked without one")
            return model, None
        held = self._keys.get((statement.by, _SET, body["key"]))
        if held is None:
            raise NoContext("no such public key here; open the context first")
        return model, held.key


def _answer(
    model: ServedPart, marker: Marker | None, body: dict[str, Any], requests: Iterator[ScoreRequest]
) -> tuple[bytes, list[list[bytes]], int]:
    """What is found, the answers to the questions that follow, and the bytes that were received."""
    first = next(requests, None)
    if first is None or first.WhichOneof("what") != "ids":
        raise BadMessage("no ids after the statement")
    rows = model.index.find(read_block(first.ids, body["rows"]))
    here, seen = rows >= 0, RunningDigest()
    seen.add(first.ids)
    sums = None if model.sums is None else model.sums[rows[here]]
    answers, size = [], len(first.ids)
    asked = (list(one.ciphertexts) for one in rest(requests, "asked"))
    if model.trees is not None:
        assert marker is not None
        for question, reply in _questions(model.trees, marker, rows, asked):
            answers.append(reply)
            size += sum(map(len, question))
            for one in question:
                seen.add(one)
    if next(asked, None) is not None or seen.hex() != body["sent"]:
        raise BadMessage("the ids or ciphertexts are not those that the request names")
    return make_found(here, sums), answers, size


def _questions(
    trees: Trees, marker: Marker, rows: np.ndarray[Any, np.dtype[np.int64]], asked: Iterator[list[bytes]]
) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Each question, and its answer: empty where the id is not here."""
    marks = iter(trees.marks(rows[rows >= 0]))
    for row in rows.tolist():
        allowed = next(marks) if row >= 0 else [None] * trees.questions
        for flags in allowed:
            question = next(asked, None)
            if question is None:
                raise BadMessage("fewer questions than ids need")
            yield question, [] if flags is None else marker.answer(question, flags)


def handler(service: VerticalPrediction) -> dict[str, grpc.GenericRpcHandler]:
    """Of the service, for `Server`."""
    return {SERVICE.full_name: Guarded(SERVICE, service, service.door.watcher)}
