"""MLflow is a view: while its server is down runs go on, and what it missed is delivered by a later run."""

from __future__ import annotations

import json
import socket
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fl_core.trust.ledger import Ledger
from tests.e2e.process import Done, Place, wait_until

pytestmark = pytest.mark.e2e
IMPATIENT = "import server.run; server.run.MLFLOW_SECONDS = 4.0; from server.cli.main import main; main()"


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@dataclass(frozen=True)
class Outage:
    place: Place
    during: Done
    summary: dict[str, Any]
    after: Done
    uri: str


@pytest.fixture(scope="module")
def outage(place: Place) -> Outage:
    """A run while nobody listens, then a server, then another run (which MLflow's default store takes)."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    job = place.job("unseen")
    hasty = [sys.executable, "-c", IMPATIENT]
    secret = f"http://user:hunter2@127.0.0.1:{port}"
    during = place.start("run", job, "--out", "results", command=hasty, MLFLOW_TRACKING_URI=secret).end()
    summary = json.loads((place.path / "results" / "summary.json").read_text())
    server = [str(Path(sys.executable).with_name("mlflow")), "server", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{place.path / 'server.db'}", "--artifacts-destination", "artifacts"]
    place.start(command=[*server, *store])
    wait_until(lambda: answers(uri), "the MLflow server")
    after = place.fedseal("run", place.job("later", rounds=1), "--json")
    return Outage(place, during, summary, after, uri)


def test_run_ends_well_and_says_what_waits_where(outage: Outage) -> None:
    assert outage.during.code == 0, outage.during.err
    told = outage.summary["mlflow"]
    assert told["delivered"] is False
    spool = outage.place.home / "coordinator" / "runs" / outage.summary["run"] / "mlflow.jsonl"
    assert str(spool) in told["reason"] and "for the next run" in told["reason"]
    assert spool.is_file()
    shown = "".join(outage.during.out.split())  # however the line was broken
    assert "MLflowisbehind" in shown and str(spool) in shown


def test_password_of_the_tracking_uri_is_told_nowhere(outage: Outage) -> None:
    assert "hunter2" not in outage.during.out + outage.during.err
    texts = [p for p in outage.place.path.rglob("*") if p.suffix in (".html", ".json", ".txt", ".log")]
    assert texts
    assert not [p for p in texts if b"hunter2" in p.read_bytes()]
    assert b"hunter2" not in (outage.place.home / "ledger.db").read_bytes()


def test_later_run_delivers_what_was_left(outage: Outage) -> None:
    from mlflow.tracking import MlflowClient

    assert outage.after.code == 0, outage.after.err
    client = MlflowClient(outage.uri)

    def arrived() -> Any:
        found = client.get_experiment_by_name("fedseal")
        runs = client.search_runs([found.experiment_id]) if found else []
        return [r for r in runs if r.info.status == "FINISHED"]

    wait_until(arrived, "the leftovers", 60)
    (run,) = arrived()
    assert run.data.tags["fedseal.run"] == outage.summary["run"]
    with Ledger.open(outage.place.home / "ledger.db") as ledger:
        bodies = [e.body for e in ledger.entries(run=outage.summary["run"], kind="round")]
    for name in ("accuracy", "loss"):
        history = {m.step: m.value for m in client.get_metric_history(run.info.run_id, name)}
        assert history == {b["round"]: float(b["metrics"][name]) for b in bodies}
