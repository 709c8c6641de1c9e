"""`fedseal check`: what every party would say to a job, without keys, rounds or reservations.

Meant for the person at this machine, so it may show row counts; nothing of it goes to ledger or MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_core.config import load_job
from fl_core.errors import FedsealError, RefusedError
from fl_core.files import private_dir
from fl_core.home import Home
from fl_core.job import Job, Party
from server.trained import with_model, with_run


def dry_run(
    job: Path | str | Mapping[str, Any],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    home: Path | str | None = None,
) -> dict[str, Any]:
    """Check a job at all its parties.

    Returns
    -------
    dict : `ok`, `job`, `parties` (`party`, `status` ready | refused | problem, ids or rows,
        features or columns, classes, epsilon),
    `problems`, `unsafe`.
    """
    read, place = load_job(job, overrides), Home.open(home)
    if read.runtime == "deployment":
        from server.runtimes.remote import check_there

        return check_there(with_run(read, place), place)
    read = with_model(read, place)
    parties, data = [], {}
    for party in read.parties:
        told, loaded = _party(read, party, place)
        parties.append(told)
        if loaded is not None:
            data[party.name] = loaded
    problems = disagreements({what: {n: getattr(d, f"{what}_digest") for n, d in data.items()} for what in SAME})
    ok = not problems and all(p["status"] == "ready" for p in parties)
    return {
        "ok": ok,
        "job": read.name,
        "digest": read.digest(),
        "parties": parties,
        "problems": problems,
        "unsafe": read.unsafe,
    }


def _party(job: Job, party: Party, home: Home) -> tuple[dict[str, Any], Any]:
    if job.kind == "horizontal":
        return _trainer(job, party, home)
    if job.kind == "predict":
        return _scorer(job, party, home), None
    return (_holder(job, party, home) if job.kind == "vertical" else _member(job, party)), None


def _scorer(job: Job, party: Party, home: Home) -> dict[str, Any]:
    """A party of a prediction: its new rows, and the columns of its part of the model."""
    from clients.prediction import preview
    from fl_core.trust.budget import Budget

    told: dict[str, Any] = {"party": party.name, "status": "ready", "problem": ""}
    budget = Budget(private_dir(home.party(party.name)) / "budget.db")
    try:
        seen = preview(job, party, Path(job.own_part(party.name)["model"]), budget, None)
    except FedsealError as error:
        told["status"] = "refused" if isinstance(error, RefusedError) else "problem"
        told["problem"] = str(error)
        return told
    return told | {"table": f"{seen.rows:,}", "columns": seen.columns}


def _holder(job: Job, party: Party, home: Home) -> dict[str, Any]:
    """A party of a vertical job: its columns, and the labels at one."""
    from clients.vertical_preview import preview
    from fl_core.trust.budget import Budget

    told: dict[str, Any] = {"party": party.name, "status": "ready", "problem": ""}
    try:
        seen = preview(job, party, Budget(private_dir(home.party(party.name)) / "budget.db"))
    except FedsealError as error:
        told["status"] = "refused" if isinstance(error, RefusedError) else "problem"
        told["problem"] = str(error)
        return told
    told |= {"table": f"{seen.rows:,}", "columns": seen.columns, "classes": seen.classes}
    for name, value in (("epsilon", seen.epsilon), ("epsilon_left", seen.left)):
        if value is not None:
            told[name] = f"{value:.2f}"
    return told


def _member(job: Job, party: Party) -> dict[str, Any]:
    """A party of a session: its ids."""
    from clients.psi import load_ids

    told: dict[str, Any] = {"party": party.name, "status": "ready", "problem": ""}
    try:
        _, ids = load_ids(job, party, None)
        told["ids"] = f"{len(ids.rows):,}"
    except FedsealError as error:
        told["status"] = "refused" if isinstance(error, RefusedError) else "problem"
        told["problem"] = str(error)
    return told


def _trainer(job: Job, party: Party, home: Home) -> tuple[dict[str, Any], Any]:
    from clients.guard import preview

    told: dict[str, Any] = {"party": party.name, "status": "ready", "problem": ""}
    try:
        seen = preview(job, party, home.party(party.name))
    except FedsealError as error:
        told["status"] = "refused" if isinstance(error, RefusedError) else "problem"
        told["problem"] = str(error)
        return told, None
    data = seen.data
    told["rows"] = f"{len(data.y_train)} / {len(data.y_test)}"
    told["features"] = len(data.feature_names)
    told["classes"] = len(data.classes)
    if seen.epsilon is not None:
        told["epsilon"] = f"{seen.epsilon:.2f}"
    if seen.left is not None:
        told["epsilon_left"] = f"{seen.left:.2f}"
    return told, data


SAME = {"schema": "feature columns", "classes": "classes (name them all in model.classes)"}


def disagreements(digests: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Who differs from most in what all must bring alike: `{"schema": {party: digest}, "classes": …}`."""
    problems = []
    for what, by_party in digests.items():
        found = list(by_party.values())
        if len(set(found)) > 1:
            usual = max(found, key=found.count)
            odd = ", ".join(name for name, d in by_party.items() if d != usual)
            problems.append(f"{odd}: other {SAME[what]} than the other parties")
    return problems
