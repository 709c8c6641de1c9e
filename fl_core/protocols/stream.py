"""Long messages of a known size in parts, and work on them in order by several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel

PART_BYTES = 1 << 20
_In = TypeVar("_In")
_Out = TypeVar("_Out")


def send_bytes(channel: Channel, to: str, data: NDArray[np.uint8], *, step: str) -> None:
    """Send an array's bytes in messages of 1 MiB."""
    flat = data.reshape(-1)
    for start in range(0, flat.size, PART_BYTES):
        channel.send(to, np.ascontiguousarray(flat[start : start + PART_BYTES]), step=step)


def recv_bytes(
    channel: Channel, source: str, *shape: int, step: str, timeout: float | None = None
) -> NDArray[np.uint8]:
    """What `send_bytes` sends, when both know its shape.

    Parameters
    ----------
    timeout : seconds to wait for the first part.

    Raises
    ------
    BadFrame : a part of another size.
    """
    data = np.empty(shape, dtype=np.uint8)
    flat = data.reshape(-1)
    for start in range(0, flat.size, PART_BYTES):
        part = flat[start : start + PART_BYTES]
        message = channel.recv_exactly(source, step=step, size=part.size, timeout=None if start else timeout)
        part[:] = np.frombuffer(message, dtype=np.uint8)
    return data


def in_order(work: Callable[[_In], _Out], inputs: Iterable[_In], threads: int) -> Iterator[_Out]:
    """`map` by several threads: results in order, at most `threads` + 1 inputs taken and not yet given back."""
    if threads <= 1:
        yield from map(work, inputs)
        return
    with ThreadPoolExecutor(threads) as pool:
        running: deque[Future[_Out]] = deque()
        for item in inputs:
            running.append(pool.submit(work, item))
            if len(running) > threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
