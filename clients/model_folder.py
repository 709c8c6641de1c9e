"""A party's part of a vertical model as a folder, `model.json` and `arrays.npz`, and scores as a csv file.

The folder is private to its party.  `model.json` holds a SHA-256 over both files' content, so that a part that was
damaged or mixed up is refused; it is no signature.  Reading one runs no code.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clients.psi import write_csv
from fl_core.errors import DataError
from fl_core.files import private_dir, write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "fedseal-vertical/1"
ABOUT, ARRAYS = "model.json", "arrays.npz"
MAX_BYTES = 1 << 30
_WHOLE = "the folder as its training wrote it"


def write_part(folder: Path, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a part.

    Parameters
    ----------
    about : JSON-able, without `format` and `digest`, which are added.
    """
    private_dir(folder)
    told = {"format": FORMAT, **about}
    with io.BytesIO() as held:
        named: dict[str, Any] = dict(arrays)
        np.savez(held, **named)
        data = held.getvalue()
    told["digest"] = _digest(told, data)
    write_atomic(folder / ARRAYS, data)
    write_atomic(folder / ABOUT, json.dumps(told, indent=1, ensure_ascii=False).encode())


def read_part(folder: Path, where: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What `write_part` was given, `format` and `digest` beside it.

    Parameters
    ----------
    where : how messages begin, such as `party bank`.

    Raises
    ------
    DataError : no such part, one of another format, or one that is not as it was written.
    """
    text, data = _read(folder / ABOUT, where), _read(folder / ARRAYS, where)
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise DataError(f"{where}: {ABOUT}", "no JSON object", allowed=_WHOLE)
    if about.get("format") != FORMAT:
        raise DataError(f"{where}: {ABOUT}", f"format {str(about.get('format'))[:40]!r}", allowed=FORMAT)
    if about.get("digest") != _digest(about, data):
        raise DataError(f"{where}: {ABOUT} and {ARRAYS}", "changed since they were written", allowed=_WHOLE)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            return about, {name: held[name] for name in held.files}
    except (ValueError, KeyError, EOFError, OSError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{where}: {ARRAYS}", f"cannot be read ({type(error).__name__})", allowed=_WHOLE) from None


def _read(path: Path, where: str) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{where}: {path.name}", f"{size} bytes", allowed=f"at most {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        problem = f"no {path.name} of this party's part of the model ({error.strerror})"
        raise DataError(where, problem, allowed="a model that this party has trained along") from None


def _digest(about: Mapping[str, Any], arrays: bytes) -> str:
    told = {name: value for name, value in about.items() if name != "digest"}
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode() + b"\0" + hashlib.sha256(arrays).digest()).hexdigest()


def write_scores(path: Path, ids: pa.Table, predictions: NDArray[np.float64], classes: Sequence[str]) -> None:
    """Write id columns and predictions of the same rows.

    Parameters
    ----------
    predictions : (n,), column `score`; or (n, classes): `score` is the likeliest class, `p_<class>` its probability.
    """
    import pyarrow as pa

    held = ids
    if predictions.ndim == 1:
        held = held.append_column("score", pa.array(predictions))
    else:
        held = held.append_column("score", pa.array([classes[i] for i in predictions.argmax(axis=1)]))
        for i, name in enumerate(classes):
            held = held.append_column(f"p_{name}", pa.array(predictions[:, i]))
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        os.chmod(part, 0o600)
        write_csv(held, file)
    part.replace(path)
