"""Scores of a linear vertical model for rows that the parties have aligned: only their sum is opened.

Who learns what.  The receiver: each row's logits, which are the sum over the parties; with two parties it can subtract
its own part.  The others: nothing.  All parties but one may collude with the receiver and learn no more than that.
Values are fixed point with 32 fractional bits in Z_2^64; fresh shares of zero hide each party's part perfectly.
"""

from __future__ import annotations

from collections.abc import Sequence

from fl_core.channel import Channel
from fl_core.crypto import ring
from fl_core.crypto.ring import Floats
from fl_core.protocols.vertical.exchange import FRACTION, ZeroShares, recv_elements, send_elements

STEP = "scores"


def score_receiver(channel: Channel, others: Sequence[str], part: Floats) -> Floats:
    """The logits (n, outputs), from the receiver's own `part` of them."""
    total = ring.encode(part, FRACTION)
    for peer in others:
        total = total + recv_elements(channel, peer, *part.shape, step=STEP)
    return ring.decode(total, FRACTION)


def score_sender(channel: Channel, receiver: str, others: Sequence[str], part: Floats) -> None:
    """Add this party's `part` (n, outputs); `others`: all who add one but the receiver, in the same order at all."""
    zero = ZeroShares(channel, others).draw(*part.shape)
    send_elements(channel, receiver, ring.encode(part, FRACTION) + zero, step=STEP)
