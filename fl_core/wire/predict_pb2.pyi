from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ("statement",)
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    statement: bytes
    def __init__(self, statement: _Optional[bytes] = ...) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("card", "log", "models")
    CARD_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    card: bytes
    log: str
    models: str
    def __init__(self, card: _Optional[bytes] = ..., log: _Optional[str] = ..., models: _Optional[str] = ...) -> None: ...

class ContextRequest(_message.Message):
    __slots__ = ("statement", "part")
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    statement: bytes
    part: bytes
    def __init__(self, statement: _Optional[bytes] = ..., part: _Optional[bytes] = ...) -> None: ...

class ContextReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("statement", "ciphertext")
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXT_FIELD_NUMBER: _ClassVar[int]
    statement: bytes
    ciphertext: bytes
    def __init__(self, statement: _Optional[bytes] = ..., ciphertext: _Optional[bytes] = ...) -> None: ...

class PredictReply(_message.Message):
    __slots__ = ("answers", "receipt")
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedScalarFieldContainer[bytes]
    receipt: bytes
    def __init__(self, answers: _Optional[_Iterable[bytes]] = ..., receipt: _Optional[bytes] = ...) -> None: ...
