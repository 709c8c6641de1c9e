"""A run's entries without the rest of the log: each stands under the signed root by a proof of its own.

What a proof cannot show is that nothing was left out. Here the places tell: entries are numbered, so `gaps` are the
places between the run's first and last entry of which this excerpt shows nothing; where there is none, the run is
whole from its first to its last entry shown.
"""

from __future__ import annotations

from typing import Any

from .format import Broken, Note, unhex
from .ledger import LedgerCheck
from .proofs import check_consistency, check_inclusion
from .report import Report
from .stream import Leaf, StoredCheckpoint

ANY_RUN = frozenset({"log", "card", "profile", "rotate", "revoke"})  # whose key is whose is needed from every run
MAX_GAPS = 20


class Excerpt(LedgerCheck):
    """Checks entries of one run, and those that stand outside any run, under the checkpoint `head`.

    Attributes
    ----------
    gaps
        Ranges (first, last) of places within the run that are not shown, at most `MAX_GAPS`; `hidden` counts all.
    """

    def __init__(self, head: Note, run: str, since: Note | None, key: str | None, report: Report) -> None:
        super().__init__(since, key, report)
        self.head, self.run = head, run
        self.gaps: list[tuple[int, int]] = []
        self.hidden = 0
        self._hidden_since = 0  # since the run's last entry
        self._since: list[tuple[int, int]] = []
        self.first = self.last = -1  # of the run's entries
        self._continues = False

    def _check_seq(self, seq: Any) -> None:
        if type(seq) is not int or not max(self.size, self.report.sound) <= seq < self.head.size:
            raise Broken(f"an entry after {self.size} that is out of its place")
        if self.size == 0 and seq:
            raise Broken("the log's first entry is not shown", 0)
        self.at = seq

    def _check_place(self, entry: dict[str, Any], leaf: bytes, record: Leaf) -> None:
        if entry["run"] not in ("", self.run) and entry["kind"] not in ANY_RUN:
            raise Broken("an entry of another run")
        if self.at == self.size and unhex(entry["prev"], 32) != self.prev:
            raise Broken(f"entry {self.at} does not follow the entry before it")
        check_inclusion(leaf, self.at, self.head.size, self.head.root, record.proof or ())
        self._note_gap(entry["run"] == self.run)

    def _note_gap(self, of_run: bool) -> None:
        if self.first >= 0 and self.at > self.size:
            self._hidden_since += self.at - self.size
            self._since = [*self._since, (self.size, self.at - 1)][:MAX_GAPS]
        if of_run:
            self.hidden += self._hidden_since
            self.gaps = [*self.gaps, *self._since][:MAX_GAPS]
            self._hidden_since, self._since = 0, []
            self.first, self.last = self.at if self.first < 0 else self.first, self.at

    def _check_kept(self) -> None:
        pass

    def _check_root(self, note: Note, record: StoredCheckpoint) -> None:
        if not self.size <= note.size <= self.head.size:
            raise Broken("a checkpoint out of its place")
        check_consistency(note, self.head, record.proof or ())
        self.note_root(note.size, note.root)
        if self.since is not None and self.since.size == note.size:
            if self.since.root != note.root:
                raise Broken("history was rewritten: the kept checkpoint is of other entries")
            self._continues = True

    def finish(self) -> None:
        """Check what only the end shows; raises Broken."""
        super().finish()
        if self.since is not None and not self._continues:
            raise Broken(
                f"nothing here shows that the log continues the kept checkpoint over {self.since.size} entries; "
                "export the pack with --since or --all"
            )

    def _head(self) -> tuple[int, str]:
        return self.head.size, self.head.root.hex()
