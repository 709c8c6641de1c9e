"""Long messages in parts, and work in order."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from fl_core.errors import BadFrame
from fl_core.protocols import stream
from fl_core.protocols.stream import in_order, recv_bytes, send_bytes
from tests.fl_core.protocols.parties import converse


@pytest.mark.parametrize("shape", [(0, 7), (1, 1), (3, 7), (4, 10), (41, 1)])
def test_an_array_arrives_whole(shape, monkeypatch):
    monkeypatch.setattr(stream, "PART_BYTES", 10)
    data = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    session = converse(
        {
            "a": lambda channel: send_bytes(channel, "b", data, step="s"),
            "b": lambda channel: recv_bytes(channel, "a", *shape, step="s"),
        }
    )
    assert (session.result("b") == data).all() and session.result("b").shape == shape
    assert max([len(said.data) for said in session.said], default=0) <= 10


def test_a_view_that_is_not_contiguous_is_sent_as_it_looks():
    data = np.arange(20, dtype=np.uint8).reshape(4, 5)[::2, ::2]
    session = converse(
        {
            "a": lambda channel: send_bytes(channel, "b", data, step="s"),
            "b": lambda channel: recv_bytes(channel, "a", 2, 3, step="s"),
        }
    )
    assert session.result("b").tolist() == [[0, 2, 4], [10, 12, 14]]


def test_a_list_of_another_length_is_refused():
    session = converse(
        {
            "a": lambda channel: send_bytes(channel, "b", np.zeros(12, np.uint8), step="s"),
            "b": lambda channel: recv_bytes(channel, "a", 11, step="s"),
        }
    )
    assert isinstance(session.results["b"], BadFrame)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_order_and_few_inputs_are_taken_ahead(threads):
    taken, lock = [], threading.Lock()

    def inputs():
        for number in range(40):
            taken.append(number)
            yield number

    ahead = []
    for place, result in enumerate(in_order(lambda x: x * x, inputs(), threads)):
        with lock:
            ahead.append(len(taken) - place)
        assert result == place * place
    assert len(ahead) == 40 and max(ahead) <= threads + 1


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_a_thread_comes_out(threads):
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda x: 1 // x, [1, 0, 1], threads))
