"""Encrypted inference over TLS: right scores and receipts; replays, strangers, forged and oversized requests refused."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import clients.predict.client
import server.predict
import server.serving.accounts
import server.serving.door
from clients.predict import OverQuota, PredictClient
from fl_core.crypto import seal_io
from fl_core.crypto.linear_inference import ClientKey
from fl_core.crypto.linear_ring import open_ring
from fl_core.errors import BadMessage, BadSignature, DataError, JobFailed, RefusedError, UsageError, WrongKey
from fl_core.job import Model
from fl_core.learning.models import Meta, build_model, save_model
from fl_core.serving import RETRY_KEY, check_receipt, digest, make_receipt, make_request
from fl_core.trust import certificates
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.verify import verify_ledger
from fl_core.wire.predict_pb2 import ContextRequest, DescribeRequest, PredictRequest
from server.predict import SERVICE, Prediction, Server, handler
from server.serving.accounts import Accounts, Quota
from server.serving.door import Client, Counts, Door
from server.serving.folding import Linear, fold
from server.serving.keys import Keys
from server.serving.model import serve_linear
from server.serving.receipts import Receipts
from server.serving.sources import load_linear

D = 6
NAMES = tuple(f"measure_{i}" for i in range(D))
KEY = b"k" * 32


def linear(outputs=1, seed=0) -> Linear:
    rng = np.random.default_rng(seed)
    matrix, bias = rng.normal(size=(outputs + 1, D)), rng.normal(size=outputs + 1)
    mean, std = rng.normal(size=D) * 50, np.exp(rng.normal(size=D) * 3)
    return fold(NAMES, tuple(f"c{k}" for k in range(outputs + 1)), matrix, bias, mean, std)


def rows_for(model: Linear, count: int, seed=1) -> np.ndarray:
    """Raw features, (count, D), in the order of NAMES, which is alphabetical."""
    return np.random.default_rng(seed).normal(size=(count, D)) * np.exp2(model.unit_bits) + model.centre


def plain(model: Linear, x: np.ndarray) -> np.ndarray:
    return (x - model.centre) / np.exp2(model.unit_bits) @ model.weights.T + model.bias


class Place:
    """A service of its own in a folder, and clients of it."""

    def __init__(self, path: Path, quota=Quota(10**6, 1000.0), capacity=8, models=None, until=0.0) -> None:
        self.ended: set[str] = set()  # names whose keys the federation's board shows as revoked
        self.path, self.identity = path, Identity.load_or_create(path / "owner", "lab")
        self.clinic = Identity.load_or_create(path / "clinic", "clinic")
        authority = certificates.make_authority("test")
        self.authority = authority.certificate
        self.pair = certificates.issue_server(authority, ["localhost", "127.0.0.1"])
        self.models = models or {"risk": serve_linear("risk", linear(), parameters="CKKS_LINEAR", version_key=KEY)}
        self.quota, self.capacity, self.until = quota, capacity, until
        self.start()

    def start(self) -> None:
        self.accounts = Accounts(self.path / "accounts.db")
        self.ledger = Ledger.open(self.path / "ledger.db", self.identity)
        known = {"clinic": Client(self.clinic.card, self.until)}
        self.counts = Counts()
        door = Door(
            self.identity, self.ledger, self.accounts, known, self.quota, capacity=self.capacity, watcher=self.counts,
            standing=self.standing,
        )  # fmt: skip
        self.service = Prediction(door, self.models)
        self.server = Server(handler(self.service), "127.0.0.1:0", self.pair)
        self.receipts = Receipts(self.ledger, self.accounts, seconds=30.0)
        self.address = f"localhost:{self.server.port}"

    def standing(self, card) -> None:
        if card.name in self.ended:
            raise RefusedError(f"{card.name}: its key was revoked")

    def stop(self) -> None:
        self.server.stop(1.0)
        self.receipts.close()
        self.ledger.close()
        self.accounts.close()

    def client(self, identity=None, folder="state") -> PredictClient:
        return PredictClient(
            self.address, authority=self.authority, identity=identity or self.clinic, folder=self.path / folder
        )

    def raw(self, name, request):
        """A request as it is, past the client's own code."""
        method = SERVICE.methods_by_name[name]
        options = [("grpc.max_send_message_length", -1)]
        with grpc.secure_channel(self.address, grpc.ssl_channel_credentials(self.authority), options) as channel:
            kind = channel.stream_unary if method.client_streaming else channel.unary_unary
            encode, decode = (GetMessageClass(t) for t in (method.input_type, method.output_type))
            call = kind(
                f"/{SERVICE.full_name}/{name}",
                request_serializer=encode.SerializeToString,
                response_deserializer=decode.FromString,
            )
            return call(iter(request) if method.client_streaming else request, timeout=20)

    def refused(self, name, request) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as caught:
            self.raw(name, request)
        return caught.value.code()

    def opened(self, parameters="CKKS_LINEAR") -> tuple[ClientKey, str]:
        """A key of the clinic whose public half is at the server."""
        key = ClientKey(open_ring(parameters))
        self.raw("OpenContext", self.context(key.public, parameters))
        return key, digest([key.public])

    def context(self, public, parameters="CKKS_LINEAR", identity=None, rotations=()) -> list[ContextRequest]:
        name = digest([public])
        signed = self.signed("OpenContext", identity, set=parameters, key=name, rotations=list(rotations))
        return [ContextRequest(statement=signed.encode()), ContextRequest(part=public)]

    def signed(self, method, identity=None, **body) -> Statement:
        return make_request(identity or self.clinic, method, self.identity.card.fingerprint, **body)

    def block(self, name, sent, identity=None, **changes) -> list[PredictRequest]:
        offer = next(iter(self.models.values())).offer
        body = {"model": offer.name, "version": offer.version, "form": "row", "key": name, "rows": 1, "sent": digest(sent)}
        statement = self.signed("Predict", identity, **{**body, **changes})
        return [PredictRequest(statement=statement.encode()), *(PredictRequest(ciphertext=c) for c in sent)]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("place"))
    yield made
    made.stop()


@pytest.fixture
def fresh(tmp_path):
    """Makes places of one's own."""
    made = []

    def make(**options) -> Place:
        made.append(Place(tmp_path, **options))
        return made[-1]

    yield make
    for place in made:
        place.stop()


# ------------------------------------------------------------------------------------------------ right results


@pytest.mark.parametrize("count", [1, 3, 50, 4100])
def test_scores_over_the_wire_are_those_of_the_plain_model(place, count):
    model, names = linear(), tuple(reversed(NAMES))
    x = rows_for(model, count)
    with place.client() as client:
        scores = client.predict(x[:, ::-1], names)
    true = 1 / (1 + np.exp(-plain(model, x)[:, 0]))
    assert np.abs(scores.probabilities[:, 1] - true).max() < 1e-3
    assert scores.probabilities.sum(axis=1) == pytest.approx(1.0)


def test_several_classes_and_models(fresh):
    several = linear(outputs=3, seed=4)
    models = {
        "kind": serve_linear("kind", several, parameters="CKKS_LINEAR", version_key=KEY),
        "sign": serve_linear("sign", linear(), parameters="CKKS_LINEAR_LABELS", version_key=KEY),
    }
    with fresh(models=models).client() as client:
        x = rows_for(several, 300)
        logits = np.hstack([np.zeros((300, 1)), plain(several, x)])
        clear = np.diff(np.sort(logits, axis=1)[:, -2:], axis=1)[:, 0] > 0.01
        assert (client.predict(x, NAMES, "kind").labels == logits.argmax(axis=1))[clear].all()
        x = rows_for(linear(), 300)
        scores, true = client.predict(x, NAMES, "sign"), plain(linear(), x)[:, 0]
        assert (scores.labels == (true > 0))[np.abs(true) > 0.05].all()
        with pytest.raises(UsageError, match="labels only"):
            _ = scores.probabilities
        with pytest.raises(UsageError, match="allowed: kind, sign"):
            client.predict(x, NAMES)


def test_folding_changes_no_score():
    """Against the formula on standardised features, with a deviation of zero among them."""
    rng = np.random.default_rng(0)
    matrix, bias = rng.normal(size=(3, 4)), rng.normal(size=3)
    mean, std = np.array([0.0, 7.7, -300.0, 2.0]), np.array([1.0, 0.013, 45.0, 0.0])
    model = fold(("d", "b", "c", "a"), ("x", "y", "z"), matrix, bias, mean, std)
    raw = rng.normal(size=(20, 4)) * np.maximum(std, 1e-9) + mean
    logits = (raw - mean) / np.where(std > 0, std, 1.0) @ matrix.T + bias
    assert plain(model, raw[:, [3, 1, 2, 0]]) == pytest.approx(logits[:, 1:] - logits[:, :1], abs=1e-6)
    assert model.features == ("a", "b", "c", "d")
    assert (np.abs(model.centre - mean[[3, 1, 2, 0]]) <= np.exp2(model.unit_bits) / 2).all()


@pytest.mark.parametrize("kind", ["mlp", "names", "none", "garbage", "logistic"])
def test_only_a_logistic_model_with_named_features_is_served(tmp_path, kind):
    spec = Model("mlp" if kind == "mlp" else "logistic", hidden=(4,), classes=("a", "b"))
    net = build_model(spec, input_shape=(D,), image_shape=None, num_classes=2, seed=1)
    names = NAMES[:-1] if kind == "names" else NAMES
    if kind == "garbage":
        (tmp_path / "model.pt").write_bytes(b"PK")
    elif kind != "none":
        (tmp_path / "bank").mkdir()
        meta = Meta((D,), None, ("a", "b"), names, np.ones(D), np.full(D, 4.0))
        save_model(tmp_path / "bank" / "model.pt", net, spec, meta)
    if kind != "logistic":
        with pytest.raises(UsageError):
            load_linear(tmp_path)
        return
    model, x = load_linear(tmp_path), np.random.default_rng(0).normal(size=(9, D))
    logits = net(torch.from_numpy((x - 1) / 4).float()).detach().numpy()
    assert plain(model, x)[:, 0] == pytest.approx(logits[:, 1] - logits[:, 0], abs=1e-5)


def test_a_client_is_told_no_mean_and_no_deviation(place):
    """Centres are whole multiples of a power of two near the deviation: rough location and width."""
    (offer,) = Place.client(place).models()
    units = np.exp2(offer.unit_bits)
    assert (np.array(offer.centre) % units == 0).all()
    told = json.dumps(offer.to_dict())
    assert not any(name in told for name in NAMES)
    assert (
        offer.version != serve_linear("risk", linear(), parameters="CKKS_LINEAR", version_key=b"x" * 32).offer.version
    )


def test_other_features_and_values_out_of_range_are_refused_before_anything_is_sent(place):
    x = rows_for(linear(), 5)
    with place.client() as client:
        with pytest.raises(DataError, match="the 6 that the model was trained on"):
            client.predict(x, (*NAMES[:-1], "other"))
        x[2, 3] += 1e6 * 2.0 ** linear().unit_bits[3]
        with pytest.raises(DataError, match="allowed: finite"):
            client.predict(x, NAMES)


def test_both_hold_the_receipt_and_the_ledger_verifies(fresh):
    place = fresh()
    with place.client() as client:
        client.predict(rows_for(linear(), 10), NAMES)
        client.predict(rows_for(linear(), 1), NAMES)
    place.receipts.flush()
    entries = list(place.ledger.entries(kind="served"))
    assert [e.body["request"]["body"]["rows"] for e in entries] == [10, 1]
    held = (place.path / "state" / "receipts.jsonl").read_bytes().splitlines()
    assert held == [entry.statement.encode() for entry in entries]
    for entry in entries:
        request = Statement.from_dict(entry.body["request"])
        request.verify(place.clinic.card)
        assert entry.body["client"] == place.clinic.card.fingerprint
        assert set(entry.body) == {"request", "client", "answers", "received", "answered"}  # digests and counts
    report = verify_ledger(place.path / "ledger.db")
    assert (report.status, report.entries) == (0, 3)
    assert place.accounts.kept() == []


def test_a_receipt_survives_a_kill_and_comes_on_the_ledger_once(tmp_path):
    place = Place(tmp_path)
    with place.client() as client:
        client.predict(rows_for(linear(), 1), NAMES)
    kept = place.accounts.kept()
    place.ledger.commit([statement for _, statement in kept])  # and killed before it was dropped
    place.server.stop(0)
    place.start()
    place.receipts.flush()
    assert len(list(place.ledger.entries(kind="served"))) == len(kept) == 1
    place.stop()


@pytest.mark.parametrize("change", ["answers", "request", "signer", "kind"])
def test_a_wrong_receipt_is_refused_by_the_client(place, change):
    request, other = place.signed("Describe"), place.signed("Describe")
    signer = place.clinic if change == "signer" else place.identity
    log = place.ledger.log
    receipt = make_receipt(
        signer,
        log,
        other if change == "request" else request,
        place.clinic.card,
        answers="0" * 64 if change == "answers" else "1" * 64,
        received=1,
        answered=1,
    )
    if change == "kind":
        receipt = Statement.make(place.identity, log=log, kind="receipt", run="", body=receipt.body)
    with pytest.raises((BadMessage, BadSignature)):
        check_receipt(receipt.encode(), request, place.identity.card, "1" * 64)


def test_a_client_opens_its_context_again_after_a_restart(tmp_path):
    place = Place(tmp_path)
    with place.client() as client:
        client.predict(rows_for(linear(), 1), NAMES)
        place.service._keys = Keys()
        assert client.predict(rows_for(linear(), 40), NAMES).logits.shape == (40, 1)
    place.stop()


def test_models_are_replaced_while_serving(fresh):
    place = fresh()
    with place.client() as client:
        x = rows_for(linear(), 1)
        client.predict(x, NAMES)
        place.service.models = {"risk": serve_linear("risk", linear(seed=9), parameters="CKKS_LINEAR", version_key=KEY)}
        with pytest.raises(UsageError, match="ask again"):
            client.predict(x, NAMES)
        client.models()
        found = client.predict(rows_for(linear(seed=9), 1), NAMES)
        assert found.logits[0, 0] == pytest.approx(plain(linear(seed=9), rows_for(linear(seed=9), 1))[0, 0], abs=1e-3)


def test_tools_can_look_at_the_service(place):
    """gRPC's reflection, as grpcurl asks it."""
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.secure_channel(place.address, grpc.ssl_channel_credentials(place.authority)) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (reply,) = stub.ServerReflectionInfo(iter([asked]), timeout=20)
    names = {service.name for service in reply.list_services_response.service}
    assert {SERVICE.full_name, "grpc.health.v1.Health"} <= names


def test_health_is_served_and_ends_first(tmp_path):
    place = Place(tmp_path)
    with grpc.secure_channel(place.address, grpc.ssl_channel_credentials(place.authority)) as channel:
        ask = health_pb2_grpc.HealthStub(channel).Check
        assert ask(health_pb2.HealthCheckRequest(service=SERVICE.full_name)).status == 1
        place.server.health.enter_graceful_shutdown()
        assert ask(health_pb2.HealthCheckRequest()).status == 2
    place.stop()


# ------------------------------------------------------------------------------------------------ refusals


def test_a_replayed_request_is_refused_also_after_a_restart(tmp_path):
    place = Place(tmp_path)
    key, name = place.opened()
    block = place.block(name, [key.encrypt_row(np.ones(D))])
    place.raw("Predict", block)
    assert place.refused("Predict", block) == grpc.StatusCode.INVALID_ARGUMENT
    place.stop()
    place.start()
    place.raw("OpenContext", place.context(key.public))
    assert place.refused("Predict", block) == grpc.StatusCode.INVALID_ARGUMENT
    place.stop()


def test_strangers_and_forged_requests_are_refused(place):
    stranger, namesake = Identity.create("stranger"), Identity.create("clinic")
    for identity, code in ((stranger, "PERMISSION_DENIED"), (namesake, "UNAUTHENTICATED")):
        request = DescribeRequest(statement=place.signed("Describe", identity).encode())
        assert place.refused("Describe", request) == grpc.StatusCode[code]
    with pytest.raises(RefusedError, match="not a client here"):
        place.client(stranger, "stranger").models()


def test_an_expired_client_is_refused(fresh):
    place = fresh(until=time.time() - 1)
    with pytest.raises(RefusedError, match="its time here has ended"):
        place.client().models()


def test_a_client_whose_key_is_revoked_while_it_is_served_is_refused(fresh):
    place = fresh()
    with place.client() as client:
        assert client.models()
        place.ended.add("clinic")
        with pytest.raises(RefusedError, match="its key was revoked"):
            client.models()
    assert place.counts.refusals == 1


@pytest.mark.parametrize("change", ["old", "future", "server", "method", "kind", "field", "nonce", "garbage"])
def test_requests_of_another_time_server_or_form_are_refused(place, change, monkeypatch):
    if change in ("old", "future"):
        now = time.time()
        with monkeypatch.context() as patch:
            patch.setattr("fl_core.serving.time.time", lambda: now + (-200 if change == "old" else 200))
            statement = place.signed("Describe")
    elif change == "server":
        statement = make_request(place.clinic, "Describe", "a" * 64)
    elif change == "method":
        statement = place.signed("OpenContext", set="CKKS_LINEAR", key="0" * 64)
    else:
        body = place.signed("Describe").body
        body |= {"field": {"extra": 1}, "nonce": {"nonce": "x"}}.get(change, {})
        statement = Statement.make(
            place.clinic, log="", kind="witness" if change == "kind" else "request", run="", body=body
        )
    data = b"\xff\x00" if change == "garbage" else statement.encode()
    assert place.refused("Describe", DescribeRequest(statement=data)) == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("change", ["zero", "cut", "secret", "digest", "set", "empty"])
def test_what_is_no_public_key_is_refused(place, change):
    ring = open_ring("CKKS_LINEAR")
    key = ClientKey(ring)
    bad = {
        "zero": bytes(len(key.public)),
        "cut": key.public[:-1],
        "secret": seal_io.save(ring.seal.KeyGenerator(ring.context).secret_key()),
        "empty": b"",
    }.get(change, key.public)
    request = place.context(bad, "CKKS_2048" if change == "set" else "CKKS_LINEAR")
    if change == "digest":
        request[1] = ContextRequest(part=ClientKey(ring).public)
    assert place.refused("OpenContext", request) == grpc.StatusCode.INVALID_ARGUMENT


def test_what_is_no_block_is_refused(place):
    key, name = place.opened()
    good = key.encrypt_row(np.ones(D))
    columns = key.encrypt_columns(np.ones((3, D)))
    other = place.block(name, [good])[0]
    cases = {
        "no statement": [PredictRequest(ciphertext=good)],
        "nothing": [],
        "zeros": place.block(name, [bytes(len(good))]),
        "beyond the modulus": place.block(name, [b"\xff" * len(good)]),
        "too short": place.block(name, [good[:-1]]),
        "two": place.block(name, [good, good]),
        "none": place.block(name, []),
        "others than named": [other, PredictRequest(ciphertext=columns[0])],
        "a column short": place.block(name, columns[:-1], form="columns", rows=3),
        "a column more": place.block(name, [*columns, good], form="columns", rows=3),
        "rows": place.block(name, columns, form="columns", rows=4097),
        "rows of a row": place.block(name, [good], rows=2),
        "no rows": place.block(name, [good], rows=0),
        "form": place.block(name, [good], form="matrix"),
        "model": place.block(name, [good], model="other"),
        "version": place.block(name, [good], version="0" * 16),
        "statement again": [*place.block(name, [good]), other],
    }
    for case, block in cases.items():
        expected = grpc.StatusCode.INVALID_ARGUMENT
        assert place.refused("Predict", block) == expected, case


def test_an_oversized_message_is_refused_by_grpc_itself(place):
    _, name = place.opened()
    block = place.block(name, [bytes(2 << 20)])
    assert place.refused("Predict", block) == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_another_clients_key_is_not_to_be_used(fresh):
    """A key is kept under who left it: its digest alone opens nothing."""
    place = fresh()
    key, name = place.opened()
    other = Identity.create("other")
    place.service.door.clients["other"] = Client(other.card)
    block = place.block(name, [key.encrypt_row(np.ones(D))], identity=other)
    assert place.refused("Predict", block) == grpc.StatusCode.FAILED_PRECONDITION


def test_keys_kept_for_a_client_are_bounded(fresh):
    place = fresh()
    place.service._keys = Keys(each=2)
    first = place.opened()
    for _ in range(2):
        place.opened()
    block = place.block(first[1], [first[0].encrypt_row(np.ones(D))])
    assert place.refused("Predict", block) == grpc.StatusCode.FAILED_PRECONDITION


# ------------------------------------------------------------------------------------------------ quotas and load


def test_many_clients_at_once_get_their_own_answers(fresh):
    """Fewer places than callers: some are turned away, come again, and nobody gets another's scores."""
    place, model, wrong = fresh(capacity=2), linear(), []

    def ask(i: int) -> None:
        with place.client(folder=f"state{i}") as client:
            for size in (1, 30, 2):
                x = rows_for(model, size, seed=100 * i + size)
                found = client.predict(x, NAMES).logits
                if np.abs(found - plain(model, x)).max() > 1e-2:
                    wrong.append(i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == [] and place.counts.rows == 8 * 33
    place.receipts.flush()
    assert sum(1 for _ in place.ledger.entries(kind="served")) == place.accounts.rows_today("clinic") / 33 * 4


def test_a_quota_is_not_evaded_by_reconnecting_another_key_or_a_restart(tmp_path):
    place, model = Place(tmp_path, quota=Quota(12, 1000.0)), linear()
    with place.client() as client:
        client.predict(rows_for(model, 10), NAMES)
    with place.client(folder="again") as client, pytest.raises(OverQuota, match="allowed: 12 a day"):
        client.predict(rows_for(model, 10), NAMES)
    place.stop()
    place.start()
    with place.client() as client:
        client.predict(rows_for(model, 2), NAMES)
        with pytest.raises(OverQuota, match="1 rows after 12 today"):
            client.predict(rows_for(model, 1), NAMES)
    assert place.accounts.rows_today("clinic") == 12
    place.stop()


def test_a_request_that_is_counted_and_fails_is_still_counted(fresh):
    """Else a client could have an answer computed, and leave before its end, for nothing."""
    place = fresh()
    key, name = place.opened()
    block = place.block(name, [key.encrypt_row(np.ones(D))])
    assert place.refused("Predict", block[:1]) == grpc.StatusCode.INVALID_ARGUMENT
    assert place.accounts.rows_today("clinic") == 1


def test_more_requests_a_second_than_allowed_are_slowed_down(tmp_path):
    now = [1000.0]
    accounts = Accounts(tmp_path / "accounts.db", clock=lambda: now[0])
    quota = Quota(100, 0.5)
    for i in range(5):
        accounts.take("a", f"{i}", 1, quota)
    with pytest.raises(server.serving.accounts.OverQuota) as caught:
        accounts.take("a", "6", 1, quota)
    assert caught.value.wait == pytest.approx(10.0)
    accounts.take("b", "1", 1, quota)  # another's is its own
    now[0] += 10.1
    accounts.take("a", "6", 1, quota)
    assert accounts.rows_today("a") == 6
    now[0] += 86400
    assert accounts.rows_today("a") == 0
    accounts.close()


def test_above_capacity_a_call_is_turned_away_with_a_hint_and_the_client_comes_again(fresh, monkeypatch):
    place = fresh(capacity=1)
    key, name = place.opened()
    gate, inside = threading.Event(), threading.Event()
    answer = server.predict._answer

    def slow(*args):
        inside.set()
        gate.wait(20)
        return answer(*args)

    monkeypatch.setattr(server.predict, "_answer", slow)
    sent = [key.encrypt_row(np.ones(D))]
    first = threading.Thread(target=lambda: place.raw("Predict", place.block(name, sent)))
    first.start()
    assert inside.wait(20)
    with pytest.raises(grpc.RpcError) as caught:
        place.raw("Predict", place.block(name, sent))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 500 <= int(dict(caught.value.trailing_metadata())[RETRY_KEY]) <= 4000
    threading.Timer(0.6, gate.set).start()
    with place.client() as client:  # waits as it is told
        assert client.predict(rows_for(linear(), 1), NAMES).logits.shape == (1, 1)
    first.join(20)


def test_a_call_that_sends_nothing_gives_its_place_back(fresh, monkeypatch):
    monkeypatch.setattr(server.serving.door, "CALL_SECONDS", 0.5)
    place = fresh(capacity=1)
    key, name = place.opened()

    def quiet():
        yield place.block(name, [key.encrypt_row(np.ones(D))])[0]
        time.sleep(2)

    assert place.refused("Predict", quiet()) == grpc.StatusCode.CANCELLED
    place.raw("Predict", place.block(name, [key.encrypt_row(np.ones(D))]))


def test_whoever_says_nothing_at_first_is_cut_off_and_takes_no_place(fresh, monkeypatch):
    monkeypatch.setattr(server.serving.door, "FIRST_SECONDS", 0.5)
    place = fresh(capacity=1)
    key, name = place.opened()
    silent, codes = threading.Event(), []

    def nothing():
        silent.wait(10)
        return iter(())
        yield

    caller = threading.Thread(target=lambda: codes.append(place.refused("Predict", nothing())))
    caller.start()
    place.raw("Predict", place.block(name, [key.encrypt_row(np.ones(D))]))
    caller.join(5)
    silent.set()
    assert codes == [grpc.StatusCode.CANCELLED]


def test_a_server_that_changed_its_card_is_refused(fresh, monkeypatch):
    place = fresh()
    with place.client() as client:
        client.models()
    other = Identity.create("lab")
    monkeypatch.setattr(place.service.door, "card", other.card)
    with place.client() as client, pytest.raises(WrongKey, match="pinned is"):
        client.models()


def test_another_authority_is_refused(place, monkeypatch):
    monkeypatch.setattr(clients.predict.client, "CALL_SECONDS", 5.0)
    other = certificates.make_authority("other").certificate
    with (
        PredictClient(place.address, authority=other, identity=place.clinic, folder=place.path / "x") as client,
        pytest.raises(JobFailed, match="UNAVAILABLE"),
    ):
        client.models()


def test_a_model_described_in_another_way_is_refused(place):
    (offer,) = Place.client(place).models()
    for change in ({"features": 7}, {"centre": ["x"] * D}, {"bits": 0}, {"classes": ["one"]}, {"more": 1}):
        with pytest.raises(BadMessage):
            type(offer).from_dict({**dataclasses.asdict(offer), **change})
