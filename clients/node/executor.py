"""A node's executor: it takes tasks from the SuperNode and runs the *installed* ClientApp, imported once.

What Flower ships with a run is compared with the bundle of this version and thrown away; nothing of it is unpacked or
imported.  A node's own settings come from its folder; of the message's context only the run's name is used.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode, SubStatus

from clients.runtime_api import CLIENT_TASK, MessageGone, Polling, RuntimeApi, Task, TaskInput, TaskLost
from fl_core import bundle
from fl_core.errors import BadMessage, FedsealError
from fl_core.processes import die_with_parent

if TYPE_CHECKING:
    from clients.app import Account
    from clients.node.activity import Activity

MESSAGE_SECONDS = 60.0
PARTS_SECONDS = 3600.0  # a large message on a slow line
_log = logging.getLogger("fedseal.executor")
Answer = Callable[[Message, Context], Message]


class Executor:
    """Takes one task after the other.

    Parameters
    ----------
    api : the SuperNode's Runtime API.
    answer : the ClientApp.
    """

    def __init__(self, api: RuntimeApi, answer: Answer) -> None:
        self._api, self._answer = api, answer

    def serve(self) -> None:
        """Work until the process is ended."""
        polling = Polling()
        while True:
            try:
                task = self._api.acquire(CLIENT_TASK)
                if task is None:
                    polling.sleep()
                    continue
                polling.busy()
                self._work(task)
            except (httpx.HTTPError, TaskLost, MessageGone) as error:  # the SuperNode answers for a task that is lost
                _log.warning("a task is lost (%s: %s)", type(error).__name__, error)
                time.sleep(1.0)

    def _work(self, task: Task) -> None:
        given = self._api.begin(task)
        with self._api.beating():
            message = self._message(given)
            reply = self._reply(message, given)
            self._api.send(reply, given.run_id)
            self._api.finish(status=SubStatus.COMPLETED, details="", context=given.context)

    def _message(self, given: TaskInput) -> Message:
        """The task's message; a task is there before its message."""
        end = time.monotonic() + MESSAGE_SECONDS
        while not (arrived := self._api.arrived()):
            if time.monotonic() > end:
                raise httpx.ReadTimeout(f"waited {MESSAGE_SECONDS:g} s for a task's message")
            time.sleep(0.02)
        _, parcel = arrived[0]
        while (message := self._api.advance(parcel, given.run_id, 10.0)) is None:
            if time.monotonic() - parcel.began > PARTS_SECONDS:
                raise MessageGone
        return message

    def _reply(self, message: Message, given: TaskInput) -> Message:
        """The ClientApp's answer; a failure outside it travels as a class name only, and its text stays here."""
        if not bundle.is_installed(given.bundle):
            _log.error("run %s: its bundle is not the one of this version; nothing of it is run", given.run_id)
            return Message(Error(ErrorCode.INVALID_FAB, "another bundle than this node's version"), reply_to=message)
        try:
            return self._answer(message, given.context)
        except BaseException as error:  # not even SystemExit may end the node
            _log.exception("the ClientApp failed")
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, type(error).__name__), reply_to=message)


def main() -> None:
    """`python -m clients.node.executor --node FOLDER --runtime HOST:PORT --secret FILE`."""
    die_with_parent()
    parser = argparse.ArgumentParser(description=main.__doc__)
    for name in ("--node", "--runtime", "--secret"):
        parser.add_argument(name, required=True)
    given = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel("WARNING")
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    import torch

    from clients.app import app, at_node, last_account
    from clients.node.activity import Activity
    from clients.node.folder import NodeFolder

    torch.set_num_threads(1)
    node = NodeFolder(Path(given.node))
    activity = Activity(node.path / "activity.db")
    at_node(node.policy, node.line())

    def answer(message: Message, context: Context) -> Message:
        context.node_config = dict(node.run_config(run_name(context)))
        try:
            return app(message, context)
        finally:
            if (account := last_account()) is not None:
                note(activity, account)

    api = RuntimeApi(given.runtime, ca=None, secret=Path(given.secret).read_bytes(), patience=2.0)
    _log.info("ready")
    Executor(api, answer).serve()


def note(activity: Activity, account: Account) -> None:
    """Tell the owner of an answer; the answer goes out all the same where that fails."""
    try:
        activity.note(account)
    except (FedsealError, OSError) as error:  # a damaged file, a full disk
        _log.warning("run %s: an answer is not in the node's activity (%s)", account.run, error)


def run_name(context: Context) -> str:
    """The run that a message is for, before the signed request confirms it; it names a folder, so it must be hex."""
    run = str(context.run_config.get("run", ""))
    if not re.fullmatch("[0-9a-f]{16}", run):
        raise BadMessage(f"a run named {run[:40]!r}; allowed: 16 hex digits")
    return run


if __name__ == "__main__":
    main()
