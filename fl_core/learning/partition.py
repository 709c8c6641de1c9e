"""Cutting one dataset into parties, and each party's rows into training and test rows.

Both are functions of (labels, settings, seed): every party computes the same cut and keeps its own part.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_core.errors import JobFileError
from fl_core.learning.seeds import generator

Rows = NDArray[np.int64]
_DRAWS = 20  # Dirichlet draws before the smallest parties are topped up
_ENOUGH_ROWS = 10  # what every party gets at least, where the dataset is large enough


def split_rows(y: NDArray[np.int64], parties: int, *, partition: str, alpha: float, seed: int) -> list[Rows]:
    """Deal the rows of an experiment's dataset to its parties.

    Parameters
    ----------
    y : (n,) class of each row.
    partition : `iid`: shuffled, sizes differ by at most one; `dirichlet`: each class is cut by proportions
        drawn from Dir(alpha) (Hsu et al. 2019), redrawn until every party has some rows, then topped up from
        the largest.

    Returns
    -------
    One sorted array of row numbers a party: disjoint, together all rows, none empty.

    Raises
    ------
    JobFileError : fewer rows than parties.
    """
    if len(y) < parties:
        raise JobFileError("dataset.parties", f"{parties} parties for {len(y)} rows", allowed=f"1 to {len(y)}")
    if partition == "iid":
        return deal(len(y), parties, seed=seed, purpose="partition")
    if partition == "dirichlet":
        return _dirichlet(y, parties, alpha, seed)
    raise JobFileError("dataset.partition", f"{partition!r}", allowed="iid | dirichlet")


def deal(n: int, parties: int, *, seed: int, purpose: str) -> list[Rows]:
    """Shuffle `n` rows and deal them evenly; a party's part is empty where rows run out."""
    order = generator(seed, purpose, "iid").permutation(n)
    return [np.sort(part) for part in np.array_split(order, parties)]


def _dirichlet(y: NDArray[np.int64], parties: int, alpha: float, seed: int) -> list[Rows]:
    least = max(1, min(_ENOUGH_ROWS, len(y) // (2 * parties)))
    for attempt in range(_DRAWS):
        parts = _dirichlet_draw(y, parties, alpha, generator(seed, "partition", "dirichlet", attempt))
        if min(map(len, parts)) >= least:
            break
    sizes = np.array([len(part) for part in parts])
    while sizes.min() < least:
        rich, poor = int(sizes.argmax()), int(sizes.argmin())
        parts[poor].append(parts[rich].pop())
        sizes[rich], sizes[poor] = sizes[rich] - 1, sizes[poor] + 1
    return [np.sort(np.array(part, dtype=np.int64)) for part in parts]


def _dirichlet_draw(y: NDArray[np.int64], parties: int, alpha: float, rng: np.random.Generator) -> list[list[int]]:
    parts: list[list[int]] = [[] for _ in range(parties)]
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        shares = np.cumsum(rng.dirichlet(np.full(parties, alpha)))[:-1]
        # A tiny alpha underflows to 0/0: then one party takes the whole class.
        cuts = np.nan_to_num(shares, nan=float(rng.integers(2))) * len(rows)
        for part, piece in zip(parts, np.split(rows, np.clip(cuts, 0, len(rows)).astype(np.int64)), strict=True):
            part.extend(piece.tolist())
    return parts


def holdout(y: NDArray[np.int64], fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Hold out a stratified share of the rows.

    Parameters
    ----------
    y : (n,) class of each row, in an order that does not depend on the file (ids sorted as text).
    fraction : in [0, 1); classes keep their shares by largest remainders, and each keeps a training row.

    Returns
    -------
    (train, test) sorted row numbers; test has round(fraction · n) rows, fewer where classes of one row forbid
    it.
    """
    labels, counts = np.unique(y, return_counts=True)
    quotas = counts * fraction
    take = np.minimum(np.floor(quotas).astype(np.int64), counts - 1)
    wanted = round(fraction * len(y)) - int(take.sum())
    for i in np.argsort(-(quotas - np.floor(quotas)), kind="stable"):
        if wanted > 0 and take[i] < counts[i] - 1:
            take[i], wanted = take[i] + 1, wanted - 1
    rng = generator(seed, "holdout")
    held = [rng.permutation(np.flatnonzero(y == label))[:k] for label, k in zip(labels, take, strict=True)]
    test = np.sort(np.concatenate([*held, np.empty(0, np.int64)])).astype(np.int64)
    return np.setdiff1d(np.arange(len(y)), test), test
