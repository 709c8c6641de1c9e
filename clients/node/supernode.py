"""Starts Flower's SuperNode for a node: with polls that follow the work, and an account of the connection.

A stock SuperNode sleeps 3 s between two looks for a message, which there is no setting for; here it looks again after
50 ms while something happens and after a second when nothing does.  `connection.json` says how the last call to the
coordinator went: `{"state": connected | unreachable | refused, "since", "last", "detail"}`, times in seconds.

Private names of flwr 1.41: `supernode.start_client_internal.time`, `supernode.fleet_http_client.FleetHttpClient`,
and two constants that must be set before the rest of flwr is imported.
"""

from __future__ import annotations

import argparse
import sys
import time
import types
from pathlib import Path
from typing import Any

import flwr.supercore.constant

flwr.supercore.constant.PULL_INITIAL_BACKOFF = 0.05  # type: ignore[assignment]
flwr.supercore.constant.PULL_BACKOFF_CAP = 0.5  # type: ignore[assignment]

import flwr.supernode.start_client_internal as loop  # noqa: E402
import httpx  # noqa: E402
from flwr.supernode.cli import flower_supernode  # noqa: E402
from flwr.supernode.fleet_http_client import FleetHttpClient  # noqa: E402

from clients.node.connection import Connection  # noqa: E402
from clients.runtime_api import Polling  # noqa: E402
from fl_core.processes import die_with_parent  # noqa: E402

_IDLE = 3.0  # what Flower's loop sleeps when it found no message


def follow_the_work(polling: Polling) -> None:
    """Replace the sleeps of Flower's loop."""

    def sleep(seconds: float) -> None:
        if seconds < _IDLE:  # it waits for the executor's answer
            polling.busy()
        time.sleep(min(seconds, polling.seconds))

    loop.time = types.SimpleNamespace(sleep=sleep)  # type: ignore[assignment]


def tell(connection: Connection) -> None:
    """Note how each call to the coordinator goes."""
    call = FleetHttpClient._unary_unary

    def noted(self: FleetHttpClient, **arguments: Any) -> Any:
        try:
            result = call(self, **arguments)
        except httpx.HTTPStatusError as error:
            connection.note("refused", f"HTTP {error.response.status_code}")
            raise
        except httpx.TransportError as error:
            connection.note("unreachable", f"{type(error).__name__}: {error}")
            raise
        connection.note("connected")
        return result

    FleetHttpClient._unary_unary = noted  # type: ignore[assignment,method-assign]


def main() -> None:
    """`python -m clients.node.supernode --connection FILE -- <arguments of flower-supernode>`."""
    die_with_parent()
    own, flower = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--connection", type=Path, required=True)
    follow_the_work(Polling())
    tell(Connection(parser.parse_args(own).connection))
    sys.argv = ["flower-supernode", *flower]
    flower_supernode()


if __name__ == "__main__":
    main()
