"""Starts Flower's SuperLink on two listeners: all of it on loopback for the coordinator, the nodes' part outside.

Private names of flwr 1.41: `superlink.cli.flower_superlink.uvicorn`, which serves the app that it is given.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import signal
import sys
import types
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import uvicorn
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER

from fl_core.processes import die_with_parent
from server.coordinator.filter import NodesOnly
from server.coordinator.nodes import Nodes

KEEP_ALIVE = 75  # seconds; longer than a node waits between two looks


def serve(app: Any, own: argparse.Namespace, *, host: str, port: int, **tls: Any) -> None:
    """Serve `app` on loopback and, filtered, where the nodes come in, until a signal."""
    nodes = NodesOnly(app, Nodes(own.nodes), own.federation, header=FLEET_HTTP_PUBLIC_KEY_HEADER)
    common = {
        "ssl_certfile": tls["ssl_certfile"],
        "ssl_keyfile": tls["ssl_keyfile"],
        "access_log": False,
        "log_config": tls["log_config"],
        "timeout_keep_alive": KEEP_ALIVE,
    }
    inside = uvicorn.Server(uvicorn.Config(app, host=host, port=port, **common))
    outside = uvicorn.Server(uvicorn.Config(nodes, host=own.nodes_host, port=own.nodes_port, lifespan="off", **common))
    asyncio.run(_together(inside, outside))


async def _together(inside: uvicorn.Server, outside: uvicorn.Server) -> None:
    """Run both; the end of one is the end of the other."""
    servers = (inside, outside)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _end, servers)
    for server in servers:
        server.capture_signals = nullcontext  # type: ignore[assignment,method-assign]  # they are both ended here
    tasks = [asyncio.create_task(server.serve()) for server in servers]
    done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    _end(servers)
    await asyncio.gather(*done, *left)


def _end(servers: Sequence[uvicorn.Server]) -> None:
    for server in servers:
        server.should_exit = True


def main() -> None:
    """`python -m server.coordinator.start_superlink --nodes-host … -- <arguments of flower-superlink>`."""
    die_with_parent()
    own, flower = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--nodes-host", required=True)
    parser.add_argument("--nodes-port", required=True, type=int)
    parser.add_argument("--nodes", required=True, type=Path, help="the register of nodes")
    parser.add_argument("--federation", required=True, type=Path)
    given = parser.parse_args(own)
    sys.argv = ["flower-superlink", *flower]

    def run(*, app: Any, host: str, port: int, **rest: Any) -> None:
        serve(app, given, host=host, port=port, **rest)

    superlink: Any = importlib.import_module("flwr.superlink.cli.flower_superlink")  # a function hides the module
    superlink.uvicorn = types.SimpleNamespace(run=run)
    superlink.flower_superlink()


if __name__ == "__main__":
    main()
