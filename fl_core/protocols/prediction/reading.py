"""A party's part of a vertical model out of what its training kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fl_core.errors import DataError
from fl_core.protocols.prediction.forest import ForestPart
from fl_core.protocols.prediction.linear import LinearPart
from fl_core.protocols.prediction.network import NetworkPart
from fl_core.protocols.prediction.part import MAX_CLASSES, OBJECTIVES, Arrays, Part, Training, malformed
from fl_core.protocols.prediction.plan import RUN

_HEX = re.compile(r"[0-9a-f]{64}")
PARTS: dict[str, type[LinearPart | ForestPart | NetworkPart]] = {
    "logistic": LinearPart,
    "gbdt": ForestPart,
    "split-nn": NetworkPart,
}


def part_of(about: Mapping[str, Any], arrays: Arrays, *, party: str, where: str) -> Part:
    """Read a part.

    Parameters
    ----------
    about, arrays : what the training's `Method.describe` and `Method.arrays` gave, with the run's facts beside it.
    party : whose it must be. where : how messages begin.

    Raises
    ------
    DataError : it is another party's, or cannot be a part of a model.
    """
    if about.get("party") != party:
        raise DataError(where, f"a part of party {str(about.get('party'))[:64]!r}", allowed=f"that of {party}")
    try:
        training = _training(about, arrays, where)
        classes = tuple(map(str, about["classes"]))
        if party not in training.parties or len(classes) > MAX_CLASSES:
            raise malformed(where, "parties or classes that cannot be")
        if party == training.active and training.objective == "multiclass" and len(classes) != training.outputs:
            raise malformed(where, f"{len(classes)} classes for {training.outputs} outputs")
        return PARTS[training.algorithm](training, party, classes, where, about, arrays)
    except DataError as error:
        raise error if str(error).startswith(where) else DataError(where, str(error)) from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise malformed(where, f"it cannot be read ({type(error).__name__})") from None


def _training(about: Mapping[str, Any], arrays: Arrays, where: str) -> Training:
    algorithm, objective, outputs = about["algorithm"], about["objective"], about["outputs"]
    parties, run, job = tuple(about["parties"]), about["run"], about["job"]
    known = algorithm in PARTS and objective in OBJECTIVES and all(isinstance(name, str) for name in parties)
    if not known or len(parties) < 2 or len(set(parties)) < len(parties):
        raise malformed(where, "an algorithm, an objective or parties that cannot be")
    if not (isinstance(outputs, int) and 1 <= outputs <= MAX_CLASSES) or (outputs > 1) != (objective == "multiclass"):
        raise malformed(where, f"{objective} with outputs of {str(outputs)[:20]}")
    if not RUN.fullmatch(run) or not _HEX.fullmatch(job):
        raise malformed(where, "neither run nor job")
    shape: dict[str, int | str]
    if algorithm == "logistic":
        shape = {"link": str(about["link"])}
    elif algorithm == "gbdt":
        trees, inner = arrays["feature"].shape
        shape = {"trees": int(trees), "inner": int(inner)}
    else:
        shape = {"embedding": int(about["network"]["settings"]["embedding"])}
    return Training(run, job, parties, algorithm, objective, outputs, shape)
