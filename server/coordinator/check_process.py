"""The process of one check: `python -m server.coordinator.check_process HOME RUN`; secrets on stdin, JSON on stdout.

The parties say whether they would join the job; nothing is set aside, and nothing of it goes to ledger or MLflow.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from typing import Any

from server import environment

environment.prepare()

from fl_core.config import load_job  # noqa: E402
from fl_core.home import Home  # noqa: E402
from fl_core.job import Job  # noqa: E402
from fl_core.messages import COORDINATOR  # noqa: E402
from fl_core.processes import die_with_parent  # noqa: E402
from fl_core.trust.identity import CardBook, Identity  # noqa: E402
from fl_core.trust.ledger import Ledger  # noqa: E402
from server.dry_run import SAME, disagreements  # noqa: E402
from server.trained import with_model  # noqa: E402
from strategies.ceremony import check  # noqa: E402
from strategies.coordination import Coordination  # noqa: E402
from strategies.dispatch import Dispatcher, Reply  # noqa: E402

ANSWER_SECONDS = 60.0


class _Nowhere:
    """A recorder of nothing: a check has no rounds."""

    def record(self, record: object) -> None:
        """Nothing."""


def main() -> None:
    """Ask, and print what `fedseal check --json` prints."""
    die_with_parent()
    home, given = Home.open(sys.argv[1]), json.load(sys.stdin)
    job = with_model(load_job(given["job"]), home)
    replies, notices = _ask(home, sys.argv[2], job, given)
    parties = [_told(name, replies[name], notices.get(name, "")) for name in given["nodes"]]
    shown = {n: r.packet.statement.body for n, r in replies.items() if r.ok and r.packet is not None}
    trainers = {n: b for n, b in shown.items() if b["schema"]}
    problems = disagreements({what: {n: str(b[what]) for n, b in trainers.items()} for what in SAME})
    ok = not problems and all(p["status"] == "ready" for p in parties)
    found = {"ok": ok, "job": job.name, "digest": job.digest(), "parties": parties}
    print(json.dumps(found | {"problems": problems, "unsafe": job.unsafe}))


def _ask(home: Home, run: str, job: Job, given: dict[str, Any]) -> tuple[dict[str, Reply], dict[str, str]]:
    from server.run import told_to
    from server.runtimes.deployment import DeploymentGrid, Link, Task

    identity = Identity.load_or_create(home.coordinator, COORDINATOR)
    link = Link(given["address"], given["ca"].encode(), Task(**given["task"]), given["nodes"])
    with closing(DeploymentGrid(link)) as grid, Ledger.open(home.ledger, identity) as ledger:
        co = Coordination(
            job=job,
            run=run,
            nodes=grid.nodes,
            identity=identity,
            cards=CardBook(home.coordinator / "cards.json"),
            ledger=ledger,
            workdir=home.runs,
            recorder=_Nowhere(),
            progress=lambda event: None,
            stopped=lambda: False,
            step_timeout=ANSWER_SECONDS,
            own=told_to(job),
            order={name: text.encode() for name, text in given.get("order", {}).items()},
        )
        return check(Dispatcher(grid, co, dry=True), co), grid.notices


def _told(name: str, reply: Reply, notice: str) -> dict[str, Any]:
    """A party's answer in a row of the table; the reason of a refusal stays at its node."""
    status = "ready" if reply.ok else "refused" if reply.exit_code == 3 else "problem"
    return {
        "party": name,
        "status": status,
        "problem": "" if reply.ok else notice or f"{reply.code} (its node says why)",
    }


if __name__ == "__main__":
    main()
