"""An owner's consent at its own node: what it published and granted, and the decision on each run."""
