"""What happened at the door since the start: Prometheus metrics, and the same in figures for the owner's page.

Counts, times, names of clients and models; of the rows nothing.  Only known clients get a label of their own, all
others share the empty one, so that strangers cannot make series without end.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

LATEST = 1000  # blocks of a model that its percentiles are of
MINUTES = 60
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True)
class Latency:
    """A model's blocks: how many since the start, seconds of the latest, rows a minute, the present minute last."""

    blocks: int
    p50: float
    p95: float
    p99: float
    minutes: tuple[int, ...]


@dataclass
class Seen:
    """Of one client since the start; `last`, the latest call, and `served` are in seconds since 1970, 0 for never."""

    rows: int = 0
    blocks: int = 0
    refusals: int = 0
    last: float = 0.0
    served: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """All of it at one moment; `refusals` are by code and client, which is empty where it is not known."""

    since: float
    now: float
    served: float
    latency: dict[str, Latency]
    clients: dict[str, Seen]
    refusals: dict[tuple[str, str], int]


@dataclass
class _Model:
    blocks: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=LATEST))
    minutes: dict[int, int] = field(default_factory=dict)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The least value that at least this share of all, 0 < share <= 1, do not exceed (nearest rank)."""
    return ordered[max(math.ceil(share * len(ordered) - 1e-9), 1) - 1]


class Metrics:
    """The door's `Watcher`; safe to use from several threads.

    Parameters
    ----------
    clients : names of those that may call; looked at with each call, so it may change.
    clock : seconds since 1970.
    """

    def __init__(self, clients: Collection[str], *, clock: Callable[[], float] = time.time) -> None:
        self._known, self._clock, self._lock = clients, clock, threading.Lock()
        self.rows = self.refusals = 0
        self._since, self._last = clock(), 0.0
        self._models: dict[str, _Model] = {}
        self._clients: dict[str, Seen] = {}
        self._refusals: dict[tuple[str, str], int] = {}
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        who = ("client", "model", "version")
        self._rows_total = Counter("fedseal_rows", "Rows answered.", who, registry=self.registry)
        self._blocks_total = Counter("fedseal_blocks", "Blocks answered.", who, registry=self.registry)
        self._refusals_total = Counter(
            "fedseal_refusals", "Calls refused or failed.", ("client", "code"), registry=self.registry
        )
        self._block_seconds = Histogram(
            "fedseal_block_seconds", "From a block's request to its answer.", ("model",),
            buckets=_BUCKETS, registry=self.registry,
        )  # fmt: skip

    def served(self, *, client: str, model: str, version: str, rows: int, seconds: float) -> None:
        """See `Watcher`."""
        client, now = self._label(client), self._clock()
        self._rows_total.labels(client, model, version).inc(rows)
        self._blocks_total.labels(client, model, version).inc()
        self._block_seconds.labels(model).observe(seconds)
        minute = int(now // 60)
        with self._lock:
            self.rows += rows
            self._last = now
            seen = self._clients.setdefault(client, Seen())
            seen.rows, seen.blocks, seen.last, seen.served = seen.rows + rows, seen.blocks + 1, now, now
            found = self._models.setdefault(model, _Model())
            found.blocks += 1
            found.seconds.append(seconds)
            found.minutes[minute] = found.minutes.get(minute, 0) + rows
            for old in [m for m in found.minutes if m <= minute - MINUTES]:
                del found.minutes[old]

    def refused(self, *, client: str, code: str) -> None:
        """See `Watcher`."""
        client, now = self._label(client), self._clock()
        self._refusals_total.labels(client, code).inc()
        with self._lock:
            self.refusals += 1
            self._refusals[code, client] = self._refusals.get((code, client), 0) + 1
            if client:
                seen = self._clients.setdefault(client, Seen())
                seen.refusals, seen.last = seen.refusals + 1, now

    def _label(self, client: str) -> str:
        return client if client in self._known else ""

    def observe(
        self,
        *,
        models: Callable[[], Iterable[tuple[str, str]]],
        rows_today: Callable[[str], int],
        rows_a_day: int,
    ) -> None:
        """Add gauges of what others know: models as (name, version), a client's rows since midnight UTC, its quota."""
        self.registry.register(_State(self._known, models, rows_today, rows_a_day))

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)

    def snapshot(self) -> Snapshot:
        """The figures at this moment."""
        now = self._clock()
        with self._lock:
            latency = {name: _latency(model, int(now // 60)) for name, model in sorted(self._models.items())}
            clients = {name: replace(seen) for name, seen in self._clients.items()}
            return Snapshot(self._since, now, self._last, latency, clients, dict(self._refusals))


def _latency(model: _Model, minute: int) -> Latency:
    ordered = sorted(model.seconds)
    shown = tuple(model.minutes.get(m, 0) for m in range(minute - MINUTES + 1, minute + 1))
    p50, p95, p99 = (percentile(ordered, share) for share in (0.5, 0.95, 0.99))
    return Latency(model.blocks, p50, p95, p99, shown)


class _State(Collector):
    """Gauges that are asked for when somebody looks."""

    def __init__(
        self,
        clients: Collection[str],
        models: Callable[[], Iterable[tuple[str, str]]],
        rows_today: Callable[[str], int],
        rows_a_day: int,
    ) -> None:
        self._clients, self._models, self._rows_today, self._rows_a_day = clients, models, rows_today, rows_a_day

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing: names do not change, and values are not there yet."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges."""
        models = list(self._models())
        yield GaugeMetricFamily("fedseal_models", "Models that are served.", value=len(models))
        yield GaugeMetricFamily("fedseal_clients", "Clients that may ask.", value=len(self._clients))
        yield GaugeMetricFamily("fedseal_client_rows_a_day", "What each client may have.", value=self._rows_a_day)
        shown = GaugeMetricFamily("fedseal_model", "A model that is served.", labels=("model", "version"))
        for name, version in models:
            shown.add_metric((name, version), 1)
        yield shown
        today = GaugeMetricFamily("fedseal_client_rows_today", "Rows since midnight UTC.", labels=("client",))
        for name in sorted(self._clients):
            today.add_metric((name,), self._rows_today(name))
        yield today
