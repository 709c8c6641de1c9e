"""Whether MLflow shows what the ledger holds, difference by difference, and how to mend what it missed."""
