"""Scores by id over TLS: those of the whole model; strangers, replays, garbage and foreign parts refused; no id kept."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import server.serving.vertical
from clients.model_folder import read_part, write_part
from clients.predict.channel import OverQuota
from clients.predict.vertical_table import read_served
from fl_core.crypto.marked_sum import ANSWER_BYTES, Asker
from fl_core.errors import BadMessage, DataError, RefusedError, UsageError, WrongKey
from fl_core.job import MIN_TREES
from fl_core.protocols.prediction.online import make_block
from fl_core.serving import digest
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Identity
from fl_core.trust.verify import verify_ledger
from fl_core.wire.vertical_predict_pb2 import Ciphertexts, DescribeRequest, ScoreRequest
from server.cli import serve
from server.cli.main import main
from server.predict import SERVICE as PREDICTION
from server.serving.accounts import Quota
from server.serving.door import Client
from server.serving.keys import Keys
from server.serving.vertical import SERVICE
from server.serving.vertical_model import Index, load_parts, serve_part
from tests.server.serving.vertical_world import (
    GONE,
    KEY,
    PASSIVE,
    TEST,
    Place,
    World,
    hashes_of,
    identifier,
    make_world,
    own_rows,
)

HELD = [row for row in range(100) if TEST[row] and not GONE[row]]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("worlds"), dict[str, World]()

    def get(which: str) -> World:
        if which not in made:
            made[which] = make_world(folder, which)
        return made[which]

    return get


@pytest.fixture(scope="module")
def places(tmp_path_factory, worlds):
    made = dict[str, Place]()

    def get(which: str) -> Place:
        if which not in made:
            made[which] = Place(tmp_path_factory.mktemp(which), {"cancer": worlds(which).served()})
        return made[which]

    yield get
    for place in made.values():
        place.stop()


@pytest.fixture
def fresh(tmp_path, worlds):
    """Makes places of one's own."""
    made = []

    def make(which: str = "logistic", **options) -> Place:
        made.append(Place(tmp_path, {"cancer": worlds(which).served()}, **options))
        return made[-1]

    yield make
    for place in made:
        place.stop()


def score(client, *rows: int):
    return client.score([identifier(row) for row in rows], own_rows(np.array(rows)))


def questions(place: Place, asker: Asker, rows: int = 1) -> list[list[bytes]]:
    (width,) = place.models["cancer"].trees.layout.widths
    return [asker.encrypt(np.ones(width)) for _ in range(rows)]


# ------------------------------------------------------------------------------------------------ right results


@pytest.mark.parametrize("which", ["logistic", "bins", "trees", "kinds"])
def test_every_score_is_that_of_the_whole_model_and_unknown_ids_are_told_apart(places, worlds, which):
    rows, world = np.flatnonzero(TEST), worlds(which)
    plain = world.plain(rows)
    with places(which).client(world.active) as client:
        scores = score(client, *rows.tolist())
        one = score(client, int(rows[1]))
    here = ~GONE[rows]
    assert (scores.here == here).all() and 0 < (~here).sum() < len(here)
    assert np.abs(scores.predictions[here] - plain[here]).max() < 1e-3
    assert np.isnan(scores.predictions[~here]).all() and np.isnan(scores.logits[~here]).all()
    assert plain.std() > 0.2 and one.predictions[0] == pytest.approx(scores.predictions[1], abs=1e-9)
    assert scores.classes == (("a", "b", "c") if which == "kinds" else ("bad", "good"))


def test_nobody_is_there(places, worlds):
    for which in ("logistic", "trees"):
        with places(which).client(worlds(which).active) as client:
            scores = client.score(["a stranger"], own_rows(np.array([0])))
        assert not scores.here.any() and np.isnan(scores.predictions).all()


@given(st.sets(st.integers(0, 60), min_size=1), st.lists(st.integers(0, 80), min_size=1))
def test_the_index_finds_what_a_dictionary_finds(held, asked):
    made = lambda numbers: np.array([[n // 8] + [0] * 30 + [n % 8] for n in numbers], np.uint8)  # noqa: E731
    rows = sorted(held, key=lambda n: n * 37 % 61)
    slow = {n: row for row, n in enumerate(rows)}
    assert Index(made(rows)).find(made(asked)).tolist() == [slow.get(n, -1) for n in asked]


def test_blocks_of_many_ids_join(places, worlds):
    world, rows = worlds("logistic"), HELD[:7]
    with places("logistic").client(world.active) as client:
        whole = score(client, *rows).logits
        object.__setattr__(client.offer(), "block", 3)
        assert np.abs(score(client, *rows).logits - whole).max() < 1e-9


def test_threads_that_share_a_client_get_their_own_scores(fresh, worlds):
    """Fewer places than callers: some are turned away and come again."""
    place, world, wrong = fresh("trees", capacity=2), worlds("trees"), []

    def ask(rows: list[int]) -> None:
        if np.abs(score(client, *rows).predictions - world.plain(np.array(rows))).max() > 1e-3:
            wrong.append(rows)

    with place.client(world.active) as client:
        threads = [threading.Thread(target=ask, args=(HELD[i : i + 3],)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert wrong == [] and place.counts.rows == 18


def test_a_client_opens_its_key_again_after_a_restart(fresh, worlds):
    place, world = fresh("trees"), worlds("trees")
    with place.client(world.active) as client:
        first = score(client, HELD[0]).logits
        place.service._keys = Keys()
        assert (score(client, HELD[0]).logits == first).all()


def test_a_table_is_replaced_while_serving_and_a_part_only_openly(fresh, worlds, tmp_path):
    place, world = fresh(), worlds("logistic")
    gone = int(np.flatnonzero(GONE)[0])
    with place.client(world.active) as client:
        assert not score(client, gone).here.any()
        table = pd.read_csv(world.data(PASSIVE))
        table.loc[0, "id"] = identifier(gone)
        table.to_csv(tmp_path / "new.csv", index=False)
        held = read_served(world.passive, tmp_path / "new.csv", ["id"])
        place.service.models = {"cancer": serve_part("cancer", held, version_key=KEY)}
        assert score(client, gone).here.all()
        place.service.models = {"cancer": serve_part("cancer", held, version_key=b"x" * 32)}
        with pytest.raises(UsageError, match="ask again"):
            score(client, gone)


# ------------------------------------------------------------------------------------------------ what is kept


def test_both_hold_the_receipt_and_nothing_that_is_kept_or_said_holds_an_id(fresh, worlds, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    place, world, told = fresh("trees"), worlds("trees"), []
    with place.client(world.active) as client:
        score(client, HELD[0], HELD[1])
        told.append(place.refused("Score", place.block(hashes_of(identifier(HELD[0])), key="0" * 64)))
        told.append(place.refused("Score", place.block(hashes_of(identifier(HELD[0])), rows=5000)))
    place.receipts.flush()
    (entry,) = place.ledger.entries(kind="served")
    assert (place.path / "state" / "receipts.jsonl").read_bytes() == entry.statement.encode() + b"\n"
    request = Statement.from_dict(entry.body["request"])
    request.verify(place.asker.card)
    assert request.body["rows"] == 2 and verify_ledger(place.path / "ledger.db").status == 0
    kept = b"".join(path.read_bytes() for path in place.path.rglob("*") if path.is_file())
    kept += (caplog.text + str(capfd.readouterr()) + str(told)).encode()
    assert request.body["sent"].encode() in kept
    for row in HELD[:2]:
        one = hashes_of(identifier(row))
        for shown in (one.tobytes(), one.tobytes().hex().encode(), digest([one.tobytes()]).encode()):
            assert shown not in kept
        assert identifier(row).encode() not in kept and f"{row:04d} ".encode() not in kept


def test_digests_of_one_id_and_its_answer_differ_each_time(fresh, worlds):
    """Else whoever reads the ledger could find out, by trying all ids, who was asked about and whether it was there."""
    place = fresh()
    with place.client(worlds("logistic").active) as client:
        for _ in range(3):
            score(client, HELD[0])
            client.score(["nobody"], own_rows(np.array([0])))
    place.receipts.flush()
    bodies = [entry.body for entry in place.ledger.entries(kind="served")]
    assert len({body["request"]["body"]["sent"] for body in bodies}) == len({body["answers"] for body in bodies}) == 6


def test_questions_differ_in_no_size_whatever_the_columns(places, worlds):
    world = worlds("trees")
    with places("trees").client(world.active) as client:
        values = own_rows(np.arange(30))
        asked = client._side.ask(client_columns(client, values))[0]
        assert len({tuple(map(len, question)) for question in asked}) == 1
        assert len({one for question in asked for one in question}) == 30


def client_columns(client, values):
    from clients.predict.vertical_table import columns_of

    return columns_of(values, client.part.kinds, len(next(iter(values.values()))), "test")


# ------------------------------------------------------------------------------------------------ who may ask


def test_strangers_and_forged_requests_are_refused(places, worlds):
    place = places("logistic")
    stranger, namesake = Identity.create("stranger"), Identity.create(place.asker.name)
    for identity, code in ((stranger, "PERMISSION_DENIED"), (namesake, "UNAUTHENTICATED")):
        request = DescribeRequest(statement=place.signed("DescribeVertical", identity).encode())
        assert place.refused("DescribeVertical", request)[0] == code
        assert place.refused("Score", place.block(hashes_of("a"), identity=identity))[0] == code
    unknown = place.client(worlds("logistic").active, stranger, "stranger")
    with unknown as client, pytest.raises(RefusedError, match="not a client here"):
        score(client, HELD[0])


def test_a_replayed_request_is_refused_also_after_a_restart(tmp_path, worlds):
    place = Place(tmp_path, {"cancer": worlds("logistic").served()})
    block = place.block(hashes_of(identifier(HELD[0])))
    place.raw("Score", block)
    assert place.refused("Score", block)[0] == "INVALID_ARGUMENT"
    place.stop()
    place.start()
    assert "made before" in place.refused("Score", block)[1]
    place.stop()


def test_a_request_to_another_service_of_the_same_server_is_none_here(places):
    """A signed request names its method: no two services may have one of the same name."""
    names = [{m.name for m in service.methods} for service in (SERVICE, PREDICTION)]
    assert not names[0] & names[1]
    place = places("logistic")
    for method, body in (("Describe", {}), ("OpenContext", {"set": "x", "key": "0" * 64, "rotations": []})):
        request = DescribeRequest(statement=place.signed(method, **body).encode())
        assert place.refused("DescribeVertical", request)[0] == "INVALID_ARGUMENT"
    ids = make_block(hashes_of("a"))
    signed = place.signed("Predict", model="cancer", version="0", form="row", key="0" * 64, rows=1, sent=digest([ids]))
    block = [ScoreRequest(statement=signed.encode()), ScoreRequest(ids=ids)]
    assert place.refused("Score", block) == ("INVALID_ARGUMENT", "not a request to Score")


def test_a_quota_counts_ids_that_are_not_here_and_is_not_evaded_by_reconnecting(tmp_path, worlds):
    world = worlds("trees")
    place = Place(tmp_path, {"cancer": world.served()}, quota=Quota(7, 1000.0))
    with place.client(world.active) as client:
        score(client, *HELD[:3])
        client.score(["a", "b"], own_rows(np.arange(2)))
    assert place.accounts.rows_today(place.asker.name) == 5
    with place.client(world.active, folder="again") as client, pytest.raises(OverQuota, match="allowed: 7 a day"):
        score(client, *HELD[:3])
    place.stop()
    place.start()
    with place.client(world.active) as client:
        score(client, *HELD[:2])
        with pytest.raises(OverQuota, match="1 rows after 7 today"):
            score(client, HELD[0])
    place.stop()


def test_a_server_that_changed_its_card_is_refused(fresh, worlds, monkeypatch):
    place, world = fresh(), worlds("logistic")
    with place.client(world.active) as client:
        client.offer()
        monkeypatch.setattr(place.door, "card", Identity.create(PASSIVE).card)
        with pytest.raises(WrongKey, match="pinned is"):
            client.offer()


# ------------------------------------------------------------------------------------------------ what is no request


def test_lists_of_ids_that_are_none_are_refused(places):
    place = places("logistic")
    good, many = hashes_of(identifier(HELD[0])), np.zeros((1001, 32), np.uint8)
    cases = {
        "more than a request may have": place.block(many),
        "fewer than named": place.block(many, rows=1000),
        "more than named": place.block(good, rows=2),
        "a long id": place.block(make_block(good) + b"x" * 500_000, rows=1),
        "an id as text": place.block(b"n" * 16 + "patient \x00\n\u202e".encode(), rows=1),
        "no nonce": place.block(good.tobytes(), rows=1),
        "none": place.block(b"n" * 16, rows=1),
        "no rows": place.block(b"n" * 16, rows=0),
        "no message of ids": place.block(good)[:1],
        "ids twice": place.block(good) + place.block(good)[1:],
        "others than signed": [place.block(good)[0], place.block(good)[1]],
        "a question to a linear model": place.block(good, [[b"x"]]),
        "an empty question": [*place.block(good), ScoreRequest(asked=Ciphertexts())],
        "a key": place.block(good, key="1" * 64),
        "form": place.block(good, form="row"),
        "model": place.block(good, model="other"),
        "a long name": place.block(good, model="x" * 200),
        "version": place.block(good, version="0" * 16),
        "statement again": [*place.block(good), place.block(good)[0]],
        "no statement": place.block(good)[1:],
        "nothing": [],
    }
    for case, block in cases.items():
        assert place.refused("Score", block)[0] == "INVALID_ARGUMENT", case


def test_an_id_of_ten_megabytes_does_not_reach_the_service(places):
    place = places("logistic")
    block = place.block(b"x" * (10 << 20), rows=1)
    assert place.refused("Score", block)[0] == "RESOURCE_EXHAUSTED"


def test_garbage_for_ciphertexts_is_refused(places):
    place = places("trees")
    asker, name = place.opened()
    ids = hashes_of(identifier(HELD[0]))
    ((good,),) = questions(place, asker)
    cases = {
        "none": [],
        "an empty one": [[]],
        "two questions": [[good], [good]],
        "two ciphertexts": [[good, good]],
        "cut": [[good[:-1]]],
        "longer": [[good + b"0"]],
        "beyond the modulus": [[b"\xff" * len(good)]],
        "empty bytes": [[b""]],
        "another's width": [asker.encrypt(np.ones(3))],
        "large": [[b"0" * 900_000]],
    }
    for case, asked in cases.items():
        code, told = place.refused("Score", place.block(ids, asked, key=name))
        assert code == "INVALID_ARGUMENT" and "\n" not in told, case
    others = [*place.block(ids, [[good]], key=name)[:2], *place.block(ids, questions(place, asker))[2:]]
    assert "that the request names" in place.refused("Score", others)[1]
    assert place.raw("Score", place.block(ids, [[good]], key=name)).answers[0].ciphertexts


def test_a_question_for_an_id_that_is_not_here_is_answered_by_nothing(places):
    place = places("trees")
    asker, name = place.opened()
    ids = hashes_of("nobody", identifier(HELD[0]))
    reply = place.raw("Score", place.block(ids, questions(place, asker, 2), key=name))
    assert [[len(one) for one in answer.ciphertexts] for answer in reply.answers] == [[], [ANSWER_BYTES]]
    assert list(reply.found[16:]) == [0, 1]


@pytest.mark.parametrize("change", ["zero", "cut", "more", "digest", "empty", "name"])
def test_what_is_no_public_key_is_refused(places, change):
    place = places("trees")
    good = Asker().public
    bad = {"zero": bytes(len(good)), "cut": good[:-1], "more": good + b"0", "empty": b""}.get(change, good)
    name = {"digest": "0" * 64, "name": "key"}.get(change)
    assert place.refused("OpenVertical", place.context(bad, name=name))[0] == "INVALID_ARGUMENT"


def test_another_clients_key_or_none_opens_nothing_and_costs_no_rows(fresh):
    place = fresh("trees")
    asker, name = place.opened()
    other = Identity.create("other")
    place.door.clients["other"] = Client(other.card)
    asked = questions(place, asker)
    for identity, key in ((other, name), (None, "2" * 64)):
        block = place.block(hashes_of("a"), asked, identity=identity, key=key)
        assert place.refused("Score", block)[0] == "FAILED_PRECONDITION"
    assert place.accounts.rows_today("other") == place.accounts.rows_today(place.asker.name) == 0


# ------------------------------------------------------------------------------------------------ wrong answers


def test_a_wrong_answer_is_refused_by_the_client(fresh, worlds, monkeypatch):
    place, world, answer = fresh("trees"), worlds("trees"), server.serving.vertical._answer
    foreign = Asker().public
    marker = server.serving.vertical.Marker(foreign)

    def changed(how):
        def work(model, held, body, requests):
            found, answers, size = answer(model, marker if how == "key" else held, body, requests)
            answers = {"short": answers[:-1], "empty": [[] for _ in answers], "two": [a * 2 for a in answers]}.get(
                how, answers
            )
            found = {"flags": found[:16] + b"\x02", "gone": found[:16] + b"\x00", "long": found + b"0"}.get(how, found)
            return found, answers, size

        return work

    with place.client(world.active) as client:
        for how in ("short", "empty", "two", "flags", "gone", "long"):
            monkeypatch.setattr(server.serving.vertical, "_answer", changed(how))
            with pytest.raises(BadMessage):
                score(client, HELD[0])
        monkeypatch.setattr(server.serving.vertical, "_answer", changed("key"))
        refused = 0
        for _ in range(8):  # half of them are noticed by the cipher; most of the rest are no sums of these leaves
            try:
                score(client, HELD[0])
            except BadMessage:
                refused += 1
        assert refused >= 5


def test_a_receipt_of_other_answers_is_refused_by_the_client(fresh, worlds, monkeypatch):
    place, world = fresh(), worlds("logistic")
    receipt = place.door.receipt
    monkeypatch.setattr(place.door, "receipt", lambda s, answers, *more: receipt(s, [*answers, b"x"], *more))
    with place.client(world.active) as client, pytest.raises(BadMessage, match="other answers"):
        score(client, HELD[0])


# ------------------------------------------------------------------------------------------------ what can be served


def changed(world: World, folder: Path, party: str, **more) -> Path:
    source = world.active if party == "active" else world.passive
    about, arrays = read_part(source, "test")
    told = {name: value for name, value in about.items() if name not in ("format", "digest")}
    write_part(folder, {**told, **more}, arrays)
    return folder


def test_the_part_of_another_training_is_one_clear_line(places, worlds, tmp_path):
    place, other = places("logistic"), changed(worlds("logistic"), tmp_path / "m", "active", run="f" * 16)
    with place.client(other) as client, pytest.raises(UsageError) as caught:
        score(client, HELD[0])
    said = str(caught.value)
    assert "\n" not in said and "no model of run ffffffffffffffff" in said
    assert "cancer by logistic of run 0123456789abcdef" in said
    with place.client(worlds("trees").active) as client, pytest.raises(UsageError, match="no model of run"):
        client.offer()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("active", "had the labels; allowed: the part of the party without labels"),
        ("three", "a model of 3 parties; allowed: two"),
        ("none", "no model.json"),
        ("broken", "changed since they were written"),
        ("few", "4 trees a score, with so few an exact one shows the paths of a row; allowed: 20 or more"),
    ],
)
def test_what_cannot_be_served_is_one_clear_line_at_the_start(worlds, tmp_path, change, said):
    world = worlds("few" if change == "few" else "logistic")
    folder = world.passive
    if change == "active":
        folder = world.active
    elif change == "three":
        folder = changed(world, tmp_path / "m", "passive", parties=["hospital", "lab", "shop"])
    elif change in ("none", "broken"):
        folder = changed(world, tmp_path / "m", "passive")
        path = folder / ("model.json" if change == "none" else "arrays.npz")
        path.unlink() if change == "none" else path.write_bytes(path.read_bytes()[:-1])
    data = world.data("hospital" if change == "active" else PASSIVE)
    with pytest.raises((DataError, RefusedError)) as caught:
        load_parts(tmp_path, [("cancer", lambda: read_served(folder, data, ["id"]))], taken=(), min_trees=MIN_TREES)
    assert re.search(re.escape(said), str(caught.value)) and "\n" not in str(caught.value)


def test_few_trees_are_served_where_the_owner_says_so(worlds):
    assert worlds("few").served(min_trees=4).offer.algorithm == "gbdt"
    assert serve.MIN_TREES == MIN_TREES


@pytest.mark.parametrize("change", ["twice", "empty", "column", "text", "no id"])
def test_a_table_that_cannot_be_asked_by_id_is_refused_at_the_start_without_an_id_said(worlds, tmp_path, change):
    world = worlds("logistic")
    table = pd.read_csv(world.data(PASSIVE))
    if change == "twice":
        table.loc[7, "id"] = table.loc[3, "id"] + " "
    elif change == "empty":
        table.loc[7, "id"] = ""
    elif change == "column":
        del table["worst radius"]
    elif change == "text":
        table["worst radius"] = "large"
    table.to_csv(tmp_path / "lab.csv", index=False)
    with pytest.raises(DataError) as caught:
        read_served(world.passive, tmp_path / "lab.csv", ["who"] if change == "no id" else ["id"])
    said = str(caught.value)
    assert said.startswith("party lab") and "\n" not in said and "patient" not in said
    if change == "twice":
        assert "rows 4 and 8" in said


def test_two_models_of_one_name_are_refused(worlds, tmp_path):
    world = worlds("logistic")
    source = "cancer", lambda: read_served(world.passive, world.data(PASSIVE), ["id"])
    for sources, taken in (([source, source], ()), ([source], ("cancer",))):
        with pytest.raises(UsageError, match="two models of this name"):
            load_parts(tmp_path, sources, taken=taken, min_trees=1)


# ------------------------------------------------------------------------------------------------ the commands


@pytest.mark.e2e
def test_the_commands_as_two_people_run_them(worlds, tmp_path):
    """`serve --vertical` and `predict --vertical`, with a table read again on SIGHUP."""
    world, rows, gone = worlds("trees"), np.flatnonzero(TEST & ~GONE)[:20], np.flatnonzero(GONE)
    chosen = pd.read_csv(world.data("hospital")).iloc[[*rows, *gone]]
    chosen.to_csv(tmp_path / "hospital.csv", index=False)
    table, lab, log = pd.read_csv(world.data(PASSIVE)), tmp_path / "lab.csv", tmp_path / "serve.log"
    table.to_csv(lab, index=False)
    env = {**os.environ, "FEDSEAL_HOME": str(tmp_path / "home")}
    fedseal = [sys.executable, "-m", "server.cli.main"]

    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*fedseal, "predict", "--as", "hospital", *words], env=env, capture_output=True, text=True
        )

    (tmp_path / "a.card").write_text(ask("--card").stdout)
    words = ["serve", "--vertical", f"cancer={world.passive}={lab}", "--vertical-id", "id", "--listen", "127.0.0.1:0"]
    with log.open("wb") as out:
        served = subprocess.Popen([*fedseal, *words, "--client", str(tmp_path / "a.card")], env=env, stderr=out)
    try:
        wait_for(log, "serving 1 models")
        port = re.search(r"127\.0\.0\.1:(\d+)", log.read_text()).group(1)
        common = ["--server", f"localhost:{port}", "--ca", str(tmp_path / "home/serving/authority.pem")]
        common += ["--vertical", str(world.active), "--data", str(tmp_path / "hospital.csv"), "--id", "id"]
        scores = tmp_path / "scores.csv"
        done = ask(*common, "--out", str(scores), "--json")
        assert done.returncode == 0, done.stderr
        told, found = json.loads(done.stdout), pd.read_csv(scores).set_index("id")
        assert (told["asked"], told["rows"]) == (20 + GONE.sum(), 20) and len(found) == 20
        mine = found.loc[[identifier(row) for row in rows], "score"]
        assert np.abs(mine - world.plain(rows)).max() < 1e-3
        one = [*common, "--ids", identifier(gone[0]), "--out", str(scores)]
        assert "none of 1 ids is at the other party" in ask(*one).stderr
        table.loc[0, "id"] = identifier(gone[0])
        table.to_csv(lab, index=False)
        served.send_signal(signal.SIGHUP)
        wait_for(log, "models read again")
        assert ask(*one).returncode == 0 and len(pd.read_csv(scores)) == 1
        lab.write_text("id\nx\nx\n")
        served.send_signal(signal.SIGHUP)
        wait_for(log, "models stay as they were")
    finally:
        served.send_signal(signal.SIGTERM)
        served.wait(30)
    assert served.returncode == 0 and "patient" not in log.read_text()


def wait_for(log: Path, words: str) -> None:
    end = time.monotonic() + 60
    while words not in log.read_text():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve"], "neither --model nor --vertical"),
        (["serve", "--vertical", "m=x.csv"], "--vertical and --vertical-id; allowed: both or neither"),
        (["serve", "--model", "m", "--vertical-id", "id"], "--vertical and --vertical-id; allowed: both or neither"),
        (["serve", "--vertical", "m", "--vertical-id", "id"], "allowed: [NAME=]MODELFOLDER=DATAFILE"),
        (["serve", "--vertical", "a=m=", "--vertical-id", "id"], "allowed: [NAME=]MODELFOLDER=DATAFILE"),
        (["serve", "--vertical", "m=x.csv", "--vertical-id", "id"], "no model.json of this party's part of the model"),
        (["predict", "--server", "h:1", "--ca", "a.card", "--data", "x", "--ids", "a"], "--ids without --vertical"),
        (["predict", "--server", "h:1", "--ca", "a.card", "--data", "x", "--vertical", "m"], "no model.json"),
    ],
)
def test_wrong_words_are_one_line_and_exit_2(tmp_path, monkeypatch, capsys, words, said):
    def run(*given_: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedseal", *given_])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSEAL_HOME", str(tmp_path / "home"))
    Path("a.card").write_text(run("predict", "--as", "hospital", "--card")[1])
    code, out, err = run(*words, *(["--client", "a.card"] if words[0] == "serve" else []))
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1
