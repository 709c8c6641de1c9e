"""Private set intersection by the command line: what each party gets, in every runtime, and when a party is killed."""

from __future__ import annotations

import csv
import importlib.util
import os
import random
import signal
import sqlite3
import time

import pytest

from tests.e2e.federation import Federation
from tests.e2e.process import Place

pytestmark = pytest.mark.e2e

JOB = """
kind = "psi"
name = "{name}"
runtime = "{runtime}"
{parties}
[psi]
output = "{output}"
{more}
"""


def people(count: int, start: int) -> list[tuple[str, str]]:
    return [(f"id {n:06d}", f"19{n % 90 + 10}-05-0{n % 9 + 1}") for n in range(start, start + count)]


def write_people(path, rows, *, seed=1):
    rows = list(rows)
    random.Random(seed).shuffle(rows)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("person", "born", "x"), *((*row, 7) for row in rows)])


def read(path) -> list[tuple[str, ...]]:
    with path.open(newline="") as file:
        return [tuple(row) for row in csv.reader(file)]


def job(place, names, *, name="meet", runtime="local", output="receivers", more="", data="{}.csv"):
    parties = "\n".join(f'[[party]]\nname = "{n}"\ndata = "{data.format(n)}"\nid = ["person", "born"]\n' for n in names)
    path = place.path / f"{name}.toml"
    path.write_text(JOB.format(name=name, runtime=runtime, output=output, parties=parties, more=more))
    return path


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path / "place")
    for seed, (name, rows) in enumerate(
        {"bank": people(3000, 0), "bureau": people(2500, 1000), "clinic": people(2000, 2000)}.items()
    ):
        write_people(made.path / f"{name}.csv", rows, seed=seed)
    yield made
    made.clear()


@pytest.mark.parametrize("protocol", ["auto", "ecdh"])
def test_only_the_receiver_gets_the_common_rows(place, protocol):
    more = f'protocol = "{protocol}"\nreceivers = ["bank"]'
    done = place.fedseal("run", job(place, ["bank", "bureau"], more=more), "--out", "out", "--json")
    assert done.code == 0, done
    head, *rows = read(place.path / "out" / "bank" / "intersection.csv")
    assert head == ("person", "born")
    assert sorted(rows) == people(2000, 1000)
    assert not (place.path / "out" / "bureau").exists()
    assert done.json["metrics"]["intersection_size"] == 2000
    assert done.json["outputs"] == {"bank": {"intersection": str(place.path / "out" / "bank" / "intersection.csv")}}
    assert place.fedseal("audit", "verify").code == 0
    for path in (place.home / "ledger.db", place.home / "mlflow.db"):
        assert b"id 001500" not in path.read_bytes()


def test_both_receivers_get_the_same_rows_in_the_same_order(place):
    done = place.fedseal("run", job(place, ["bank", "bureau"]), "--out", "out", "--json")
    assert done.code == 0, done
    bank, bureau = (read(place.path / "out" / name / "intersection.csv") for name in ("bank", "bureau"))
    assert bank == bureau and len(bank) == 2001
    assert bank[1:] != sorted(bank[1:])


def test_three_parties_learn_what_all_have_and_nothing_of_pairs(place):
    names = ["bank", "bureau", "clinic"]
    done = place.fedseal("run", job(place, names, more='receivers = ["clinic"]'), "--out", "out", "--json")
    assert done.code == 0, done
    assert sorted(read(place.path / "out" / "clinic" / "intersection.csv")[1:]) == people(1000, 2000)
    assert not (place.path / "out" / "bank").exists()


def test_a_cardinality_gives_a_number_and_no_file(place):
    done = place.fedseal("run", job(place, ["bank", "bureau"], output="cardinality"), "--out", "out", "--json")
    assert done.code == 0, done
    assert done.json["metrics"]["intersection_size"] == 2000
    assert os.listdir(place.path / "out") == ["summary.json"]


def test_a_union_aligns_rows_and_shows_only_ones_own(place):
    done = place.fedseal("run", job(place, ["bank", "bureau"], output="union"), "--out", "out", "--json")
    assert done.code == 0, done
    bank, bureau = (read(place.path / "out" / name / "union.csv")[1:] for name in ("bank", "bureau"))
    assert len(bank) == len(bureau) == 3500
    assert sorted(row for row in bank if row[0]) == people(3000, 0)
    both = [a for a, b in zip(bank, bureau, strict=True) if a[0] and b[0]]
    assert sorted(both) == people(2000, 1000)
    assert all(a == b for a, b in zip(bank, bureau, strict=True) if a[0] and b[0])


def test_no_common_ids_is_a_normal_answer(place):
    write_people(place.path / "bureau.csv", people(50, 9000))
    done = place.fedseal("run", job(place, ["bank", "bureau"]), "--out", "out", "--json")
    assert done.code == 0, done
    assert read(place.path / "out" / "bureau" / "intersection.csv") == [("person", "born")]
    assert done.json["metrics"]["intersection_size"] == 0


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([*people(20, 0), people(1, 3)[0]], ["one id in rows", "'person', 'born'"]),
        ([*people(20, 0), ("", "1980-01-01")], ["no id in row", "'person'"]),
    ],
)
def test_bad_ids_are_one_line_that_names_rows_and_no_id(place, rows, words):
    write_people(place.path / "bureau.csv", rows)
    said = place.fedseal("run", job(place, ["bank", "bureau"])).fails(2)
    assert all(word in said for word in ["bureau", *words]), said
    assert "id 00" not in said


def test_an_owner_may_demand_ecdh(place):
    path = job(place, ["bank", "bureau"])
    assert "ecdh" in place.fedseal("run", path, "--set", "party.0.psi_protocol=ecdh").fails(3)
    done = place.fedseal(
        "run", path, "--set", "party.0.psi_protocol=ecdh", "--set", "psi.protocol=ecdh", "--out", "out", "--json"
    )
    assert done.code == 0, done


@pytest.mark.parametrize("victim", ["bank", "bureau"])
def test_a_party_killed_in_the_session_ends_the_job_at_once_for_all(place, victim):
    """Nine times twenty thousand scalar multiplications: long enough to be killed in."""
    for seed, name in enumerate(("bank", "bureau", "clinic")):
        write_people(place.path / f"{name}.csv", people(20_000, 1000 * seed), seed=seed)
    running = place.start("run", job(place, ["bank", "bureau", "clinic"]), "--json")
    running.wait_for("intersection of 3 sets")
    time.sleep(1.0)
    workers = [pid for pid, said in place.processes().items() if "forkserver" in said]
    before = time.monotonic()
    os.kill(sorted(workers)[-1 if victim == "bank" else -2], signal.SIGKILL)
    done = running.end(40)
    assert time.monotonic() - before < 25, done
    assert done.code == 1, done
    assert "session" in done.fails(1)
    assert place.fedseal("audit", "show", "--json", "--kind", "failure").out


def test_a_session_can_be_stopped_and_taken_up_again(place):
    for seed, name in enumerate(("bank", "bureau", "clinic")):
        write_people(place.path / f"{name}.csv", people(10_000, 1000 * seed), seed=seed)
    path = job(place, ["bank", "bureau", "clinic"])
    running = place.start("run", path, "--out", "out")
    running.wait_for("intersection of 3 sets")
    assert place.fedseal("stop", "meet", "--json").json["status"] == "stopped"
    assert running.end().code == 1
    done = place.fedseal("run", path, "--resume", "--json")
    assert done.code == 0, done
    assert done.json["metrics"]["intersection_size"] == 8_000
    assert place.fedseal("audit", "verify").code == 0


def test_simulation_gives_what_local_gives(place):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("the extra fedseal[simulation] is not installed")
    names = ["bank", "bureau", "clinic"]
    done = place.fedseal("run", job(place, names), "--runtime", "simulation", "--out", "out", "--json")
    assert done.code == 0, done
    assert sorted(read(place.path / "out" / "bank" / "intersection.csv")[1:]) == people(1000, 2000)


def test_nodes_of_a_deployment_meet_at_the_exchange(tmp_path):
    federation = Federation(tmp_path)
    try:
        federation.start()
        bank = federation.path / "bank.csv"
        write_people(bank, people(3000, 0))
        database = federation.path / "bureau.db"
        with sqlite3.connect(database) as connection:
            connection.execute("CREATE TABLE people (person TEXT, born TEXT)")
            connection.executemany("INSERT INTO people VALUES (?, ?)", people(2500, 1000))
        one = federation.node("bank", "--data", f"people={bank}")
        query = "people=SELECT person, born FROM people"
        two = federation.node("bureau", "--data", f"people=sqlite:///{database}", "--query", query)
        for node in (one, two):
            node.start(wait=False)
        for node in (one, two):
            node.service.wait_for("connected")
            node.wait_for_executor()
        ann = federation.person("ann")
        path = job(ann, ["bank", "bureau"], runtime="deployment", data="people", more='receivers = ["bank"]')
        done = ann.fedseal("run", path, "--json")
        assert done.code == 0, done
        assert done.json["metrics"]["intersection_size"] == 2000
        assert done.json["outputs"] == {"bank": {"intersection": None}}
        (found,) = one.folder.glob("outputs/*/bank/intersection.csv")
        assert sorted(read(found)[1:]) == people(2000, 1000)
        assert not list(two.folder.glob("outputs/*/*"))
        assert [run["state"] for run in one.status()["runs"]] == ["done"]
        checked = ann.fedseal("check", path, "--json")
        assert checked.code == 0 and [p["status"] for p in checked.json["parties"]] == ["ready", "ready"], checked
        assert federation.verdict() == 0
        assert two.place.fedseal("node", "set", "--psi-protocol", "ecdh").code == 0
        assert "bureau" in ann.fedseal("run", path).fails(3)
        write_people(bank, people(20_000, 0))
        with sqlite3.connect(database) as connection:
            connection.executemany("INSERT INTO people VALUES (?, ?)", people(20_000, 4000))
        running = ann.start("run", path, "--set", "psi.protocol=ecdh")
        running.wait_for("intersection of 2 sets")
        before = time.monotonic()
        os.kill(two.child("executor"), signal.SIGKILL)
        done = running.end(60)
        assert "session" in done.fails(1)
        assert time.monotonic() - before < 45
        assert federation.ledger("failure")[-1]["body"]["status"] == "failed"
    finally:
        federation.clear()
