"""Admission: who comes first is served first, nobody waits for nothing, and strangers keep no client out."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import server.predict
import server.serving.door
from fl_core.crypto.linear_inference import ClientKey
from fl_core.crypto.linear_ring import open_ring
from fl_core.serving import RETRY_KEY, digest, make_request
from fl_core.trust import certificates
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.wire import predict_pb2
from fl_core.wire.predict_pb2 import ContextReply, ContextRequest, PredictReply, PredictRequest
from server.predict import Prediction, Server, handler
from server.serving.accounts import Accounts, Quota
from server.serving.door import CROWD, CROWD_SECONDS, Client, Counts, Door, Limits
from server.serving.folding import fold
from server.serving.model import serve_linear
from server.serving.places import BUSY_SECONDS, LONGEST_SECONDS, Busy, Places, Pool

LONG = 30.0  # seconds that no test waits
D = 4


def wait_for(what) -> None:
    end = time.monotonic() + LONG
    while not what():
        assert time.monotonic() < end
        time.sleep(0.002)


class Held:
    """A place that is taken until `free`."""

    def __init__(self, places: Places) -> None:
        self.gate, inside = threading.Event(), threading.Event()

        def hold() -> None:
            with places.one():
                inside.set()
                self.gate.wait(LONG)

        self.thread = threading.Thread(target=hold)
        self.thread.start()
        assert inside.wait(LONG)

    def free(self) -> None:
        self.gate.set()
        self.thread.join(LONG)


# ------------------------------------------------------------------------------------------------ places


def test_who_waits_longest_is_served_first():
    places, order = Places(1, patience=LONG), []
    held, threads = Held(places), []

    def ask(i: int) -> None:
        with places.one():
            order.append(i)

    for i in range(6):
        threads.append(threading.Thread(target=ask, args=(i,)))
        threads[-1].start()
        wait_for(lambda i=i: places.waiting == i + 1)
    held.free()
    for thread in threads:
        thread.join(LONG)
    assert order == list(range(6)) and places.waiting == 0


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 4), st.lists(st.sampled_from(["works", "fails"]), min_size=1, max_size=40))
def test_no_more_than_the_capacity_are_at_work_and_no_place_is_lost(capacity, kinds):
    places, lock, now, most = Places(capacity, patience=LONG), threading.Lock(), [0], [0]

    def ask(kind: str) -> None:
        try:
            with places.one():
                with lock:
                    now[0] += 1
                    most[0] = max(most[0], now[0])
                time.sleep(0)
                with lock:
                    now[0] -= 1
                if kind == "fails":
                    raise ValueError
        except ValueError:
            pass

    threads = [threading.Thread(target=ask, args=(kind,)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert most[0] <= capacity
    with ExitStack() as stack:
        for _ in range(capacity):
            stack.enter_context(places.one("other", left=0.0))  # without a wait
        with pytest.raises(Busy), places.one("other", left=0.0):
            pass


def test_a_wait_ends_where_patience_or_the_deadline_ends():
    for places, left in ((Places(1, patience=0.01), None), (Places(1, patience=LONG), 0.01)):
        held = Held(places)
        with pytest.raises(Busy) as caught, places.one(left=left):
            pass
        assert BUSY_SECONDS <= caught.value.wait <= 1.25 * LONGEST_SECONDS
        assert places.waiting == 0
        held.free()
        with places.one():
            pass


def test_a_call_whose_deadline_cannot_be_met_gets_no_place_though_there_is_one():
    now = [100.0]
    places = Places(1, clock=lambda: now[0])
    for seconds in (3.0, 1.0):
        with places.one("network"):
            now[0] += seconds
    with pytest.raises(Busy), places.one("network", left=0.9):
        pytest.fail("worked on")
    with places.one("network", left=1.1):
        now[0] += 1.0
    with places.one("other", left=0.9):  # of which nothing is known
        pass
    now[0] += 60.0  # a slow spell is forgotten, else nothing would ever show that it is over
    with places.one("network", left=0.9):
        pass


def test_one_client_does_not_take_all_there_is():
    places = Places(1, room=4)
    for _ in range(2):
        places.enter("a")
    with pytest.raises(Busy):
        places.enter("a")
    places.enter("b")
    places.leave("a")
    places.enter("a")


def test_hints_grow_with_the_load_up_to_what_clients_accept():
    now = [0.0]
    places = Places(1, clock=lambda: now[0])
    first = places.lay_aside()
    assert first < 2 * BUSY_SECONDS
    for _ in range(1000):
        last = places.lay_aside()
    assert last == LONGEST_SECONDS and 1.25 * LONGEST_SECONDS <= 5.0
    now[0] += 60.0
    assert places.lay_aside() < 2 * BUSY_SECONDS
    for _ in range(1000):  # as many are served as are not
        with places.one():
            pass
        last = places.lay_aside()
    assert last < 2 * BUSY_SECONDS


# ------------------------------------------------------------------------------------------------ laid aside


class Full:
    """Places that are full, or not."""

    def __init__(self, seconds: float) -> None:
        self.full, self.seconds, self.limit, self.on_room, self.real = True, seconds, 1, [], Places(1)

    def lay_aside(self) -> float:
        return self.seconds


@pytest.mark.parametrize(("limit", "expected"), [(1, [3, 2, 1, 0]), (4, [0, 1, 2, 3])])
def test_what_comes_while_it_is_full_runs_later_and_the_newest_first_where_it_is_much(limit, expected):
    places, done, order = Full(LONG), threading.Semaphore(0), []
    pool, places.limit = Pool(1, places, most=4), limit

    def call(i: int) -> None:
        order.append(i)
        done.release()

    futures = [pool.submit(call, i) for i in range(4)]
    pool.submit(call, 9)  # beyond `most`: at once
    assert done.acquire(timeout=LONG) and order == [9]
    places.full = False
    pool.submit(call, 10)
    assert done.acquire(timeout=LONG) and order == [9, 10]
    assert not any(future.done() for future in futures)
    (let_on,) = places.on_room
    assert let_on() and let_on() and not let_on()
    for future in futures:
        future.result(LONG)
    assert order == [9, 10, *expected]
    pool.shutdown()


def test_what_is_laid_aside_is_turned_away_in_the_end_and_others_are_not():
    places, told = Full(0.0), []
    pool = Pool(1, places)

    def call() -> None:
        try:
            places.real.check()
            told.append("in")
        except Busy as busy:
            told.append(busy.wait)

    pool.submit(call).result(LONG)
    places.full = False
    pool.submit(call).result(LONG)
    assert told[0] >= BUSY_SECONDS and told[1] == "in"
    pool.shutdown()
    with pytest.raises(RuntimeError):
        pool.submit(call)


# ------------------------------------------------------------------------------------------------ limits


def test_of_a_crowd_that_says_nothing_the_oldest_goes():
    limits, calls = Limits(tick=LONG), [object() for _ in range(CROWD + 2)]
    with ExitStack() as stack:
        for call in calls[:CROWD]:
            stack.enter_context(limits.within(call, LONG, crowd=True))
        now = time.monotonic()
        assert limits.over(now + LONG / 2) == []
        for call in calls[CROWD:]:
            stack.enter_context(limits.within(call, LONG, crowd=True))
        stack.enter_context(limits.within(object(), LONG))  # of a known one: in no crowd
        assert limits.over(now) == []  # all have a moment
        assert limits.over(now + 2 * CROWD_SECONDS) == calls[:2]
        assert len(limits.over(now + 2 * LONG)) >= CROWD + 3
    assert limits.over(now + 2 * LONG) == []


# ------------------------------------------------------------------------------------------------ over the wire


class Place:
    """A service with one place for work, a client, and a gate before the work."""

    def __init__(self, path, monkeypatch) -> None:
        rng = np.random.default_rng(0)
        linear = fold(tuple("abcd"), ("no", "yes"), rng.normal(size=(2, D)), rng.normal(size=2), None, None)
        self.model = serve_linear("m", linear, parameters="CKKS_LINEAR", version_key=b"k" * 32)
        self.owner, self.clinic = Identity.create("lab"), Identity.create("clinic")
        authority = certificates.make_authority("test")
        self.authority = authority.certificate
        self.accounts, self.ledger = Accounts(path / "accounts.db"), Ledger.open(path / "ledger.db", self.owner)
        known = {"clinic": Client(self.clinic.card)}
        self.door = Door(
            self.owner, self.ledger, self.accounts, known, Quota(10**6, 10**4), capacity=1, watcher=Counts()
        )
        pair = certificates.issue_server(authority, ["localhost"])
        self.server = Server(handler(Prediction(self.door, {"m": self.model})), "127.0.0.1:0", pair)
        credentials = grpc.ssl_channel_credentials(authority.certificate)
        self.channel = grpc.secure_channel(f"localhost:{self.server.port}", credentials)
        self.gate, self.inside, self.worked = threading.Event(), threading.Semaphore(0), []
        answer = server.predict._answer

        def gated(*args):
            self.inside.release()
            self.gate.wait(LONG)
            self.worked.append(args[2]["nonce"])
            return answer(*args)

        monkeypatch.setattr(server.predict, "_answer", gated)
        key = ClientKey(open_ring("CKKS_LINEAR"))
        self.row, self.name = key.encrypt_row(np.ones(D)), digest([key.public])
        head = self.signed(self.clinic, "OpenContext", set="CKKS_LINEAR", key=self.name, rotations=[])
        opened = [ContextRequest(statement=head.encode()), ContextRequest(part=key.public)]
        self.method("OpenContext", ContextRequest, ContextReply)(iter(opened), timeout=LONG)

    def signed(self, identity, method, **body):
        return make_request(identity, method, self.owner.card.fingerprint, **body)

    def method(self, name, request, reply, channel=None):
        return (channel or self.channel).stream_unary(
            f"/{predict_pb2.DESCRIPTOR.services_by_name['Prediction'].full_name}/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=reply.FromString,
        )

    def ask(self, identity=None, timeout=LONG, messages=None):
        """A call under way."""
        body = {"model": "m", "version": self.model.offer.version, "form": "row", "key": self.name, "rows": 1}
        request = self.signed(identity or self.clinic, "Predict", sent=digest([self.row]), **body)
        block = [PredictRequest(statement=request.encode()), PredictRequest(ciphertext=self.row)]
        call = self.method("Predict", PredictRequest, PredictReply)
        return call.future(iter(block) if messages is None else messages, timeout=timeout)

    def held(self):
        """A call of the client that has the place."""
        call = self.ask()
        assert self.inside.acquire(timeout=LONG)
        return call

    def stop(self) -> None:
        self.gate.set()
        self.channel.close()
        self.server.stop(1.0)
        self.ledger.close()
        self.accounts.close()


@pytest.fixture
def place(tmp_path, monkeypatch) -> Iterator[Place]:
    made = Place(tmp_path, monkeypatch)
    yield made
    made.stop()


def test_a_burst_waits_or_is_laid_aside_and_all_of_it_is_answered(place, monkeypatch):
    """Those laid aside go on as soon as there is room, not when their time has passed."""
    monkeypatch.setattr(place.door.places, "_patience", LONG)
    monkeypatch.setattr(place.door.places, "_long", lambda: 2 * LONG)
    calls = [place.held()] + [place.ask() for _ in range(20)]
    wait_for(lambda: place.door.places.full)
    place.gate.set()
    assert all(len(call.result(LONG).answers) == 1 for call in calls)


def test_a_call_that_is_over_before_its_turn_is_not_worked_on(place, monkeypatch):
    """Neither one whose deadline comes in the queue, nor one whose client leaves it; and both cost no rows."""
    monkeypatch.setattr(place.door.places, "_patience", LONG)
    first, late, left = place.held(), place.ask(timeout=1.0), place.ask()
    wait_for(lambda: place.door.places.waiting == 2)
    left.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        late.result(LONG)
    assert caught.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    place.gate.set()
    first.result(LONG)
    place.ask().result(LONG)  # behind both in the queue
    assert len(place.worked) == 2 and place.accounts.rows_today("clinic") == 2


def test_who_is_turned_away_is_told_when_to_come_again(place, monkeypatch):
    monkeypatch.setattr(place.door.places, "_limit", 0)  # full
    monkeypatch.setattr(place.door.places, "_long", lambda: 0.0)
    with pytest.raises(grpc.RpcError) as caught:
        place.ask().result(LONG)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(caught.value.trailing_metadata())[RETRY_KEY] == "0"
    assert place.accounts.rows_today("clinic") == 0


def test_calls_of_one_client_that_send_nothing_more_are_so_many_at_most(place):
    """And each is counted until it has ended, however it ends."""
    place.gate.set()
    most = place.door.places._room // 2
    silent = threading.Event()

    def begun():
        body = {"model": "m", "version": place.model.offer.version, "form": "row", "key": place.name, "rows": 1}
        yield PredictRequest(statement=place.signed(place.clinic, "Predict", sent="0" * 64, **body).encode())
        silent.wait(LONG)

    calls = [place.ask(messages=begun()) for _ in range(most)]
    wait_for(lambda: place.door.places._of["clinic"] == most)
    with pytest.raises(grpc.RpcError) as caught:
        place.ask().result(LONG)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in calls[:1]:
        call.cancel()
    wait_for(lambda: place.door.places._of["clinic"] < most)
    assert place.ask().result(LONG).answers
    silent.set()
    for call in calls[1:]:
        assert call.exception(LONG).code() == grpc.StatusCode.INVALID_ARGUMENT
    wait_for(lambda: "clinic" not in place.door.places._of)


def test_strangers_are_refused_at_once_and_take_no_place_in_the_queue(place):
    first = place.held()
    for identity, code in ((Identity.create("stranger"), "PERMISSION_DENIED"), (Identity.create("clinic"), "UNAUTH")):
        for call in [place.ask(identity) for _ in range(20)]:
            assert call.exception(LONG).code().name.startswith(code)
    assert place.door.places.waiting == 0
    place.gate.set()
    assert first.result(LONG).answers


def test_a_flood_of_silent_strangers_keeps_no_client_out(place, monkeypatch):
    """More than there are threads; each would be listened to for longer than the client waits."""
    monkeypatch.setattr(server.serving.door, "FIRST_SECONDS", 2 * LONG)
    place.gate.set()
    silent, flood = threading.Event(), []

    def nothing():
        silent.wait(LONG)
        return iter(())
        yield

    for _ in range(3):
        channel = grpc.secure_channel(
            f"localhost:{place.server.port}",
            grpc.ssl_channel_credentials(place.authority),
            [("grpc.use_local_subchannel_pool", 1)],
        )
        call = place.method("Predict", PredictRequest, PredictReply, channel)
        flood += [(channel, call.future(nothing(), timeout=2 * LONG)) for _ in range(120)]
    assert place.ask().result(LONG).answers
    silent.set()
    for channel, _ in flood[::120]:
        channel.close()
