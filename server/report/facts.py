"""What the ledger holds of a run, as facts for its report; the same at the end of the run and years later."""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fl_core import messages
from fl_core.errors import UsageError
from fl_core.messages import COORDINATOR
from fl_core.trust.checkpoint import parse_checkpoint, parse_note, quorum_size
from fl_core.trust.entry import Entry
from fl_core.trust.ledger import Ledger
from fl_core.trust.ledger_copy import as_file
from fl_core.trust.postgres_url import Place
from server.report.consent import Consents, Member

_STATUS = {"stopped": "stopped", "refused": "refused"}
_STEPS = {
    "job": "the job",
    "resume": "the run goes on",
    "roster": "who takes part",
    "session": "a session",
    "end": "the end",
    "publish": "what MLflow got",
    "failure": "a failure",
}


@dataclass(frozen=True)
class Refusal:
    """Somebody did not do something: the entry, who, what happened, where, and the code of why."""

    entry: int
    who: str
    what: str
    where: str
    why: str


@dataclass(frozen=True)
class Cosigned:
    """A checkpoint over `size` entries: what of the run no co-signed one before covers, and who co-signed it."""

    size: int
    covers: str
    parties: tuple[str, ...]
    outside: tuple[str, ...]


@dataclass
class Verdict:
    """What verifying the ledger came to; `status` None: not checked.

    `state, cosigned, quorum, parties` are of the run; `entries, signatures, checkpoints` of the whole log.
    """

    status: int | None = None
    reason: str = ""
    entries: int = 0
    signatures: int = 0
    checkpoints: int = 0
    cosigned: int = 0
    quorum: int = 0
    parties: int = 0
    checked: float = 0.0


@dataclass
class Audit:
    """What an auditor asks of a run.

    Attributes
    ----------
    verdict, now : what the ledger is worth; `now` False: when the run ended, by the run itself.
    members : who took part, and on whose consent their data were used.
    mlflow : `server.reconcile.compare.Reconciled`, or None with `why_not`.
    quorum : co-signatures that a checkpoint of this run needs.
    commits : whether the ledger holds digests of the artifacts.
    """

    verdict: Verdict
    now: bool
    members: list[Member] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    checkpoints: list[Cosigned] = field(default_factory=list)
    mlflow: Any = None
    why_not: str = ""
    quorum: int = 0
    commits: bool = False


def gather(ledger: Ledger, path: Place, run: str) -> dict[str, Any]:
    """Read a run's facts from the ledger, for `server.report.page.write_report`.

    Parameters
    ----------
    path : of the ledger, as people are told it.

    Raises
    ------
    UsageError
        If the ledger has no job of the run.
    """
    own: dict[str, list[Entry]] = {}
    said: dict[str, Mapping[str, Any]] = {}
    for entry in ledger.entries(run=run):
        if entry.by == COORDINATOR:
            own.setdefault(entry.kind, []).append(entry)
        elif entry.kind == "session":
            said[entry.by] = entry.body
    if not own.get("job"):
        raise UsageError(f"run {run}: the ledger has no job of it")
    job, ended = own["job"][0], _ended(own)
    view, end = job.body["view"], ended.body if ended is not None else {}
    size = ledger.checkpoint_sizes()[-1]
    note = ledger.checkpoint_at(size) or ""
    done = ended is not None and ended.kind == "end"
    return {
        "run": run,
        "name": view["name"],
        "status": "done" if done else _STATUS.get(str(end.get("status")), "failed") if ended else "under way",
        "job": view,
        "digest": job.body["job"],
        "metrics": {name: float(text) for name, text in end.get("metrics", {}).items()} if done else {},
        "rounds": [entry.body for entry in own.get("round", [])],
        "said": said,
        "unsafe": job.body.get("unsafe", []),
        "model": str(end.get("model") or "") if done else "",
        "seconds": ((ended or job).t - job.t) / 1000,
        "ledger": {
            "path": str(path),
            "size": size,
            "root": parse_checkpoint(parse_note(note).text).root.hex(),
            "log": ledger.log,
            "checkpoint": note,
            **_last_cosigned(ledger, job.seq),
        },
    }


def nothing_but(run: str, path: Place) -> dict[str, Any]:
    """The facts of a run whose ledger cannot be read: a page of them has a verdict and nothing else."""
    return {"run": run, "name": run, "ledger": {"path": str(path)}, "unreadable": True}


def examine(ledger: Ledger, run: str, verdict: Verdict, *, now: bool) -> Audit:
    """Gather what an auditor asks; MLflow is added by who compares it."""
    entries = [entry for entry in ledger.entries(run=run) if entry.kind not in ("round", "metrics")]
    rosters = (e.body["parties"] for e in entries if e.kind == "roster" and e.by == COORDINATOR)
    roster: list[str] = next(rosters, [])
    consents = Consents(ledger, run)
    return Audit(
        verdict,
        now,
        members=list(consents.members(entries)),
        refusals=[*_refusals(entries)],
        checkpoints=list(_checkpoints(ledger, entries)),
        quorum=quorum_size(len(roster)) if roster else 0,
        commits=any(entry.kind == "publish" for entry in entries),
    )


def judge(path: Place, run: str, *, most: int | None = None) -> Verdict:
    """Verify the ledger now; one of more than `most` entries is not checked."""
    from fl_core.trust.verify import verify_ledger
    from fl_core.trust.verify.ledger import lacks

    if most is not None:
        with Ledger.open(path) as ledger:
            if (size := ledger.size) > most:
                return Verdict(reason=f"the log has {size} entries, too many to check while a run waits", entries=size)
    with as_file(path) as file:
        report = verify_ledger(file)
    found = report.runs.get(run)
    status, reason = report.status, report.reason
    if status != 1:  # other runs' quorum is not this one's
        status = 4 if found is None or lacks(found) else 0
    if report.first_bad is not None:
        reason = f"entry {report.first_bad}: {reason}"
    counted = (found.cosigned, found.quorum, len(found.parties)) if found else (0, 0, 0)
    return Verdict(status, reason, report.entries, report.signatures, report.checkpoints, *counted, time.time())


# ---- pieces


def _ended(own: Mapping[str, Sequence[Entry]]) -> Entry | None:
    """The last end or failure, unless the run was taken up again after it."""
    ends = [*own.get("end", []), *own.get("failure", []), *own.get("resume", [])]
    last = max(ends, key=lambda entry: entry.seq, default=None)
    return None if last is None or last.kind == "resume" else last


def _last_cosigned(ledger: Ledger, start: int) -> dict[str, Any]:
    """Who co-signed the newest checkpoint that any party co-signed, since entry `start`, and its size."""
    for size in reversed(ledger.checkpoint_sizes(start + 1)):
        if names := list(ledger.cosignatures(size)):
            return {"cosigned": names, "cosigned_size": size}
    return {"cosigned": []}


def _refusals(entries: Sequence[Entry]) -> Iterator[Refusal]:
    words = {"drop": "did not answer", "refusal": "refused", "failure": "failed", "stop": "stopped the run"}
    for entry in entries:
        body, kind = entry.body, entry.kind
        if kind not in words:
            continue
        who, what = entry.by, words[kind]
        if entry.by == COORDINATOR and "party" in body:
            who = str(body["party"])
            what = "its answer was not taken" if kind == "refusal" else what
        elif isinstance(body.get("caller"), dict):
            who = str(body["caller"].get("name"))
        where = str(body.get("step") or body.get("method") or "")
        where += f", round {body['round']}" if body.get("round") else ""
        yield Refusal(entry.seq, who, what, where, str(body.get("code", "")))


def _checkpoints(ledger: Ledger, entries: Sequence[Entry]) -> Iterator[Cosigned]:
    """Those that somebody co-signed, from the run's first entry until its last is covered; what no one does, last."""
    if not entries:
        return
    sizes = ledger.checkpoint_sizes(entries[0].seq + 1)
    covers: dict[int, list[str]] = {}
    for entry in entries:
        place = bisect.bisect_right(sizes, entry.seq)
        if place < len(sizes) and (words := _step(entry)):
            covers.setdefault(sizes[place], []).append(words)
    waiting: list[str] = []
    for size in sizes:
        waiting += covers.get(size, [])
        names, keys = tuple(ledger.cosignatures(size)), tuple(ledger.outside_cosignatures(size))
        if names or keys:
            outside = tuple(key.split("+", 1)[0] for key in keys)
            yield Cosigned(size, ", ".join(dict.fromkeys(waiting)), names, outside)
            waiting = []
            if size > entries[-1].seq:
                return
    if waiting:
        yield Cosigned(entries[-1].seq + 1, ", ".join(dict.fromkeys(waiting)), (), ())


def _step(entry: Entry) -> str:
    if entry.kind == "aggregate":
        other = {messages.EVALUATE: "the evaluation", messages.STANDARDIZE: "the columns' scale"}
        return other.get(str(entry.body.get("act")), f"round {entry.body.get('round')}")
    if entry.kind == "session" and entry.by != COORDINATOR:
        return "what the parties say of it"
    return _STEPS.get(entry.kind, "")
