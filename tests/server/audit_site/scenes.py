"""Ledgers for the site, the site asked as a browser asks it, and a reader of its pages."""

from __future__ import annotations

import http.client
import time
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlencode, urlsplit

from server.audit_site.site import AuditSite
from tests.fl_core.trust.pack_scene import Scene


def scene_at(path: Path, people: SimpleNamespace) -> Scene:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Scene(path, people.coordinator, people.parties)
    made.show_cards()
    return made


class Pages:
    """A site that listens."""

    def __init__(self, site: AuditSite) -> None:
        self.site, self.open = site, site.open(("127.0.0.1", 0))

    def get(self, path: str, *, method: str = "GET", **query: object) -> SimpleNamespace:
        connection = http.client.HTTPConnection("127.0.0.1", self.open.port, timeout=30)
        connection.request(method, f"{path}?{urlencode(query)}" if query else path)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        text = data.decode("utf-8", "replace")
        return SimpleNamespace(status=answer.status, headers=answer.headers, content=data, text=text)

    def text(self, path: str, **query: object) -> str:
        answer = self.get(path, **query)
        assert answer.status == 200, answer.text
        return answer.text

    def verdict(self) -> str:
        """What the verify page says when the verifier is through."""
        end = time.monotonic() + 30
        while "Being verified" in (text := self.text("/verify")):
            assert time.monotonic() < end
            time.sleep(0.01)
        return " ".join(text.split())


class Read(HTMLParser):
    """Tags with the names of their attributes, links, and the text of cells by row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.links += [value for name, value in attrs if name in ("href", "src", "action") and tag != "link"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._cell:
            self.rows[-1][-1] += data

    def table(self, *head: str) -> list[list[str]]:
        """The rows below the one that begins with these cells, blanks made one."""
        rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]
        start = next(i for i, row in enumerate(rows) if row[: len(head)] == list(head))
        width = len(rows[start])
        below = rows[start + 1 :]
        stop = next((i for i, row in enumerate(below) if len(row) != width), len(below))
        return below[:stop]

    def own_links(self) -> list[str]:
        """Every link; all of them lead to this site."""
        assert all(not urlsplit(link).netloc and not urlsplit(link).scheme for link in self.links), self.links
        return self.links
