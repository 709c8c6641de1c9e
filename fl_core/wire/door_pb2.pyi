from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar

from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from google.protobuf.internal import containers as _containers

DESCRIPTOR: _descriptor.FileDescriptor

class SubmitRequest(_message.Message):
    __slots__ = ("job", "resume", "version")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    version: str
    job: str
    resume: bool
    def __init__(
        self, version: str | None = ..., job: str | None = ..., resume: bool | None = ...
    ) -> None: ...

class SubmitReply(_message.Message):
    __slots__ = ("digest", "events", "run")
    RUN_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    run: str
    digest: str
    events: int
    def __init__(
        self, run: str | None = ..., digest: str | None = ..., events: int | None = ...
    ) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("after", "run")
    RUN_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    run: str
    after: int
    def __init__(self, run: str | None = ..., after: int | None = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("facts", "kind", "number", "round", "time")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    number: int
    kind: str
    round: int
    facts: str
    time: float
    def __init__(
        self,
        number: int | None = ...,
        kind: str | None = ...,
        round: int | None = ...,
        facts: str | None = ...,
        time: float | None = ...,
    ) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: str | None = ...) -> None: ...

class StopReply(_message.Message):
    __slots__ = ("run", "status")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    run: str
    status: str
    def __init__(self, run: str | None = ..., status: str | None = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListReply(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, runs: _Iterable[str] | None = ...) -> None: ...

class LogsRequest(_message.Message):
    __slots__ = ("follow", "offset", "run")
    RUN_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    run: str
    offset: int
    follow: bool
    def __init__(
        self, run: str | None = ..., offset: int | None = ..., follow: bool | None = ...
    ) -> None: ...

class LogChunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: bytes | None = ...) -> None: ...
