"""The token with which a party comes to the exchange: for one session, party and run, until a time.

The coordinator makes it under a secret that it shares with the exchange and sends it inside the signed message that
opens the session; the exchange needs no list of sessions.  Whoever holds a token can take that party's place at the
exchange and keep it from talking; it cannot read or send anything, which takes the party's keys.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from dataclasses import asdict, dataclass
from typing import Any

from fl_core.errors import BadMessage
from fl_core.trust import canonical
from fl_core.trust.identity import check_name

SECRET_BYTES = 32
MAX_TOKEN = 64 << 10
_PREFIX = b"fedseal exchange token v1\n"


@dataclass(frozen=True)
class Token:
    """What a token says.

    Parameters
    ----------
    session, run : hex.
    party : who comes with it.
    members : everybody in the session.
    until : Unix time, seconds.
    """

    session: str
    run: str
    party: str
    members: tuple[str, ...]
    until: int

    def encode(self, secret: bytes) -> str:
        """As text for a header."""
        data = canonical.encode({**asdict(self), "members": list(self.members)})
        return base64.urlsafe_b64encode(_mac(secret, data) + data).decode()

    @classmethod
    def decode(cls, text: str, secret: bytes, *, now: float | None = None) -> Token:
        """Authenticate, then read.  Raises `BadMessage`."""
        if len(text) > MAX_TOKEN:
            raise BadMessage("a token that is too long")
        try:
            data = base64.b64decode(text.encode(), altchars=b"-_", validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raise BadMessage("not a token") from None
        mac, data = data[:32], data[32:]
        if not hmac.compare_digest(mac, _mac(secret, data)):
            raise BadMessage("a token of another exchange, or an altered one")
        fields: Any = canonical.decode(data)
        token = cls(**{**fields, "members": tuple(map(check_name, fields["members"]))})
        if (time.time() if now is None else now) > token.until:
            raise BadMessage("the session's time is over")
        return token


def _mac(secret: bytes, data: bytes) -> bytes:
    return hmac.new(secret, _PREFIX + data, hashlib.sha256).digest()
