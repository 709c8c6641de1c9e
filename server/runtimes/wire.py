"""A Flower message as bytes and back: what Flower's serde makes, without its six copies of every array."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, Message
from flwr.common.serde import message_from_proto, message_to_proto, metadata_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage


def to_bytes(message: Message) -> bytes:
    """Serialise; the same bytes as `message_to_proto(message).SerializeToString()`."""
    records = dict(message.content) if message.has_content() else {}
    arrays = {key: dict[str, Array](r) for key, r in records.items() if isinstance(r, ArrayRecord)}
    if not records or len(arrays) < len(records):  # an error, or records we do not send
        return bytes(message_to_proto(message).SerializeToString())
    proto = ProtoMessage(metadata=metadata_to_proto(message.metadata))
    for key, record in arrays.items():
        item = proto.content.items.add(key=key)
        item.array_record.SetInParent()
        for name, array in record.items():
            value = item.array_record.items.add(key=name).value
            value.dtype, value.stype, value.data = array.dtype, array.stype, array.data
            value.shape.extend(array.shape)
    return bytes(proto.SerializeToString())


def from_bytes(data: bytes) -> Message:
    """Parse what `to_bytes` wrote."""
    return message_from_proto(ProtoMessage.FromString(data))
