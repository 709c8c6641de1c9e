"""Scores by id of a file's rows: own columns in, `scores.csv` out, with the rows that the other party has too."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clients.model_folder import write_scores
from clients.predict.vertical import VerticalClient
from clients.predict.vertical_table import hash_texts, read_rows
from fl_core.errors import UsageError


def vertical_predict_file(
    client: VerticalClient, data: Path, *, id_columns: Sequence[str], ids: Sequence[str] = (), out: Path
) -> dict[str, Any]:
    """Score rows and write the id columns and scores, as `clients.prediction` does.

    Parameters
    ----------
    id_columns : one or more, in the order of the server's.
    ids : of the rows to score, where there is one id column; without it all.

    Returns
    -------
    JSON-able: model, version, asked, rows (that were scored), seconds, out.

    Raises
    ------
    DataError : the file. UsageError : an id that is not in it; no row that the server has; as `VerticalClient.score`.
    """
    started = time.monotonic()
    if not id_columns:
        raise UsageError("predict --vertical without --id; allowed: the column that names a row")
    if ids and len(id_columns) > 1:
        raise UsageError(f"--ids with {len(id_columns)} id columns; allowed: one")
    table, hashes, columns = read_rows(data, id_columns, client.part)
    rows = np.arange(len(hashes))
    if ids:
        at = {one.tobytes(): row for row, one in enumerate(hashes)}
        found = [at.get(one.tobytes(), -1) for one in hash_texts(list(ids), "--ids")]
        if missing := found.count(-1):
            raise UsageError(f"--ids: {missing} of {len(found)} are not in {data.name}; allowed: ids of its rows")
        rows = np.array(found)
    offer = client.offer()
    scores = client.score_rows(hashes[rows], columns.take(rows))
    if not scores.here.any():
        raise UsageError(f"none of {len(rows)} ids is at the other party; allowed: ids of rows that both have")
    write_scores(out, table.take(rows[scores.here]), scores.predictions[scores.here], scores.classes)
    return {
        "model": offer.name,
        "version": offer.version,
        "asked": len(rows),
        "rows": int(scores.here.sum()),
        "seconds": round(time.monotonic() - started, 3),
        "out": str(out),
    }
