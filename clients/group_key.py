"""The run's group key as a party holds it: the cipher's secret key and the unit in which rows are weighed.

One trainer makes it and seals it (HPKE) to each other trainer's ephemeral key of the run; the coordinator relays the
sealed blobs.  Whoever holds it can decrypt every upload it gets hold of, so receivers without data do not get it, and
it is made anew for every run.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fl_core import messages
from fl_core.crypto.aggregation import SecretKey, load_key, make_key
from fl_core.crypto.profiles import Profile, get_profile
from fl_core.crypto.sealing import key_info, open_sealed, seal
from fl_core.errors import WrongKey
from fl_core.job import Job
from fl_core.trust import canonical
from fl_core.trust.entry import Statement
from fl_core.trust.roster import Roster


@dataclass(frozen=True, repr=False)
class GroupKey:
    """`cipher` encrypts and decrypts; `scale` is the number of rows that weigh 1.  The coordinator knows neither."""

    cipher: SecretKey
    scale: int

    @classmethod
    def make(cls, job: Job, roster: Roster, *, scale: int) -> GroupKey:
        """A fresh key for this roster."""
        return cls(make_key(profile_of(job).name, parties=len(roster.contributors)), scale)

    @classmethod
    def from_bytes(cls, data: bytes) -> GroupKey:
        """Read back `to_bytes`."""
        table = canonical.decode(data, max_bytes=messages.MAX_HEAD)
        held = bytes.fromhex(messages.field(table, "key", str))
        return cls(load_key(held), messages.field(table, "scale", int))

    def to_bytes(self) -> bytes:
        """For the party's own store and for sealing; never in clear on the wire."""
        return canonical.encode({"key": self.cipher.to_bytes().hex(), "scale": self.scale})

    def sealed_to_others(self, roster: Roster, *, run: str) -> dict[str, bytes]:
        """One blob `key.<name>` for each other trainer."""
        maker, data = roster.key_maker, self.to_bytes()
        return {
            f"key.{name}": seal(
                roster.ephemerals[name],
                data,
                info=key_info(run, roster.digest, maker, name),
                aad=roster.digest.encode(),
            )
            for name in roster.contributors
            if name != maker
        }

    @classmethod
    def unseal(
        cls, sealed: bytes, private: X25519PrivateKey, roster: Roster, *, run: str, me: str, maker: Statement, job: Job
    ) -> GroupKey:
        """Open the blob sealed to `me`; it must be the key its maker announced, made for this job.

        Raises `BadMessage` or `WrongKey`.
        """
        info = key_info(run, roster.digest, roster.key_maker, me)
        group = cls.from_bytes(open_sealed(private, sealed, info=info, aad=roster.digest.encode()))
        cipher = group.cipher
        if cipher.key_id != maker.body.get("key"):
            raise WrongKey("the sealed group key is not the one its maker announced")
        if cipher.profile != profile_of(job) or cipher.parties != len(roster.contributors):
            raise WrongKey(f"the group key is for {cipher.profile.name} and {cipher.parties} parties, not the job's")
        return group


def profile_of(job: Job) -> Profile:
    """The parameter set the job's encryption names; NONE where it is off."""
    return get_profile(job.encryption.profile if job.encryption.scheme == "ckks" else "NONE")
