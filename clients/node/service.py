"""A node as one foreground process: Flower's SuperNode, which dials out, and the executor that does the work.

Both are started again when they die.  A SuperNode that was killed is refused for about a minute, until the coordinator
has noticed; that is waited out.
"""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from clients.node.connection import Contact, is_connected, read
from clients.node.folder import NodeFolder
from fl_core.errors import JobFailed
from fl_core.files import locked
from fl_core.processes import Child, Service, free_port, options
from fl_core.text import printable

TICK = 0.5
_EXIT = re.compile(r"Exit Code: (\d+)\s*\n(.*)")
Say = Callable[[str], None]


class NodeService:
    """The service; `say` takes a line for the owner."""

    def __init__(self, folder: NodeFolder, *, say: Say) -> None:
        self.folder = folder
        self._say: Say = lambda line: say(printable(line))  # a log's last words may be another's
        self._settings = folder.settings()
        self._port = free_port()
        self._stopping = False
        self._told = ""
        quiet = {"FLWR_HOME": str(folder.path / "flwr")}
        self.service = Service(
            [
                Child("supernode", self._supernode, folder.logs / "supernode.log", quiet),
                Child("executor", self._executor, folder.logs / "executor.log", quiet),
            ],
            self._died,
        )

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        with ExitStack() as stack:
            if not stack.enter_context(locked(self.folder.path / "service.lock", wait=False)):
                raise JobFailed(f"{self.folder.path}: this node runs already")
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._stop)
            self.folder.connection.unlink(missing_ok=True)
            stack.callback(self.service.stop)
            self.service.start()
            self._say(f"node {self.folder.name}: dialling {self._settings.coordinator}")
            while not self._stopping:
                time.sleep(TICK)
                self.service.watch()
                self._tell(read(self.folder.connection))
            self._say("stopping")

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _tell(self, contact: Contact | None) -> None:
        """Say how the connection is whenever that changes."""
        if contact is None:
            return
        state = contact.state
        if state != self._told:
            words = {
                "connected": "connected; waiting for jobs",
                "refused": f"refused by the coordinator ({contact.detail}): is this node registered and enabled there?",
                "unreachable": f"the coordinator does not answer ({contact.detail}); trying on",
            }
            self._say(words.get(state, state))
            self._told = state

    def _died(self, child: Child, code: int) -> None:
        said = _EXIT.findall(child.last_words())
        why = f"exit code {code}"
        if child.name == "supernode" and said:
            why = f"Flower's code {said[-1][0]}: {said[-1][1].strip()[:160]}"
        if (
            child.name == "supernode"
            and is_connected(read(self.folder.connection)) is False
            and self._told == "refused"
        ):
            why += "; a node that was killed is refused for about a minute"
        self._say(f"{child.name} ended ({why}); again in {child.pause:g} s")

    def _supernode(self) -> list[str]:
        folder, own = self.folder, {"--connection": self.folder.connection}
        flower = {
            "--superlink": self._settings.coordinator,
            "--root-certificates": folder.authority,
            "--auth-supernode-private-key": folder.flower_key,
            "--isolation": "process",
            "--host": "127.0.0.1",
            "--port": self._port,
            "--superexec-auth-secret-file": folder.secret,
        }
        return [sys.executable, "-m", "clients.node.supernode", *options(own), "--", *options(flower)]

    def _executor(self) -> list[str]:
        own = {
            "--node": self.folder.path,
            "--runtime": f"127.0.0.1:{self._port}",
            "--secret": self.folder.secret,
        }
        return [sys.executable, "-m", "clients.node.executor", *options(own)]
