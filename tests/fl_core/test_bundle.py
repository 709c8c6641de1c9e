"""The bundle: what is shipped is compared byte for byte, so every machine must make the same bytes, without code."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import subprocess
import sys
import tomllib
import zipfile
import zlib

import pytest
from flwr.common.config import get_fused_config_from_fab
from flwr.supercore.run import Run

from fl_core import bundle


def stored_zip(name: bytes, data: bytes) -> bytes:
    """A zip of one stored file of 1980-01-01, laid out as PKWARE's APPNOTE 4.3 says."""
    common = struct.pack("<HHHHIIIHH", 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), 0)
    local = b"PK\x03\x04" + struct.pack("<H", 20) + common + name + data
    unix, mode = 3, 0o600 << 16
    entry = b"PK\x01\x02" + struct.pack("<BBH", 20, unix, 20) + common + struct.pack("<HHHII", 0, 0, 0, mode, 0) + name
    return local + entry + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local), 0)


def test_every_changed_byte_of_a_shipped_bundle_is_seen():
    ours = bundle.content()
    assert bundle.is_installed(bytes(ours))
    for at in range(len(ours)):
        assert not bundle.is_installed(ours[:at] + bytes([ours[at] ^ 1]) + ours[at + 1 :])


@pytest.mark.parametrize("change", [lambda b: b"", lambda b: b[:-1], lambda b: b + b"\0", lambda b: b"#!/x\n" + b])
def test_a_cut_or_extended_bundle_is_seen(change):
    assert not bundle.is_installed(change(bundle.content()))


def test_a_bundle_with_code_beside_the_settings_is_seen():
    out = io.BytesIO(bundle.content())
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("server/app.py", "app = None")
    assert not bundle.is_installed(out.getvalue())


def test_the_bundle_holds_settings_and_no_code():
    with zipfile.ZipFile(io.BytesIO(bundle.content())) as archive:
        assert archive.namelist() == ["pyproject.toml"]
        table = tomllib.loads(archive.read("pyproject.toml").decode())
    assert table["tool"]["flwr"]["app"]["components"] == {"serverapp": "server.app:app", "clientapp": "clients.app:app"}


def test_no_version_of_zipfile_changes_the_bytes():
    """Nodes on another Python must make the same bundle, or they refuse each other's."""
    with zipfile.ZipFile(io.BytesIO(bundle.content())) as archive:
        settings = archive.read("pyproject.toml")
    assert bundle.content() == stored_zip(b"pyproject.toml", settings)


def test_time_zone_and_hash_seed_do_not_change_the_bytes():
    code = "from fl_core import bundle; print(bundle.digest())"
    env = {**os.environ, "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "999999999"}
    other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == hashlib.sha256(bundle.content()).hexdigest()


def test_flower_reads_the_run_from_the_bundle_as_it_is_overridden():
    run = Run.create_empty(1)
    assert get_fused_config_from_fab(bundle.content(), run) == {"run": ""}
    run.override_config = {"run": "0123456789abcdef"}
    assert get_fused_config_from_fab(bundle.content(), run) == {"run": "0123456789abcdef"}
