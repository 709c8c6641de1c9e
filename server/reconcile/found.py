"""What MLflow shows of runs, read through `MlflowClient` alone; nothing is written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_core.errors import JobFailed
from fl_core.urls import without_passwords

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "fedseal"
MODEL_FOLDER = "model"
_SQLITE = "sqlite:///"
_PAGE = 1000
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


@dataclass(frozen=True)
class Shown:
    """A run in MLflow's list; `tag` is its `fedseal.run`."""

    run_id: str
    tag: str
    deleted: bool


@dataclass
class Found:
    """One run; values as the shortest decimal texts of their floats.

    Attributes
    ----------
    metrics : all values of a name and step.
    newest : MLflow's own note of each metric's last value.
    artifacts : SHA-256 by name.
    models : registered versions: how it is called, its digest's tag, and whether its files are this run's.
    """

    run_id: str
    name: str
    status: str
    deleted: bool
    metrics: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    newest: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    datasets: set[tuple[str, str]] = field(default_factory=set)
    artifacts: dict[str, str] = field(default_factory=dict)
    models: list[tuple[str, str, bool]] = field(default_factory=list)


class Store:
    """One MLflow.  A method raises `JobFailed` where it does not answer; a SQLite file that is not there is empty."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @property
    def is_there(self) -> bool:
        """Whether there may be anything."""
        return not self.uri.startswith(_SQLITE) or Path(self.uri.removeprefix(_SQLITE).partition("?")[0]).is_file()

    @cached_property
    def client(self) -> MlflowClient:
        """The one way in."""
        from server.environment import prepare

        prepare()
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        with self.answering():
            return MlflowClient(tracking_uri=self.uri)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """What MLflow raises, as `JobFailed`, in one line and without a password."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise JobFailed(f"MLflow {without_passwords(self.uri)}: {without_passwords(first)[:300]}") from None

    def has(self, run_id: str) -> bool:
        """Whether there is such a run, deleted or not."""
        return self._get(run_id) is not None

    def with_tag(self, name: str, value: str) -> list[Shown]:
        """The runs of fedseal's experiment with this tag, oldest first; `value` holds no quote."""
        return list(self._search(f"tags.`{name}` = '{value}'"))

    def all_runs(self) -> list[Shown]:
        """Every run of fedseal's experiment, oldest first, but for deleted ones."""
        return [run for run in self._search("") if not run.deleted]

    def read(self, run_id: str) -> Found | None:
        """All of a run; None where there is none."""
        run = self._get(run_id)
        if run is None:
            return None
        from server.reconcile.reading import read_run

        values = read_run(self.uri, run_id)
        name, deleted = str(run.info.run_name or ""), run.info.lifecycle_stage == "deleted"
        found = Found(run_id, name, values["status"], deleted)
        for key, step, value in values["metrics"]:
            found.metrics.setdefault((key, int(step)), []).append(value)
        found.newest = {name: repr(float(value)) for name, value in run.data.metrics.items()}
        found.params, found.tags = dict(values["params"]), dict(values["tags"])
        inputs = run.inputs.dataset_inputs if run.inputs else []
        found.datasets = {(item.dataset.name, item.dataset.digest) for item in inputs}
        found.artifacts = {file["name"]: file["sha256"] for file in values["artifacts"]}
        found.models = self._models(run)
        return found

    def _models(self, run: Any) -> list[tuple[str, str, bool]]:
        place = f"{run.info.artifact_uri}/{MODEL_FOLDER}"
        with self.answering():
            versions = self.client.search_model_versions(f"run_id = '{run.info.run_id}'")
        return [(f"{v.name} version {v.version}", v.tags.get("digest", ""), v.source == place) for v in versions]

    def _get(self, run_id: str) -> Any:
        if not self.is_there:
            return None
        client = self.client
        from mlflow.exceptions import MlflowException

        with self.answering():
            try:
                return client.get_run(run_id)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise

    def _search(self, query: str) -> Iterator[Shown]:
        if not self.is_there:
            return
        client = self.client
        from mlflow.entities import ViewType

        with self.answering():
            experiment, token = client.get_experiment_by_name(EXPERIMENT), None
            while experiment is not None:
                page = client.search_runs(
                    [experiment.experiment_id],
                    query,
                    run_view_type=ViewType.ALL,
                    max_results=_PAGE,
                    order_by=["attributes.start_time"],
                    page_token=token,
                )
                for run in page:
                    tag = run.data.tags.get("fedseal.run", "")
                    yield Shown(run.info.run_id, tag, run.info.lifecycle_stage == "deleted")
                if not (token := page.token):
                    return
