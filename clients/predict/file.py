"""Scores of a file's rows: features in, `scores.csv` out."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.columns import read_columns
from clients.predict import PredictClient, Scores
from clients.psi import write_csv
from clients.sources import read_arrow
from fl_core.errors import DataError
from fl_core.files import write_atomic


def predict_file(
    client: PredictClient, data: Path, *, model: str, id_columns: Sequence[str], without: Sequence[str], out: Path
) -> dict[str, Any]:
    """Score every row and write the id columns and scores.

    With two classes `score` is the probability of the second one; with more, `label` and a column `p_CLASS` each; where
    the model's owner gives labels only, `label`.

    Returns
    -------
    JSON-able: model, version, rows, seconds, out.

    Raises
    ------
    DataError : the file; a value that is missing or no number.
    """
    where, started = "predict", time.monotonic()
    header, _ = read_arrow(data, where=where)
    features = [n for n in header.column_names if n not in {*id_columns, *without}]
    x, ids = read_features(data, features, id_columns, where=where)
    scores = client.predict(x, features, model)
    table = ids
    for name, values in _columns(scores).items():
        table = table.append_column(name, [values])
    with io.BytesIO() as file:
        write_csv(table, file)
        write_atomic(out, file.getvalue())
    return {
        "model": scores.offer.name,
        "version": scores.offer.version,
        "rows": len(x),
        "seconds": round(time.monotonic() - started, 3),
        "out": str(out),
    }


def read_features(
    data: Path, features: Sequence[str], text: Sequence[str], *, where: str
) -> tuple[NDArray[np.float64], Any]:
    """Columns of numbers, (n, d) float64, and an Arrow table of the columns `text` as they are.

    Raises
    ------
    DataError : the file, a column that is not there; a value that is missing or no number.
    """
    loaded = read_columns(data, id_columns=list(text), label=None, only=features, where=where)
    x = np.empty((len(loaded.columns), len(features)))
    for i, column in enumerate(loaded.columns):
        if column.numbers is None or np.isnan(column.numbers).any():
            problem = "is no number" if column.numbers is None else "has missing values"
            raise DataError(f"{where}: {data.name}, column {column.name!r}", problem, allowed="a number in every row")
        x[:, i] = column.numbers
    return x, loaded.ids


def _columns(scores: Scores) -> dict[str, Any]:
    classes = scores.offer.classes
    labels = [classes[i] for i in scores.labels.tolist()]
    if scores.offer.labels:
        return {"label": labels}
    if len(classes) == 2:
        return {"score": scores.probabilities[:, 1]}
    return {"label": labels} | {f"p_{c}": scores.probabilities[:, k] for k, c in enumerate(classes)}
