"""The routes of `fedseal audit serve`; plain functions, which Starlette calls on threads of its own."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Template
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from fl_core.errors import FedsealError, LedgerBroken, UsageError
from fl_core.home import Home
from fl_core.trust.postgres_url import Place
from fl_core.trust.proofs import consistency_proof_document, inclusion_proof_document
from fl_core.urls import without_passwords
from server.audit_site import templates, told
from server.audit_site.asked import Asked, Wrong, link, whole
from server.audit_site.beside import Beside
from server.audit_site.checking import Checking
from server.audit_site.look import Look
from server.audit_site.rows import Rows
from server.audit_site.runs import RunIndex
from server.audit_site.templates_run import RUN
from server.audit_site.told_run import run_page
from server.web.html import page
from server.web.site import FormPage, Site

TONES = {"ended": "good", "failed": "bad"}
TITLES = {400: "Not understood", 404: "Not there", 503: "Not possible now"}
RUNNING_SECONDS, READING_SECONDS = 1, 2  # after which a page asks again


class AuditSite:
    """The pages over one ledger.

    Parameters
    ----------
    ledger
        Its SQLite file, or its place in PostgreSQL.
    home
        Knows which run in MLflow is which, and where MLflow is unless `MLFLOW_TRACKING_URI` says so.
    since, key
        A checkpoint note kept earlier, and the coordinator's Ed25519 key (hex), if known.

    Raises
    ------
    UsageError
        If there is no ledger, or the server does not let us in.
    JobFailed
        If the server cannot be reached.
    """

    def __init__(self, ledger: Place, home: Home, *, since: str | None = None, key: str | None = None) -> None:
        self.rows, self.index, self._key = Rows(ledger), RunIndex(), key
        self.checking = Checking(self.rows, since=since, key=key)
        self.beside = Beside(home, ledger)
        with self.rows.look() as look:
            self.index.read(look)
        self.routes = [
            Route(path, self._answering(answer))
            for path, answer in (
                ("/", self._runs), ("/entries", self._entries), ("/entry/{seq}", self._entry),
                ("/entry/{seq}/raw", self._raw), ("/entry/{seq}/proof", self._proof), ("/run", self._run),
                ("/search", self._search), ("/checkpoints", self._checkpoints), ("/checkpoint", self._checkpoint),
                ("/consistency", self._consistency), ("/verify", self._verify), ("/{path:path}", self._nowhere),
            )
        ]  # fmt: skip

    def open(self, address: tuple[str, int]) -> Site:
        """Listen.  Raises `JobFailed` where the address is taken."""
        return Site(self.routes, address)

    # ---- pages

    def _runs(self, request: Request) -> Response:
        asked = Asked.of(request, "q", "kind", "status", "party", "page")
        with self.rows.look() as look:
            facts = told.runs_page(asked, self.index, look)
            return self._page(templates.RUNS, "Audit", log=_log(look), **facts)

    def _entries(self, request: Request) -> Response:
        asked = Asked.of(request, "run", "kind", "by", "from", "before")
        with self.rows.look() as look:
            return self._page(templates.ENTRIES, "Entries", **told.entries_page(asked, look))

    def _entry(self, request: Request) -> Response:
        Asked.of(request)
        seq = _seq(request)
        with self.rows.look() as look:
            facts = told.entry_page(seq, self.rows, look, self._key)
            return self._page(templates.ENTRY, f"Entry {seq}", log=_log(look), **facts)

    def _run(self, request: Request) -> Response:
        asked = Asked.of(request, "id", "from", "before", "round")
        with self.rows.look() as look:
            facts = run_page(asked, self.index, look, self.beside, self.checking.look())
        refresh = READING_SECONDS if facts["mlflow"].reading else 0
        return self._page(RUN, facts["run"].name or "Run", refresh=refresh, **facts)

    def _search(self, request: Request) -> Response:
        asked = Asked.of(request, "q", "before")
        with self.rows.look() as look:
            return self._page(templates.SEARCH, "Search", **told.search_page(asked, self.index, look))

    def _checkpoints(self, request: Request) -> Response:
        asked = Asked.of(request, "before")
        with self.rows.look() as look:
            facts = told.checkpoints_page(asked, look)
            return self._page(templates.CHECKPOINTS, "Checkpoints", log=_log(look), **facts)

    def _verify(self, request: Request) -> Response:
        asked = Asked.of(request, "again")
        again, size, log = bool(asked.choice("again", ("1",))), 0, ""
        # a ledger that is damaged is what the verdict is about; of a server that is away there is none
        about = FedsealError if isinstance(self.rows.place, Path) else LedgerBroken
        with contextlib.suppress(about), self.rows.look() as look:
            size, log = look.size(), _log(look)
        self.checking.start(again=again)
        if again:  # else each refresh would begin anew
            return RedirectResponse("/verify", 303)
        checked = self.checking.look()
        facts = told.verify_page(checked, size, kept=self.checking.kept, key=self._key)
        refresh = RUNNING_SECONDS if checked.running else 0
        return self._page(templates.VERIFY, "Verify", refresh=refresh, log=log, **facts)

    def _nowhere(self, request: Request) -> Response:
        raise Wrong(404, f"no page {request.url.path[:80]}")

    # ---- files

    def _raw(self, request: Request) -> Response:
        Asked.of(request)
        seq = _seq(request)
        with self.rows.look() as look:
            row = look.row(seq)
        if row is None or row.leaf is None:
            raise Wrong(404, f"no entry {seq} that can be shown")
        return _file(row.leaf, f"entry-{seq}.json")

    def _proof(self, request: Request) -> Response:
        Asked.of(request)
        seq = _seq(request)
        with self.rows.ledger() as ledger:
            try:
                document = inclusion_proof_document(ledger, seq)
            except UsageError as error:
                raise Wrong(404, str(error)) from None
        return _file(_json(document), f"entry-{seq}.proof.json")

    def _consistency(self, request: Request) -> Response:
        asked = Asked.of(request, "old", "new")
        old, new = asked.number("old", 0, low=1), asked.number("new", 0, low=1)
        if not 0 < old <= new:
            raise Wrong(400, f"old={old}, new={new}; allowed: sizes of two checkpoints, the smaller one first")
        with self.rows.ledger() as ledger:
            try:
                document = consistency_proof_document(ledger, old, new)
            except UsageError as error:
                raise Wrong(404, str(error)) from None
        return _file(_json(document), f"from-{old}-to-{new}.proof.json")

    def _checkpoint(self, request: Request) -> Response:
        """The newest note, or that over so many entries, with every co-signature as a signature line."""
        asked = Asked.of(request, "size")
        with self.rows.ledger() as ledger:
            sizes = ledger.checkpoint_sizes()
            size = asked.number("size", sizes[-1], low=1)
            note = ledger.checkpoint_at(size)
            if note is None:
                raise Wrong(404, f"no checkpoint over {size} entries; the newest is over {sizes[-1]}")
            lines = [*ledger.cosignatures(size).values(), *ledger.outside_cosignatures(size).values()]
        return _file((note + "".join(f"{line}\n" for line in lines)).encode(), f"{size}.checkpoint", "text/plain")

    # ---- answers

    def _page(self, body: Template, title: str, *, refresh: int = 0, status: int = 200, **facts: Any) -> Response:
        checked = self.checking.look()
        word = told.VERDICTS[checked.report.status] if checked.report else ""
        common: dict[str, Any] = {
            "now": time.time(),
            "ledger": str(self.rows.place),
            "ledger_quoted": shlex.quote(str(self.rows.place)),
            "link": link,
            "tones": TONES,
            "checked": checked,
            "verdict_word": word,
            "verdict_tone": told.TONES.get(word, "warn"),
        }
        return FormPage(page(body, title=title, refresh=refresh, **(common | facts)), status)

    def _answering(self, answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
        """What cannot be answered becomes a page with one line."""

        def answered(request: Request) -> Response:
            try:
                return answer(request)
            except Wrong as error:
                return self._page(templates.WRONG, TITLES[error.status], status=error.status, words=str(error))
            except FedsealError as error:
                words = without_passwords(" ".join(str(error).split()))[:500]
                return self._page(templates.WRONG, TITLES[503], status=503, words=words)

        return answered


def _seq(request: Request) -> int:
    return whole(request.path_params["seq"], "entry")


def _log(look: Look) -> str:
    """What the first entry says that this log is."""
    first = look.row(0)
    return str(first.fields().get("log", ""))[:80] if first else ""


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def _file(data: bytes, name: str, media: str = "application/json") -> Response:
    return Response(data, media_type=media, headers={"Content-Disposition": f'attachment; filename="{name}"'})
