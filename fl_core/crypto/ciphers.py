"""Ciphers by profile: made when first used in a process, self-tested, then kept.

Nothing of SEAL survives pickling and a cipher holds a scratch file, so each process makes its own; the cache
is keyed by process id and a forked child starts afresh.
"""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np

from fl_core.crypto.block_cipher import BlockCipher, BlockKey
from fl_core.crypto.profiles import Profile
from fl_core.errors import JobFailed

_ciphers: dict[tuple[int, str, int], BlockCipher] = {}


def open_cipher(profile: Profile, parties: int) -> BlockCipher:
    """The cipher of `profile` for sums of up to `parties`; `JobFileError` if it cannot sum so many."""
    key = (os.getpid(), profile.name, parties)
    if key not in _ciphers:
        profile.check_parties(parties)
        cipher = _make(profile, parties)
        self_test(cipher, cipher.open_secret(cipher.new_secret()))
        _ciphers[key] = cipher
    return _ciphers[key]


def _make(profile: Profile, parties: int) -> BlockCipher:
    if profile.scheme == "ckks":
        from fl_core.crypto.seal_ckks import SealCkks

        return SealCkks(profile, parties)
    if profile.scheme == "ckks_tenseal":
        from fl_core.crypto.tenseal_ckks import TensealCkks

        return TensealCkks(profile, parties)
    if profile.scheme == "bfv":
        from fl_core.crypto.seal_bfv import SealBfv

        return SealBfv(profile, parties)
    from fl_core.crypto.plain import Plain

    return Plain(profile, parties)


def self_test(cipher: BlockCipher, key: BlockKey) -> None:
    """Encrypt two rows whose sum lies at the head-room, add, decrypt, compare; else `JobFailed`.

    Wrong parameters give wrong numbers without an error, so every context and every key passes here first.
    """
    first, second = cipher.extremes()
    total = cipher.parse(key.encrypt(first), upload=True)
    total = cipher.add(total, cipher.parse(key.encrypt(second), upload=True))
    got = key.decrypt(cipher.parse(cipher.dump(total), upload=False))
    if not np.all(np.abs(got - (first + second)) <= cipher.canary_tolerance):
        raise JobFailed(f"the self-test of {cipher.profile.name} for {cipher.parties} parties failed")


def context_digest(cipher: BlockCipher) -> str:
    """SHA-256 (hex) over the exact parameter set; equal digests mean that ciphertexts can be added."""
    facts = {
        "profile": cipher.profile.name,
        "scheme": cipher.profile.scheme,
        "scale_bits": cipher.profile.scale_bits,
        "parties": cipher.parties,
        "width": cipher.width,
        **cipher.parameters(),
    }
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(b"fedseal/aggregation-context/v1\0" + text.encode()).hexdigest()
