"""The audit part of a run's report: what the ledger is worth, who took part on whose consent, and what nobody checked.

Written for somebody who reads no code; every text from the ledger or MLflow is escaped.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation

from server.report.facts import Audit, Cosigned, Verdict
from server.report.parts import Facts, count, row, text

WORDS = {0: ("Valid", "good"), 1: ("Broken", "bad"), 4: ("Short of quorum", "warn"), None: ("Not checked here", "soft")}
MAX_ROWS = 200


def stamp(facts: Facts, audit: Audit) -> str:
    """The verdict, first on the page."""
    verdict = audit.verdict
    word, tone = WORDS[verdict.status]
    if verdict.status == 0 and audit.mlflow is not None and not audit.mlflow.equal:
        word, tone = f"{word}, but MLflow differs", "warn"
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(verdict.checked)) if verdict.checked else ""
    asked = f"fedseal audit report {shlex.quote(str(facts['run']))}"
    if audit.now:
        as_of = f"Checked on {when}, when the log had {verdict.entries:,} entries."
    else:
        as_of = (
            f"As of entry {max(verdict.entries - 1, 0):,}, when the run ended; this page cannot know what came later. "
            "Check again with:"
        )
    again = "" if audit.now else f" <code>{text(asked)}</code>"
    mlflow = _mlflow_line(audit)
    return (
        f'<section class="stamp {tone}"><p class="mark">{text(word)}</p><p>{text(_meaning(verdict))}</p>'
        f"<p>{mlflow}</p>"
        f'<p class="soft">{text(as_of)}{again}</p></section>'
    )


def _meaning(verdict: Verdict) -> str:
    if verdict.status is None:
        return f"The ledger was not checked for this page: {verdict.reason}."
    if verdict.status == 1:
        return f"Do not rely on anything below: the ledger does not hold. {_capital(verdict.reason)}."
    held = (
        f"The log's {verdict.entries:,} entries, {verdict.signatures:,} signatures and {verdict.checkpoints:,} "
        "checkpoints hold"
    )
    signed = f"{verdict.cosigned} of {verdict.parties} parties co-signed the end of this run"
    if verdict.status == 4:
        if not verdict.cosigned:
            signed = "no party co-signed an end of this run" if verdict.parties else "this run has no roster"
        return f"{held}, but {signed}; {verdict.quorum or 'some'} must, or only the coordinator vouches for it."
    if not verdict.cosigned:
        return f"{held}. The run stopped before its end; what it did is covered by its parties' signatures."
    return f"{held}, and {signed} ({verdict.quorum} are needed)."


def _mlflow_line(audit: Audit) -> str:
    found = audit.mlflow
    if found is None:
        return f'<b class="soft">MLflow was not compared:</b> {text(_why_not(audit))}.'
    if found.equal:
        total = sum(found.compared.values())
        return f'<b class="good">MLflow shows the same:</b> {total:,} values were compared, all are the ledger\'s.'
    number = len(found.differences)
    places = f"{number} place{'s' * (number > 1)}"
    return f'<b class="bad">MLflow differs from the ledger in {places}</b>, named below.'


def _why_not(audit: Audit) -> str:
    return audit.why_not or ("nobody asked" if audit.now else "this page is one of the things that it gets")


def members(audit: Audit) -> str:
    """Who took part, in which role, on what consent."""
    rows = ""
    for member in audit.members:
        key = f"<code>{text(member.key[:16])}…</code>" if member.key else "none shown"
        consent = ""
        if member.consent is not None:
            terms = f'<div class="soft">{text(member.consent.terms)}</div>' if member.consent.terms else ""
            consent = f'<span class="{member.consent.tone}">{text(member.consent.words)}</span>{terms}'
        said = f'<div class="soft">its card says: {text(member.said)}</div>' if member.said else ""
        rows += (
            f"<tr><td>{text(member.name)}</td><td>{text(member.role)}{said}</td><td>{consent}</td><td>{key}</td></tr>"
        )
    if not rows:
        return ""
    note = (
        "A grant is a data owner's signed consent to uses of one dataset, checked by the owner's own computer before "
        "it opens the data. The key is what each one signs with; compare it with what they tell you themselves."
    )
    head = "<tr><th>who</th><th>role</th><th>consent to use the data</th><th>key</th></tr>"
    return f'<h2>Parties, roles and consent</h2><p class="soft">{note}</p><table class="who">{head}{rows}</table>'


def spending(facts: Facts, audit: Audit) -> str:
    """What each owner's privacy budget paid, under the section of privacy."""
    owners = [m for m in audit.members if m.spent or m.allowed]
    if not owners:
        return ""
    target = str(facts["job"].get("privacy", {}).get("target_epsilon") or "")
    columns = {
        "owner": [m.name for m in owners],
        "ε spent, this run": [m.spent or "0" for m in owners],
        "of at most": [m.allowed or target or "not on the ledger" for m in owners],
        "all runs, by grants": [m.used for m in owners],
        "budget of the dataset": [m.budget for m in owners],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    rows = ""
    for i, m in enumerate(owners):
        cells = "".join(f"<td>{text(column[i])}</td>" for column in shown.values())
        rows += f"<tr>{cells}<td>{_bar(m.spent, m.allowed or target)}</td></tr>"
    head = "".join(f"<th>{name}</th>" for name in shown)
    note = "ε measures what a result can reveal of one row; smaller is better. Owners state it themselves, rounded up."
    table = f'<table class="spent"><tr>{head}<th></th></tr>{rows}</table>'
    return f'<h3>Spent by each owner</h3><p class="soft">{note}</p>{table}'


def _bar(spent: str, of: str) -> str:
    try:
        share = Decimal(spent or "0") / Decimal(of)
    except (InvalidOperation, ZeroDivisionError):
        return ""
    if not 0 <= share <= 100:
        return ""
    width, tone = float(min(share, Decimal(1))) * 120, "over" if share > 1 else "part"
    return (
        '<svg class="bar" viewBox="0 0 120 10" role="img" aria-label="share spent">'
        '<rect class="rest" width="120" height="10" rx="3"/>'
        f'<rect class="{tone}" width="{width:.1f}" height="10" rx="3"/></svg>'
    )


def traffic(facts: Facts) -> str:
    """Bytes on the way."""
    rounds = facts["rounds"]
    up, down, both = (_sum(rounds, name) for name in ("bytes_up", "bytes_down", "bytes"))
    times = [len(r["parties"]) for r in rounds if "bytes_up" in r["metrics"]]
    rows = ""
    if times:
        each = sum(times) / len(times)
        rows += row("from the parties, about", f"{_bytes(up * each)} in {len(times)} rounds")
        rows += row("to the parties, about", _bytes(down * each))
    if both:
        rows += row("between the parties", _bytes(both))
    note = "Sizes of sealed messages" + (": a round's median party's, times those that took part." if times else ".")
    return f'<h2>Bytes</h2><p class="soft">{note}</p><table class="facts">{rows}</table>' if rows else ""


def _sum(rounds: Iterable[Facts], name: str) -> float:
    values = (_number(r["metrics"].get(name)) for r in rounds)
    return sum(v for v in values if math.isfinite(v))


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return math.nan


def _bytes(number: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit} ({count(str(round(number)))} bytes)"
    return f"{number:,.0f} bytes"


def refusals(audit: Audit) -> str:
    """Who refused, failed or was not believed."""
    if not audit.refusals:
        return "<h2>Refusals</h2><p>Nobody refused, failed or was left out.</p>"
    rows = ""
    for r in audit.refusals[:MAX_ROWS]:
        cells = (r.entry, r.who, r.what, r.where, r.why)
        rows += "<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in cells) + "</tr>"
    more = _more(len(audit.refusals))
    head = "<tr><th>entry</th><th>who</th><th>what</th><th>when</th><th>why</th></tr>"
    return f"<h2>Refusals</h2><table>{head}{rows}</table>{more}"


def witnesses(audit: Audit) -> str:
    """Who co-signed each checkpoint."""
    if not audit.checkpoints:
        return ""
    rows = "".join(_cosigned(c, audit.quorum) for c in audit.checkpoints[-MAX_ROWS:])
    columns = ("entries from the first", "so also", "co-signed by parties", "by outside witnesses")
    head = f"<tr>{''.join(f'<th>{column}</th>' for column in columns)}</tr>"
    note = (
        "The coordinator signs the state of the log from time to time. A party co-signs after its own computer has "
        "checked that nothing was changed or taken away since the last time. A co-signature covers all entries before."
    )
    if not audit.now:
        note += " Outside witnesses are asked after this page was written."
    table = f"<table>{head}{rows}</table>{_more(len(audit.checkpoints))}"
    return f'<h3>Who co-signed which state</h3><p class="soft">{note}</p>{table}'


def _cosigned(cosigned: Cosigned, quorum: int) -> str:
    names = ", ".join(cosigned.parties)
    tone = "good" if quorum and len(cosigned.parties) >= quorum else "soft"
    who = f'<span class="{tone}">{text(names)}</span>' if names else '<span class="soft">nobody yet</span>'
    outside = text(", ".join(cosigned.outside))
    return f"<tr><td>{cosigned.size:,}</td><td>{text(cosigned.covers)}</td><td>{who}</td><td>{outside}</td></tr>"


def mlflow(facts: Facts, audit: Audit) -> str:
    """What comparing with MLflow came to."""
    title, found = "<h2>MLflow against the ledger</h2>", audit.mlflow
    command = f"<pre>fedseal audit reconcile {text(shlex.quote(str(facts['run'])))}</pre>"
    if found is None:
        return f"{title}<p>Not compared: {text(_why_not(audit))}. Compare with:</p>{command}"
    counted = ", ".join(f"{number:,} {what}" for what, number in sorted(found.compared.items()))
    run = f"<code>{text(found.mlflow_run_id or 'none')}</code>"
    said = f"<p>Compared: {text(counted or 'nothing')}. MLflow's run: {run}</p>"
    if found.equal:
        return f'{title}<p class="good">MLflow shows what the ledger holds.</p>{said}'
    rows = ""
    for d in found.differences[:MAX_ROWS]:
        where = f"{d.what} {d.name}" + (f", step {d.step}" if d.step is not None else "")
        has, due = text(d.mlflow or "nothing"), text(d.ledger or "nothing")
        rows += f'<tr><td>{text(where)}</td><td class="bad">{d.problem}</td><td>{has}</td><td>{due}</td></tr>'
    head = "<tr><th>what</th><th>problem</th><th>MLflow shows</th><th>the ledger holds</th></tr>"
    note = "The ledger decides: somebody changed MLflow, or it missed something while it was down."
    return f"{title}<p>{note}</p>{said}<table>{head}{rows}</table>{_more(len(found.differences))}"


def unchecked(audit: Audit) -> str:
    """What no check on this page could show."""
    found = [*(audit.mlflow.unchecked if audit.mlflow is not None else ["what MLflow shows (not compared)"])]
    if not audit.commits:
        found.append("the files that MLflow shows: no entry of this run commits to them")
    lacks = (("warn", "self-issued, by standing rules or incomplete, see above"), ("soft", "no grant is on the ledger"))
    for tone, words in lacks:
        names = [m.name for m in audit.members if m.consent is not None and m.consent.tone == tone]
        if names:
            found.append(f"the consent of {', '.join(names)}: {words}")
    if not any(c.outside for c in audit.checkpoints):
        found.append(
            "whether the whole log was issued anew by its coordinator together with the parties' keys: no outside "
            "witness co-signed; compare with a checkpoint that you kept (fedseal audit verify --since)"
        )
    found += [
        "whether each key belongs to whom it names: ask them, by another way",
        "statements that were never ordered: a party that misses one of its own notices and stops",
        "whether the data were true, and what parties did on their own computers beside the protocol",
        "whether the coordinator and all parties together told one false story",
    ]
    items = "".join(f"<li>{text(_capital(words))}.</li>" for words in found)
    return f'<h2>What could not be checked</h2><ul class="open">{items}</ul>'


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _more(number: int) -> str:
    return f'<p class="soft">{number - MAX_ROWS:,} more are left out here.</p>' if number > MAX_ROWS else ""


def parts(facts: Facts) -> dict[str, str]:
    """All of it by section, each empty where the facts have no audit."""
    audit = facts.get("audit")
    if audit is None:
        return dict.fromkeys(("stamp", "members", "spending", "refusals", "witnesses", "mlflow", "unchecked"), "")
    return {
        "stamp": stamp(facts, audit),
        "members": members(audit),
        "spending": spending(facts, audit),
        "refusals": refusals(audit),
        "witnesses": witnesses(audit),
        "mlflow": mlflow(facts, audit),
        "unchecked": unchecked(audit),
    }
