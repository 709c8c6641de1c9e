from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

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

class Ciphertexts(_message.Message):
    __slots__ = ("ciphertexts",)
    CIPHERTEXTS_FIELD_NUMBER: _ClassVar[int]
    ciphertexts: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, ciphertexts: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("statement", "ids", "asked")
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    statement: bytes
    ids: bytes
    asked: Ciphertexts
    def __init__(self, statement: _Optional[bytes] = ..., ids: _Optional[bytes] = ..., asked: _Optional[_Union[Ciphertexts, _Mapping]] = ...) -> None: ...

class ScoreReply(_message.Message):
    __slots__ = ("found", "answers", "receipt")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    found: bytes
    answers: _containers.RepeatedCompositeFieldContainer[Ciphertexts]
    receipt: bytes
    def __init__(self, found: _Optional[bytes] = ..., answers: _Optional[_Iterable[_Union[Ciphertexts, _Mapping]]] = ..., receipt: _Optional[bytes] = ...) -> None: ...
