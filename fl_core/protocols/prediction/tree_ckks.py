"""Sums of products of what two parties hold, row by row, under the first one's key; no dealer.

The active party brings whole numbers (n, columns), its leaf weights times its own marks, the passive one marks of the
same shape.  Row by row and output by output the active party encrypts its numbers, the passive one answers with their
sum over its marks, flooded and re-randomised, and the active party opens that (`fl_core.crypto.marked_sum`).

Who learns what
---------------
The active party, which is the only receiver: the sums, exactly, λ = 40 an answer, more with less than 131,072 columns.
It may infer the other's marks of a row from the sum, as `forest` says.
The passive party: nothing but numbers that both know, rows and columns (Ring-LWE, 128 bits).
The coordinator takes no part; sizes show it rows and columns.  There is no third party to collude with.

Honest but curious: an active party that deviates can bring powers of two, and reads some 30 marks from a sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto.marked_sum import ANSWER_BYTES, Asker, Marker, asked_bytes, public_bytes
from fl_core.crypto.ring import Floats
from fl_core.errors import BadFrame, BadMessage

BLOCK_BYTES = 1 << 20  # of the questions, or of the answers, of a block of rows
AHEAD = 2  # blocks that are asked before the first one's answers are read
_KEY, _ASKED, _ANSWERS = "key of scores", "encrypted leaves", "encrypted scores"


@dataclass(frozen=True)
class Frame:
    """What both parties know.

    rows : n. widths : columns of each output; an output without columns is not asked for.
    """

    rows: int
    widths: tuple[int, ...]

    @property
    def asked(self) -> list[int]:
        """The outputs that are asked for."""
        return [output for output, width in enumerate(self.widths) if width]

    @property
    def columns(self) -> dict[int, slice]:
        """Of each output that is asked for."""
        ends = np.cumsum((0, *self.widths)).tolist()
        return {output: slice(ends[output], ends[output + 1]) for output in self.asked}

    @property
    def question_bytes(self) -> int:
        """Of a row's questions."""
        return sum(sum(asked_bytes(self.widths[output])) for output in self.asked)

    @property
    def answer_bytes(self) -> int:
        """Of a row's answers."""
        return ANSWER_BYTES * len(self.asked)

    @property
    def blocks(self) -> list[slice]:
        """Rows that travel together."""
        size = max(1, BLOCK_BYTES // max(1, self.question_bytes, self.answer_bytes))
        return [slice(start, min(start + size, self.rows)) for start in range(0, self.rows, size)]


def score_active(channel: Channel, peer: str, frame: Frame, bring: Callable[[slice], tuple[Floats, Floats]]) -> Floats:
    """The active party's part, while `peer` is in `score_passive`.

    Parameters
    ----------
    bring : gives of some rows this party's whole numbers, (block, columns), and what it adds to the sums,
        (block, outputs).

    Returns
    -------
    (n, outputs) sums.

    Raises
    ------
    DataError : numbers that `Asker.encrypt` does not take. BadFrame : a message that cannot be.
    """
    total, blocks = np.empty((frame.rows, len(frame.widths))), frame.blocks
    asker = Asker() if frame.asked else None
    if asker is not None:
        channel.send(peer, asker.public, step=_KEY)
    for number in range(len(blocks) + AHEAD):
        if number < len(blocks):
            numbers, total[blocks[number]] = bring(blocks[number])
            if asker is not None:
                channel.send(peer, *_questions(asker, frame, numbers), step=_ASKED)
        if asker is not None and number >= AHEAD:
            _collect(channel, peer, asker, frame, total[blocks[number - AHEAD]])
    return total


def score_passive(channel: Channel, peer: str, frame: Frame, bring: Callable[[slice], NDArray[np.bool_]]) -> None:
    """The passive party's part; `bring` gives its marks of some rows, (block, columns) bool.

    Raises
    ------
    BadFrame : a message that cannot be.
    """
    if not frame.asked:
        return
    key = bytes(channel.recv_exactly(peer, step=_KEY, size=public_bytes()))
    marker = _checked(peer, _KEY, Marker, key)
    for block in frame.blocks:
        size = frame.question_bytes * (block.stop - block.start)
        data = bytes(channel.recv_exactly(peer, step=_ASKED, size=size))
        channel.send(peer, *_checked(peer, _ASKED, _answers, marker, frame, data, bring(block)), step=_ANSWERS)


def _questions(asker: Asker, frame: Frame, numbers: Floats) -> list[bytes]:
    return [one for row in numbers for columns in frame.columns.values() for one in asker.encrypt(row[columns])]


def _answers(marker: Marker, frame: Frame, data: bytes, marks: NDArray[np.bool_]) -> list[bytes]:
    made, at = [], 0
    for row in marks:
        for columns in frame.columns.values():
            asked = []
            for size in asked_bytes(columns.stop - columns.start):
                asked.append(data[at : at + size])
                at += size
            made += marker.answer(asked, row[columns])
    return made


def _collect(channel: Channel, peer: str, asker: Asker, frame: Frame, total: Floats) -> None:
    """Add a block's answers to its part of the sums."""
    data = bytes(channel.recv_exactly(peer, step=_ANSWERS, size=frame.answer_bytes * len(total)))
    for number, (row, output) in enumerate((row, output) for row in total for output in frame.asked):
        answer = data[number * ANSWER_BYTES : (number + 1) * ANSWER_BYTES]
        row[output] += _checked(peer, _ANSWERS, asker.open, [answer])


def _checked(peer: str, step: str, work: Any, *arguments: Any) -> Any:
    """`work(*arguments)`; what it refuses is laid to the peer whose message it was."""
    try:
        return work(*arguments)
    except BadMessage as error:
        raise BadFrame(peer, step, str(error)) from None
