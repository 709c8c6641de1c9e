"""What faces the nodes: of Flower's one port, only the calls that a registered, enabled node makes.

Flower offers registration, control and the runtime beside the nodes' calls and guards only the latter.  Behind this
filter everything else is not there.  A call must name a registered node's key (which the SuperLink then has proved by a
signature), and a body is bounded before it is read.  `/fedseal/federation` tells everybody what is public anyway: the
authority's certificate and the coordinator's card.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from fl_core.errors import UsageError
from server.coordinator.nodes import ENABLED, Nodes

FLEET = re.compile("/v1/fleet/[a-z-]+")
CLOSED = ("/v1/fleet/register-node", "/v1/fleet/unregister-node")
FEDERATION = "/fedseal/federation"
MAX_BODY = 24 << 20  # Flower sends arrays in chunks of 20 MiB

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class NodesOnly:
    """The ASGI app in front of the SuperLink's.

    Parameters
    ----------
    app : the SuperLink.
    nodes : the register of nodes, read again when it changes.
    federation : JSON for whoever makes a node.
    header : Flower's name of the header with a node's key.
    """

    def __init__(self, app: AsgiApp, nodes: Nodes, federation: Path, *, header: str) -> None:
        self._app, self._nodes, self._federation, self._header = app, nodes, federation, header.lower().encode()
        self._read = -1
        self._keys: frozenset[str] = frozenset()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a call through or answer it."""
        if scope["type"] != "http":
            return  # no websockets; the lifespan belongs to the other listener
        if scope["path"] == FEDERATION and scope["method"] == "GET":
            await _answer(send, 200, self._federation.read_bytes(), b"application/json")
            return
        refused = self._refusal(scope)
        if refused:
            await _answer(send, *refused)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, bytes] | None:
        path, headers = scope["path"], dict(scope["headers"])
        if scope["method"] != "POST" or not FLEET.fullmatch(path) or path in CLOSED:
            return 404, b"not found"
        if len(headers) < len(scope["headers"]):  # Flower might read another one than is read here
            return 400, b"a header twice"
        if headers.get(self._header, b"").decode("latin-1") not in self._enabled():
            return 401, b"not a registered node"
        length = headers.get(b"content-length", b"")
        if not length.isdigit():
            return 411, b"a body without its length"
        if int(length) > MAX_BODY:
            return 413, b"too large"
        return None

    def _enabled(self) -> frozenset[str]:
        try:
            changed = self._nodes.path.stat().st_mtime_ns
        except FileNotFoundError:
            return frozenset()
        if changed != self._read:
            self._keys, self._read = self._known(), changed
        return self._keys

    def _known(self) -> frozenset[str]:
        try:
            return frozenset(n.header for n in self._nodes.all().values() if n.state == ENABLED)
        except UsageError:  # the service tells the operator; until then nobody comes in
            return frozenset()


async def _answer(send: Send, status: int, body: bytes, kind: bytes = b"text/plain") -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
