"""The deployment runtime from an engineer's side: the pass, what is heard of a run, and what Ctrl-C leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clients.door import Busy, Unreachable
from fl_core.config import load_job
from fl_core.errors import BudgetExceeded, FedsealError, JobFailed, RefusedError, UsageError
from fl_core.home import Home
from fl_core.trust import certificates, order
from fl_core.trust.certificates import Pair, issue_client, issue_server, make_authority
from fl_core.trust.checkpoint import log_id
from fl_core.trust.federation import Federation, Pass
from fl_core.trust.identity import Identity
from fl_core.wire.door_pb2 import Event as Told
from fl_core.wire.door_pb2 import SubmitReply
from server.registry import RunFolder, all_runs
from server.runtimes import remote
from server.runtimes.remote import Detached, Interrupted, read_pass, run_remote, watch
from strategies.coordination import Event, Stopped

AUTHORITY, OTHER = make_authority("ours"), make_authority("ours")
FEDERATION = Federation(AUTHORITY.certificate, Identity.create("coordinator").card, "fed:9443", "fed:9444")
ANN = Pass(FEDERATION, issue_client(AUTHORITY, name="ann", roles=["engineer"]))
RUN = "0123456789abcdef"
SUMMARY = {"metrics": {"accuracy": 0.9}, "mlflow_run_id": "ab" * 16, "outputs": {}}
Said = list[Any]  # what a connection brings: events, or the error that it ends with


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.delenv("FEDSEAL_PASS", raising=False)
    monkeypatch.chdir(tmp_path)
    return Home.open(tmp_path / "home")


@pytest.fixture
def job() -> Any:
    parties = [{"name": name, "data": "patients", "id": "id", "label": "y"} for name in "abc"]
    return load_job({"kind": "horizontal", "name": "test", "runtime": "deployment", "party": parties})


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    parts = {"monotonic": lambda: made.now, "time": lambda: made.now, "sleep": made.sleep}
    monkeypatch.setattr(remote, "time", SimpleNamespace(**parts, strftime=lambda text: "now"))
    return made


class Door:
    """A coordinator that says what it is told to, a connection after the other."""

    address = "fed:9444"

    def __init__(self, *connections: Said, submit: FedsealError | None = None) -> None:
        self.connections, self.submit_error = list(connections), submit
        self.submitted: list[tuple[dict[str, Any], bool]] = []
        self.asked: list[int] = []
        self.orders: list[dict[str, bytes]] = []

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None

    def submit(
        self, table: dict[str, Any], *, resume: bool, version: str, order: dict[str, bytes] | None = None
    ) -> SubmitReply:
        self.orders.append(order or {})
        if self.submit_error is not None:
            raise self.submit_error
        self.submitted.append((table, resume))
        return SubmitReply(run=RUN, digest="cd" * 32, events=4)

    def watch(self, run: str, after: int = 0) -> Iterator[Told]:
        assert run == RUN
        self.asked.append(after)
        for said in self.connections.pop(0):
            if isinstance(said, BaseException):
                raise said
            yield said() if callable(said) else said


def event(number: int, kind: str, **facts: Any) -> Told:
    return Told(number=number, kind=kind, round=number, facts=json.dumps(facts))


def failed(number: int, code: str, exit_code: int, error: str) -> Told:
    return event(number, "failed", code=code, exit_code=exit_code, error=error)


def follow(door: Door, **options: Any) -> tuple[Any, list[str]]:
    """What came of it, and the kinds of the events on the way."""
    heard: list[Event] = []
    return watch(door, RUN, heard.append, **options), [e.kind for e in heard]


# ---- the pass


def refused(home: Home) -> str:
    with pytest.raises(UsageError) as caught:
        read_pass(home)
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and "PRIVATE" not in text
    return text


def test_without_a_pass_one_is_told_how_to_come_by_it(home):
    text = refused(home)
    assert str(home.path / "pass.json") in text
    assert "allowed: fedseal login FILE" in text and "FEDSEAL_PASS" in text


def test_the_homes_pass_is_taken_and_a_named_one_goes_before_it(home, tmp_path, monkeypatch):
    (home.path / "pass.json").write_bytes(ANN.encode())
    assert read_pass(home) == ANN
    bob = Pass(FEDERATION, issue_client(AUTHORITY, name="bob", roles=["auditor"]))
    (tmp_path / "bob.pass").write_bytes(bob.encode())
    monkeypatch.setenv("FEDSEAL_PASS", str(tmp_path / "bob.pass"))
    assert read_pass(home) == bob
    monkeypatch.setenv("FEDSEAL_PASS", "")
    assert read_pass(home) == ANN


@pytest.mark.parametrize("place", ["gone.pass", ".", "gone/ann.pass", "x" * 300])
def test_a_named_pass_that_cannot_be_read_is_not_replaced_by_the_homes(home, monkeypatch, place):
    (home.path / "pass.json").write_bytes(ANN.encode())
    monkeypatch.setenv("FEDSEAL_PASS", place)
    assert place in refused(home)


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(ANN.encode()), **fields}).encode()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a pass"),
        (b"\xff\xfe{", "not a pass"),
        (b"[]", "not a pass"),
        (b"{}", "not a pass"),
        (ANN.encode()[:-40], "not a pass"),
        (changed(key=None), "not a pass"),
        (changed(certificate=7), "not a pass"),
        (changed(federation={}), "not a federation"),
        (FEDERATION.encode(), "not a pass"),
        (changed(key="-----BEGIN PRIVATE KEY-----\n"), "not a PEM private key"),
        (changed(certificate="garbage"), "not a PEM certificate"),
        (Pass(FEDERATION, Pair(ANN.person.certificate, AUTHORITY.key)).encode(), "do not belong together"),
        (Pass(FEDERATION, issue_server(AUTHORITY, ["ann"])).encode(), "not a client's certificate"),
        (Pass(FEDERATION, issue_client(OTHER, name="ann", roles=["engineer"])).encode(), "another authority"),
        (Pass(FEDERATION, issue_client(AUTHORITY, name="ann", roles=["engineer"], days=0)).encode(), "expired on"),
    ],
)
def test_a_pass_that_would_not_open_the_door_is_refused_before_anybody_is_called(home, data, says):
    (home.path / "pass.json").write_bytes(data)
    assert says in refused(home)


@pytest.mark.parametrize(
    "data",
    [
        changed(key="-----BEGIN PRIVATE KEY-----\n"),
        changed(certificate="garbage"),
        Pass(FEDERATION, Pair(ANN.person.certificate, AUTHORITY.key)).encode(),
    ],
    ids=["key", "certificate", "pair"],
)
def test_the_file_of_a_bad_pass_is_named(home, data):
    (home.path / "pass.json").write_bytes(data)
    assert str(home.path / "pass.json") in refused(home)


def test_the_job_is_told_whole_and_without_this_machines_folders(job, tmp_path):
    table = job.table()
    assert load_job(json.loads(json.dumps(table))).digest() == job.digest()
    assert [p["data"] for p in table["party"]] == ["patients"] * 3
    assert str(Path.cwd()) not in json.dumps(table) and str(tmp_path) not in json.dumps(table)


# ---- watching


def test_the_summary_is_what_comes_of_a_run():
    door = Door([event(5, "joined"), event(6, "round", loss=0.5), event(7, "summary", **SUMMARY)])
    assert follow(door, after=4) == (SUMMARY, ["joined", "round"])
    assert door.asked == [4]


@pytest.mark.parametrize(
    ("code", "exit_code", "kind"),
    [
        ("failed", 1, JobFailed),
        ("usage", 2, UsageError),
        ("refused", 3, RefusedError),
        ("budget", 3, BudgetExceeded),
        ("stopped", 1, Stopped),
        ("internal", 1, JobFailed),
        ("integrity", 1, JobFailed),
        ("of-a-later-version", 77, JobFailed),
    ],
)
def test_a_failure_there_is_the_same_failure_here(code, exit_code, kind):
    with pytest.raises(FedsealError) as caught:
        follow(Door([failed(1, code, exit_code, "party a: no")]))
    assert type(caught.value) is kind and str(caught.value) == "party a: no"


def test_a_coordinator_that_ended_in_the_run_says_how_to_go_on():
    with pytest.raises(Interrupted, match="interrupted in run 0123456789abcdef; --resume goes on") as caught:
        follow(Door([event(3, "round"), event(3, "interrupted")]))
    assert caught.value.exit_code == 1


def test_a_lost_connection_is_taken_up_after_the_last_event():
    lost = Unreachable("coordinator fed:9444 does not answer (reset)")
    door = Door(
        [event(1, "joined"), event(2, "round"), lost], [lost], [event(3, "round"), event(4, "summary", **SUMMARY)]
    )
    summary, kinds = follow(door)
    assert (summary, kinds) == (SUMMARY, ["joined", "round", "lost", "lost", "round"])
    assert door.asked == [0, 2, 2]


def test_a_stream_that_ends_without_an_end_is_taken_up_again():
    door = Door([event(1, "joined")], [], [event(2, "summary", **SUMMARY)])
    assert follow(door) == (SUMMARY, ["joined"])
    assert door.asked == [0, 1, 1]


def test_a_coordinator_that_stays_away_is_given_up_while_the_run_may_go_on(clock):
    door = Door(*([Unreachable("coordinator fed:9444 does not answer (refused)")] for _ in range(1000)))
    began = clock.now
    with pytest.raises(JobFailed, match=r"does not answer .*; run 0123456789abcdef may go on there") as caught:
        follow(door)
    assert type(caught.value) is JobFailed
    assert 300 <= clock.now - began < 310


def test_a_short_loss_in_a_round_that_takes_long_is_waited_out(clock):
    def silence() -> Told:
        clock.now += 600.0
        raise Unreachable("coordinator fed:9444 does not answer (reset)")

    door = Door([event(1, "joined"), silence], [event(2, "summary", **SUMMARY)])
    assert follow(door) == (SUMMARY, ["joined", "lost"])


def test_a_short_loss_of_a_line_on_which_nothing_came_at_all_is_waited_out(clock):
    """Taken up again in a round of ten minutes, and lost again before it ends."""

    def silence() -> Told:
        clock.now += 600.0
        raise Unreachable("coordinator fed:9444 does not answer (reset)", stood=True)

    away = Unreachable("coordinator fed:9444 does not answer (refused)")
    door = Door([event(1, "joined"), silence], [away], [silence], [away], [event(2, "summary", **SUMMARY)])
    assert follow(door) == (SUMMARY, ["joined", "lost", "lost", "lost", "lost"])


def test_a_stream_that_ended_well_and_is_then_refused_is_waited_for_from_then(clock):
    def end() -> Told:
        clock.now += 600.0
        return event(1, "joined")

    door = Door([end], [Busy("coordinator fed:9444: 24 calls watch")], [event(2, "summary", **SUMMARY)])
    assert follow(door) == (SUMMARY, ["joined", "lost"])


def test_a_coordinator_without_a_place_for_a_watcher_is_asked_again_for_some_minutes(clock):
    door = Door(*([Busy("coordinator fed:9444: 24 calls watch or follow runs here")] for _ in range(1000)))
    began = clock.now
    with pytest.raises(JobFailed, match=r"24 calls watch .*; run 0123456789abcdef may go on there"):
        follow(door)
    assert 300 <= clock.now - began < 310


def test_a_refusal_at_the_door_is_not_tried_again():
    door = Door([event(1, "joined"), RefusedError("the certificate of ann was revoked")])
    with pytest.raises(RefusedError, match="revoked"):
        follow(door)
    assert door.asked == [0]


# ---- a whole run


@pytest.fixture
def go(home: Home, job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run the job at a door."""

    def run(door: Door, *, resume: bool = False, on_event: Callable[[Event], None] | None = None) -> dict[str, Any]:
        (home.path / "pass.json").write_bytes(ANN.encode())
        monkeypatch.setattr(remote, "DoorClient", lambda held: door)
        return run_remote(job, home, out=tmp_path / "out", resume=resume, on_event=on_event)

    return run


def kept(home: Home) -> Any:
    """What this home knows of its one run."""
    ((_, info),) = all_runs(home)
    return info


def test_a_run_leaves_its_summary_and_is_found_again_here(go, home, job, tmp_path):
    heard: list[Event] = []
    door = Door([event(5, "joined"), event(6, "summary", **SUMMARY)])
    assert go(door, on_event=heard.append) == SUMMARY
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == SUMMARY
    assert [e.kind for e in heard] == ["submitted", "joined"]
    assert heard[0].facts == {"run": RUN, "coordinator": "fed:9444"}
    info = kept(home)
    assert (info.run, info.status, info.coordinator) == (RUN, "done", "fed:9444")
    assert (info.metrics, info.mlflow_run_id) == ({"accuracy": 0.9}, "ab" * 16)
    assert door.submitted == [(job.table(), False)] and door.asked == [4]


@pytest.mark.parametrize("when", ["submitted", "round"])
def test_ctrl_c_leaves_the_run_alone_and_says_how_to_find_it_again(go, home, tmp_path, when):
    def interrupt(event: Event) -> None:
        if event.kind == when:
            raise KeyboardInterrupt

    door = Door([event(5, "round"), event(6, "summary", **SUMMARY)])
    with pytest.raises(Detached) as caught:
        go(door, on_event=interrupt)
    assert str(caught.value) == f"run {RUN} goes on; fedseal logs {RUN} --follow, fedseal stop {RUN}"
    assert caught.value.exit_code == 0
    assert (kept(home).status, kept(home).coordinator) == ("running", "fed:9444")
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize(
    ("told", "kind", "status"),
    [
        (failed(5, "stopped", 1, "stopped by somebody"), Stopped, "stopped"),
        (failed(5, "budget", 3, "over the budget"), BudgetExceeded, "refused"),
        (failed(5, "refused", 3, "no"), RefusedError, "refused"),
        (failed(5, "diverged", 1, "not finite"), JobFailed, "failed"),
        (event(5, "interrupted"), Interrupted, "interrupted"),
    ],
)
def test_how_a_run_ended_is_kept_here_too(go, home, tmp_path, told, kind, status):
    with pytest.raises(kind) as caught:
        go(Door([told]))
    assert (kept(home).status, kept(home).error) == (status, str(caught.value))
    assert not (tmp_path / "out" / "summary.json").exists()


def test_a_job_that_was_not_taken_is_no_run_here(go, home):
    for error in (UsageError("train.rounds: -1"), RefusedError("Submit is for engineer"), Unreachable("away")):
        with pytest.raises(type(error), match=str(error)):
            go(Door(submit=error))
    assert all_runs(home) == []


def test_outputs_of_another_run_are_refused_before_anything_is_submitted(go, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "summary.json").write_text("{}")
    door = Door([event(5, "summary", **SUMMARY)])
    with pytest.raises(UsageError, match="holds the outputs of another run"):
        go(door)
    assert door.submitted == []


def test_a_run_submitted_from_the_coordinators_own_home_is_not_written_over(go, home):
    """There the run's process owns its folder."""
    folder = RunFolder(home.runs / RUN)
    folder.path.mkdir(parents=True)
    (folder.path / "submission.json").write_text("{}")
    (folder.path / "run.json").write_text("its own")
    go(Door([event(5, "summary", **SUMMARY)]))
    assert (folder.path / "run.json").read_text() == "its own"


def test_resuming_asks_for_it(go, job):
    door = Door([event(5, "summary", **SUMMARY)])
    go(door, resume=True)
    assert door.submitted == [(job.table(), True)]


def test_the_certificate_in_the_pass_is_the_one_that_is_shown():
    """`encode` and `decode` lose nothing that TLS needs."""
    again = Pass.decode(ANN.encode(), "ann.pass")
    certificates.check_key(again.person)
    assert again == ANN


def test_what_is_submitted_is_signed_by_whom_the_pass_is_for(home, job, monkeypatch):
    """For this coordinator's log, with a nonce of its own each time."""
    door = Door([event(5, "summary", **SUMMARY)], [event(5, "summary", **SUMMARY)])
    monkeypatch.setattr(remote, "DoorClient", lambda held: door)
    (home.path / "pass.json").write_bytes(ANN.encode())
    (home.path / "pass.json").chmod(0o600)
    for out in ("one", "two"):
        run_remote(job, home, out=home.path / out, resume=False, on_event=None)
    orders = [order.read(held[order.BLOB], held[order.CARD_BLOB]) for held in door.orders]
    for statement, said, card in orders:
        order.check(statement, said, job.public(), log=log_id(FEDERATION.coordinator))
        assert card == Identity.load_or_create(home.party("ann"), "ann").card
    assert orders[0][1].nonce != orders[1][1].nonce


def test_strict_is_the_owners_to_say_in_a_deployment(home, job):
    from server.run import run_job

    with pytest.raises(UsageError, match="the owner of a node decides"):
        run_job(job.table(), home=home.path, strict=True)
