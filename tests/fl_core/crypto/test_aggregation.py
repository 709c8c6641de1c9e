from __future__ import annotations

import itertools
import multiprocessing
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.crypto import envelope
from fl_core.crypto.aggregation import Aggregator, SecretKey, load_key, make_aggregator, make_key
from fl_core.crypto.ciphers import open_cipher, self_test
from fl_core.crypto.envelope import HEADER_BYTES, Header
from fl_core.crypto.profiles import BFV_2048, CKKS_2048, TEST_ONLY, get_profile, profile_names
from fl_core.errors import BadMessage, FedsealError, JobFailed, JobFileError, TrainingDiverged, WrongKey

ALL = profile_names(with_test_only=True)
ENCRYPTED = [name for name in ALL if get_profile(name).encrypted]
CLIP = 0.5
_KEYS: dict[tuple[str, int], SecretKey] = {}


def key_of(name: str, parties: int = 8) -> SecretKey:
    if (name, parties) not in _KEYS:
        _KEYS[name, parties] = make_key(name, parties=parties)
    return _KEYS[name, parties]


def aggregator_of(key: SecretKey, length: int, tail: int) -> Aggregator:
    name = key.profile.name
    return make_aggregator(name, parties=key.parties, length=length, tail=tail, key_id=key.key_id, clip=CLIP)


def summed(key: SecretKey, vectors: list[np.ndarray], tails: list[np.ndarray]):
    aggregator = aggregator_of(key, len(vectors[0]), len(tails[0]))
    for vector, tail in zip(vectors, tails, strict=True):
        aggregator.absorb(key.encrypt(vector, tail, clip=CLIP))
    return key.decrypt(aggregator.result(), count=len(vectors), clip=CLIP)


def tolerance(name: str) -> float:
    return get_profile(name).precision * (CLIP if name == "BFV_2048" else 1.0)


def limits(key: SecretKey) -> tuple[float, float]:
    tail = key.profile.headroom / key.parties
    return (CLIP if key.profile is BFV_2048 else tail), tail


# sums are right ------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["TEST_ONLY", "NONE"]),
    parties=st.integers(1, 8),
    length=st.integers(0, 600),
    tail=st.integers(0, 16),
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([0.0, 1e-6, 0.01, 1.0]),
)
def test_sum_equals_numpys(name: str, parties: int, length: int, tail: int, seed: int, size: float) -> None:
    key = key_of(name)
    rng = np.random.default_rng(seed)
    vectors = [size * rng.uniform(-1, 1, length) * limits(key)[0] for _ in range(parties)]
    tails = [size * rng.uniform(-1, 1, tail) * limits(key)[1] for _ in range(parties)]
    vector, metrics = summed(key, vectors, tails)
    assert vector.shape == (length,) and metrics.shape == (tail,)
    for got, parts, limit in ((vector, vectors, limits(key)[0]), (metrics, tails, limits(key)[1])):
        rounding = 8 * limit * 2.0**-52  # numpy's own
        assert np.abs(got - np.sum(parts, axis=0)).max(initial=0) <= tolerance(name) + rounding


@settings(max_examples=15, deadline=None)
@given(
    values=st.lists(st.floats(-CLIP, CLIP), max_size=40),
    metrics=st.lists(st.floats(-512, 512), max_size=16),
    parties=st.integers(1, 8),
)
def test_bfv_sum_is_exactly_that_of_the_quantised_values(values, metrics, parties) -> None:
    key = key_of("BFV_2048")
    vector, tail = summed(key, [np.array(values)] * parties, [np.array(metrics)] * parties)
    quantised = [round(v * (32767 / CLIP)) for v in values]
    assert np.array_equal(np.rint(vector * 32767 / CLIP), parties * np.array(quantised, float))
    assert np.abs(tail - parties * np.array(metrics)).max(initial=0) < 1e-10


@pytest.mark.parametrize("name", ALL)
def test_vectors_around_a_block_boundary_lose_nothing(name: str) -> None:
    key = key_of(name)
    capacity = open_cipher(key.profile, 8).width - 1
    for length in (0, 1, capacity - 1, capacity, capacity + 1, 2 * capacity + 1):
        ramp = np.linspace(-CLIP, CLIP, length)
        vector, tail = summed(key, [ramp, -ramp, ramp], [np.array([1.0, -2.0])] * 3)
        assert np.abs(vector - ramp).max(initial=0) <= tolerance(name)
        assert np.abs(tail - [3.0, -6.0]).max() <= max(tolerance(name), 1e-9)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_sum_at_the_headroom_does_not_wrap(name: str, sign: float) -> None:
    key = key_of(name)
    of_vector, of_tail = limits(key)
    vector, tail = summed(key, [np.full(3000, sign * of_vector)] * 8, [np.full(16, sign * of_tail)] * 8)
    assert np.abs(vector - 8 * sign * of_vector).max() <= tolerance(name)
    assert np.abs(tail - 8 * sign * of_tail).max() <= max(tolerance(name), 1e-9)


@pytest.mark.parametrize("name", ["CKKS_2048", "CKKS_2048_LEAN", "TEST_ONLY"])
def test_phases_that_pile_up_in_one_coefficient_stay_within_the_headroom(name: str) -> None:
    """Two reals a slot lift a coefficient to 4/π of the value when their signs follow its root of unity."""
    key, degree = key_of(name), get_profile(name).poly_modulus_degree
    exponents = np.array([pow(3, slot, 2 * degree) for slot in range(degree // 2)])
    angle = np.pi * exponents / degree
    row = (np.where(np.cos(angle) < 0, -1, 1) + 1j * np.where(np.sin(angle) < 0, -1, 1)).view(float)
    vector = row[:-1] * limits(key)[0]
    got, _ = summed(key, [vector] * 8, [np.zeros(0)] * 8)
    assert np.abs(got - 8 * vector).max() <= tolerance(name)


@pytest.mark.parametrize("name", ALL)
def test_stated_precision_holds_for_a_sum_of_eight(name: str) -> None:
    key, rng = key_of(name), np.random.default_rng(7)
    vectors = list(rng.normal(0, 0.01, (8, 40_000)))
    got, _ = summed(key, vectors, [np.zeros(1)] * 8)
    assert np.abs(got - np.sum(vectors, axis=0)).max() <= tolerance(name)


@pytest.mark.parametrize(("parties", "plain_bits"), [(8, 40), (9, 42), (32, 42), (33, 44), (64, 44)])
def test_bfv_lanes_of_each_size_of_cohort_carry_the_largest_sum(parties: int, plain_bits: int) -> None:
    assert BFV_2048.lane_rule(parties).plain_bits == plain_bits
    cipher = open_cipher(BFV_2048, parties)
    key = cipher.open_secret(cipher.new_secret())
    row = np.full(cipher.width, 65535)
    total = cipher.parse(key.encrypt(row), upload=True)
    for _ in range(parties - 1):
        total = cipher.add(total, cipher.parse(key.encrypt(row), upload=True))
    assert np.array_equal(key.decrypt(total), parties * row)


@pytest.mark.parametrize("name", ALL)
def test_order_of_contributions_does_not_change_a_bit_of_the_result(name: str) -> None:
    key, rng = key_of(name), np.random.default_rng(1)
    blobs = [key.encrypt(rng.normal(0, 0.01, 700), rng.normal(0, 1, 3), clip=CLIP) for _ in range(3)]
    results = set()
    for order in itertools.permutations(blobs):
        aggregator = aggregator_of(key, 700, 3)
        for blob in order:
            aggregator.absorb(blob)
        results.add(aggregator.result())
    assert len(results) == 1


@pytest.mark.parametrize("name", ENCRYPTED)
def test_equal_updates_give_unrelated_ciphertexts(name: str) -> None:
    key = key_of(name)
    first, second = (key.encrypt(np.zeros(100), np.zeros(1), clip=CLIP) for _ in range(2))
    assert first[:HEADER_BYTES] == second[:HEADER_BYTES]
    start, end = HEADER_BYTES + 200, HEADER_BYTES + 2000
    same = np.frombuffer(first[start:end], np.uint8) == np.frombuffer(second[start:end], np.uint8)
    assert same.mean() < 0.3


def test_stated_bytes_a_value_hold() -> None:
    length = 200_000
    vector = np.random.default_rng(3).normal(0, 0.01, length)
    for profile in map(get_profile, profile_names()):
        key = key_of(profile.name)
        blob = key.encrypt(vector, np.zeros(3), clip=CLIP)
        aggregator = aggregator_of(key, length, 3)
        aggregator.absorb(blob)
        assert len(blob) / length == pytest.approx(profile.bytes_up, rel=0.02)
        assert len(aggregator.result()) / length == pytest.approx(profile.bytes_down, rel=0.02)


# overflow is an error ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, "over", "under"])
def test_value_that_would_wrap_is_refused_before_encryption(name: str, bad: float | str) -> None:
    key = key_of(name)
    for where, limit in zip(("vector", "tail"), limits(key), strict=True):
        value = {"over": limit * (1 + 1e-9), "under": -limit * (1 + 1e-9)}.get(bad, bad)
        vector, tail = np.zeros(5), np.zeros(2)
        (vector if where == "vector" else tail)[1] = value
        with pytest.raises(TrainingDiverged):
            key.encrypt(vector, tail, clip=CLIP)


def test_contribution_beyond_the_last_party_is_refused() -> None:
    key = key_of("TEST_ONLY", 3)
    aggregator = aggregator_of(key, 4, 0)
    blob = key.encrypt(np.ones(4), np.zeros(0))
    for _ in range(3):
        aggregator.absorb(blob)
    with pytest.raises(BadMessage, match="all 3"):
        aggregator.absorb(blob)


def test_plain_upload_with_values_beyond_the_limit_cannot_overflow_the_sum() -> None:
    key = key_of("NONE")
    aggregator = aggregator_of(key, 4, 0)
    blob = bytearray(key.encrypt(np.ones(4), np.zeros(0)))
    blob[HEADER_BYTES + 4 : HEADER_BYTES + 12] = np.int64(2**62).tobytes()
    with pytest.raises(BadMessage, match="beyond"):
        aggregator.absorb(bytes(blob))


def test_bfv_without_a_clip_is_refused() -> None:
    for clip in (None, 0.0, -1.0, np.inf, np.nan):
        with pytest.raises(JobFileError, match="clip"):
            key_of("BFV_2048").encrypt(np.zeros(3), np.zeros(0), clip=clip)


# wrong keys, altered and foreign blobs -------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCRYPTED)
def test_wrong_key_is_an_error_and_never_garbage(name: str) -> None:
    key, other = key_of(name), make_key(name, parties=8)
    aggregator = aggregator_of(key, 50, 1)
    aggregator.absorb(key.encrypt(np.ones(50) * 0.1, np.ones(1), clip=CLIP))
    result = aggregator.result()
    with pytest.raises(WrongKey):
        other.decrypt(result, count=1, clip=CLIP)
    with pytest.raises(WrongKey):
        aggregator.absorb(other.encrypt(np.ones(50) * 0.1, np.ones(1), clip=CLIP))
    # a liar who relabels the envelope is caught by the canary
    header = Header.unpack(result)
    relabelled = header.__class__(**{**header.__dict__, "key_id": other.key_id})
    with pytest.raises(WrongKey, match="canary"):
        other.decrypt(relabelled.pack() + result[HEADER_BYTES:], count=1, clip=CLIP)


def test_other_profile_or_number_of_parties_is_a_wrong_key() -> None:
    key = key_of("TEST_ONLY")
    blob = key.encrypt(np.zeros(4), np.zeros(0))
    with pytest.raises(WrongKey):
        aggregator_of(key_of("TEST_ONLY", 3), 4, 0).absorb(blob)
    with pytest.raises(WrongKey):
        make_aggregator("CKKS_2048", parties=8, length=4, tail=0, key_id=key.key_id).absorb(blob)


@pytest.mark.parametrize("name", ["TEST_ONLY", "NONE"])
def test_altered_byte_anywhere_in_the_header_is_refused(name: str) -> None:
    key = key_of(name)
    aggregator = aggregator_of(key, 10, 2)
    blob = key.encrypt(np.ones(10), np.ones(2))
    aggregator.absorb(blob)
    result = aggregator.result()
    for at in range(HEADER_BYTES):
        for good, use in ((blob, aggregator.absorb), (result, lambda b: key.decrypt(b, count=1))):
            bad = bytearray(good)
            bad[at] ^= 1 << at % 8
            with pytest.raises((BadMessage, WrongKey)):
                use(bytes(bad))
    assert aggregator.count == 1 and aggregator.result() == result


@pytest.mark.parametrize("field", ["length", "tail", "count", "clip", "blocks", "scale_bits", "kind"])
def test_header_that_lies_with_a_valid_checksum_is_refused(field: str) -> None:
    key = key_of("TEST_ONLY")
    aggregator = aggregator_of(key, 10, 2)
    blob = key.encrypt(np.ones(10), np.ones(2))
    header = Header.unpack(blob)
    value = envelope.Kind.SUM if field == "kind" else getattr(header, field) + 1
    lie = header.__class__(**{**header.__dict__, field: value})
    with pytest.raises(BadMessage):
        aggregator.absorb(lie.pack() + blob[HEADER_BYTES:])


@pytest.mark.parametrize("name", ["TEST_ONLY", "CKKS_2048", "CKKS_4096", "BFV_2048"])
def test_damaged_ciphertext_is_refused_or_caught_by_the_canary(name: str) -> None:
    key, rng = key_of(name), np.random.default_rng(5)
    blob = key.encrypt(np.full(20, 0.1), np.ones(1), clip=CLIP)
    plain = name == "BFV_2048"  # its first polynomial is in coefficient form: only the structure is checked
    for at in [HEADER_BYTES + 4 + i for i in range(20)] + list(rng.integers(HEADER_BYTES + 4, len(blob), 40)):
        bad = bytearray(blob)
        bad[at] ^= 0x55
        aggregator = aggregator_of(key, 20, 1)
        try:
            aggregator.absorb(bytes(bad))
            vector, _ = key.decrypt(aggregator.result(), count=1, clip=CLIP)
        except (BadMessage, WrongKey):
            continue
        assert plain or np.abs(vector - 0.1).max() < 1e-3


@pytest.mark.parametrize("name", ALL)
def test_truncated_lengthened_oversized_and_pickled_blobs_are_refused(name: str) -> None:
    key = key_of(name)
    aggregator = aggregator_of(key, 30, 2)
    blob = key.encrypt(np.full(30, 0.1), np.ones(2), clip=CLIP)
    cuts = [blob[:n] for n in (0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 3, HEADER_BYTES + 9, -1)]
    cuts += [blob[:-1], blob[: len(blob) // 2], blob + b"\0", blob + bytes(aggregator.max_blob_bytes)]
    cuts += [pickle.dumps(np.zeros(30)), bytes(len(blob)), blob[:HEADER_BYTES] + b"\xff" * 8]
    for bad in cuts:
        with pytest.raises(BadMessage):
            aggregator.absorb(bad)
        with pytest.raises(BadMessage):
            key.decrypt(bad, count=1, clip=CLIP)
    assert aggregator.count == 0


@pytest.mark.parametrize("name", ["TEST_ONLY", "BFV_2048", "CKKS_4096", "NONE"])
def test_refused_blob_leaves_the_sum_untouched(name: str) -> None:
    key = key_of(name)
    length = 3 * open_cipher(key.profile, 8).width
    aggregator = aggregator_of(key, length, 1)
    blob = key.encrypt(np.full(length, 0.1), np.ones(1), clip=CLIP)
    aggregator.absorb(blob)
    before = aggregator.result()
    header = Header.unpack(blob)
    blocks = list(envelope.split(blob, header, max_block_bytes=1 << 20))
    blocks[-1] = bytes(len(blocks[-1]) + 1)  # the last block is bad, those before it are good
    with pytest.raises(BadMessage):
        aggregator.absorb(envelope.join(header, blocks))
    assert aggregator.result() == before and aggregator.count == 1


def relabel(blob: bytes, count: int) -> bytes:
    header = Header.unpack(blob)
    return header.__class__(**{**header.__dict__, "count": count}).pack() + blob[HEADER_BYTES:]


@pytest.mark.parametrize("name", ALL)
def test_count_that_is_not_what_the_sum_holds_is_caught(name: str) -> None:
    key = key_of(name)
    aggregator = aggregator_of(key, 5, 1)
    for _ in range(3):
        aggregator.absorb(key.encrypt(np.ones(5) * 0.1, np.ones(1), clip=CLIP))
    result = aggregator.result()
    for claimed in (1, 2, 4, 8):
        with pytest.raises(BadMessage):
            key.decrypt(result, count=claimed, clip=CLIP)
        with pytest.raises(BadMessage, match="3 to 3 contributions"):
            key.decrypt(relabel(result, claimed), count=claimed, clip=CLIP)


@pytest.mark.parametrize("name", ["TEST_ONLY", "BFV_2048"])
def test_contribution_left_out_of_one_block_or_exchanged_blocks_are_caught(name: str) -> None:
    key = key_of(name)
    length = 3 * open_cipher(key.profile, 8).width
    blobs = [key.encrypt(np.full(length, 0.1), np.zeros(0), clip=CLIP) for _ in range(2)]
    both, one = aggregator_of(key, length, 0), aggregator_of(key, length, 0)
    for blob in blobs:
        both.absorb(blob)
    one.absorb(blobs[0])
    header = Header.unpack(both.result())
    blocks = list(envelope.split(both.result(), header, max_block_bytes=1 << 20))
    single = list(envelope.split(one.result(), Header.unpack(one.result()), max_block_bytes=1 << 20))
    with pytest.raises(BadMessage, match="1 to 2"):
        key.decrypt(envelope.join(header, [blocks[0], single[1], *blocks[2:]]), count=2, clip=CLIP)
    with pytest.raises(WrongKey):
        key.decrypt(envelope.join(header, [blocks[1], blocks[0], *blocks[2:]]), count=2, clip=CLIP)


def test_sum_cannot_be_absorbed_nor_an_upload_be_decrypted() -> None:
    key = key_of("TEST_ONLY")
    aggregator = aggregator_of(key, 5, 0)
    blob = key.encrypt(np.ones(5), np.zeros(0))
    aggregator.absorb(blob)
    with pytest.raises(BadMessage):
        aggregator.absorb(aggregator.result())
    with pytest.raises(BadMessage, match="kind"):
        key.decrypt(blob, count=1)


def test_empty_sum_has_no_result() -> None:
    with pytest.raises(JobFailed):
        aggregator_of(key_of("TEST_ONLY"), 5, 0).result()


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=400))
def test_arbitrary_bytes_only_ever_raise_our_errors(data: bytes) -> None:
    key = key_of("TEST_ONLY")
    aggregator = aggregator_of(key, 5, 0)
    header = key.encrypt(np.ones(5), np.zeros(0))[:HEADER_BYTES]
    for blob in (data, header + data, header + len(data).to_bytes(4, "big") + data):
        with pytest.raises(FedsealError):
            aggregator.absorb(blob)
    with pytest.raises(BadMessage):
        load_key(data)


# keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_key_survives_its_bytes_and_opens_what_the_original_sealed(name: str) -> None:
    key = key_of(name)
    copy = load_key(key.to_bytes())
    assert (copy.key_id, copy.context_digest) == (key.key_id, key.context_digest)
    assert len(key.key_id) == 16 and int(key.key_id, 16) >= 0
    aggregator = aggregator_of(key, 5, 1)
    aggregator.absorb(copy.encrypt(np.full(5, 0.25), np.ones(1), clip=CLIP))
    vector, _ = key.decrypt(aggregator.result(), count=1, clip=CLIP)
    assert np.abs(vector - 0.25).max() <= tolerance(name)


def test_key_never_shows_in_text_nor_pickles() -> None:
    key = key_of("CKKS_2048")
    assert repr(key) == str(key) == f"SecretKey(CKKS_2048, parties=8, key_id={key.key_id})"
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_two_keys_differ() -> None:
    assert make_key("TEST_ONLY", parties=8).key_id != make_key("TEST_ONLY", parties=8).key_id


def test_damaged_key_bytes_are_refused() -> None:
    for name in ("TEST_ONLY", "CKKS_4096", "NONE"):
        data = key_of(name).to_bytes()
        bad = [b"", data[:20], data[:-1], data + b"\0", pickle.dumps(1)]
        bad.append(data.replace(name.encode(), b"X" * len(name)))
        positions = np.linspace(0, len(data) - 1, 60).astype(int)
        bad += [data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :] for at in positions]
        for item in bad:
            with pytest.raises(BadMessage):
                load_key(item)


def test_context_that_computes_wrongly_fails_its_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    cipher = open_cipher(TEST_ONLY, 8)
    key = cipher.open_secret(cipher.new_secret())
    other = cipher.open_secret(cipher.new_secret())
    monkeypatch.setattr(key, "decrypt", other.decrypt)
    with pytest.raises(JobFailed, match="self-test"):
        self_test(cipher, key)


def _child(queue, key: SecretKey) -> None:
    queue.put(key.encrypt(np.full(5, 0.5), np.zeros(0)))


def test_key_works_in_a_forked_child_beside_its_parent() -> None:
    context = multiprocessing.get_context("fork")
    key, queue = key_of("TEST_ONLY"), context.SimpleQueue()
    mine = key.encrypt(np.full(5, 0.5), np.zeros(0))
    child = context.Process(target=_child, args=(queue, key))
    child.start()
    theirs = queue.get()
    child.join()
    assert mine != theirs
    aggregator = aggregator_of(key, 5, 0)
    aggregator.absorb(mine)
    aggregator.absorb(theirs)
    assert np.abs(key.decrypt(aggregator.result(), count=2)[0] - 1.0).max() < 1e-7


def test_memory_of_the_coordinator_does_not_grow_with_the_parties() -> None:
    """SEAL's own memory is not traced, so the number of ciphertext objects alive is counted as well."""
    key = key_of("CKKS_2048", 64)
    aggregator = aggregator_of(key, 20_000, 0)
    blob = key.encrypt(np.zeros(20_000), np.zeros(0))
    aggregator.absorb(blob)
    aggregator.absorb(blob)
    objects = len(aggregator._totals)
    tracemalloc.start()
    for _ in range(20):
        aggregator.absorb(blob)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 20_000 and len(aggregator._totals) == objects == 10


def test_aggregator_refuses_what_is_no_key_id() -> None:
    for key_id in ("", "xyz", "A" * 16, "0" * 15, "0" * 17):
        with pytest.raises(BadMessage, match="key id"):
            Aggregator("TEST_ONLY", parties=3, length=1, tail=0, key_id=key_id)


def test_default_profile_is_the_documented_one() -> None:
    from fl_core.crypto.profiles import DEFAULT

    assert DEFAULT is CKKS_2048
