"""What a request asks for: each parameter known, once, short and of its form, or the answer is a page of one line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from starlette.requests import Request

LONGEST = 200
MOST = 2**53 - 1
_NUMBER = re.compile(r"[0-9]{1,16}")
_RUN = re.compile(r"[\x21-\x7e]{1,128}")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


class Wrong(Exception):
    """Asked for what is not there (404) or cannot be (400), in one line."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


@dataclass(frozen=True)
class Asked:
    """A request's parameters; an empty one counts as not given, since forms send those."""

    values: Mapping[str, str]

    @classmethod
    def of(cls, request: Request, *allowed: str) -> Asked:
        """Read them; raises `Wrong` for one that is not `allowed`, given twice, or too long."""
        values: dict[str, str] = {}
        for name, value in request.query_params.multi_items():
            if name not in allowed:
                raise Wrong(400, f"parameter {name[:40]!r}; allowed: {', '.join(allowed) or 'none'}")
            if name in values:
                raise Wrong(400, f"parameter {name} is given twice")
            if len(value) > LONGEST:
                raise Wrong(400, f"parameter {name} has {len(value)} characters; allowed: {LONGEST}")
            values[name] = value.strip()
        return cls({name: value for name, value in values.items() if value})

    def text(self, name: str) -> str:
        """Any text; empty where there is none."""
        return self.values.get(name, "")

    def number(self, name: str, default: int, *, low: int = 0) -> int:
        """A whole number."""
        text = self.values.get(name)
        return default if text is None else whole(text, name, low=low)

    def run(self, name: str) -> str:
        """A run id; empty where there is none."""
        return self._matching(name, _RUN, "1 to 128 printable characters without blanks")

    def party(self, name: str) -> str:
        """A name as parties and people have it; empty where there is none."""
        return self._matching(name, _NAME, "small letters, digits, '.', '_', '-'")

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        """One of these; empty where there is none."""
        text = self.text(name)
        if text and text not in allowed:
            raise Wrong(400, f"{name} {text[:40]!r}; allowed: {', '.join(allowed)}")
        return text

    def _matching(self, name: str, pattern: re.Pattern[str], words: str) -> str:
        text = self.text(name)
        if text and not pattern.fullmatch(text):
            raise Wrong(400, f"{name} {text[:40]!r}; allowed: {words}")
        return text


def whole(text: str, name: str, *, low: int = 0) -> int:
    """Read a whole number from `low`; raises `Wrong`."""
    if not _NUMBER.fullmatch(text) or not low <= int(text) <= MOST:
        raise Wrong(400, f"{name} {text[:40]!r}; allowed: a whole number from {low}")
    return int(text)


def link(path: str, **values: object) -> str:
    """A path with the parameters that are not empty."""
    given = {name: value for name, value in values.items() if value not in ("", None)}
    return f"{path}?{urlencode(given)}" if given else path
