"""What the pages show of the ledger as a whole, of lists of entries, of one entry and of the verifier's verdict."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from fl_core.errors import FedsealError, JobFailed, UsageError
from fl_core.trust.entry import KINDS
from fl_core.trust.proofs import inclusion_proof_document
from fl_core.trust.verify import Report, verify_inclusion_proof
from fl_core.trust.verify.ledger import lacks
from fl_core.urls import without_passwords
from server.audit_site.asked import Asked, Wrong, link
from server.audit_site.checking import VERDICTS, Checked
from server.audit_site.look import Look, Row
from server.audit_site.rows import Rows
from server.audit_site.runs import STATES, Run, RunIndex
from server.audit_site.words import kind_words, say

PER_PAGE = 50
ENTRIES_PER_PAGE = 100
MOST_RUNS_TOLD = 200
TONES = {"VALID": "good", "BROKEN": "bad"}


def line(row: Row) -> dict[str, Any]:
    """An entry in a list."""
    fields = row.fields()
    return {"row": row, "when": when(fields.get("t")), "words": say(row.kind, fields.get("body"))}


def when(t: Any) -> str:
    """Milliseconds since 1970 as UTC; empty for what is no time."""
    if type(t) is not int or not 0 < t < 253_402_300_800_000:
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(t / 1000))


# ---- runs


def runs_page(asked: Asked, index: RunIndex, look: Look) -> dict[str, Any]:
    """The list of runs, newest first, filtered."""
    runs = list(index.read(look).values())[::-1]
    kinds = tuple(sorted({run.kind for run in runs if run.kind}))
    wanted = {
        "q": asked.text("q"),
        "kind": asked.choice("kind", kinds),
        "status": asked.choice("status", STATES),
        "party": asked.party("party"),
    }
    found = [run for run in runs if _fits(run, wanted)]
    page, pages = asked.number("page", 1, low=1), max(-(-len(found) // PER_PAGE), 1)
    if page > pages:
        raise Wrong(404, f"page {page}; there are {pages}")
    newest = look.checkpoints(before=look.size() + 1, limit=1)
    return {
        "runs": found[(page - 1) * PER_PAGE : page * PER_PAGE],
        "found": len(found),
        "all": len(runs),
        "size": look.size(),
        "newest": newest[0] if newest else None,
        "kinds": kinds,
        "states": STATES,
        "wanted": wanted,
        "page_number": page,
        "pages": pages,
        "older": link("/", **wanted, page=page + 1) if page < pages else "",
        "newer": link("/", **wanted, page=page - 1) if page > 1 else "",
        "when": when,
        "rewritten": index.changed_at,
    }


def _fits(run: Run, wanted: dict[str, str]) -> bool:
    if wanted["kind"] not in ("", run.kind) or wanted["status"] not in ("", run.state):
        return False
    if wanted["party"] and wanted["party"] not in run.parties:
        return False
    return not wanted["q"] or run.matches(wanted["q"])


# ---- entries


def entries_page(asked: Asked, look: Look) -> dict[str, Any]:
    """Entries in their order, from one on or up to one."""
    wanted = {
        "run": asked.run("run"),
        "kind": asked.choice("kind", tuple(sorted(KINDS))),
        "by": asked.party("by"),
    }
    return {"wanted": wanted, "kinds": sorted(KINDS), **listed(asked, look, "/entries", wanted)}


def listed(asked: Asked, look: Look, path: str, wanted: dict[str, str], **more: object) -> dict[str, Any]:
    """A page of the entries that are `wanted`, and the ways to those before and after."""
    filters = {name: value for name, value in wanted.items() if value}
    before = asked.number("before", 0) if asked.text("before") else None
    start = asked.number("from", 0)
    rows = look.entries(filters, start=start, before=before, limit=ENTRIES_PER_PAGE + 1)
    if before is None:
        rows, is_last = rows[:ENTRIES_PER_PAGE], len(rows) <= ENTRIES_PER_PAGE
        is_first = not rows or not look.entries(filters, before=rows[0].seq, limit=1)
    else:
        is_first, rows = len(rows) <= ENTRIES_PER_PAGE, rows[-ENTRIES_PER_PAGE:]
        is_last = not rows or not look.entries(filters, start=rows[-1].seq + 1, limit=1)
    given = {**more, **(wanted if path == "/entries" else {})}
    return {
        "entries": [line(row) for row in rows],
        "earlier": "" if is_first else link(path, **given, before=rows[0].seq),
        "later": "" if is_last else link(path, **given, **{"from": rows[-1].seq + 1}),
    }


def entry_page(seq: int, rows: Rows, look: Look, key: str | None) -> dict[str, Any]:
    """One entry, and whether it holds: alone, and under the newest checkpoint."""
    row = look.row(seq)
    if row is None:
        raise Wrong(404, f"entry {seq}; the ledger has {look.size()}")
    fields = row.fields()
    raw = row.leaf.decode("utf-8", "replace") if row.leaf is not None else ""
    return {
        **line(row),
        "kind_words": kind_words(row.kind),
        "raw": raw,
        "pretty": json.dumps(fields, indent=2, ensure_ascii=False) if fields else "",
        "leaf_hash": row.leaf_hash,
        "prev": str(fields.get("prev", ""))[:64],
        "differs": bool(fields) and _columns(row) != _columns_of(fields),
        "judged": _judge(seq, rows, key),
        "size": look.size(),
    }


def _columns(row: Row) -> tuple[Any, ...]:
    return row.seq, row.run, row.kind, row.by


def _columns_of(fields: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(fields.get(name) for name in ("seq", "run", "kind", "by"))


def _judge(seq: int, rows: Rows, key: str | None) -> dict[str, Any]:
    """Who signed an entry, and what the verifier says of it and its proof."""
    told: dict[str, Any] = {"signer": None, "covered": 0, "good": False, "words": ""}
    try:
        with rows.ledger() as ledger:
            entry = next(ledger.entries(seq, seq + 1))
            card = ledger.signer(entry)
            told["signer"] = {"name": card.name, "key": card.ed25519, "fingerprint": card.fingerprint}
            told["now"] = "" if ledger.card(card.name) == card else "its card was rotated or revoked since"
            try:
                report = verify_inclusion_proof(inclusion_proof_document(ledger, seq), coordinator_key_hex=key)
            except UsageError:
                entry.statement.verify(card)
                return told | {"good": True, "words": f"signed by {card.name}; no checkpoint covers it yet"}
    except JobFailed:  # which says nothing of the entry
        raise
    except FedsealError as error:
        return told | {"words": without_passwords(" ".join(str(error).split()))[:300]}
    if report.status:
        return told | {"words": report.reason}
    words = f"signed by {card.name}, and in its place under the checkpoint over {report.size:,} entries"
    return told | {"good": True, "covered": report.size, "words": words}


# ---- search


def search_page(asked: Asked, index: RunIndex, look: Look) -> dict[str, Any]:
    """What a text may mean: an entry's number, a kind, a party, a run, the beginning of a digest."""
    text, size = asked.text("q"), look.size()
    digest = text.lower()
    runs = [run for run in list(index.read(look).values())[::-1] if text and run.matches(text)]
    signers = {name for run in index.read(look).values() for name in run.parties}
    told: dict[str, Any] = {
        "q": text,
        "entry": int(text) if text.isascii() and text.isdigit() and len(text) < 10 and int(text) < size else None,
        "kind": text if text in KINDS else "",
        "party": text if text in signers or look.entries({"by": text}, limit=1) else "",
        "runs": runs[:PER_PAGE],
        "more_runs": link("/", q=text) if len(runs) > PER_PAGE else "",
        "hits": [],
        "is_digest": 8 <= len(digest) <= 128 and not set(digest) - set("0123456789abcdef"),
        "further": "",
        "when": when,
    }
    if told["is_digest"]:
        hits, low = look.search(digest, before=asked.number("before", size), limit=PER_PAGE)
        told["hits"] = [{**line(hit.row), "place": hit.place, "digest": hit.digest} for hit in hits]
        told["further"] = link("/search", q=text, before=low) if low else ""
        told["searched"] = low
    return told


# ---- checkpoints and the verdict


def checkpoints_page(asked: Asked, look: Look) -> dict[str, Any]:
    """Checkpoints, largest first."""
    size = look.size()
    found = look.checkpoints(before=asked.number("before", size + 1), limit=PER_PAGE + 1)
    shown = found[:PER_PAGE]
    return {
        "checkpoints": shown,
        "earlier": link("/checkpoints", before=shown[-1].size) if len(found) > PER_PAGE else "",
        "largest": shown[0].size if shown else 0,
        "smallest": shown[-1].size if shown else 0,
        "size": size,
    }


def verify_page(checked: Checked, size: int, *, kept: bool, key: str | None) -> dict[str, Any]:
    """How the check stands, and its verdict in words."""
    report = checked.report
    word = VERDICTS[report.status] if report else ""
    runs = _told_runs(report) if report else []
    return {
        "checked": checked,
        "report": report,
        "word": word,
        "tone": TONES.get(word, "warn"),
        "size": size,
        "kept": kept,
        "key": key,
        "told_runs": runs[:MOST_RUNS_TOLD],
        "untold": max(len(runs) - MOST_RUNS_TOLD, 0),
    }


def _told_runs(report: Report) -> Sequence[tuple[str, Any, bool]]:
    """Each run with what its evidence amounts to; those that lack some first."""
    told = [(name, run, lacks(run)) for name, run in report.runs.items()]
    return sorted(told, key=lambda item: not item[2])
