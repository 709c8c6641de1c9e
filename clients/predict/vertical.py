"""Scores by id with a vertical model of two parties: the side that had the labels asks, the other party serves.

For applications that stay up: one row at low latency, or some hundreds.  Who learns what stands in
`fl_core.protocols.prediction.online`: the server learns which of its rows are meant, the asker which of its ids are
there.  The key for trees is new in each `VerticalClient` and never leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clients.predict.channel import PART, ServiceClient
from clients.predict.vertical_table import columns_of, hash_texts, load_part
from fl_core.crypto import ring
from fl_core.crypto.marked_sum import MAX_LEAVES, MAX_VALUE, Asker, asked_bytes
from fl_core.crypto.ring import Elements, Floats
from fl_core.errors import BadMessage, DataError, UsageError
from fl_core.learning.boosting import Codes
from fl_core.learning.columns import Columns
from fl_core.learning.tree_parts import ActiveTrees, allowed_leaves
from fl_core.protocols.prediction.forest import ForestPart, WholeLeaves, values
from fl_core.protocols.prediction.linear import LinearPart
from fl_core.protocols.prediction.online import NO_KEY, VerticalOffer, make_block, read_found
from fl_core.protocols.vertical.exchange import FRACTION
from fl_core.protocols.vertical.meaning import predictions
from fl_core.serving import IDS, digest
from fl_core.trust.identity import Identity
from fl_core.wire import vertical_predict_pb2
from fl_core.wire.vertical_predict_pb2 import Ciphertexts, ContextRequest, DescribeRequest, ScoreReply, ScoreRequest

if TYPE_CHECKING:
    import pyarrow as pa

_SERVICE = vertical_predict_pb2.DESCRIPTOR.services_by_name["VerticalPrediction"]
Hashes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class VerticalScores:
    """The answer to n ids.

    here : (n,) bool, whether the server has the id.
    logits : (n, outputs) float64, or values of a regression. predictions : (n,) probabilities of the second class or
        values, or (n, classes). Both are NaN where an id is not there.
    classes : in the order of `predictions`' columns, or the two of it; () of a regression.
    """

    here: NDArray[np.bool_]
    logits: Floats
    predictions: Floats
    classes: tuple[str, ...]


class VerticalClient(ServiceClient):
    """A connection to the other party's server, with one's own part; a context manager.  Several threads may use it.

    Parameters
    ----------
    address : HOST:PORT. authority : PEM, under which the server's certificate is.
    folder : of this client: pinned cards of servers and `receipts.jsonl`.
    model : the folder of one's own part, of the party with the labels.
    name : of the model at the server, where it serves several of one training.

    Raises
    ------
    DataError : no part that can be asked with.
    """

    describes = "DescribeVertical"

    def __init__(
        self, address: str, *, authority: bytes, identity: Identity, folder: Path, model: Path, name: str = ""
    ) -> None:
        part, _ = load_part(model, active=True)
        assert isinstance(part, LinearPart | ForestPart)
        self.part, self._name = part, name
        self._side = _Sums(part) if isinstance(part, LinearPart) else _Marks(part)
        self._offer: VerticalOffer | None = None
        self._opened = False
        super().__init__(_SERVICE, address, authority=authority, identity=identity, folder=folder)

    def offer(self) -> VerticalOffer:
        """What the server says of this model, asked anew.

        Raises
        ------
        UsageError : it serves none of the same training. RefusedError, JobFailed, WrongKey : as `PredictClient.models`.
        """
        offers = self._described(lambda statement: DescribeRequest(statement=statement), VerticalOffer.from_dict)
        training = self.part.training.digest().hex()
        fits = [offer for offer in offers if offer.training == training and self._name in ("", offer.name)]
        if len(fits) != 1:
            told = ", ".join(f"{offer.name} by {offer.algorithm} of run {offer.run}" for offer in offers) or "none"
            wanted = f"{self._name} of run" if self._name else "of run"
            found = "no model" if not fits else f"{len(fits)} models"
            problem = f"{found} {wanted} {self.part.training.run}, as the own part is of"
            raise UsageError(f"server {self._address}: {problem}; it serves {told[:300]}")
        self._offer = fits[0]
        return fits[0]

    def score(
        self, ids: Sequence[str | int] | pa.Table, own_rows: Columns | Mapping[str, Sequence[Any]]
    ) -> VerticalScores:
        """Scores of rows.

        Parameters
        ----------
        ids : n ≥ 1, all different; a table where the server's ids have several columns.
        own_rows : this party's columns of the same n rows, by name; more columns than the part reads may be there.

        Raises
        ------
        DataError : ids or values that cannot be; it names the row.
        UsageError : the model at the server is another one. OverQuota, RefusedError, JobFailed : as `PredictClient`.
        """
        where = self.part.where
        hashes = hash_texts(ids, where)
        if isinstance(own_rows, Columns):
            columns = Columns(tuple(own_rows.get(n, kind) for n, kind in self.part.kinds.items()), len(own_rows))
        else:
            columns = columns_of(own_rows, self.part.kinds, len(hashes), where)
        return self.score_rows(hashes, columns)

    def score_rows(self, hashes: Hashes, columns: Columns) -> VerticalScores:
        """`score` of (n, 32) hashes of ids, all different, and the n rows of the part's columns."""
        if not len(hashes) or len(columns) != len(hashes):
            raise DataError(self.part.where, f"{len(hashes)} ids for {len(columns)} rows", allowed="one row an id")
        offer, training = self._offer or self.offer(), self.part.training
        here, logits = np.zeros(len(hashes), bool), np.full((len(hashes), training.outputs), np.nan)
        for start in range(0, len(hashes), offer.block):
            rows = np.arange(start, min(start + offer.block, len(hashes)))
            here[rows], logits[rows] = self._block(offer, hashes[rows], columns.take(rows))
        meant = predictions(logits[here], training.objective, self.part.link)
        made = np.full((len(hashes), *meant.shape[1:]), np.nan)
        made[here] = meant
        return VerticalScores(here, logits, made, self.part.classes)

    def _block(self, offer: VerticalOffer, hashes: Hashes, columns: Columns) -> tuple[NDArray[np.bool_], Floats]:
        """Send a block, check answer and receipt."""
        asked, finish = self._side.ask(columns)
        ids = make_block(hashes)
        sent = digest([ids, *(one for question in asked for one in question)])
        body = {"model": offer.name, "version": offer.version, "form": IDS, "rows": len(hashes), "sent": sent}
        key = self._key() if asked else NO_KEY
        made: list[Any] = []

        def messages() -> Iterator[ScoreRequest]:
            request = self._request("Score", key=key, **body)
            made.append(request)
            head = [ScoreRequest(statement=request.encode()), ScoreRequest(ids=ids)]
            return iter(head + [ScoreRequest(asked=Ciphertexts(ciphertexts=question)) for question in asked])

        reply: ScoreReply = self._call("Score", messages, again=self._open)
        answers = [list(answer.ciphertexts) for answer in reply.answers]
        self._received(reply.receipt, made[-1], [reply.found, *(one for answer in answers for one in answer)])
        if len(answers) != len(asked):
            raise BadMessage(f"{len(answers)} answers to {len(asked)} questions")
        outputs = 0 if isinstance(self._side, _Marks) else self.part.training.outputs
        here, sums = read_found(reply.found, len(hashes), outputs)
        return here, finish(here, sums, answers)

    # ---- the key

    def _key(self) -> str:
        """The digest of the public key; sent to the server once."""
        assert isinstance(self._side, _Marks)
        with self._lock:
            if not self._opened:
                self._open()
            return self._side.key

    def _open(self) -> None:
        side = self._side
        if not isinstance(side, _Marks):
            raise BadMessage("the server asks for a key that no linear model needs")

        def messages() -> Iterator[ContextRequest]:
            yield ContextRequest(statement=self._statement("OpenVertical", key=side.key))
            public = side.asker.public
            for at in range(0, len(public), PART):
                yield ContextRequest(part=public[at : at + PART])

        self._call("OpenVertical", messages)
        self._opened = True


Finish = Callable[[NDArray[np.bool_], Elements, list[list[bytes]]], Floats]


class _Sums:
    """A linear part: nothing is asked but ids; the own sums are added."""

    def __init__(self, part: LinearPart) -> None:
        self._part = part

    def ask(self, columns: Columns) -> tuple[list[list[bytes]], Finish]:
        """Nothing, and what makes (n, outputs) logits of the answer, NaN where there is none."""
        own = self._part.partial(columns)

        def finish(here: NDArray[np.bool_], sums: Elements, answers: list[list[bytes]]) -> Floats:
            made = np.full(own.shape, np.nan)
            made[here] = own[here] + ring.decode(sums, FRACTION)
            return made

        return [], finish


class _Marks:
    """Trees: leaf weights times own marks are asked with, encrypted, a question for each row and output.

    key : digest of the public key.
    """

    def __init__(self, part: ForestPart) -> None:
        assert isinstance(part.trees, ActiveTrees)
        self._part, self._trees, self._layout = part, part.trees, part.layout()
        self._whole = WholeLeaves.of(part.trees, part.training.objective)
        largest = float(np.abs(self._whole.leaves).max(initial=0.0))
        widest = max(self._layout.widths)
        if largest > MAX_VALUE or widest > MAX_LEAVES or sum(asked_bytes(widest)) > PART:
            problem = f"leaves of up to {largest:.0f} units, {widest} of them a score"
            raise DataError(part.where, problem, allowed=f"up to {MAX_VALUE} units; leaves that fit in {PART} bytes")
        self.asker = Asker()
        self.key = digest([self.asker.public])

    def ask(self, columns: Columns) -> tuple[list[list[bytes]], Finish]:
        """As `_Sums.ask`, with the questions."""
        codes = self._part.codes(columns)
        own = values(self._trees, self._whole, self._layout, codes, ring.U64)[0].view(np.int64).astype(np.float64)
        made, unit = self._alone(codes), self._whole.unit
        ends = np.cumsum(self._layout.widths)[:-1]
        parts = [(i, o, part) for i, row in enumerate(own) for o, part in enumerate(np.split(row, ends)) if len(part)]

        def finish(here: NDArray[np.bool_], sums: Elements, answers: list[list[bytes]]) -> Floats:
            for (i, output, part), answer in zip(parts, answers, strict=True):
                if here[i]:
                    made[i, output] += unit * self._sum(part, answer)
                elif answer:
                    raise BadMessage("an answer for an id that is not there")
            made[~here] = np.nan
            return made

        return [self.asker.encrypt(part) for _, _, part in parts], finish

    def _alone(self, codes: Codes) -> Floats:
        """(n, outputs) what needs no answer: base, trees that are split here alone, and of the other trees the mean of
        what rounding took from the leaves that are left, which makes the error of a score about half."""
        made = np.tile(self._trees.base, (len(codes), 1))
        for tree, leaves in enumerate(self._trees.leaves):
            asked = len(self._layout.leaders[tree]) > 1
            added = leaves - self._whole.leaves[tree] * self._whole.unit if asked else leaves
            allowed = allowed_leaves(self._trees, tree, codes)
            made[:, tree % self._trees.outputs] += allowed @ added / allowed.sum(axis=1)
        return made

    def _sum(self, asked: Floats, answer: list[bytes]) -> int:
        total = self.asker.open(answer)
        if not asked[asked < 0].sum() <= total <= asked[asked > 0].sum():
            raise BadMessage("a sum that these leaves cannot have")
        return total
