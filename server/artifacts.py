"""What a finished run leaves for people, as files in its folder and in MLflow: report, curves, model card."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_core.errors import JobFailed
from fl_core.files import write_atomic
from server.report.page import write_report
from server.report.parts import Facts

MODEL_FOLDER = "model"
_ROC = 420  # as high as wide


@dataclass(frozen=True)
class Written:
    """Files, each with its folder in MLflow; and the run's description in MLflow, Markdown, where it is the card."""

    files: list[tuple[Path, str]]
    note: str = ""


def write_artifacts(folder: Path, facts: Facts) -> Written:
    """Write them all.

    Parameters
    ----------
    folder : the run's, at the coordinator.
    facts : as for `server.report.page.write_report`; of a vertical job also `digest`, the job's.

    Raises
    ------
    JobFailed
        If a file cannot be written.
    """
    report = folder / "report.html"
    write_report(report, facts=facts)
    if facts["job"].get("kind") != "vertical":
        return Written([(report, "audit")])
    from server.model_card import model_card

    card, text = folder / "model_card.md", model_card(facts)
    write_atomic(card, text.encode(), mode=0o644)
    return Written([(report, "audit"), *_write_plots(folder, facts), (card, MODEL_FOLDER)], text)


def commitments(files: Iterable[tuple[Path, str]]) -> list[dict[str, Any]]:
    """Name in MLflow, SHA-256 and size of each file, for the ledger: tables of `name`, `sha256` and `size`.

    Raises
    ------
    JobFailed
        If a file cannot be read.
    """
    found = []
    for path, folder in files:
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = path.stat().st_size
        except OSError as error:
            raise JobFailed(f"{path}: cannot be read ({error.strerror})") from None
        found.append({"name": f"{folder}/{path.name}", "sha256": digest, "size": size})
    return found


def _write_plots(folder: Path, facts: Facts) -> list[tuple[Path, str]]:
    from server.report.chart import write_svg
    from server.report.learned import plan_shown
    from server.report.vertical import learning_charts, roc_chart

    plan = plan_shown(facts["job"])
    roc = roc_chart(facts, plan, height=_ROC)
    plots = {"learning_curve.svg": learning_charts(facts, plan), "roc.svg": [roc] if roc is not None else []}
    return [(folder / name, "plots") for name, charts in plots.items() if write_svg(folder / name, charts)]
