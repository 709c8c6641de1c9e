"""A node's service with stand-ins for its two processes, and what its owner sees of it."""

from __future__ import annotations

import json
import os
import signal

import pytest

from clients.app import Account
from clients.node import service
from clients.node.activity import Activity
from clients.node.connection import Connection
from clients.node.folder import NodeFolder, Settings, Source
from clients.node.service import NodeService
from clients.node.status import look, show
from fl_core.errors import FedsealError, JobFailed
from fl_core.files import locked
from fl_core.home import Home
from fl_core.trust.budget import Budget

pytestmark = pytest.mark.timeout(60)
URL = "postgresql+psycopg://bank:hunter2@db/loans"
FOREVER = "exec sleep 60"
REFUSED = """echo 'ERROR :     Exit Code: 601
The SuperNode is not registered with the SuperLink.
More words.

For more information, visit: <https://flower.ai/docs/601.html>'; exit 1"""


@pytest.fixture
def folder(tmp_path):
    settings = Settings("bank", "fed.example:9443", limits={"credit": 2.0, "*": 8.0})
    return NodeFolder.create(Home.open(tmp_path / "home"), settings, authority=b"authority")


@pytest.fixture(autouse=True)
def handlers(monkeypatch):
    """The service takes the process's signals: another test's are put back."""
    monkeypatch.setattr(service, "TICK", 0.01)
    held = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in held.items():
        signal.signal(number, handler)


class Owner:
    """Reads what the node says, and acts on it: `acts` maps a part of a line to what the world does then."""

    def __init__(self, **acts) -> None:
        self.lines: list[str] = []
        self._acts = acts

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        for word in [word for word in self._acts if word in line]:
            self._acts.pop(word)()


def end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def serving(folder: NodeFolder, say, *, supernode: str = FOREVER, executor: str = FOREVER) -> NodeService:
    made = NodeService(folder, say=say)
    for child, script in zip(made.service.children, (supernode, executor), strict=True):
        child.command = lambda script=script: ["sh", "-c", script]
    return made


# ---- the service


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_node_with_both_its_processes(folder, number):
    node = serving(folder, Owner(dialling=lambda: os.kill(os.getpid(), number)))
    node.run()
    assert [child.process.poll() for child in node.service.children] == [-signal.SIGTERM] * 2
    assert [child.starts for child in node.service.children] == [1, 1]
    with locked(folder.path / "service.lock", wait=False) as free:
        assert free


def test_two_services_do_not_run_one_node(folder):
    with locked(folder.path / "service.lock"), pytest.raises(JobFailed, match="this node runs already"):
        serving(folder, Owner()).run()


def test_an_owner_is_told_once_how_the_connection_is_and_whenever_that_changes(folder):
    link = Connection(folder.connection)
    link.note("connected")  # of the last service: not this one's
    owner = Owner(
        dialling=lambda: link.note("refused", "HTTP 401"),
        refused=lambda: [link.note("refused", "HTTP 401"), link.note("unreachable", "ConnectError: no route")],
        trying=lambda: link.note("connected"),
        waiting=end,
    )
    serving(folder, owner).run()
    assert owner.lines == [
        "node bank: dialling fed.example:9443",
        "refused by the coordinator (HTTP 401): is this node registered and enabled there?",
        "the coordinator does not answer (ConnectError: no route); trying on",
        "connected; waiting for jobs",
        "stopping",
    ]


def test_a_connection_of_before_is_not_taken_for_this_ones(folder):
    Connection(folder.connection).note("connected")
    seen = []
    serving(folder, Owner(dialling=lambda: [seen.append(folder.connection.exists()), end()])).run()
    assert seen == [False]


def test_a_dead_executor_is_told_and_costs_the_supernode_nothing(folder):
    owner = Owner(ended=end)
    node = serving(folder, owner, executor="exit 3")
    node.run()
    assert "executor ended (exit code 3); again in 1 s" in owner.lines
    assert node.service.children[0].starts == 1


def test_a_supernode_that_gives_up_says_flowers_own_reason(folder):
    owner = Owner(ended=end)
    serving(folder, owner, supernode=REFUSED).run()
    assert (
        "supernode ended (Flower's code 601: The SuperNode is not registered with the SuperLink.); again in 1 s"
        in owner.lines
    )


def test_a_killed_node_that_is_refused_at_first_is_told_to_wait(folder):
    link = Connection(folder.connection)
    go = folder.path / "go"
    owner = Owner(dialling=lambda: link.note("refused", "HTTP 409"), registered=go.touch, ended=end)
    serving(folder, owner, supernode=f'while [ ! -e "{go}" ]; do sleep 0.01; done; exit 1').run()
    (line,) = [line for line in owner.lines if "ended" in line]
    assert line == "supernode ended (exit code 1; a node that was killed is refused for about a minute); again in 1 s"


def test_a_node_whose_settings_are_broken_does_not_start(folder):
    (folder.path / "node.json").write_text("{")
    with pytest.raises(FedsealError, match="not a node's settings"):
        NodeService(folder, say=Owner())


def commands(folder: NodeFolder) -> list[list[str]]:
    return [list(child.command()) for child in NodeService(folder, say=Owner()).service.children]


def test_a_list_of_processes_shows_no_secret_of_a_node(folder):
    folder.save(Settings("bank", "fed.example:9443", sources={"loans": Source(URL, "SELECT secret FROM loans")}))
    shown = " ".join(word for command in commands(folder) for word in command)
    assert "hunter2" not in shown and "SELECT" not in shown
    assert folder.secret.read_bytes().hex() not in shown
    key = folder.flower_key.read_text().splitlines()
    assert len(key) > 3 and not any(line in shown for line in key)


def test_a_nodes_own_port_is_on_loopback_and_asks_for_the_secret(folder):
    supernode, executor = commands(folder)
    flower = dict(
        zip(supernode[supernode.index("--") + 1 :: 2], supernode[supernode.index("--") + 2 :: 2], strict=True)
    )
    assert flower["--host"] == "127.0.0.1" and flower["--isolation"] == "process"
    assert flower["--superexec-auth-secret-file"] == str(folder.secret) == executor[executor.index("--secret") + 1]
    assert executor[executor.index("--runtime") + 1] == f"127.0.0.1:{flower['--port']}"
    assert flower["--root-certificates"] == str(folder.authority) and "--insecure" not in supernode


def test_the_two_processes_find_each_other_again_after_a_restart(folder):
    node = NodeService(folder, say=Owner())
    before = [list(child.command()) for child in node.service.children]
    assert [list(child.command()) for child in node.service.children] == before


# ---- what its owner sees


def account(step: str, **more) -> Account:
    return Account(**{"run": "00" * 8, "step": step, "round": 1, "job": "credit", "kind": "horizontal"} | more)


def shown(folder: NodeFolder, capsys) -> str:
    show(look(folder))
    return capsys.readouterr().out


def test_a_node_that_does_not_run_is_not_called_connected(folder, capsys):
    Connection(folder.connection).note("connected")
    found = look(folder)
    assert (found["running"], found["connected"]) == (False, False)
    assert "node bank: not running; dials fed.example:9443\n" in shown(folder, capsys)


def test_a_running_node_is_connected_while_calls_succeed(folder, capsys):
    link = Connection(folder.connection)
    with locked(folder.path / "service.lock"):
        assert (look(folder)["running"], look(folder)["connected"]) == (True, False)
        assert "node bank: not connected to fed.example:9443\n" in shown(folder, capsys)
        link.note("connected")
        assert look(folder)["connected"]
        assert "node bank: connected to fed.example:9443\n" in shown(folder, capsys)
        link.note("refused", "HTTP 401")
        assert not look(folder)["connected"]
        assert "refused HTTP 401" in shown(folder, capsys)


def test_looking_at_a_node_does_not_make_it_run_twice_or_not_at_all(folder):
    look(folder)
    with locked(folder.path / "service.lock", wait=False) as free:
        assert free


def test_a_pause_and_a_refusal_with_its_reason_are_seen(folder, capsys):
    folder.pause(True)
    Activity(folder.path / "activity.db").note(
        account("query.join", problem="this node takes no new jobs", refused=True)
    )
    out = shown(folder, capsys)
    assert "paused: takes no new jobs" in out
    assert "refused  credit  round 1, 1 messages  this node takes no new jobs" in out


def test_a_password_is_not_seen(folder, capsys):
    folder.save(Settings("bank", "fed.example:9443", sources={"loans": Source(URL, "SELECT 1")}))
    out = shown(folder, capsys) + json.dumps(look(folder))
    assert "postgresql+psycopg://bank:***@db/loans" in out and "hunter2" not in out


def test_data_that_are_no_longer_bound_still_show_what_they_spent(folder, capsys):
    budget = Budget(folder.path / "budget.db")
    budget.remember_rows("loans", 120)
    folder.save(Settings("bank", "fed.example:9443", sources={"credit": Source("/data/credit.csv")}, limits={"*": 8.0}))
    credit, loans = look(folder)["data"]
    assert (credit["name"], credit["place"], credit["rows"]) == ("credit", "/data/credit.csv", None)
    assert (loans["name"], loans["place"], loans["rows"], loans["max_epsilon"]) == ("loans", None, 120, 8.0)
    assert loans["epsilon_spent"] == 0.0 and loans["epsilon_left"] == 8.0
    assert "data loans: not bound, 120 training rows; ε spent 0.00, 8.00 of 8 left" in shown(folder, capsys)


def test_data_without_a_limit_say_so(folder, capsys):
    folder.save(Settings("bank", "fed.example:9443", sources={"credit": Source("/data/credit.csv")}))
    assert "data credit: /data/credit.csv; ε spent 0.00, no limit" in shown(folder, capsys)


@pytest.mark.parametrize("name", ["credit [/2026]", "credit [red]", ":smile:", "[link=file:///x]y[/link]"])
def test_a_job_whose_name_looks_like_markup_does_not_break_the_view(folder, capsys, name):
    Activity(folder.path / "activity.db").note(account("query.close", job=name))
    assert f"  {name}  round" in shown(folder, capsys)


ESCAPES = "\x1b[2J\x1b]0;title\x07\r\x9b2J\u202e"


def test_a_job_cannot_write_on_its_owners_terminal(folder, capsys):
    activity = Activity(folder.path / "activity.db")
    activity.note(account("query.close", job=f"credit{ESCAPES}", problem=f"\nno{ESCAPES}"))
    Connection(folder.connection).note("unreachable", f"ConnectError: {ESCAPES}")
    out = shown(folder, capsys)
    assert "credit\ufffd[2J" in out and "\ufffdno\ufffd[2J" in out and "ConnectError: \ufffd" in out
    assert all(c.isprintable() or c == "\n" for c in out) and len(out.splitlines()) == 4


def test_a_coordinator_cannot_write_on_the_terminal_of_a_running_node(folder):
    link = Connection(folder.connection)
    owner = Owner(dialling=lambda: link.note("unreachable", f"ConnectError: {ESCAPES}"), trying=end)
    serving(folder, owner).run()
    assert any("ConnectError: \ufffd[2J" in line for line in owner.lines)
    assert all(line.isprintable() for line in owner.lines)
