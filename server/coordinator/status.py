"""What the operator sees of a coordinator: its parts, its nodes, its certificate."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from fl_core.errors import FedsealError, UsageError
from server.coordinator.folder import SOON_DAYS, CoordinatorFolder
from server.runtimes.superlink import SuperLink

_RUNNING: Mapping[str, type] = {"health": str, "superlink": str}
_HEALTH: Mapping[str, type] = {"parts": dict, "runs": list, "restarts": dict}
_MOST = 1 << 20


def look(folder: CoordinatorFolder) -> dict[str, Any]:
    """`ok`, `running`, `parts`, `runs`, `nodes` (name, state, connected, fingerprint), `certificate`, `problems`.

    A certificate that ends soon is told among the problems and leaves `ok` as it is.
    """
    problems: list[str] = []
    soon: list[str] = []
    found: dict[str, Any] = {"running": False, "parts": {}, "runs": [], "restarts": {}}
    held = _read(folder.running.read_bytes(), _RUNNING) if folder.running.exists() else None
    health = _health(held["health"]) if held else None
    if held is None or not health:
        other = "" if held is None or health is None else f" (another program answers at {held['health']})"
        problems.append(f"not running{other}; allowed: fedseal coordinator start")
    else:
        found |= {"running": True, "parts": health["parts"], "runs": health["runs"], "restarts": health["restarts"]}
        problems += [f"{part} is {state}" for part, state in health["parts"].items() if state != "running"]
    online: dict[int, bool] = {}
    if held is not None and health:
        try:
            link = SuperLink(held["superlink"], folder.authority_pem, folder.secret.read_bytes())
            online = link.online()
        except FedsealError as error:
            problems.append(str(error))
    try:
        nodes = folder.nodes.all()
        problems += folder.nodes.damaged()
    except UsageError as error:
        nodes = {}
        problems.append(str(error))
    found["nodes"] = [
        {
            "name": n.name,
            "state": n.state,
            "connected": online.get(n.flower_id, False) and n.state == "enabled",
            "fingerprint": n.fingerprint,
        }
        for n in nodes.values()
    ]
    try:
        checked = folder.check()
        found["certificate"] = {"hosts": list(checked.hosts), "days_left": checked.days_left}
        if checked.days_left < SOON_DAYS:
            soon.append(f"the server's certificate ends in {checked.days_left} days: fedseal coordinator renew")
    except FedsealError as error:
        problems.append(str(error))
    return {"ok": not problems, **found, "problems": problems + soon}


def _health(url: str) -> dict[str, Any] | None:
    """What the coordinator says of itself; empty where another program answers, None where nobody does."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:  # noqa: S310  # our own, on loopback
            return _read(reply.read(_MOST), _HEALTH) or {}
    except urllib.error.HTTPError as error:
        return _read(error.read(_MOST), _HEALTH) or {}
    except http.client.HTTPException:
        return {}
    except (OSError, ValueError):
        return None


def _read(data: bytes, fields: Mapping[str, type]) -> dict[str, Any] | None:
    """A JSON object that holds these fields, else None."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    good = isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in fields.items())
    return found if good else None


def show(found: dict[str, Any]) -> None:
    """For a person."""
    console = Console(highlight=False, soft_wrap=True)
    parts = ", ".join(f"{name} {state}" for name, state in found["parts"].items())
    console.print(f"{'running' if found['running'] else 'not running'}  {parts}")
    for run in found["runs"]:
        console.print(f"run {run}")
    show_nodes(found["nodes"])
    for problem in found["problems"]:
        console.print(f"[yellow]{problem}[/yellow]")


def show_nodes(nodes: list[dict[str, Any]]) -> None:
    """A line a node."""
    console = Console(highlight=False, soft_wrap=True)
    if not nodes:
        console.print("no nodes registered; fedseal coordinator register CARD")
    for n in nodes:
        state = n["state"] if n["state"] != "enabled" else "connected" if n["connected"] else "not connected"
        console.print(f"{n['name']:<24} {state:<14} {n['fingerprint'][:16]}…")
