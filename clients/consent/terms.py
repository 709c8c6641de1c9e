"""What a job wants of one dataset, in the words of grants; and terms that are narrower than what was asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_core.errors import UsageError
from fl_core.job import Job
from fl_core.trust import canonical, order
from fl_core.trust.catalog import from_micro, to_micro
from fl_core.trust.grants import ANY, Terms

CUSTOM = "custom"  # the algorithm of a job whose model is code by name
_FAR = 253_402_300_799_000  # ms: the last second of the year 9999
_WORD = re.compile(r"[^a-z0-9_.-]")


@dataclass(frozen=True)
class Wanted:
    """What a job wants of one owner's dataset.

    Attributes
    ----------
    owner, dataset
        Which.
    kind, algorithm, model
        Of the job; `model` is `code_digest` of custom code, empty for what is built in.
    receivers
        Everybody who gets a result but the owner, in the job's order; the coordinator where it gets the model.
    epsilon, delta
        What the job spends at most, millionths of ε at that δ; 0 where it adds no noise to this owner's data.
    cohort
        How many data owners take part.
    job
        `fl_core.trust.order.job_digest`.
    """

    owner: str
    dataset: str
    kind: str
    algorithm: str
    model: str
    receivers: tuple[str, ...]
    epsilon: int
    delta: float
    cohort: int
    job: str

    @classmethod
    def of(cls, job: Job, *, owner: str, dataset: str, view: Mapping[str, Any] | None = None) -> Wanted:
        """Read it from a job; `view` is its public view, where another one than the job's own was received.

        Raises `UsageError` where the job asks for an ε that is no number of millionths.
        """
        digest = order.job_digest(job.public() if view is None else view)
        names = [job.model.name] if job.kind == "horizontal" else []
        custom = [name for name in [*names, *([job.dataset.name] if job.dataset else [])] if ":" in name]
        return cls(
            owner=owner,
            dataset=dataset,
            kind=job.kind,
            algorithm=_algorithm(job),
            model=code_digest(custom) if custom else "",
            receivers=tuple(name for name in dict.fromkeys(job.result_receivers) if name != owner),
            epsilon=to_micro(job.privacy.target_epsilon, up=True) if _is_private(job, owner) else 0,
            delta=job.privacy.target_delta,
            cohort=len(job.parties),
            job=digest,
        )


def _algorithm(job: Job) -> str:
    if job.kind == "horizontal":
        return CUSTOM if ":" in job.model.name else job.model.name
    if job.kind == "vertical":
        return job.vertical.algorithm
    if job.kind == "predict":
        return job.predict.algorithm or "predict"
    return job.psi.protocol


def _is_private(job: Job, owner: str) -> bool:
    mechanism = job.privacy.mechanism
    if job.kind == "horizontal":
        return mechanism != "none" and job.train.rounds > 0
    return job.kind == "vertical" and mechanism == "cut-layer" and owner != job.active


def code_digest(names: list[str]) -> str:
    """Return SHA-256, 64 hex digits, over `package.module:function` names and the installed files that they are in.

    Nothing of it is imported but the packages around it.  What is not installed counts as an empty file.
    """
    held = []
    for name in sorted(names):
        module = name.partition(":")[0]
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError, AttributeError):
            spec = None
        source = Path(spec.origin) if spec and spec.origin else None
        data = source.read_bytes() if source is not None and source.is_file() else b""
        held.append({"name": name, "source": hashlib.sha256(data).hexdigest()})
    return canonical.digest(held)


def word_of(text: str) -> str:
    """Return a text as a name that a dataset may have; texts that differ stay different."""
    word = _WORD.sub("-", text.lower())[:50].lstrip("_.-") or "data"
    return word if word == text else f"{word}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def narrowed(asked: Terms, **changes: Any) -> Terms:
    """Return what was asked for with these changes, each of which must take something away.

    Raises `UsageError` for one that would give more; None changes nothing.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    terms = dataclasses.replace(asked, **given)
    for name in ("uses", "epsilon", "not_after"):
        _narrower(name, getattr(terms, name) <= getattr(asked, name), getattr(asked, name))
    _narrower("not_before", terms.not_before >= asked.not_before, asked.not_before)
    _narrower("private_only", terms.private_only or not asked.private_only, asked.private_only)
    for name in ("kinds", "receivers", "algorithms"):
        wide = getattr(asked, name)
        _narrower(name, wide == (ANY,) or set(getattr(terms, name)) <= set(wide), ", ".join(wide))
    for name in ("version", "job"):
        _narrower(name, getattr(asked, name) in ("", getattr(terms, name)), getattr(asked, name))
    for name in ("owner", "dataset", "grantee", "model", "purpose"):
        _narrower(name, getattr(terms, name) == getattr(asked, name), getattr(asked, name))
    return terms


def _narrower(name: str, fits: bool, asked: Any) -> None:
    if fits:
        return
    if name == "epsilon":
        asked = from_micro(asked)
    elif name in ("not_before", "not_after"):
        asked = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(min(asked, _FAR) / 1000))
    within = f"from {asked} on" if name == "not_before" else f"within {asked!s:.80}"
    raise UsageError(f"{name}: wider than what was asked for; allowed: {within}")
