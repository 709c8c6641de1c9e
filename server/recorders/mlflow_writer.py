"""One spool's run in MLflow, written through `MlflowClient` alone: the fluent API would add user, path and commit.

Whatever this does may be done again after a crash: a run is found by the spool's tag, a metric by its step, a model
version by its run.  Metric names and values are those of the ledger.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils as store
from mlflow.tracking import MlflowClient

from fl_core.files import locked

SPOOL_TAG = "fedseal.spool"
FOR_GOOD = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST"}
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # which pages the UI shows first
_MAX_PARAM, _MAX_TAG, _BATCH, _MAX_DIGEST = 6000, 8000, 100, 36  # MLflow's limits


class Writer:
    """Applies lines to one run.  Raises what MLflow raises when it is worth to try again."""

    def __init__(self, begin: Mapping[str, Any], refused: Callable[[Exception], None]) -> None:
        self._begin = begin
        self._refused = refused
        make_store(begin["uri"])
        self._client = MlflowClient(tracking_uri=begin["uri"])
        self._run = ""
        self._history: dict[str, set[int]] = {}
        self.version: str | None = None

    def open(self, run_id: str | None) -> str:
        """Go on with the run `run_id`, else with the one that has the spool's tag, else with a new one."""
        run = (run_id and self._get(run_id)) or self._search() or self._create()
        if run.info.status != "RUNNING":
            self._client.update_run(run.info.run_id, status="RUNNING")
        self._run = run.info.run_id
        return str(self._run)

    def apply(self, line: Mapping[str, Any], *, again: bool) -> None:
        """Apply one line; `again` says that a process before may have done so."""
        if line["do"] == "begin":
            self._set(tags={**line["tags"], "mlflow.source.name": "fedseal"}, params=line["params"])
        elif line["do"] == "inputs":
            self._try(partial(self._client.log_inputs, self._run, [_dataset(d) for d in line["datasets"]]))
        elif line["do"] == "round":
            self._round(line, again)
        elif line["do"] == "end":
            self._end(line)
        else:
            self._refused(ValueError("a line of the spool is damaged"))

    def abandon(self) -> None:
        """Close the run of a process that is gone."""
        self._client.set_terminated(self._run, "KILLED")

    # ---- the run

    def _get(self, run_id: str) -> Any:
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return None if run.info.lifecycle_stage == "deleted" else run

    def _search(self) -> Any:
        query = f"tags.`{SPOOL_TAG}` = '{self._begin['spool']}'"
        found = self._client.search_runs([self._experiment()], filter_string=query, max_results=1)
        return found[0] if found else None

    def _create(self) -> Any:
        return self._client.create_run(
            self._experiment(),
            start_time=self._begin["started"],
            tags={SPOOL_TAG: self._begin["spool"], "mlflow.source.name": "fedseal"},
            run_name=self._begin["name"],
        )

    def _experiment(self) -> str:
        """Id of the experiment; made when it is not there, brought back when somebody deleted it."""
        name = self._begin["experiment"]
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                where = self._begin["artifacts"]
                return str(self._client.create_experiment(name, artifact_location=where, tags=_EXPERIMENT_TAGS))
            except MlflowException as error:
                found = self._client.get_experiment_by_name(name)
                if found is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    # ---- lines

    def _round(self, line: Mapping[str, Any], again: bool) -> None:
        if not again:
            self._history.clear()
        step = line["step"]
        metrics = [
            Metric(name, float(text), line["t"], step)
            for name, text in line["metrics"].items()
            if not (again and step in self._steps(name))
        ]
        if metrics:
            self._try(partial(self._client.log_batch, self._run, metrics=metrics, synchronous=True))

    def _steps(self, name: str) -> set[int]:
        if name not in self._history:
            self._history[name] = {m.step for m in self._client.get_metric_history(self._run, name)}
        return self._history[name]

    def _end(self, line: Mapping[str, Any]) -> None:
        for path, folder in line["artifacts"]:
            self._log_file(path, folder)
        if line["publish"]:
            self._try(partial(self._publish, line["publish"]))
        note = {"mlflow.note.content": line["note"]} if line["note"] else {}
        self._set(tags={**line["tags"], **note}, params={})
        self._try(partial(self._client.set_terminated, self._run, line["status"], end_time=line["t"]))

    def _publish(self, publish: Mapping[str, Any]) -> None:
        """Register the model: a version of the run, made once."""
        name = re.sub(r"[/:]", "-", publish["name"])
        self._log_file(publish["model"], "model")
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        mine = self._client.search_model_versions(f"run_id = '{self._run}'")
        version = next((v for v in mine if v.name == name and v.tags.get("digest") == publish["digest"]), None)
        version = version or self._client.create_model_version(
            name,
            source=f"{self._client.get_run(self._run).info.artifact_uri}/model",
            run_id=self._run,
            tags={"digest": publish["digest"]},
            await_creation_for=0,
        )
        self.version = str(version.version)

    def _log_file(self, path: str, folder: str) -> None:
        if not Path(path).is_file():
            self._refused(FileNotFoundError(f"{path} is no longer there"))
            return
        self._try(partial(self._client.log_artifact, self._run, path, folder))

    def _set(self, *, tags: Mapping[str, str], params: Mapping[str, str]) -> None:
        for part in _parts([RunTag(k, v[:_MAX_TAG]) for k, v in tags.items()]):
            self._try(partial(self._client.log_batch, self._run, tags=part, synchronous=True))
        for part in _parts([Param(k, v[:_MAX_PARAM]) for k, v in params.items()]):
            self._try(partial(self._client.log_batch, self._run, params=part, synchronous=True))

    def _try(self, step: Callable[[], object]) -> None:
        """Do a step; what MLflow refuses for good is noted and left out, so that it cannot block what follows."""
        try:
            step()
        except MlflowException as error:
            if error.error_code not in FOR_GOOD:
                raise
            self._refused(error)


def make_store(uri: str) -> None:
    """Make a SQLite store that is not there: under another name, and linked to its own when it is complete.

    Left to MLflow, two processes that start at once, or one killed in the middle, leave a half-migrated store
    that nothing can open any more.
    """
    path = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    if not uri.startswith("sqlite:///") or path.exists():
        return
    with locked(path.with_name(f".{path.name}.lock")):
        if path.exists():
            return
        new = path.with_name(f".{path.name}.new")
        new.unlink(missing_ok=True)
        engine = store.create_sqlalchemy_engine(f"sqlite:///{new}")
        store._initialize_tables(engine)
        engine.dispose()
        with contextlib.suppress(FileExistsError):  # somebody's `mlflow ui` was first
            os.link(new, path)
        new.unlink()


def _parts(items: list[Any]) -> Iterator[list[Any]]:
    return (items[i : i + _BATCH] for i in range(0, len(items), _BATCH))


def _dataset(fields: Mapping[str, str]) -> DatasetInput:
    """A dataset by its commitment: no path, no count, no schema."""
    source = json.dumps({"commitment": fields["digest"]})
    dataset = Dataset(fields["name"], fields["digest"][:_MAX_DIGEST], "commitment", source)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", fields["context"])])
