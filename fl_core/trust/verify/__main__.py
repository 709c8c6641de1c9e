"""`python -m fl_core.trust.verify FILE`: verify a ledger, its JSON lines, or a proof, without the rest."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from . import NotALedger, ProofReport, Report, verify_consistency_proof, verify_inclusion_proof, verify_ledger
from .proofs import CONSISTENCY
from .stream import MAX_LINE


def main(arguments: list[str] | None = None) -> int:
    """Verify a ledger, its JSON lines, or a proof; print the report; return 0, 1, 2 (usage) or 4."""
    parser = argparse.ArgumentParser(description="Verify a fedseal ledger, or a proof from one, offline.")
    parser.add_argument("file", type=Path, help="ledger.db, its JSON lines, or a proof (.json)")
    parser.add_argument("--since", type=Path, metavar="NOTE", help="a checkpoint kept earlier")
    parser.add_argument("--key", metavar="HEX", help="the coordinator's Ed25519 key")
    options = parser.parse_args(arguments)
    try:
        proof = _proof(options.file)
        report: Report | ProofReport
        if proof is None:
            since = options.since.read_text(encoding="utf-8") if options.since else None
            report = verify_ledger(options.file, since=since, coordinator_key_hex=options.key)
        elif proof["type"] == CONSISTENCY:
            report = verify_consistency_proof(proof, coordinator_key_hex=options.key)
        else:
            report = verify_inclusion_proof(proof, coordinator_key_hex=options.key)
    except (OSError, UnicodeDecodeError, NotALedger) as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    return report.status


def _proof(path: Path) -> dict[str, Any] | None:
    """Return the proof document in a file, None if the file is something else."""
    if path.suffix != ".json" or path.stat().st_size > MAX_LINE:
        return None
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) and "type" in document else None


if __name__ == "__main__":
    sys.exit(main())
