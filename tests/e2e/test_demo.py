"""The demo as a person runs it, twice in one home, and everything an auditor asks about it afterwards."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fl_core.trust.ledger import Ledger
from tests.e2e.process import DEMO, REPO, Done, Place

pytestmark = pytest.mark.e2e
PARTIES = [f"party_{i}" for i in range(1, 5)]


@dataclass(frozen=True)
class Demo:
    """Two runs of the demo in one home, the second with a receiver and a published model; a checkpoint between."""

    place: Place
    first: Done
    second: Done
    kept: Path

    @property
    def ledger(self) -> Path:
        return self.place.home / "ledger.db"

    def entries(self, **which: str) -> list[dict[str, Any]]:
        with Ledger.open(self.ledger) as ledger:
            return [e.body for e in ledger.entries(**which)]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def demo(place: Place) -> Demo:
    first = place.fedseal("run", DEMO, "--json", "--out", "first")
    kept = place.path / "kept.checkpoint"
    with Ledger.open(place.home / "ledger.db") as ledger:
        kept.write_text(ledger.checkpoint(), encoding="utf-8")
    more = ["--set", "train.publish=true", "--set", 'train.receivers=["lab"]', "--set", "name=second-run"]
    second = place.fedseal("run", DEMO, "--json", "--out", "second", *more)
    return Demo(place, first, second, kept)


# ---- what the run itself says


def test_json_is_one_object_with_every_promised_key(demo: Demo) -> None:
    assert demo.first.code == 0, demo.first.err
    told = demo.first.json
    assert (told["job"], told["kind"], told["runtime"], told["status"]) == (
        "digits-ckks-dp", "horizontal", "local", "done",
    )  # fmt: skip
    assert told["ledger"]["path"] == str(demo.ledger)
    assert told["metrics"]["accuracy"] >= 0.85
    assert 0 < told["metrics"]["loss"] < 1
    assert 7 < told["metrics"]["epsilon"] <= 8
    assert 10_000 < told["metrics"]["bytes_up"] < 100_000
    assert 0 < told["metrics"]["round_seconds"] < told["seconds"]
    assert told["unsafe"] == []
    assert demo.first.out.count("\n") == 1


def test_ledger_head_in_the_summary_is_that_of_the_ledger(demo: Demo) -> None:
    told = demo.second.json["ledger"]
    with Ledger.open(demo.ledger) as ledger:
        assert (told["size"], told["root"]) == (ledger.size, ledger.root.hex())


def test_outputs_are_there_and_nobody_else_may_read_them(demo: Demo) -> None:
    outputs = demo.second.json["outputs"]
    assert sorted(outputs) == ["lab", *PARTIES]
    for files in [*outputs.values(), *demo.first.json["outputs"].values()]:
        for path in files.values():
            assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    models = {Path(files["model"]).read_bytes() for files in outputs.values()}
    assert len(models) == 1


def test_private_keys_and_folders_are_their_owners_only(demo: Demo) -> None:
    home = demo.place.home
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    private = [*home.glob("**/identity.key"), *home.glob("**/commitment.key"), *home.glob("**/budget.db")]
    assert len(private) >= 1 + 5 + 4 + 4
    assert {stat.S_IMODE(p.stat().st_mode) for p in private} == {0o600}
    assert {stat.S_IMODE(p.stat().st_mode) for p in home.glob("parties/*")} == {0o700}


def test_group_keys_do_not_outlive_the_run(demo: Demo) -> None:
    assert not [p for p in demo.place.home.glob("parties/*/runs/*/*") if p.name in ("key", "ephemeral")]


def test_summary_file_says_what_json_says(demo: Demo) -> None:
    assert json.loads((demo.place.path / "first" / "summary.json").read_text()) == demo.first.json


def test_progress_goes_to_stderr_line_by_line(demo: Demo) -> None:
    for said in ("joined: party_1, party_2", "round 1: 4/4 parties", "round 5: 4/4", "model after round 5: accuracy"):
        assert said in demo.first.err


def test_second_run_in_the_same_home_works_and_keeps_identities(demo: Demo) -> None:
    assert demo.second.code == 0, demo.second.err
    cards = [body["card"]["name"] for body in demo.entries(kind="card")]
    assert sorted(cards) == ["engineer", "lab", *PARTIES]


def test_no_process_is_left(demo: Demo) -> None:
    assert demo.place.processes() == {}


def test_finished_job_cannot_be_resumed(demo: Demo) -> None:
    line = demo.place.fedseal("run", DEMO, "--resume").fails(2)
    assert "no unfinished run" in line


def test_out_of_another_run_is_not_written_over(demo: Demo) -> None:
    line = demo.place.fedseal("run", DEMO, "--out", "first").fails(2)
    assert "--out first" in line and "allowed" in line
    assert json.loads((demo.place.path / "first" / "summary.json").read_text()) == demo.first.json
    assert len(demo.place.fedseal("runs", "--json").json["runs"]) == 2


# ---- runs, logs, stop


def test_runs_lists_both_with_their_mlflow_ids(demo: Demo) -> None:
    listed = demo.place.fedseal("runs", "--json").json["runs"]
    assert [(r["name"], r["status"]) for r in listed] == [("digits-ckks-dp", "done"), ("second-run", "done")]
    assert [r["mlflow_run_id"] for r in listed] == [d.json["mlflow_run_id"] for d in (demo.first, demo.second)]
    shown = demo.place.fedseal("runs")
    assert shown.code == 0 and demo.first.json["mlflow_run_id"] in shown.out


def test_run_is_found_by_mlflow_id_name_run_id_and_folder(demo: Demo) -> None:
    told = demo.second.json
    logs = [demo.place.fedseal("logs", n) for n in (told["mlflow_run_id"], told["run"], "second-run", "second")]
    assert {log.code for log in logs} == {0}
    assert len({log.out for log in logs}) == 1
    assert "round round 5" in logs[0].out


def test_stopping_a_finished_run_is_refused(demo: Demo) -> None:
    assert "is not running: done" in demo.place.fedseal("stop", "second-run").fails(2)


def test_unknown_run_names_those_there_are(demo: Demo) -> None:
    line = demo.place.fedseal("logs", "nonsense").fails(2)
    assert "'nonsense'" in line and "second-run" in line


# ---- audit


def test_ledger_verifies_and_says_so(demo: Demo) -> None:
    done = demo.place.fedseal("audit", "verify")
    assert done.code == 0 and done.out.startswith("VALID"), done
    told = demo.place.fedseal("audit", "verify", "--json").json
    assert told["size"] == demo.second.json["ledger"]["size"]
    assert told["root"] == demo.second.json["ledger"]["root"]
    runs = {name: (run["state"], run["cosigned"], run["quorum"]) for name, run in told["runs"].items()}
    assert runs == {d.json["run"]: ("witnessed", 4, 3) for d in (demo.first, demo.second)}


def test_ledger_continues_the_checkpoint_kept_between_the_runs(demo: Demo) -> None:
    assert demo.place.fedseal("audit", "verify", "--since", demo.kept).code == 0
    size = int(demo.kept.read_text().split("\n")[1])
    assert 0 < size == demo.first.json["ledger"]["size"]


def test_cut_tail_is_caught_by_the_kept_checkpoint_alone(demo: Demo, tmp_path: Path) -> None:
    size = int(demo.kept.read_text().split("\n")[1])
    with Ledger.open(demo.ledger) as ledger:
        before = max(s for s in ledger.checkpoint_sizes() if s < size)
    cut = tmp_path / "cut.db"
    shutil.copy(demo.ledger, cut)
    with sqlite3.connect(cut) as db:
        db.execute("DELETE FROM entries WHERE seq >= ?", (before,))
        db.execute("DELETE FROM checkpoints WHERE size > ?", (before,))
        db.execute("DELETE FROM cosignatures WHERE size > ?", (before,))
    assert demo.place.fedseal("audit", "verify", "--ledger", cut).code in (0, 4)
    done = demo.place.fedseal("audit", "verify", "--ledger", cut, "--since", demo.kept, "--json")
    assert done.code == 1 and done.json["verdict"] == "BROKEN"


def test_changed_entry_is_named(demo: Demo, tmp_path: Path) -> None:
    changed = tmp_path / "changed.db"
    shutil.copy(demo.ledger, changed)
    with sqlite3.connect(changed) as db:
        (seq, leaf) = db.execute("SELECT seq, leaf FROM entries WHERE kind = 'round' LIMIT 1").fetchone()
        db.execute("UPDATE entries SET leaf = ? WHERE seq = ?", (leaf.replace(b'"accuracy":"0', b'"accuracy":"1'), seq))
    done = demo.place.fedseal("audit", "verify", "--ledger", changed)
    assert done.code == 1 and f"first bad entry: {seq}" in done.out


def test_show_gives_the_rounds_of_one_run(demo: Demo) -> None:
    shown = demo.place.fedseal("audit", "show", "second-run", "--kind", "round").out.splitlines()
    assert len(shown) == 1 + 6 and "round 5: " in shown[-1]
    lines = demo.place.fedseal("audit", "show", "first", "--kind", "round", "--json").out.splitlines()
    assert [json.loads(line)["body"] for line in lines] == demo.entries(kind="round", run=demo.first.json["run"])


@pytest.mark.parametrize("which", [["5"], ["--from", "FIRST", "--to", "LAST"]])
def test_proof_verifies_offline_here_and_where_nothing_is_installed(
    demo: Demo, tmp_path: Path, which: list[str]
) -> None:
    sizes = {"FIRST": demo.first.json["ledger"]["size"], "LAST": demo.second.json["ledger"]["size"]}
    proof = tmp_path / "proof.json"
    proof.write_text(demo.place.fedseal("audit", "prove", *(sizes.get(w, w) for w in which)).out)
    shutil.copytree(REPO / "fl_core" / "trust" / "verify", tmp_path / "verify")
    alone = f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); runpy.run_module('verify', run_name='__main__')"
    for command in (["-m", "fl_core.trust.verify"], ["-I", "-c", alone]):
        cwd = REPO if command[0] == "-m" else tmp_path
        verify = [sys.executable, *command]
        good = subprocess.run([*verify, str(proof)], cwd=cwd, capture_output=True, text=True, check=False)
        assert good.returncode == 0, good
    text = proof.read_text()
    at = text.index('"proof":["') + 10
    proof.write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])
    assert subprocess.run([*verify, str(proof)], cwd=tmp_path, capture_output=True, check=False).returncode == 1


# ---- MLflow


@pytest.fixture(scope="module")
def client(demo: Demo) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{demo.place.home / 'mlflow.db'}")


@pytest.mark.parametrize("which", ["first", "second"])
def test_mlflow_and_ledger_reconcile_exactly(demo: Demo, client: Any, which: str) -> None:
    told = getattr(demo, which).json
    rounds = demo.entries(kind="round", run=told["run"])
    assert [body["round"] for body in rounds] == [0, 1, 2, 3, 4, 5]
    names = {name for body in rounds for name in body["metrics"]}
    assert names >= {"accuracy", "loss", "epsilon", "bytes_up", "seconds", "parties"}
    run = client.get_run(told["mlflow_run_id"])
    assert set(run.data.metrics) == names
    for name in names:
        history = {m.step: m.value for m in client.get_metric_history(run.info.run_id, name)}
        assert history == {b["round"]: float(b["metrics"][name]) for b in rounds if name in b["metrics"]}
        assert len(client.get_metric_history(run.info.run_id, name)) == len(history)


def test_mlflow_run_names_the_ledger_and_holds_the_report(demo: Demo, client: Any) -> None:
    told = demo.first.json
    run = client.get_run(told["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["ledger.size"] == str(told["ledger"]["size"])
    assert run.data.tags["ledger.root"] == told["ledger"]["root"]
    assert run.data.tags["fedseal.run"] == told["run"]
    assert [a.path for a in client.list_artifacts(run.info.run_id, "audit")] == ["audit/report.html"]
    report = Path(client.download_artifacts(run.info.run_id, "audit/report.html")).read_text()
    (said,) = demo.entries(kind="publish", run=told["run"])
    assert said["artifacts"][0]["sha256"] == hashlib.sha256(report.encode()).hexdigest()
    assert run.data.params["encryption.profile"] == "CKKS_2048"
    assert len(run.inputs.dataset_inputs) == 4


def test_mlflow_gets_no_user_no_path_and_no_partys_count(demo: Demo, client: Any) -> None:
    for done in (demo.first, demo.second):
        run = client.get_run(done.json["mlflow_run_id"])
        assert not {"mlflow.user", "mlflow.source.git.commit"} & set(run.data.tags)
        words = [*run.data.tags.values(), *run.data.params.values()]
        assert not [w for w in words if str(demo.place.path) in w or str(REPO) in w or str(Path.home()) in w.split()]
        assert not {"rows", "n", "num_examples"} & {*run.data.params, *run.data.metrics, *run.data.tags}


def test_only_publish_gives_mlflow_the_model(demo: Demo, client: Any) -> None:
    assert [m.name for m in client.search_registered_models()] == ["second-run"]
    (version,) = client.search_model_versions("name = 'second-run'")
    assert version.run_id == demo.second.json["mlflow_run_id"]
    assert version.tags["digest"] == demo.second.json["model_digest"]
    published = Path(client.download_artifacts(version.run_id, "model/model.pt")).read_bytes()
    assert published == Path(demo.second.json["outputs"]["party_1"]["model"]).read_bytes()
    assert [a.path for a in client.list_artifacts(demo.first.json["mlflow_run_id"])] == ["audit"]
