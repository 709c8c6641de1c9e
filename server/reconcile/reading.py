"""What MLflow shows of one run, as exact texts: metrics with their history, parameters, tags, artifacts by SHA-256.

Read through `MlflowClient` alone, so a SQLite file and a server look the same. Nothing is written.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fl_core.errors import JobFailed, UsageError
from fl_core.urls import without_passwords

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MAX_FILES = 1000
_SQLITE = "sqlite:///"


def read_run(uri: str, run_id: str) -> dict[str, Any]:
    """Read a run.

    Parameters
    ----------
    uri
        Of the tracking store.
    run_id
        MLflow's id of the run.

    Returns
    -------
    dict
        `run_id`, `status` (FINISHED, …); `metrics`: rows of name, step and value, where a value is the shortest
        decimal text of the float; `params` and `tags`: rows of name and value; all texts, sorted. `artifacts`: tables
        of `name` (its path), `sha256` (hex) and `size` (bytes), sorted by name.

    Raises
    ------
    UsageError
        If there is no such store or run, or it has more than `MAX_FILES` artifacts.
    JobFailed
        If MLflow does not answer, or gives an artifact that is not a file.
    """
    if uri.startswith(_SQLITE) and not Path(uri.removeprefix(_SQLITE).partition("?")[0]).is_file():
        raise UsageError(f"MLflow {uri}: no such file")
    from server.environment import prepare

    prepare()
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        return _read(MlflowClient(tracking_uri=uri), run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise UsageError(f"MLflow {without_passwords(uri)}: no run {run_id}") from None
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise JobFailed(f"MLflow {without_passwords(uri)}: {without_passwords(first)[:300]}") from None
    except OSError as error:
        raise JobFailed(f"MLflow {without_passwords(uri)}: {error.strerror or type(error).__name__}") from None


def _read(client: MlflowClient, run_id: str) -> dict[str, Any]:
    run = client.get_run(run_id)
    history = [m for name in run.data.metrics for m in client.get_metric_history(run_id, name)]
    return {
        "run_id": run_id,
        "status": str(run.info.status),
        "metrics": sorted([m.key, str(m.step), repr(float(m.value))] for m in history),
        "params": sorted([name, value] for name, value in run.data.params.items()),
        "tags": sorted([name, value] for name, value in run.data.tags.items()),
        "artifacts": sorted(_artifacts(client, run_id), key=lambda file: str(file["name"])),
    }


def _artifacts(client: MlflowClient, run_id: str) -> Iterator[dict[str, Any]]:
    """Hash the files one by one: a model may be larger than what is free."""
    waiting, count = [""], 0
    while waiting:
        for item in client.list_artifacts(run_id, waiting.pop()):
            count += 1
            if count > MAX_FILES:
                raise UsageError(f"MLflow run {run_id}: more artifacts than {MAX_FILES}")
            if item.is_dir:
                waiting.append(item.path)
                continue
            path = PurePosixPath(item.path)
            if path.is_absolute() or ".." in path.parts:
                raise JobFailed(f"MLflow run {run_id}: an artifact with a path out of the run")
            with tempfile.TemporaryDirectory(prefix="fedseal-") as folder:
                found = Path(client.download_artifacts(run_id, item.path, folder))
                if not found.is_file():
                    raise JobFailed(f"MLflow run {run_id}: an artifact that is no file")
                with found.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                yield {"name": item.path, "sha256": digest, "size": found.stat().st_size}
