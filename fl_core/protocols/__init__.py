"""Protocols between parties: each a plain function over a `Channel`, one scenario a package or file."""
