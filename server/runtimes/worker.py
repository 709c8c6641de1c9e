"""A worker process of the local runtime: it serves the ClientApp for one party or several, one message at a time.

A frame in is a node id (8 bytes) and a serialised Flower message; a frame out is the serialised reply, followed by the
party's own account of its last failure.  That text goes to the person at this machine, not into the reply.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection

NODE = struct.Struct(">Q")


@dataclass(frozen=True)
class Node:
    """One party as the local runtime knows it: `config` is its Flower node configuration."""

    node_id: int
    party: str
    config: dict[str, str]


def serve(conn: Connection, nodes: list[Node], run_id: int, log: str) -> None:
    """Answer messages until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run's process decides when to end
    log_to(log)
    from flwr.app import Context, RecordDict
    from flwr.common.serde import context_from_proto, context_to_proto
    from flwr.proto.message_pb2 import Context as ProtoContext
    from flwr.supercore.task_identity import TaskIdentity

    from clients.app import app, last_failure
    from server.runtimes.wire import from_bytes, to_bytes

    contexts = {
        n.node_id: Context(
            run_id=run_id, node_id=n.node_id, node_config=dict(n.config), state=RecordDict(), run_config={}
        )
        for n in nodes
    }
    while True:
        try:
            frame = conn.recv_bytes()
        except EOFError:
            return
        (node,) = NODE.unpack_from(frame)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, node, 1
        message = from_bytes(frame[NODE.size :])
        del frame
        reply = to_bytes(app(message, contexts[node]))
        state = context_to_proto(contexts[node]).SerializeToString()
        contexts[node] = context_from_proto(ProtoContext.FromString(state))
        try:
            conn.send_bytes(reply)
            conn.send_bytes(last_failure().encode())
        except OSError:  # the run's process is gone, and with it whoever would read a report
            return


def log_to(path: str) -> None:
    """Send what this process prints to the end of a file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.flush()
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
