"""Sums of products of what several parties hold, row by row, opened to receivers only; the dealer's way.

Each party p holds private numbers x_p (n, columns) of Z_2^32 or Z_2^64.  Wanted are Σ x_1·x_2·…·x_k over the columns of
each output.  The first two multiply, the result stays shared among them, the third multiplies that, and so on; of the
last product only the sums are made (`fl_core.protocols.vertical.dealer`, `multiply`).  The shares go to the receivers.

Who learns what
---------------
A receiver: the sums, with every party's share.  The shares are uniform but for their sum, fresh masks in each, so
beyond the sum and its own numbers they say nothing; several receivers get the same ones.  Of boosted trees a receiver
that is not the active party also learns the unit in which leaf weights are rounded.
Others: uniform elements only, and whether numbers take 32 or 64 bits.
Dealer, the coordinator: rows, columns, parties; no number, masked or not.  A dealer that colludes with a party learns
what the others hold.  With two parties a receiver that knows its own numbers may infer the other's from the sums.

Honest but curious; hidden perfectly given uniform masks, which are AES-256 in counter mode (D. Beaver, CRYPTO 1991).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl_core.channel import Channel
from fl_core.crypto import ring
from fl_core.crypto.ring import U32, U64, Elements, Floats
from fl_core.errors import BadFrame
from fl_core.messages import COORDINATOR
from fl_core.protocols.vertical.dealer import Script
from fl_core.protocols.vertical.dealt import Dealt
from fl_core.protocols.vertical.exchange import recv_elements, send_elements
from fl_core.trust import canonical

BLOCK_BYTES = 1 << 21  # of the masked numbers of a block of rows
AHEAD = 2  # blocks whose randomness is ordered before they are begun
_FORM, _SHARE = "form of scores", "share of scores"
_MAX_FORM = 256
_DTYPES: dict[int, np.dtype[Any]] = {32: U32, 64: U64}
Bring = Callable[[slice, np.dtype[Any]], tuple[Elements, Elements | None]]


@dataclass(frozen=True)
class Frame:
    """What all parties know.

    parties : in the order of the product; the first one leads. rows : n. widths : columns of each output.
    """

    parties: tuple[str, ...]
    receivers: tuple[str, ...]
    rows: int
    widths: tuple[int, ...]

    def blocks(self, dtype: np.dtype[Any]) -> list[slice]:
        """Rows that are worked on together."""
        size = max(1, BLOCK_BYTES // max(1, sum(self.widths) * dtype.itemsize))
        return [slice(start, min(start + size, self.rows)) for start in range(0, self.rows, size)]


def score(channel: Channel, frame: Frame, bring: Bring, form: tuple[float, int] | None) -> Floats | None:
    """One party's part, while the coordinator serves as `Dealer`.

    Parameters
    ----------
    bring : gives this party's numbers (block, columns), and at the first party what it adds to the sums.
    form : at the first party what 1 stands for, and the bits that every sum fits in; None at the others.

    Returns
    -------
    (n, outputs) sums at a receiver, None at the others.

    Raises
    ------
    BadFrame : a message that cannot be.
    """
    unit, bits = _tell_form(channel, frame, *form) if form else _hear_form(channel, frame)
    dealt, dtype = Dealt(channel, COORDINATOR), _DTYPES[bits]
    blocks = frame.blocks(dtype)
    orders = _Orders(dealt, frame, blocks, bits) if form else None
    total = np.empty((frame.rows, len(frame.widths)))
    for number, block in enumerate(blocks):
        if orders is not None:
            orders.up_to(number + AHEAD)
        own, alone = bring(block, dtype)
        share = _multiply(dealt, frame, own)
        share = share if alone is None else share + alone
        opened = _open(channel, frame, share)
        if opened is not None:
            total[block] = ring.decode(opened, 0) * unit
    if form:
        dealt.end()
    return total if channel.me in frame.receivers else None


def _multiply(dealt: Dealt, frame: Frame, own: Elements) -> Elements:
    """This party's share of the sums."""
    me, share = frame.parties.index(dealt.channel.me), own
    for number in range(1, len(frame.parties)):
        holders, other, last = frame.parties[:number], frame.parties[number], number == len(frame.parties) - 1
        if me < number:
            share = dealt.multiply_shared(share, other, frame.widths, summed=last)
        elif me == number:
            share = dealt.multiply_own(share, holders, frame.widths, summed=last)
    return share


def _open(channel: Channel, frame: Frame, share: Elements) -> Elements | None:
    for receiver in frame.receivers:
        if receiver != channel.me:
            send_elements(channel, receiver, share, step=_SHARE)
    if channel.me not in frame.receivers:
        return None
    for peer in frame.parties:
        if peer != channel.me:
            share = share + recv_elements(channel, peer, *share.shape, step=_SHARE, dtype=share.dtype)
    return share


class _Orders:
    """The first party's orders to the dealer, a script a block."""

    def __init__(self, dealt: Dealt, frame: Frame, blocks: Sequence[slice], bits: int) -> None:
        self._dealt, self._frame, self._bits = dealt, frame, bits
        self._sizes = [block.stop - block.start for block in blocks]
        self._done = 0

    def up_to(self, number: int) -> None:
        """Order what blocks below `number` need."""
        for size in self._sizes[self._done : number]:
            if self._done and size == self._sizes[self._done - 1]:
                self._dealt.again()
            else:
                self._dealt.order(self._script(size))
            self._done += 1

    def _script(self, rows: int) -> Script:
        script, parties = Script(), self._frame.parties
        for number in range(1, len(parties)):
            script.multiply(
                parties[:number], parties[number], rows, self._frame.widths, summed=number == len(parties) - 1,
                bits=self._bits,
            )  # fmt: skip
        return script


def _tell_form(channel: Channel, frame: Frame, unit: float, bits: int) -> tuple[float, int]:
    for peer in frame.parties[1:]:
        told: dict[str, Any] = {"bits": bits} | ({"unit": repr(unit)} if peer in frame.receivers else {})
        channel.send(peer, canonical.encode(told), step=_FORM)
    return unit, bits


def _hear_form(channel: Channel, frame: Frame) -> tuple[float, int]:
    leader = frame.parties[0]
    told = canonical.decode(bytes(channel.recv(leader, step=_FORM, max_bytes=_MAX_FORM)))
    try:
        unit, bits = float(told.get("unit", "1.0")), told["bits"]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise BadFrame(leader, _FORM, "no unit, or no bits") from None
    if bits not in (32, 64) or not (math.isfinite(unit) and unit > 0.0):
        raise BadFrame(leader, _FORM, "a unit or bits that cannot be")
    return unit, bits
