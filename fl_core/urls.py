"""URLs that people may see: without what opens the door.

A database's or a tracking server's URL may hold a password. Whatever shows one (a message, a log, a summary)
shows it through here. In doubt too much is hidden: a password with an `@`, a `/` or a `:` that nobody
percent-encoded is read differently by each library, so all that could be part of it goes.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

HIDDEN = "***"
_URL = re.compile(r"([A-Za-z][\w+.-]*)://(.*)", re.DOTALL)
_IN_TEXT = re.compile(r"[A-Za-z][\w+.-]*://\S*[^\s'\"`,;.:)>\]}]")
_PLACE = re.compile(r"(\[[^\s\[\]]*\]|[^\s:;/?#@\[\]]*)(:\d+)?(?=[/?#]|$)")
# odbc_connect holds a whole connection string.
_SECRET = re.compile(r"pass|pwd|secret|token|key|auth|credential|odbc_connect", re.IGNORECASE)


def without_password(url: str) -> str:
    """The URL with the password, and the values of parameters that sound like one, replaced by `***`.

    Of http(s) the user's name goes too: there it can be a token. What cannot be read for sure (no host or
    host:port after the user; an `@` behind a `?`) yields its scheme and `://***`, or `***` where it has none.
    """
    match = _URL.fullmatch(url)
    if match is None:
        return HIDDEN
    scheme, rest = match.groups()
    # Where the path starts at once (sqlite) there is no user, and an `@` belongs to the file's name.
    user, at, place = ("", "", rest) if rest.startswith("/") else rest.rpartition("@")
    if "?" in user or not _PLACE.match(place):
        return f"{scheme}://{HIDDEN}"
    if at and (":" in user or scheme.lower() in ("http", "https")):
        name = "" if scheme.lower() in ("http", "https") else user.partition(":")[0]
        user = f"{name}:{HIDDEN}" if name else HIDDEN
    return f"{scheme}://{user}{at}{_without_secrets(place)}"


def without_passwords(text: str) -> str:
    """A text, with each URL in it as `without_password` shows it; a URL ends at white space."""
    return _IN_TEXT.sub(lambda url: without_password(url[0]), text)


def _without_secrets(place: str) -> str:
    address, mark, query = place.partition("?")
    return address + mark + "&".join(map(_parameter, query.split("&")))


def _parameter(text: str) -> str:
    name, equals, _ = text.partition("=")
    if text and not equals:  # the rest of a value with an `&` that nobody encoded
        return HIDDEN
    return f"{name}={HIDDEN}" if _SECRET.search(unquote(name)) else text
