"""The certificate that a model's owner brings along, and what one says."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from fl_core.errors import UsageError
from fl_core.trust import certificates
from fl_core.trust.certificates import Pair


@dataclass(frozen=True)
class Held:
    """What the first certificate of a PEM file says: names and addresses, and its time in seconds since 1970."""

    hosts: tuple[str, ...]
    start: float
    end: float


def read_pair(certificate: Path, key: Path) -> Pair:
    """A server's certificate, with those between it and its authority behind it, and its key.

    Raises
    ------
    UsageError : a file cannot be read or is no PEM, they do not belong together, or it is not the certificate's time.
    """
    pair = Pair(_read(certificate, "--tls-cert"), _read(key, "--tls-key"))
    where = f"--tls-cert {certificate}"
    held = held_by(pair.certificate, where)
    certificates.check_key(pair, f"{where}, --tls-key {key}")
    if not held.start <= time.time() <= held.end:
        first, last = (time.strftime("%Y-%m-%d", time.gmtime(t)) for t in (held.start, held.end))
        raise UsageError(f"{where}: valid from {first} to {last}, not now")
    if not held.hosts:
        raise UsageError(f"{where}: it holds no name; allowed: one with subject alternative names")
    return pair


def held_by(pem: bytes, where: str) -> Held:
    """What a certificate says.  Raises `UsageError`."""
    try:
        leaf = x509.load_pem_x509_certificate(pem)
        names = [x for x in leaf.extensions if isinstance(x.value, x509.SubjectAlternativeName)]
    except ValueError:
        raise UsageError(f"{where}: not a PEM certificate") from None
    hosts = tuple(str(name.value) for extension in names for name in extension.value)
    return Held(hosts, leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp())


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot be read ({error.strerror})") from None
