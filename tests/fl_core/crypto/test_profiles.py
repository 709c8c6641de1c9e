from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from fl_core.crypto import profiles
from fl_core.crypto.aggregation import make_aggregator, make_key
from fl_core.crypto.ciphers import open_cipher
from fl_core.crypto.envelope import HEADER_BYTES, Header
from fl_core.crypto.fixed_point import CANARY_PERIOD
from fl_core.crypto.profiles import CKKS_2048, HE_STANDARD_128, Profile, get_profile, profile_names, register
from fl_core.errors import BadMessage, JobFileError

ALL = profile_names(with_test_only=True)


def test_unknown_profile_is_a_job_error_that_lists_the_known_ones() -> None:
    with pytest.raises(JobFileError, match=r"unknown profile 'CKKS_9'.*BFV_2048") as caught:
        get_profile("CKKS_9")
    assert caught.value.key == "encryption.profile"
    assert "TEST_ONLY" not in str(caught.value)


def test_second_registration_of_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="already registered"):
        register(profiles.CKKS_2048)


def test_profile_cannot_claim_more_security_than_the_standard_allows() -> None:
    with pytest.raises(ValueError, match="at most 54"):
        dataclasses.replace(profiles.CKKS_2048, coeff_bits=(55,))
    with pytest.raises(ValueError, match="at most 54"):
        dataclasses.replace(profiles.CKKS_2048, coeff_bits=(36, 36))
    with pytest.raises(ValueError, match="security_bits"):
        dataclasses.replace(profiles.CKKS_2048, security_bits=100)
    with pytest.raises(ValueError, match="claims no security"):
        dataclasses.replace(profiles.CKKS_2048, test_only=True)


def test_security_table_is_seals_own() -> None:
    from tenseal import sealapi

    level = sealapi.SEC_LEVEL_TYPE.TC128
    assert {n: sealapi.CoeffModulus.MaxBitCount(n, level) for n in HE_STANDARD_128} == HE_STANDARD_128


def test_every_encrypting_profile_has_128_bits_or_is_marked_test_only() -> None:
    for profile in map(get_profile, ALL):
        assert profile.test_only or not profile.encrypted or profile.security_bits == 128


@pytest.mark.parametrize("name", ALL)
def test_more_parties_than_a_sum_can_hold_are_refused(name: str) -> None:
    profile = get_profile(name)
    for parties in (0, profile.max_parties + 1):
        with pytest.raises(JobFileError, match="parties"):
            open_cipher(profile, parties)


def test_lanes_hold_the_largest_sum_and_fit_the_plain_modulus() -> None:
    for rule in profiles.BFV_2048.lanes:
        assert rule.max_parties * 65535 < 2**rule.lane_bits
        assert 2 * rule.lane_bits <= rule.plain_bits


def test_headroom_keeps_a_bit_below_half_the_modulus() -> None:
    for name in ("CKKS_2048", "CKKS_2048_LEAN", "CKKS_4096", "TEST_ONLY"):
        profile: Profile = get_profile(name)
        assert profile.headroom == 2.0 ** (profile.coeff_bits[0] - profile.scale_bits - 2)


# the most parties of the default profile -------------------------------------------------------------------

MOST, DEGREE = 1024, 2048
SHARE = 2.0**12 / MOST
DEVIATION = 32 * np.sqrt(10.5 * MOST + MOST**2 / 12) / 2**40  # of noise and of equal roundings: see profiles.py


def worst_signs() -> np.ndarray:
    """(2048,) ±1 that lift a coefficient furthest: slot k is read at e^(iπ3^k/N), so coefficient N/4 is the sum over
    all slots of Re(z · e^(-iπ3^k/4)) · 2/N, which is √2 where z has the signs of e^(iπ3^k/4)."""
    angles = [pow(3, k, 2 * DEGREE) * np.pi / 4 for k in range(DEGREE // 2)]
    return np.sign(np.column_stack([np.cos(angles), np.sin(angles)])).ravel()


def test_1024_contributions_at_the_headroom_neither_wrap_nor_drown_in_noise() -> None:
    key, rng = make_key("CKKS_2048", parties=MOST), np.random.default_rng(4)
    worst, width = SHARE * worst_signs()[:-1], DEGREE - 1
    aggregator = make_aggregator("CKKS_2048", parties=MOST, length=2 * width, tail=5, key_id=key.key_id)
    vectors = [np.concatenate([worst, rng.uniform(-SHARE, SHARE, width)]) for _ in range(MOST)]
    tail = np.array([SHARE, -SHARE, 0.0, 1e-6, 1.0])
    for vector in vectors[:-1]:
        aggregator.absorb(key.encrypt(vector, tail))
    short = aggregator.result()
    header = dataclasses.replace(Header.unpack(short), count=MOST)
    with pytest.raises(BadMessage, match="1023 to 1023 contributions"):
        key.decrypt(header.pack() + short[HEADER_BYTES:], count=MOST)

    last = key.encrypt(vectors[-1], tail)
    aggregator.absorb(last)
    with pytest.raises(BadMessage, match="all 1024"):
        aggregator.absorb(last)
    vector, metrics = key.decrypt(aggregator.result(), count=MOST)
    assert np.abs(vector[:width]).min() > 4095.99
    assert np.abs(vector[:width] - MOST * worst).max() < 7 * DEVIATION < 6.5e-8
    assert np.abs(vector[width:] - np.sum(vectors, axis=0)[width:]).max() < 7 * DEVIATION
    assert np.abs(metrics - MOST * tail).max() < 7 * DEVIATION


@pytest.mark.parametrize(("factor", "wraps"), [(1.41, False), (1.42, True)])
def test_worst_row_wraps_beyond_root_two_times_the_headroom_and_not_before(factor: float, wraps: bool) -> None:
    cipher = open_cipher(CKKS_2048, MOST)
    key = cipher.open_secret(cipher.new_secret())
    quarter = worst_signs() * factor * 2.0**10  # the encoder refuses a whole one
    total: Any = cipher.parse(key.encrypt(quarter), upload=True)
    for _ in range(3):
        total = cipher.add(total, cipher.parse(key.encrypt(quarter), upload=True))
    assert (np.abs(key.decrypt(total) - 4 * quarter).max() > 1.0) == wraps


def test_canaries_of_1024_equal_rows_stay_within_their_tolerance() -> None:
    """Without noise: each contribution rounds its canary alike, so that a bad constant would fail every round."""
    cipher: Any = open_cipher(CKKS_2048, MOST)
    assert cipher.canary_tolerance == 8 * 2e-8
    for constant in cipher.canaries(CANARY_PERIOD):
        row = np.zeros(DEGREE)
        row[-1] = constant
        rounding = np.abs(cipher.from_plaintext(cipher.to_plaintext(row))[-1] - constant)
        assert MOST * rounding + 7 * 32 * np.sqrt(10.5 * MOST) / 2**40 < cipher.canary_tolerance
