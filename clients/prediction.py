"""Joint prediction at one party: its part of a vertical model and its new rows in; scores out, where it is a receiver.

A receiver gets `scores.csv`: its id columns and `score`, the probability of the second class or a value; of a model
with more classes the likeliest one, and `p_<class>`.  What each party learns stands at the head of
`fl_core.protocols.prediction.program`.

The part is what the party kept of the training: on one machine in the training's folder of outputs, at a node among its
own outputs, where the job names the run and never a path.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from clients.columns import Loaded, read_columns
from clients.data import dataset_name
from clients.model_folder import read_part, write_scores
from clients.part import NodeConfig, source_of
from clients.session import Post, Program, Result
from clients.sources import is_npz, read_arrays, read_ids
from clients.vertical import content_of, texts_of_ids
from fl_core.channel import Channel
from fl_core.errors import DataError, RefusedError
from fl_core.files import private_dir
from fl_core.job import Job, Party
from fl_core.learning.columns import Columns
from fl_core.protocols.prediction.part import Part
from fl_core.protocols.prediction.plan import Plan, plan_of
from fl_core.protocols.prediction.program import NewTable, Outcome, run
from fl_core.protocols.prediction.reading import part_of
from fl_core.protocols.psi.ids import hash_ids
from fl_core.protocols.vertical.program import Table
from fl_core.records import decimal

if TYPE_CHECKING:
    import pyarrow as pa

    from clients.participant import Participant
    from clients.policy import Policy
    from fl_core.learning.privacy import Spend
    from fl_core.trust.budget import Budget

SCORES = "scores.csv"


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a party brings: its part, and its rows' id columns beside the rest."""

    plan: Plan
    part: Part
    ids: pa.Table
    table: NewTable


@dataclass(frozen=True)
class Preview:
    """What a party would bring, in numbers: rows with ids that differ, and columns that its part reads."""

    rows: int
    columns: str


class PredictProgram(Program):
    """One party's part in a `predict` job."""

    def __init__(self, home: Participant, job: Job, party: Party) -> None:
        self._home, self._job, self._party = home, job, party
        self._prepared: Prepared | None = None

    def load(self) -> None:
        """As `Program.load`."""
        config = self._home.config
        self._prepared = made = prepare(self._job, self._party, part_folder(config, self._job), config.policy)
        if (spend := _spend(made.part)) is not None:
            from fl_core.learning import privacy
            from fl_core.trust.budget import OWNER_DELTA

            self._home.store.budget.reserve(
                dataset_name(self._job, self._party), config.run, spend=spend, limit=self._party.max_epsilon,
                delta=OWNER_DELTA, epsilon=privacy.epsilon,
            )  # fmt: skip

    def commitment(self) -> str:
        """HMAC-SHA-256, hex, over ids and columns."""
        table = self._made().table
        held = Table(table.items, table.ids, table.columns, table.block, table.where)
        mac = hmac.new(self._home.store.commitment_key, digestmod=hashlib.sha256)
        for block in content_of(held):
            mac.update(len(block).to_bytes(8, "big") + block)
        return mac.hexdigest()

    def run(self, channel: Channel, post: Post, tell: Callable[[str], None]) -> Result:
        """As `Program.run`."""
        began, made = time.monotonic(), self._made()
        if _spend(made.part) is not None:
            self._home.store.budget.commit(self._home.config.run, dataset_name(self._job, self._party), 1, 1)
        done = run(channel, made.plan, made.part, made.table, say=tell, threads=os.cpu_count() or 1)
        outputs = {} if done.predictions is None else {"scores": self._write(made.ids, done)}
        metrics = {"rows_aligned": str(len(done.rows))}
        if channel.me == made.plan.receivers[0]:
            metrics["rows_per_second"] = decimal(len(done.rows) / max(done.seconds, 1e-6))
        metrics["bytes"] = str(sum(t.sent for t in channel.traffic.values()))
        metrics["seconds"] = decimal(time.monotonic() - began)
        post(1, metrics)
        said: dict[str, Any] = {"model": made.plan.run, "training": made.part.training.digest().hex()}
        return Result(said, outputs)

    def _made(self) -> Prepared:
        if self._prepared is None:
            self.load()
        assert self._prepared is not None
        return self._prepared

    def _write(self, ids: pa.Table, done: Outcome) -> Path:
        import pyarrow as pa

        assert done.predictions is not None
        path = private_dir(self._home.config.out / self._party.name) / SCORES
        write_scores(path, ids.take(pa.array(done.rows)), done.predictions, done.classes)
        return path


def part_folder(config: NodeConfig, job: Job) -> Path:
    """Where this party's part lies: as told by the job file at hand, or among the node's own outputs."""
    told = config.own.get("model")
    if config.policy is None and told is not None:
        return Path(str(told))
    return config.out.parent / plan_of(job).run / config.party / "model"


def prepare(job: Job, party: Party, folder: Path, policy: Policy | None) -> Prepared:
    """Read a party's part and its new rows.  Raises `RefusedError` or `DataError`."""
    where, plan = f"party {party.name}", plan_of(job)
    if party.psi_protocol == "ecdh" and plan.psi.may_be_cm20:
        raise RefusedError(f"{where}: the owner takes part by ecdh only; the job says {job.psi.protocol}")
    part = part_of(*read_part(folder, where), party=party.name, where=where)
    part.check(plan)
    return Prepared(plan, part, *_new_rows(job, party, policy, part))


def preview(job: Job, party: Party, folder: Path, budget: Budget, policy: Policy | None) -> Preview:
    """Check as joining does, with nothing set aside.  Raises `RefusedError` or `DataError`."""
    made = prepare(job, party, folder, policy)
    if (spend := _spend(made.part)) is not None:
        from fl_core.learning import privacy
        from fl_core.trust.budget import OWNER_DELTA

        name, limit = dataset_name(job, party), party.max_epsilon
        budget.check(name, spend=spend, limit=limit, delta=OWNER_DELTA, epsilon=privacy.epsilon)
    picture = made.part.picture
    columns = str(len(made.part.kinds)) if picture is None else " × ".join(map(str, picture))
    return Preview(len(made.table.items), columns)


def _spend(part: Part) -> Spend | None:
    """Of the owner's privacy budget: a release of each row's embedding, where there is noise on it."""
    if part.noise_multiplier is None:
        return None
    from fl_core.learning import privacy

    return privacy.Spend(part.noise_multiplier, 1.0, 1)


def _new_rows(job: Job, party: Party, policy: Policy | None, part: Part) -> tuple[pa.Table, NewTable]:
    where, source = f"party {party.name}", source_of(job, party, policy)
    if not part.kinds and part.picture is None:  # its owner had the labels alone
        ids = read_ids(source, party.id, where=where)
        loaded = Loaded(ids, Columns((), ids.num_rows), None)
    else:
        only = tuple(part.kinds)
        if is_npz(source) and not set(only) <= set(read_arrays(source, where)):
            only = ("x",)
        kinds = part.kinds
        loaded = read_columns(source, id_columns=party.id, label=None, only=only or ("x",), kinds=kinds, where=where)
    where = f"{where}: {getattr(source, 'name', 'query result')}"
    block = _picture(loaded, part, where)
    duplicates: Literal["error", "first"] = "first" if job.psi.duplicates == "first" else "error"
    hashed = hash_ids(loaded.ids.columns, party.id, where=where, duplicates=duplicates)
    kept, rows = loaded.ids.take(hashed.rows), hashed.rows
    columns = _columns(loaded.columns, part, where).take(rows)
    return kept, NewTable(hashed.hashes, texts_of_ids(kept), columns, None if block is None else block[rows], where)


def _columns(columns: Columns, part: Part, where: str) -> Columns:
    """Those that the part reads; DataError, before anything is aligned, where one is missing."""
    try:
        return Columns(tuple(columns.get(name, kind) for name, kind in part.kinds.items()), len(columns))
    except DataError as error:
        raise DataError(where, str(error)) from None


def _picture(loaded: Loaded, part: Part, where: str) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    if part.picture is None:
        return None
    shape = None if loaded.block is None else loaded.block.shape[1:]
    if shape != part.picture:
        raise DataError(where, f"rows of shape {shape}", allowed=f"an array 'x' of rows of shape {part.picture}")
    return loaded.block
