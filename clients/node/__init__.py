"""A data owner's node: it dials out, takes jobs within the owner's limits, and shows what it did."""
