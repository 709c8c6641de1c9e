"""The door over real TLS with real certificates: who is kept out, what is refused, and the line that the caller reads."""

from __future__ import annotations

import dataclasses
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import Any

import grpc
import pytest

import clients.door as client_module
import server.coordinator.door as module
from clients.door import Busy, DoorClient, Unreachable
from fl_core.config import load_job
from fl_core.errors import DataError, FedsealError, JobFailed, RefusedError, UsageError, WaitTimeout
from fl_core.processes import free_port
from fl_core.trust import certificates
from fl_core.trust.federation import Pass
from fl_core.trust.node_card import NodeCard
from fl_core.wire.door_pb2 import LogsRequest, SubmitRequest, WatchRequest
from server.coordinator.door import Door, open_door
from server.coordinator.folder import CoordinatorFolder
from server.coordinator.submission import Caller, Events, save
from server.registry import RunFolder, RunInfo, all_runs, new_run_id

OURS = version("fedseal")
Act = Callable[[], Any]


@dataclasses.dataclass
class Service:
    """A door that is open; `main` is what runs in the coordinator's main thread."""

    folder: CoordinatorFolder
    server: grpc.Server
    notes: list[tuple[str, str, dict[str, Any]]] = dataclasses.field(default_factory=list)
    acts: int = 0
    main: Callable[[Act], Any] = lambda act: act()

    def on_main(self, act: Act) -> Any:
        self.acts += 1
        return self.main(act)

    def add_run(self, name: str = "digits", *, submitter: str | None = "ann", **changes: Any) -> RunFolder:
        values = {"kind": "horizontal", "runtime": "deployment", "job": "ab" * 32, "out": "/out", "started": 0.0}
        info = RunInfo(run=new_run_id(), name=name, pid=1, **{**values, **changes})
        run = RunFolder.create(self.folder.home, info)
        if submitter is not None:
            save(run.path, {}, Caller(submitter, ("engineer",), "ab" * 32))
        return run


@pytest.fixture(autouse=True)
def port(settings, monkeypatch) -> int:
    """A free one, and quick looks."""
    monkeypatch.setattr(module, "LOOK", 0.02)
    number = free_port()
    settings(bind="0.0.0.0", door_port=number)
    return number


@pytest.fixture
def service(folder, runs) -> Iterator[Service]:
    made = Service(folder, None)

    def note(kind: str, run: str, body: dict[str, Any]) -> None:
        made.notes.append((kind, run, body))

    made.server = open_door(Door(folder, runs, made.on_main, note), folder, note)
    yield made
    made.server.stop(0).wait(10)


@pytest.fixture
def ann(service, admit) -> Iterator[DoorClient]:
    with DoorClient(admit("ann")) as client:
        yield client


def told(kind: type[FedsealError], call: Callable[[], Any]) -> str:
    """The line that the caller reads."""
    with pytest.raises(FedsealError) as caught:
        call()
    assert type(caught.value) is kind, repr(caught.value)
    text = str(caught.value)
    assert text.strip() and len(text.splitlines()) == 1 and len(text) < 1000 and "PRIVATE" not in text
    return text


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def raw(held: Pass, method: str, data: bytes, person: certificates.Pair | None) -> grpc.RpcError:
    """A call with bytes as they are; the error that comes back."""
    shown = (person.key, person.certificate) if person else (None, None)
    credentials = grpc.ssl_channel_credentials(held.federation.authority, *shown)
    with grpc.secure_channel(held.federation.door, credentials) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/fedseal.door.v1.Door/{method}")(data, timeout=10)
        return caught.value


# ---- the connection


def long_ago(issue: Callable[[], certificates.Pair], monkeypatch: pytest.MonkeyPatch) -> certificates.Pair:
    """What was issued 400 days ago."""

    class Past(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) - timedelta(days=400)

    with monkeypatch.context() as then:
        then.setattr(certificates, "datetime", Past)
        return issue()


def kept_out(service: Service, held: Pass) -> str:
    with DoorClient(held) as client:
        text = told(Unreachable, client.runs)
        told(Unreachable, lambda: list(client.watch("any")))
        told(Unreachable, lambda: client.submit({}, resume=False, version=OURS))
    assert (service.acts, service.notes) == (0, [])
    assert f"coordinator {held.federation.door} does not answer" in text
    return text


def test_an_expired_certificate_does_not_get_in(service, admit, monkeypatch):
    ann = admit("ann")
    authority = service.folder.authority()
    pair = long_ago(lambda: certificates.issue_client(authority, name="ann", roles=["engineer"]), monkeypatch)
    checked = certificates.check(ann.person.certificate, authority=authority.certificate, purpose="client")
    expired = dataclasses.replace(checked, fingerprint=certificates.fingerprint(pair.certificate))
    service.folder.people.add(expired)
    kept_out(service, Pass(ann.federation, pair))


def test_a_certificate_of_another_authority_does_not_get_in(service, admit):
    other = certificates.make_authority("fedseal other")
    pair = certificates.issue_client(other, name="ann", roles=["engineer", "operator"])
    kept_out(service, Pass(admit("ann").federation, pair))


def test_without_a_certificate_nobody_gets_in(service, admit):
    error = raw(admit("ann"), "List", b"", None)
    assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_a_connection_without_tls_gets_nothing(service, admit):
    with grpc.insecure_channel(admit("ann").federation.door) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/fedseal.door.v1.Door/List")(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert service.notes == []


def test_a_coordinator_under_another_name_than_its_certificates_is_not_talked_to(service, admit, port):
    ann = admit("ann")
    with DoorClient(ann) as client:
        assert client.runs() == []
    kept_out(
        service, dataclasses.replace(ann, federation=dataclasses.replace(ann.federation, door=f"127.0.0.2:{port}"))
    )


def test_a_coordinator_of_another_authority_is_not_talked_to(service, admit):
    """Somebody else listens where the pass says that the coordinator is."""
    ours = certificates.make_authority("fedseal ours")
    pair = certificates.issue_client(ours, name="ann", roles=["engineer"])
    kept_out(service, Pass(dataclasses.replace(admit("ann").federation, authority=ours.certificate), pair))


def test_a_coordinator_whose_certificate_has_expired_is_not_talked_to(folder, runs, admit, serve_with, monkeypatch):
    authority = folder.authority()
    serve_with(long_ago(lambda: certificates.issue_server(authority, ["localhost"]), monkeypatch))
    server = open_door(Door(folder, runs, lambda act: act(), lambda *_: None), folder, lambda *_: None)
    with DoorClient(admit("ann")) as client:
        told(Unreachable, client.runs)
    server.stop(0)


def test_a_coordinator_that_is_away_is_told_at_once_with_its_address(folder, admit):
    held = admit("ann")
    began = time.monotonic()
    with DoorClient(held) as client:
        assert held.federation.door in told(Unreachable, client.runs)
    assert time.monotonic() - began < 5


def test_a_door_whose_port_is_taken_is_one_line(service, runs, port):
    text = told(JobFailed, lambda: open_door(Door(service.folder, runs, None, None), service.folder, None))
    assert f"0.0.0.0:{port} is taken" in text


# ---- the person


@pytest.mark.parametrize("kind", ["not issued here", "a server's"])
def test_a_certificate_of_the_authority_that_is_nobodys_is_refused(service, admit, kind):
    authority, held = service.folder.authority(), admit("ann")
    pairs = {
        "not issued here": certificates.issue_client(authority, name="ann", roles=["operator"]),
        "a server's": service.folder.server(),
    }
    error = raw(held, "List", b"", pairs[kind])
    assert error.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE)
    if kind == "not issued here":
        assert error.details() == "the certificate of ann is not in this coordinator's register"
        ((noted, _, body),) = service.notes
        fingerprint = certificates.fingerprint(pairs[kind].certificate)
        caller = {"name": "ann", "roles": ["operator"], "certificate": fingerprint}
        assert (noted, body) == ("refusal", {"caller": caller, "method": "List", "code": "unknown"})


def test_a_revoked_person_is_refused_from_the_next_call_on_an_open_connection(service, ann):
    assert ann.runs() == []
    service.folder.people.revoke("ann")
    assert told(RefusedError, ann.runs) == "the certificate of ann was revoked"
    assert "revoked" in told(RefusedError, lambda: list(ann.logs("any", follow=True)))
    assert "revoked" in told(RefusedError, lambda: ann.submit({}, resume=False, version=OURS))
    assert service.acts == 0
    assert [(kind, body["method"], body["code"]) for kind, _, body in service.notes] == [
        ("refusal", method, "revoked") for method in ("List", "Logs", "Submit")
    ]
    (known,) = service.folder.people.all()
    caller = {"name": "ann", "roles": ["engineer"], "certificate": known.fingerprint}
    assert all(body["caller"] == caller for _, _, body in service.notes)


def test_a_new_pass_shuts_out_the_lost_one(service, admit):
    lost = admit("ann", "operator")
    with DoorClient(lost) as thief, DoorClient(admit("ann", "engineer")) as ann:
        assert "revoked" in told(RefusedError, thief.runs)
        assert ann.runs() == []


CALLS: dict[str, Callable[[DoorClient, str], Any]] = {
    "Submit": lambda client, run: client.submit({}, resume=False, version=OURS),
    "Check": lambda client, run: client.check({}, version=OURS),
    "Stop": lambda client, run: client.stop(run),
    "Watch": lambda client, run: list(client.watch(run)),
    "List": lambda client, run: client.runs(),
    "Logs": lambda client, run: list(client.logs(run, follow=False)),
    "Board": lambda client, run: client.board(["dataset"], 0),
}


@pytest.mark.parametrize(
    ("role", "may"),
    [
        ("engineer", {"Submit", "Check", "Stop", "Watch", "List", "Logs", "Board"}),
        ("model-owner", {"Submit", "Check", "Stop", "Watch", "List", "Logs", "Board"}),
        ("operator", {"Stop", "Watch", "List", "Logs", "Board"}),
        ("auditor", {"Watch", "List", "Logs", "Board"}),
        ("data-owner", {"Board"}),
        ("receiver", {"Board"}),
    ],
)
def test_each_role_may_do_what_is_its_own_and_a_refusal_is_noted(service, admit, role, may):
    """As docs/deployment.md promises."""
    assert CALLS.keys() | {"Post"} == {method.name for method in module.SERVICE.methods} == module.ACTIONS.keys()
    run = service.add_run(submitter="bob", status="done").path.name
    with DoorClient(admit("bob", role)) as client:
        for name, call in CALLS.items():
            service.notes.clear()
            try:
                call(client, run)
                refused = ""
            except RefusedError as error:
                refused = str(error)
            except UsageError:  # the job is none, the run is over: but not for want of a right
                refused = ""
            assert (not refused) is (name in may), name
            if refused:
                assert refused.startswith(f"bob ({role}) may not ") and "; allowed: model-owner" in refused
                ((kind, _, body),) = service.notes
                assert (kind, body["method"], body["code"]) == ("refusal", name, "role")
                assert (body["caller"]["name"], body["caller"]["roles"]) == ("bob", [role])
                assert len(body["caller"]["certificate"]) == 64
    assert service.acts == (2 if role in ("engineer", "model-owner") else 0)


def test_a_person_of_two_roles_has_the_rights_of_both(service, admit):
    with DoorClient(admit("eve", "auditor", "operator")) as client:
        run = service.add_run(submitter="ann", status="done").path.name
        assert "not running" in told(UsageError, lambda: client.stop(run))


def test_a_job_for_a_node_without_the_role_is_refused_and_noted(service, folder, ann, job):
    node = folder.nodes.all()["b"]
    folder.nodes.register(NodeCard.from_dict(node.card), ["receiver"])
    for method, call in (
        ("Submit", lambda: ann.submit(job, resume=False, version=OURS)),
        ("Check", lambda: ann.check(job, version=OURS)),
    ):
        service.notes.clear()
        assert told(RefusedError, call).startswith("b (receiver) may not take part in a job with data")
        ((kind, run, body),) = service.notes
        assert (kind, run, body["caller"]["name"], body["method"], body["code"]) == ("refusal", "", "ann", method, "role")
    assert all_runs(folder.home) == []


# ---- what is submitted


@pytest.mark.parametrize("theirs", ["0.0.1", "", OURS + " ", "x" * 5000, "1\n2\r3", "ü" * 100])
def test_another_version_of_fedseal_is_refused_and_both_are_named(service, ann, job, theirs):
    for call in (
        lambda: ann.submit(job, resume=False, version=theirs),
        lambda: ann.check(job, version=theirs),
    ):
        assert f"; the coordinator has {OURS}" in told(UsageError, call)
    assert service.acts == 0


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"job"', "{'kind': 1}", '{"kind": "horizontal"', "\0"])
def test_a_job_that_is_no_table_is_refused(service, admit, text):
    held = admit("ann")
    error = raw(held, "Submit", SubmitRequest(version=OURS, job=text).SerializeToString(), held.person)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "the submitted job is not a JSON table"
    assert service.acts == 0


def test_a_job_that_is_nested_without_end_is_refused_like_any_other_that_is_no_table(service, admit):
    held = admit("ann")
    request = SubmitRequest(version=OURS, job='{"a":' * 100_000)
    error = raw(held, "Submit", request.SerializeToString(), held.person)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "the submitted job is not a JSON table"


@pytest.mark.parametrize("data", [b"\xff" * 20, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xc3\x28"])
def test_bytes_that_are_no_request_are_refused_and_the_door_stays_open(service, admit, ann, data):
    held = admit("bob")
    for method in ("Submit", "Frobnicate", "List/", "../Submit"):
        code = raw(held, method, data, held.person).code()
        assert code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED), method
    assert (service.acts, ann.runs()) == (0, [])


def test_an_oversized_job_is_refused_before_it_is_read_and_one_below_the_limit_is_looked_at(service, ann):
    text = told(JobFailed, lambda: ann.submit({"name": "x" * (5 << 20)}, resume=False, version=OURS))
    assert "larger than max" in text and service.acts == 0
    told(UsageError, lambda: ann.submit({"colour": "x" * (3 << 20)}, resume=False, version=OURS))
    assert service.acts == 1


@pytest.mark.parametrize("change", [{"colour": "red"}, {"train": {"rounds": -1}}, {"runtime": "local"}])
def test_a_mistake_in_a_job_is_told_as_on_ones_own_machine(service, ann, job, change):
    table = {**job, **change, "dataset": {"name": "digits"}, "party": [{"name": n} for n in "abc"]}
    text = told(UsageError, lambda: ann.submit(table, resume=False, version=OURS))
    if change.get("runtime") == "local":
        assert text == "runtime 'local'; allowed at a coordinator: deployment"
    else:
        with pytest.raises(UsageError) as here:
            load_job(table)
        assert text == str(here.value)


@pytest.mark.parametrize("letter", ["k", "ü", "%", "\U0001f600"])
def test_a_mistake_with_a_long_value_is_still_a_mistake(service, ann, job, letter):
    """gRPC writes other letters than ASCII's as up to twelve bytes, and a trailer's size is bounded."""
    with pytest.raises(UsageError) as told:
        ann.submit({**job, letter * 30_000: 1}, resume=False, version=OURS)
    assert type(told.value) is UsageError and str(told.value) == letter * 2000


def test_a_mistake_in_letters_that_no_text_has_is_still_a_mistake(service, ann, job):
    with pytest.raises(UsageError):
        ann.submit({**job, "\ud800": 1}, resume=False, version=OURS)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (UsageError("bad\nvalue"), UsageError, "bad value"),
        (DataError("here", "bad", allowed="good"), UsageError, "here: bad; allowed: good"),
        (RefusedError("no ü"), RefusedError, "no ü"),
        (JobFailed("party a: gone"), JobFailed, "party a: gone"),
        (WaitTimeout("the coordinator's main loop", 120.0), JobFailed, "waited 120 s for the coordinator's main loop"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_arrives_as_the_class_it_was(service, ann, job, error, kind, text):
    def fail(act: Act) -> Any:
        raise error

    service.main = fail
    assert told(kind, lambda: ann.submit(job, resume=False, version=OURS)) == text


def test_an_error_that_nobody_foresaw_tells_nothing_of_what_was_inside(service, ann, job, caplog):
    def fail(act: Act) -> Any:
        raise KeyError("the-password")

    service.main = fail
    text = told(JobFailed, lambda: ann.submit(job, resume=False, version=OURS))
    assert "KeyError; the coordinator's output says more" in text and "the-password" not in text
    assert "the-password" in caplog.text


def test_a_submitted_job_runs_and_can_be_resumed_by_the_same_job(service, runs, ann, job, program):
    program("exit 1")
    first = ann.submit(job, resume=False, version=OURS)
    assert (first.digest, first.events) == (load_job(job).digest(), 0)
    until(lambda: bool(runs.reap()))
    Events(runs.find(first.run)[0].path).add("joined", 0, {})
    again = ann.submit(job, resume=True, version=OURS)
    assert (again.run, again.events) == (first.run, 1)
    kept = json.loads((runs.find(first.run)[0].path / "submission.json").read_text())
    assert (kept["caller"]["name"], kept["caller"]["roles"]) == ("ann", ["engineer"])
    assert kept["caller"]["certificate"] == service.folder.people.all()[0].fingerprint


def test_a_check_says_what_the_parties_said(service, ann, job, program):
    program("""echo '{"ok": false, "parties": [{"party": "a", "status": "refused"}]}'""")
    found = ann.check(job, version=OURS)
    assert found == {"ok": False, "parties": [{"party": "a", "status": "refused"}]}
    assert ann.runs() == []


# ---- watching


def events_of(run: RunFolder, *kinds: str) -> Events:
    events = Events(run.path)
    for number, kind in enumerate(kinds, start=1):
        events.add(kind, number, {"n": number})
    return events


@pytest.mark.parametrize(
    ("kinds", "after", "heard"),
    [
        (["joined", "round", "summary"], 0, [(1, "joined"), (2, "round"), (3, "summary")]),
        (["joined", "round", "summary"], 2, [(3, "summary")]),
        (["round", "failed"], 0, [(1, "round"), (2, "failed")]),
        (["failed", "resumed", "summary"], 0, [(2, "resumed"), (3, "summary")]),
        (["failed", "resumed", "failed"], 1, [(2, "resumed"), (3, "failed")]),
        ([], 0, [(0, "interrupted")]),
        (["round"], 0, [(1, "round"), (1, "interrupted")]),
        (["round", "failed", "resumed"], 0, [(1, "round"), (3, "resumed"), (3, "interrupted")]),
    ],
)
def test_a_watcher_hears_each_event_once_and_then_how_the_run_ended(service, ann, kinds, after, heard):
    run = service.add_run()
    events_of(run, *kinds)
    got = list(ann.watch(run.path.name, after))
    assert [(event.number, event.kind) for event in got] == heard
    assert all(json.loads(e.facts) == {"n": e.number} and e.round == e.number for e in got if e.kind != "interrupted")


def test_a_watcher_hears_events_as_they_happen_until_the_end(service, ann):
    run = service.add_run()
    events = events_of(run, "joined")
    with run.held():
        stream = ann.watch(run.path.name)
        assert next(stream).kind == "joined"
        for n in range(3):
            events.add("round", n, {"loss": 0.5})
            event = next(stream)
            assert (event.kind, event.round, json.loads(event.facts)) == ("round", n, {"loss": 0.5})
        events.add("summary", 0, {"metrics": {}})
    assert [event.kind for event in stream] == ["summary"]


def test_a_run_whose_process_is_only_starting_is_not_told_as_interrupted(service, ann, job, program):
    program.waits_for_stop()
    run = ann.submit(job, resume=False, version=OURS).run
    stream = ann.watch(run)
    heard: list[str] = []
    watcher = threading.Thread(target=lambda: heard.extend(event.kind for event in stream))
    watcher.start()
    time.sleep(0.2)
    assert heard == []
    Events(service.folder.home.runs / run).add("summary", 0, {})
    watcher.join(10)
    assert heard == ["summary"]


@pytest.fixture
def narrow(folder, runs, monkeypatch) -> Iterator[Service]:
    """A door of two places for watchers, and one that is kept free."""
    monkeypatch.setattr(module, "WORKERS", 3)
    monkeypatch.setattr(module, "KEPT", 1)
    server = open_door(Door(folder, runs, lambda act: act(), lambda *_: None), folder, lambda *_: None)
    yield Service(folder, server)
    server.stop(0).wait(10)


def test_watchers_that_leave_free_their_places_and_leave_no_error_behind(narrow, admit, caplog):
    held, run = admit("ann"), narrow.add_run()
    events_of(run, "joined")

    def watching(client: DoorClient) -> Iterator[Any]:
        """A stream that has begun, as soon as there is a place for it."""
        end = time.monotonic() + 10
        while True:
            stream = client.watch(run.path.name)
            try:
                assert next(stream).kind == "joined"
                return stream
            except Busy:
                assert time.monotonic() < end
                time.sleep(0.02)

    with run.held(), DoorClient(held) as other, caplog.at_level(logging.DEBUG, logger="fedseal.door"):
        for _ in range(4):
            with DoorClient(held) as one, DoorClient(held) as two:
                streams = [watching(one), watching(two)]
                for more in (other.watch(run.path.name), other.logs(run.path.name, follow=True)):
                    assert "2 calls watch or follow runs here; allowed: again" in told(Busy, lambda m=more: next(m))
                assert [r["run"] for r in other.runs()] == [run.path.name]
                del streams
    assert caplog.records == []


def test_watchers_of_all_places_do_not_keep_an_operators_stop_out(narrow, runs, admit, job, program):
    program.waits_for_stop()
    held, run = admit("ann"), runs.start(job, Caller("ann", ("engineer",), "ab" * 32), resume=False)[0].run
    with DoorClient(held) as one, DoorClient(admit("eve", "operator")) as eve:
        streams = [one._method("Watch", one._channel.unary_stream)(WatchRequest(run=run)) for _ in range(2)]
        assert all(stream.initial_metadata() for stream in streams)  # both are in
        told(Busy, lambda: next(eve.watch(run)))
        assert eve.stop(run)[0] == run
        assert all([event.kind for event in stream] == ["interrupted"] for stream in streams)


def test_a_coordinator_that_ends_while_somebody_watches_is_told_as_away(service, ann):
    run = service.add_run()
    events_of(run, "joined")
    with run.held():
        stream = ann.watch(run.path.name)
        next(stream)
        service.server.stop(0)
        told(Unreachable, lambda: list(stream))


def test_a_connection_that_stood_is_told_from_one_that_never_did(service, ann):
    """Nothing may come over it for hours: the time of its loss is the one that counts."""
    run = service.add_run()
    with run.held():
        stream, said = ann.watch(run.path.name), []

        def listen() -> None:
            with pytest.raises(Unreachable) as lost:
                next(stream)
            said.append(lost.value.stood)

        watcher = threading.Thread(target=listen)
        watcher.start()
        time.sleep(0.3)
        service.server.stop(0).wait(10)
        watcher.join(10)
        with pytest.raises(Unreachable) as away:
            next(ann.watch(run.path.name))
    assert said == [True] and not away.value.stood


def keepalive(monkeypatch: pytest.MonkeyPatch, milliseconds: int) -> None:
    """Ask so often whether the other side is there, and wait so long for its answer."""
    monkeypatch.setattr(client_module, "KEEPALIVE", [(key, milliseconds) for key, _ in client_module.KEEPALIVE])


def test_a_quiet_watch_is_kept_alive_and_not_taken_for_an_attack(folder, runs, admit, monkeypatch):
    """A server that was not told to bear it cuts the connection off: "too many pings"."""
    keepalive(monkeypatch, 1000)
    options = [(key, value // 20) for key, value in module._KEEPALIVE] + [("grpc.http2.max_ping_strikes", 1)]
    monkeypatch.setattr(module, "_KEEPALIVE", options)
    server = open_door(Door(folder, runs, lambda act: act(), lambda *_: None), folder, lambda *_: None)
    run = Service(folder, server).add_run()
    with run.held(), DoorClient(admit("ann")) as client:
        stream = client.watch(run.path.name)
        writer = threading.Timer(4.0, lambda: Events(run.path).add("summary", 0, {}))
        writer.start()
        assert [event.kind for event in stream] == ["summary"]
        writer.join()
    server.stop(0).wait(10)


def test_the_silence_of_a_connection_that_is_gone_is_noticed(service, admit, port, monkeypatch):
    """Its machine lost its power: no packet says that it is gone."""
    keepalive(monkeypatch, 300)
    run, held = service.add_run(), admit("ann")
    with run.held(), frozen(port) as (number, freeze):
        away = dataclasses.replace(held, federation=dataclasses.replace(held.federation, door=f"localhost:{number}"))
        with DoorClient(away) as client:
            events_of(run, "joined")
            stream = client.watch(run.path.name)
            assert next(stream).kind == "joined"
            freeze.set()
            began = time.monotonic()
            told(Unreachable, lambda: next(stream))
            assert time.monotonic() - began < 5


@contextmanager
def frozen(port: int) -> Iterator[tuple[int, threading.Event]]:
    """A line to a port of this machine that carries nothing any more once the event is set."""
    freeze = threading.Event()

    def carry(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if not freeze.is_set():
                    target.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    outer = listener.accept()[0]
                    inner = socket.create_connection(("127.0.0.1", port))
                    lines.extend((outer, inner))
                    for pair in ((outer, inner), (inner, outer)):
                        threading.Thread(target=carry, args=pair, daemon=True).start()

        lines: list[socket.socket] = []
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1], freeze
        for line in lines:
            line.close()


@pytest.mark.parametrize("wanted", ["nothing", "", "../../coordinator", "0" * 16])
def test_a_run_that_is_not_there_is_named(service, ann, wanted):
    service.add_run("digits")
    for call in (ann.watch, lambda run: ann.logs(run, follow=True)):
        text = told(UsageError, lambda call=call: list(call(wanted)))
        assert f"RUN {wanted!r}: no such run" in text and "digits" in text
    told(UsageError, lambda: ann.stop(wanted))


# ---- stopping


def test_who_submitted_a_run_stops_it_and_the_stop_is_noted(service, runs, ann, job, program):
    program.waits_for_stop(then="""sed -i 's/"running"/"stopped"/' "$3/coordinator/runs/$4/run.json" """)
    run = ann.submit(job, resume=False, version=OURS).run
    assert ann.stop("test") == (run, "stopped")
    ((kind, noted, body),) = service.notes
    assert (kind, noted, body["caller"]["name"]) == ("stop", run, "ann")


def test_another_engineer_may_not_stop_it_and_an_operator_may(service, ann, admit, job, program):
    program.waits_for_stop()
    run = ann.submit(job, resume=False, version=OURS).run
    with DoorClient(admit("bob", "engineer")) as bob, DoorClient(admit("eve", "operator")) as eve:
        assert "was submitted by ann; an operator may stop it too" in told(RefusedError, lambda: bob.stop(run))
        assert not RunFolder(service.folder.home.runs / run).is_stopping()
        assert eve.stop(run)[0] == run
    refusal, stop = service.notes
    assert (refusal[:2], stop[:2]) == (("refusal", run), ("stop", run))
    assert (refusal[2]["method"], refusal[2]["code"]) == ("Stop", "submitter")
    assert [body["caller"]["name"] for _, _, body in service.notes] == ["bob", "eve"]


def test_a_run_that_has_ended_is_not_stopped(service, ann):
    run = service.add_run(status="done").path.name
    assert f"run digits ({run}) is not running: done" in told(UsageError, lambda: ann.stop(run))
    assert service.notes == []


def test_a_run_that_nobody_submitted_is_not_an_engineers_to_stop(service, ann):
    run = service.add_run(submitter=None, runtime="local")
    with run.held():
        text = told(RefusedError, lambda: ann.stop(run.path.name))
    assert text == f"run {run.path.name} was started at the coordinator; an operator may stop it too"
    assert not run.is_stopping()


# ---- lists and logs


def test_every_run_is_listed_oldest_first_without_what_was_submitted(service, ann):
    for at, name in ((5.0, "new"), (1.0, "old")):
        run = service.add_run(name, started=at, status="done", metrics={"accuracy": 0.5})
        save(run.path, {"party": [{"name": "a", "data": "the-table"}]}, Caller("ann", ("engineer",), "ab" * 32))
    found = ann.runs()
    assert [(r["name"], r["status"], r["metrics"]) for r in found] == [
        ("old", "done", {"accuracy": 0.5}),
        ("new", "done", {"accuracy": 0.5}),
    ]
    assert "the-table" not in json.dumps(found)


def test_a_log_comes_whole_whatever_bytes_are_in_it(service, ann):
    run = service.add_run(status="done")
    assert list(ann.logs(run.path.name, follow=True)) == []
    data = b"\xff\x00\r\n" + b"line \xc3\n" * 40_000
    run.log.write_bytes(data)
    assert b"".join(ann.logs(run.path.name, follow=False)) == data


def test_a_log_is_followed_to_its_last_line(service, ann):
    run = service.add_run()
    with run.held():
        stream = ann.logs(run.path.name, follow=True)
        run.write_log("first")
        got = next(stream)
        run.write_log("last")
    assert (got + b"".join(stream)).decode().splitlines()[-1].endswith("last")


@pytest.mark.parametrize("offset", [0, 3, 10, 11, 1 << 40])
def test_a_log_is_read_on_from_where_one_was(service, admit, ann, offset):
    run = service.add_run(status="done")
    run.log.write_bytes(b"0123456789")
    request = LogsRequest(run=run.path.name, offset=offset)
    got = b"".join(chunk.data for chunk in ann._stream("Logs", request))
    assert got == b"0123456789"[offset:]


@pytest.mark.parametrize("offset", [2**63 - 1, 2**63, 2**64 - 1])
def test_a_log_has_nothing_behind_any_end(service, ann, offset):
    run = service.add_run(status="done")
    run.log.write_bytes(b"0123456789")
    assert list(ann._stream("Logs", LogsRequest(run=run.path.name, offset=offset))) == []
