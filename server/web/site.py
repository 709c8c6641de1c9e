"""Small web pages of a program for whoever runs it: read only, no script, no login, by uvicorn in a thread of it.

A page may hold a form that asks this site again (`FormPage`); what else it may not do is the same for all.

They listen on loopback unless asked otherwise.  A page of some other site, whose name an attacker makes resolve to this
machine (DNS rebinding), would be read by that site: so a request must name what is listened on.
"""

from __future__ import annotations

import ipaddress
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fl_core.errors import FedsealError, JobFailed, UsageError
from fl_core.trust.federation import host_port

LOOPBACK = ("localhost", "127.0.0.1", "::1")
START_SECONDS, STOP_SECONDS = 10.0, 5.0
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_FRAMES = "frame-ancestors 'none'; base-uri 'none'"
HEADERS = {
    "Content-Security-Policy": f"{POLICY}; {_FRAMES}; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
FORMS = f"{POLICY}; {_FRAMES}; form-action 'self'"
_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[^\[\]:/@\s]{1,253})(:[0-9]{1,5})?")


def page_address(text: str, option: str = "--page") -> tuple[str, int]:
    """HOST:PORT in two; a PORT alone is one of loopback.  Raises `UsageError`."""
    try:
        return host_port(f"{LOOPBACK[1]}:{text}" if text.isdecimal() else text)
    except ValueError:
        raise UsageError(f"{option} {text!r:.80}; allowed: HOST:PORT, or PORT on loopback") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    address = _ip(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


class FormPage(HTMLResponse):
    """A page with forms that ask this site."""

    def __init__(self, html: str, status: int = 200) -> None:
        super().__init__(html, status, {"Content-Security-Policy": FORMS})


class Guard:
    """Around an application: only GET and HEAD, only with a known Host, and with `HEADERS` on whatever it answers.

    Of an answer's own headers of these names none stays, but for the policy of a `FormPage`.

    Parameters
    ----------
    host : that is listened on. names : by which it is known otherwise. Where `host` stands for all of a machine's
        addresses any address will do, and the machine's own name: only names can be rebound.
    """

    def __init__(self, app: ASGIApp, host: str, names: Iterable[str] = ()) -> None:
        self._app, address = app, _ip(host)
        self._any = address is not None and address.is_unspecified
        known = {host.lower(), *(name.lower() for name in names)}
        if self._any or is_loopback(host):
            known |= set(LOOPBACK)
        self._known = known | {socket.gethostname().lower()} if self._any else known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            raise RuntimeError(f"a scope of type {scope['type']}")
        app: ASGIApp = self._app
        if scope["method"] not in ("GET", "HEAD"):
            app = PlainTextResponse("only GET and HEAD\n", 405, {"Allow": "GET, HEAD"})
        elif not self._knows([value for name, value in scope["headers"] if name == b"host"]):
            app = PlainTextResponse("another host than the one listened on\n", 421)

        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _protected(list(message.get("headers", ())))
            await send(message)

        await app(scope, receive, protected)

    def _knows(self, hosts: Sequence[bytes]) -> bool:
        found = _HOST.fullmatch(hosts[0].decode("latin-1").lower()) if len(hosts) == 1 else None
        if found is None:
            return False
        host = found[1].strip("[]")
        return host in self._known or (self._any and _ip(host) is not None)


class Site:
    """Routes, served from when this is made until `stop`.

    Parameters
    ----------
    address : host and port, as of `page_address`. names : other names of this machine, which requests may use.

    Attributes
    ----------
    url : of the first page, with the port that is listened on also where 0 was asked for.
    loopback : whether only this machine reaches it.

    Raises
    ------
    JobFailed : the address is taken, or not of this machine.
    """

    def __init__(self, routes: Sequence[BaseRoute], address: tuple[str, int], *, names: Iterable[str] = ()) -> None:
        host, port = address
        self.loopback, self._socket = is_loopback(host), _listen(host, port)
        self.port = int(self._socket.getsockname()[1])
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"
        app = Starlette(routes=list(routes), exception_handlers={FedsealError: _failed})
        config = uvicorn.Config(
            Guard(app, host, names),
            loop="asyncio", http="h11", ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, limit_concurrency=64, timeout_graceful_shutdown=2,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="web", daemon=True
        )
        self._thread.start()
        end = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                self.stop()
                raise JobFailed(f"web page: the server at {self.url} did not start")
            time.sleep(0.005)

    def stop(self) -> None:
        """Answer what was asked, take no more, and free the port."""
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS)
        self._socket.close()


def serve_until_stopped(site: Site) -> None:
    """Say where, in one line on stdout, and serve until SIGTERM or Ctrl-C; the main thread's."""
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    print(site.url, flush=True)
    if not site.loopback:
        print("note: these pages have no login; they are for whoever reaches that address", file=sys.stderr, flush=True)
    try:
        stopped.wait()
    finally:
        site.stop()


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, *_, where = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        return socket.create_server(where[:2], family=family, backlog=64)
    except OSError as error:
        raise JobFailed(f"web page: {host}:{port} cannot be listened on ({error.strerror or error})") from None


def _failed(request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{' '.join(str(error).split())[:500]}\n", 503)


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


_RAW = {name.lower().encode(): value.encode() for name, value in HEADERS.items()}
_POLICY = b"content-security-policy"


def _protected(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    forms = (_POLICY, FORMS.encode()) in headers
    ours = _RAW | ({_POLICY: FORMS.encode()} if forms else {})
    return [header for header in headers if header[0].lower() not in _RAW] + list(ours.items())
