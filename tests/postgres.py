"""A real PostgreSQL server for tests, where its programs are installed: in a temporary folder, on loopback, with fsync.

It runs under an account that is not root's, as PostgreSQL demands. Each test takes a schema of its own.
"""

from __future__ import annotations

import datetime
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest

from fl_core.processes import free_port
from fl_core.trust.postgres_url import Place, PostgresUrl

BOTH = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]
PASSWORD = "p@ss:w/rd %41"  # what a URL must encode


def programs() -> Path | None:
    """The folder with `initdb` and `postgres`, the newest where there are several."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "pg_ctl").exists()), None)


class Server:
    """A running server with the roles `postgres` (superuser) and `fedseal`, and the database `team`."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="fedseal-postgres-", dir="/tmp"))
        self._user = _account()
        if self._user is not None:
            os.chown(self.folder, *self._user)
        self.data, self.port = self.folder / "data", free_port()
        secret = self.folder / "password"
        self._write(secret, PASSWORD)
        self._do(
            "initdb",
            "-D",
            self.data,
            "-U",
            "postgres",
            "-A",
            "scram-sha-256",
            "--pwfile",
            secret,
            "-E",
            "UTF8",
            "--locale=C",
        )
        self._write_certificate()
        self._settings = {
            "port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": self.folder, "fsync": "on",
            "ssl": "on", "ssl_cert_file": self.folder / "server.pem", "ssl_key_file": self.folder / "server.key",
            "shared_buffers": "16MB", "max_connections": 60, "max_wal_size": "64MB", "autovacuum": "off",
        }  # fmt: skip
        self._write(self.data / "postgresql.auto.conf", "".join(f"{k} = '{v}'\n" for k, v in self._settings.items()))
        self.start()
        self.sql(f"CREATE ROLE fedseal LOGIN PASSWORD '{PASSWORD}'", database="postgres")
        self.sql("CREATE DATABASE team OWNER fedseal", database="postgres")

    def start(self) -> None:
        self._do("pg_ctl", "-D", self.data, "-w", "-t", "60", "-l", self.folder / "log", "start")

    def stop(self, mode: str = "immediate") -> None:
        """`immediate` is a crash: no checkpoint, recovery from the log at the next start."""
        self._do("pg_ctl", "-D", self.data, "-w", "-t", "60", "-m", mode, "stop")

    def kill(self) -> None:
        """kill -9 of the server's first process; the others notice and end, which is awaited."""
        os.kill(int((self.data / "postmaster.pid").read_text().split("\n")[0]), signal.SIGKILL)
        end = time.monotonic() + 30
        while self._children():
            assert time.monotonic() < end, "processes of the killed server do not end"
            time.sleep(0.05)
        for lock in (self.data / "postmaster.pid", self.folder / f".s.PGSQL.{self.port}.lock"):
            lock.unlink()  # where nobody reaps the killed one, its number looks alive

    def _children(self) -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.readlink(folder / "cwd") == str(self.data) and (folder / "stat").read_text().split()[2] != "Z":
                    found.append(int(folder.name))
        return found

    def close(self) -> None:
        with suppress(subprocess.CalledProcessError):
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, schema: str | None = None, *, user: str = "fedseal", more: str = "", socket: bool = False) -> str:
        at = "" if socket else f"127.0.0.1:{self.port}"
        host = f"&host={quote(str(self.folder))}" if socket else ""
        if socket:
            at = f":{self.port}"
        schema = schema or f"t_{secrets.token_hex(6)}"
        return f"postgresql://{user}:{quote(PASSWORD, safe='')}@{at}/team?schema={schema}{host}{more}"

    def place(
        self, schema: str | None = None, *, user: str = "fedseal", more: str = "", socket: bool = False
    ) -> PostgresUrl:
        return PostgresUrl.parse(self.url(schema, user=user, more=more, socket=socket))

    def connect(self, *, user: str = "postgres", database: str = "team"):
        from pg8000.native import Connection

        return Connection(user, host="127.0.0.1", port=self.port, database=database, password=PASSWORD, timeout=30)

    def sql(self, *statements: str, user: str = "postgres", database: str = "team") -> list:
        with self.connect(user=user, database=database) as connection:
            return [connection.run(statement) for statement in statements][-1]

    def _do(self, program: str, *arguments: object) -> None:
        words = [str(self._programs / program), *map(str, arguments)]
        with (self.folder / "commands").open("ab") as log:
            try:
                subprocess.run(
                    words, check=True, cwd=self.folder, stdout=log, stderr=log, timeout=90, **self._as_user()
                )
            except subprocess.CalledProcessError:
                print((self.folder / "commands").read_text()[-3000:])
                raise

    def _as_user(self) -> dict:
        return {} if self._user is None else {"user": self._user[0], "group": self._user[1], "extra_groups": []}

    def _write(self, path: Path, text: str | bytes) -> None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(0o600)
        if self._user is not None:
            os.chown(path, *self._user)

    def _write_certificate(self) -> None:
        key, certificate = certificate_for(["localhost"], ["127.0.0.1"])
        self._write(self.folder / "server.key", key)
        self._write(self.folder / "server.pem", certificate)


def certificate_for(names: Sequence[str], addresses: Sequence[str]) -> tuple[bytes, bytes]:
    """Key and self-signed certificate, PEM."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name.from_rfc4514_string("CN=server"), datetime.datetime.now(datetime.UTC)
    shown = [*map(x509.DNSName, names), *(x509.IPAddress(ipaddress.ip_address(a)) for a in addresses)]
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(shown), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, made.public_bytes(serialization.Encoding.PEM)


def _account() -> tuple[int, int] | None:
    """Whose the server is: nobody else's than ours, unless we are root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            found = pwd.getpwnam(name)
            return found.pw_uid, found.pw_gid
    pytest.skip("PostgreSQL does not run as root, and there is no other account")


def place_for(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """The place of a new ledger, for a fixture with the parameters `BOTH` and a fixture `postgres` beside it."""
    return tmp_path / "ledger.db" if request.param == "sqlite" else request.getfixturevalue("postgres").place()


def start_server() -> Server:
    """Start one, or skip the test where PostgreSQL or its driver is not installed."""
    pytest.importorskip("pg8000", reason="the driver of PostgreSQL is not installed")
    found = programs()
    if found is None:
        pytest.skip("PostgreSQL is not installed")
    return Server(found)
