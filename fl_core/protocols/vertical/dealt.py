"""A party's side of what `dealer` deals.  Operations come in the order of the script that the active party sent.

Shares are elements of Z_2^64 (histograms: of Z_2^32); a shared number is the sum of its holders' shares.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto import ring
from fl_core.crypto.ring import U64, Elements, Mask, Stream
from fl_core.errors import BadFrame
from fl_core.protocols.stream import PART_BYTES, recv_bytes, send_bytes
from fl_core.protocols.vertical.dealer import AGAIN, HALF, MAX_DEAL, ORDER, STEP, Rows, Script, check_rows, sums

MATRIX, FACTORS = "masked columns", "masked factors"


class Dealt:
    """What a party gets from the dealer in one session.

    Parameters
    ----------
    dealer : its name in the session.
    """

    def __init__(self, channel: Channel, dealer: str) -> None:
        self.channel, self.dealer = channel, dealer
        self.stream = Stream(bytes(channel.recv_exactly(dealer, step=STEP, size=ring.KEY_BYTES)))
        self._rest = memoryview(b"")

    # ---- orders, by the active party alone

    def order(self, script: Script) -> None:
        """Have a script dealt."""
        self.channel.send(self.dealer, *script.encode(), step=ORDER)

    def again(self) -> None:
        """Have the last script dealt once more."""
        self.channel.send(self.dealer, AGAIN, step=ORDER)

    def end(self) -> None:
        """Nothing more is needed."""
        self.channel.send(self.dealer, b"", step=ORDER)

    # ---- what is dealt

    def explicit(self, *shape: int, dtype: np.dtype[Any] = U64) -> Elements:
        """The next elements that the dealer sent."""
        size = int(np.prod(shape)) * dtype.itemsize
        if not self._rest and size:
            self._rest = memoryview(self.channel.recv(self.dealer, step=STEP, max_bytes=MAX_DEAL))
        if size > len(self._rest):
            raise BadFrame(self.dealer, STEP, f"{len(self._rest)} bytes where {size} are due")
        part, self._rest = self._rest[:size], self._rest[size:]
        return np.frombuffer(part, dtype=dtype).reshape(shape)

    def own_matrix(
        self, peers: Sequence[str], elements: Callable[[int, int], Elements], shape: tuple[int, int],
        dtype: np.dtype[Any] = U64,
    ) -> OwnMatrix:  # fmt: skip
        """Mask a matrix of this party and send it to all who multiply with it.

        Parameters
        ----------
        elements : gives rows start … stop.
        """
        mask = Mask(self.stream.key(), *shape, dtype)
        block = max(1, PART_BYTES // max(1, shape[1] * dtype.itemsize))
        for start in range(0, shape[0], block):
            stop = min(start + block, shape[0])
            masked = elements(start, stop) - mask.rows(start, stop)
            for peer in peers:
                send_bytes(self.channel, peer, masked.view(np.uint8), step=MATRIX)
        return OwnMatrix(self, mask)

    def peer_matrix(self, owner: str, shape: tuple[int, int], dtype: np.dtype[Any] = U64) -> PeerMatrix:
        """Take another party's masked matrix."""
        block = max(1, PART_BYTES // max(1, shape[1] * dtype.itemsize))
        masked = np.empty(shape, dtype=dtype)
        for start in range(0, shape[0], block):
            part = masked[start : start + block]
            part[:] = recv_bytes(self.channel, owner, *part.view(np.uint8).shape, step=MATRIX).view(dtype)
        return PeerMatrix(self, masked)

    # ---- truncation

    def truncation(self, holders: Sequence[str], size: int, shift: int) -> Truncation:
        """Begin to divide `size` shared numbers by 2^shift; see `Truncation`."""
        if self.channel.me == holders[-1]:
            r, high, top = (self.explicit(size) for _ in range(3))
        else:
            r, high, top = (self.stream.draw(size) for _ in range(3))
        return Truncation(r, high, top, shift, first=self.channel.me == holders[0])

    # ---- products of what parties hold

    def multiply_shared(self, share: Elements, other: str, widths: Sequence[int], *, summed: bool) -> Elements:
        """A holder's share of the product of shared numbers, (rows, Σ widths), with those of party `other`.

        Parameters
        ----------
        share : this party's, of `Script.multiply`'s shape. summed : as there; the product is (rows, widths) then.
        """
        mask = self.stream.draw(*share.shape, dtype=share.dtype)
        masked = send_and_take(self.channel, share - mask, [other], step=FACTORS)[0]
        made = share * masked
        made = sums(made, widths) if summed else made
        return made + self.stream.draw(*made.shape, dtype=made.dtype)

    def multiply_own(self, own: Elements, holders: Sequence[str], widths: Sequence[int], *, summed: bool) -> Elements:
        """The other party's share of it, from its own numbers."""
        mask = self.stream.draw(*own.shape, dtype=own.dtype)
        made, *more = send_and_take(self.channel, own - mask, holders, step=FACTORS)
        for masked in more:
            made = made + masked
        made = made * mask
        made = sums(made, widths) if summed else made
        return made + self.explicit(*made.shape, dtype=made.dtype)

    # ---- weights

    def weights(self, holders: Sequence[str], size: int) -> Weights:
        """Begin to scale by `size` shared numbers; see `Weights`."""
        return Weights(self, holders, self.stream.draw(size))


def send_and_take(channel: Channel, mine: Elements, peers: Sequence[str], *, step: str) -> list[Elements]:
    """Send the same elements to all peers, and take as many from each."""
    for peer in peers:
        channel.send(peer, np.ascontiguousarray(mine), step=step)
    taken = (channel.recv_exactly(peer, step=step, size=mine.nbytes) for peer in peers)
    return [np.frombuffer(data, dtype=mine.dtype).reshape(mine.shape) for data in taken]


class OwnMatrix:
    """Products with a matrix of this party's own and another one's vectors."""

    def __init__(self, dealt: Dealt, mask: Mask) -> None:
        self._dealt, self._mask = dealt, mask
        self._begun: deque[Elements] = deque()

    def begin(self, rows: Rows, count: int, *, transposed: bool) -> None:
        """Draw what belongs to a product whose vectors come later, when other operations are drawn in between."""
        size = self._mask.shape[1] if transposed else check_rows(rows, self._mask.shape[0])
        self._begun.append(self._dealt.stream.draw(size, count, dtype=self._mask.dtype))

    def share(self, masked: Elements, rows: Rows, *, transposed: bool) -> Elements:
        """This party's share, from the other one's masked vectors: A·f + c1, or Aᵀ·f + c1."""
        if not self._begun:
            self.begin(rows, masked.shape[1], transposed=transposed)
        multiply = ring.rows_product_t if transposed else ring.rows_product
        return multiply(self._mask, rows, masked) + self._begun.popleft()

    def shares(self, masked: Sequence[Elements], sets: Sequence[NDArray[np.int64]]) -> list[Elements]:
        """This party's shares of histograms, one for each row set."""
        parts = ring.rows_products_t(self._mask, sets, masked)
        if not self._begun:
            for rows, vectors in zip(sets, masked, strict=True):
                self.begin(rows, vectors.shape[1], transposed=True)
        return [part + self._begun.popleft() for part in parts]


class PeerMatrix:
    """Products with another party's matrix and this one's vectors: first `mask`, then `share`."""

    def __init__(self, dealt: Dealt, masked: Elements) -> None:
        self._dealt, self._masked = dealt, masked
        self.columns = masked.shape[1]
        self.last = masked[:0]

    def mask(self, vectors: Elements) -> Elements:
        """What goes to the owner; `last` keeps the mask."""
        self.last = self._dealt.stream.draw(*vectors.shape, dtype=vectors.dtype)
        return vectors - self.last

    def share(self, vectors: Elements, rows: Rows, *, transposed: bool) -> Elements:
        """This party's share: E·v + c2, or Eᵀ·v + c2."""
        multiply = ring.rows_product_t if transposed else ring.rows_product
        check_rows(rows, len(self._masked))
        part = multiply(self._masked, rows, vectors)
        return part + self._dealt.explicit(*part.shape, dtype=part.dtype)


class Truncation:
    """Shared numbers x, |x| < 2^62, divided by 2^shift and rounded down or up at random, without bias.

    Every holder opens what `mask` gives to all holders; `share` takes the sum.
    """

    def __init__(self, r: Elements, high: Elements, top: Elements, shift: int, *, first: bool) -> None:
        self._r, self._high, self._top, self._shift, self._first = r, high, top, np.uint64(shift), first

    def mask(self, share: Elements) -> Elements:
        """This party's part of x + 2^62 + r."""
        masked = share.reshape(-1) + self._r
        return masked + HALF if self._first else masked

    def share(self, opened: Elements) -> Elements:
        """This party's share of the quotient, flat."""
        wrapped = (np.uint64(1) - (opened >> np.uint64(63))) << (np.uint64(64) - self._shift)
        part = self._top * wrapped - self._high
        if self._first:
            part = part + (opened >> self._shift) - (HALF >> self._shift)
        return part


class Weights:
    """Shared numbers that other shared numbers are multiplied by, row by row (Beaver, with one mask for all uses).

    `opened` is set to the sum of what all holders gave by `mask` before the first use.
    """

    def __init__(self, dealt: Dealt, holders: Sequence[str], mask: Elements) -> None:
        self._dealt, self._mask = dealt, mask
        self._first, self._last = dealt.channel.me == holders[0], dealt.channel.me == holders[-1]
        self.opened = mask[:0]
        self._y = self._z = mask[:0]

    def mask(self, share: Elements) -> Elements:
        """This party's part of the masked weights, to be opened to all holders."""
        return share - self._mask

    def begin(self, share: Elements) -> Elements:
        """This party's part of the masked numbers (rows, count), to be opened to all holders."""
        self._y = self._dealt.stream.draw(*share.shape)
        if not self._last:
            self._z = self._dealt.stream.draw(*share.shape)
        return share - self._y

    def share(self, opened: Elements, start: int) -> Elements:
        """This party's share of weights[start:] times the numbers."""
        stop = start + len(opened)
        d, w = self.opened[start:stop, None], self._mask[start:stop, None]
        z = self._dealt.explicit(*opened.shape) if self._last else self._z
        part = z + d * self._y + opened * w
        return part + d * opened if self._first else part
