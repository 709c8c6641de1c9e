"""Messages as bytes: the short way gives what Flower's own serialiser gives."""

from __future__ import annotations

import gc
import weakref

import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import message_to_proto
from flwr.supercore.task_identity import TaskIdentity

from server.runtimes.wire import from_bytes, to_bytes


@pytest.fixture(autouse=True)
def identity():
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def message(content: RecordDict) -> Message:
    return Message(content, 2, "train.round", ttl=60.0, group_id="3")


def packet(**arrays: bytes) -> ArrayRecord:
    return ArrayRecord({k: Array("uint8", (len(v),), "bytes", v) for k, v in arrays.items()})


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({"packet": packet(head=b"{}", sum=bytes(100_000))}),
        RecordDict({"packet": packet(empty=b""), "other": packet()}),
        RecordDict({"packet": MetricRecord({"a": 1.5})}),
        RecordDict(),
    ],
)
def test_bytes_are_those_of_flower(content):
    sent = message(content)
    assert to_bytes(sent) == message_to_proto(sent).SerializeToString()
    assert from_bytes(to_bytes(sent)).content == content


def test_an_error_reply_survives():
    error = Message(Error(8, "died"), reply_to=message(RecordDict()))
    assert from_bytes(to_bytes(error)).error.code == 8


def test_a_parsed_message_is_freed_without_the_collector():
    """A cycle would keep every blob until the next full collection: memory would grow with the number of parties."""
    got = from_bytes(to_bytes(message(RecordDict({"packet": packet(sum=b"x")}))))
    assert got.content["packet"]["sum"].data == b"x"
    record = weakref.ref(got.content["packet"])
    gc.disable()
    try:
        del got
        assert record() is None
    finally:
        gc.enable()
