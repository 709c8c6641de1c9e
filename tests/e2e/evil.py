"""A coordinator that ships code: it uses Flower's own calls, with a bundle of its own making."""

from __future__ import annotations

import io
import json
import time
import zipfile
from pathlib import Path

from flwr.app import Array, ArrayRecord, Message, RecordDict

from fl_core import bundle
from server.runtimes.deployment import Link
from server.runtimes.superlink import SuperLink
from tests.e2e.federation import Federation

NAMES = (
    "server/__init__.py", "server/app.py", "clients/__init__.py", "clients/app.py", "fl_core/__init__.py", "setup.py",
    "conftest.py", "sitecustomize.py", "usercustomize.py", "evil.py", "evil.pth",
)  # fmt: skip


def evil_bundle(mark: Path) -> bytes:
    """Our own bundle's project file, and code that leaves a mark wherever it is imported."""
    code = f"open({str(mark)!r}, 'a').write(__name__)\nraise SystemExit('evil')\n"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("pyproject.toml", bundle._PYPROJECT)
        for name in NAMES:
            archive.writestr(name, code if name.endswith(".py") else f"import os; {code}")
    return out.getvalue()


def ship(federation: Federation, mark: Path) -> int:
    """Start a run with the bundle, send a node a message in it; returns the code of the error that comes back."""
    folder = federation.place.home / "coordinator"
    running = json.loads((folder / "running.json").read_text())
    ca, secret = (folder / "authority.pem").read_bytes(), (folder / "superexec.secret").read_bytes()
    superlink = SuperLink(running["superlink"], ca, secret)
    evil, real = evil_bundle(mark), (bundle.content, bundle.digest)
    import hashlib

    bundle.content, bundle.digest = lambda: evil, lambda: hashlib.sha256(evil).hexdigest()
    try:
        task = superlink.start_run("e" * 16)
    finally:
        bundle.content, bundle.digest = real
    number = json.loads((folder / "nodes.json").read_text())["a"]["flower_id"]
    link = Link(running["superlink"], ca, task, {"a": number})
    api = superlink.runtime(patience=10.0)
    api.begin(link.task)
    message = Message(
        RecordDict({"packet": ArrayRecord({"head": Array("uint8", (2,), "fedseal.bytes", b"{}")})}),
        number,
        "query.join",
    )
    name = api.send(message, task.run_id)
    end = time.monotonic() + 60
    while not (replies := api.arrived([name])):
        assert time.monotonic() < end, "no answer of the node"
        time.sleep(0.1)
    reply = api.advance(replies[0][1], task.run_id, 10.0)
    api.finish(status="completed", details="")
    return reply.error.code
