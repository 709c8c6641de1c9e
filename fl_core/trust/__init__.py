"""Identities, signed statements, the hash-chained ledger, witnesses and privacy budgets."""
