"""`GET /health` on loopback, plain HTTP, for a supervisor or a load balancer beside the coordinator: 200 or 503."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from fl_core.errors import JobFailed, UsageError

if TYPE_CHECKING:
    from server.coordinator.service import Coordinator


def look(coordinator: Coordinator) -> dict[str, Any]:
    """How the parts are; `ok` when all run."""
    parts = {child.name: "running" if child.alive else "down" for child in coordinator.service.children}
    try:
        nodes: int | None = len(coordinator.folder.nodes.all())
    except UsageError:  # the register is damaged; `status` says how
        nodes = None
    return {
        "ok": all(state == "running" for state in parts.values()) and nodes is not None,
        "parts": parts,
        "runs": coordinator.runs.active,
        "nodes": nodes,
        "restarts": {child.name: child.starts - 1 for child in coordinator.service.children},
    }


@contextmanager
def open_health(coordinator: Coordinator) -> Iterator[str]:
    """Serve for as long as the block lasts; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 5.0

        def do_GET(self) -> None:
            """Answer."""
            found = look(coordinator) if self.path == "/health" else {}
            body = json.dumps(found).encode()
            self.send_response(404 if not found else 200 if found["ok"] else 503)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """A look at the health is no news."""

    port = coordinator.folder.addresses().health_port
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise JobFailed(f"health: 127.0.0.1:{port} cannot be listened on ({error.strerror})") from None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/health"
    finally:
        server.shutdown()
        server.server_close()
