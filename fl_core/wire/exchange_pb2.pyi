from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("sender", "to", "kind", "epoch", "number", "body")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        NOTICE: _ClassVar[Frame.Kind]
        HELLO: _ClassVar[Frame.Kind]
        DATA: _ClassVar[Frame.Kind]
        BYE: _ClassVar[Frame.Kind]
        CONTROL: _ClassVar[Frame.Kind]
    NOTICE: Frame.Kind
    HELLO: Frame.Kind
    DATA: Frame.Kind
    BYE: Frame.Kind
    CONTROL: Frame.Kind
    SENDER_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    sender: str
    to: str
    kind: Frame.Kind
    epoch: int
    number: int
    body: bytes
    def __init__(self, sender: _Optional[str] = ..., to: _Optional[str] = ..., kind: _Optional[_Union[Frame.Kind, str]] = ..., epoch: _Optional[int] = ..., number: _Optional[int] = ..., body: _Optional[bytes] = ...) -> None: ...

class Notice(_message.Message):
    __slots__ = ("what", "peer")
    class What(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        HERE: _ClassVar[Notice.What]
        LEFT: _ClassVar[Notice.What]
        GONE: _ClassVar[Notice.What]
    HERE: Notice.What
    LEFT: Notice.What
    GONE: Notice.What
    WHAT_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    what: Notice.What
    peer: str
    def __init__(self, what: _Optional[_Union[Notice.What, str]] = ..., peer: _Optional[str] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("key", "signature")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    signature: bytes
    def __init__(self, key: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Control(_message.Message):
    __slots__ = ("ack", "resume", "abort")
    class Ack(_message.Message):
        __slots__ = ("read",)
        READ_FIELD_NUMBER: _ClassVar[int]
        read: int
        def __init__(self, read: _Optional[int] = ...) -> None: ...
    class Resume(_message.Message):
        __slots__ = ("epoch", "next")
        EPOCH_FIELD_NUMBER: _ClassVar[int]
        NEXT_FIELD_NUMBER: _ClassVar[int]
        epoch: int
        next: int
        def __init__(self, epoch: _Optional[int] = ..., next: _Optional[int] = ...) -> None: ...
    class Abort(_message.Message):
        __slots__ = ("code", "step")
        CODE_FIELD_NUMBER: _ClassVar[int]
        STEP_FIELD_NUMBER: _ClassVar[int]
        code: str
        step: str
        def __init__(self, code: _Optional[str] = ..., step: _Optional[str] = ...) -> None: ...
    ACK_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    ack: Control.Ack
    resume: Control.Resume
    abort: Control.Abort
    def __init__(self, ack: _Optional[_Union[Control.Ack, _Mapping]] = ..., resume: _Optional[_Union[Control.Resume, _Mapping]] = ..., abort: _Optional[_Union[Control.Abort, _Mapping]] = ...) -> None: ...
