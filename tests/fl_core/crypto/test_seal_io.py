from __future__ import annotations

import os
import struct
import threading

import numpy as np
import pyarrow as pa
import pytest

from fl_core.crypto import seal_io
from fl_core.crypto.ciphers import open_cipher
from fl_core.crypto.profiles import CKKS_2048, TEST_ONLY
from fl_core.errors import BadMessage


@pytest.fixture(scope="module")
def cipher():
    return open_cipher(TEST_ONLY, 8)


@pytest.fixture(scope="module")
def block(cipher) -> bytes:
    return cipher.open_secret(cipher.new_secret()).encrypt(cipher.canary_row())


def body_of(cipher, block: bytes) -> bytes:
    return cipher.upload_form._inflate(block)


def stream(body: bytes, compression: int = 0) -> bytes:
    return struct.pack("<HBBBBHQ", 0xA15E, 16, 4, 3, compression, 0, 16 + len(body)) + body


def test_bomb_that_inflates_to_far_more_than_a_ciphertext_is_refused(cipher) -> None:
    bomb = pa.Codec("zstd").compress(bytes(50_000_000), asbytes=True)
    assert len(bomb) < cipher.upload_bytes
    with pytest.raises(BadMessage, match="inflate"):
        cipher.parse(stream(bomb, 2), upload=True)


def test_bomb_nested_inside_a_ciphertext_is_refused(cipher, block: bytes) -> None:
    body = bytearray(body_of(cipher, block))
    body[73 + 5] = 2  # the nested array claims to be compressed
    with pytest.raises(BadMessage, match="another form"):
        cipher.parse(stream(bytes(body)), upload=True)


def test_every_structural_byte_is_fixed(cipher, block: bytes) -> None:
    body = body_of(cipher, block)
    structural = [*range(97), *range(97 + 8 * 256, 97 + 8 * 256 + 17)]
    for at in structural:
        bad = bytearray(body)
        bad[at] ^= 1
        with pytest.raises(BadMessage):
            cipher.parse(stream(bytes(bad)), upload=True)


def test_uncompressed_stream_of_the_same_ciphertext_is_accepted(cipher, block: bytes) -> None:
    plain = cipher.parse(stream(body_of(cipher, block)), upload=True)
    assert cipher.dump(plain) == cipher.dump(cipher.parse(block, upload=True))


def test_coefficient_beyond_the_modulus_is_refused(cipher, block: bytes) -> None:
    body = bytearray(body_of(cipher, block))
    body[97:105] = struct.pack("<Q", cipher.primes[0])
    with pytest.raises(BadMessage, match="SEAL does not accept"):
        cipher.parse(stream(bytes(body)), upload=True)


def test_full_ciphertext_in_place_of_a_seeded_one_is_refused(cipher, block: bytes) -> None:
    full = cipher.dump(cipher.parse(block, upload=True))
    with pytest.raises(BadMessage):
        cipher.parse(full, upload=True)
    with pytest.raises(BadMessage):
        cipher.parse(block, upload=False)


def test_ciphertext_of_another_profile_is_refused(block: bytes) -> None:
    with pytest.raises(BadMessage):
        open_cipher(CKKS_2048, 8).parse(block, upload=True)


def test_object_over_the_size_limit_is_refused(cipher) -> None:
    with pytest.raises(BadMessage, match="at most"):
        seal_io.load(cipher.seal.SecretKey(), cipher.context, bytes(seal_io.MAX_OBJECT_BYTES + 1))


def test_no_key_stays_in_the_scratch_file(cipher) -> None:
    secret = cipher.new_secret()
    cipher.open_secret(secret)
    assert os.fstat(seal_io._scratch[os.getpid()].fd).st_size == 0


def test_without_memfd_a_private_temporary_file_takes_its_place(cipher, block, monkeypatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(seal_io, "_scratch", {})
    assert cipher.dump(cipher.parse(block, upload=True))
    path = seal_io._scratch[os.getpid()].path
    assert not path.startswith("/proc/") and os.stat(path).st_mode & 0o777 == 0o600
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
    os.close(seal_io._scratch[os.getpid()].fd)


def test_threads_do_not_mix_their_objects(cipher) -> None:
    key = cipher.open_secret(cipher.new_secret())
    wrong: list[int] = []

    def work(number: int) -> None:
        row = np.full(cipher.width, float(number))
        for _ in range(30):
            if np.abs(key.decrypt(cipher.parse(key.encrypt(row), upload=True)) - number).max() > 1e-6:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
