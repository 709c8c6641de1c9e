"""The commands about data, grants and keys: what people type and see, in a local home, at a node, through a door."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.board import LocalBoard, introduce
from clients.consent.decision import Consent
from clients.describe import describe
from clients.sql_source import SqlSource
from clients.statement_file import read_statements, write_statements
from fl_core.errors import DataError, UsageError
from fl_core.home import Home
from fl_core.trust.entry import Statement
from fl_core.trust.identity import CardBook, Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.verify import verify_ledger
from server.cli.desk import until_ms
from tests.server.cli.shell import CSV, HOSTILE, Shell, ask, make_node, publish, serve_door

COMMANDS = [
    "data publish", "data list", "data show", "data withdraw", "grant request", "grant approve", "grant deny",
    "grant revoke", "grant list", "grant post", "identity show", "identity list", "identity rotate", "identity revoke",
    "identity describe", "identity members", "identity forget",
]  # fmt: skip


@pytest.fixture
def shell(tmp_path, monkeypatch, capsys) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


# ---- help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(shell, command):
    done = shell(*command.split(), "--help")
    assert done.code == 0
    assert f"fedseal {command}" in " ".join(done.out.partition("Example")[2].split())


def test_the_overview_names_all_three(shell):
    shown = shell("--help").out
    assert all(word in shown for word in ("data", "grant", "identity"))


# ---- a local home, from the card to the grant


def test_publish_list_request_approve_list(shell):
    card = publish(shell)["card"]
    assert (card["rows"], card["owner"], card["columns"], card["epsilon"]) == (120, "bank", [], 8_000_000)
    (listed,) = shell.json("data", "list")["datasets"]
    assert {name: listed[name] for name in card} == card
    request = ask(shell, "--receivers", "engineer", "--receivers", "lab")
    held = shell.json("grant", "list", "--as", "bank")
    (waiting,) = held["waiting"]
    assert (waiting["request"], waiting["grantee"], held["granted"]) == (request, "engineer", [])
    assert shell.json("grant", "list")["asked"][0]["state"] == "waiting"
    grant = shell.json("grant", "approve", request[:8], "--uses", 2, "--receivers", "lab", "--as", "bank")
    assert (grant["terms"]["uses"], grant["terms"]["receivers"]) == (2, ["lab"])
    (granted,) = shell.json("grant", "list", "--as", "bank")["granted"]
    assert (granted["state"], granted["uses"]) == ("active", {"done": 0, "going": 0, "left": 2})
    assert granted["epsilon"] == {"spent": "0", "held": "0", "left": "4"}
    (asked,) = shell.json("grant", "list")["asked"]
    assert (asked["state"], asked["grant"], asked["granted"]["uses"]) == ("active", grant["grant"], 2)
    shell("grant", "revoke", grant["grant"][:8], "--reason", "the contract ended", "--as", "bank")
    (asked,) = shell.json("grant", "list")["asked"]
    assert (asked["state"], asked["reason"]) == ("revoked", "the contract ended")
    assert shell.json("grant", "list", "--as", "bank")["granted"][0]["state"] == "revoked"
    assert verify_ledger(shell.home / "ledger.db").reason == "valid"


def test_what_a_person_sees(shell):
    publish(shell, "credit", "--columns", "--min-cohort", 3)
    (line,) = shell("data", "list").out.splitlines()
    assert line.split()[:3] == ["bank/credit", "120", "rows"]
    assert "ε 8, 3 owners or more; credit scoring" in line
    shown = shell("data", "show", "bank/credit").out
    assert "age: number" in shown and "name: text" in shown and "ε 8 at δ = 0.00001" in shown
    request = ask(shell)
    text = shell("grant", "list", "--as", "bank").out
    assert text.startswith("waiting for bank:\n") and request[:16] in text
    assert "engineer on bank/credit; horizontal; 3 uses; ε 4; results to engineer; until 2100-01-01 00:00 UTC" in text
    shell("grant", "approve", request, "--as", "bank")
    assert "used 0, 3 left; ε 0 spent, 4 left" in shell("grant", "list", "--as", "bank").out
    shell("grant", "deny", ask(shell), "--reason", "enough for this year", "--as", "bank")
    assert "enough for this year" in shell("grant", "list").out
    assert "nothing waits" in shell("grant", "list", "--as", "somebody").out


def test_the_ledger_shows_no_row_and_no_column_that_the_owner_does_not_show(shell):
    publish(shell)
    with Ledger.open(shell.home / "ledger.db") as ledger:
        data = b"".join(entry.encode() for entry in ledger.entries())
    for secret in (b"income", b"x117", b'"rows":123', b"credit.csv"):
        assert secret not in data
    assert b'"rows":120' in data


def test_a_new_version_keeps_the_terms_and_another_content_has_another_commitment(shell):
    first = publish(shell, "credit", "--columns", "--min-cohort", 2, "--kinds", "psi")["card"]
    (shell.path / "credit.csv").write_text(CSV + "999,1,1,x,0\n")
    words = ("data", "publish", "credit.csv", "--name", "credit", "--as", "bank")
    second = shell.json(*words)["card"]
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"version", "published"}
    assert len(shell.json("data", "show", "bank/credit")["versions"]) == 2
    other = publish(shell, "copy")["card"]
    assert other["version"] == second["version"]  # one owner, one key
    lab = shell.json("data", "publish", "credit.csv", "--name", "c", "--purpose", "x", "--as", "lab")["card"]
    assert lab["version"] != second["version"]
    assert "delta" in shell.fails(2, *words, "--delta", "1e-6")


def test_a_withdrawn_dataset_is_not_offered_and_comes_back_with_a_new_card(shell):
    publish(shell)
    shell("data", "withdraw", "credit", "--as", "bank")
    assert shell.json("data", "list")["datasets"] == []
    assert shell.json("data", "list", "--withdrawn")["datasets"][0]["withdrawn"]
    assert "not offered" in shell.fails(2, "grant", "request", "bank/credit", "--kind", "psi")
    assert "not offered" in shell.fails(2, "data", "withdraw", "credit", "--as", "bank")
    publish(shell)
    assert len(shell.json("data", "list")["datasets"]) == 1


def test_a_request_for_one_job_takes_everything_from_the_job_file(shell):
    publish(shell)
    (shell.path / "job.toml").write_text(
        'kind = "horizontal"\nname = "j"\nseed = 1\n[model]\nname = "logistic"\n[train]\nrounds = 2\nlearning_rate = 0.5\n'
        + "".join(
            f'[[party]]\nname = "{n}"\ndata = "credit.csv"\nid = "id"\nlabel = "y"\n' for n in ("bank", "lab", "shop")
        )
    )
    terms = shell.json("grant", "request", "bank/credit", "--job", "job.toml", "--this-version")["terms"]
    assert (terms["kinds"], terms["algorithms"], terms["receivers"]) == (["horizontal"], ["logistic"], ["lab", "shop"])
    assert len(terms["job"]) == len(terms["version"]) == 64
    assert (terms["epsilon"], terms["private_only"], terms["uses"]) == (0, False, 1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data", "publish", "credit.csv", "--name", "credit", "--as", "bank"], "--purpose"),
        (["data", "publish", "none.csv", "--name", "c", "--purpose", "x", "--as", "bank"], "no such file"),
        (["data", "publish", "--name", "c", "--purpose", "x", "--as", "bank"], "no FILE"),
        (["data", "publish", "credit.csv", "--name", "Credit", "--purpose", "x", "--as", "bank"], "[a-z0-9]"),
        (["data", "publish", "credit.csv", "--name", "c", "--purpose", "x"], "whose data"),
        (["data", "publish", "credit.csv", "--name", "c", "--purpose", "x", "--as", "coordinator"], "another name"),
        (["data", "publish", "credit.csv", "--name", "c", "--purpose", "x", "--kinds", "all", "--as", "bank"], "--kinds"),
        (["data", "publish", "credit.csv", "--name", "c", "--purpose", "x", "--epsilon", "-1", "--as", "b"], "epsilon"),
        (["data", "publish", "credit.csv", "--name", "c", "--purpose", "x", "--delta", "2", "--as", "b"], "--delta"),
        (["data", "publish", "sqlite:///x.db", "--name", "c", "--purpose", "x", "--as", "b"], "--query"),
        (["data", "show", "bank"], "OWNER/NAME"),
        (["data", "show", "bank/none"], "not published"),
        (["grant", "request", "bank/credit", "--kind", "psi"], "not offered"),
        (["grant", "approve", "00000000", "--as", "bank"], "00000000"),
        (["grant", "revoke", "00000000", "--reason", "x", "--as", "bank"], "00000000"),
        (["grant", "post", "none.json"], "cannot be read"),
        (["identity", "rotate", "--done", "--as", "bank"], "no rotation was begun"),
        (["identity", "revoke", "coordinator", "--reason", "x"], "the log's identity"),
        (["identity", "revoke", "nobody", "--reason", "x"], "no key of that name"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_one_line(shell, words, says):
    assert says in shell.fails(2, *words)


def test_options_that_give_more_than_was_asked_for_are_refused(shell):
    publish(shell)
    request = ask(shell)
    for more, within in (
        (["--uses", 4], r"uses: .* within \d$"),
        (["--epsilon", "4.5"], r"epsilon: .* within \d(\.\d+)?$"),
        (["--until", "2100-06-01"], r"not_after: .* within 2\d\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC$"),
        (["--receivers", "eve"], r"receivers: .* within \w+$"),
    ):
        said = shell.fails(2, "grant", "approve", request, *more, "--as", "bank").strip()
        assert "wider than what was asked for" in said and re.search(within, said), said
    assert "--until" in shell.fails(2, "grant", "approve", request, "--until", "tomorrow", "--as", "bank")
    assert "--purpose" in shell.fails(2, "grant", "request", "bank/credit", "--kind", "psi", "--purpose", "marketing")
    assert shell.json("grant", "list", "--as", "bank")["granted"] == []


def test_a_day_ends_at_its_end():
    assert until_ms("2026-12-31") == until_ms("2027-01-01T00:00") == until_ms("2027-01-01T01:00+01:00")


# ---- what a terminal would obey


@pytest.mark.parametrize(
    "words",
    [
        ["data", "publish", "credit.csv", "--name", HOSTILE, "--purpose", "x", "--as", "bank"],
        ["data", "publish", "credit.csv", "--name", "c", "--purpose", HOSTILE, "--as", "bank"],
        ["data", "publish", HOSTILE, "--name", "c", "--purpose", "x", "--as", "bank"],
        ["data", "publish", "credit.csv", "--name", "c", "--purpose", "x", "--as", HOSTILE],
        ["data", "show", f"bank/{HOSTILE}"],
        ["grant", "request", f"{HOSTILE}/credit", "--kind", "psi"],
        ["grant", "request", "bank/credit", "--kind", HOSTILE],
        ["grant", "request", "bank/credit", "--kind", "psi", "--receivers", HOSTILE],
        ["grant", "approve", HOSTILE, "--as", "bank"],
        ["identity", "revoke", HOSTILE, "--reason", "x"],
        ["identity", "revoke", "bank", "--reason", HOSTILE],
    ],
)
def test_hostile_words_reach_neither_the_terminal_nor_the_ledger(shell, words):
    publish(shell)
    size = shell.json("data", "list")
    shell.fails(2, *words)
    assert shell.json("data", "list") == size


def test_hostile_words_on_the_ledger_are_left_out_and_shown_as_they_are(shell):
    """A coordinator that checks nothing puts what it likes on its own ledger."""
    publish(shell)
    board = LocalBoard(Home.open(shell.home))
    eve = Identity.create("eve")
    body = {"act": "publish", "card": {**shell.json("data", "list")["datasets"][0], "name": HOSTILE}}
    bad = [
        Statement.make(eve, log=board.log, kind="dataset", run="", body=body),
        Statement.make(eve, log=board.log, kind="grant-request", run="", body={"terms": HOSTILE, "nonce": HOSTILE}),
        Statement.make(eve, log=board.log, kind="revoke", run="", body={"name": "eve", "card": "00" * 32, "reason": "x", "asked": ""}),
    ]  # fmt: skip
    with Ledger.open(shell.home / "ledger.db", board.coordinator) as ledger:
        ledger.append([introduce(eve, log=board.log), *bad[:2]])
    assert "left out" in shell("data", "list").out
    assert "left out" in shell("grant", "list", "--as", "bank").out
    assert len(shell.json("data", "list")["datasets"]) == 1


def test_hostile_column_names_are_refused_and_hostile_files_too(shell):
    (shell.path / "bad.csv").write_text(f"id,{HOSTILE[:6]}\n1,2\n")
    with pytest.raises(DataError, match="column"):
        describe(shell.path / "bad.csv")
    shell.fails(2, "data", "publish", "bad.csv", "--name", "c", "--purpose", "x", "--as", "bank")
    for text in (
        "",
        "{}",
        '{"type":"fedseal statements v1","items":[]}',
        HOSTILE,
        '{"items":[{}],"type":"fedseal statements v1"}',
    ):
        (shell.path / "bad.json").write_text(text)
        shell.fails(2, "grant", "post", "bad.json")


# ---- data that are not csv


def test_one_table_has_one_schema_whatever_holds_it(shell, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    rows = [(n, n * 0.5, f"x{n}", bool(n % 2)) for n in range(40)]
    names = ["id", "income", "name", "good"]
    (tmp_path / "t.csv").write_text(
        ",".join(names) + "\n" + "".join(f"{a},{b},{c},{str(d).lower()}\n" for a, b, c, d in rows)
    )
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    np.savez(tmp_path / "t.npz", **{name: np.array(values) for name, values in columns.items()})
    db = sqlite3.connect(tmp_path / "t.db")
    db.execute("CREATE TABLE t (id INTEGER, income REAL, name TEXT)")
    db.executemany("INSERT INTO t VALUES (?, ?, ?)", [row[:3] for row in rows])
    db.commit()
    expected = (("good", "true/false"), ("id", "number"), ("income", "number"), ("name", "text")), 40
    for name in ("t.csv", "t.parquet", "t.npz"):
        assert describe(tmp_path / name) == expected, name
    assert describe(SqlSource(f"sqlite:///{tmp_path}/t.db", "SELECT * FROM t"))[0] == expected[0][1:]
    np.savez(tmp_path / "p.npz", x=np.zeros((5, 8, 8), dtype=np.uint8), y=np.arange(5))
    assert describe(tmp_path / "p.npz") == ((("x", "number[8,8]"), ("y", "number")), 5)


def test_a_query_is_published_without_its_password_anywhere(shell, tmp_path):
    db = sqlite3.connect(tmp_path / "t.db")
    db.executescript("CREATE TABLE t (a INTEGER); INSERT INTO t VALUES (1), (2), (3)")
    db.close()
    words = ("data", "publish", f"sqlite:///{tmp_path}/t.db", "--query", "SELECT a FROM t", "--name", "rows")
    card = shell.json(*words, "--purpose", "x", "--as", "bank")["card"]
    assert card["rows"] == 3
    with Ledger.open(shell.home / "ledger.db") as ledger:
        data = b"".join(entry.encode() for entry in ledger.entries())
    assert b"SELECT" not in data and b"t.db" not in data


# ---- keys


def test_rotation_in_a_local_home_keeps_data_and_ends_grants(shell):
    publish(shell)
    publish(shell, "old")
    shell("data", "withdraw", "old", "--as", "bank")
    shell("grant", "approve", ask(shell), "--as", "bank")
    home = Home.open(shell.home)
    book = CardBook(home.party("lab") / "cards.json")
    bank = Identity.load_or_create(home.party("bank"), "bank")
    book.pin(bank.card)
    done = shell.json("identity", "rotate", "--as", "bank")
    assert (done["old"], book.get("bank").fingerprint) == (bank.card.fingerprint, done["new"])
    shown = shell.json("identity", "show", "--as", "bank")
    assert (shown["fingerprint"], [act["act"] for act in shown["history"]]) == (done["new"], ["rotate"])
    assert [held["name"] for held in shell.json("data", "list")["datasets"]] == ["credit"]
    consent = Consent(home.party("bank"), Identity.load_or_create(home.party("bank"), "bank"))
    assert {held.card.name: held.withdrawn for held in consent.listings()} == {"credit": False, "old": True}
    assert "changed or revoked" in shell.json("grant", "list", "--as", "bank")["granted"][0]["state"]
    assert "changed or revoked" in shell.json("grant", "list")["asked"][0]["state"]
    shell("grant", "approve", ask(shell), "--as", "bank")
    assert shell.json("grant", "list")["asked"][1]["state"] == "active"
    assert not (home.party("bank") / "next").exists()
    assert verify_ledger(home.ledger).reason == "valid"


def test_rotation_carries_standing_grants_over(shell):
    publish(shell)
    home = Home.open(shell.home)
    bank = Identity.load_or_create(home.party("bank"), "bank")
    log = LocalBoard(home).log
    Consent(home.party("bank"), bank).standing("credit", ("horizontal",), log=log)
    shell("identity", "rotate", "--as", "bank")
    states = [held["state"] for held in shell.json("grant", "list", "--as", "bank")["granted"]]
    assert states == ["revoked", "active"]


@pytest.mark.parametrize("killed", ["after posting", "after the data"])
def test_a_rotation_that_was_cut_short_is_taken_up_again(shell, monkeypatch, killed):
    import server.cli.identity_keys as module

    publish(shell)

    class Killed(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if killed == "after posting":
            patch.setattr(module, "_switch", die)
        else:
            patch.setattr(
                module.os, "replace", lambda a, b: die() if "next" in str(a) else __import__("os").rename(a, b)
            )
        with pytest.raises(Killed):
            shell("identity", "rotate", "--as", "bank")
    shell("identity", "rotate", "--as", "bank")
    with Ledger.open(shell.home / "ledger.db") as ledger:
        assert len(list(ledger.entries(kind="rotate"))) == 1
        assert ledger.card("bank").fingerprint == shell.json("identity", "show", "--as", "bank")["fingerprint"]
    assert Consent(shell.home / "parties/bank", Identity.load_or_create(shell.home / "parties/bank", "bank")).listing(
        "credit"
    )


@pytest.mark.parametrize("by", ["itself", "coordinator"])
def test_a_revoked_key_is_set_aside_and_the_name_begins_anew(shell, by):
    publish(shell)
    more = ["--as", "coordinator"] if by == "coordinator" else []
    done = shell.json("identity", "revoke", "bank", "--reason", "the laptop was stolen", *more)
    with Ledger.open(shell.home / "ledger.db") as ledger:
        (entry,) = ledger.entries(kind="revoke")
        assert (entry.by, ledger.card("bank")) == ("bank" if by == "itself" else "coordinator", None)
    assert not (shell.home / "parties/bank/identity.key").exists()
    assert done["card"] in {act["card"] for act in shell.json("identity", "show", "--as", "bank")["history"]}
    publish(shell)
    assert verify_ledger(shell.home / "ledger.db").reason == "valid"
    names = shell.json("identity", "list")["identities"]
    assert names["bank"]["fingerprint"] != done["card"]


# ---- a node without a pass


@pytest.fixture
def node(shell, tmp_path) -> Path:
    return make_node(shell, tmp_path / "node")


def test_a_node_without_a_pass_speaks_in_files(shell, node, tmp_path):
    words = ("data", "publish", "--name", "credit", "--purpose", "credit scoring")
    assert "fedseal login" in shell.fails(2, *words, home=node)
    assert Consent(node / "parties/bank", Identity.load_or_create(node / "parties/bank", "bank")).listings() == ()
    shell(*words, "--out", "card.json", home=node)
    assert "is a file already" in shell.fails(2, *words, "--out", "card.json", home=node)
    assert shell.json("data", "list", home=node)["datasets"][0]["name"] == "credit"
    assert shell.json("grant", "post", "card.json")["added"] == 3  # the card, the profile, the dataset
    assert shell.json("grant", "post", "card.json")["added"] == 0
    request = ask(shell, "--out", "request.json")
    assert shell.json("grant", "list")["asked"] == []
    shell.json("grant", "approve", "request.json", "--uses", 1, "--out", "approval.json", home=node)
    held = shell.json("grant", "list", home=node)
    assert (held["waiting"], held["granted"][0]["uses"]["left"]) == ([], 1)
    for file in ("request.json", "approval.json"):
        shell.json("grant", "post", file)
    (asked,) = shell.json("grant", "list")["asked"]
    assert (asked["request"], asked["state"]) == (request, "active")


def test_a_node_without_a_pass_rotates_in_two_steps(shell, node):
    words = ("data", "publish", "--name", "credit", "--purpose", "x", "--out", "card.json")
    shell(*words, home=node)
    shell("grant", "post", "card.json")
    told = shell.json("identity", "rotate", "--out", "turn.json", home=node)
    assert shell.json("identity", "show", home=node)["fingerprint"] == told["old"]
    shell("grant", "post", "turn.json")
    shell("identity", "rotate", "--done", "--out", "again.json", home=node)
    assert shell.json("identity", "show", home=node)["fingerprint"] == told["new"]
    assert shell.json("grant", "post", "again.json")["added"] == 2  # the profile, the dataset
    assert len(shell.json("data", "list")["datasets"]) == 1


def test_a_file_for_another_log_or_that_was_altered_is_refused(shell, node, tmp_path):
    publish(shell, "credit", "--out", "local.json")
    other = Identity.create("ann")
    alien = introduce(other, log="fedseal/" + "0" * 16)
    write_statements(tmp_path / "alien.json", [(alien, other.card)])
    shell.fails(1, "grant", "post", "alien.json")
    text = (tmp_path / "local.json").read_text()
    (tmp_path / "altered.json").write_text(text.replace("credit scoring", "credit boarding"))
    assert "not signed" in shell.fails(2, "grant", "post", "altered.json")
    with pytest.raises(UsageError):
        read_statements(tmp_path)


# ---- through a door


@pytest.fixture
def deployment(shell, tmp_path):
    with serve_door(tmp_path) as made:
        yield made


def test_owners_and_engineers_meet_at_the_door(shell, deployment):
    folder, enter = deployment
    bank, ann = enter("bank", "data-owner"), enter("ann", "model-owner")
    words = ("data", "publish", "credit.csv", "--name", "credit", "--purpose", "credit scoring")
    assert shell.json(*words, home=bank)["card"]["owner"] == "bank"
    assert shell.json("data", "list", home=ann)["datasets"][0]["name"] == "credit"
    request = shell.json("grant", "request", "bank/credit", "--kind", "psi", home=ann)["request"]
    shell("grant", "approve", request[:10], home=bank)
    assert shell.json("grant", "list", home=ann)["asked"][0]["state"] == "active"
    assert "may not ask for a grant; allowed: model-owner" in shell.fails(
        3, "grant", "request", "bank/credit", "--kind", "psi", home=bank
    )
    shell("identity", "rotate", home=bank)
    assert len(shell.json("data", "list", home=ann)["datasets"]) == 1
    assert shell.json("data", "list", home=ann)["refused"] == []
    olga = enter("olga", "operator")
    shell("identity", "revoke", "bank", "--reason", "left", home=olga)
    assert "revoked" in shell.fails(3, "data", "list", home=bank)
    assert verify_ledger(folder.home.ledger).reason == "valid"


def test_what_the_door_refuses_is_kept_to_be_handed_in_later(shell, deployment):
    ann = deployment[1]("ann", "model-owner")
    text = shell.fails(3, "data", "publish", "credit.csv", "--name", "c", "--purpose", "x", home=ann)
    kept = next((ann / "parties/ann").glob("unposted-*.json"))
    assert f"fedseal grant post {kept}" in text and "allowed: data-owner" in text
    assert [statement.kind for statement, _ in read_statements(kept)] == ["card", "profile", "dataset"]


# ---- the page


def test_the_table_of_roles_on_the_page_is_the_one_that_the_doors_ask():
    from fl_core.trust.roles import table

    page = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert table() in page


def test_every_command_on_the_page_is_one(shell):
    page = (Path(__file__).parents[2] / "docs/consent.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"fedseal {command}" in page, command
