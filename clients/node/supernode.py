"""Starts Flower's SuperNode for a node: with polls that follow the work, and an account of the connection.

A stock SuperNode sleeps 3 s between two looks for a message, which there is no setting for; here it looks again after
50 ms while something happens and after a second when nothing does.  A message whose run ends while it is being fetched
leaves a stock SuperNode with a task that its executor waits for in vain; here that task is ended.  What its executor
had begun to answer would pass for the answer to the next message, whose own then stays here until yet another comes;
here it is dropped.  `connection.json`
says how the last call to the coordinator went: `{"state": connected | unreachable | refused, "since", "last",
"detail"}`, times in seconds.

Private names of flwr 1.41: `time`, `_pull_and_store_message` and `_push_messages` of `supernode.start_client_internal`,
the node state's `create_task`, `finish_task`, `store_message`, `get_messages_legacy` and `delete_messages`,
`supernode.fleet_http_client.FleetHttpClient._unary_unary`, and two constants that must be set before the rest of flwr
is imported.
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
from flwr.common.constant import SubStatus  # noqa: E402
from flwr.supernode.cli import flower_supernode  # noqa: E402
from flwr.supernode.fleet_http_client import FleetHttpClient  # noqa: E402

from clients.node.connection import Connection  # noqa: E402
from clients.runtime_api import Polling  # noqa: E402
from fl_core.processes import die_with_parent  # noqa: E402

PART_SECONDS = 60.0  # on this machine
_IDLE = 3.0  # what Flower's loop sleeps when it found no message


def follow_the_work(polling: Polling) -> None:
    """Replace the sleeps of Flower's loop."""

    def sleep(seconds: float) -> None:
        if seconds < _IDLE:  # it waits for the executor's answer
            polling.busy()
        time.sleep(min(seconds, polling.seconds))

    loop.time = types.SimpleNamespace(sleep=sleep)  # type: ignore[assignment]


def end_lost_tasks() -> None:
    """End the task of a message that did not come, and send no answer but that to the message at hand."""
    pull, push = loop._pull_and_store_message, loop._push_messages
    at_hand: list[str] = []

    def pulled(**arguments: Any) -> int | None:
        watched = _Watched(arguments["state"])
        run = pull(**{**arguments, "state": watched})
        if run is None:
            watched.end()
        at_hand[:] = watched.messages
        return run

    def pushed(**arguments: Any) -> None:
        state, store = arguments["state"], arguments["object_store"]
        push(**{**arguments, "state": _Answers(state, store, tuple(at_hand)), "object_store": _Parts(store)})

    loop._pull_and_store_message = pulled  # type: ignore[assignment]
    loop._push_messages = pushed  # type: ignore[assignment]


class _Watched:
    """The node's state, remembering what one look for a message made in it."""

    def __init__(self, state: Any) -> None:
        self._state = state
        self._tasks: list[int] = []
        self.messages: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def create_task(self, **arguments: Any) -> int | None:
        task: int | None = self._state.create_task(**arguments)
        self._tasks += [task] if task is not None else []
        return task

    def store_message(self, message: Any) -> Any:
        self.messages.append(message.metadata.message_id)
        return self._state.store_message(message)

    def end(self) -> None:
        for task in self._tasks:
            self._state.finish_task(task, sub_status=SubStatus.FAILED, details="its message did not come")
        if self.messages:
            self._state.delete_messages(message_ids=self.messages)


class _Answers:
    """The node's state, without answers to other messages than `messages`."""

    def __init__(self, state: Any, store: Any, messages: tuple[str, ...]) -> None:
        self._state, self._store, self._messages = state, store, messages

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def get_messages_legacy(self, **arguments: Any) -> list[Any]:
        found = self._state.get_messages_legacy(**arguments)
        late = [message for message in found if message.metadata.reply_to_message_id not in self._messages]
        for message in late:
            self._state.delete_messages(message_ids=[message.metadata.message_id])
            self._store.delete(message.metadata.message_id)
        return [message for message in found if message not in late]


class _Parts:
    """The node's objects; a part of an answer that does not come ends the wait for it, not the node."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._since: float | None = None  # a part is waited for

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get(self, name: str) -> bytes | None:
        found: bytes | None = self._store.get(name)
        if found != b"":
            self._since = None
        elif self._since is None:
            self._since = time.monotonic()
        elif time.monotonic() > self._since + PART_SECONDS:
            raise TimeoutError(f"waited {PART_SECONDS:g} s for a part of the executor's answer")
        return found


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
    end_lost_tasks()
    tell(Connection(parser.parse_args(own).connection))
    sys.argv = ["flower-supernode", *flower]
    flower_supernode()


if __name__ == "__main__":
    main()
