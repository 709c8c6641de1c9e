"""What an owner's page is made of: the owner's own folder, and in a local home its own refusals on the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fl_core.errors import FedsealError
from fl_core.home import Home
from fl_core.trust.grant_store import GrantStore, Use
from server.owner_page import Composed, Node, Owner, Refused

if TYPE_CHECKING:
    from clients.node.folder import NodeFolder
    from fl_core.trust.catalog import Listing


def gather(home: Home, name: str, notes: Sequence[str] = ()) -> Owner:
    """Read everything as it is now.  Raises `FedsealError` for a damaged file."""
    folder = home.party(name)
    store = GrantStore(folder / "grants.db") if (folder / "grants.db").exists() else None
    node = _node(home, name)
    return Owner(
        name=name,
        home=str(home.path),
        node=_state(node) if node else None,
        listings=_listings(folder, name),
        accounts=store.accounts() if store else (),
        waiting=[held for held in store.waiting() if held.request.terms.owner == name] if store else (),
        spent=_spent(store.uses() if store else ()),
        composed=_composed(folder, node),
        refusals=_refused_at(node) if node else _refused_on(home, name),
        jobs=_jobs(home, node),
        notes=tuple(notes),
    )


def _node(home: Home, name: str) -> NodeFolder | None:
    from clients.node.folder import NodeFolder

    return NodeFolder(home.party(name)) if (home.party(name) / "node.json").exists() else None


def _state(node: NodeFolder) -> Node:
    from clients.node.connection import is_connected, read
    from fl_core.files import locked

    settings, contact = node.settings(), read(node.connection)
    with locked(node.path / "service.lock", wait=False) as free:
        running = not free
    return Node(
        coordinator=settings.coordinator,
        running=running,
        connected=running and is_connected(contact),
        paused=node.paused,
        last=contact.last if contact else 0.0,
        detail=contact.detail if contact else "",
        consent=settings.consent,
    )


def _listings(folder: Path, name: str) -> tuple[Listing, ...]:
    """What was published; nothing is made where there is nothing."""
    if not (folder / "consent").exists() or not (folder / "identity.key").exists():
        return ()
    from clients.consent.decision import Consent
    from fl_core.trust.identity import Identity

    return Consent(folder, Identity.load_or_create(folder, name)).listings()


def _spent(uses: Sequence[Use]) -> Mapping[str, tuple[int, int]]:
    """Committed and reserved millionths by dataset, as `GrantStore.spent` has them."""
    spent: dict[str, tuple[int, int]] = {}
    for use in uses:
        name = use.dataset.rpartition("/")[2]
        done, held = spent.get(name, (0, 0))
        spent[name] = (done + use.spent, held + (use.asked if use.state == "reserved" else 0))
    return spent


def _composed(folder: Path, node: NodeFolder | None) -> list[Composed]:
    """Each name that is bound at the node, or is in the accountant's file."""
    from clients.policy import EVERY
    from fl_core.trust.budget import OWNER_DELTA, Budget

    budget = Budget(folder / "budget.db") if (folder / "budget.db").exists() else None
    settings = node.settings() if node else None
    sources, limits = (settings.sources, settings.limits) if settings else ({}, {})
    known = set(budget.datasets()) if budget else set()
    found = []
    for name in dict.fromkeys([*sources, *sorted(known)]):
        spent = held = 0.0
        if budget is not None and name in known:
            from fl_core.learning import privacy

            spent = budget.spent(name, OWNER_DELTA, privacy.epsilon)
            held = budget.spent(name, OWNER_DELTA, privacy.epsilon, reserved=True)
        place = sources[name].shown if name in sources else ""
        found.append(Composed(name, place, spent, held, limits.get(name, limits.get(EVERY))))
    return found


def _refused_at(node: NodeFolder) -> list[Refused]:
    from clients.node.activity import Activity

    runs = Activity(node.path / "activity.db").runs(most=1000)
    return [Refused(run.last, run.run, run.problem) for run in runs if run.state == "refused"]


def _refused_on(home: Home, name: str) -> list[Refused]:
    """The owner's signed refusals on the ledger of a local home."""
    from fl_core.trust.ledger import Ledger

    if not home.ledger.exists():
        return []
    with Ledger.open(home.ledger) as ledger:
        entries = [entry for entry in ledger.entries(kind="refusal") if entry.by == name]
    return [Refused(entry.t / 1000, entry.run, _words(entry.body)) for entry in entries]


def _words(body: Mapping[str, object]) -> str:
    topics = body.get("topics")
    told = ", ".join(map(str, topics)) if isinstance(topics, list) else ""
    return f"{body.get('code', '')}{': ' if told else ''}{told}"


def _jobs(home: Home, node: NodeFolder | None) -> dict[str, str]:
    from server.registry import all_runs

    names = {}
    if node is not None:
        from clients.node.activity import Activity

        names = {run.run: run.job for run in Activity(node.path / "activity.db").runs(most=1000)}
    try:
        return names | {info.run: info.name for _, info in all_runs(home)}
    except (FedsealError, OSError, ValueError, TypeError):  # names are for convenience
        return names
