"""The process of one submitted run: `python -m server.coordinator.run_process HOME RUN`, its secrets on stdin.

It is the run's ServerApp: the rounds, the ledger and MLflow are those of every runtime.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from server import environment

environment.prepare()

from fl_core.config import load_job  # noqa: E402
from fl_core.errors import FedsealError  # noqa: E402
from fl_core.home import Home  # noqa: E402
from fl_core.processes import die_with_parent  # noqa: E402
from server.coordinator.submission import FAILED, SUMMARY, Events, load, load_order  # noqa: E402
from server.registry import RunFolder  # noqa: E402
from server.trained import with_model  # noqa: E402
from strategies.coordination import Event  # noqa: E402

if TYPE_CHECKING:
    from server.runtimes.exchange import Access


def main() -> int:
    """Run to the end; what came of it is the last event and the run's folder."""
    die_with_parent()
    home = Home.open(sys.argv[1])
    folder = RunFolder(home.runs / sys.argv[2])
    given = json.load(sys.stdin)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    events = Events(folder.path)

    def tell(event: Event) -> None:
        events.add(event.kind, event.round, event.facts)

    try:
        with folder.held():
            summary = _run(home, folder, given, tell)
    except BaseException as error:
        known = isinstance(error, FedsealError)
        code, exit_code = (error.code, error.exit_code) if isinstance(error, FedsealError) else ("internal", 1)
        if not known:
            logging.exception("run %s failed", folder.path.name)
        text = str(error) if known else f"{type(error).__name__}; the coordinator's log of the run says more"
        events.add(FAILED, 0, {"code": code, "exit_code": exit_code, "error": text})
        return exit_code
    events.add(SUMMARY, 0, summary)
    return 0


def _run(home: Home, folder: RunFolder, given: dict[str, Any], tell: Callable[[Event], None]) -> dict[str, Any]:
    from server import orders
    from server.run import Running
    from server.runtimes.deployment import Link, Task

    table, caller = load(folder.path)
    job, info, resume = with_model(load_job(table), home), folder.info(), bool(given["resume"])
    access = _access(home, given) if job.is_session else None
    link = Link(
        given["address"], given["ca"].encode(), Task(**given["task"]), given["nodes"], access, least=job.min_parties
    )
    order = orders.of_run(folder.path, lambda: load_order(folder.path))
    running = Running(job, home, folder, info, tell, resume=resume, link=link, caller=caller, order=order)
    return running.run(time.time())


def _access(home: Home, given: dict[str, Any]) -> Access:
    from server.coordinator.folder import CoordinatorFolder
    from server.runtimes.exchange import Access

    folder = CoordinatorFolder.open(home)
    registered = folder.nodes.all()
    return Access(
        address=given["exchange"],
        port=folder.addresses().exchange_port,
        secret=folder.exchange_secret(),
        authority=folder.exchange_authority(),
        keys={name: registered[name].key for name in given["nodes"]},
    )


if __name__ == "__main__":
    sys.exit(main())
