"""What an owner sees of a node: connection, data, privacy left, jobs now and before."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from rich.console import Console

from clients.node.activity import Activity
from clients.node.connection import is_connected, read
from clients.node.folder import NodeFolder, Settings
from clients.policy import EVERY
from fl_core.files import locked
from fl_core.text import printable
from fl_core.trust.budget import OWNER_DELTA, Budget


def look(folder: NodeFolder) -> dict[str, Any]:
    """The facts, JSON-able; a URL's password is left out."""
    settings = folder.settings()
    contact = read(folder.connection)
    with locked(folder.path / "service.lock", wait=False) as free:
        running = not free
    runs = Activity(folder.path / "activity.db").runs()
    return {
        "name": folder.name,
        "coordinator": settings.coordinator,
        "running": running,
        "connected": running and is_connected(contact),
        "contact": dataclasses.asdict(contact) if contact else None,
        "paused": folder.paused,
        "kinds": list(settings.kinds),
        "refuse_unsafe": settings.refuse_unsafe,
        "consent": settings.consent,
        "data": _data(folder, settings),
        "runs": [dataclasses.asdict(run) for run in runs],
    }


def _data(folder: NodeFolder, settings: Settings) -> list[dict[str, Any]]:
    """Each name that is bound or has spent privacy: where, rows of the newest job, ε spent, set aside, left."""
    path = folder.path / "budget.db"
    budget = Budget(path) if path.exists() else None
    spent = budget.datasets() if budget else []
    found = []
    for name in dict.fromkeys([*settings.sources, *spent]):
        source, limit = settings.sources.get(name), settings.limits.get(name, settings.limits.get(EVERY))
        told: dict[str, Any] = {"name": name, "place": source.shown if source else None}
        told |= {"max_epsilon": limit, "rows": None, "epsilon_spent": 0.0, "epsilon_left": limit}
        if budget is not None and name in spent:
            from fl_core.learning import privacy

            told["rows"] = budget.rows(name)
            told["epsilon_spent"] = budget.spent(name, OWNER_DELTA, privacy.epsilon)
            held = budget.spent(name, OWNER_DELTA, privacy.epsilon, reserved=True)
            told["epsilon_left"] = None if limit is None else max(0.0, limit - held)
        found.append(told)
    return found


def show(found: dict[str, Any]) -> None:
    """For a person."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)

    def line(text: str) -> None:
        console.print(printable(text))

    state = "connected to" if found["connected"] else "not connected to" if found["running"] else "not running; dials"
    paused = ", paused: takes no new jobs" if found["paused"] else ""
    line(f"node {found['name']}: {state} {found['coordinator']}{paused}")
    if found["contact"] and not found["connected"]:
        last = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["contact"]["last"]))
        line(f"  last call {last}: {found['contact']['state']} {found['contact']['detail']}")
    who = "by a grant for each use" if found["consent"] == "ask" else "everyone whom the coordinator admits"
    line(f"  consent {found['consent']}: {who}")
    for data in found["data"]:
        rows = f", {data['rows']} training rows" if data["rows"] else ""
        limit = (
            "no limit" if data["max_epsilon"] is None else f"{data['epsilon_left']:.2f} of {data['max_epsilon']:g} left"
        )
        place = data["place"] or "not bound"
        line(f"  data {data['name']}: {place}{rows}; ε spent {data['epsilon_spent']:.2f}, {limit}")
    for run in found["runs"][:20]:
        when = time.strftime("%m-%d %H:%M", time.localtime(run["last"]))
        problem = f"  {run['problem']}" if run["problem"] else ""
        job = run["job"] or run["run"]
        line(f"  {when}  {run['state']:<8} {job}  round {run['round']}, {run['messages']} messages{problem}")
