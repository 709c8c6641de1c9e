"""Context, keys and ciphertexts of plain SEAL (`tenseal.sealapi`), for CKKS and BFV alike.

What `ckks_vector` cannot do is used here: a single prime (addition needs no special one), ciphertexts whose
second polynomial is a 64-byte seed (half the upload), and secret-key encryption throughout.  SEAL draws keys,
noise and seeds from the operating system for every call, so a fork does not repeat them.
"""

from __future__ import annotations

from typing import Any

from fl_core.crypto import seal_io
from fl_core.crypto.block_cipher import Values
from fl_core.crypto.profiles import Profile
from fl_core.crypto.seal_stream import CiphertextForm
from fl_core.errors import BadMessage, JobFailed


class SealCipher:
    """What CKKS and BFV on SEAL have in common; subclasses turn rows into plaintexts and back."""

    profile: Profile
    parties: int

    def _open_context(self, *, plain_modulus: int | None) -> None:
        from tenseal import sealapi

        self.seal = sealapi
        kind = sealapi.SCHEME_TYPE.CKKS if plain_modulus is None else sealapi.SCHEME_TYPE.BFV
        degree = self.profile.poly_modulus_degree
        parameters = sealapi.EncryptionParameters(kind)
        parameters.set_poly_modulus_degree(degree)
        parameters.set_coeff_modulus(sealapi.CoeffModulus.Create(degree, list(self.profile.coeff_bits)))
        if plain_modulus is not None:
            parameters.set_plain_modulus(plain_modulus)
        levels = sealapi.SEC_LEVEL_TYPE
        security = levels.TC128 if self.profile.security_bits else levels.NONE
        self.context = sealapi.SEALContext(parameters, True, security)
        if not self.context.parameters_set():
            raise JobFailed(f"SEAL refuses {self.profile.name}: {self.context.parameters_error_name()}")
        self.primes = [int(prime.value()) for prime in parameters.coeff_modulus()]
        self.plain_modulus = plain_modulus
        self.evaluator = sealapi.Evaluator(self.context)
        self._learn_forms()

    def _learn_forms(self) -> None:
        """Write one ciphertext of each kind under a throw-away key and remember what it looks like."""
        degree = self.profile.poly_modulus_degree
        key = SealKey(self, self.seal.KeyGenerator(self.context).secret_key())
        sample = key.encrypt(self.canary_row())
        self.upload_form = CiphertextForm(sample, words=degree, seeded=True)
        full = seal_io.save(seal_io.load(self.seal.Ciphertext(), self.context, sample))
        self.sum_form = CiphertextForm(full, words=2 * degree, seeded=False)
        self.upload_bytes, self.sum_bytes = self.upload_form.max_bytes, self.sum_form.max_bytes

    def canary_row(self) -> Values:
        """Any valid row."""
        raise NotImplementedError

    def to_plaintext(self, row: Values) -> Any:
        """A SEAL plaintext of a row."""
        raise NotImplementedError

    def from_plaintext(self, plaintext: Any) -> Values:
        """The row in a SEAL plaintext."""
        raise NotImplementedError

    def parameters(self) -> dict[str, object]:
        """See `BlockCipher.parameters`."""
        return {
            "degree": self.profile.poly_modulus_degree,
            "primes": [str(prime) for prime in self.primes],
            "plain_modulus": str(self.plain_modulus),
        }

    def new_secret(self) -> bytes:
        """See `BlockCipher.new_secret`."""
        return seal_io.save(self.seal.KeyGenerator(self.context).secret_key())

    def open_secret(self, secret: bytes) -> SealKey:
        """See `BlockCipher.open_secret`."""
        return SealKey(self, seal_io.load(self.seal.SecretKey(), self.context, secret))

    def parse(self, block: bytes, *, upload: bool) -> Any:
        """See `BlockCipher.parse`."""
        form = self.upload_form if upload else self.sum_form
        ciphertext = seal_io.load(self.seal.Ciphertext(), self.context, form.check(block))
        if ciphertext.is_transparent():
            raise BadMessage("a ciphertext that hides nothing")
        return ciphertext

    def add(self, total: Any, other: Any) -> Any:
        """See `BlockCipher.add`."""
        self.evaluator.add_inplace(total, other)
        return total

    def dump(self, total: Any) -> bytes:
        """See `BlockCipher.dump`."""
        return seal_io.save(total)


class SealKey:
    """A SEAL secret key with its encryptor and decryptor."""

    def __init__(self, cipher: SealCipher, secret_key: Any) -> None:
        self._cipher = cipher
        self._encryptor = cipher.seal.Encryptor(cipher.context, secret_key)
        self._decryptor = cipher.seal.Decryptor(cipher.context, secret_key)

    def encrypt(self, row: Values) -> bytes:
        """See `BlockKey.encrypt`."""
        return seal_io.save(self._encryptor.encrypt_symmetric(self._cipher.to_plaintext(row)))

    def decrypt(self, block: Any) -> Values:
        """See `BlockKey.decrypt`."""
        plaintext = self._cipher.seal.Plaintext()
        self._decryptor.decrypt(block, plaintext)
        return self._cipher.from_plaintext(plaintext)
