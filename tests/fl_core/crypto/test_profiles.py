from __future__ import annotations

import dataclasses

import pytest

from fl_core.crypto import profiles
from fl_core.crypto.ciphers import open_cipher
from fl_core.crypto.profiles import HE_STANDARD_128, Profile, get_profile, profile_names, register
from fl_core.errors import JobFileError

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
