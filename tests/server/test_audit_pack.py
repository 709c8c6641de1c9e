"""`fedseal audit export` and `verify FOLDER`: a run's evidence with what MLflow really shows, from the command line."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from fl_core.home import Home
from fl_core.messages import COORDINATOR
from fl_core.records import RoundRecord
from fl_core.trust.checkpoint import cosign
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.outside import WITNESS_KEY, Outsider, Policy, VerifierKey
from fl_core.trust.pack import MAX_VALUES
from fl_core.trust.verify import claims
from server.cli.main import main
from server.reconcile.reading import read_run
from server.recorders.mlflow import MlflowRecorder
from server.recorders.mlflow_process import Delivery
from server.recorders.mlflow_writer import _MAX_PARAM, _MAX_TAG, make_store
from server.recorders.spool import Spool
from server.recorders.words import flat
from server.registry import RunFolder, RunInfo
from tests.fl_core.trust.pack_scene import JOB, MODEL, VIEW, Scene, metrics

pytestmark = pytest.mark.timeout(120)
RUN = "0123456789abcdef"


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


class Place:
    """A home with one finished run in ledger, registry and MLflow, and `fedseal …` in it."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = Home.open(path)
        self.uri = f"sqlite:///{self.home.path / 'mlflow.db'}"
        self._patch, self._capsys = monkeypatch, capsys

    def __call__(self, *words: object) -> Done:
        self._patch.setattr(sys, "argv", ["fedseal", *map(str, words)])
        self._capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        said = self._capsys.readouterr()
        return Done(code, said.out, said.err)

    def edit(self, statement: str, *values: object) -> None:
        """What an administrator can do to MLflow's database."""
        with sqlite3.connect(self.home.path / "mlflow.db") as db:
            assert db.execute(statement, values).rowcount == 1
        db.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: the schema of MLflow's store takes seconds."""
    path = tmp_path_factory.mktemp("finished")
    home = Home.open(path / "home")
    keeper = Identity.load_or_create(home.coordinator, COORDINATOR)
    scene = Scene(home.ledger, keeper, {name: Identity.create(name) for name in ("a", "b", "c")})
    scene.show_cards()
    scene.run(RUN, 3)
    info = RunInfo(RUN, "digits", "horizontal", "local", JOB, "/out", 0.0, 1, status="done")
    folder = RunFolder.create(home, info)
    uri = f"sqlite:///{home.path / 'mlflow.db'}"
    make_store(uri)
    MlflowRecorder._keep_child, keep = lambda self: None, MlflowRecorder._keep_child  # type: ignore[method-assign]
    recorder = MlflowRecorder.start(
        folder.spool, tracking_uri=uri, artifacts=home.path / "artifacts", experiment="fedseal", run_name="digits",
        params={k: v for k, v in flat(VIEW) if v != ""},
        tags={"fedseal.run": RUN, "fedseal.job": JOB, "fedseal.kind": "horizontal"},
    )  # fmt: skip
    for number in (1, 2, 3):
        recorder.record(RoundRecord(RUN, number, metrics(number), ("a", "b", "c")))
    report = path / "report.html"
    report.write_text("<p>report")
    tags = {"ledger.size": str(scene.ledger.size), "ledger.root": scene.ledger.root.hex(), "model.digest": MODEL}
    recorder.finish("FINISHED", tags=tags, note="done", artifacts=[(report, "audit")], timeout=0)
    MlflowRecorder._keep_child = keep  # type: ignore[method-assign]
    Delivery(Spool(folder.spool), None).run()
    scene.ledger.close()
    info.mlflow_run_id = Spool(folder.spool).load().mlflow_run_id
    folder.save(info)
    return path


@pytest.fixture
def place(finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Place:
    """A copy of the home; commands run in an empty folder."""
    shutil.copytree(finished / "home", tmp_path / "home")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("FEDSEAL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Place(tmp_path / "home", monkeypatch, capsys)


def mlflow_id(place: Place) -> str:
    return str(json.loads((place.home.runs / RUN / "run.json").read_text())["mlflow_run_id"])


@pytest.mark.parametrize("words", [[], ["--all"]])
def test_exported_pack_is_valid_and_holds_what_mlflow_shows(place: Place, tmp_path: Path, words: list[str]) -> None:
    made = place("audit", "export", "digits", "--out", tmp_path / "pack", *words)
    assert made.code == 0 and "fedseal audit verify" in made.out
    shown = place("audit", "verify", tmp_path / "pack")
    assert shown.code == 0 and shown.out.startswith("VALID"), shown
    assert "compared: 9 metrics" in shown.out and "not checked:" in shown.out
    told = json.loads(place("audit", "verify", tmp_path / "pack", "--json").out)
    assert told["verdict"] == "VALID" and told["whole"] is bool(words) and told["compared"]["artifacts"] == 1


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE metrics SET value = 0.99 WHERE key = 'accuracy' AND step = 3", 'metric "accuracy" at step 3'),
        ("UPDATE metrics SET step = 4 WHERE key = 'accuracy' AND step = 3", 'metric "accuracy" at step 3'),
        ("DELETE FROM metrics WHERE key = 'loss' AND step = 1", 'metric "loss" at step 1'),
        ("UPDATE metrics SET is_nan = 0 WHERE key = 'loss' AND step = 2", 'metric "loss" at step 2'),
        ("UPDATE params SET value = '4' WHERE key = 'train.rounds'", 'param "train.rounds"'),
        ("DELETE FROM params WHERE key = 'name'", 'param "name"'),
        ("UPDATE tags SET value = 'x' WHERE key = 'fedseal.job'", 'tag "fedseal.job"'),
        ("UPDATE tags SET value = '3' WHERE key = 'ledger.size'", "ledger.size"),
        ("UPDATE tags SET value = 'x' WHERE key = 'model.digest'", 'tag "model.digest"'),
        ("UPDATE runs SET status = 'FAILED'", "FAILED"),
    ],
)
def test_administrator_who_edits_mlflows_database_is_caught(
    place: Place, tmp_path: Path, statement: str, words: str
) -> None:
    place.edit(statement)
    assert place("audit", "export", RUN, "--out", tmp_path / "pack").code == 0
    shown = place("audit", "verify", tmp_path / "pack")
    assert shown.code == 1 and shown.out.startswith("BROKEN") and words in shown.out


def test_reading_gives_exact_texts(place: Place) -> None:
    values = read_run(place.uri, mlflow_id(place))
    for number in (1, 2, 3):
        for name, text in metrics(number).items():
            assert [name, str(number), repr(float(text))] in values["metrics"]
    assert values["status"] == "FINISHED" and ["train.rounds", "3"] in values["params"]
    (report,) = values["artifacts"]
    assert (report["name"], report["size"]) == ("audit/report.html", 9)
    run = MlflowClient(place.uri).get_run(mlflow_id(place))
    assert dict(values["tags"]) == run.data.tags


def test_without_mlflow_the_auditor_is_told(place: Place, tmp_path: Path) -> None:
    assert place("audit", "export", RUN, "--out", tmp_path / "pack", "--no-mlflow").code == 0
    shown = place("audit", "verify", tmp_path / "pack")
    assert shown.code == 0 and "not checked: MLflow" in shown.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["export", "gone", "--out", "p"], "no such run"),
        (["export", RUN, "--out", "p", "--ledger", "gone.db"], "no ledger here"),
        (["export", RUN, "--out", "p", "--since", "gone"], "cannot be read"),
        (["export", RUN, "--out", "."], "holds something"),
        (["export", "f" * 16, "--out", "p"], "--no-mlflow"),
        (["export", "f" * 16, "--out", "p", "--no-mlflow"], "no entry"),
        (["verify", "gone"], "No such file"),
        (["verify", "."], "not an audit pack"),
        (["verify", ".", "--ledger", "x"], "one of them"),
    ],
)
def test_usage_errors_are_one_line(place: Place, tmp_path: Path, words: list[str], told: str) -> None:
    (tmp_path / "here" / "something").write_text("x")
    done = place("audit", *words)
    assert done.code == 2 and told in done.err and done.err.count("\n") == 1, done
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["something"]


def test_store_that_is_not_there_is_not_made(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'none.db'}")
    assert "no such file" in place("audit", "export", RUN, "--out", "p").err
    assert not list((tmp_path / "here").iterdir()) and not (tmp_path / "none.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    place.edit("UPDATE runs SET lifecycle_stage = 'deleted'")
    assert place("audit", "export", RUN, "--out", "p").code == 0  # hidden from people, still there


def test_fork_found_against_another_pack_leaves_evidence_beside_the_first(place: Place, tmp_path: Path) -> None:
    place("audit", "export", RUN, "--out", tmp_path / "pack", "--no-mlflow")
    keeper = Identity.load_or_create(place.home.coordinator, COORDINATOR)
    other = Scene(tmp_path / "other.db", keeper, {name: Identity.create(name) for name in ("a", "b", "c")})
    other.show_cards()
    other.run(RUN, 3)
    other.ledger.close()
    shown = place("audit", "verify", tmp_path / "pack", "--against", tmp_path / "other.db")
    (evidence,) = tmp_path.glob("evidence-*.json")
    assert shown.code == 1 and "fork" in shown.out and str(evidence) in shown.out
    assert place("audit", "verify", evidence).code == 0
    assert place("audit", "verify", "--ledger", tmp_path / "other.db", "--against", tmp_path / "pack").code == 1


def test_witnesses_of_the_auditors_policy_decide(place: Place, tmp_path: Path) -> None:
    keeper = Identity.load_or_create(place.home.coordinator, COORDINATOR)
    notary, policy, pack = Identity.create("notary"), tmp_path / "policy.json", tmp_path / "pack"
    key = VerifierKey.of(notary, algorithm=WITNESS_KEY)
    policy.write_text(json.dumps(Policy(1, (Outsider(key),)).to_dict()))
    assert place("audit", "export", RUN, "--out", tmp_path / "before").code == 0
    with Ledger.open(place.home.ledger, keeper) as ledger:
        size = ledger.size
        ledger.add_outside(size, key, cosign(notary, ledger.checkpoint(), timestamp=86400))
    assert place("audit", "export", RUN, "--out", pack).code == 0
    for words in ([], [pack]):
        shown = place("audit", "verify", *words, "--witnesses", policy)
        assert shown.code == 0 and "1 of 1 must co-sign" in shown.out, shown
        assert f"the first {size} entries are co-signed by notary (1970-01-02 00:00:00Z)" in shown.out
        assert place("audit", "verify", *words).code == 0
    shown = place("audit", "verify", tmp_path / "before", "--witnesses", policy)
    assert shown.code == 4 and "short of witnesses from outside: 0 of 1" in shown.out
    assert "no co-signature of notary" in shown.out
    told = json.loads(place("audit", "verify", "--json", "--witnesses", policy).out)
    assert told["outside"]["signed"] == {"notary": 86400}
    policy.write_text("{}")
    for words in ([], [pack]):
        done = place("audit", "verify", *words, "--witnesses", policy)
        assert done.code == 2 and "not a witness policy" in done.err and done.err.count("\n") == 1


def test_recorder_and_verifier_share_the_words() -> None:
    views = [VIEW, {"a": {"b": {"c": [1, True]}}, "l": [{"name": "x"}, "y"], "t": True, "n": -1, "e": [], "d": {}}]
    for view in views:
        assert list(claims.flat(view)) == list(flat(view))
    assert (claims.MAX_PARAM, claims.MAX_TAG) == (_MAX_PARAM, _MAX_TAG)
    assert MAX_VALUES > 100 * _MAX_PARAM
