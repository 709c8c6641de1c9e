"""What a finished run leaves for people, as files in its folder and in MLflow: report, curves, model card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fl_core.files import write_atomic
from server.report import write_report
from server.report_parts import Facts

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
    facts : as for `server.report.write_report`; of a vertical job also `digest`, the job's.

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
    return Written([(report, "audit"), *_write_plots(folder, facts), (card, "model")], text)


def _write_plots(folder: Path, facts: Facts) -> list[tuple[Path, str]]:
    from server.report_chart import write_svg
    from server.report_learned import plan_shown
    from server.report_vertical import learning_charts, roc_chart

    plan = plan_shown(facts["job"])
    roc = roc_chart(facts, plan, height=_ROC)
    plots = {"learning_curve.svg": learning_charts(facts, plan), "roc.svg": [roc] if roc is not None else []}
    return [(folder / name, "plots") for name, charts in plots.items() if write_svg(folder / name, charts)]
