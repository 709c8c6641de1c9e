from __future__ import annotations

import hmac
import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.crypto.sealing import OVERHEAD_BYTES, _encode, key_info, open_sealed, seal
from fl_core.errors import BadMessage

KEY = X25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes_raw()


# RFC 9180 written out: section 4.1 (DHKEM), 5.1 (key schedule), base mode, sequence number 0
def _extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, "sha256")


def _expand(suite: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    labelled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return hmac.digest(prk, labelled + b"\x01", "sha256")[:length]


def reference_open(private: X25519PrivateKey, blob: bytes, info: bytes) -> bytes:
    enc, ciphertext = blob[:32], blob[32:]
    kem, hpke = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x03"
    shared = private.exchange(X25519PublicKey.from_public_bytes(enc))
    context = enc + private.public_key().public_bytes_raw()
    secret = _expand(kem, _extract(kem, b"", b"eae_prk", shared), b"shared_secret", context, 32)
    schedule = b"\0" + _extract(hpke, b"", b"psk_id_hash", b"") + _extract(hpke, b"", b"info_hash", info)
    prk = _extract(hpke, secret, b"secret", b"")
    key = _expand(hpke, prk, b"key", schedule, 32)
    nonce = _expand(hpke, prk, b"base_nonce", schedule, 12)
    return ChaCha20Poly1305(key).decrypt(nonce, ciphertext, b"")


@settings(max_examples=25, deadline=None)
@given(plaintext=st.binary(max_size=300), info=st.binary(max_size=50), aad=st.binary(max_size=50))
def test_what_was_sealed_opens_and_is_rfc_9180(plaintext: bytes, info: bytes, aad: bytes) -> None:
    blob = seal(PUBLIC, plaintext, info=info, aad=aad)
    assert len(blob) == len(plaintext) + OVERHEAD_BYTES
    assert open_sealed(KEY, blob, info=info, aad=aad) == plaintext
    assert reference_open(KEY, blob, _encode(b"fedseal/sealed/v1", info, aad)) == plaintext


def test_other_receiver_info_or_aad_does_not_open_and_the_error_does_not_tell_which() -> None:
    blob = seal(PUBLIC, b"secret", info=b"i", aad=b"a")
    tries = [
        (X25519PrivateKey.generate(), blob, b"i", b"a"),
        (KEY, blob, b"j", b"a"),
        (KEY, blob, b"i", b"b"),
        (KEY, blob, b"ia", b""),
        (KEY, blob, b"", b"ia"),
        (KEY, blob[:-1], b"i", b"a"),
        (KEY, blob + b"\0", b"i", b"a"),
        (KEY, b"", b"i", b"a"),
        (KEY, bytes(32) + blob[32:], b"i", b"a"),
    ]
    altered = [blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :] for at in range(len(blob))]
    tries += [(KEY, data, b"i", b"a") for data in altered]
    messages = set()
    for private, data, info, aad in tries:
        with pytest.raises(BadMessage) as caught:
            open_sealed(private, data, info=info, aad=aad)
        messages.add(str(caught.value))
        assert caught.value.__cause__ is None
    assert len(messages) == 1


def test_sealing_twice_gives_different_blobs() -> None:
    assert seal(PUBLIC, b"x", info=b"", aad=b"") != seal(PUBLIC, b"x", info=b"", aad=b"")


def test_public_key_of_small_order_or_wrong_length_is_refused() -> None:
    for bad in (bytes(32), bytes([1]) + bytes(31), b"", bytes(31), bytes(33)):
        with pytest.raises(BadMessage):
            seal(bad, b"x", info=b"", aad=b"")


def test_key_info_cannot_be_read_in_two_ways() -> None:
    names = ["", "a", "b", "ab", "a\0", "ü"]
    combinations = list(itertools.product(names, repeat=4))
    assert len({key_info(*c) for c in combinations}) == len(combinations)
