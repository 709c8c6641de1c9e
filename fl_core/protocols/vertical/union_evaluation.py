"""How good a model over a union is, when nobody may know which rows count.

Parties: G, active, with labels; H, passive; D, the coordinator.  Scores are the sum of what G and H bring; a row counts
if both have it, by shares of the product of their membership bits.

Who learns what
- D: for the held-out rows in an order that only G and H know: scores under a secret increasing map that is the same for
  all, labels, and which rows count: the ROC curve, in other words, which it publishes.
- G: `auc` or `accuracy`, `ks`, the ROC curve and how many held-out rows count. H: nothing.
D together with G or H learns which rows are common.

Honest but curious; shares hide perfectly, the map is one of about 2^9 slopes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto import ring
from fl_core.crypto.ring import Elements, Floats, Stream
from fl_core.errors import BadFrame
from fl_core.learning import scores
from fl_core.protocols.vertical.dealer import Script
from fl_core.protocols.vertical.dealt import Dealt
from fl_core.protocols.vertical.exchange import open_to_all, recv_elements, send_elements
from fl_core.records import decimal
from fl_core.trust import canonical

_BITS = 24  # fractional bits of scores
_SLOPE = 1 << 8
_KEY, _STEP, _FIGURES = "evaluation key", "hidden scores", "figures"
MAX_FIGURES = 64 << 10


def share_membership(channel: Channel, dealer: str, parties: tuple[str, str], member: NDArray[np.bool_]) -> Elements:
    """This party's share of the product of both parties' bits, (n,) of Z_2^64; the dealer serves it alone."""
    active, n = channel.me == parties[0], len(member)
    (other,) = (name for name in parties if name != channel.me)
    dealt = Dealt(channel, dealer)
    if active:
        script = Script()
        script.weights(parties, n)
        script.scale(0, n, 1)
        dealt.order(script)
    bits, none = member.astype(np.uint64), np.zeros(n, np.uint64)
    weights = dealt.weights(parties, n)
    weights.opened = open_to_all(channel, [other], weights.mask(bits if active else none), step="membership")
    opened = open_to_all(channel, [other], weights.begin((none if active else bits)[:, None]), step="membership")
    share = weights.share(opened, 0)[:, 0]
    if active:
        dealt.end()
    return share


class _Common:
    """What G and H know and D does not: an order, a map, and a mask that splits the scores."""

    def __init__(self, key: bytes, shape: tuple[int, int]) -> None:
        stream = Stream(key)
        self.order = np.argsort(stream.draw(shape[0]), kind="stable")
        slope, offset = stream.draw(2)
        self.slope = np.uint64(_SLOPE) + slope % np.uint64(_SLOPE)
        self.offset = offset % np.uint64(1 << 40)
        self.mask = stream.draw(*shape)


def evaluate_active(
    channel: Channel, passive: str, dealer: str, part: Floats, labels: NDArray[np.int64], weights: Elements
) -> tuple[dict[str, float], list[tuple[float, float]]]:
    """G's part.

    Parameters
    ----------
    part : (n, outputs) what G adds to the held-out rows' scores. labels : (n,) classes from 0.
    weights : (n,) its shares of which rows count.

    Returns
    -------
    Figures by name, and the ROC curve, empty with more than two classes.
    """
    key = ring.new_key()
    channel.send(passive, key, step=_KEY)
    common = _Common(key, part.shape)
    mapped = ring.encode(part, _BITS) * common.slope + common.offset + common.mask
    _send(channel, dealer, mapped, weights, common.order)
    channel.send(dealer, np.ascontiguousarray(labels[common.order], dtype="<i8"), step=_STEP)
    told = canonical.decode(bytes(channel.recv(dealer, step=_FIGURES, max_bytes=MAX_FIGURES)), max_bytes=MAX_FIGURES)
    try:
        figures = {str(name): float(text) for name, text in told["figures"].items()}
        return figures, [(float(a), float(b)) for a, b in told["roc"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadFrame(dealer, _FIGURES, "figures of another shape") from None


def evaluate_passive(channel: Channel, active: str, dealer: str, part: Floats, weights: Elements) -> None:
    """H's part; what is not said here is as for `evaluate_active`."""
    common = _Common(bytes(channel.recv_exactly(active, step=_KEY, size=ring.KEY_BYTES)), part.shape)
    mapped = ring.encode(part, _BITS) * common.slope - common.mask
    _send(channel, dealer, mapped, weights, common.order)


def evaluate_coordinator(channel: Channel, active: str, passive: str, shape: tuple[int, int]) -> None:
    """D's part, for (rows, outputs)."""
    n, outputs = shape
    whole = [_recv(channel, peer, n, outputs) for peer in (active, passive)]
    z = ring.decode(whole[0][0] + whole[1][0], 0)
    counts = ring.decode(whole[0][1] + whole[1][1], 0) > 0.5
    data = channel.recv_exactly(active, step=_STEP, size=8 * n)
    labels = np.frombuffer(data, dtype="<i8")[counts]
    figures: dict[str, float] = {"test_rows": float(counts.sum())}
    roc: list[tuple[float, float]] = []
    if outputs == 1:
        figures |= {"auc": scores.auc(labels, z[counts, 0]), "ks": scores.ks(labels, z[counts, 0])}
        roc = scores.roc(labels, z[counts, 0])
    else:
        figures["accuracy"] = scores.accuracy(labels, z[counts].argmax(axis=1))
    told: dict[str, Any] = {"figures": {name: decimal(value) for name, value in figures.items()}}
    told["roc"] = [[decimal(a), decimal(b)] for a, b in roc]
    channel.send(active, canonical.encode(told), step=_FIGURES)


def _send(channel: Channel, dealer: str, mapped: Elements, weights: Elements, order: NDArray[np.int64]) -> None:
    send_elements(channel, dealer, mapped[order], step=_STEP)
    send_elements(channel, dealer, weights[order], step=_STEP)


def _recv(channel: Channel, peer: str, n: int, outputs: int) -> tuple[Elements, Elements]:
    return recv_elements(channel, peer, n, outputs, step=_STEP), recv_elements(channel, peer, n, step=_STEP)
