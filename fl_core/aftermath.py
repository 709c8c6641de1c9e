"""What follows from a restored home being older than the world around it, done where it can be, said where it cannot.

A node comes back paused: its budget does not know what was spent after the backup.  A pause lets runs go on that have
begun, and the node may have sent an update of which its restored files know nothing; asked again, it would draw that
round's noise a second time.  So it also loses the secrets of every run that holds a privacy reservation: that run ends
at this node, and its reservation stays until its coordinator closes it.

The rest is for people: a ledger without its newest entries, registers without the newest refusals, witnesses that
co-sign from an older head.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from fl_core.errors import FedsealError
from fl_core.files import write_atomic
from fl_core.home import Home
from fl_core.trust.budget import OWNER_DELTA, Budget

_SECRETS = ("key", "ephemeral")  # without them a party can neither encrypt an update of the run nor read a sum


@dataclasses.dataclass(frozen=True)
class Aftermath:
    """What to know after a restore.

    Attributes
    ----------
    paused : nodes that were paused, each with the runs that end there.
    privacy : `party`, `dataset` and, as decimal texts rounded up, ε at δ = 1e-5: `spent` by the time of the backup,
        `held` with what unfinished runs had set aside.
    warnings : a line each.
    """

    paused: dict[str, list[str]]
    privacy: list[dict[str, str]]
    warnings: list[str]


def pause(node: Path) -> list[str]:
    """Have a node's folder take no new jobs; returns the runs that end here because they hold a reservation."""
    write_atomic(node / "paused", b"")
    budget, folders = node / "budget.db", sorted(p for p in node.glob("runs/*") if p.is_dir())
    try:
        held = Budget(budget).open_runs() if budget.exists() else ()
    except FedsealError:
        held = tuple(folder.name for folder in folders)  # not known which: none goes on
    ended = []
    for folder in folders:
        secrets = [folder / name for name in _SECRETS if (folder / name).exists()]
        if folder.name in held and secrets:
            for secret in secrets:
                secret.unlink()
            ended.append(folder.name)
    return ended


def look(home: Home, when: int, paused: dict[str, list[str]]) -> Aftermath:
    """What the owner, the operator and the other parties must know of a home restored from a backup of `when`."""
    then = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(when))
    privacy, warnings = [], _coordinator(home, then)
    for path in sorted(home.path.glob("parties/*/budget.db")):
        try:
            privacy += _spent(path)
        except FedsealError as error:
            warnings.append(f"party {path.parent.name}: what it spent cannot be read ({error})")
    warnings += [
        f"party {p['party']}, data {p['dataset']!r}: ε spent {p['spent']} by {then} (δ = {OWNER_DELTA:g}),"
        f" {p['held']} with what unfinished runs had set aside"
        for p in privacy
    ]
    warnings += _parties(home, then) + _pauses(paused)
    return Aftermath(paused, privacy, warnings)


def _coordinator(home: Home, then: str) -> list[str]:
    lines = []
    if home.ledger_file.exists():
        lines.append(
            f"ledger: entries made after {then} are missing. Parties that saw a newer checkpoint will refuse this"
            " ledger as a fork, by design: a cut tail is what witnesses catch. Restore the newest ledger there is"
        )
    if (home.coordinator / "coordinator.json").exists():
        lines.append(
            f"coordinator: people revoked, nodes disabled or removed after {then} are let in again; go through"
            " fedseal coordinator people and fedseal coordinator nodes before it is started"
        )
    return lines


def _spent(path: Path) -> list[dict[str, str]]:
    budget, found = Budget(path), []
    for dataset in budget.datasets():
        from fl_core.learning import privacy  # its accountant takes seconds to import

        spent, held = (budget.spent(dataset, OWNER_DELTA, privacy.epsilon, reserved=r) for r in (False, True))
        names = {"party": path.parent.name, "dataset": dataset}
        found.append({**names, "spent": privacy.round_up(spent), "held": privacy.round_up(held)})
    return found


def _parties(home: Home, then: str) -> list[str]:
    lines = []
    if names := _holding(home, "budget.db"):
        lines.append(
            f"privacy of {names}: what was spent after {then} is not in budget.db. Add what the coordinator's ledger"
            " shows: entries of kind update by that party hold its epsilon (fedseal audit show --kind update);"
            " lower the limit by as much"
        )
    if names := _holding(home, "grants.db"):
        lines.append(
            f"grants of {names}: what was used, granted or revoked after {then} is not in grants.db. The coordinator's"
            " ledger shows it: joins name their grant (fedseal audit show); revoke again what was revoked"
        )
    if names := _holding(home, "witness"):
        lines.append(
            f"witness of {names}: remembers the ledger of {then} and co-signs from there on; it would not notice if"
            " what it signed later were cut or rewritten. A checkpoint kept elsewhere shows it: audit verify --since"
        )
    return lines


def _holding(home: Home, name: str) -> str:
    """Names of the parties that have that file."""
    return ", ".join(sorted(path.parent.name for path in home.path.glob(f"parties/*/{name}")))


def _pauses(paused: dict[str, list[str]]) -> list[str]:
    lines = []
    for name, ended in paused.items():
        lost = f"; runs that cannot go on here: {', '.join(ended)}" if ended else ""
        lines.append(
            f"node {name}: paused, no new job runs before its owner has looked{lost}. When the limit is right"
            f" (fedseal node set --max-epsilon): fedseal node resume --name {name}"
        )
    return lines
