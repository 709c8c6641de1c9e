"""Steps for tests of the grid.  A worker that is given an `EchoNode`, or an actor its `EchoPlace`, imports this file and
with it gets the steps."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

import clients.app
from server.runtimes.actor import Place
from server.runtimes.worker import Node

_handled = 0


@dataclass(frozen=True)
class EchoNode(Node):
    """A node of tests."""


@dataclass(frozen=True)
class EchoPlace(Place):
    """The same for an actor of the simulation runtime."""


def question(*, size: int = 0, back: int = 0, seconds: float = 0.0) -> RecordDict:
    """A message of `size` bytes that is answered after `seconds` with `back` bytes."""
    return RecordDict({"ask": ConfigRecord({"back": back, "seconds": seconds}), "data": _block(size)})


def _block(size: int) -> ArrayRecord:
    return ArrayRecord({"bytes": Array("uint8", (size,), "fedseal.bytes", bytes(size))})


@clients.app.app.query("echo")
def echo(message: Message, context: Context) -> Message:
    """Say who answers, as the how manieth message of its process."""
    global _handled
    _handled += 1
    began = time.time()
    ask = message.content.config_records["ask"]
    time.sleep(float(str(ask["seconds"])))
    got = len(message.content.array_records["data"]["bytes"].data)
    said = ConfigRecord({"node": context.node_id, "pid": os.getpid(), "number": _handled, "got": got})
    said["began"], said["ended"] = began, time.time()
    return Message(RecordDict({"said": said, "data": _block(int(str(ask["back"])))}), reply_to=message)


@clients.app.app.query("exit")
def leave(message: Message, context: Context) -> Message:
    """End the process as a crash would."""
    os._exit(9)
