"""`run_job` from Python: a plain script, twice in one process, in a thread, and beside files with our packages' names."""

from __future__ import annotations

import json
import sys

import pytest

from tests.e2e.process import Done, Place

pytestmark = pytest.mark.e2e
SCRIPT = """
import json, os, sys, threading

print("the script ran", file=sys.stderr)
from server import run_job

events, summaries = [], []
job = json.loads(sys.argv[1])
summaries.append(run_job(job, {"train.rounds": 2}, on_event=events.append))
thread = threading.Thread(target=lambda: summaries.append(run_job(job, ["train.rounds=1"], out="threaded")))
thread.start()
thread.join()
try:
    run_job(job, {"train.rounds": "many"})
except Exception as error:
    refused = f"{type(error).__name__}: {error}"
told = {"kinds": [e.kind for e in events], "summaries": summaries, "refused": refused}
json.dump(told, sys.stdout)
"""
JOB = {
    "kind": "horizontal",
    "name": "from-python",
    "dataset": {"name": "digits", "parties": 3},
    "model": {"name": "logistic"},
    "train": {"learning_rate": 0.5},
}


@pytest.fixture(scope="module")
def script(place: Place) -> Done:
    """A script without `if __name__ == "__main__"`, as in a notebook."""
    (place.path / "plain.py").write_text(SCRIPT)
    return place.start("plain.py", json.dumps(JOB), command=[sys.executable]).end()


def test_script_without_a_main_guard_runs_once(script: Done) -> None:
    assert script.code == 0, script.err
    assert script.err.count("the script ran") == 1


def test_run_job_returns_what_json_prints_and_tells_events(script: Done, place: Place) -> None:
    first = script.json["summaries"][0]
    assert {"job", "kind", "runtime", "status", "mlflow_run_id", "ledger", "metrics", "outputs", "seconds"} <= set(
        first
    )
    assert first["status"] == "done" and first["metrics"]["accuracy"] > 0.8
    kinds = script.json["kinds"]
    assert kinds[0] == "joined" and kinds[-1] == "closed" and kinds.count("round") == 3 and kinds.count("record") == 3


def test_run_job_works_in_a_thread_and_a_second_time_in_one_process(script: Done, place: Place) -> None:
    second = script.json["summaries"][1]
    assert second["status"] == "done"
    assert second["outputs"]["party_1"]["model"] == str(place.path / "threaded" / "party_1" / "model.pt")
    assert place.fedseal("audit", "verify").code == 0


def test_bad_override_raises_the_error_of_the_job_file(script: Done) -> None:
    assert script.json["refused"].startswith("JobFileError: train.rounds: 'many' is not a whole number")


def test_script_leaves_no_process(script: Done, place: Place) -> None:
    assert place.processes() == {}


def test_files_in_the_current_folder_do_not_stand_in_for_our_modules(fresh: Place) -> None:
    for name in ("server", "clients", "strategies", "random"):
        (fresh.path / f"{name}.py").write_text("raise SystemExit('code from the current folder ran')\n")
    done = fresh.fedseal("run", fresh.job(rounds=1), "--json")
    assert done.code == 0, done.err
