"""Weight of evidence of a passive party's bins, from the active party's labels, once before a training.

The passive party merges bins of few rows, masks its cumulative columns (`histograms`), and the active party opens how
many rows and how many positive ones each bin has; it answers with the bins' weights.

Who learns what
---------------
Active party: how many features each passive party has that can be told apart in two bins or more, how many bins each
has, rows and positive rows of each bin; features stand in a secret random order, bins of one in theirs.  No bin has
fewer than `min_rows_open` training rows.
Passive party: weights of evidence and information values of its own features, to 3 decimals: with them, about how
frequent positive labels are in each of its bins.
Dealer: sizes.  It must not collude with a party.  Honest but curious; masks are uniform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto.ring import U32
from fl_core.errors import BadFrame, DataError
from fl_core.learning.boosting import Codes, Floats
from fl_core.learning.scores import woe_iv
from fl_core.protocols.psi.shuffle import random_order
from fl_core.protocols.vertical.dealer import MAX_COLUMNS
from fl_core.protocols.vertical.dealt import Dealt
from fl_core.protocols.vertical.histograms import Answerer, Candidates, Opener, Rows

_BINS, _WOE = "bins of features", "weights of evidence"
_DECIMALS = 3
_LIMIT = 100.0


@dataclass(frozen=True, eq=False)
class Woe:
    """Weights of evidence.

    values : for each feature (codes,) float64. iv : (d,) information value of each feature, 0 where all is one bin.
    """

    values: list[Floats]
    iv: Floats


def merge_bins(codes: NDArray[np.uint8], size: int, least: int) -> Rows:
    """(size,) which merged bin each code is in: neighbours are joined until each bin has `least` of the rows."""
    counts = np.bincount(codes, minlength=size)
    bins, number, rows = np.zeros(size, dtype=np.int64), 0, 0
    for code in range(size):
        bins[code] = number
        rows += counts[code]
        if rows >= least:
            number, rows = number + 1, 0
    # what is left over at the end joins the last full bin
    return np.minimum(bins, max(number - 1, 0))


def plain_woe(codes: Codes, sizes: NDArray[np.int64], y: NDArray[np.generic], train: Rows, least: int) -> Woe:
    """The active party's own features, in the open; parameters as for `woe_active`, codes as for `woe_passive`."""
    labels = _labels(y, train, least)
    values, ivs = [], []
    for j, size in enumerate(sizes):
        bins = merge_bins(codes[train, j], int(size), least)
        at = bins[codes[train, j]]
        rows, events = (np.bincount(at, weights=w, minlength=int(bins.max()) + 1) for w in (None, labels))
        woe, iv = _rounded(events, rows)
        values.append(woe[bins])
        ivs.append(iv)
    return Woe(values, np.array(ivs))


def woe_active(
    channel: Channel, dealer: str, passives: Sequence[str], y: NDArray[np.generic], train: Rows, *, min_rows_open: int
) -> dict[str, Floats]:
    """The active party's part.

    Parameters
    ----------
    y : (n,) labels 0 and 1. train : training rows, positions in the common order.

    Returns
    -------
    For each passive party the information values of its unnamed features, in its secret order.

    Raises
    ------
    DataError : labels that are not 0 and 1, of one class only, or too few rows.
    BadFrame : bins that cannot be.
    """
    labels = _labels(y, train, min_rows_open)
    dealt = Dealt(channel, dealer)
    bins = {peer: _recv_bins(channel, peer, len(train) // min_rows_open) for peer in passives}
    widths = {peer: int((sizes - 1).sum()) for peer, sizes in bins.items()}
    opener = Opener.begin(dealt, widths, len(train), 2, U32)
    vector = np.stack([labels, np.ones(len(train))], axis=1).astype(U32)
    opened = opener.open([np.arange(len(train))], [vector])
    found = {}
    for (peer, sizes), (sums,) in zip(bins.items(), opened, strict=True):
        made, at = [], 0
        for size in sizes.tolist():
            whole = np.array([[labels.sum(), len(train)]])
            steps = np.diff(np.concatenate([sums[at : at + size - 1].view(np.int32), whole]), axis=0, prepend=0)
            events, rows = steps.T
            if rows.min() < min_rows_open or events.min() < 0 or (events > rows).any():
                raise BadFrame(peer, _BINS, f"a bin of {rows.min():g} rows; allowed: {min_rows_open} or more")
            made.append(_rounded(events, rows))
            at += size - 1
        channel.send(peer, *(np.append(woe, iv).astype("<f8") for woe, iv in made), step=_WOE)
        found[peer] = np.array([iv for _, iv in made])
    dealt.end()
    return found


def woe_passive(
    channel: Channel, dealer: str, active: str, codes: Codes, sizes: NDArray[np.int64], train: Rows, *,
    min_rows_open: int,
) -> Woe:  # fmt: skip
    """A passive party's part.

    Parameters
    ----------
    codes : (n, d) uint8 over all rows of the common order. sizes : (d,) codes of each feature.

    Raises
    ------
    DataError : too few training rows. BadFrame : weights that are not finite or out of range.
    """
    _check_rows(train, min_rows_open)
    dealt = Dealt(channel, dealer)
    bins = [merge_bins(codes[train, j], int(size), min_rows_open) for j, size in enumerate(sizes)]
    counts = np.array([int(b.max()) + 1 for b in bins])
    told = [j for j in random_order(len(bins)) if counts[j] > 1] if bins else []
    channel.send(active, (counts[told] - 1).astype(np.uint8) if told else b"", step=_BINS)
    merged = np.stack([bins[j][codes[:, j]] for j in told], axis=1).astype(np.uint8) if told else codes[:, :0]
    ordered = counts[told] if told else np.empty(0, np.int64)
    width = int((ordered - 1).sum())
    candidates = Candidates(ordered, np.arange(width))
    Answerer(
        dealt, active, candidates.columns(merged, train, U32), (len(train), width), U32,
        columns=2, most=1, least=min_rows_open,
    ).answer()  # fmt: skip
    data = channel.recv_exactly(active, step=_WOE, size=8 * (width + 2 * len(told)))
    numbers, at = np.frombuffer(data, dtype="<f8"), 0
    if not (np.abs(numbers) < _LIMIT).all():
        raise BadFrame(active, _WOE, f"a number that is not finite or not under {_LIMIT:g}")
    values, iv = [np.zeros(int(size)) for size in sizes], np.zeros(len(sizes))
    for j in told:
        values[j], iv[j] = numbers[at : at + counts[j]][bins[j]], numbers[at + counts[j]]
        at += int(counts[j]) + 1
    return Woe(values, iv)


def _rounded(events: NDArray[np.generic], rows: NDArray[np.generic]) -> tuple[Floats, float]:
    positive = np.asarray(events, dtype=np.float64)
    woe, iv = woe_iv(positive, np.asarray(rows, dtype=np.float64) - positive)
    return np.round(woe, _DECIMALS), round(iv, _DECIMALS)


def _labels(y: NDArray[np.generic], train: Rows, least: int) -> Floats:
    _check_rows(train, least)
    labels = np.asarray(y, dtype=np.float64)[train]
    if not np.isin(labels, (0, 1)).all() or labels.min() == labels.max():
        raise DataError("label", "not two classes in the training rows", allowed="0 and 1")
    return labels


def _check_rows(train: Rows, least: int) -> None:
    if len(train) < max(least, 1):
        raise DataError("training rows", f"{len(train)}", allowed=f"vertical.min_rows_open = {least} or more")


def _recv_bins(channel: Channel, peer: str, most: int) -> Rows:
    data = channel.recv(peer, step=_BINS, max_bytes=MAX_COLUMNS)
    sizes = np.frombuffer(data, dtype=np.uint8).astype(np.int64) + 1
    if len(sizes) and not 2 <= sizes.min() <= sizes.max() <= most:
        raise BadFrame(peer, _BINS, f"{sizes.min()} to {sizes.max()} bins; allowed: 2 to {most}")
    return sizes
