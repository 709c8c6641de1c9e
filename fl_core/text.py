"""Text from outside as a terminal may show it."""

from __future__ import annotations


def printable(text: object) -> str:
    """One line of text: what is no printable character or blank (control, line feed, direction mark) becomes U+FFFD."""
    return "".join(c if c.isprintable() else "\ufffd" for c in str(text))
