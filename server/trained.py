"""The training that a prediction's `predict.model` names: its run, who had the labels, and where its parts lie."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from fl_core.config import check_shared, load_job
from fl_core.errors import FedsealError, JobFileError
from fl_core.home import Home
from fl_core.job import Job
from fl_core.protocols.prediction.plan import RUN
from server.registry import RunFolder, RunInfo, all_runs

_ABOUT = "model.json"


def with_model(job: Job, home: Home) -> Job:
    """A `predict` job with what its training says: run, active party, algorithm, receivers; others as they are.

    On one machine the model is a folder (relative to the current one or to the job file), or a run of this home whose
    outputs lie where it wrote them; at a coordinator a run of its own, the parts of which lie at the nodes.

    Raises
    ------
    JobFileError : no such training, or one with other parties.
    """
    if job.kind != "predict":
        return job
    if job.runtime == "deployment":
        return _filled(job, _of_submission(*_find(job, home)))
    folder = _folder(job)
    if folder is None:
        _, info = _find(job, home)
        if info.runtime == "deployment":
            problem = f"{job.predict.model!r}: the parts of run {info.run} lie at the nodes"
            raise JobFileError("predict.model", problem, allowed="runtime = deployment")
        folder = Path(info.out)
    return _filled(job, _of_folder(job, folder), folder)


def with_run(job: Job, home: Home) -> Job:
    """A `predict` job for a coordinator: where this home knows the run, by its id, which the coordinator knows too."""
    if job.kind != "predict":
        return job
    as_path = os.path.abspath(job.predict.model)
    for _, info in reversed(all_runs(home)):
        if info.kind == "vertical" and (job.predict.model in (info.name, info.mlflow_run_id) or info.out == as_path):
            return dataclasses.replace(job, predict=dataclasses.replace(job.predict, model=info.run))
    return job


def _find(job: Job, home: Home) -> tuple[RunFolder, RunInfo]:
    """The newest finished training that the job names."""
    wanted = job.predict.model
    trained = [(f, i) for f, i in all_runs(home) if i.kind == "vertical" and i.status == "done"]
    for folder, info in reversed(trained):
        if wanted in (info.run, info.mlflow_run_id, info.name) or info.out == os.path.abspath(wanted):
            return folder, info
    known = ", ".join(dict.fromkeys(i.name for _, i in reversed(trained[-5:]))) or "none yet"
    allowed = f"the --out folder, id or name of a finished vertical training ({known})"
    raise JobFileError("predict.model", f"{wanted!r}: no such training in {home.path}", allowed=allowed)


def _folder(job: Job) -> Path | None:
    """The folder that the job names, if there is one with parts of a model."""
    for folder in (Path(job.predict.model), job.base / job.predict.model):
        if any((folder / party.name / "model" / _ABOUT).is_file() for party in job.parties):
            return folder.absolute()
    return None


def _of_folder(job: Job, folder: Path) -> dict[str, Any]:
    """Facts of the training, from the first part that is there; each party checks its own."""
    paths = [folder / party.name / "model" / _ABOUT for party in job.parties]
    path = next((path for path in paths if path.is_file()), paths[0])
    try:
        about = json.loads(path.read_bytes())
        facts = {"run": about["run"], "active": about["parties"][0], "algorithm": about["algorithm"]}
        facts["parties"] = sorted(map(str, about["parties"]))
    except OSError as error:
        allowed = "the --out folder of a vertical training of these parties"
        raise JobFileError("predict.model", f"{path} cannot be read ({error.strerror})", allowed=allowed) from None
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise JobFileError("predict.model", f"{path} is no part of a vertical model", allowed="one") from None
    return facts


def _of_submission(folder: RunFolder, info: RunInfo) -> dict[str, Any]:
    """The same, of a run of this coordinator."""
    from server.coordinator.submission import load

    try:
        job = load_job(load(folder.path)[0])
    except (OSError, ValueError, KeyError, FedsealError):
        problem = f"run {info.run}: its job cannot be read any more"
        raise JobFileError("predict.model", problem, allowed="another training") from None
    parties = sorted(party.name for party in job.parties)
    return {"run": info.run, "active": job.active, "algorithm": job.vertical.algorithm, "parties": parties}


def _filled(job: Job, facts: dict[str, Any], folder: Path | None = None) -> Job:
    told, names = job.predict, sorted(party.name for party in job.parties)
    if not isinstance(facts["run"], str) or not RUN.fullmatch(facts["run"]):
        raise JobFileError("predict.model", "a model that no run of fedseal trained", allowed="the --out of a training")
    if facts["parties"] != names:
        problem = f"a model of {', '.join(facts['parties'])} for a job of {', '.join(names)}"
        raise JobFileError("predict.model", problem, allowed="[[party]] tables of the model's parties")
    for key in ("active", "algorithm"):
        if getattr(told, key) not in (None, facts[key]):
            raise JobFileError(f"predict.{key}", f"{getattr(told, key)!r}", allowed=f"{facts[key]!r}, or leave it out")
    predict = dataclasses.replace(
        told,
        model=facts["run"],
        active=facts["active"],
        algorithm=facts["algorithm"],
        receivers=told.receivers or (facts["active"],),
        folder=None if folder is None else str(folder),
    )
    return check_shared(dataclasses.replace(job, predict=predict))
