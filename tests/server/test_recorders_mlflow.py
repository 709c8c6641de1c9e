"""MLflow as a view: it gets everything once, and nothing it does stops or slows a round."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from fl_core.records import RoundRecord, decimal
from server.recorders.mlflow import MlflowRecorder, deliver_leftovers
from server.recorders.mlflow_process import Delivery
from server.recorders.mlflow_writer import make_store
from server.recorders.spool import Spool

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose schema is made: that takes seconds, once."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    make_store(f"sqlite:///{path}")
    return path


@pytest.fixture
def home(tmp_path: Path, empty_store: Path) -> Path:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path


def uri(home: Path) -> str:
    return f"sqlite:///{home / 'mlflow.db'}"


def start(home: Path, run: str = "r1", **changes: Any) -> MlflowRecorder:
    settings: dict[str, Any] = {
        "tracking_uri": uri(home),
        "artifacts": home / "artifacts",
        "experiment": "fedseal",
        "run_name": "digits",
        "params": {"train.rounds": "20"},
        "tags": {"fedseal.run": run},
        "datasets": [{"name": "hospital", "digest": "ab" * 32, "context": "training"}],
    }
    return MlflowRecorder.start(home / "runs" / run / "mlflow.jsonl", **(settings | changes))


def record(number: int, run: str = "r1") -> RoundRecord:
    metrics = {"accuracy": decimal(0.1 + number / 37), "loss": decimal(2.3 / (number + 1)), "bytes_up": "123457"}
    return RoundRecord(run, number, metrics, ("secret_party",))


def runs(home: Path) -> list[Any]:
    client = MlflowClient(uri(home))
    experiment = client.get_experiment_by_name("fedseal")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def history(home: Path, run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in MlflowClient(uri(home)).get_metric_history(run_id, metric)]


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def delivered_beyond(recorder: MlflowRecorder, offset: int) -> bool:
    return recorder._spool.load().offset > offset


def deliver(spool: Path) -> Delivery:
    """Deliver in this process, as one whose run is gone."""
    delivery = Delivery(Spool(spool), None)
    delivery.run()
    return delivery


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorder only spools; the test delivers."""
    monkeypatch.setattr(MlflowRecorder, "_keep_child", lambda self: None)


@pytest.fixture
def closed_port() -> Iterator[str]:
    with socket.socket() as taken:  # bound, but nobody listens: connections are refused
        taken.bind(("127.0.0.1", 0))
        yield f"http://user:hunter2@127.0.0.1:{taken.getsockname()[1]}"


# ---- what MLflow holds


@pytest.mark.e2e
def test_everything_arrives_and_values_are_the_floats_of_the_texts(home: Path) -> None:
    began = time.monotonic()
    recorder = start(home)
    for n in range(8):
        recorder.record(record(n))
    assert time.monotonic() - began < 1.0  # the import of mlflow alone takes two
    (home / "report.html").write_text("<p>report")
    (home / "model.pt").write_bytes(b"weights")
    publish = {"model": str(home / "model.pt"), "name": "team/digits", "digest": "cd" * 32}
    artifacts = [(str(home / "report.html"), "audit")]
    tags = {"ledger.root": "ff"}
    done = recorder.finish("FINISHED", tags=tags, note="**b**", artifacts=artifacts, publish=publish, timeout=60)
    assert (done, recorder.reason, recorder.version()) == (True, "", "1")
    (run,) = runs(home)
    assert run.info.run_id == recorder.run_id() and run.info.status == "FINISHED"
    for name in record(0).metrics:
        assert history(home, run.info.run_id, name) == [(n, float(record(n).metrics[name])) for n in range(8)]
    assert run.data.params == {"train.rounds": "20"}
    assert run.data.tags["ledger.root"] == "ff" and run.data.tags["mlflow.note.content"] == "**b**"
    client = MlflowClient(uri(home))
    assert [f.path for f in client.list_artifacts(run.info.run_id, "audit")] == ["audit/report.html"]
    assert [f.path for f in client.list_artifacts(run.info.run_id, "model")] == ["model/model.pt"]
    assert client.get_model_version("team-digits", "1").run_id == run.info.run_id
    assert client.get_experiment_by_name("fedseal").artifact_location == (home / "artifacts").as_uri()


def test_no_user_path_or_party_leaks(home: Path, no_process: None) -> None:
    recorder = start(home)
    recorder.record(record(1))
    recorder.finish("FINISHED", timeout=0)
    deliver(home / "runs/r1/mlflow.jsonl")
    (run,) = runs(home)
    assert run.info.user_id in ("", "unknown")
    assert set(run.data.tags) == {"fedseal.run", "fedseal.spool", "mlflow.runName", "mlflow.source.name"}
    assert run.data.tags["mlflow.source.name"] == "fedseal"
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.schema, used.dataset.profile) == ("hospital", None, None)
    assert json.loads(used.dataset.source) == {"commitment": "ab" * 32}
    told = json.dumps([run.data.to_dictionary(), used.to_dictionary()])
    for secret in ("secret_party", str(home), os.path.expanduser("~"), os.environ.get("USER") or "\0"):
        assert secret not in told


def test_nan_and_over_long_texts_do_not_block_what_follows(home: Path, no_process: None) -> None:
    recorder = start(home, params={"party": "x" * 7000, "a b/c": "1"} | {f"p{i}": "1" for i in range(150)})
    recorder.record(RoundRecord("r1", 1, {"loss": "nan"}, ()))
    recorder.record(record(2))
    recorder.finish("FAILED", note="n" * 9000, timeout=0)
    deliver(home / "runs/r1/mlflow.jsonl")
    (run,) = runs(home)
    assert len(run.data.params) == 152 and run.info.status == "FAILED"
    losses = history(home, run.info.run_id, "loss")
    assert [step for step, _ in losses] == [1, 2] and losses[0][1] != losses[0][1]


def test_what_mlflow_refuses_for_good_is_told_and_left_out(home: Path, no_process: None) -> None:
    recorder = start(home)
    recorder.record(RoundRecord("r1", 1, {"bad\nname": "1"}, ()))
    recorder.record(record(2))
    recorder.finish("FINISHED", artifacts=[(home / "gone.html", "audit")], timeout=0)
    deliver(home / "runs/r1/mlflow.jsonl")
    (run,) = runs(home)
    assert [s for s, _ in history(home, run.info.run_id, "loss")] == [2] and run.info.status == "FINISHED"
    assert recorder.finish("FINISHED", timeout=0) is False  # one more line, not delivered
    deliver(home / "runs/r1/mlflow.jsonl")
    assert "refused 2" in recorder._why() and "gone.html" in recorder._why()


# ---- crashes


@pytest.mark.e2e
def test_killed_process_loses_nothing_and_logs_nothing_twice(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.recorders.mlflow.RESTART_SECONDS", 0.0)
    recorder = start(home)
    for n in range(60):
        recorder.record(record(n))
        if n in (20, 40):
            wait_for(partial(delivered_beyond, recorder, 1000 * (n // 20)))
            assert recorder._child is not None
            os.kill(recorder._child.pid, signal.SIGKILL)
            recorder._child.wait()
    assert recorder.finish("FINISHED", timeout=60), recorder.reason
    (run,) = runs(home)
    for name in ("accuracy", "loss", "bytes_up"):
        assert history(home, run.info.run_id, name) == [(n, float(record(n).metrics[name])) for n in range(60)]


@pytest.mark.parametrize("lost", ["state before the run", "state before the line"])
def test_crash_between_mlflow_and_the_state_repeats_nothing(home: Path, no_process: None, lost: str) -> None:
    recorder = start(home)
    for n in range(4):
        recorder.record(record(n))
    spool = Spool(home / "runs/r1/mlflow.jsonl")
    deliver(spool.path)
    done = spool.load()
    ends = [end for _, end in spool.lines()]
    if lost == "state before the run":
        Path(f"{spool.path}.state").unlink()
    else:
        spool.save(replace(done, offset=ends[-2]))
    recorder.record(record(4))
    recorder.finish("FINISHED", timeout=0)
    deliver(spool.path)
    (run,) = runs(home)  # no second run
    assert run.info.run_id == done.mlflow_run_id
    assert [step for step, _ in history(home, run.info.run_id, "accuracy")] == [0, 1, 2, 3, 4]


def test_repeated_line_is_looked_up_by_step_even_where_the_store_would_take_it(home: Path, no_process: None) -> None:
    recorder = start(home)
    recorder.record(record(1))
    spool = Spool(home / "runs/r1/mlflow.jsonl")
    deliver(spool.path)
    Path(f"{spool.path}.state").unlink()
    text = spool.path.read_text()
    line = next(line for line in text.splitlines() if '"round"' in line)
    moved = json.dumps(json.loads(line) | {"t": 1})  # SQL stores drop a repeat only when its time is the same
    spool.path.write_text(text.replace(line, moved))
    deliver(spool.path)
    (run,) = runs(home)
    assert len(history(home, run.info.run_id, "accuracy")) == 1


def test_resume_goes_on_with_the_same_run_and_knows_its_rounds(home: Path, no_process: None) -> None:
    first = start(home)
    for n in range(3):
        first.record(record(n))
    first.finish("FAILED", tags={"fedseal.error": "failed"}, timeout=0)
    spool = home / "runs/r1/mlflow.jsonl"
    deliver(spool)
    assert runs(home)[0].info.status == "FAILED"
    second = start(home)
    assert second.steps() == {0, 1, 2}
    for n in range(5):  # the ledger's records again: those that are there are left out
        second.record(record(n))
    deliver(spool)
    assert runs(home)[0].info.status == "KILLED"  # the process of this run is gone in the middle
    second.finish("FINISHED", timeout=0)
    deliver(spool)
    (run,) = runs(home)
    assert run.info.status == "FINISHED" and run.info.run_id == second.run_id() == first.run_id()
    assert [step for step, _ in history(home, run.info.run_id, "accuracy")] == [0, 1, 2, 3, 4]


def test_store_that_was_deleted_gets_everything_again(home: Path, no_process: None, empty_store: Path) -> None:
    recorder = start(home)
    recorder.record(record(1))
    deliver(home / "runs/r1/mlflow.jsonl")
    other = home / "other"
    other.mkdir()
    shutil.copy(empty_store, other / "mlflow.db")
    again = start(home, tracking_uri=uri(other))
    again.record(record(2))
    again.finish("FINISHED", timeout=0)
    deliver(home / "runs/r1/mlflow.jsonl")
    (run,) = runs(other)
    assert [step for step, _ in history(other, run.info.run_id, "accuracy")] == [1, 2]


@pytest.mark.e2e
def test_killed_parent_ends_the_process_and_the_run_in_mlflow(home: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nsys.path.insert(0, sys.argv[2])\n"
        "from test_recorders_mlflow import start, record\n"
        "r = start(Path(sys.argv[1]))\nr.record(record(1)); r.record(record(2))\n"
        "print(r._child.pid, flush=True)\ntime.sleep(60)"
    )
    arguments = [sys.executable, "-c", code, str(home), str(Path(__file__).parent)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    wait_for(lambda: not Path(f"/proc/{child}").exists() or "zombie" in Path(f"/proc/{child}/status").read_text())
    (run,) = runs(home)
    assert run.info.status == "KILLED"
    assert [step for step, _ in history(home, run.info.run_id, "accuracy")] == [1, 2]


# ---- MLflow is down


@pytest.mark.e2e
def test_mlflow_down_costs_a_round_nothing_and_finish_says_what_waits_where(home: Path, closed_port: str) -> None:
    recorder = start(home, tracking_uri=closed_port)
    slowest = 0.0
    for n in range(50):
        began = time.perf_counter()
        recorder.record(record(n))
        slowest = max(slowest, time.perf_counter() - began)
    assert slowest < 0.05
    wait_for(lambda: recorder._spool.load().error)
    began = time.monotonic()
    assert recorder.finish("FINISHED", timeout=0.5) is False
    assert time.monotonic() - began < 1.5
    assert str(home / "runs/r1/mlflow.jsonl") in recorder.reason and "53 lines" in recorder.reason
    log = (home / "runs/r1/mlflow.jsonl.log").read_text()
    assert "hunter2" not in recorder.reason and "hunter2" not in log
    assert 1 <= len(log.splitlines()) <= 3
    assert recorder._child is not None
    recorder._child.kill()
    recorder._child.wait()
    assert len(list(recorder._spool.lines())) == 53


@pytest.mark.e2e
def test_leftovers_of_a_run_that_is_gone_are_delivered(home: Path, no_process: None) -> None:
    gone = start(home, "gone")
    gone.record(record(1, "gone"))
    gone.finish("FINISHED", timeout=0)
    alive = start(home, "alive")
    alive.record(record(1, "alive"))
    assert deliver_leftovers(home / "runs") == [home / "runs/gone/mlflow.jsonl"]
    wait_for(lambda: Spool(home / "runs/gone/mlflow.jsonl").load().ended)
    (run,) = runs(home)
    assert run.data.tags["fedseal.run"] == "gone" and run.info.status == "FINISHED"
    assert deliver_leftovers(home / "runs") == []


def test_full_disk_never_reaches_the_round(home: Path, no_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = start(home)
    write = os.write

    def short(fd: int, data: bytes) -> int:
        return write(fd, data[: len(data) // 2])

    monkeypatch.setattr("server.recorders.mlflow.os.write", short)
    recorder.record(record(1))
    monkeypatch.setattr("server.recorders.mlflow.os.write", write)
    recorder.record(record(2))
    assert recorder.finish("FINISHED", timeout=0) is False
    deliver(home / "runs/r1/mlflow.jsonl")
    assert "no space" in recorder._why()
    (run,) = runs(home)
    assert [step for step, _ in history(home, run.info.run_id, "accuracy")] == [2]


# ---- the experiment


@pytest.mark.e2e
def test_two_first_runs_at_once_share_store_and_experiment(tmp_path: Path) -> None:
    home = tmp_path  # without a store: MLflow alone breaks it for good when two make it at once
    recorders = [start(home, run) for run in ("a", "b")]
    for recorder in recorders:
        recorder.record(record(1))
    assert [r.finish("FINISHED", timeout=60) for r in recorders] == [True, True]
    assert {r.data.tags["fedseal.run"] for r in runs(home)} == {"a", "b"}


def test_store_whose_making_was_killed_is_made_again(tmp_path: Path, no_process: None) -> None:
    (tmp_path / ".mlflow.db.new").write_bytes(b"half a store")
    start(tmp_path).finish("FINISHED", timeout=0)
    assert deliver(tmp_path / "runs/r1/mlflow.jsonl")._state.error == ""
    assert len(runs(tmp_path)) == 1
    assert not (tmp_path / ".mlflow.db.new").exists()


def test_experiment_made_between_look_and_make_is_taken(home: Path, no_process: None, monkeypatch: Any) -> None:
    start(home).finish("FINISHED", timeout=0)
    look = MlflowClient.get_experiment_by_name
    seen: list[str] = []

    def late(client: MlflowClient, name: str) -> Any:
        seen.append(name)
        if len(seen) == 1:
            client.create_experiment(name)  # the other process
            return None
        return look(client, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", late)
    assert deliver(home / "runs/r1/mlflow.jsonl")._state.error == ""
    assert len(runs(home)) == 1


def test_deleted_experiment_is_brought_back(home: Path, no_process: None) -> None:
    client = MlflowClient(uri(home))
    client.delete_experiment(client.create_experiment("fedseal"))
    start(home).finish("FINISHED", timeout=0)
    deliver(home / "runs/r1/mlflow.jsonl")
    assert len(runs(home)) == 1
