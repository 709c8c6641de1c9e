"""The nodes an operator has registered, in `nodes.json` of the coordinator's folder.

The file is what is wanted; the service brings Flower's SuperLink in line with it (`flower_id`), and the filter in front
of the SuperLink lets only enabled nodes through.  A damaged entry keeps out its own node and no other.  A node is its
party's to hold data, and what else the operator registered it as (`roles`).
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from fl_core.errors import JobFailed, UsageError
from fl_core.files import locked, write_atomic
from fl_core.trust.node_card import NodeCard
from fl_core.trust.roles import Role, read_roles

ENABLED, DISABLED = "enabled", "disabled"
ROLES = (Role.DATA_OWNER.value, Role.RECEIVER.value, Role.MODEL_OWNER.value)  # of a node
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


@dataclasses.dataclass(frozen=True)
class Node:
    """One registered node; `flower_id` is Flower's number of it, 0 until the SuperLink knows it, `roles` of `ROLES`."""

    name: str
    fingerprint: str
    card: dict[str, Any]
    state: str = ENABLED
    flower_id: int = 0
    roles: tuple[str, ...] = (Role.DATA_OWNER.value,)

    @property
    def held(self) -> frozenset[Role]:
        """The roles that the registration gives."""
        return read_roles(self.roles)

    @property
    def key(self) -> bytes:
        """The node's Flower key as Flower's header and register carry it.  Raises `UsageError` where it is none."""
        try:
            key = load_pem_public_key(self.card["key"].encode())
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
            raise UsageError(f"node {self.name}: its key is none; allowed: PEM, elliptic curve P-256, P-384 or P-521")
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def header(self) -> str:
        """The same, as the header has it."""
        return base64.b64encode(self.key).decode()


class Nodes:
    """The register; safe for several processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self) -> dict[str, Node]:
        """Every node, by name, but for damaged entries.  Raises `UsageError` where the file is no register."""
        return self._read()[0]

    def damaged(self) -> list[str]:
        """A line about each node that is left out."""
        return [f"{problem}; left out until its card is registered again" for _, problem in self._read()[1].values()]

    def _read(self) -> tuple[dict[str, Node], dict[str, tuple[Any, str]]]:
        """The nodes; damaged entries as they are, each with what is wrong."""
        if not self.path.exists():
            return {}, {}
        try:
            table = json.loads(self.path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            table = None
        if not isinstance(table, dict):
            raise UsageError(f"{self.path}: not a register of nodes; allowed: a JSON object, say that of a backup")
        nodes: dict[str, Node] = {}
        damaged: dict[str, tuple[Any, str]] = {}
        taken: dict[bytes, str] = {}
        for name, held in table.items():
            try:
                node = _node(name, held)
                _check_key(node, taken)
            except UsageError as error:
                damaged[name] = (held, f"{self.path}: {error}")
            else:
                nodes[name], taken[node.key] = node, name
        return nodes, damaged

    def register(self, card: NodeCard, roles: Iterable[str] = (Role.DATA_OWNER.value,)) -> Node:
        """Add a node, or give the one with this card other roles.

        Raises `UsageError` where the key is none, the name or the key is taken by another card, or a role is none of
        `ROLES`.
        """
        given = tuple(sorted(set(roles)))
        wrong = [word for word in given if word not in ROLES]
        if wrong or not given:
            what = f"role {wrong[0]!r:.40}" if wrong else "no role"
            raise UsageError(f"node {card.name}: {what}; allowed: {', '.join(ROLES)}")
        node = Node(card.name, card.fingerprint, card.to_dict(), roles=given)
        with self._changed() as nodes:
            before = nodes.get(card.name)
            if before is not None and before.fingerprint != node.fingerprint:
                raise UsageError(
                    f"node {card.name}: registered with another card ({before.fingerprint[:16]}…);"
                    f" allowed: fedseal coordinator remove {card.name} first"
                )
            _check_key(node, {other.key: name for name, other in nodes.items()})
            nodes[card.name] = node if before is None else dataclasses.replace(before, roles=given)
            return nodes[card.name]

    def set_state(self, name: str, state: str) -> Node:
        """Enable or disable a node."""
        return self._replace(name, state=state)

    def set_flower_id(self, name: str, number: int) -> None:
        """Remember Flower's number of a node."""
        self._replace(name, flower_id=number)

    def remove(self, name: str) -> Node:
        """Forget a node; its card stays pinned, its statements stay on the ledger."""
        with self._changed() as nodes:
            return nodes.pop(self._known(nodes, name))

    def flower_ids(self, names: list[str]) -> dict[str, int]:
        """Flower's number of each of these parties' nodes.  Raises `JobFailed` naming who has none."""
        nodes = self.all()
        for name in names:
            if name not in nodes:
                raise JobFailed(
                    f"party {name}: no node of that name is registered; registered: {', '.join(nodes) or 'none'}"
                )
            if nodes[name].state != ENABLED:
                raise JobFailed(f"party {name}: its node is disabled at the coordinator")
            if not nodes[name].flower_id:
                raise JobFailed(f"party {name}: its node is not known to the SuperLink yet")
        return {name: nodes[name].flower_id for name in names}

    def _replace(self, name: str, **changes: Any) -> Node:
        with self._changed() as nodes:
            name = self._known(nodes, name)
            nodes[name] = dataclasses.replace(nodes[name], **changes)
            return nodes[name]

    @contextmanager
    def _changed(self) -> Iterator[dict[str, Node]]:
        with locked(self.path.with_name(f".{self.path.name}.lock")):
            nodes, damaged = self._read()
            yield nodes
            table = {name: held for name, (held, _) in damaged.items()} | _table(nodes)
            write_atomic(self.path, json.dumps(table, indent=1).encode())

    def _known(self, nodes: Mapping[str, Node], name: str) -> str:
        if name not in nodes:
            raise UsageError(f"node {name}: not registered; registered: {', '.join(nodes) or 'none'}")
        return name


def _node(name: str, held: Any) -> Node:
    """An entry of the file.  Raises `UsageError`."""
    try:
        node = Node(name=name, **held)
        kinds = [type(value) for value in (node.fingerprint, node.card["key"], node.flower_id)]
        node = dataclasses.replace(node, roles=_roles(node.roles))
    except (TypeError, KeyError, ValueError):
        kinds = []
    if kinds != [str, str, int] or node.state not in (ENABLED, DISABLED):
        raise UsageError(f"node {name}: its entry is damaged")
    return node


def _roles(held: Any) -> tuple[str, ...]:
    """The roles of an entry, which a file has as a list.  Raises `ValueError` or `TypeError`."""
    if not isinstance(held, list | tuple) or not held or len(set(held)) < len(held) or not set(held) <= set(ROLES):
        raise ValueError("roles")
    return tuple(held)


def _check_key(node: Node, taken: Mapping[bytes, str]) -> None:
    """Refuse a key that is none, or another node's: Flower takes it once.  Raises `UsageError`."""
    other = taken.get(node.key, node.name)
    if other != node.name:
        raise UsageError(f"node {node.name}: its key is that of node {other}; allowed: a key of its own")


def _table(nodes: Mapping[str, Node]) -> dict[str, Any]:
    return {n.name: {k: v for k, v in dataclasses.asdict(n).items() if k != "name"} for n in nodes.values()}
