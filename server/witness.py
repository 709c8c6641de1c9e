"""A witness for others' logs (`fedseal witness serve`), and how a log asks such witnesses.

C2SP tlog-witness over HTTP.  A witness learns sizes and roots of logs.  It signs one history of each: it stores what it
signs before the answer leaves.  A checkpoint that is signed by its log and contradicts what was signed is kept, since
both together convict the log.  TLS is by `--tls-cert`, or by a proxy in front; what is answered is public and signed.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from fl_core.errors import BadMessage, BadSignature, FedsealError, IntegrityError, JobFailed, UsageError
from fl_core.files import private_dir, write_atomic
from fl_core.home import Home
from fl_core.messages import COORDINATOR
from fl_core.trust.checkpoint import open_checkpoint, parse_checkpoint, parse_note
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.outside import (
    MAX_REQUEST,
    WITNESS_KEY,
    Outsider,
    Policy,
    VerifierKey,
    read_request,
    valid_line,
    write_request,
)
from fl_core.trust.witness import StaleProof, Witness

SIZE_TYPE = "text/x.tlog.size"
ASK_SECONDS = 10.0
MOST_KEPT = 2000
_MAX_ANSWER = 1 << 16
_log = logging.getLogger("fedseal.witness")


@dataclass(frozen=True)
class Answer:
    """Status and body of one answer; `size`: the body is a size."""

    status: int
    text: str
    size: bool = False


class OutsideWitness:
    """The service without HTTP.

    Parameters
    ----------
    folder : keeps state and what convicts a log. logs : keys by origin.
    """

    def __init__(self, folder: Path, identity: Identity, logs: Mapping[str, VerifierKey]) -> None:
        self._folder, self._logs = private_dir(folder), logs
        self._witness = Witness(folder / "witness.db", identity)
        self.key = VerifierKey.of(identity, algorithm=WITNESS_KEY)

    def add_checkpoint(self, body: bytes) -> Answer:
        """One request.  Raises `FedsealError` where the state cannot be read or written."""
        try:
            old, proof, note = read_request(body)
            head = parse_checkpoint(parse_note(note).text)
        except BadMessage as error:
            return Answer(400, str(error))
        key = self._logs.get(head.origin)
        if key is None:
            return Answer(404, "not a log that is witnessed here")
        try:
            open_checkpoint(note, key)
        except (BadMessage, BadSignature):
            return Answer(403, "not signed by the log's key")
        if old > head.size or head.size == 0 or (proof and old in (0, head.size)):
            return Answer(400, "a size of zero, an old size beyond the new one, or a proof where none is due")
        try:
            return Answer(200, self._witness.observe(note, key, proof, mine=None, start=old) + "\n")
        except StaleProof as error:
            return Answer(409, f"{error.size}\n", size=True)
        except IntegrityError:
            return self._contradicted(old, note)

    def _contradicted(self, old: int, note: str) -> Answer:
        """A log that does not continue its history, or a client that does not know it."""
        new = parse_checkpoint(parse_note(note).text)
        last = self._witness.last(new.origin) or ""
        known = parse_checkpoint(parse_note(last).text) if last else None
        if known is not None and known.size == new.size and known.root != new.root:
            self._keep(note, last)
        elif known is not None and known.size == old:
            return Answer(422, "the proof does not show that the log continues what was signed")
        return Answer(409, f"{known.size if known else 0}\n", size=True)

    def _keep(self, note: str, last: str) -> None:
        """Keep both notes: of one size, with two roots, they convict the log."""
        name = hashlib.sha256(note.encode()).hexdigest()[:16]
        kept = private_dir(self._folder / "contradictions")
        if not (kept / f"{name}.note").exists() and sum(1 for _ in kept.iterdir()) < MOST_KEPT:
            write_atomic(kept / f"{name}.note", note.encode())
            write_atomic(kept / f"{name}.signed", last.encode())
        _log.error("a checkpoint contradicts what was signed; both are kept: %s", kept / name)


def application(witness: OutsideWitness, prefix: str = "") -> Starlette:
    """The HTTP service."""

    async def add_checkpoint(request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_REQUEST:
                return PlainTextResponse("too large\n", 413)
        try:
            answer = await run_in_threadpool(witness.add_checkpoint, body)
        except FedsealError as error:
            _log.error("a checkpoint could not be worked on: %s", error)
            return PlainTextResponse("the witness cannot work at present\n", 503)
        kind = SIZE_TYPE if answer.size else "text/plain; charset=utf-8"
        return Response(answer.text if answer.text.endswith("\n") else answer.text + "\n", answer.status, None, kind)

    async def about(request: Request) -> Response:
        return PlainTextResponse(witness.key.text + "\n")

    return Starlette(
        routes=[Route(f"{prefix}/add-checkpoint", add_checkpoint, methods=["POST"]), Route(f"{prefix}/", about)]
    )


# ---- the log's side


def ask(ledger: Ledger, outsider: Outsider, size: int) -> str:
    """Get a witness's co-signature for the checkpoint over `size` entries.

    Returns
    -------
    The line, verified.

    Raises
    ------
    JobFailed : no answer, or a refusal in words. BadSignature : an answer without its signature.
    """
    note = ledger.checkpoint_at(size)
    if note is None:
        raise JobFailed(f"no checkpoint over {size} entries")
    old = 0
    for _ in range(3):
        proof = ledger.consistency(old, size) if 0 < old < size else []
        answer = _post(outsider, write_request(old, proof, note))
        if answer.status == 200:
            return valid_line(answer.text, note, outsider.key)
        told = answer.text.strip()
        if answer.status != 409 or not (told.isascii() and told.isdecimal() and len(told) < 16):
            break
        if int(told) > size:
            raise JobFailed(f"witness {outsider.key.name}: has signed {told} entries of this log; here are {size}")
        if int(told) == old:
            raise JobFailed(f"witness {outsider.key.name}: refuses; the {told} entries that it has signed are others")
        old = int(told)
    words = " ".join(answer.text.split())[:200]
    raise JobFailed(f"witness {outsider.key.name}: answers {answer.status}: {words}")


def _post(outsider: Outsider, body: bytes) -> Answer:
    request = urllib.request.Request(  # noqa: S310  the policy admits http and https only
        f"{outsider.url}/add-checkpoint", data=body, method="POST", headers={"Content-Type": "text/plain"}
    )
    try:
        with _OPENER.open(request, timeout=ASK_SECONDS) as reply:
            return Answer(reply.status, reply.read(_MAX_ANSWER).decode("utf-8", "replace"))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read(_MAX_ANSWER).decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise JobFailed(f"witness {outsider.key.name}: {outsider.url} does not answer ({reason})") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A witness answers itself: a redirect would send a log's proofs where the policy does not say."""

    def redirect_request(self, *args: object, **kwargs: object) -> None:
        return None


_OPENER = urllib.request.build_opener(
    urllib.request.ProxyHandler(), _NoRedirect, urllib.request.HTTPSHandler(context=ssl.create_default_context())
)


def ask_all(ledger: Ledger, policy: Policy) -> dict[str, str]:
    """Ask all witnesses of a policy about the newest checkpoint and store what they sign.

    Returns
    -------
    Why by name, of those who did not sign.
    """
    size = ledger.checkpoint_sizes()[-1]
    missing: dict[str, str] = {}
    for outsider in policy.witnesses:
        held = ledger.outside_cosignatures(size)
        if outsider.key.text in held:
            continue
        if not outsider.url:
            missing[outsider.key.name] = f"witness {outsider.key.name}: the policy has no address of it"
            continue
        try:
            ledger.add_outside(size, outsider.key, ask(ledger, outsider, size))
        except (JobFailed, IntegrityError) as error:
            missing[outsider.key.name] = str(error)
    return missing


def open_for_witnesses(home: Home) -> Ledger:
    """A home's ledger, open for writing.  Raises `UsageError` where there is none."""
    if not home.ledger.exists():
        raise UsageError(f"{home.ledger}: no ledger here")
    return Ledger.open(home.ledger, Identity.load_or_create(home.coordinator, COORDINATOR))


def ask_about_run(home: Home, ledger: Ledger) -> dict[str, Any] | None:
    """At the end of a run: ask the witnesses of the home's policy, if it has one.

    Returns
    -------
    For the summary: quorum, who signed, why others did not; an error where the policy cannot be read.
    """
    if not home.witnesses.exists():
        return None
    try:
        policy = Policy.load(home.witnesses)
        missing = ask_all(ledger, policy)
    except FedsealError as error:
        return {"error": str(error)}
    held = ledger.outside_cosignatures(ledger.checkpoint_sizes()[-1])
    signed = [outsider.key.name for outsider in policy.witnesses if outsider.key.text in held]
    return {"quorum": policy.quorum, "signed": signed, "missing": missing}
