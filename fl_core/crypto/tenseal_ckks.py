"""CKKS with TenSEAL's own `ckks_vector`, one real a slot, secret-key encryption.

Four times the bytes of `seal_ckks` for the same security and error; for those who want nothing but TenSEAL's
public interface.  `ts.context` cannot take a single prime, so a second one is there that nothing uses.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fl_core.crypto.block_cipher import Values
from fl_core.crypto.profiles import Profile
from fl_core.crypto.seal_ckks import RealRows
from fl_core.crypto.seal_stream import CiphertextForm
from fl_core.errors import BadMessage

_PREFIX = 8  # protobuf: packed sizes, then tag and length of the one ciphertext
_SUFFIX = 9  # protobuf: the scale


class TensealCkks(RealRows):
    """See the module."""

    def __init__(self, profile: Profile, parties: int) -> None:
        import tenseal

        self.profile, self.parties = profile, parties
        self.tenseal = tenseal
        self.width = profile.poly_modulus_degree // 2
        self.context = self._new_context()
        sample = self._frame(TensealKey(self, self.context).encrypt(self.extremes()[1]))
        self._form = CiphertextForm(sample[1], words=2 * profile.poly_modulus_degree, seeded=False)
        self._sizes, self._scale = sample[0][:4], sample[2]
        self.upload_bytes = self.sum_bytes = self._form.max_bytes + _PREFIX + _SUFFIX

    def _new_context(self) -> Any:
        context = self.tenseal.context(
            self.tenseal.SCHEME_TYPE.CKKS,
            self.profile.poly_modulus_degree,
            coeff_mod_bit_sizes=list(self.profile.coeff_bits),
            encryption_type=self.tenseal.ENCRYPTION_TYPE.SYMMETRIC,
        )
        context.global_scale = 2.0**self.profile.scale_bits
        return context

    @staticmethod
    def _frame(block: bytes) -> tuple[bytes, bytes, bytes]:
        return block[:_PREFIX], block[_PREFIX:-_SUFFIX], block[-_SUFFIX:]

    def parameters(self) -> dict[str, object]:
        """See `BlockCipher.parameters`.  SEAL's parameter digest fixes degree and primes."""
        identity = self.context.seal_context().data.key_parms_id()
        return {"tenseal": [str(word) for word in identity]}

    def new_secret(self) -> bytes:
        """See `BlockCipher.new_secret`."""
        return self._new_context().serialize(
            save_public_key=False, save_secret_key=True, save_galois_keys=False, save_relin_keys=False
        )

    def open_secret(self, secret: bytes) -> TensealKey:
        """See `BlockCipher.open_secret`."""
        try:
            context = self.tenseal.context_from(secret)
            identity = context.seal_context().data.key_parms_id()
            fits = context.is_private() and context.global_scale == self.context.global_scale
        except (RuntimeError, ValueError):
            raise BadMessage("TenSEAL does not accept the key") from None
        if not fits or identity != self.context.seal_context().data.key_parms_id():
            raise BadMessage("a TenSEAL context without secret key or of other parameters")
        return TensealKey(self, context)

    def parse(self, block: bytes, *, upload: bool) -> Any:
        """See `BlockCipher.parse`."""
        prefix, stream, scale = self._frame(block)
        size = len(stream)
        length = bytes((size & 127 | 128, size >> 7 & 127 | 128, size >> 14))  # protobuf's varint
        if prefix != self._sizes + b"\x12" + length or scale != self._scale:
            raise BadMessage("not a serialised ckks_vector of this shape and scale")
        self._form.check(stream)
        try:
            return self.tenseal.ckks_vector_from(self.context, block)
        except (RuntimeError, ValueError):
            raise BadMessage("TenSEAL does not accept the vector") from None

    def add(self, total: Any, other: Any) -> Any:
        """See `BlockCipher.add`."""
        return total.add_(other)

    def dump(self, total: Any) -> bytes:
        """See `BlockCipher.dump`."""
        return total.serialize()


class TensealKey:
    """A TenSEAL context with its secret key."""

    def __init__(self, cipher: TensealCkks, context: Any) -> None:
        self._cipher, self._context = cipher, context
        self._secret_key = context.secret_key()

    def encrypt(self, row: Values) -> bytes:
        """See `BlockKey.encrypt`."""
        return self._cipher.tenseal.ckks_vector(self._context, row.tolist()).serialize()

    def decrypt(self, block: Any) -> Values:
        """See `BlockKey.decrypt`."""
        return np.array(block.decrypt(self._secret_key), dtype=np.float64)
