"""Places for work at the door, and what happens to calls that find none.

They wait in a queue, first come, first served, as long as what is served in a quarter of a second: a burst causes no
second tries.  Calls beyond are laid aside, unread and without a thread, and go on where there is room again: in order
while they are few, else the newest, which have the longest until their deadlines.  The others are turned away after a
time, with a hint when to come again.  Both times grow with the load: even who heeds no hint does not come often, and to
let a call lie costs little.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from fl_core.errors import JobFailed

ROOM = 128  # calls that wait; one client has half as many under way at most
QUEUE_SECONDS = 0.5
ASIDE = 1024  # calls laid aside
BUSY_SECONDS = 0.5  # the least time laid aside, and the least hint
LONGEST_SECONDS = 4.0  # clients give up where they are told to wait for more than five
_HALF_LIFE, _FEW = 2.0, 8.0  # seconds that counts are halved in, and counts that tell little
_RECENT, _RECENT_SECONDS = 16, 10.0


class Busy(JobFailed):
    """All places are taken, or will be for as long as the caller waits; `wait` is in seconds."""

    code = "busy"

    def __init__(self, wait: float) -> None:
        super().__init__("all places are taken; come again")
        self.wait = wait


class Places:
    """Safe to use from several threads.

    Parameters
    ----------
    capacity : calls at work. room, patience : the most calls that wait, and how many seconds.
    """

    def __init__(
        self,
        capacity: int,
        *,
        room: int = ROOM,
        patience: float = QUEUE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._capacity, self._room = capacity, room
        self._free, self._patience, self._clock = capacity, patience, clock
        self._queue: deque[threading.Event] = deque()  # set with the lock held, once a place is its own
        self._of: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._taken: dict[str, deque[tuple[float, float]]] = {}
        self._refused = self._served = 0.0
        self._limit = self._length()
        self.on_room: list[Callable[[], bool]] = []  # lets another call on, and says whether there was one
        self._faded = clock()

    @property
    def waiting(self) -> int:
        """Calls in the queue."""
        return len(self._queue)

    @property
    def full(self) -> bool:
        """Whether a call that comes now is laid aside."""
        return len(self._queue) >= self._limit

    @property
    def limit(self) -> int:
        """Calls that the queue holds, as fast as they are served now."""
        return self._limit

    def check(self) -> None:
        """Raise `Busy` on the thread that turns away: before anything of a call is looked at."""
        if _thread.turns_away:
            with self._lock:
                raise Busy(self._long() * random.uniform(1.0, 1.25))  # noqa: S311

    def lay_aside(self) -> float:
        """For how many seconds to lay a call aside."""
        with self._lock:
            self._fade()
            self._refused += 1
            return self._long()

    def enter(self, who: str) -> None:
        """Count a known client's call until `leave`; raises `Busy` where it has too many under way."""
        with self._lock:
            if self._of[who] >= max(self._room // 2, 1):
                raise self._busy()
            self._of[who] += 1

    def leave(self, who: str) -> None:
        """The call has ended."""
        with self._lock:
            self._of[who] -= 1
            if not self._of[who]:
                del self._of[who]

    @contextmanager
    def one(self, work: str = "", *, left: float | None = None) -> Iterator[None]:
        """A place, for the time of the block.

        Parameters
        ----------
        work : calls of one name take about as long.
        left : seconds until the caller's deadline; a call that even the fastest of late would not meet gets no place.

        Raises
        ------
        Busy : none in time.
        """
        self._take(work, left)
        began, done = self._clock(), False
        try:
            yield
            done = True
        finally:
            self._give(work, self._clock() - began if done else None)

    def _take(self, work: str, left: float | None) -> None:
        with self._lock:
            wait = self._patience if left is None else min(self._patience, left - self._least(work))
            if wait < 0:
                raise self._busy()
            if self._free:
                self._free -= 1
                return
            if len(self._queue) >= self._room:
                raise self._busy()
            turn = threading.Event()
            self._queue.append(turn)
        turn.wait(wait)
        with self._lock:
            if not turn.is_set():
                self._queue.remove(turn)
                raise self._busy()

    def _give(self, work: str, seconds: float | None) -> None:
        """Hand a place to who waits longest."""
        with self._lock:
            if seconds is not None:
                self._taken.setdefault(work, deque(maxlen=_RECENT)).append((self._clock(), seconds))
                self._fade()
                self._served += 1
                self._limit = self._length()
            if self._queue:
                self._queue.popleft().set()
            else:
                self._free += 1
            room = len(self._queue) < self._limit
        if room:
            any(let_on() for let_on in self.on_room)

    def _length(self) -> int:
        """Of the queue: what is served in half the time that one waits, so that few wait for nothing."""
        served = self._served * math.log(2) / _HALF_LIFE * self._patience / 2
        return min(max(2 * self._capacity, round(served)), self._room)

    def _least(self, work: str) -> float:
        """Seconds of the fastest of late; 0 where there was none, so that a slow spell does not keep all out."""
        since = self._clock() - _RECENT_SECONDS
        return min((seconds for at, seconds in self._taken.get(work, ()) if at > since), default=0.0)

    def _busy(self) -> Busy:
        self._fade()
        self._refused += 1
        return Busy(self._long() * random.uniform(1.0, 1.25))  # noqa: S311

    def _long(self) -> float:
        """Seconds: by the cube of how many times more calls find no place than are served."""
        load = (self._refused + _FEW) / (self._served + _FEW)
        return min(BUSY_SECONDS * max(load, 1.0) ** 3, LONGEST_SECONDS)

    def _fade(self) -> None:
        now = self._clock()
        share = 0.5 ** ((now - self._faded) / _HALF_LIFE)
        self._faded, self._refused, self._served = now, self._refused * share, self._served * share


def _ended(future: Future[Any], begun: Future[Any]) -> None:
    future.set_result(None)


class _Thread(threading.local):
    turns_away = False


_thread = _Thread()


class Pool(ThreadPoolExecutor):
    """Threads for calls that begin with `Places.check`; those that find no room are laid aside, `most` of them.

    One thread turns all of them away, which is why nothing may come before the check.
    """

    def __init__(self, threads: int, places: Places, *, most: int = ASIDE) -> None:
        super().__init__(threads, thread_name_prefix="serving")
        self._places, self._most = places, most
        self._aside: deque[tuple[float, Future[Any], Callable[[], Any]]] = deque()
        self._some, self._ended = threading.Condition(), False
        self._later = threading.Thread(target=self._turn_away, name="aside", daemon=True)
        places.on_room.append(self._let_on)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Begin a call, now or later."""
        if len(self._aside) >= self._most or not self._places.full:
            return super().submit(fn, *args, **kwargs)
        future: Future[Any] = Future()
        at = time.monotonic() + self._places.lay_aside()
        with self._some:
            self._aside.append((at, future, partial(fn, *args, **kwargs)))
            if not self._later.is_alive():
                self._later.start()
            if len(self._aside) == 1:
                self._some.notify()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Begin no more calls."""
        with self._some:
            self._ended = True
            self._some.notify()
        super().shutdown(wait, cancel_futures=cancel_futures)

    def _let_on(self) -> bool:
        """Begin one of those laid aside, and another: it may have gone."""
        with self._some:
            take = self._aside.popleft if len(self._aside) <= self._places.limit else self._aside.pop
            taken = [take() for _ in range(min(2, len(self._aside)))]
        for _, future, call in taken:
            try:
                super().submit(call).add_done_callback(partial(_ended, future))
            except RuntimeError:  # the pool has ended, and with it the server
                return False
        return bool(taken)

    def _turn_away(self) -> None:
        """Those laid aside whose time has passed."""
        _thread.turns_away = True
        while True:
            with self._some:
                self._some.wait_for(lambda: self._aside or self._ended)
                if self._ended:
                    return
                early = self._aside[0][0] - time.monotonic()
                _, future, call = self._aside.popleft() if early <= 0 else (0.0, None, None)
            if call is None or future is None:
                time.sleep(min(early, BUSY_SECONDS))  # those that come next may have a shorter time
                continue
            call()
            future.set_result(None)
