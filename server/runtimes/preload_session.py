"""What the fork server imports once for jobs whose parties talk to each other: nothing of torch."""

from __future__ import annotations

from server.runtimes.imports import preload

MODULES = (
    "flwr.clientapp",
    "flwr.common.serde",
    "clients.app",
    "clients.session",
    "clients.psi",
    "clients.vertical",
    "clients.prediction",
    "server.runtimes.wire",
    "pyarrow.csv",
    "pyarrow.compute",
)

preload(MODULES)
