"""One connection to PostgreSQL by the driver pg8000, with its errors in two classes: lost, and refused.

Nothing waits for ever: to connect takes at most 10 s, each answer 60 s; then the connection counts as lost.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from fl_core.errors import JobFailed, LedgerBroken, UsageError
from fl_core.trust.postgres_url import PostgresUrl

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
RETURN_SECONDS = 30.0  # a server that restarts
_STARTING = frozenset({"57P01", "57P02", "57P03", "53300"})  # it stops, starts, or has no connection free
_THEIRS = ("28", "3D", "3F", "42")  # authorization, no such database or schema, access rights
T = TypeVar("T")


class Lost(Exception):
    """The connection is gone; of what was under way nobody knows how far it came."""


class Refused(Exception):
    """The server answered with an error; `state` is its SQLSTATE."""

    def __init__(self, state: str, message: str) -> None:
        super().__init__(message)
        self.state = state


class Connection:
    """An open connection.

    Raises
    ------
    UsageError
        If the driver is missing or the server's certificate does not verify.
    Lost, Refused
        As the server says.
    """

    def __init__(self, place: PostgresUrl) -> None:
        self._raw: Any = _connect(place)
        self._prepared: dict[str, Any] = {}

    def run(self, sql: str) -> None:
        """Run statements that take no values."""
        self._guarded(lambda raw: raw.run(sql))

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement with `?` for each value and return its rows; prepared at first use."""

        def ask(raw: Any) -> list[tuple[Any, ...]]:
            if sql not in self._prepared:
                head, *rest = sql.split("?")
                named = head + "".join(f":v{n}{part}" for n, part in enumerate(rest))
                self._prepared[sql] = raw.prepare(named)
            found = self._prepared[sql].run(**{f"v{n}": value for n, value in enumerate(values)})
            return [tuple(row) for row in found or ()]

        return self._guarded(ask)

    def roll_back(self) -> None:
        """End a transaction that failed; a connection that is gone has ended it itself."""
        with suppress(Lost, Refused):
            self.run("ROLLBACK")

    def close(self) -> None:
        """Let go of it, whatever state it is in."""
        raw, self._raw = self._raw, None
        if raw is not None:
            _drop(raw)

    def _guarded(self, act: Callable[[Any], T]) -> T:
        from pg8000.exceptions import DatabaseError

        if self._raw is None:
            raise Lost("no connection")
        try:
            return act(self._raw)
        except DatabaseError as error:
            raise _refused(error) from None
        except BaseException as error:  # an answer may be half read
            self.close()
            if isinstance(error, Exception):
                raise Lost(_words(error)) from None
            raise


def reconnect(place: PostgresUrl) -> Connection:
    """Connect again after a loss, waiting up to 30 s for a server that restarts; raises as `Connection`."""
    end, pause = time.monotonic() + RETURN_SECONDS, 0.05
    while True:
        try:
            return Connection(place)
        except (Lost, Refused) as error:
            again = isinstance(error, Lost) or error.state in _STARTING
            if not again or time.monotonic() + pause > end:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 1.0)


def array(values: Iterable[object]) -> str:
    """Write integers, texts or bytes as PostgreSQL's array literal; the driver's own takes the text `null` for NULL."""
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: object) -> str:
    if isinstance(value, bytes):
        return f'"\\\\x{value.hex()}"'
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


@contextmanager
def tell(place: PostgresUrl, after: str = "") -> Iterator[None]:
    """Turn the two classes into fedseal's, in one line that ends with `after`."""
    try:
        yield
    except Lost as error:
        raise JobFailed(f"{place}: the server cannot be reached ({error}){after}") from None
    except Refused as error:
        words = f"{place}: {error} ({error.state}){after}"
        if error.state in ("XX001", "XX002"):
            raise LedgerBroken(words) from None
        if error.state.startswith(_THEIRS):
            raise UsageError(words) from None
        raise JobFailed(words) from None


def _connect(place: PostgresUrl) -> Any:
    try:
        from pg8000.exceptions import DatabaseError
        from pg8000.native import Connection as Raw
    except ImportError:
        raise UsageError(f"{place}: needs the driver pg8000; allowed: pip install 'fedseal[postgres]'") from None
    context, opened = place.tls(), _open_socket(place)
    try:
        raw = Raw(
            place.user,
            host=place.host,
            database=place.database,
            password=place.password,
            sock=opened,
            ssl_context=False if context is None else context,
            application_name=f"fedseal {socket.gethostname()[:30]} process {os.getpid()}",
        )
    except DatabaseError as error:
        opened.close()
        raise _refused(error) from None
    except ssl.SSLCertVerificationError as error:
        opened.close()
        why = error.verify_message
        raise UsageError(f"{place}: the server's certificate does not verify ({why}); see sslrootcert") from None
    except BaseException as error:
        opened.close()
        if not isinstance(error, Exception):
            raise
        if "SSL" in str(error) and context is not None and not isinstance(error, OSError):
            raise UsageError(f"{place}: the server offers no TLS; it must, unless sslmode=disable") from None
        raise Lost(_words(error)) from None
    return raw


def _open_socket(place: PostgresUrl) -> socket.socket:
    try:
        if place.host.startswith("/"):
            opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            opened.settimeout(CONNECT_SECONDS)
            opened.connect(f"{place.host}/.s.PGSQL.{place.port}")
        else:
            opened = socket.create_connection((place.host, place.port), CONNECT_SECONDS)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.settimeout(ANSWER_SECONDS)
    except OSError as error:
        raise Lost(_words(error)) from None
    return opened


def _refused(error: Exception) -> Refused:
    """The server's own words, without the details, which may hold values."""
    fields = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    return Refused(fields.get("C", "XX000"), " ".join(str(fields.get("M", "an error without words")).split())[:300])


def _words(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())[:200]


def _drop(raw: Any) -> None:
    with suppress(Exception):
        raw.close()
