"""Where round records go, each once, when the round happens.

::

    coordinator ── Fanout ─┬─ LedgerRecorder ── ledger.db          evidence; an error stops the round
                           └─ MlflowRecorder ── spool ── process ── MLflow     a view; never stops or slows one

Both get the decimal texts of one `RoundRecord`; MLflow stores `float()` of them, so the two reconcile exactly.
"""
