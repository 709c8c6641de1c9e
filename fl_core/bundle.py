"""The bundle that a Flower run carries in a deployment: constant, and without code.

Flower ships an app with every run and a stock node unpacks and runs it; the guard would then come from whom it guards
against.  Ours is a zip of one `pyproject.toml`, the same for every run of a version, and is never unpacked: both sides
run what is installed there and refuse any bundle whose digest is not the one that they make here themselves.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from functools import cache

PROTOCOL = 1  # of messages between coordinator and nodes; another one is another bundle, and is refused
_PYPROJECT = f"""\
[project]
name = "fedseal"
version = "{PROTOCOL}"

[tool.flwr.app]
publisher = "fedseal"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "clients.app:app"

[tool.flwr.app.config]
run = ""
"""


@cache
def content() -> bytes:
    """The bundle's bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("pyproject.toml", (1980, 1, 1, 0, 0, 0)), _PYPROJECT)
    return out.getvalue()


@cache
def digest() -> str:
    """SHA-256 of `content`, hex; Flower's name of the bundle."""
    return hashlib.sha256(content()).hexdigest()


def is_installed(data: bytes) -> bool:
    """Whether a shipped bundle is the installed version's, byte for byte."""
    return data == content()
