"""Named parameter sets for encrypted aggregation: no loose numbers anywhere else.

A profile fixes scheme, ring, modulus and scale, and says what follows from them: the security level, the
largest sum that still decrypts correctly, the error, the bytes a value.  The 128-bit profiles are checked
against the table of the Homomorphic Encryption Standard (2018, table 1, ternary secret, classical attacks).

`NONE` is no encryption: the coordinator reads every update.  A profile with ``test_only`` has no security
either and must never be offered to a user.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fl_core.errors import JobFileError

Scheme = Literal["ckks", "ckks_tenseal", "bfv", "none"]

#: Ring degree → most bits the whole coefficient modulus (special prime included) may have for 128 bits.
HE_STANDARD_128: dict[int, int] = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}


@dataclass(frozen=True)
class LaneRule:
    """How BFV packs two values a coefficient for up to `max_parties` contributions."""

    max_parties: int
    plain_bits: int
    lane_bits: int


@dataclass(frozen=True)
class Profile:
    """One parameter set.

    Attributes:
        name: at most 16 ASCII characters; travels in every envelope.
        poly_modulus_degree: ring degree N; 0 for ``NONE``.
        coeff_bits: bits of each prime of the coefficient modulus.
        scale_bits: log2 of the fixed-point scale.
        security_bits: 128, or 0 for ``NONE`` and test-only profiles.
        headroom: largest |sum| of one value (BFV: of one tail value) that decrypts correctly.
        precision: largest absolute error of a sum of eight (BFV vector: per unit of ``clip``).
        max_parties: most contributions one sum may hold.
        bytes_up, bytes_down: measured bytes a vector value, party to coordinator and back.
        lanes: BFV only, ascending in `max_parties`.
    """

    name: str
    scheme: Scheme
    poly_modulus_degree: int
    coeff_bits: tuple[int, ...]
    scale_bits: int
    security_bits: int
    headroom: float
    precision: float
    max_parties: int
    bytes_up: float
    bytes_down: float
    lanes: tuple[LaneRule, ...] = ()
    test_only: bool = False

    def __post_init__(self) -> None:
        if not self.name.isascii() or not 0 < len(self.name) <= 16:
            raise ValueError(f"profile name {self.name!r}: 1 to 16 ASCII characters")
        limit = HE_STANDARD_128.get(self.poly_modulus_degree, 0)
        if self.security_bits not in (0, 128):
            raise ValueError(f"{self.name}: security_bits must be 0 or 128, not {self.security_bits}")
        if self.security_bits == 128 and not 0 < sum(self.coeff_bits) <= limit:
            bits = sum(self.coeff_bits)
            raise ValueError(f"{self.name}: {bits} bits at N={self.poly_modulus_degree}, at most {limit}")
        if self.test_only and self.security_bits:
            raise ValueError(f"{self.name}: a test-only profile claims no security")

    @property
    def encrypted(self) -> bool:
        """True unless the profile is plain."""
        return self.scheme != "none"

    def check_parties(self, parties: int) -> None:
        """Refuse a number of contributions that this profile cannot sum (`JobFileError`)."""
        if not 1 <= parties <= self.max_parties:
            allowed = f"1 to {self.max_parties}"
            raise JobFileError("parties", f"{self.name} cannot sum {parties}", allowed=allowed)

    def lane_rule(self, parties: int) -> LaneRule:
        """The BFV packing for `parties` contributions."""
        self.check_parties(parties)
        return next(rule for rule in self.lanes if parties <= rule.max_parties)


_REGISTRY: dict[str, Profile] = {}


def register(profile: Profile) -> Profile:
    """Add a profile; a name can be taken only once (`ValueError`)."""
    if profile.name in _REGISTRY:
        raise ValueError(f"encryption profile {profile.name} is already registered")
    _REGISTRY[profile.name] = profile
    return profile


def get_profile(name: str) -> Profile:
    """The profile called `name`; an unknown one is a `JobFileError` that lists those a job may use."""
    try:
        return _REGISTRY[name]
    except KeyError:
        allowed = ", ".join(profile_names())
        raise JobFileError("encryption.profile", f"unknown profile {name!r}", allowed=allowed) from None


def profile_names(*, with_test_only: bool = False) -> list[str]:
    """Registered names in order of registration; test-only ones are left out unless asked for."""
    return [name for name, p in _REGISTRY.items() if with_test_only or not p.test_only]


# Head-room: a coefficient must stay under q/2 = 2^(log q - 1), which is 2^(log q - scale - 1) in units.  One
# more bit is kept: two reals a slot lift a coefficient up to √2 times the value (coefficient N/4), q lies a
# little under its power of two, and noise is added, at most 21 a contribution (SEAL's centred binomial).
#
# Most parties of CKKS: a party's share of the head-room must hold its weighted update and metrics, and the
# error of the canary must stay far below its tolerance, 8 · precision.  The error of a slot's real has deviation
# √(N/2) · √(10.5 n + n²/12) / scale: noise of n ciphertexts, and roundings, which add up where contributions
# are equal.  With CKKS_2048 and n = 1024 that is a share of ±4 and 9.1e-9, a seventeenth of the tolerance.
CKKS_2048 = register(
    Profile(
        name="CKKS_2048", scheme="ckks", poly_modulus_degree=2048, coeff_bits=(54,), scale_bits=40,
        security_bits=128, headroom=2.0**12, precision=2e-8, max_parties=1024,
        bytes_up=7.63, bytes_down=15.12,
    )
)  # fmt: skip
CKKS_2048_LEAN = register(
    Profile(
        name="CKKS_2048_LEAN", scheme="ckks", poly_modulus_degree=2048, coeff_bits=(36,), scale_bits=26,
        security_bits=128, headroom=2.0**8, precision=3e-4, max_parties=64,
        bytes_up=5.8, bytes_down=11.6,
    )
)  # fmt: skip
CKKS_4096 = register(
    Profile(
        name="CKKS_4096", scheme="ckks_tenseal", poly_modulus_degree=4096, coeff_bits=(54, 54), scale_bits=40,
        security_bits=128, headroom=2.0**12, precision=2e-8, max_parties=256,
        bytes_up=30.2, bytes_down=30.2,
    )
)  # fmt: skip
BFV_2048 = register(
    Profile(
        name="BFV_2048", scheme="bfv", poly_modulus_degree=2048, coeff_bits=(54,), scale_bits=0,
        security_bits=128, headroom=2.0**12, precision=8 * 0.5 / 32767 * (1 + 1e-9), max_parties=64,
        bytes_up=3.82, bytes_down=7.6,
        lanes=(LaneRule(8, 40, 19), LaneRule(32, 42, 21), LaneRule(64, 44, 22)),
    )
)  # fmt: skip
TEST_ONLY = register(
    Profile(
        name="TEST_ONLY", scheme="ckks", poly_modulus_degree=256, coeff_bits=(54,), scale_bits=40,
        security_bits=0, headroom=2.0**12, precision=2e-8, max_parties=256,
        bytes_up=8.5, bytes_down=15.6, test_only=True,
    )
)  # fmt: skip
NONE = register(
    Profile(
        name="NONE", scheme="none", poly_modulus_degree=0, coeff_bits=(), scale_bits=40,
        security_bits=0, headroom=2.0**22, precision=8 * 2.0**-41, max_parties=4096,
        bytes_up=8.02, bytes_down=8.02,
    )
)  # fmt: skip

DEFAULT = CKKS_2048
