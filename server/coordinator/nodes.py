"""The nodes an operator has registered, in `nodes.json` of the coordinator's folder.

The file is what is wanted; the service brings Flower's SuperLink in line with it (`flower_id`), and the filter in front
of the SuperLink lets only enabled nodes through.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from fl_core.errors import JobFailed, UsageError
from fl_core.files import locked, write_atomic
from fl_core.trust.node_card import NodeCard

ENABLED, DISABLED = "enabled", "disabled"


@dataclasses.dataclass(frozen=True)
class Node:
    """One registered node; `flower_id` is Flower's number of it, 0 until the SuperLink knows it."""

    name: str
    fingerprint: str
    card: dict[str, Any]
    state: str = ENABLED
    flower_id: int = 0

    @property
    def key(self) -> bytes:
        """The node's Flower key as Flower's header and register carry it."""
        key = load_pem_public_key(self.card["key"].encode())
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
        """Every node, by name."""
        if not self.path.exists():
            return {}
        table = json.loads(self.path.read_text(encoding="utf-8"))
        return {name: Node(name=name, **held) for name, held in table.items()}

    def register(self, card: NodeCard) -> Node:
        """Add a node.  Raises `UsageError` where the name is taken by another card."""
        node = Node(card.name, card.fingerprint, card.to_dict())
        with self._changed() as nodes:
            before = nodes.get(card.name)
            if before is not None and before.fingerprint != node.fingerprint:
                raise UsageError(
                    f"node {card.name}: registered with another card ({before.fingerprint[:16]}…);"
                    f" allowed: fedseal coordinator remove {card.name} first"
                )
            nodes[card.name] = before or node
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
            nodes = self.all()
            yield nodes
            write_atomic(self.path, json.dumps(_table(nodes), indent=1).encode())

    def _known(self, nodes: Mapping[str, Node], name: str) -> str:
        if name not in nodes:
            raise UsageError(f"node {name}: not registered; registered: {', '.join(nodes) or 'none'}")
        return name


def _table(nodes: Mapping[str, Node]) -> dict[str, Any]:
    return {n.name: {k: v for k, v in dataclasses.asdict(n).items() if k != "name"} for n in nodes.values()}
