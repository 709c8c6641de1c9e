"""The command line in this process: help, exit codes, one line for every error, the auditor's commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fl_core.errors as errors
import server.registry
from fl_core.home import Home
from fl_core.messages import COORDINATOR
from fl_core.trust.checkpoint import cosign
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.verify.__main__ import main as verify_main
from server.cli.main import main
from server.registry import RunFolder, RunInfo, new_run_id

HEAVY = ("torch", "flwr", "mlflow", "opacus", "tenseal", "numpy", "pyarrow")
COMMANDS = [
    "run",
    "check",
    "runs",
    "logs",
    "stop",
    "audit verify",
    "audit show",
    "audit prove",
    "audit usage",
    "serve",
    "predict",
]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


class Shell:
    """`fedseal …` in this process, in a folder of its own."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self.home = path, path / "home"
        self._patch, self._capsys = monkeypatch, capsys
        monkeypatch.chdir(path)
        monkeypatch.setenv("FEDSEAL_HOME", str(self.home))
        monkeypatch.setenv("COLUMNS", "80")

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

    def fails(self, code: int, *words: object) -> str:
        """The one line of an error."""
        done = self(*words)
        assert (done.code, done.out) == (code, ""), done
        assert done.err.startswith("fedseal: ") and done.err.count("\n") == 1, done.err
        return done.err


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


def add_run(shell: Shell, name: str = "digits", **changes: Any) -> RunFolder:
    values = {"kind": "horizontal", "runtime": "local", "job": "ab" * 32, "out": "/out", "started": 0.0, "pid": 1}
    return RunFolder.create(Home.open(shell.home), RunInfo(run=new_run_id(), name=name, **{**values, **changes}))


# ---- help and start-up


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(shell: Shell, command: str) -> None:
    done = shell(*command.split(), "--help")
    assert done.code == 0
    assert f"fedseal {command}" in done.out.partition("Example")[2].replace("\n  ", " ")


def test_every_command_is_in_the_overview(shell: Shell) -> None:
    shown = shell("--help").out + shell("audit", "--help").out
    assert all(command.split()[-1] in shown for command in COMMANDS)


@pytest.mark.parametrize("words", ["--help", "run --help", "runs", "audit verify", "nonsense"])
def test_light_commands_import_nothing_heavy_and_start_at_once(tmp_path: Path, words: str) -> None:
    script = (
        "import sys, atexit; from server.cli.main import main;"
        f"atexit.register(lambda: print('HEAVY', sorted(set(sys.modules) & set({HEAVY!r})))); main()"
    )
    env = {**os.environ, "FEDSEAL_HOME": str(tmp_path / "home")}
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", script, *words.split()], capture_output=True, text=True, env=env, check=False
    )
    after = os.times()
    assert done.stdout.splitlines()[-1] == "HEAVY []"
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.4


@pytest.mark.parametrize(
    "words", [["nonsense"], ["run"], ["run", "a.toml", "--frob"], ["logs"], ["audit", "prove", "many"], []]
)
def test_usage_errors_exit_2(shell: Shell, words: list[str]) -> None:
    assert shell(*words).code == 2


# ---- errors


def every_error(cls: type[errors.FedsealError] = errors.FedsealError) -> list[type[errors.FedsealError]]:
    subclasses = [c for c in cls.__subclasses__() if c.__module__ == errors.__name__]
    return [cls, *(e for c in subclasses for e in every_error(c))]


@pytest.mark.parametrize("cls", every_error())
def test_every_error_is_one_line_and_the_exit_code_of_its_class(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, cls: type[errors.FedsealError]
) -> None:
    two = {
        errors.JobFileError: ("a\nkey", "bad"),
        errors.DataError: ("here\nthere", "bad"),
        errors.WaitTimeout: ("x", 3),
        errors.PeerTimeout: ("a", "x\ny", 3),
        errors.PeerLost: ("a", "x\ny"),
        errors.BadFrame: ("a", "x\ny", "bad"),
        errors.ExchangeLost: ("x\ny", "bad"),
    }
    error = cls(*two.get(cls, ("first\nsecond",)))  # type: ignore[arg-type]

    def fail(home: Home, wanted: str) -> None:
        raise error

    monkeypatch.setattr(server.registry, "find", fail)
    expected = 2 if issubclass(cls, errors.UsageError) else 3 if issubclass(cls, errors.RefusedError) else 1
    assert len(shell.fails(expected, "logs", "any")) > len("fedseal: \n")


def test_job_file_that_is_not_there_is_named(shell: Shell) -> None:
    assert "gone.toml: cannot be read" in shell.fails(2, "check", "gone.toml")


def test_home_of_another_version_is_refused_by_every_command(shell: Shell) -> None:
    Home.open(shell.home)
    (shell.home / "version").write_text("7\n")
    for words in (
        ["runs"],
        ["logs", "x"],
        ["stop", "x"],
        ["audit", "verify"],
        ["audit", "show"],
        ["audit", "prove", "1"],
    ):
        assert "version '7'" in shell.fails(2, *words)


# ---- runs, logs, stop


def test_runs_of_an_empty_home(shell: Shell) -> None:
    assert json.loads(shell("runs", "--json").out) == {"runs": []}
    assert shell("runs").code == 0


def test_runs_are_shown_with_ids_that_can_be_copied_from_a_narrow_terminal(shell: Shell) -> None:
    folder = add_run(shell, "a-rather-long-name-of-a-run", status="done", mlflow_run_id="f" * 32)
    shown = shell("runs").out
    assert folder.info().run in shown and "f" * 32 in shown and "a-rather-long-name-of-a-run" in shown


def test_logs_print_the_log(shell: Shell) -> None:
    folder = add_run(shell)
    assert shell("logs", "digits") == Done(0, "", "")
    folder.write_log("round 1 ü")
    assert shell("logs", "digits").out.endswith("round 1 ü\n")


def test_following_a_log_ends_with_the_run_and_has_its_last_line(shell: Shell) -> None:
    folder = add_run(shell)
    began, held = threading.Event(), threading.Event()

    def run() -> None:
        with folder.held():
            held.set()
            began.wait(5)
            for n in range(5):
                folder.write_log(f"line {n}")
                threading.Event().wait(0.1)
            folder.write_log("the last line")

    thread = threading.Thread(target=run)
    thread.start()
    held.wait(5)
    began.set()
    done = shell("logs", "digits", "--follow")
    thread.join()
    assert done.code == 0 and done.out.count("\n") == 6 and done.out.endswith("the last line\n")


def test_stop_asks_and_waits(shell: Shell) -> None:
    folder = add_run(shell)
    held = threading.Event()

    def run() -> None:
        with folder.held():
            held.set()
            while not folder.is_stopping():
                threading.Event().wait(0.02)
            info = folder.info()
            info.status = "stopped"
            folder.save(info)

    thread = threading.Thread(target=run)
    thread.start()
    held.wait(5)
    done = shell("stop", "digits", "--json")
    thread.join()
    assert done.code == 0
    assert json.loads(done.out) == {"run": folder.info().run, "name": "digits", "status": "stopped"}


def test_run_that_does_not_run_cannot_be_stopped(shell: Shell) -> None:
    folder = add_run(shell, status="failed")
    assert "is not running: failed" in shell.fails(2, "stop", "digits")
    assert not folder.is_stopping()


# ---- audit


@dataclass(frozen=True)
class Kept:
    path: Path
    first: str  # a checkpoint note
    run: str


@pytest.fixture
def kept(shell: Shell) -> Kept:
    """This home's ledger: one run of three parties, whose end has no co-signatures yet."""
    home = Home.open(shell.home)
    keeper = Identity.load_or_create(home.coordinator, COORDINATOR)
    parties = [Identity.create(name) for name in "abc"]
    run = add_run(shell).info().run

    def say(by: Identity, kind: str, body: dict[str, Any]) -> Statement:
        return Statement.make(by, log=ledger.log, kind=kind, run="" if kind == "card" else run, body=body)

    with Ledger.open(home.ledger, keeper) as ledger:
        ledger.commit([say(p, "card", {"card": p.card.to_dict()}) for p in parties])
        _, first = ledger.commit([say(keeper, "roster", {"parties": list("abc"), "min_parties": 3})])
        metrics = {"accuracy": "0.5", "loss": "1.25"}
        record = {"round": 1, "metrics": metrics, "parties": list("abc"), "missing": []}
        ledger.commit([say(keeper, "round", record), say(keeper, "end", {"status": "done"})])
    return Kept(home.ledger, first, run)


def sign(shell: Shell, kept: Kept) -> None:
    """A whole run whose end every party co-signs."""
    home = Home.open(shell.home)
    keeper = Identity.load_or_create(home.coordinator, COORDINATOR)
    parties = [Identity.create(f"new_{name}") for name in "abc"]
    kept.path.unlink()
    with Ledger.open(home.ledger, keeper) as ledger:
        cards = [{"card": p.card.to_dict()} for p in parties]
        for p, body in zip(parties, cards, strict=True):
            ledger.append([Statement.make(p, log=ledger.log, kind="card", run="", body=body)])
        roster = {"parties": [p.card.name for p in parties], "min_parties": 3}
        for kind, body in (("roster", roster), ("end", {"status": "done"})):
            _, note = ledger.commit([Statement.make(keeper, log=ledger.log, kind=kind, run=kept.run, body=body)])
        ledger.add_cosignatures(ledger.size, {p.card.name: cosign(p, note) for p in parties})


def test_verify_exits_4_where_a_run_is_short_of_quorum(shell: Shell, kept: Kept) -> None:
    done = shell("audit", "verify")
    assert done.code == 4 and "SHORT OF QUORUM" in done.out
    told = shell("audit", "verify", "--json")
    assert told.code == 4 and json.loads(told.out)["status"] == 4


def test_verify_exits_0_where_every_end_is_witnessed(shell: Shell, kept: Kept) -> None:
    sign(shell, kept)
    assert shell("audit", "verify").code == 0
    assert json.loads(shell("audit", "verify", "--json").out)["verdict"] == "VALID"


def test_verify_takes_a_ledger_a_checkpoint_and_a_key(shell: Shell, kept: Kept) -> None:
    note = shell.path / "kept.checkpoint"
    note.write_text(kept.first)
    with Ledger.open(kept.path) as ledger:
        key = ledger.coordinator.ed25519
    assert shell("audit", "verify", "--ledger", kept.path, "--since", note, "--key", key).code == 4
    assert shell("audit", "verify", "--key", "00" * 32).code == 1
    sign(shell, kept)  # another ledger in its place
    assert shell("audit", "verify", "--since", note).code == 1


@pytest.mark.parametrize(
    "words",
    [
        ["verify"],
        ["show"],
        ["prove", "0"],
        ["verify", "--ledger", "gone.db"],
        ["verify", "--ledger", "."],
    ],
)
def test_audit_without_a_ledger_is_a_usage_error(shell: Shell, words: list[str]) -> None:
    assert "no ledger here" in shell.fails(2, "audit", *words)


def test_audit_of_something_else_is_a_usage_error(shell: Shell) -> None:
    (shell.path / "other.db").write_bytes(b"SQLite format 3\0" + bytes(100))
    (shell.path / "text").write_text("hello\n")
    for name in ("other.db", "text"):
        assert name in shell.fails(2, "audit", "show", "--ledger", name)
        assert shell("audit", "verify", "--ledger", name).code in (1, 2)


def test_since_that_is_not_there_or_no_text_is_a_usage_error(shell: Shell, kept: Kept) -> None:
    (shell.path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "gone" in shell.fails(2, "audit", "verify", "--since", "gone")
    assert "audit verify" in shell.fails(2, "audit", "verify", "--since", "binary")


def test_since_that_is_no_checkpoint_is_never_valid(shell: Shell, kept: Kept) -> None:
    (shell.path / "junk").write_text("not a note\n")
    assert shell("audit", "verify", "--since", "junk").code in (1, 2)


def test_show_lists_all_one_run_or_one_kind(shell: Shell, kept: Kept) -> None:
    everything = shell("audit", "show").out.splitlines()
    assert everything[0].startswith("log fedseal/") and len(everything) == 1 + 7
    assert [line.split()[3] for line in everything[1:]] == ["log", "card", "card", "card", "roster", "round", "end"]
    assert "round 1: accuracy=0.5 loss=1.25" in shell("audit", "show", "digits", "--kind", "round").out
    lines = shell("audit", "show", kept.run, "--json").out.splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["roster", "round", "end"]
    assert "no such run" in shell.fails(2, "audit", "show", "nonsense")


def test_show_knows_a_run_id_where_the_ledger_came_without_its_home(shell: Shell, kept: Kept) -> None:
    elsewhere = shell.path / "elsewhere"
    shown = shell("audit", "show", kept.run, "--ledger", kept.path, "--home", elsewhere)
    assert shown.code == 0 and len(shown.out.splitlines()) == 1 + 3


@pytest.mark.parametrize("words", [["5"], ["--from", "5", "--to", "7"], ["--from", "5"], ["0"], ["6"]])
def test_printed_proofs_verify_offline(
    shell: Shell, kept: Kept, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    proof = shell.path / "proof.json"
    proof.write_text(shell("audit", "prove", *words).out)
    assert verify_main([str(proof)]) == 0
    capsys.readouterr()
    document = json.loads(proof.read_text())
    if document["proof"]:
        document["proof"][0] = "00" * 32
        proof.write_text(json.dumps(document))
        assert verify_main([str(proof)]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name an entry"),
        (["3", "--from", "1"], "name an entry"),
        (["3", "--to", "5"], "name an entry"),
        (["99"], "no entry 99"),
        (["--from", "3"], "no checkpoint over 3 entries"),
        (["--from", "7", "--to", "5"], ""),
        (["--from", "0"], "no checkpoint over 0 entries"),
    ],
)
def test_what_cannot_be_proved_is_a_usage_error(shell: Shell, kept: Kept, words: list[str], said: str) -> None:
    assert said in shell.fails(2, "audit", "prove", *words)


# ---- check


def test_check_says_ready_without_leaving_keys_or_reservations(shell: Shell) -> None:
    job = shell.path / "job.toml"
    job.write_text('kind = "horizontal"\n[dataset]\nname = "digits"\nparties = 3\n[privacy]\nmechanism = "dp-sgd"\n')
    done = shell("check", job, "--json")
    told = json.loads(done.out)
    assert (done.code, told["ok"], told["problems"]) == (0, True, [])
    assert [p["status"] for p in told["parties"]] == ["ready"] * 3
    assert [p["epsilon"] for p in told["parties"]] == ["3.00"] * 3
    assert not [p for p in shell.home.rglob("*") if p.name in ("identity.key", "ledger.db", "run.json")]
    assert "ready" in shell("check", job).out


def test_check_names_parties_with_other_columns(shell: Shell) -> None:
    rows = "".join(f"{i},{i % 7},{i % 2}\n" for i in range(40))
    for name, header in (("a", "u,v,y"), ("b", "u,v,y"), ("c", "u,w,y")):
        (shell.path / f"{name}.csv").write_text(f"{header}\n{rows}")
    parties = "".join(f'[[party]]\nname = "{n}"\ndata = "{n}.csv"\nlabel = "y"\n' for n in "abc")
    (shell.path / "job.toml").write_text(f'kind = "horizontal"\n{parties}')
    done = shell("check", "job.toml", "--json")
    assert done.code == 2
    assert json.loads(done.out)["problems"] == ["c: other feature columns than the other parties"]
