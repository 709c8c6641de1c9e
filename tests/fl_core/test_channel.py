"""Channels in memory: what every channel promises to a party program."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from fl_core.channel import Transcript, mesh
from fl_core.errors import BadFrame, PeerLost, PeerTimeout


def test_messages_of_a_peer_come_whole_and_in_order():
    ends = mesh(["a", "b", "c"])
    ends["a"].send("b", b"one", np.arange(3, dtype="<u2"), step="s")
    ends["c"].send("b", b"between", step="s")
    ends["a"].send("b", b"", step="t")
    assert ends["b"].recv("a", step="s", max_bytes=9) == b"one\x00\x00\x01\x00\x02\x00"
    assert ends["b"].recv("a", step="t", max_bytes=0) == b""
    assert ends["b"].recv("c", step="s", max_bytes=9) == b"between"
    assert (ends["a"].traffic["b"].sent, ends["b"].traffic["a"].received, ends["b"].traffic["c"].received) == (9, 9, 7)


@pytest.mark.parametrize(("step", "limit"), [("other", 100), ("s", 4)])
def test_a_message_that_the_step_does_not_take_is_refused_by_name(step, limit):
    ends = mesh(["a", "b"])
    ends["a"].send("b", b"12345", step="s")
    with pytest.raises(BadFrame, match="party a in step"):
        ends["b"].recv("a", step=step, max_bytes=limit)


def test_a_message_of_the_wrong_size_is_refused():
    ends = mesh(["a", "b"])
    ends["a"].send("b", b"123", step="s")
    with pytest.raises(BadFrame, match="3 bytes instead of 4"):
        ends["b"].recv_exactly("a", step="s", size=4)


def test_a_wait_for_a_silent_peer_ends_and_names_it():
    ends = mesh(["a", "b"])
    with pytest.raises(PeerTimeout, match=r"waited 0.05 s for party a in step 's'"):
        ends["b"].recv("a", step="s", max_bytes=1, timeout=0.05)


def test_a_peer_that_left_is_noticed_at_once_but_its_last_message_still_counts():
    ends = mesh(["a", "b"])
    ends["a"].send("b", b"last", step="s")
    threading.Timer(0.05, ends["a"].close).start()
    assert ends["b"].recv("a", step="s", max_bytes=4) == b"last"
    with pytest.raises(PeerLost, match="party a is gone in step 't'"):
        ends["b"].recv("a", step="t", max_bytes=4, timeout=30)


def test_both_ends_have_one_transcript_and_any_difference_shows():
    ends = mesh(["a", "b"])
    for data in (b"x", b"yz"):
        ends["a"].send("b", data, step="s")
    ends["b"].send("a", b"w", step="s")
    ends["b"].recv("a", step="s", max_bytes=9)
    assert ends["a"].transcript("b") != ends["b"].transcript("a")
    ends["b"].recv("a", step="s", max_bytes=9)
    ends["a"].recv("b", step="s", max_bytes=9)
    assert ends["a"].transcript("b") == ends["b"].transcript("a")


def test_a_transcript_tells_pieces_and_directions_apart():
    digests = set()
    for pieces in ([("a", b"xy")], [("a", b"x"), ("a", b"y")], [("b", b"xy")], []):
        transcript = Transcript("a", "b")
        for sender, data in pieces:
            transcript.add(sender, data)
        digests.add(transcript.hexdigest())
    assert len(digests) == 4
