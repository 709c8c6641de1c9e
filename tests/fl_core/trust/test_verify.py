"""The auditor's verifier against every way of altering a ledger that its keeper or a burglar has."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from fl_core.trust import entry as entry_module
from fl_core.trust.checkpoint import Checkpoint, cosign, log_id, open_checkpoint, quorum_size, sign_checkpoint
from fl_core.trust.entry import Entry, Statement
from fl_core.trust.identity import Identity
from fl_core.trust.merkle import Frontier
from fl_core.trust.proofs import export_lines
from fl_core.trust.verify import NotALedger, verify_ledger
from fl_core.trust.verify import ledger as verify_module

ROOT = Path(__file__).parents[3]


@pytest.fixture
def finished(scenario):
    """A whole witnessed run: entries 0 log, 1-3 cards, 4 roster, 5-7 and 8-10 updates, 11 end."""
    scenario.note = scenario.run()
    scenario.ledger.close()
    return scenario


@pytest.fixture
def edit(finished, tmp_path):
    """Return a function that verifies a copy of the ledger altered by SQL."""

    def verify_edited(*statements, since=None):
        path = tmp_path / "altered.db"
        shutil.copy(finished.path, path)
        db = sqlite3.connect(path)
        for statement, *values in statements:
            db.execute(statement, values)
        db.commit()
        db.close()
        return verify_ledger(path, since=since)

    return verify_edited


def lines_of(scenario):
    with type(scenario.ledger).open(scenario.path) as ledger:
        return list(export_lines(ledger))


def verify_lines(path, lines, **options):
    path.write_bytes(b"".join(lines))
    return verify_ledger(path, **options)


# ---- what is valid


def test_witnessed_ledger_is_valid_in_both_forms(finished, tmp_path):
    key = finished.coordinator.card.ed25519
    report = verify_ledger(finished.path, coordinator_key_hex=key, since=finished.note)
    assert (report.status, report.reason, report.first_bad, report.size, report.sound) == (0, "valid", None, 12, 12)
    assert report.signatures == 12 + report.checkpoints + 3
    assert report.log == log_id(finished.coordinator.card) and report.coordinator == key
    run = report.runs["run-1"]
    assert (run.state, run.entries, run.quorum, run.cosigned, run.end) == ("witnessed", 8, 3, 3, 11)
    exported = verify_lines(tmp_path / "ledger.jsonl", lines_of(finished), since=finished.note)
    exported.seconds = report.seconds
    assert exported == report
    json.dumps(report.to_dict())


def test_progress_is_reported_every_thousand_entries(scenario):
    scenario.ledger.commit([scenario.say("coordinator", "round", {"n": n}) for n in range(2500)])
    seen = []
    verify_ledger(scenario.path, progress=seen.append)
    assert seen == [1000, 2000]


def test_ledger_is_verified_while_it_grows(scenario):
    scenario.run()
    scenario.ledger.append([scenario.say("bank_a", "metrics")])
    report = verify_ledger(scenario.path)
    assert (report.status, report.size, report.sound) == (0, 13, 12)


# ---- quorum


@pytest.mark.parametrize(("cosigners", "status"), [(0, 4), (1, 4), (2, 4), (3, 0)])
def test_run_without_a_quorum_is_named(scenario, cosigners, status):
    scenario.run(cosigners=tuple(scenario.parties)[:cosigners])
    report = verify_ledger(scenario.path)
    assert (report.status, report.runs["run-1"].cosigned) == (status, cosigners)
    assert report.runs["run-1"].state == ("witnessed" if status == 0 else "short")
    assert status == 0 or "run-1" in report.reason


def test_later_checkpoint_covers_an_earlier_end(scenario):
    scenario.run("run-1", cosigners=())
    assert verify_ledger(scenario.path).status == 4
    scenario.run("run-2")
    report = verify_ledger(scenario.path)
    assert report.status == 0 and report.runs["run-1"].cosigned == 3


def test_cosignatures_before_the_end_do_not_count(scenario):
    names = list(scenario.parties)
    roster = scenario.say("coordinator", "roster", {"parties": names, "min_parties": 3})
    scenario.cosign(scenario.ledger.commit([roster])[1], *names)
    assert verify_ledger(scenario.path).runs["run-1"].state == "open"
    scenario.ledger.commit([scenario.say("coordinator", "end")])
    assert verify_ledger(scenario.path).runs["run-1"].state == "short"


def test_quorum_of_one_checkpoint_is_not_gathered_from_several(scenario):
    note = scenario.run(cosigners=("bank_a",))
    assert note
    for name in ("bank_b", "bank_c"):
        scenario.cosign(scenario.ledger.commit([scenario.say(name, "metrics")])[1], name)
    assert verify_ledger(scenario.path).status == 4


def test_second_roster_cannot_shrink_the_quorum(scenario):
    scenario.run(cosigners=())
    small = {"parties": ["bank_a"], "min_parties": 1}
    scenario.ledger.append([scenario.say("coordinator", "roster", small)])
    scenario.cosign(scenario.ledger.commit([scenario.say("coordinator", "end")])[1], "bank_a")
    report = verify_ledger(scenario.path)
    assert (report.status, report.runs["run-1"].quorum) == (4, 3)


def test_rosters_and_ends_count_from_the_coordinator_only(scenario):
    fake = {"parties": ["bank_a"], "min_parties": 1}
    note = scenario.ledger.commit([scenario.say("bank_a", "roster", fake), scenario.say("bank_a", "end")])[1]
    scenario.cosign(note, "bank_a")
    report = verify_ledger(scenario.path)
    assert (report.status, report.runs["run-1"].state, report.runs["run-1"].quorum) == (4, "open", 0)


def test_stopped_run_may_have_one_round_that_nobody_cosigned(scenario):
    names = list(scenario.parties)
    roster = scenario.say("coordinator", "roster", {"parties": names, "min_parties": 3})
    scenario.cosign(scenario.ledger.commit([roster])[1], *names)
    for number, status in ((1, 0), (2, 4)):
        round_ = scenario.say("coordinator", "aggregate", {"round": number})
        note = scenario.ledger.commit([round_, scenario.say("coordinator", "failure")])[1]
        report = verify_ledger(scenario.path)
        assert (report.status, report.runs["run-1"].uncovered) == (status, number)
    scenario.cosign(note, *names)
    assert verify_ledger(scenario.path).status == 0
    scenario.ledger.commit([scenario.say("coordinator", "resume")])
    assert verify_ledger(scenario.path).runs["run-1"].state == "open"


def test_resumed_run_needs_a_new_end(scenario):
    scenario.run()
    scenario.ledger.commit([scenario.say("coordinator", "resume")])
    assert verify_ledger(scenario.path).runs["run-1"].state == "open"
    scenario.cosign(scenario.ledger.commit([scenario.say("coordinator", "end")])[1], *scenario.parties)
    assert verify_ledger(scenario.path).status == 0


def test_refused_job_needs_no_quorum_but_work_without_a_roster_does(scenario):
    scenario.ledger.commit([scenario.say("coordinator", kind) for kind in ("job", "refusal", "end")])
    assert verify_ledger(scenario.path).status == 0
    scenario.ledger.commit([scenario.say("coordinator", kind, run="run-2") for kind in ("aggregate", "end")])
    report = verify_ledger(scenario.path)
    assert (report.status, report.runs["run-2"].state) == (4, "short")


def test_verifier_and_ledger_share_the_rules():
    assert verify_module.KINDS == entry_module.KINDS
    assert verify_module.WORK < verify_module.KINDS
    for n in range(1, 50):
        body = {"parties": [f"p{i}" for i in range(n)], "min_parties": 1}
        assert verify_module.read_roster(body) == body["parties"]
        assert quorum_size(n) == min((n + 1) // 2 + 1, n)


# ---- what is altered


def changed(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_changed_bytes_of_every_stored_leaf_are_found_where_they_are(finished, tmp_path):
    """Every eleventh byte here; all of them in the slow test below."""
    path = tmp_path / "altered.db"
    shutil.copy(finished.path, path)
    db = sqlite3.connect(path, isolation_level=None)
    for seq, leaf in db.execute("SELECT seq, leaf FROM entries").fetchall():
        for place in range(seq % 11, len(leaf), 11):
            db.execute("UPDATE entries SET leaf = ? WHERE seq = ?", (changed(leaf, place), seq))
            report = verify_ledger(path)
            assert (report.status, report.first_bad) == (1, seq), (seq, place, report.reason)
            assert report.sound <= seq
        db.execute("UPDATE entries SET leaf = ? WHERE seq = ?", (leaf, seq))
    db.close()
    assert verify_ledger(path).status == 0


@pytest.mark.slow
def test_every_changed_byte_of_every_leaf_is_found_where_it_is(finished, tmp_path):
    lines, seq = lines_of(finished), 0
    for number, line in enumerate(lines):
        if line.startswith(b'{"checkpoint"'):
            continue
        for place in range(len(line) - 1):
            if (number, place) == (0, 0):
                continue  # then it is no ledger at all
            altered = [*lines[:number], changed(line, place), *lines[number + 1 :]]
            report = verify_lines(tmp_path / "altered.jsonl", altered)
            assert (report.status, report.first_bad) == (1, seq), (seq, place, report.reason)
        seq += 1
    assert seq == 12


def test_changed_bytes_of_checkpoints_and_cosignatures_are_refused(finished, tmp_path):
    lines = lines_of(finished)
    for number in (len(lines) - 1, 1):
        for place in range(number % 3, len(lines[number]) - 1, 3):
            altered = [*lines[:number], changed(lines[number], place), *lines[number + 1 :]]
            assert verify_lines(tmp_path / "altered.jsonl", altered).status == 1, place


def test_altered_checkpoint_and_cosignature_name_the_last_entry_they_cover(finished, edit):
    for size, first_bad in [(1, 0), (4, 3), (5, 4), (8, 7), (12, 11)]:
        report = edit(("UPDATE checkpoints SET note = replace(note, 'fedseal/', 'fedsaal/') WHERE size = ?", size))
        assert (report.status, report.first_bad) == (1, first_bad)
    stranger = cosign(Identity.create("bank_b"), finished.note)
    other_time = cosign(finished.parties["bank_b"], finished.note, timestamp=1)
    flipped = other_time[:-9] + ("A" if other_time[-9] != "A" else "B") + other_time[-8:]
    for line in (stranger, flipped, "", None):
        report = edit(("UPDATE cosignatures SET line = coalesce(?, 7) WHERE name = 'bank_b'", line))
        assert (report.status, report.first_bad) == (1, 11), line


def test_unsigned_time_of_any_entry_is_pinned_to_its_place(finished, edit):
    """The coordinator's clock is under no party's signature; chain and root hold it all the same."""
    for seq in range(12):
        later = "CAST(replace(CAST(leaf AS TEXT), '\"t\":1', '\"t\":2') AS BLOB)"
        report = edit((f"UPDATE entries SET leaf = {later} WHERE seq = ?", seq))
        assert (report.status, report.first_bad) == (1, seq), report.reason


@pytest.mark.parametrize("seq", [0, 1, 5, 10])
def test_removed_entry_is_missed(edit, seq):
    report = edit(("DELETE FROM entries WHERE seq = ?", seq))
    assert (report.status, report.first_bad) == (1, seq)


@pytest.mark.parametrize("seq", [1, 5, 10])
def test_removed_entry_is_missed_even_when_the_rest_moves_up(edit, seq):
    report = edit(("DELETE FROM entries WHERE seq = ?", seq), ("UPDATE entries SET seq = seq - 1 WHERE seq > ?", seq))
    assert (report.status, report.first_bad) == (1, seq)


def test_swapped_and_duplicated_entries_are_found(finished, tmp_path):
    lines = lines_of(finished)
    numbers = [n for n, line in enumerate(lines) if not line.startswith(b'{"checkpoint"')]
    left, right = numbers[5], numbers[6]
    swapped = list(lines)
    swapped[left], swapped[right] = lines[right], lines[left]
    assert verify_lines(tmp_path / "a.jsonl", swapped).first_bad == 5
    doubled = [*lines[: left + 1], lines[left], *lines[left + 1 :]]
    assert verify_lines(tmp_path / "b.jsonl", doubled).first_bad == 6


def test_cut_tail_shows_by_what_was_left_or_by_a_kept_checkpoint(finished, edit):
    cut = [("DELETE FROM entries WHERE seq >= 8",)]
    report = edit(*cut)
    assert (report.status, report.first_bad, report.sound) == (1, 8, 8)
    cut += [("DELETE FROM checkpoints WHERE size > 8",), ("DELETE FROM cosignatures",)]
    clean = edit(*cut)
    assert clean.status == 4, "a tail cut cleanly shows only as a run without its end"
    report = edit(*cut, since=finished.note)
    assert (report.status, report.first_bad) == (1, 8)
    assert "tail is cut" in report.reason


def test_orphaned_cosignatures_and_columns_that_lie_are_found(edit):
    assert edit(("DELETE FROM checkpoints WHERE size = 12",)).status == 1
    for column in ("run", "kind", "by"):
        report = edit((f"UPDATE entries SET {column} = 'x' WHERE seq = 6",))
        assert (report.status, report.first_bad) == (1, 6)


def reissue(scenario, start, change):
    """Write entries from `start` on anew, chained and signed by the coordinator's own key, as it could."""
    with type(scenario.ledger).open(scenario.path) as ledger:
        entries, notes = list(ledger.entries()), ledger.checkpoint_sizes()
    records, frontier, prev = [], Frontier(), "0" * 64
    for entry in entries:
        statement = change(entry.statement) if entry.seq >= start else entry.statement
        entry = Entry(statement, entry.seq, prev, entry.t + (entry.seq >= start))
        prev = entry.leaf_hash.hex()
        frontier.append(entry.leaf_hash)
        records.append(entry.encode() + b"\n")
        if frontier.size in notes:
            note = sign_checkpoint(scenario.coordinator, Checkpoint(entry.log, frontier.size, frontier.root()))
            records.append(json.dumps({"checkpoint": note, "cosignatures": {}}, separators=(",", ":"),
                                      ensure_ascii=False).encode() + b"\n")  # fmt: skip
    return records


def test_log_issued_anew_by_its_coordinator_is_caught_with_a_kept_checkpoint(finished, tmp_path):
    records = reissue(finished, 5, lambda statement: statement)
    assert verify_lines(tmp_path / "fork.jsonl", records).status == 4  # consistent in itself, but nobody co-signed
    report = verify_lines(tmp_path / "fork.jsonl", records, since=finished.note)
    assert (report.status, report.first_bad) == (1, 11)
    assert "rewritten" in report.reason


def test_coordinator_cannot_alter_a_partys_statement_even_with_its_own_key(finished, tmp_path):
    def change(statement):
        if statement.by == "coordinator":
            return statement
        return Statement(**{**statement.to_dict(), "body": {"round": 9}})

    report = verify_lines(tmp_path / "fork.jsonl", reissue(finished, 5, change))
    assert (report.status, report.first_bad) == (1, 5)
    assert "bank_a" in report.reason


def test_burglar_who_relinks_the_chain_has_no_root_for_it(finished, edit, tmp_path):
    """Without the coordinator's key the checkpoints stay: the first that covers the change fails."""
    old = lines_of(finished)
    new = reissue(finished, 9, lambda statement: statement)
    records = [o if o.startswith(b'{"checkpoint"') else n for o, n in zip(old, new, strict=True)]
    report = verify_lines(tmp_path / "relinked.jsonl", records)
    assert (report.status, report.first_bad, report.sound) == (1, 10, 8)
    assert "entries 8 to 10" in report.reason


def sign_lines(coordinator, statements):
    """A ledger of any statements at all, properly chained and signed by its coordinator."""
    records, frontier, prev = [], Frontier(), "0" * 64
    for seq, statement in enumerate(statements):
        entry = Entry(statement, seq, prev, 1)
        prev = entry.leaf_hash.hex()
        frontier.append(entry.leaf_hash)
        records.append(entry.encode() + b"\n")
    note = sign_checkpoint(coordinator, Checkpoint(log_id(coordinator.card), frontier.size, frontier.root()))
    line = json.dumps({"checkpoint": note, "cosignatures": {}}, separators=(",", ":"), ensure_ascii=False)
    return [*records, line.encode() + b"\n"]


def test_rules_that_the_ledger_enforces_bind_a_coordinator_that_bypasses_it(coordinator, parties, tmp_path):
    log = log_id(coordinator.card)

    def say(identity, kind, body, by_log=log):
        return Statement.make(identity, log=by_log, kind=kind, run="", body=body)

    first = say(coordinator, "log", {"card": coordinator.card.to_dict()})
    a, twin = parties["bank_a"], Identity.create("bank_a")
    clone = Identity("bank_z", signing_key=a._signing_key, sealing_key=a.sealing_key)
    card = say(a, "card", {"card": a.card.to_dict()})
    cases = {
        "a second log entry": ([first, first], 1),
        "no log entry": ([card], 0),
        "another card under one name": ([first, card, say(twin, "card", {"card": twin.card.to_dict()})], 2),
        "one key under two names": ([first, card, say(clone, "card", {"card": clone.card.to_dict()})], 2),
        "a signer without a card": ([first, say(a, "update", {})], 1),
        "a message": ([first, card, say(a, "witness", {})], 2),
        "another log": ([first, say(coordinator, "round", {}, "fedseal/" + "0" * 16)], 1),
        "a card with surplus": ([first, say(a, "card", {"card": a.card.to_dict(), "x": 1})], 1),
        "another party's card": ([first, say(a, "card", {"card": parties["bank_b"].card.to_dict()})], 1),
        "an empty roster": ([first, Statement.make(coordinator, log=log, kind="roster", run="r", body={})], 1),
    }
    assert verify_lines(tmp_path / "good.jsonl", sign_lines(coordinator, [first, card])).status == 0
    for what, (statements, first_bad) in cases.items():
        report = verify_lines(tmp_path / "bad.jsonl", sign_lines(coordinator, statements))
        assert (report.status, report.first_bad) == (1, first_bad), (what, report.reason)


def test_ledger_of_another_coordinator_is_refused(finished, coordinator):
    other = Identity.create("coordinator")
    report = verify_ledger(finished.path, coordinator_key_hex=other.card.ed25519)
    assert (report.status, report.first_bad) == (1, 0)
    kept = sign_checkpoint(other, Checkpoint(log_id(other.card), 5, bytes(32)))
    assert verify_ledger(finished.path, since=kept).status == 1
    origin = open_checkpoint(finished.note, coordinator.card).origin
    forged = sign_checkpoint(other, Checkpoint(log_id(other.card), 5, bytes(32))).replace(log_id(other.card), origin)
    assert verify_ledger(finished.path, since=forged).status == 1


@pytest.mark.parametrize(
    "line",
    [
        b"{}", b"[]", b'{"a":1.5}', b'{"a":null}', b"{" * 100_000, b'{"checkpoint":1,"cosignatures":{}}',
        b'{"checkpoint":"x","cosignatures":[]}', b'{"checkpoint":"x"}', b'{"a":"' + b"x" * 70_000 + b'"}', b"\xff", b"",
        b'{"a":' + b"9" * 5000 + b"}", b'{"a":"\\ud800"}', b'{"a":' + b"[" * 900 + b"]" * 900 + b"}",
    ],
    ids=lambda line: repr(line[:24]),
)  # fmt: skip
def test_hostile_lines_are_broken_never_an_exception(finished, tmp_path, line):
    lines = lines_of(finished)
    report = verify_lines(tmp_path / "hostile.jsonl", [*lines[:3], line + b"\n", *lines[3:]])
    assert report.status == 1


@pytest.mark.parametrize("field", ["v", "log", "seq", "prev", "t", "kind", "run", "body", "by", "sig"])
@pytest.mark.parametrize("value", [True, 1, -1, "x", [], {}, ["log"]], ids=repr)
def test_hostile_types_are_broken_never_an_exception(finished, tmp_path, field, value):
    lines = lines_of(finished)
    for number in (0, len(lines) - 2):
        entry = json.loads(lines[number])
        if entry[field] == value and type(entry[field]) is type(value):
            continue
        altered = json.dumps(
            {**entry, field: value}, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()
        report = verify_lines(tmp_path / "x.jsonl", [*lines[:number], altered + b"\n", *lines[number + 1 :]])
        assert (report.status, report.first_bad) == (1, 0 if number == 0 else 11)


def test_empty_and_foreign_files_are_no_ledgers(finished, tmp_path):
    for name, content in [("empty", b""), ("text", b"hello"), ("sqlite", b"SQLite format 3\0" + bytes(4000))]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(NotALedger):
            verify_ledger(tmp_path / name)
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE entries (x)").connection.close()
    with pytest.raises(NotALedger):
        verify_ledger(tmp_path / "other.db")
    with pytest.raises(FileNotFoundError):
        verify_ledger(tmp_path / "missing")
    for since in ("", "x", finished.note[:-2]):
        with pytest.raises(NotALedger):
            verify_ledger(finished.path, since=since)


def test_damaged_pages_are_broken_never_an_exception(finished, tmp_path):
    data = bytearray(finished.path.read_bytes())
    for page in range(1, len(data) // 4096):
        altered = bytes(data[: page * 4096]) + b"\x5a" * 4096 + bytes(data[(page + 1) * 4096 :])
        (tmp_path / "damaged.db").write_bytes(altered)
        try:
            report = verify_ledger(tmp_path / "damaged.db")
        except NotALedger:
            continue
        assert report.status in (0, 1)  # 0 where only an index or the tree nodes were hit
    (tmp_path / "short.db").write_bytes(bytes(data[: len(data) // 2]))
    try:
        assert verify_ledger(tmp_path / "short.db").status == 1
    except NotALedger as error:
        assert "not a ledger" in str(error)


# ---- standing alone


GUARD = """
import sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in sys.stdlib_module_names | {"cryptography", "_cffi_backend", "verify"}:
            raise ImportError(f"the verifier imports {name}")
sys.meta_path.insert(0, Guard())
sys.path[:0] = sys.argv[1:3]
import verify
report = verify.verify_ledger(sys.argv[3])
print(report.status, report.size, sorted(n for n in sys.modules if n.split(".")[0] in ("fl_core", "numpy")))
"""


def test_verifier_runs_alone_with_the_standard_library_and_cryptography(finished, tmp_path):
    folder = tmp_path / "elsewhere"
    shutil.copytree(ROOT / "fl_core" / "trust" / "verify", folder / "verify")
    packages = next(path for path in sys.path if (Path(path) / "cryptography").is_dir())
    done = subprocess.run(
        [sys.executable, "-I", "-c", GUARD, str(folder), packages, str(finished.path)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.strip() == "0 12 []", done.stderr


def test_command_line_returns_the_documented_codes(finished, tmp_path):
    def call(*arguments):
        command = [sys.executable, "-m", "fl_core.trust.verify", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        return done.returncode, done.stdout or done.stderr

    (tmp_path / "kept.txt").write_text(finished.note)
    code, text = call(finished.path, "--since", tmp_path / "kept.txt", "--key", finished.coordinator.card.ed25519)
    assert code == 0 and json.loads(text)["reason"] == "valid"
    assert call(finished.path, "--key", "00" * 32)[0] == 1
    assert call(tmp_path / "missing")[0] == 2
    (tmp_path / "cut.jsonl").write_bytes(b"".join(lines_of(finished)[:8]))
    assert call(tmp_path / "cut.jsonl")[0] == 4
