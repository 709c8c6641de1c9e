"""The ledger: what it admits, what each failure leaves behind, several processes on one file."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sqlite3

import pytest

from fl_core.errors import BadMessage, BadSignature, FedsealError, JobFailed, LedgerBroken, UsageError, WrongKey
from fl_core.trust import database, merkle
from fl_core.trust import ledger as ledger_module
from fl_core.trust.checkpoint import cosign, log_id, open_checkpoint
from fl_core.trust.entry import NO_PREVIOUS, Statement
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.verify import verify_ledger
from tests.postgres import BOTH, place_for

FORK = multiprocessing.get_context("fork")
in_a_file = pytest.mark.parametrize("ledger_place", ["sqlite"], indirect=True)


@pytest.fixture(params=BOTH)
def ledger_place(request, tmp_path):
    return place_for(request, tmp_path)


def test_new_ledger_starts_with_the_coordinators_card_and_a_checkpoint(ledger_place, coordinator):
    with Ledger.open(ledger_place, coordinator) as ledger:
        (first,) = ledger.entries()
        assert (first.kind, first.seq, first.prev, first.by) == ("log", 0, NO_PREVIOUS, "coordinator")
        assert ledger.coordinator == coordinator.card
        assert ledger.log == log_id(coordinator.card)
        head = open_checkpoint(ledger.last_checkpoint(), coordinator.card)
        assert (head.size, head.root) == (1, first.leaf_hash) == (ledger.size, ledger.root)


def test_entries_chain_and_the_root_is_that_of_a_fresh_tree(scenario):
    scenario.run()
    frontier, prev = merkle.Frontier(), NO_PREVIOUS
    for seq, entry in enumerate(scenario.ledger.entries()):
        assert (entry.seq, entry.prev) == (seq, prev)
        frontier.append(entry.leaf_hash)
        prev = entry.leaf_hash.hex()
    assert (frontier.size, frontier.root()) == (scenario.ledger.size, scenario.ledger.root)


def test_checkpoint_and_entries_are_one_transaction(scenario, monkeypatch):
    size = scenario.ledger.size

    def fail(*_):
        raise OSError("no signature")

    monkeypatch.setattr(ledger_module, "sign_checkpoint", fail)
    with pytest.raises(OSError, match="no signature"):
        scenario.ledger.commit([scenario.say("bank_a", "update")])
    assert scenario.ledger.size == size


def test_one_bad_statement_keeps_the_whole_group_out(scenario):
    size = scenario.ledger.size
    good, other = scenario.say("bank_a", "update"), scenario.say("bank_b", "update")
    forged = Statement(**{**other.to_dict(), "by": "bank_a"})
    with pytest.raises(BadSignature, match="bank_a"):
        scenario.ledger.append([good, forged])
    assert scenario.ledger.size == size
    assert [entry.seq for entry in scenario.ledger.append([good, other])] == [size, size + 1]


def test_statement_forged_in_the_coordinators_name_is_refused(scenario):
    real = scenario.say("coordinator", "aggregate", {"round": 1})
    with pytest.raises(BadSignature, match="coordinator"):
        scenario.ledger.append([Statement(**{**real.to_dict(), "body": {"round": 2}})])
    impostor = Statement.make(Identity.create("coordinator"), log=scenario.ledger.log, kind="end", run="r", body={})
    with pytest.raises(BadSignature):
        scenario.ledger.append([impostor])


def test_statement_for_another_log_is_refused(scenario):
    other = Statement.make(scenario.parties["bank_a"], log="fedseal/" + "0" * 16, kind="update", run="r", body={})
    with pytest.raises(BadMessage, match="fedseal/0000000000000000"):
        scenario.ledger.append([other])


def test_second_log_entry_and_messages_are_refused(scenario):
    body = {"card": scenario.coordinator.card.to_dict()}
    with pytest.raises(BadMessage, match="one log statement"):
        scenario.ledger.append([scenario.say("coordinator", "log", body)])
    with pytest.raises(BadMessage, match="belongs on no ledger"):
        scenario.ledger.append([scenario.say("bank_a", "witness")])


def test_roster_without_a_quorum_is_refused_from_the_coordinator_only(scenario):
    with pytest.raises(BadMessage, match="roster"):
        scenario.ledger.append([scenario.say("coordinator", "roster", {"parties": []})])
    scenario.ledger.append([scenario.say("bank_a", "roster", {"roster": "00"})])


def test_second_card_under_one_name_is_refused(scenario):
    swapped = Identity.create("bank_a")
    body = {"card": swapped.card.to_dict()}
    statement = Statement.make(swapped, log=scenario.ledger.log, kind="card", run="", body=body)
    with pytest.raises(WrongKey, match="bank_a"):
        scenario.ledger.append([statement])
    again = scenario.say("bank_a", "card", {"card": scenario.parties["bank_a"].card.to_dict()}, run="")
    scenario.ledger.append([again])
    assert scenario.ledger.card("bank_a") == scenario.parties["bank_a"].card


def test_one_key_under_two_names_is_refused(scenario):
    key = scenario.parties["bank_a"]
    twin = Identity("bank_z", signing_key=key._signing_key, sealing_key=key.sealing_key)
    body = {"card": twin.card.to_dict()}
    statement = Statement.make(twin, log=scenario.ledger.log, kind="card", run="", body=body)
    with pytest.raises(WrongKey, match="shows the key of bank_a"):
        scenario.ledger.append([statement])


def test_party_without_a_card_is_refused_until_it_shows_one(ledger_place, make_scenario):
    scenario = make_scenario(ledger_place)
    with pytest.raises(WrongKey, match="bank_a: shows no card"):
        scenario.ledger.append([scenario.say("bank_a", "join")])
    assert scenario.ledger.card("bank_a") is None
    card = scenario.say("bank_a", "card", {"card": scenario.parties["bank_a"].card.to_dict()})
    with pytest.raises(BadSignature):  # a card that its own key did not sign for
        scenario.ledger.append([Statement(**{**card.to_dict(), "run": "other"})])
    assert scenario.ledger.card("bank_a") is None
    assert len(scenario.ledger.append([card, scenario.say("bank_a", "join")])) == 2


def test_entries_by_run_kind_and_range(scenario):
    scenario.run("run-1")
    scenario.run("run-2")
    ledger = scenario.ledger
    everything = list(ledger.entries())
    assert list(ledger.entries(run="run-2")) == [e for e in everything if e.run == "run-2"]
    assert list(ledger.entries(kind="update")) == [e for e in everything if e.kind == "update"]
    assert list(ledger.entries(3, 9, run="run-1", kind="update")) == [
        e for e in everything[3:9] if (e.run, e.kind) == ("run-1", "update")
    ]
    assert list(ledger.entries(len(everything))) == list(ledger.entries(5, 5)) == []


def test_iteration_pages_through_more_than_one_page(scenario):
    scenario.ledger.append([scenario.say("coordinator", "round", {"n": n}) for n in range(1100)])
    assert [e.seq for e in scenario.ledger.entries()] == list(range(scenario.ledger.size))


def test_proofs_verify_against_the_signed_head(scenario):
    note = scenario.run()
    head = open_checkpoint(note, scenario.coordinator.card)
    for entry in scenario.ledger.entries(0, head.size):
        proof = scenario.ledger.inclusion(entry.seq, head.size)
        merkle.verify_inclusion(leaf=entry.leaf_hash, index=entry.seq, size=head.size, root=head.root, proof=proof)
    for old in scenario.ledger.checkpoint_sizes():
        before = open_checkpoint(scenario.ledger.checkpoint_at(old), scenario.coordinator.card)
        merkle.verify_consistency(
            old_size=old, old_root=before.root, new_size=head.size, new_root=head.root,
            proof=scenario.ledger.consistency(old, head.size),
        )  # fmt: skip
    for ask in (scenario.ledger.inclusion, scenario.ledger.consistency):
        with pytest.raises(UsageError):
            ask(1, head.size + 1)


def test_cosignatures_are_checked_and_the_first_one_stays(scenario):
    note = scenario.run(cosigners=("bank_a",))
    ledger, size = scenario.ledger, scenario.ledger.size
    first = ledger.cosignatures(size)
    ledger.add_cosignatures(size, {"bank_a": cosign(scenario.parties["bank_a"], note, timestamp=1)})
    assert ledger.cosignatures(size) == first
    bad = {"bank_b": cosign(scenario.parties["bank_b"], note), "bank_c": first["bank_a"]}
    with pytest.raises(BadSignature, match="bank_c"):
        ledger.add_cosignatures(size, bad)
    assert ledger.cosignatures(size) == first
    with pytest.raises(WrongKey, match="stranger"):
        ledger.add_cosignatures(size, {"stranger": cosign(Identity.create("stranger"), note)})
    with pytest.raises(UsageError, match=f"no checkpoint over {size + 1}"):
        ledger.add_cosignatures(size + 1, {})
    assert ledger.last_checkpoint(1) == note
    assert ledger.last_checkpoint(2) is None


def test_card_shown_after_a_checkpoint_cannot_cosign_it(ledger_place, make_scenario):
    scenario = make_scenario(ledger_place)
    note = scenario.ledger.checkpoint()
    scenario.show_cards()
    with pytest.raises(WrongKey, match="bank_a"):
        scenario.cosign(note, "bank_a")


def test_reader_needs_no_key_and_cannot_write(scenario):
    scenario.run()
    with Ledger.open(scenario.path) as reader:
        assert (reader.size, reader.root, reader.log) == (
            scenario.ledger.size, scenario.ledger.root, scenario.ledger.log,
        )  # fmt: skip
        assert reader.checkpoint() == scenario.ledger.checkpoint()
        for write in (lambda: reader.append([]), lambda: reader.add_cosignatures(1, {})):
            with pytest.raises(UsageError, match="read-only"):
                write()
        scenario.ledger.append([scenario.say("bank_a", "update")])
        with pytest.raises(UsageError, match="not signed"):
            reader.checkpoint()
        scenario.ledger.checkpoint()
        assert reader.checkpoint() == scenario.ledger.last_checkpoint()


@in_a_file
def test_closed_ledger_reads_from_a_folder_nobody_may_write(scenario, tmp_path):
    scenario.ledger.close()
    copy = tmp_path / "archive" / "ledger.db"
    copy.parent.mkdir()
    shutil.copy(scenario.path, copy)
    copy.parent.chmod(0o500)
    copy.chmod(0o400)
    with Ledger.open(copy) as reader:
        assert reader.size == 4
    assert verify_ledger(copy).status == 0


@in_a_file
def test_files_that_are_no_ledger_are_refused(tmp_path, coordinator, scenario):
    with pytest.raises(UsageError, match="no fedseal ledger here"):
        Ledger.open(tmp_path / "missing.db")
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text("not a database " * 100)
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t (x)").connection.close()
    scenario.ledger.close()
    newer = shutil.copy(scenario.path, tmp_path / "newer.db")
    db = sqlite3.connect(newer)
    db.execute("PRAGMA user_version=2")
    db.close()
    for name in ("empty.db", "text.db", "other.db", "newer.db"):
        for identity in (None, coordinator):
            with pytest.raises(UsageError, match="not a fedseal ledger"):
                Ledger.open(tmp_path / name, identity)


def test_another_coordinators_ledger_is_refused(scenario):
    with pytest.raises(WrongKey, match="the ledger of coordinator"):
        Ledger.open(scenario.path, Identity.create("coordinator"))


@in_a_file
@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE nodes SET hash = zeroblob(32) WHERE level = 3",
        "DELETE FROM nodes WHERE level = 3",
        "DELETE FROM entries WHERE seq = 8",
        "UPDATE entries SET leaf = zeroblob(9) WHERE seq = 8",
        "DELETE FROM checkpoints",
        "UPDATE checkpoints SET note = lower(note)",
    ],
)
def test_damaged_file_is_not_written_on(scenario, damage):
    scenario.run(rounds=1)
    scenario.ledger.close()
    db = sqlite3.connect(scenario.path)
    db.execute(damage)
    db.commit()
    db.close()
    with pytest.raises((LedgerBroken, BadSignature, BadMessage, UsageError)):
        Ledger.open(scenario.path, scenario.coordinator)


@in_a_file
def test_full_disk_is_one_clear_line_and_loses_nothing(scenario):
    size, root = scenario.ledger.size, scenario.ledger.root
    (pages,) = scenario.ledger._store._db.execute("PRAGMA page_count").fetchone()
    scenario.ledger._store._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(JobFailed, match="full") as caught:
        scenario.ledger.append([scenario.say("bank_a", "update", {"n": n}) for n in range(200)])
    assert "\n" not in str(caught.value)
    assert (scenario.ledger.size, scenario.ledger.root) == (size, root)
    scenario.ledger._store._db.execute("PRAGMA max_page_count=1000000")
    assert len(scenario.ledger.append([scenario.say("bank_a", "update")])) == 1
    assert scenario.verify().first_bad is None


@in_a_file
def test_writer_that_waits_too_long_says_so(scenario, monkeypatch):
    scenario.ledger._store._db.execute("PRAGMA busy_timeout=50")
    other = sqlite3.connect(scenario.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(JobFailed, match="locked"):
        scenario.ledger.append([scenario.say("bank_a", "update")])
    other.close()
    assert len(scenario.ledger.append([scenario.say("bank_a", "update")])) == 1


def test_ledger_that_cannot_be_finished_leaves_no_file(tmp_path, coordinator, monkeypatch):
    def fail(*_):
        raise OSError("killed before the link")

    monkeypatch.setattr(database, "link_once", fail)
    with pytest.raises(OSError, match="killed"):
        Ledger.open(tmp_path / "home" / "ledger.db", coordinator)
    assert list((tmp_path / "home").iterdir()) == []


def _append(path, coordinator, party, worker):
    with Ledger.open(path, coordinator) as ledger:
        for group in range(10):
            statements = [
                Statement.make(party, log=ledger.log, kind="update", run=f"w{worker}", body={"n": 4 * group + n})
                for n in range(4)
            ]
            ledger.commit(statements)


def test_eight_processes_append_to_one_chain(scenario):
    size, parties = scenario.ledger.size, list(scenario.parties.values())
    children = [
        FORK.Process(target=_append, args=(scenario.path, scenario.coordinator, parties[worker % 3], worker))
        for worker in range(8)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 8
    assert scenario.ledger.size == size + 8 * 40
    for worker in range(8):
        assert [e.body["n"] for e in scenario.ledger.entries(run=f"w{worker}")] == list(range(40))
    report = scenario.verify()
    assert report.first_bad is None and report.root == scenario.ledger.root.hex()


def _open(path, coordinator, results):
    try:
        with Ledger.open(path, coordinator) as ledger:
            results.put(ledger.last_checkpoint())
    except FedsealError as error:
        results.put(repr(error))


def test_processes_that_race_to_make_the_ledger_share_one(ledger_place, tmp_path, coordinator):
    results = FORK.Queue()
    children = [FORK.Process(target=_open, args=(ledger_place, coordinator, results)) for _ in range(6)]
    for child in children:
        child.start()
    notes = {results.get(timeout=30) for _ in children}
    for child in children:
        child.join()
    with Ledger.open(ledger_place) as ledger:
        assert notes == {ledger.checkpoint()}
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


def test_threads_share_one_open_ledger(scenario):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: scenario.ledger.append([scenario.say("bank_a", "update", {"n": n})]), range(40)))
    assert sorted(e.body["n"] for e in scenario.ledger.entries(kind="update")) == list(range(40))
    scenario.ledger.checkpoint()
    assert scenario.verify().first_bad is None
