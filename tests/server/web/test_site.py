"""A local page: only GET, only under its own name, nothing a browser would run, and a port that is given back."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from fl_core.errors import JobFailed, UsageError
from server.web.site import FORMS, HEADERS, FormPage, Site, is_loopback, page_address


def hello(request: Request) -> Response:
    return PlainTextResponse("hello\n")


def broken(request: Request) -> Response:
    raise ZeroDivisionError


def damaged(request: Request) -> Response:
    raise JobFailed("ledger.db: disk\nfull")


def form(request: Request) -> Response:
    return FormPage("<form>", 400)


def lax(request: Request) -> Response:
    weak = {"Content-Security-Policy": "default-src *", "cache-control": "public", "X-Content-Type-Options": "none"}
    return HTMLResponse("<p>", headers=weak)


ROUTES = [
    Route("/", hello),
    Route("/broken", broken),
    Route("/damaged", damaged),
    Route("/form", form),
    Route("/lax", lax),
]


def site(host="127.0.0.1", **options) -> Site:
    return Site(ROUTES, (host, 0), **options)


@pytest.fixture(scope="module")
def shown() -> Iterator[Site]:
    made = site(names=("models.example.org",))
    yield made
    made.stop()


def ask(place: Site, path="/", method="GET", host: str | None = None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", place.port, timeout=10)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    answer.text = answer.read().decode()
    connection.close()
    return answer


def raw(place: Site, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", place.port), timeout=10) as end:
        end.sendall(data)
        end.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: end.recv(4096), b""))


@pytest.mark.parametrize(
    ("path", "method", "host", "status"),
    [
        ("/", "GET", None, 200),
        ("/", "HEAD", None, 200),
        ("/none", "GET", None, 404),
        ("/broken", "GET", None, 500),
        ("/damaged", "GET", None, 503),
        ("/", "POST", None, 405),
        ("/", "GET", "evil.example", 421),
    ],
)
def test_every_answer_carries_the_headers(shown, path, method, host, status):
    answer = ask(shown, path, method, host)
    assert answer.status == status
    for name, value in HEADERS.items():
        assert answer.getheader(name) == value
    assert "default-src 'none'" in HEADERS["Content-Security-Policy"] and "script" not in str(answer.headers)
    assert answer.getheader("Server") is None


def test_a_page_may_ask_for_forms_and_for_nothing_else(shown):
    answer = ask(shown, "/form")
    assert answer.status == 400 and answer.headers.get_all("Content-Security-Policy") == [FORMS]
    assert HEADERS["Content-Security-Policy"].replace("form-action 'none'", "form-action 'self'") == FORMS
    answer = ask(shown, "/lax")
    for name, value in HEADERS.items():
        assert answer.headers.get_all(name) == [value]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND"])
def test_nothing_but_reading(shown, method):
    answer = ask(shown, method=method)
    assert (answer.status, answer.getheader("Allow")) == (405, "GET, HEAD") and "hello" not in answer.text


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example:{port}",
        "127.0.0.1@evil.example", "evil.example@127.0.0.1", "10.0.0.1", "", "[::1", "localhost:99999999",
        "127.1", "0x7f000001", "[::2]",
    ],
)  # fmt: skip
def test_a_name_that_was_rebound_to_this_machine_is_refused(shown, host):
    """What a browser sends from an attacker's page whose name now resolves to 127.0.0.1."""
    data = f"GET / HTTP/1.1\r\nHost: {host.format(port=shown.port)}\r\nConnection: close\r\n\r\n".encode()
    said = raw(shown, data)
    assert b"hello" not in said and said.split(b" ")[1] in (b"421", b"400")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:{port}", "127.0.0.1:{port}", "[::1]:8000", "models.example.org"]
)
def test_the_machines_own_names_are_served(shown, host):
    """Any port: a tunnel from elsewhere has another one."""
    assert ask(shown, host=host.format(port=shown.port)).text == "hello\n"


@pytest.mark.parametrize(
    "lines",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET http://localhost/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"\x16\x03\x01\x02\x00 nonsense\r\n\r\n",
    ],
)
def test_two_hosts_none_or_no_http_are_refused(shown, lines):
    assert b"hello" not in raw(shown, lines)


def test_on_all_addresses_any_address_will_do_and_no_strange_name():
    place = site("0.0.0.0", names=("models.example.org",))
    try:
        assert not place.loopback
        for host in ("192.0.2.7:9451", "[2001:db8::1]", "localhost", "models.example.org:1", socket.gethostname()):
            assert ask(place, host=host).status == 200, host
        assert ask(place, host="evil.example").status == 421
    finally:
        place.stop()


def test_an_address_that_is_taken_is_one_line_and_frees_nothing():
    first = site()
    with pytest.raises(JobFailed, match=f"127.0.0.1:{first.port} cannot be listened on"):
        Site(ROUTES, ("127.0.0.1", first.port))
    assert ask(first).text == "hello\n"
    first.stop()


def test_an_address_of_another_machine_is_one_line():
    for host in ("192.0.2.1", "no.such.host.invalid"):
        with pytest.raises(JobFailed, match="cannot be listened on"):
            site(host)


def test_after_stop_the_port_is_free_and_the_thread_gone():
    for _ in range(3):
        before = threading.active_count()
        place = site()
        silent = socket.create_connection(("127.0.0.1", place.port))  # says nothing, and does not go
        assert ask(place).text == "hello\n"
        start = time.monotonic()
        place.stop()
        assert time.monotonic() - start < 4
        silent.close()
        assert not place._thread.is_alive() and threading.active_count() <= before + 2
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", place.port), timeout=1)
        again = Site(ROUTES, ("127.0.0.1", place.port))
        again.stop()


def test_an_error_of_ours_is_one_line_and_anothers_says_nothing(shown):
    assert ask(shown, "/damaged").text == "ledger.db: disk full\n"
    assert "Zero" not in ask(shown, "/broken").text


@pytest.mark.parametrize(
    ("text", "address"),
    [("9451", ("127.0.0.1", 9451)), ("0.0.0.0:1", ("0.0.0.0", 1)), ("[::1]:80", ("::1", 80)), ("h:0", ("h", 0))],
)
def test_a_port_alone_is_one_of_loopback(text, address):
    assert page_address(text) == address


@pytest.mark.parametrize("text", ["nowhere", "h:70000", "70000", ":", "h:x", "a b:1", ""])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UsageError, match="allowed: HOST:PORT"):
        page_address(text)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("10.1.1.1", False), ("localhost.example", False)],
)  # fmt: skip
def test_what_only_this_machine_reaches(host, expected):
    assert is_loopback(host) is expected


def test_ipv6_is_served_where_there_is_any():
    try:
        place = site("::1")
    except JobFailed:
        pytest.skip("no IPv6 on this machine")
    try:
        assert place.url == f"http://[::1]:{place.port}/"
        connection = http.client.HTTPConnection("::1", place.port, timeout=10)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        place.stop()
