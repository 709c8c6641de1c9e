"""Where a ledger in PostgreSQL is: a URL as libpq writes it, with no more in it than is understood.

``postgresql://user@host:5432/database?schema=fedseal&sslmode=verify-full``.  The password may stand in the URL, in
`PGPASSWORD`, or in libpq's password file (`PGPASSFILE` or `~/.pgpass`, readable by its owner only); nothing shows it.

TLS: to another machine the server's certificate and name are checked (`verify-full`) unless the URL says otherwise;
over loopback or a Unix socket there is none.  libpq's `prefer` and `allow` are refused: whoever stands in between turns
them off.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from fl_core.errors import UsageError
from fl_core.urls import without_password

SCHEMES = ("postgresql", "postgres")
VARIABLE = "FEDSEAL_LEDGER"
_FORM = "postgresql://USER@HOST/DATABASE"
_TLS = ("disable", "require", "verify-ca", "verify-full")
_PARAMETERS = frozenset({"host", "schema", "sslmode", "sslrootcert", "sslcert", "sslkey"})
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, repr=False)
class PostgresUrl:
    """A ledger's place in PostgreSQL; as text it is the URL without the password.

    Attributes
    ----------
    host
        A name or address, or the folder of a Unix socket, which starts with `/`.
    schema
        The schema that holds the ledger's tables: several ledgers share a database under several schemas.
    sslmode
        `disable`, `require` (encrypted, nobody checked), `verify-ca` (certificate) or `verify-full` (and name).
    sslrootcert, sslcert, sslkey
        PEM files: who signs the server's certificate (default: the system's), and a certificate to show it.
    """

    shown: str
    host: str
    port: int
    user: str
    database: str
    password: str = field(repr=False)
    schema: str
    sslmode: str
    sslrootcert: str = ""
    sslcert: str = ""
    sslkey: str = ""

    def __str__(self) -> str:
        return self.shown

    def __repr__(self) -> str:
        return f"PostgresUrl({self.shown!r})"

    @classmethod
    def parse(cls, text: str) -> PostgresUrl:
        """Read a URL; the password may come from the environment.

        Raises
        ------
        UsageError
            If a part is missing, malformed or unknown.
        """
        shown = without_password(text)
        try:
            parts = urlsplit(text)
            port = parts.port or 5432
            given = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else []
        except ValueError:
            raise UsageError(f"{shown}: not a URL; allowed: {_FORM}") from None
        options = _options(shown, given)
        host = unquote(parts.hostname or "") or options.get("host", "")
        user, database = unquote(parts.username or ""), unquote(parts.path[1:])
        if parts.scheme not in SCHEMES or not host or not user or not database or "/" in database or parts.fragment:
            raise UsageError(f"{shown}: no server, user or database; allowed: {_FORM}")
        if parts.hostname and "host" in options:
            raise UsageError(f"{shown}: names two hosts; allowed: one")
        given_password = unquote(parts.password or "") or os.environ.get("PGPASSWORD", "")
        return cls(
            shown=shown,
            host=host,
            port=port,
            user=user,
            database=database,
            password=given_password or _from_file((host, str(port), database, user)),
            schema=options.get("schema", "fedseal"),
            sslmode=options.get("sslmode", "disable" if _is_local(host) else "verify-full"),
            **{name: options.get(name, "") for name in ("sslrootcert", "sslcert", "sslkey")},
        )

    def tls(self) -> ssl.SSLContext | None:
        """Return what the connection is secured with, None without TLS; raises UsageError for files it cannot use."""
        if self.sslmode == "disable":
            return None
        try:
            context = ssl.create_default_context(cafile=self.sslrootcert or None)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.check_hostname = self.sslmode == "verify-full"
            if self.sslmode == "require":
                context.verify_mode = ssl.CERT_NONE
            if self.sslcert:
                context.load_cert_chain(self.sslcert, self.sslkey or None)
        except (OSError, ValueError) as error:
            raise UsageError(f"{self}: its certificates cannot be used ({error})") from None
        return context

    def exists(self) -> bool:
        """Whether there is a ledger; raises UsageError or JobFailed if the server cannot be asked."""
        from fl_core.trust.ledger_postgres import has_ledger

        return has_ledger(self)


Place = Path | PostgresUrl
"""Where a ledger is: a SQLite file, or a schema in PostgreSQL."""


def read_place(text: str | os.PathLike[str]) -> Place:
    """Return the place that a person names: a URL of PostgreSQL, or a file; raises UsageError."""
    text = os.fspath(text)
    if text.lower().startswith(tuple(f"{scheme}:" for scheme in SCHEMES)):
        return PostgresUrl.parse(text)
    if "://" in text:
        raise UsageError(f"{without_password(text)}: no place of a ledger; allowed: a file or {_FORM}")
    return Path(text)


def place_of_home(file: Path) -> Place:
    """Return where a home's ledger is: as `FEDSEAL_LEDGER` says, else in `file`.

    Raises
    ------
    UsageError
        If the variable holds something else than a URL of PostgreSQL, or there is a ledger in `file` as well.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return file
    if "://" not in text:
        raise UsageError(f"{VARIABLE}: not a URL; allowed: {_FORM}, or unset for {file}")
    place = read_place(text)
    if file.exists():
        raise UsageError(f"{VARIABLE}: {place}, but {file} is this home's ledger; allowed: one of them")
    return place


def _options(shown: str, given: list[tuple[str, str]]) -> dict[str, str]:
    options = dict(given)
    if len(options) < len(given) or not options.keys() <= _PARAMETERS:
        allowed = ", ".join(sorted(_PARAMETERS))
        raise UsageError(f"{shown}: a parameter that is unknown or there twice; allowed: {allowed}")
    if not _SCHEMA.fullmatch(options.get("schema", "fedseal")) or options.get("schema", "").startswith("pg_"):
        raise UsageError(f"{shown}: schema; allowed: lower-case letters, digits and _, not starting with pg_")
    if options.get("sslmode", "disable") not in _TLS:
        raise UsageError(f"{shown}: sslmode; allowed: {', '.join(_TLS)}")
    if not options.get("host", "/").startswith("/"):
        raise UsageError(f"{shown}: host; allowed as a parameter: the folder of a Unix socket")
    return options


def _is_local(host: str) -> bool:
    if host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _from_file(wanted: tuple[str, str, str, str]) -> str:
    """The password in libpq's file for host, port, database and user; empty without one."""
    path = Path(os.environ.get("PGPASSFILE") or os.path.expanduser("~/.pgpass"))
    if wanted[0].startswith("/"):
        wanted = ("localhost", *wanted[1:])  # as libpq calls every Unix socket
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) or mode & 0o077:  # libpq reads no file that others may read either
            return ""
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    for line in lines:
        fields = list(_fields(line))
        if len(fields) == 5 and all(have in ("*", want) for have, want in zip(fields[:4], wanted, strict=True)):
            return fields[4]
    return ""


def _fields(line: str) -> Iterator[str]:
    """What stands between colons, a backslash taking the next character as it is."""
    if line.startswith("#"):
        return
    for part in re.findall(r"((?:[^\\:]|\\.)*)(?::|$)", line)[:5]:
        yield _ESCAPED.sub(r"\1", part)
