"""X.509 certificates of one federation: an authority of the coordinator's own, its servers, its engineers.

Nodes pin the authority when they are made; it lives ten years.  Server and client certificates live 397 days, as
browsers demand of public ones, and are renewed under the same authority, so nobody has to pin anything again.  Keys are
ECDSA P-256 from the operating system's randomness.  Certificates protect connections; what parties say is signed by
their identities (`fl_core.trust.identity`), which no authority can make.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl_core.errors import BadMessage, UsageError
from fl_core.trust.identity import check_name
from fl_core.trust.roles import ENGINEER, Role

AUTHORITY_DAYS, SERVER_DAYS, CLIENT_DAYS = 3650, 397, 397
ROLES = (ENGINEER, *(role.value for role in Role))
_Extension = TypeVar("_Extension", bound=x509.ExtensionType)
_SKEW = timedelta(minutes=5)
_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_PURPOSES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}


@dataclass(frozen=True)
class Pair:
    """A certificate (PEM, the leaf first) and its private key (PKCS8 PEM)."""

    certificate: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True)
class Checked:
    """What a certificate that holds says; `not_after` is UTC."""

    name: str
    roles: tuple[str, ...]
    hosts: tuple[str, ...]
    not_after: datetime
    days_left: int
    fingerprint: str


def make_authority(name: str, *, days: int = AUTHORITY_DAYS) -> Pair:
    """A self-signed authority that may sign servers and clients, and no further authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _builder(subject, subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs=True), critical=True)
    )
    return Pair(_pem(builder.sign(key, hashes.SHA256())), _key_pem(key))


def issue_server(authority: Pair, hosts: Sequence[str], *, days: int = SERVER_DAYS) -> Pair:
    """A certificate for a server that is reached under `hosts` (names or addresses), the authority's behind it.

    Raises `UsageError` for a host that none can name.
    """
    if not hosts:
        raise UsageError("a server certificate without a host; allowed: names or addresses")
    names = x509.SubjectAlternativeName([_general(h) for h in hosts])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    return _issue(authority, subject, names, "server", days)


def issue_client(authority: Pair, *, name: str, roles: Sequence[str], days: int = CLIENT_DAYS) -> Pair:
    """A certificate for a person or a program with these roles.  Raises `UsageError`."""
    try:
        check_name(name)
    except BadMessage as error:
        raise UsageError(str(error)) from None
    for role in roles or [""]:
        if role not in ROLES:
            raise UsageError(f"role {role!r}; allowed: {', '.join(ROLES)}")
    units = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role) for role in dict.fromkeys(roles)]
    return _issue(authority, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name), *units]), None, "client", days)


def certify(authority: Pair, key: bytes, *, name: str, days: int) -> bytes:
    """A client's certificate for a public key (PEM) that somebody else holds."""
    public = serialization.load_pem_public_key(key)
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise UsageError(f"{name}: its key is not on an elliptic curve")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return _pem(_sign(authority, subject, public, None, "client", days))


def renew(authority: Pair, certificate: bytes, *, days: int = SERVER_DAYS) -> Pair:
    """A new key and certificate with the subject, hosts and purpose of an old one, which this authority signed."""
    old, signer = _parse(certificate, "certificate"), _parse(authority.certificate, "authority")
    _signed_by(old, signer, "certificate")
    names = _extension(old, x509.SubjectAlternativeName)
    purpose = "server" if ExtendedKeyUsageOID.SERVER_AUTH in _purposes(old) else "client"
    return _issue(authority, old.subject, names, purpose, days)


def check(
    certificate: bytes,
    *,
    authority: bytes,
    purpose: Literal["server", "client"],
    host: str | None = None,
    now: datetime | None = None,
    where: str = "certificate",
) -> Checked:
    """Verify a certificate: its signer, its time, its purpose and, with `host`, its names.  Raises `UsageError`."""
    leaf, now = _parse(certificate, where), now or datetime.now(UTC)
    _signed_by(leaf, _parse(authority, "authority"), where)
    if now > leaf.not_valid_after_utc:
        ended = leaf.not_valid_after_utc.strftime("%Y-%m-%d")
        raise UsageError(f"{where}: expired on {ended}; renew it at the coordinator: fedseal coordinator renew")
    if now < leaf.not_valid_before_utc:
        begins = leaf.not_valid_before_utc.strftime("%Y-%m-%d %H:%M")
        raise UsageError(f"{where}: not valid before {begins} UTC; is this machine's clock right?")
    if _PURPOSES[purpose] not in _purposes(leaf):
        raise UsageError(f"{where}: not a {purpose}'s certificate")
    names = _extension(leaf, x509.SubjectAlternativeName)
    hosts = tuple(str(n.value) for n in names) if names is not None else ()
    if host is not None and host not in hosts:
        raise UsageError(f"{where}: not for host {host!r}; allowed: {', '.join(hosts) or 'none'}")
    attributes = leaf.subject.get_attributes_for_oid
    name = next((str(a.value) for a in attributes(NameOID.COMMON_NAME)), "")
    roles = tuple(str(a.value) for a in attributes(NameOID.ORGANIZATIONAL_UNIT_NAME))
    left = (leaf.not_valid_after_utc - now).days
    return Checked(name, roles, hosts, leaf.not_valid_after_utc, left, leaf.fingerprint(hashes.SHA256()).hex())


def check_key(pair: Pair, where: str = "certificate") -> None:
    """Refuse (`UsageError`) a key that is not the certificate's."""
    try:
        key = serialization.load_pem_private_key(pair.key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UsageError(f"{where}: its key is not a PEM private key") from None
    if key.public_key() != _parse(pair.certificate, where).public_key():
        raise UsageError(f"{where}: certificate and key do not belong together")


def fingerprint(certificate: bytes) -> str:
    """SHA-256, hex, of the first certificate."""
    return _parse(certificate, "certificate").fingerprint(hashes.SHA256()).hex()


def _issue(
    authority: Pair, subject: x509.Name, names: x509.SubjectAlternativeName | None, purpose: str, days: int
) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    chain = _pem(_sign(authority, subject, key.public_key(), names, purpose, days))
    return Pair(chain + authority.certificate if purpose == "server" else chain, _key_pem(key))


def _sign(
    authority: Pair,
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    names: x509.SubjectAlternativeName | None,
    purpose: str,
    days: int,
) -> x509.Certificate:
    signer = _parse(authority.certificate, "authority")
    signing = serialization.load_pem_private_key(authority.key, None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    builder = (
        _builder(subject, signer.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_PURPOSES[purpose]]), critical=False)
        .add_extension(identifier, critical=False)
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    return builder.sign(signing, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general(host: str) -> x509.GeneralName:
    """A name or an address, as it stands in a certificate.  Raises `UsageError`."""
    try:
        return x509.IPAddress(ipaddress.ip_address("" if "%" in host else host))  # a zone is a machine's own
    except ValueError:
        if len(host) > 253 or not _HOST.fullmatch(host):
            allowed = "an IP address, or a name of ASCII's letters, digits and hyphens (xn--… where it has others)"
            raise UsageError(f"host {host[:80]!r}: no certificate can name it; allowed: {allowed}") from None
        return x509.DNSName(host)


def _parse(certificate: bytes, where: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(certificate)
    except ValueError:
        raise UsageError(f"{where}: not a PEM certificate") from None


def _signed_by(leaf: x509.Certificate, signer: x509.Certificate, where: str) -> None:
    try:
        leaf.verify_directly_issued_by(signer)
    except (InvalidSignature, ValueError, TypeError):
        ours = signer.fingerprint(hashes.SHA256()).hex()[:16]
        raise UsageError(
            f"{where}: signed by another authority ({leaf.issuer.rfc4514_string()[:60]}) than {ours}…"
        ) from None


def _extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, ValueError):
        return None


def _purposes(certificate: x509.Certificate) -> Sequence[x509.ObjectIdentifier]:
    usage = _extension(certificate, x509.ExtendedKeyUsage)
    return list(usage) if usage is not None else []


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
