"""The page of a run: what was done, by whom, at what privacy cost, and how far the ledger vouches for it."""
