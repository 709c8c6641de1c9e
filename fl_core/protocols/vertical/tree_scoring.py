"""Scores of rows by boosted trees whose splits lie at several parties, in the way of the training.

Level by level the active party asks each passive party on which sides rows go, for the nodes that this party splits.

Who learns what.  Active party: for each of its rows the path through every tree.  Passive party: which rows come to the
nodes that it splits.  Without a dealer, in the open: only where the active party may know the paths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.errors import BadFrame
from fl_core.learning.boosting import Codes, Floats
from fl_core.learning.tree_parts import OWN, ActiveTrees, PassiveTrees
from fl_core.protocols.vertical.histograms import packed_size
from fl_core.protocols.vertical.tree_messages import recv_sides, send_sides

_VISITS = "rows at nodes"
_BLOCK = 1 << 16
_Nodes = list[tuple[int, int]]


def score_active(channel: Channel, passives: Sequence[str], trees: ActiveTrees, codes: Codes) -> Floats:
    """The active party's part.

    Parameters
    ----------
    passives : in the order of the training. codes : (n, d) of the rows, which all parties have in one order.

    Returns
    -------
    (n, outputs) scores, as `joint_scores` gives them.

    Raises
    ------
    BadFrame : sides of another number.
    """
    scores = np.tile(trees.base, (len(codes), 1))
    for start in range(0, len(codes), _BLOCK):
        block = codes[start : start + _BLOCK]
        at = np.zeros((trees.trees, len(block)), dtype=np.int64)
        for level in range(trees.depth):
            at = _step_down(channel, passives, trees, block, at, level)
        leaves = np.take_along_axis(trees.leaves, at - (2**trees.depth - 1), axis=1)
        for output in range(trees.outputs):
            scores[start : start + _BLOCK, output] += leaves[output :: trees.outputs].sum(axis=0)
    return scores


def score_passive(channel: Channel, active: str, part: PassiveTrees, codes: Codes) -> None:
    """A passive party's part, with its own codes of the same rows. BadFrame for row sets that do not fit."""
    for start in range(0, len(codes), _BLOCK):
        block = codes[start : start + _BLOCK]
        for level in range(part.depth):
            nodes = _nodes(part.feature >= 0, level)
            if nodes:
                visits = _recv_visits(channel, active, len(nodes), len(block))
                cuts = [(part.feature[node], part.cut[node]) for node in nodes]
                sides = [block[v, feature] > cut for v, (feature, cut) in zip(visits, cuts, strict=True)]
                send_sides(channel, active, sides)


def _nodes(mine: NDArray[np.bool_], level: int) -> _Nodes:
    """(tree, node) that are marked, on one level."""
    first = 2**level - 1
    marked = np.argwhere(mine[:, first : 2 * first + 1])
    return [(int(tree), int(node) + first) for tree, node in marked]


def _step_down(
    channel: Channel, passives: Sequence[str], trees: ActiveTrees, codes: Codes, at: NDArray[np.int64], level: int
) -> NDArray[np.int64]:
    right = np.zeros(at.shape, dtype=bool)
    asked = [_nodes(trees.owner == p, level) for p in range(1 + len(passives))]
    visits = [[at[tree] == node for tree, node in nodes] for nodes in asked]
    for peer, sets in zip(passives, visits[1:], strict=True):
        if sets:
            channel.send(peer, *map(np.packbits, sets), step=_VISITS)
    for (tree, node), there in zip(asked[OWN], visits[OWN], strict=True):
        right[tree, there] = codes[there, trees.feature[tree, node]] > trees.cut[tree, node]
    for peer, nodes, sets in zip(passives, asked[1:], visits[1:], strict=True):
        sides = recv_sides(channel, peer, [int(there.sum()) for there in sets])
        for (tree, _), there, side in zip(nodes, sets, sides, strict=True):
            right[tree, there] = side
    return 2 * at + 1 + right


def _recv_visits(channel: Channel, active: str, nodes: int, rows: int) -> list[NDArray[np.bool_]]:
    size = packed_size(rows)
    data = np.frombuffer(channel.recv_exactly(active, step=_VISITS, size=nodes * size), dtype=np.uint8)
    flags = np.unpackbits(data.reshape(nodes, size), axis=1).astype(bool)
    if flags[:, rows:].any():
        raise BadFrame(active, _VISITS, f"more than {rows} rows")
    return list(flags[:, :rows])
