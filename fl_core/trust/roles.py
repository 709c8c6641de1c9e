"""Roles, and exactly what each may do: one table, asked at every door.

A role is a right to knock, never a consent: whoever may submit jobs still needs each owner's grant
(`fl_core.trust.grants`). A person or a party may have several roles and may then do what any of them may. What is in
no row of `ALLOWED` is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType

from fl_core.errors import BadMessage, RefusedError

ENGINEER = "engineer"  # on certificates and in commands, the other word for a model owner


class Role(StrEnum):
    """Who somebody is in a federation."""

    DATA_OWNER = "data-owner"
    MODEL_OWNER = "model-owner"
    RECEIVER = "receiver"
    AUDITOR = "auditor"
    OPERATOR = "operator"


class Action(StrEnum):
    """What is asked for at a door; the value is how it is said to people."""

    SUBMIT_JOB = "submit or check a job"
    STOP_OWN_RUN = "stop a run of one's own"
    STOP_ANY_RUN = "stop anybody's run"
    SEE_RUNS = "see runs, their progress and logs"
    REQUEST_GRANT = "ask for a grant"
    PUBLISH_DATA = "publish and withdraw data"
    DECIDE_GRANT = "approve, deny and revoke grants"
    CONTRIBUTE_DATA = "take part in a job with data"
    RECEIVE_RESULT = "receive a result"
    SERVE_PREDICTIONS = "serve predictions"
    ASK_PREDICTIONS = "ask for predictions"
    SEE_CATALOG = "see the catalog"
    READ_LEDGER = "read the ledger"
    EXPORT_PACK = "export an audit pack"
    WITNESS = "co-sign checkpoints"
    ADMIT = "let nodes and people in and keep them out"
    REVOKE_KEY = "revoke somebody else's key"


ALLOWED: Mapping[Role, frozenset[Action]] = MappingProxyType({
    Role.DATA_OWNER: frozenset({
        Action.PUBLISH_DATA, Action.DECIDE_GRANT, Action.CONTRIBUTE_DATA, Action.RECEIVE_RESULT,
        Action.ASK_PREDICTIONS, Action.SEE_CATALOG, Action.READ_LEDGER, Action.WITNESS,
    }),
    Role.MODEL_OWNER: frozenset({
        Action.SUBMIT_JOB, Action.STOP_OWN_RUN, Action.SEE_RUNS, Action.REQUEST_GRANT, Action.RECEIVE_RESULT,
        Action.SERVE_PREDICTIONS, Action.SEE_CATALOG, Action.READ_LEDGER, Action.WITNESS,
    }),
    Role.RECEIVER: frozenset({
        Action.RECEIVE_RESULT, Action.ASK_PREDICTIONS, Action.SEE_CATALOG, Action.READ_LEDGER, Action.WITNESS,
    }),
    Role.AUDITOR: frozenset({
        Action.SEE_RUNS, Action.SEE_CATALOG, Action.READ_LEDGER, Action.EXPORT_PACK, Action.WITNESS,
    }),
    Role.OPERATOR: frozenset({
        Action.STOP_ANY_RUN, Action.SEE_RUNS, Action.SEE_CATALOG, Action.READ_LEDGER, Action.ADMIT, Action.REVOKE_KEY,
    }),
})  # fmt: skip


def read_roles(texts: Iterable[str]) -> frozenset[Role]:
    """Return the roles that untrusted `texts` name; raises BadMessage for one that is none, and for none at all."""
    found = set()
    for text in texts:
        if not isinstance(text, str) or text not in {role.value for role in Role}:
            raise BadMessage(f"role {text!r:.40}; allowed: {', '.join(Role)}")
        found.add(Role(text))
    if not found:
        raise BadMessage(f"no role; allowed: {', '.join(Role)}")
    return frozenset(found)


def held(words: Iterable[str]) -> frozenset[Role]:
    """Return the roles that the words of a certificate or a register give: `engineer` is a model owner.

    What is no role gives none, so nothing is allowed for it.
    """
    known = {role.value: role for role in Role} | {ENGINEER: Role.MODEL_OWNER}
    return frozenset(known[word] for word in words if word in known)


def may(roles: Collection[Role], action: Action) -> bool:
    """Whether somebody with these roles may do this."""
    return any(action in ALLOWED[role] for role in roles)


def require(name: str, roles: Collection[Role], *actions: Action) -> None:
    """Raise RefusedError, in one line that names who may, unless `name` with these roles may do one of these."""
    if not any(may(roles, action) for action in actions):
        has = ", ".join(role for role in Role if role in roles) or "no role"
        wanted = " or ".join(role for role in Role if ALLOWED[role] & set(actions))
        raise RefusedError(f"{name} ({has}) may not {' or '.join(actions)}; allowed: {wanted}")


def table() -> str:
    """Return the table as markdown: an action a row, a role a column."""
    rows = [["may", *(role.replace("-", " ") for role in Role)], ["---", *("---" for _ in Role)]]
    rows += [[action.value, *("✓" if action in ALLOWED[role] else "" for role in Role)] for action in Action]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
