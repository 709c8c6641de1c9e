"""Party programs at work over channels in memory, with an ear on every message and a hand that can change it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel, mesh

Program = Callable[[Channel], Any]
Fault = Callable[[str, str, str, bytes], bytes]


@dataclass(frozen=True)
class Said:
    """A message as it was sent."""

    sender: str
    to: str
    step: str
    data: bytes

    @property
    def outline(self) -> tuple[str, str, str, int]:
        """All but the content."""
        return self.sender, self.to, self.step, len(self.data)


@dataclass
class Session:
    """What came of it.

    results : what each program returned, or the exception that ended it. said : all messages in the order sent.
    """

    results: dict[str, Any] = field(default_factory=dict)
    said: list[Said] = field(default_factory=list)

    def result(self, name: str) -> Any:
        """Of a program that must not have failed."""
        outcome = self.results[name]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def heard_by(self, name: str) -> list[Said]:
        """What a party got, sender by sender."""
        return sorted((m for m in self.said if m.to == name), key=lambda m: m.sender)


def converse(programs: Mapping[str, Program], *, fault: Fault | None = None, timeout: float = 30.0) -> Session:
    """Run all programs, a thread of its name each, until all have ended."""
    session, lock, ends = Session(), threading.Lock(), mesh(list(programs), timeout=timeout)

    def tap(name: str) -> None:
        deliver = ends[name]._send

        def send(to: str, parts: Any, step: str) -> None:
            data = b"".join(parts)
            data = fault(name, to, step, data) if fault else data
            with lock:
                session.said.append(Said(name, to, step, data))
            deliver(to, [memoryview(data)], step)

        ends[name]._send = send

    def work(name: str, program: Program) -> None:
        try:
            session.results[name] = program(ends[name])
        except Exception as error:
            session.results[name] = error
        finally:
            ends[name].close()

    for name in programs:
        tap(name)
    threads = [threading.Thread(target=work, args=item, name=item[0]) for item in programs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return session


def hashed(ids: Iterable[Any]) -> NDArray[np.uint8]:
    """Items for a protocol: (n, 32) uint8."""
    digests = b"".join(hashlib.sha256(repr(one).encode()).digest() for one in ids)
    return np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32)
