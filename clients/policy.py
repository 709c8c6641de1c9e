"""What a data owner allows at its node: which data under which names, how much privacy, which jobs.

It stands in the node's own folder and is read anew for each job; no job file and no coordinator can change it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_core.errors import BadMessage, DataError, Paused, RefusedError
from fl_core.job import Job, Party

if TYPE_CHECKING:
    from clients.sql_source import SqlSource

KINDS = ("horizontal", "vertical", "predict", "psi")
STANDING, ASK = "standing", "ask"
CONSENTS = (STANDING, ASK)
EVERY = "*"
#: What a coordinator may say of a party's part of the job.
_TOLD = {"data": str, "label": str, "id": list, "columns": list, "categorical": list}


@dataclasses.dataclass(frozen=True)
class Policy:
    """One owner's decisions.

    Parameters
    ----------
    sources : where the data of each name lie.
    limits : ε over all jobs at δ = 1e-5 of each name, `"*"` for the others; a missing one is no limit.
    kinds : kinds of job that are allowed.
    code : `"package.module:function"` models and data sets that jobs may name; others are not even imported.
    refuse_unsafe : refuse jobs that take protection away (encryption off, two contributions, seeded noise).
    psi_protocol : `"ecdh"` where the owner takes part in no psi by another protocol.
    paused : no new jobs; what has begun goes on.
    consent : `"standing"` where whoever the coordinator admits may use the data, `"ask"` where each use needs a grant.
    """

    sources: Mapping[str, Path | SqlSource]
    limits: Mapping[str, float] = dataclasses.field(default_factory=dict)
    kinds: tuple[str, ...] = KINDS
    code: tuple[str, ...] = ()
    refuse_unsafe: bool = False
    psi_protocol: str = "any"
    paused: bool = False
    consent: str = ASK

    def check(self, job: Job, *, begun: bool) -> None:
        """Refuse (`RefusedError`) what the owner does not allow; `begun`: this node takes part already."""
        if self.paused and not begun:
            raise Paused("this node takes no new jobs at present (fedseal node resume)")
        if job.kind not in self.kinds:
            raise RefusedError(f"kind {job.kind!r}; the owner allows: {', '.join(self.kinds)}")
        named = {"model.name": job.model.name} | ({"dataset.name": job.dataset.name} if job.dataset else {})
        for key, name in named.items():
            if ":" in name and name not in self.code:
                raise RefusedError(f"{key} = {name!r}: code that the owner did not allow (--allow-code)")
        if self.refuse_unsafe and job.unsafe:
            raise RefusedError(f"the job is unsafe: {'; '.join(job.unsafe)}")

    def fill(self, party: Party, told: Mapping[str, Any], job: Job) -> Party:
        """The party with its part of the job and the owner's limit.  Raises `BadMessage`."""
        for key, value in told.items():
            if key not in _TOLD or not isinstance(value, _TOLD[key]):
                raise BadMessage(f"this party's part of the job holds {key!r}")
        ids = tuple(map(str, told.get("id", ())))
        dataset = job.dataset.name if job.dataset else str(told.get("data", ""))
        limit = self.limits.get(dataset, self.limits.get(EVERY))
        return dataclasses.replace(
            party,
            data=told.get("data"),
            label=told.get("label"),
            id=ids,
            columns=tuple(map(str, told.get("columns", ()))),
            categorical=tuple(map(str, told.get("categorical", ()))),
            max_epsilon=limit,
            psi_protocol=self.psi_protocol,
        )

    def source(self, party: Party) -> Path | SqlSource:
        """Where the party's data lie.  Raises `DataError`."""
        if party.data is None or party.data not in self.sources:
            bound = ", ".join(self.sources) or "nothing is bound"
            raise DataError(f"party {party.name}", f"no data {party.data!r} at this node", allowed=bound)
        return self.sources[party.data]
