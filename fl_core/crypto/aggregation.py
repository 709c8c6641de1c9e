"""Sums of vectors under encryption: parties hold one secret key, the coordinator adds without it.

A data owner makes a `SecretKey` and seals it to the other owners (`sealing`); the coordinator runs an
`Aggregator`, which needs no key.  A party's contribution is a vector (the weighted update) and a short tail
(the weighted metrics).  Scale by a public total weight: send n_k/W·Δ_k and n_k/W, so that no count is shown
and the sum of the weights says who is missing.

Who learns what
    The coordinator: lengths, who contributed, and nothing of a value, *if no party colludes with it*.
    A party: the sum.  One party together with the coordinator reads every contribution, since all parties
    hold the key.  With two contributions each party learns the other's by subtraction: take three at least.
    With profile ``NONE`` the coordinator reads everything.

Decrypt only at key holders, and round or add DP noise before anything decrypted leaves them: an exact CKKS
result carries the encryption noise, and noise and ciphertext together give the key (Li and Micciancio 2021,
IND-CPA-D).  SEAL does nothing against it.  Make a new key for every run: it bounds what a lost key opens, and
a party that left cannot read on.

What the checks give: header fields are compared before parsing; a canary at the end of every block must sum
to ``count`` times its constant, so a block with a contribution missing, a wrong key, an exchanged block or
(CKKS) an altered coefficient, which spreads over the block, is refused.  They are no authentication: anyone
can add to a ciphertext, so blobs travel signed.  A sum beyond the head-room would wrap silently; `encrypt`
therefore refuses values beyond head-room / parties, and `absorb` more blobs than parties.

The key-homomorphic mask against one colluding party goes between `SecretKey._blocks`, which produces the
serialised blocks one by one with their index, and `envelope.join`: it adds a_k ⊙ s_i to the first polynomial
of block k (a plain stream is accepted, see `seal_stream`); key holders take a_k ⊙ Σ s_i off again before
`BlockKey.decrypt`.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from fl_core.crypto import envelope
from fl_core.crypto.block_cipher import BlockCipher, BlockKey, Values, Vector
from fl_core.crypto.ciphers import context_digest, open_cipher, self_test
from fl_core.crypto.envelope import Header, Kind
from fl_core.crypto.layout import (
    as_vector,
    check_canaries,
    compare,
    effective_clip,
    expected_header,
    to_rows,
)
from fl_core.crypto.profiles import Profile, get_profile
from fl_core.errors import BadMessage, JobFailed, JobFileError, WrongKey

_KEY_MAGIC = b"FEDSKEY\x01"
_KEY_HEADER = struct.Struct(">8sH16sHI")
_KEY_VERSION = 1
_KEY_TAG = b"fedseal/aggregation-key/v1\0"
_KEY_CHECK_BYTES = 16  # finds a damaged file
_MAX_KEY_BYTES = 1 << 20


class SecretKey:
    """A key holder's side.  Never pickled; its text form shows the key id only."""

    def __init__(self, profile: Profile, parties: int, secret: bytes) -> None:
        self.profile = profile
        self.parties = parties
        self._secret = secret
        self.key_id = hashlib.sha256(_KEY_TAG + self.to_bytes()).hexdigest()[:16]
        self._opened: tuple[int, BlockKey] | None = None
        self.context_digest = context_digest(open_cipher(profile, parties))

    @classmethod
    def create(cls, profile: Profile, *, parties: int) -> SecretKey:
        """A new key from the operating system's randomness, for sums of up to `parties`; self-tested.

        Raises:
            JobFileError: more parties than the profile can sum.
            JobFailed: SEAL computes wrongly with these parameters.
        """
        return cls(profile, parties, open_cipher(profile, parties).new_secret())._tested()

    @classmethod
    def from_bytes(cls, data: bytes) -> SecretKey:
        """The key that `to_bytes` wrote, self-tested; anything else is `BadMessage`."""
        framed, check = data[:-_KEY_CHECK_BYTES], data[-_KEY_CHECK_BYTES:]
        if len(data) > _MAX_KEY_BYTES or len(framed) < _KEY_HEADER.size or not data.startswith(_KEY_MAGIC):
            raise BadMessage("not an aggregation key")
        _, version, name, parties, size = _KEY_HEADER.unpack_from(framed)
        secret = framed[_KEY_HEADER.size :]
        if version != _KEY_VERSION or size != len(secret) or check != _key_check(framed):
            raise BadMessage("an aggregation key of another version or size, or damaged")
        try:
            profile = get_profile(name.rstrip(b"\0").decode("ascii"))
            key = cls(profile, parties, secret)
        except (UnicodeDecodeError, JobFileError):
            raise BadMessage("an aggregation key of unknown profile or number of parties") from None
        if key.to_bytes() != data:
            raise BadMessage("an aggregation key that is not in canonical form")
        return key._tested()

    def to_bytes(self) -> bytes:
        """The secret itself: seal it, or write it with mode 0600."""
        name = self.profile.name.encode("ascii")
        header = _KEY_HEADER.pack(_KEY_MAGIC, _KEY_VERSION, name, self.parties, len(self._secret))
        framed = header + self._secret
        return framed + _key_check(framed)

    def __repr__(self) -> str:
        return f"SecretKey({self.profile.name}, parties={self.parties}, key_id={self.key_id})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SecretKey is not pickled: send to_bytes() sealed")

    def _tested(self) -> SecretKey:
        try:
            self_test(self._cipher(), self._key())
        except JobFailed:
            raise WrongKey(f"the self-test of key {self.key_id} failed") from None
        return self

    def _cipher(self) -> BlockCipher:
        return open_cipher(self.profile, self.parties)

    def _key(self) -> BlockKey:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), self._cipher().open_secret(self._secret))
        return self._opened[1]

    def encrypt(self, vector: Vector, tail: Vector, *, clip: float | None = None) -> bytes:
        """One contribution.

        Args:
            vector: shape (P,), any real dtype.
            tail: shape (T,).
            clip: BFV only, and the same at every party: the largest |value| of `vector`; others ignore it.

        Raises:
            TrainingDiverged: a value is not finite, beyond head-room / parties or (BFV) beyond `clip`.
        """
        cipher = self._cipher()
        vector, tail = as_vector(vector), as_vector(tail)
        bound = effective_clip(self.profile, clip)
        rows = to_rows(cipher, cipher.encode(vector, tail, bound))
        header = expected_header(cipher, self.key_id, len(vector), len(tail), kind=Kind.UPLOAD, count=1, clip=bound)
        return envelope.join(header, self._blocks(rows))

    def _blocks(self, rows: Values) -> Iterator[bytes]:
        key = self._key()
        for row in rows:
            yield key.encrypt(row)

    def decrypt(self, blob: bytes, *, count: int, clip: float | None = None) -> tuple[Vector, Vector]:
        """The sums of vectors and tails in an aggregator's result that must hold `count` contributions.

        Returns:
            float64 arrays of shapes (P,) and (T,).

        Raises:
            WrongKey: the sum is under another key or parameter set.
            BadMessage: malformed, altered, or not the sum of exactly `count` contributions.
        """
        cipher = self._cipher()
        header = Header.unpack(blob)
        expected = expected_header(
            cipher, self.key_id, header.length, header.tail, kind=Kind.SUM, count=count,
            clip=effective_clip(self.profile, clip),
        )  # fmt: skip
        compare(header, expected)
        key, rows = self._key(), []
        for block in envelope.split(blob, header, max_block_bytes=cipher.sum_bytes):
            rows.append(key.decrypt(cipher.parse(block, upload=False)))
        values = np.stack(rows)
        check_canaries(cipher, values[:, -1], count)
        return cipher.decode(values[:, :-1].ravel(), header.length, header.tail, expected.clip, count)


class Aggregator:
    """The coordinator's side: one running sum, public parameters only.

    It cannot tell two contributions of one party from those of two: count blobs by signed sender.
    """

    def __init__(
        self,
        profile_name: str,
        *,
        parties: int,
        length: int,
        tail: int,
        key_id: str,
        clip: float | None = None,
    ) -> None:
        """Sums vectors of shape (`length`,) and tails of shape (`tail`,) under the key `key_id`.

        Raises:
            JobFileError: unknown profile, or one that cannot sum so many parties.
            BadMessage: a key id that is none.
        """
        profile = get_profile(profile_name)
        if not re.fullmatch("[0-9a-f]{16}", key_id):
            raise BadMessage("a key id has 16 lower-case hex characters")
        if not (min(length, tail) >= 0 and length + tail <= envelope.MAX_VALUES):
            raise ValueError(f"{length} values and a tail of {tail}")
        self._cipher = open_cipher(profile, parties)
        self._expected = expected_header(
            self._cipher, key_id, length, tail, kind=Kind.UPLOAD, count=1, clip=effective_clip(profile, clip)
        )
        self._totals: list[Any] = []
        self.count = 0

    @property
    def context_digest(self) -> str:
        """Digest of the parameter set that contributions must be under."""
        return self._expected.context_digest

    @property
    def max_blob_bytes(self) -> int:
        """No contribution is larger; transports may refuse earlier."""
        return envelope.max_blob_bytes(self._expected.blocks, self._cipher.upload_bytes)

    def absorb(self, blob: bytes) -> None:
        """Add one contribution; a refused one leaves the sum as it was.

        Memory is that of two contributions, however many there are.

        Raises:
            WrongKey: the contribution is under another key or parameter set.
            BadMessage: anything else about it is not as expected, or all parties have contributed.
        """
        if self.count >= self._expected.parties:
            raise BadMessage(f"all {self.count} contributions are in")
        if len(blob) > self.max_blob_bytes:
            raise BadMessage(f"{len(blob)} bytes, at most {self.max_blob_bytes}")
        header = Header.unpack(blob)
        compare(header, self._expected)
        blocks = envelope.split(blob, header, max_block_bytes=self._cipher.upload_bytes)
        parsed = [self._cipher.parse(block, upload=True) for block in blocks]
        if self.count == 0:
            self._totals = parsed
        else:
            add = self._cipher.add
            self._totals = [add(total, block) for total, block in zip(self._totals, parsed, strict=True)]
        self.count += 1

    def result(self) -> bytes:
        """The encrypted sum so far: the same bytes whatever the order of `absorb`; `JobFailed` if empty."""
        if self.count == 0:
            raise JobFailed("no contribution to sum")
        e = self._expected
        header = expected_header(self._cipher, e.key_id, e.length, e.tail, kind=Kind.SUM, count=self.count, clip=e.clip)
        return envelope.join(header, map(self._cipher.dump, self._totals))


def make_key(profile_name: str, *, parties: int) -> SecretKey:
    """A new key of the named profile; with ``NONE`` it holds no secret."""
    return SecretKey.create(get_profile(profile_name), parties=parties)


def load_key(data: bytes) -> SecretKey:
    """See `SecretKey.from_bytes`."""
    return SecretKey.from_bytes(data)


def make_aggregator(
    profile_name: str, *, parties: int, length: int, tail: int, key_id: str, clip: float | None = None
) -> Aggregator:
    """See `Aggregator`."""
    return Aggregator(profile_name, parties=parties, length=length, tail=tail, key_id=key_id, clip=clip)


def _key_check(framed: bytes) -> bytes:
    return hashlib.sha256(b"fedseal/aggregation-key-check/v1\0" + framed).digest()[:_KEY_CHECK_BYTES]
