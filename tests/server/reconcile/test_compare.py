"""MLflow's database in the hands of its administrator: each value changed, taken or added is found and named."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fl_core.errors import UsageError
from fl_core.messages import COORDINATOR
from fl_core.trust.ledger import Ledger
from fl_core.trust.verify import verify_ledger
from server.cli.main import main
from server.reconcile.compare import Reconciler
from server.reconcile.repair import repair
from tests.server.audited_run import PARTIES, ROUNDS, Kept, World, schema

pytestmark = pytest.mark.timeout(120)
__all__ = ["schema"]


@pytest.fixture(autouse=True)
def no_tracking_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # put back at the end: a delivery sets it


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, schema: Path) -> tuple[World, Kept]:
    world = World(tmp_path_factory.mktemp("world"), schema)
    return world, Kept(world)


@pytest.fixture
def world(made: tuple[World, Kept]) -> Iterator[World]:
    yield made[0]
    made[1].put_back()


def found(world: World) -> set[tuple[str, str, str]]:
    return {(d.what, d.problem, d.name) for d in world.compare().differences}


def mend(world: World) -> Any:
    with Ledger.open(world.home.ledger) as ledger:
        return repair(Reconciler(world.home, ledger), world.run)


# ---- equal


def test_run_that_nobody_touched_is_equal_in_every_value(world: World) -> None:
    result = world.compare()
    assert result.equal, [d.words for d in result.differences]
    assert result.compared["metrics"] == 4 * ROUNDS and result.compared["datasets"] == len(PARTIES)
    assert result.compared["params"] == len(world.rows("SELECT 1 FROM params WHERE run_uuid = :run"))
    assert result.compared["artifacts"] == 2 and result.compared["models"] == 1
    assert any("descriptions" in words for words in result.unchecked)


def test_ledger_with_digests_of_artifacts_still_verifies_and_mlflow_names_its_head(world: World) -> None:
    report = verify_ledger(world.home.ledger)
    assert report.status == 0 and report.runs[world.run].state == "witnessed"
    with Ledger.open(world.home.ledger) as ledger:
        last = list(ledger.entries(run=world.run))[-1]
        assert (last.kind, ledger.size) == ("publish", last.seq + 1)
        assert world.summary["ledger"]["size"] == ledger.size and world.summary["ledger"]["root"] == ledger.root.hex()
    assert [file["name"] for file in last.body["artifacts"]] == ["audit/report.html", "model/model.pt"]


def test_what_mlflow_alone_has_is_named_and_no_difference(world: World) -> None:
    world.sql(
        "INSERT INTO tags VALUES ('team', 'blue', :run)",
        "UPDATE tags SET value = 'mine' WHERE key = 'mlflow.note.content' AND run_uuid = :run",
        "INSERT INTO metrics VALUES ('system/cpu', 0.5, 1, :run, 0, 0)",
        "INSERT INTO latest_metrics VALUES ('system/cpu', 0.5, 1, 0, 0, :run)",
    )
    result = world.compare()
    assert result.equal
    assert "team" in str(result.unchecked) and "system/cpu" in str(result.unchecked)


def test_ledger_of_before_commits_to_no_artifact_and_says_so(tmp_path: Path, schema: Path) -> None:
    world = World(tmp_path, schema, commits=False)
    result = world.compare()
    assert result.equal and "audit/report.html" in str(result.unchecked)
    world.sql("UPDATE tags SET value = '7' WHERE key = 'ledger.size' AND run_uuid = :run")
    assert found(world) == {("tag", "altered", "ledger.size and ledger.root")}


# ---- SQL on mlflow.db


OF = "run_uuid = :run"
ATTACKS = {
    "a value": ([f"UPDATE metrics SET value = 0.99 WHERE key = 'accuracy' AND step = 2 AND {OF}"],
                {("metric", "altered", "accuracy")}),
    "the last digit": ([f"UPDATE metrics SET value = value * (1 + 2e-16) WHERE key = 'loss' AND step = 1 AND {OF}"],
                       {("metric", "altered", "loss")}),
    "the newest value only": ([f"UPDATE latest_metrics SET value = 0.99 WHERE key = 'accuracy' AND {OF}"],
                              {("newest", "altered", "accuracy")}),
    "no number": ([f"UPDATE metrics SET is_nan = 1 WHERE key = 'accuracy' AND step = 3 AND {OF}"],
                  {("metric", "altered", "accuracy")}),
    "a step away": ([f"DELETE FROM metrics WHERE key = 'loss' AND step = 1 AND {OF}"], {("metric", "missing", "loss")}),
    "a metric away": ([f"DELETE FROM metrics WHERE key = 'epsilon' AND {OF}",
                       f"DELETE FROM latest_metrics WHERE key = 'epsilon' AND {OF}"],
                      {("metric", "missing", "epsilon")}),
    "a second value": (["INSERT INTO metrics VALUES ('accuracy', 0.99, 9, :run, 2, 0)"],
                       {("metric", "altered", "accuracy")}),
    "a step more": (["INSERT INTO metrics VALUES ('accuracy', 0.99, 9, :run, 7, 0)"],
                    {("metric", "extra", "accuracy")}),
    "a metric more": (["INSERT INTO metrics VALUES ('auc', 0.99, 9, :run, 2, 0)",
                       "INSERT INTO latest_metrics VALUES ('auc', 0.99, 9, 2, 0, :run)"], {("metric", "extra", "auc")}),
    "another step": ([f"UPDATE metrics SET step = 9 WHERE key = 'loss' AND step = 2 AND {OF}"],
                     {("metric", "missing", "loss"), ("metric", "extra", "loss")}),
    "another run's metric": ([f"UPDATE metrics SET run_uuid = 'x' WHERE key = 'loss' AND step = 2 AND {OF}"],
                             {("metric", "missing", "loss")}),
    "a parameter": ([f"UPDATE params SET value = '0.1' WHERE key = 'privacy.target_epsilon' AND {OF}"],
                    {("param", "altered", "privacy.target_epsilon")}),
    "a parameter away": ([f"DELETE FROM params WHERE key = 'train.rounds' AND {OF}"],
                         {("param", "missing", "train.rounds")}),
    "a parameter more": (["INSERT INTO params VALUES ('privacy.audited', 'yes', :run)"],
                         {("param", "extra", "privacy.audited")}),
    "a tag": ([f"UPDATE tags SET value = 'x' WHERE key = 'fedseal.job' AND {OF}"], {("tag", "altered", "fedseal.job")}),
    "the model's digest": ([f"UPDATE tags SET value = 'x' WHERE key = 'model.digest' AND {OF}"],
                           {("tag", "altered", "model.digest")}),
    "a tag away": ([f"DELETE FROM tags WHERE key = 'fedseal.kind' AND {OF}"], {("tag", "missing", "fedseal.kind")}),
    "a tag more": (["INSERT INTO tags VALUES ('fedseal.audited', 'yes', :run)"],
                   {("tag", "extra", "fedseal.audited")}),
    "another root": ([f"UPDATE tags SET value = '{'ab' * 32}' WHERE key = 'ledger.root' AND {OF}"],
                     {("tag", "altered", "ledger.size and ledger.root")}),
    "the head away": ([f"DELETE FROM tags WHERE key LIKE 'ledger.%' AND {OF}"],
                      {("tag", "missing", "ledger.size and ledger.root")}),
    "the status": ([f"UPDATE runs SET status = 'FAILED' WHERE {OF}"], {("status", "altered", "")}),
    "not ended": ([f"UPDATE runs SET status = 'RUNNING' WHERE {OF}"], {("status", "missing", "")}),
    "the name": ([f"UPDATE runs SET name = 'other' WHERE {OF}"], {("name", "altered", "of the run")}),
    "deleted": ([f"UPDATE runs SET lifecycle_stage = 'deleted' WHERE {OF}"], {("run", "deleted", "digits")}),
    "a dataset": (["UPDATE datasets SET digest = 'x' WHERE name = 'bob'"],
                  {("dataset", "missing", "bob"), ("dataset", "extra", "bob")}),
    "artifacts elsewhere": ([f"UPDATE runs SET artifact_uri = 'file:///nowhere/at/all' WHERE {OF}"],
                            {("artifact", "missing", "audit/report.html"), ("artifact", "missing", "model/model.pt"),
                             ("model", "altered", "digits version 1")}),
    "a registered digest": (["UPDATE model_version_tags SET value = 'x' WHERE key = 'digest'"],
                            {("model", "altered", "digits version 1")}),
    "a registered model": (["UPDATE model_versions SET source = 'file:///tmp/other'"],
                           {("model", "altered", "digits version 1")}),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_administrator_who_edits_the_database_is_caught(world: World, attack: str) -> None:
    statements, expected = ATTACKS[attack]
    world.sql(*statements)
    assert found(world) == expected


@pytest.mark.parametrize("table", ["metrics", "latest_metrics", "params", "tags"])
def test_no_row_of_ours_can_be_changed_or_removed(world: World, made: tuple[World, Kept], table: str) -> None:
    """Rows of the table: a changed value, then the row away."""
    mine = " AND key NOT IN ('mlflow.note.content', 'fedseal.spool')"
    rows = [row for (row,) in world.rows(f"SELECT rowid FROM {table} WHERE {OF}{mine}")]
    changed = "value + 1" if "metrics" in table else "value || 'x'"
    assert len(rows) >= 4
    for row in rows[:: 1 + len(rows) // 3]:
        world.sql(f"UPDATE {table} SET value = {changed} WHERE rowid = {row}")
        assert not world.compare().equal, row
        world.sql(f"DELETE FROM {table} WHERE rowid = {row}")
        assert not world.compare().equal, row
        made[1].put_back()


def test_lost_run_and_forged_ones_are_named(world: World) -> None:
    forged = "f" * 32
    columns = "run_uuid, user_id, name, status, start_time, lifecycle_stage, artifact_uri, experiment_id"
    world.sql(
        f"INSERT INTO runs ({columns}) SELECT '{forged}', user_id, name, status, start_time, lifecycle_stage, artifact_uri, "
        "experiment_id FROM runs WHERE run_uuid = :run",
        f"INSERT INTO tags SELECT key, value, '{forged}' FROM tags WHERE run_uuid = :run",
    )
    assert found(world) == {("run", "extra", forged)}
    world.sql(f"UPDATE tags SET value = 'never' WHERE key = 'fedseal.run' AND run_uuid = '{forged}'")
    assert world.compare().equal
    with Ledger.open(world.home.ledger) as ledger:
        (stray,) = Reconciler(world.home, ledger).strays()
    assert stray.name == forged and "never" in stray.words
    erase(world)
    assert found(world) == {("run", "missing", "digits")}


def erase(world: World) -> None:
    for table in ("tags", "params", "metrics", "latest_metrics", "runs"):
        world.sql(f"DELETE FROM {table} WHERE run_uuid = :run")


@pytest.mark.parametrize("how", ["altered", "missing", "extra"])
def test_artifact_of_another_digest_is_caught(world: World, how: str) -> None:
    name = "audit/other.html" if how == "extra" else "audit/report.html"
    if how == "missing":
        (world.artifacts / name).unlink()
    else:
        (world.artifacts / name).write_text("<p>all is well", encoding="utf-8")
    assert found(world) == {("artifact", how, name)}


def test_every_difference_says_what_each_side_has(world: World) -> None:
    world.sql(*ATTACKS["a value"][0])
    (difference,) = world.compare().differences
    with Ledger.open(world.home.ledger) as ledger:
        due = [e.body["metrics"]["accuracy"] for e in ledger.entries(run=world.run, kind="round")][1]
    assert difference.words == f"metric accuracy, step 2: altered: MLflow has 0.99, the ledger {due}"


# ---- repair


@pytest.mark.parametrize("spooled", [True, False])
def test_what_mlflow_never_got_is_written(tmp_path: Path, schema: Path, spooled: bool) -> None:
    world = World(tmp_path, schema, up=False)
    assert found(world) == {("run", "missing", "digits")}
    if not spooled:
        world.folder.spool.unlink()
    result = mend(world)
    assert result.equal and result.repaired, [d.words for d in result.differences]
    world.summary["mlflow_run_id"] = result.mlflow_run_id
    assert world.compare().equal and len(world.rows("SELECT 1 FROM metrics")) == 4 * ROUNDS
    assert mend(world).repaired == []


@pytest.mark.parametrize("all_of_it", [True, False])
def test_what_was_deleted_is_written_again(world: World, all_of_it: bool) -> None:
    if all_of_it:
        erase(world)
    else:
        for name in ("a step away", "a metric away", "a parameter away", "a tag away", "the head away", "not ended"):
            world.sql(*ATTACKS[name][0])
        (world.artifacts / "audit" / "report.html").unlink()
    result = mend(world)
    assert result.equal, [d.words for d in result.differences]
    assert world.compare().equal


def test_database_that_is_gone_is_made_again(tmp_path: Path, schema: Path) -> None:
    world = World(tmp_path, schema, publish=False)
    moved = tmp_path / "elsewhere"
    shutil.copytree(world.home.path, moved, ignore=shutil.ignore_patterns("mlflow.db*"))
    world.home = type(world.home)(moved)
    (moved / "coordinator" / "runs" / world.run / "mlflow.jsonl").unlink()
    assert found(world) == {("run", "missing", "digits")}
    shutil.copy(schema, moved / "mlflow.db")
    assert mend(world).equal


def test_deleted_run_is_restored(world: World) -> None:
    world.sql(*ATTACKS["deleted"][0])
    result = mend(world)
    assert result.equal and "restored" in str(result.repaired)


@pytest.mark.parametrize("attack", ["a value", "the newest value only", "a parameter", "a tag", "another root",
                                    "the status", "a metric more", "a tag more", "a dataset", "the name"])  # fmt: skip
def test_repair_never_writes_over_what_differs(world: World, attack: str) -> None:
    statements, expected = ATTACKS[attack]
    world.sql(*statements)
    tables = ("metrics", "latest_metrics", "params", "tags", "runs")
    before = {table: world.rows(f"SELECT * FROM {table}") for table in tables}
    result = mend(world)
    assert not result.equal and "left as it is" in str(result.unrepaired)
    assert {(d.what, d.problem, d.name) for d in result.differences} >= {e for e in expected if e[1] != "missing"}
    assert {table: world.rows(f"SELECT * FROM {table}") for table in tables} == before


def test_repair_takes_no_artifact_that_is_not_the_ledgers(world: World) -> None:
    (world.artifacts / "audit" / "report.html").unlink()
    (world.folder.path / "report.html").write_text("<p>forged", encoding="utf-8")
    result = mend(world)
    assert not result.equal and "could not be written: artifact audit/report.html" in str(result.unrepaired)
    assert not (world.artifacts / "audit" / "report.html").exists()


# ---- runs without an end, and the command


def test_run_that_failed_or_goes_on_is_compared_as_far_as_it_is(world: World) -> None:
    with Ledger.open(world.home.ledger, world.coordinator) as world.ledger:
        size = world.ledger.size
        for name, body in (("aa01", {"code": "failed", "status": "failed"}), ("aa02", None)):
            run = name.rjust(16, "0")
            job = next(world.ledger.entries(run=world.run, kind="job")).body
            world.ledger.append([world.say(COORDINATOR, "job", job, run)])
            if body is not None:
                world.ledger.commit([world.say(COORDINATOR, "failure", body, run)])
        reconciler = Reconciler(world.home, world.ledger)
        assert [d.problem for d in reconciler.compare("aa01".rjust(16, "0")).differences] == ["missing"]
        assert len(reconciler.runs()) == 3 and size < world.ledger.size
        with pytest.raises(UsageError, match="no job of it"):
            reconciler.compare("nobody")


def command(world: World, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["fedseal", "audit", "reconcile", *words, "--home", str(world.home.path)])
        main()
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def test_exit_codes_and_words(tmp_path: Path, schema: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(tmp_path, schema, publish=False)
    assert command(world, capsys)[0] == 0
    assert command(world, capsys, "digits")[0] == 0
    assert command(world, capsys, "nonsense")[0] == 2
    world.sql("UPDATE metrics SET value = 0.99 WHERE key = 'accuracy' AND step = 2",
              "INSERT INTO tags VALUES ('fedseal.[red]x', '\x1b[2J[/red]', :run)")  # fmt: skip
    code, out, _ = command(world, capsys, "digits")
    assert code == 1 and "metric accuracy, step 2: altered: MLflow has 0.99" in out
    assert "fedseal.[red]x" in out and "\x1b[2J" not in out
    code, out, _ = command(world, capsys, "--json")
    told = json.loads(out)
    assert code == 1 and told["equal"] is False and len(told["runs"][0]["differences"]) == 2
    code, out, _ = command(world, capsys, "digits", "--repair")
    assert code == 1 and "left as it is" in out


def test_broken_ledger_is_nothing_to_compare_with(
    tmp_path: Path, schema: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path, schema, publish=False)
    with sqlite3.connect(world.home.ledger) as db:
        db.execute("""UPDATE entries SET leaf = replace(leaf, '"accuracy":"0', '"accuracy":"1') WHERE kind = 'round'""")
    db.close()
    code, _, err = command(world, capsys)
    assert code == 1 and "broken ledger" in err
