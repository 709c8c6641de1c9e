"""Derived seeds: every draw that must repeat is a function of the job's seed and of what it is for.

Nothing is continued from an earlier draw, so a resumed round, a restarted party or another runtime draws the
same. Not for secrets: keys, masks and DP noise come from the operating system.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(seed: int, *parts: str | int) -> int:
    """A seed for one purpose, such as `derive_seed(job.seed, "train", party, round)`.

    Parameters
    ----------
    seed : the job's seed.
    parts : text or whole numbers; `1` and `"1"` differ, and no two lists of parts share an encoding.

    Returns
    -------
    int : in [0, 2^63): the head of a SHA-256, the same on every platform.
    """
    digest = hashlib.sha256()
    for part in (seed, *parts):
        if isinstance(part, bool) or not isinstance(part, str | int):
            raise TypeError(f"a seed is derived from text and whole numbers, not from {part!r}")
        body = part.encode() if isinstance(part, str) else b"%d" % part
        digest.update(b"%c%d:" % (b"s" if isinstance(part, str) else b"i", len(body)) + body)
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def generator(seed: int, *parts: str | int) -> np.random.Generator:
    """NumPy's PCG64 started at `derive_seed(seed, *parts)`."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(derive_seed(seed, *parts))))
