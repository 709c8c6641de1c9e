"""Outside witnesses: one history only, over real HTTP, as C2SP tlog-witness says; and what a log makes of them."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from fl_core.errors import BadMessage, BadSignature, JobFailed, UsageError
from fl_core.trust.checkpoint import Checkpoint, log_id, sign_checkpoint, verify_cosignature
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.outside import (
    LOG_KEY,
    MAX_REQUEST,
    WITNESS_KEY,
    Outsider,
    Policy,
    VerifierKey,
    read_request,
    valid_line,
    write_request,
)
from fl_core.trust.verify import verify_ledger
from server.witness import OutsideWitness, application, ask, ask_all

# the key of Go's checksum database, as everybody writes it
EXAMPLE = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"


@pytest.fixture(scope="module")
def keeper() -> Identity:
    return Identity.create("coordinator")


@pytest.fixture(scope="module")
def notary() -> Identity:
    return Identity.create("notary")


@pytest.fixture
def ledger(tmp_path, keeper):
    with Ledger.open(tmp_path / "ledger.db", keeper) as opened:
        opened.keeper = keeper
        yield opened


def grow(ledger, entries=3):
    say = lambda n: Statement.make(ledger.keeper, log=ledger.log, kind="round", run="r", body={"n": n})  # noqa: E731
    return ledger.commit([say(n) for n in range(entries)])[1]


def log_key(ledger) -> VerifierKey:
    return VerifierKey(ledger.log, LOG_KEY, ledger.coordinator.ed25519)


@pytest.fixture
def witness(tmp_path, ledger, notary):
    return OutsideWitness(tmp_path / "witness", notary, {ledger.log: log_key(ledger)})


def request(ledger, old, size=None):
    size = ledger.checkpoint_sizes()[-1] if size is None else size
    proof = ledger.consistency(old, size) if 0 < old < size else []
    return write_request(old, proof, ledger.checkpoint_at(size))


def test_a_witness_follows_a_log_and_signs_each_head(ledger, witness):
    old = 0
    for _ in range(4):
        note = grow(ledger)
        answer = witness.add_checkpoint(request(ledger, old))
        assert answer.status == 200 and answer.text.endswith("\n")
        assert verify_cosignature(note, answer.text[:-1], witness.key) > 0
        old = ledger.size
    again = witness.add_checkpoint(request(ledger, old))
    assert again.status == 200


def test_the_statuses_are_those_of_the_protocol(ledger, witness, keeper):
    first = grow(ledger)
    size = ledger.size
    assert witness.add_checkpoint(request(ledger, 0)).status == 200
    grow(ledger)
    # another old size than the one signed last
    stale = witness.add_checkpoint(request(ledger, 0))
    assert (stale.status, stale.text, stale.size) == (409, f"{size}\n", True)
    # a proof that does not hold
    bad = ledger.consistency(size, ledger.size)
    bad[0] = bytes(32)
    assert witness.add_checkpoint(write_request(size, bad, ledger.checkpoint())).status == 422
    # an old size beyond the new one, a proof where none is due
    assert witness.add_checkpoint(write_request(size + 1, [], first)).status == 400
    assert witness.add_checkpoint(write_request(0, bad, ledger.checkpoint())).status == 400
    # unknown log, wrong signature
    other = Identity.create("other")
    note = sign_checkpoint(other, Checkpoint(log_id(other.card), 5, bytes(32)))
    assert witness.add_checkpoint(write_request(0, [], note)).status == 404
    forged = note.replace(log_id(other.card), ledger.log)
    assert witness.add_checkpoint(write_request(0, [], forged)).status == 403
    # and after all that the honest one passes
    assert witness.add_checkpoint(request(ledger, size)).status == 200


def test_a_second_history_is_refused_and_kept_as_evidence(ledger, witness, keeper, tmp_path):
    grow(ledger)
    assert witness.add_checkpoint(request(ledger, 0)).status == 200
    head = Checkpoint(ledger.log, ledger.size, b"\x07" * 32)
    fork = sign_checkpoint(keeper, head)
    for old in (0, ledger.size):
        assert witness.add_checkpoint(write_request(old, [], fork)).status == 409
    kept = sorted((tmp_path / "witness" / "contradictions").iterdir())
    assert [path.read_text() for path in kept] == [fork, ledger.checkpoint()]
    grow(ledger)
    assert witness.add_checkpoint(request(ledger, head.size)).status == 200


def test_an_older_checkpoint_of_the_same_log_accuses_nobody(ledger, witness, tmp_path):
    grow(ledger)
    early = ledger.size
    grow(ledger)
    assert witness.add_checkpoint(request(ledger, 0)).status == 200
    for old in (0, early):
        answer = witness.add_checkpoint(request(ledger, old, early))
        assert (answer.status, answer.text) == (409, f"{ledger.size}\n")
    assert not (tmp_path / "witness" / "contradictions").exists()


def test_what_was_signed_outlives_a_restart(ledger, witness, tmp_path, notary):
    grow(ledger)
    assert witness.add_checkpoint(request(ledger, 0)).status == 200
    grow(ledger)
    again = OutsideWitness(tmp_path / "witness", notary, {ledger.log: log_key(ledger)})
    assert again.add_checkpoint(request(ledger, 0)).status == 409


@given(st.binary(max_size=400))
def test_garbage_is_a_bad_request(body):
    try:
        read_request(body)
    except BadMessage:
        return
    assert body.startswith(b"old ")


@pytest.mark.parametrize(
    "body",
    [
        b"old 01\n\nx",
        b"old -1\n\nx",
        b"old 1",
        b"new 1\n\nx",
        b"old 1\nAAAA\n\nx",
        b"old 1\n" + b"\n".join([base64.b64encode(bytes(32))] * 64) + b"\n\nx",
    ],
)
def test_malformed_requests_are_named(body):
    with pytest.raises(BadMessage):
        read_request(body)


@given(st.integers(0, 2**50), st.lists(st.binary(min_size=32, max_size=32), max_size=63))
def test_requests_come_back_as_they_were_written(old, proof):
    assert read_request(write_request(old, proof, "note\n")) == (old, proof, "note\n")


def test_keys_are_written_as_the_standard_says(notary):
    assert VerifierKey.parse(EXAMPLE, algorithm=LOG_KEY).name == "sum.golang.org"
    own = VerifierKey.of(notary, algorithm=WITNESS_KEY)
    assert VerifierKey.parse(own.text, algorithm=WITNESS_KEY) == own
    for bad in (EXAMPLE[:-2] + "A8", EXAMPLE.replace("033d", "033e"), "x", "", None, "a+b+c", own.text):
        with pytest.raises(BadMessage, match="a log's key"):
            VerifierKey.parse(bad, algorithm=LOG_KEY)


def test_lines_of_others_are_passed_over_and_forged_ones_do_not_count(ledger, witness, notary):
    note = grow(ledger)
    line = witness.add_checkpoint(request(ledger, 0)).text
    assert valid_line("— other AAAAAAAA\nnonsense\n" + line, note, witness.key) == line.strip()
    impostor = VerifierKey.of(Identity.create("notary"), algorithm=WITNESS_KEY)
    with pytest.raises(BadSignature, match="no co-signature"):
        valid_line(line, note, impostor)


# ---- over HTTP


@pytest.fixture
def served(witness):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(application(witness), log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def test_a_log_asks_and_finds_out_where_the_witness_is(ledger, witness, served):
    outsider = Outsider(witness.key, served)
    for _ in range(2):
        note = grow(ledger)
        assert verify_cosignature(note, ask(ledger, outsider, ledger.size), witness.key) > 0
    with pytest.raises(JobFailed, match="no checkpoint over 99 entries"):
        ask(ledger, outsider, 99)


def test_co_signatures_are_kept_beside_the_parties_and_the_verifier_still_reads_the_ledger(
    ledger, witness, served, tmp_path
):
    grow(ledger)
    assert ledger.outside_cosignatures(ledger.size) == {}
    gone = Outsider(VerifierKey.of(Identity.create("gone"), algorithm=WITNESS_KEY), "http://127.0.0.1:9")
    homeless = Outsider(VerifierKey.of(Identity.create("homeless"), algorithm=WITNESS_KEY))
    missing = ask_all(ledger, Policy(1, (Outsider(witness.key, served), gone, homeless)))
    assert list(missing) == ["gone", "homeless"] and "does not answer" in missing["gone"]
    assert "no address" in missing["homeless"]
    assert list(ledger.outside_cosignatures(ledger.size)) == [witness.key.text]
    report = verify_ledger(tmp_path / "ledger.db")
    assert report.status != 1, report
    with pytest.raises(BadSignature):
        ledger.add_outside(ledger.size, gone.key, next(iter(ledger.outside_cosignatures(ledger.size).values())))


def test_a_log_issued_anew_is_refused_in_words(ledger, witness, served, tmp_path):
    grow(ledger)
    outsider = Outsider(witness.key, served)
    ask(ledger, outsider, ledger.size)
    with Ledger.open(tmp_path / "anew.db", ledger.keeper) as forged:
        forged.keeper = ledger.keeper
        for entries, words in ((2, "has signed 4 entries of this log; here are 3"), (1, "are others")):
            grow(forged, entries)
            with pytest.raises(JobFailed, match=words):
                ask(forged, outsider, forged.size)
        grow(forged)
        with pytest.raises(JobFailed, match="answers 422"):
            ask(forged, outsider, forged.size)


def test_what_http_must_not_do(served):
    def post(path, data, method="POST"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(served + path, data=data, method=method), timeout=10)
        return caught.value.code

    assert post("/add-checkpoint", b"x" * (MAX_REQUEST + 1)) == 413
    assert post("/add-checkpoint", b"\xff\xfe") == 400
    assert post("/add-checkpoint", None, "GET") == 405
    assert post("/else", b"") == 404


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quorum": 3}, "quorum 3; allowed: 1 to 1"),
        ({"quorum": True}, "quorum"),
        ({"type": "x"}, "not a witness policy"),
        ({"more": 1}, "not a witness policy"),
        ({"witnesses": [{"key": "x"}]}, "not a witness's key"),
        ({"witnesses": "x"}, "a witness is a table"),
        ({"url": "file:///etc/passwd"}, "witness url"),
        ({"twice": True}, "named twice"),
    ],
)
def test_a_policy_that_says_nothing_sensible_is_refused(tmp_path, witness, change, said):
    entry = {"key": witness.key.text, "url": change.pop("url", "https://notary.example/w")}
    table = Policy(1, (Outsider(witness.key, entry["url"]),)).to_dict() | {"witnesses": [entry]}
    if change.pop("twice", False):
        table["witnesses"].append({"key": witness.key.text})
    (tmp_path / "p.json").write_text(json.dumps(table | change))
    with pytest.raises(UsageError, match=said):
        Policy.load(tmp_path / "p.json")
