"""Private set intersection at one party: ids out of its own data, and the rows that it may know of into a file.

What each party learns stands at the head of `fl_core.protocols.psi`.  The file holds the id columns as they stand in
the party's data, row by row in the order that all receivers share; with `output = "union"` a row that is none of this
party's is empty.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import os
import time
from collections.abc import Callable
from csv import writer
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from clients.part import source_of
from clients.session import Post, Program, Result
from clients.sources import read_ids
from fl_core.channel import Channel
from fl_core.errors import RefusedError
from fl_core.files import private_dir
from fl_core.job import Job, Party
from fl_core.protocols.psi.ids import Ids, hash_ids
from fl_core.protocols.psi.jobs import plan_of
from fl_core.protocols.psi.program import align
from fl_core.records import decimal

if TYPE_CHECKING:
    import pyarrow as pa

    from clients.participant import Participant
    from clients.policy import Policy

FILES = {"receivers": "intersection.csv", "union": "union.csv"}


class PsiProgram(Program):
    """One party's part in a `psi` job."""

    def __init__(self, home: Participant, job: Job, party: Party) -> None:
        self._home, self._job, self._party = home, job, party
        self._plan = plan_of(job)
        self._table: pa.Table | None = None
        self._ids: Ids | None = None

    def load(self) -> None:
        """As `Program.load`."""
        self._table, self._ids = load_ids(self._job, self._party, self._home.config.policy)

    def commitment(self) -> str:
        """HMAC-SHA-256, hex, over the hashed ids."""
        _, ids = self._loaded()
        return hmac.new(self._home.store.commitment_key, ids.hashes.tobytes(), hashlib.sha256).hexdigest()

    def run(self, channel: Channel, post: Post, tell: Callable[[str], None]) -> Result:
        """As `Program.run`."""
        began = time.monotonic()
        table, ids = self._loaded()
        words = {"receivers": "intersection"}.get(self._plan.output, self._plan.output)
        tell(f"{words} of {len(self._plan.parties)} sets, {len(ids.rows):,} ids here")
        found = align(channel, ids.hashes, self._plan, threads=os.cpu_count() or 1)
        outputs = {}
        if found.rows is not None:
            rows = found.rows.copy()
            rows[rows >= 0] = ids.rows[rows[rows >= 0]]
            outputs["rows"] = self._write(table, rows)
        metrics = {"bytes": str(sum(t.sent for t in channel.traffic.values()))}
        metrics["seconds"] = decimal(time.monotonic() - began)
        if found.count is not None:
            metrics["intersection_size"] = str(found.count)
        post(1, metrics)
        return Result({"protocol": found.protocol}, outputs)

    def _write(self, table: pa.Table, rows: NDArray[np.int64]) -> Path:
        import pyarrow as pa

        path = private_dir(self._home.config.out / self._party.name) / FILES[self._plan.output]
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            os.chmod(part, 0o600)
            write_csv(table.take(pa.array(rows, mask=rows < 0)), file)
        part.replace(path)
        return path

    def _loaded(self) -> tuple[pa.Table, Ids]:
        if self._table is None or self._ids is None:
            self.load()
        assert self._table is not None and self._ids is not None
        return self._table, self._ids


def load_ids(job: Job, party: Party, policy: Policy | None) -> tuple[pa.Table, Ids]:
    """A party's id columns and their hashes.  Raises `RefusedError` or `DataError`."""
    where, plan = f"party {party.name}", plan_of(job)
    if party.psi_protocol == "ecdh" and plan.may_be_cm20:
        raise RefusedError(f"{where}: the owner takes part by ecdh only; the job says {plan.protocol}")
    source = source_of(job, party, policy)
    table = read_ids(source, party.id, where=where)
    where = f"{where}: {getattr(source, 'name', 'query result')}"
    duplicates: Literal["error", "first"] = "first" if job.psi.duplicates == "first" else "error"
    return table, hash_ids(table.columns, party.id, where=where, duplicates=duplicates)


def write_csv(table: pa.Table, file: BinaryIO) -> None:
    """A table as csv, with quotes where something needs them, and only then."""
    import pyarrow as pa
    from pyarrow import compute, csv

    texts = [column for column in table.columns if pa.types.is_string(column.type)]
    special = any(compute.any(compute.match_substring_regex(column, '[",\r\n]')).as_py() for column in texts)
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer(text, lineterminator="\n").writerow(table.column_names)
    text.detach()
    options = csv.WriteOptions(include_header=False, quoting_style="needed" if special else "none")
    csv.write_csv(table, file, options)
