"""The sealed channel on bad lines and among liars: nothing lost, nothing altered unseen, every wait ends."""

from __future__ import annotations

import os
import threading
import time

import pytest

from fl_core.errors import BadFrame, JobFailed, PeerLost, PeerTimeout
from fl_core.session.sealed import PIECE, WINDOW, SealedChannel
from fl_core.trust.identity import Identity
from fl_core.wire.exchange_pb2 import Frame
from tests.switch import Switch, run_all

SIZES = [0, 1, 1000, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7]


def whole(channel, program):
    """A party's part as a job runs it."""
    try:
        result = program()
        channel.finish()
        return result
    except Exception as error:
        channel.abort(error)
        raise
    finally:
        channel.leave()


def say(channel, to, messages):
    def program():
        for number, message in enumerate(messages):
            channel.send(to, message, step=f"message {number}")

    whole(channel, program)


def hear(channel, source, count, *, max_bytes=1 << 30):
    steps = [f"message {n}" for n in range(count)]
    return whole(channel, lambda: [bytes(channel.recv(source, step=s, max_bytes=max_bytes)) for s in steps])


def exchange(switch, messages):
    ends = switch.ends
    return run_all(
        {"a": lambda: say(ends["a"], "b", messages), "b": lambda: hear(ends["b"], "a", len(messages))},
    )


def test_messages_of_every_size_arrive_whole():
    messages = [os.urandom(size) for size in SIZES]
    switch = Switch(["a", "b"]).join()
    assert exchange(switch, messages)["b"] == messages
    assert switch.ends["a"].transcript("b") == switch.ends["b"].transcript("a")
    assert switch.ends["a"].traffic["b"].sent == switch.ends["b"].traffic["a"].received == sum(SIZES)


def test_what_passes_the_exchange_holds_nothing_of_a_message():
    seen, secret = [], b"customer 4711 owes 1200" * 50
    switch = Switch(["a", "b"], fault=lambda frame: [seen.append(frame.SerializeToString()) or frame]).join()
    assert exchange(switch, [secret])["b"] == [secret]
    everything = b"".join(seen)
    assert len(everything) > len(secret)
    assert b"customer" not in everything and b"message 0" not in everything


def test_a_party_may_send_before_the_other_has_come():
    switch = Switch(["a", "b"]).join("a")
    threading.Timer(0.3, switch.join, ("b",)).start()
    assert exchange(switch, [b"early"])["b"] == [b"early"]


@pytest.mark.parametrize("who", ["a", "b"])
def test_a_line_that_breaks_again_and_again_loses_nothing(who):
    messages = [os.urandom(300_000) for _ in range(60)]
    switch = Switch(["a", "b"], timeout=20).join()
    stop = threading.Event()

    def weather():
        while not stop.wait(0.03):
            switch.cut(who)
            time.sleep(0.01)
            switch.join(who)

    threading.Thread(target=weather, daemon=True).start()
    results = exchange(switch, messages)
    stop.set()
    assert results["b"] == messages
    assert switch.ends["a"].transcript("b") == switch.ends["b"].transcript("a")


def test_sent_again_after_a_break_are_the_same_sealed_bytes():
    sealed: dict[int, set[bytes]] = {}

    def watch(frame):
        if frame.kind == Frame.DATA:
            sealed.setdefault(frame.number, set()).add(frame.body)
        return [frame]

    switch = Switch(["a", "b"], fault=watch).join()
    a, b = switch.ends["a"], switch.ends["b"]
    a.send("b", b"x" * 10, step="s")
    b.recv("a", step="s", max_bytes=10)
    switch.cut("b")
    a.send("b", b"y" * 10, step="t")
    time.sleep(0.1)
    switch.join("b")
    assert b.recv("a", step="t", max_bytes=10) == b"y" * 10
    assert {number: len(bodies) for number, bodies in sealed.items()} == {0: 1, 1: 1}


def nth_data(n, act):
    """A fault at the n-th piece that is on its way."""
    count = [0]

    def fault(frame):
        if frame.kind != Frame.DATA:
            return [frame]
        count[0] += 1
        return act(frame) if count[0] == n else [frame]

    return fault


def flipped(frame):
    body = bytearray(frame.body)
    body[-1] ^= 1
    frame.body = bytes(body)
    return [frame]


def renumbered(frame):
    frame.number += 1
    return [frame]


def held_back():
    kept = []

    def fault(frame):
        if frame.kind != Frame.DATA:
            return [frame]
        kept.append(frame)
        return [] if len(kept) == 1 else [frame, kept[0]] if len(kept) == 2 else [frame]

    return fault


FAULTS = {
    "lost": nth_data(1, lambda frame: []),
    "repeated": nth_data(1, lambda frame: [frame, frame]),
    "altered": nth_data(1, flipped),
    "renumbered": nth_data(1, renumbered),
    "reordered": held_back(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_piece_that_is_lost_repeated_altered_or_reordered_ends_it_for_both_by_name(fault):
    switch = Switch(["a", "b"], fault=FAULTS[fault], timeout=2).join()
    results = exchange(switch, [b"one", b"two", b"three"])
    assert isinstance(results["b"], BadFrame)
    assert "party a in step" in str(results["b"])
    assert isinstance(results["a"], PeerLost)
    assert "party b is gone in step" in str(results["a"])
    assert "(frame)" in str(results["a"])


def test_a_message_whose_end_is_kept_back_is_waited_for_so_long_and_no_longer():
    switch = Switch(["a", "b"], fault=nth_data(2, lambda frame: []), timeout=0.5).join()
    results = exchange(switch, [b"one", b"two"])
    assert isinstance(results["b"], (PeerTimeout, BadFrame))
    assert isinstance(results["a"], JobFailed)


def test_a_piece_of_another_session_does_not_open():
    stolen = []
    first = Switch(["a", "b"], fault=lambda f: [stolen.append(f) or f] if f.kind == Frame.DATA else [f]).join()
    assert exchange(first, [b"from another session"])["b"] == [b"from another session"]

    def replace(frame):
        frame.body = stolen[0].body
        return [frame]

    second = Switch(["a", "b"], fault=nth_data(1, replace), timeout=2).join()
    assert isinstance(exchange(second, [b"x"])["b"], BadFrame)


def test_a_session_key_that_its_party_did_not_sign_is_refused():
    switch = Switch(["a", "b"], timeout=2)
    impostor = SealedChannel(Identity.create("a"), switch.name, timeout=2)
    switch.ends["a"] = impostor
    switch.join()
    results = exchange(switch, [b"x"])
    assert isinstance(results["b"], BadFrame)
    assert "not signed" in str(results["b"])


def test_a_session_key_signed_for_another_run_is_refused():
    switch, other = Switch(["a", "b"], timeout=2), Switch(["a", "b"], timeout=2)
    other.name.members.update(switch.name.members)
    switch.ends["a"] = SealedChannel(switch.identities["a"], other.name, timeout=2)
    switch.join()
    assert isinstance(exchange(switch, [b"x"])["b"], BadFrame)


def test_a_frame_that_names_a_stranger_ends_it():
    def stranger(frame):
        frame.sender = "mallory"
        return [frame]

    switch = Switch(["a", "b"], fault=nth_data(1, stranger), timeout=2).join()
    assert isinstance(exchange(switch, [b"x"])["b"], BadFrame)


def test_a_sender_waits_for_a_reader_that_is_slow_and_memory_stays_bounded():
    switch = Switch(["a", "b"], timeout=10).join()
    a, b = switch.ends["a"], switch.ends["b"]
    sent = []

    def send():
        for n in range(3 * WINDOW // PIECE):
            a.send("b", bytes(PIECE), step="s")
            sent.append(n)
        a.finish()

    def read():
        time.sleep(0.7)
        held = len(sent) * PIECE
        for _ in range(3 * WINDOW // PIECE):
            b.recv("a", step="s", max_bytes=PIECE)
        b.finish()
        return held

    results = run_all({"a": send, "b": read})
    assert results["a"] is None
    assert 0 < results["b"] <= WINDOW + 2 * PIECE


def test_a_reader_that_never_reads_is_named_after_the_timeout():
    switch = Switch(["a", "b"], timeout=0.5).join()
    with pytest.raises(PeerTimeout, match="party b in step 's'"):
        for _ in range(2 * WINDOW // PIECE):
            switch.ends["a"].send("b", bytes(PIECE), step="s")


def test_nobody_comes_and_the_wait_says_who():
    switch = Switch(["a", "b"], timeout=0.3).join("a")
    with pytest.raises(PeerTimeout, match="party b in step 'first'"):
        switch.ends["a"].send("b", b"x", step="first")


def test_a_party_that_fails_stops_the_others_at_once_with_its_code_and_step():
    switch = Switch(["a", "b", "c"], timeout=30).join()
    ends = switch.ends

    def fail():
        ends["a"].gather(5)
        ends["a"].send("b", b"x", step="counting")
        raise ValueError("a customer's name")

    began = time.monotonic()
    results = run_all(
        {
            "a": lambda: whole(ends["a"], fail),
            "b": lambda: [
                ends["b"].recv("a", step="counting", max_bytes=1),
                ends["b"].recv("c", step="t", max_bytes=1),
            ],
            "c": lambda: ends["c"].recv("b", step="t", max_bytes=1),
        }
    )
    assert time.monotonic() - began < 5
    for name in ("b", "c"):
        assert isinstance(results[name], PeerLost)
        assert "party a is gone" in str(results[name])
        assert "(internal)" in str(results[name])
        assert "customer" not in str(results[name])


def test_a_party_that_leaves_early_is_noticed_at_once():
    switch = Switch(["a", "b"], timeout=30).join()
    switch.ends["a"].send("b", b"x", step="s")
    threading.Timer(0.2, switch.ends["a"].finish).start()
    b = switch.ends["b"]
    b.recv("a", step="s", max_bytes=1)
    began = time.monotonic()
    with pytest.raises(PeerLost, match="party a is gone in step 't': it had ended its part"):
        b.recv("a", step="t", max_bytes=1)
    assert time.monotonic() - began < 5


def test_a_party_whose_line_stays_cut_is_given_up_by_name():
    switch = Switch(["a", "b"], timeout=30).join()
    switch.ends["a"].send("b", b"x", step="s")
    switch.ends["b"].recv("a", step="s", max_bytes=1)
    switch.cut("a", grace=0.3)
    with pytest.raises(PeerLost, match="party a is gone in step 't': its connection is lost"):
        switch.ends["b"].recv("a", step="t", max_bytes=1)


def test_a_message_longer_than_the_step_takes_is_refused_before_it_is_read():
    switch = Switch(["a", "b"], timeout=2).join()
    ends = switch.ends
    results = run_all(
        {
            "a": lambda: say(ends["a"], "b", [bytes(5 * PIECE)]),
            "b": lambda: hear(ends["b"], "a", 1, max_bytes=PIECE),
        }
    )
    assert isinstance(results["b"], BadFrame)
    assert f"at most {PIECE}" in str(results["b"])
    assert isinstance(results["a"], PeerLost)


def test_whoever_waits_for_anybody_gets_the_one_that_spoke():
    switch = Switch(["a", "b", "c"]).join()
    assert switch.ends["a"].wait_any(timeout=0.05) is None
    switch.ends["c"].send("a", b"x", step="s")
    assert switch.ends["a"].wait_any(timeout=5) == "c"


def test_two_parties_that_lost_each_others_place_hear_which_step_it_was():
    switch = Switch(["a", "b"], timeout=2).join()
    switch.ends["a"].send("b", b"x", step="masked ids")
    with pytest.raises(BadFrame, match="in step 'sizes': a message of step 'masked ids'"):
        switch.ends["b"].recv("a", step="sizes", max_bytes=1)
