"""`python -m fl_core.trust.verify PATH`: verify a ledger, its JSON lines, an audit pack, a proof or evidence."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import (
    NotALedger,
    ProofReport,
    Report,
    verify_consistency_proof,
    verify_evidence,
    verify_inclusion_proof,
    verify_ledger,
    verify_pack,
)
from .evidence import EVIDENCE, card_of, find_fork, signed_roots, write_evidence
from .outside import Policy, read_policy
from .proofs import CONSISTENCY
from .stream import MAX_LINE


@dataclass(frozen=True)
class Judged:
    """A report, and the file of evidence that was written, if the log forked."""

    report: Report | ProofReport
    evidence: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-able values."""
        return self.report.to_dict() | ({"evidence": str(self.evidence)} if self.evidence else {})


def main(arguments: list[str] | None = None) -> int:
    """Verify what is named; print the report; return 0, 1, 2 (usage) or 4."""
    parser = argparse.ArgumentParser(description="Verify a fedseal ledger, audit pack, proof or evidence, offline.")
    parser.add_argument(
        "path", type=Path, help="ledger.db, its JSON lines, a pack's folder, a proof or evidence (.json)"
    )
    parser.add_argument("--since", type=Path, metavar="NOTE", help="a checkpoint kept earlier")
    parser.add_argument("--against", type=Path, metavar="PATH", help="another pack, ledger or checkpoint of this log")
    parser.add_argument("--witnesses", type=Path, metavar="POLICY", help="which witnesses from outside must co-sign")
    parser.add_argument("--key", metavar="HEX", help="the coordinator's Ed25519 key")
    options = parser.parse_args(arguments)
    try:
        since = options.since.read_text(encoding="utf-8") if options.since else None
        policy = read_policy(options.witnesses) if options.witnesses else None
        judged = judge(options.path, since=since, against=options.against, key=options.key, witnesses=policy)
    except (OSError, UnicodeDecodeError, NotALedger) as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(judged.to_dict(), indent=2, ensure_ascii=False))
    return judged.report.status


def judge(
    path: Path,
    *,
    since: str | None = None,
    against: Path | None = None,
    key: str | None = None,
    witnesses: Policy | None = None,
) -> Judged:
    """Verify a ledger, its JSON lines, a pack, a proof or evidence.

    Parameters
    ----------
    since
        A checkpoint note kept earlier.
    against
        Another pack, ledger or checkpoint of the same log: where the two fork, evidence is written beside `path`.
    key
        The coordinator's Ed25519 key, 64 hex digits.
    witnesses
        Which witnesses from outside must have co-signed the log.

    Raises
    ------
    OSError, NotALedger
        If a file cannot be read, is none of these, or the evidence cannot be written.
    """
    document = _document(path)
    if document is not None:
        if since is not None or against is not None or witnesses is not None:
            raise NotALedger(f"{path}: a proof is compared with no other file")
        checks = {CONSISTENCY: verify_consistency_proof, EVIDENCE: verify_evidence}
        check = checks.get(document["type"], verify_inclusion_proof)
        return Judged(check(document, coordinator_key_hex=key))
    card = None if against is None else card_of(path)
    others = None if against is None or card is None else signed_roots(against, card)
    verify = verify_pack if path.is_dir() else verify_ledger
    report = verify(path, since=since, coordinator_key_hex=key, others=others, witnesses=witnesses)
    if against is None or card is None or others is None:
        return Judged(report)
    found = find_fork(path, against, card, others)
    return Judged(report, None if found is None else write_evidence(path.absolute().parent, found))


def _document(path: Path) -> dict[str, Any] | None:
    """Return the proof or evidence in a file, None if the file is something else."""
    if path.suffix != ".json" or path.is_dir() or path.stat().st_size > MAX_LINE:
        return None
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) and isinstance(document.get("type"), str) else None


if __name__ == "__main__":
    sys.exit(main())
