"""The auditor's verifier: reads a ledger, an audit pack or a proof taken from one, and trusts nothing that wrote it.

It imports the standard library and `cryptography` only and shares the format alone with the rest, so this
folder can be read by itself, copied to another machine and run there: `python -m verify LEDGER`.

Checked for a ledger (the SQLite file or its JSON lines): canonical form, order and hash chain, every
signature under the card shown before, closed kinds, the tree's root (RFC 6962) at every checkpoint, every
checkpoint's and co-signature's signature (C2SP tlog-checkpoint, tlog-cosignature), each run's quorum, and,
against a checkpoint that the auditor has kept, that nothing of what it covers was cut or rewritten. Not
detectable from the file alone: a log issued anew as a whole by its coordinator (keep a checkpoint, or look at
the co-signatures), and statements never ordered.

A run is `witnessed` when more than (n + 1)/2 of its roster's n parties (at most all) co-signed one checkpoint
that covers its `end`; `short` when fewer did; `stopped` when the coordinator recorded its failure; `open` without
either (under way, killed, or its tail cut off); `idle` when it never had a roster and did nothing. Status 0 needs
every run witnessed, idle, or stopped with at most one round that came after the last checkpoint co-signed by its
quorum. The coordinator's first roster of a run counts; a later one cannot shrink it.
"""

from __future__ import annotations

from .evidence import verify_evidence
from .format import NotALedger
from .ledger import verify_ledger
from .pack import verify_pack
from .proofs import ProofReport, verify_consistency_proof, verify_inclusion_proof
from .report import PackReport, Report, RunReport

__all__ = [
    "NotALedger",
    "PackReport",
    "ProofReport",
    "Report",
    "RunReport",
    "verify_consistency_proof",
    "verify_evidence",
    "verify_inclusion_proof",
    "verify_ledger",
    "verify_pack",
]
