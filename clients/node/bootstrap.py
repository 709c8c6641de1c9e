"""How a node that is being made learns whom to trust: a file from the operator, or the coordinator itself.

What the coordinator tells over the network is believed at first use, as with SSH, unless its fingerprint was given; it
is pinned from then on.  The owner compares the fingerprint with the operator by another way.
"""

from __future__ import annotations

import http.client
import ssl
from pathlib import Path

from fl_core.errors import JobFailed, UsageError
from fl_core.trust.federation import Federation, host_port

PATH = "/fedseal/federation"
SECONDS = 15.0
_MOST = 64 << 10


def federation_of(coordinator: str, *, file: Path | None, fingerprint: str | None) -> Federation:
    """Whom a new node will trust.

    Parameters
    ----------
    coordinator : HOST:PORT where nodes come in.
    file : `federation.json` of the coordinator, where it was handed over.
    fingerprint : SHA-256, hex, of the authority's certificate, or its first 16 digits or more.

    Raises
    ------
    UsageError : not a federation, or another fingerprint. JobFailed : the coordinator does not answer.
    """
    host, port = split(coordinator)
    try:
        data = file.read_bytes() if file is not None else _fetch(host, port, ssl._create_unverified_context())  # noqa: S323
    except OSError as error:
        if file is not None:
            raise UsageError(f"--federation {file}: cannot be read ({error.strerror})") from None
        raise JobFailed(
            f"coordinator {coordinator} does not answer ({error}); start it, or give its --federation FILE"
        ) from None
    found = Federation.decode(data, str(file or coordinator))
    if fingerprint is not None and (len(fingerprint) < 16 or not found.fingerprint.startswith(fingerprint.lower())):
        raise UsageError(
            f"--fingerprint {fingerprint[:64]}: the authority is {found.fingerprint}; allowed: 16 digits or more"
        )
    return found


def verify(coordinator: str, federation: Federation) -> None:
    """Check that the coordinator shows a certificate of that authority for that host.  Raises `UsageError`."""
    host, port = split(coordinator)
    try:
        context = ssl.create_default_context(cadata=federation.authority.decode("ascii"))
    except (ValueError, ssl.SSLError):
        raise UsageError(f"coordinator {coordinator}: its authority is not a PEM certificate") from None
    try:
        _fetch(host, port, context)
    except ssl.SSLCertVerificationError as error:
        raise UsageError(f"coordinator {coordinator}: its certificate does not hold ({error.verify_message})") from None
    except OSError as error:
        raise JobFailed(f"coordinator {coordinator} does not answer ({error})") from None


def split(address: str) -> tuple[str, int]:
    """HOST:PORT in two.  Raises `UsageError`."""
    try:
        host, port = host_port(address)
    except ValueError:
        port = 0
    if port == 0:
        raise UsageError(f"--coordinator {address!r}; allowed: HOST:PORT")
    return host, port


def _fetch(host: str, port: int, context: ssl.SSLContext) -> bytes:
    connection = http.client.HTTPSConnection(host, port, timeout=SECONDS, context=context)
    try:
        connection.request("GET", PATH)
        reply = connection.getresponse()
        if reply.status != 200:
            raise UsageError(f"coordinator {host}:{port}: answered {reply.status}; is this the nodes' port?")
        return reply.read(_MOST)
    except http.client.HTTPException as error:
        raise UsageError(f"coordinator {host}:{port}: not a coordinator ({type(error).__name__})") from None
    finally:
        connection.close()
