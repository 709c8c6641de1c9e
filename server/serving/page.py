"""The page of `fedseal serve` for the model's owner: models, speed, clients, refusals, receipts.  Nothing of any row.

`/` is for people, `/metrics` for Prometheus, `/health` for whoever restarts things.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from fl_core.serving import Offer
from fl_core.trust.ledger import Ledger
from server.serving.door import Client, Door
from server.serving.metrics import LATEST, Metrics, Seen, Snapshot
from server.serving.page_template import BODY
from server.serving.usage import Usage, Used
from server.web.html import page, size
from server.web.site import Site

if TYPE_CHECKING:
    from fl_core.protocols.prediction.online import VerticalOffer

REFRESH_SECONDS = 10
HURRY_SECONDS = 2  # while entries of the ledger are still to be added
READ_SECONDS = 0.5  # that one look at the page may spend on them
WAITING = 500
CAUSES = {
    "quota": "more rows a day, or requests a second, than a client may have",
    "busy": "all places were taken for too long; a client comes again by itself",
    "gone": "the client went away before its turn came",
    "context": "the client's public key was not here; a client sends it and comes again by itself",
    "refused": "not a client here, or a client whose time has ended",
    "signature": "signed by somebody else than the client it names",
    "message": "altered, repeated, too late, for another server or version, or not what was announced",
    "internal": "the client went away in the middle, or an error of this server, then its output says more",
    "failed": "this server could not do its part",
    "usage": "a request that the model cannot answer",
    "job": "a wrong setting of this server",
    "data": "this server's own data cannot be used",
    "budget": "the privacy budget of a party's data is spent",
    "paused": "a party of the model takes no work at present",
    "timeout": "another party of the model did not answer in time",
    "lost": "another party of the model is gone",
    "exchange": "the way to the other parties of the model is gone",
    "diverged": "values beyond what the encryption holds",
    "integrity": "something received must not be trusted",
    "frame": "another party of the model sent something else than announced",
    "key": "a ciphertext or card under another key",
    "ledger": "the accounts or the ledger are damaged",
    "fork": "the ledger has two histories",
}


@dataclass(frozen=True)
class Model:
    """What is shown of a model; takes, gives : what a client sends and gets, in words."""

    name: str
    version: str
    kind: str
    takes: str
    gives: str
    classes: tuple[str, ...] = ()
    parameters: str = ""

    @classmethod
    def of(cls, offer: Offer) -> Model:
        """Of one whose rows come encrypted."""
        kind = f"network {'-'.join(map(str, offer.layers))}" if offer.layers else "linear"
        takes, gives = f"{offer.features:,} features", "labels only" if offer.labels else "scores"
        return cls(offer.name, offer.version, kind, takes, gives, offer.classes, offer.parameters)

    @classmethod
    def of_part(cls, offer: VerticalOffer, rows: int) -> Model:
        """Of a part of a vertical model, asked by ids of these rows."""
        kind = f"part of run {offer.run}, {offer.algorithm}"
        return cls(offer.name, offer.version, kind, f"ids of {rows:,} rows", "parts of scores")


@dataclass(frozen=True)
class Owner:
    """What stays as it is while serving.

    address : that is listened on. hosts : in the certificate. authority : file for clients, empty where it is not ours.
    certificate_end : seconds since 1970. fingerprint : of the owner's card. ledger : file of receipts.
    capacity : blocks at a time.
    """

    name: str
    address: str
    hosts: tuple[str, ...]
    authority: str
    certificate_end: float
    fingerprint: str
    ledger: str
    capacity: int


class Page:
    """The page's content.

    Parameters
    ----------
    models, notes : at the moment; notes are sentences without a full stop, of what the owner should know.
    """

    def __init__(
        self,
        door: Door,
        ledger: Ledger,
        metrics: Metrics,
        owner: Owner,
        *,
        models: Callable[[], Sequence[Model]],
        notes: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._door, self._ledger, self._metrics, self._owner = door, ledger, metrics, owner
        self._models, self._notes, self._usage = models, notes, Usage(ledger)
        self.stopping = False  # of the service: `/health` answers 503 then
        self._site: Site | None = None
        metrics.observe(
            models=lambda: [(model.name, model.version) for model in models()],
            rows_today=door.accounts.rows_today,
            rows_a_day=door.quota.rows_a_day,
        )

    def open(self, address: tuple[str, int], say: Callable[[str], None]) -> str:
        """Listen, say where, and return the page's URL.  Raises `JobFailed` where the address is taken."""
        routes = [Route("/", self._page), Route("/metrics", self._text), Route("/health", self._health)]
        self._site = Site(routes, address, names=self._owner.hosts)
        say(f"page: {self._site.url}")
        if not self._site.loopback:
            say("note: the page has no login; its names, counts and times are for whoever reaches that address")
        return self._site.url

    def close(self) -> None:
        """Listen no more."""
        if self._site:
            self._site.stop()

    def facts(self) -> dict[str, Any]:
        """Everything the template takes."""
        seen = self._metrics.snapshot()
        behind, used = self._usage.read(READ_SECONDS), self._usage.lines()
        ever: dict[str, int] = {}
        for line in used:
            ever[line.client] = ever.get(line.client, 0) + line.rows
        clients = [self._client(name, seen, ever) for name in sorted(self._door.clients)]
        return {
            "owner": self._owner,
            "stopping": self.stopping,
            "now": seen.now,
            "since": seen.since,
            "served": seen.served,
            "tiles": self._tiles(seen, used, "so far" if behind else "in all"),
            "notes": list(self._notes()),
            "models": list(self._models()),
            "latency": seen.latency,
            "latest": LATEST,
            "clients": clients,
            "quota": self._door.quota,
            "behind": behind,
            "used": used,
            "refusals": _refusals(seen),
        }

    def html(self) -> str:
        """For people."""
        facts = self.facts()
        refresh = HURRY_SECONDS if facts["behind"] else REFRESH_SECONDS
        return page(BODY, title="Encrypted inference", refresh=refresh, **facts)

    def _client(self, name: str, seen: Snapshot, ever: dict[str, int]) -> dict[str, Any]:
        client: Client = self._door.clients[name]
        today, here = self._door.accounts.rows_today(name), seen.clients.get(name, Seen())
        return {
            "name": name,
            "until": time.strftime("%Y-%m-%d", time.gmtime(client.until)) if client.until else "no end",
            "ended": bool(client.until) and seen.now > client.until,
            "today": today,
            "left": max(self._door.quota.rows_a_day - today, 0),
            "ever": ever.get(name, 0),
            "refusals": here.refusals,
            "last": here.last,
        }

    def _tiles(self, seen: Snapshot, used: Sequence[Used], so_far: str) -> list[tuple[str, str]]:
        waiting = len(self._door.accounts.kept(WAITING))
        memory = self._metrics.registry.get_sample_value("process_resident_memory_bytes")
        return [
            (f"{self._metrics.rows:,}", "rows since the start"),
            (f"{sum(of.blocks for of in seen.latency.values()):,}", "blocks since the start"),
            (f"{self._metrics.refusals:,}", "calls refused since the start"),
            (f"{sum(line.rows for line in used):,}", f"rows {so_far}"),
            (f"{sum(line.blocks for line in used):,}", f"receipts on the ledger {so_far}"),
            (f"{waiting}{' or more' if waiting == WAITING else ''}", "receipts on their way there"),
            *([(size(memory), "memory of the process")] if memory else []),
        ]

    # ---- what is asked for; plain functions, which Starlette calls on threads of its own

    def _page(self, request: Request) -> Response:
        return HTMLResponse(self.html())

    def _text(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type=CONTENT_TYPE_LATEST)

    def _health(self, request: Request) -> Response:
        return PlainTextResponse("stopping\n", 503) if self.stopping else PlainTextResponse("serving\n")


def _refusals(seen: Snapshot) -> list[dict[str, Any]]:
    """By code, most first."""
    calls: dict[str, dict[str, int]] = {}
    for (code, client), count in seen.refusals.items():
        calls.setdefault(code, {})[client] = count
    lines = []
    for code, by in sorted(calls.items(), key=lambda item: (-sum(item[1].values()), item[0])):
        whose = sorted(by.items(), key=lambda item: (-item[1], item[0]))
        lines.append(
            {
                "code": code,
                "words": CAUSES.get(code, "refused"),
                "calls": sum(by.values()),
                "whose": ", ".join(f"{name or 'not known'} {count:,}" for name, count in whose),
            }
        )
    return lines
