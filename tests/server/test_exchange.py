"""The exchange over gRPC: who may come in, lines that break, and what it keeps in memory."""

from __future__ import annotations

import multiprocessing
import secrets
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import pytest

from clients.exchange import Stream, Tls
from fl_core.errors import ExchangeLost, FedsealError, PeerLost
from fl_core.session.keys import SessionName
from fl_core.session.sealed import SealedChannel
from fl_core.session.token import Token
from fl_core.trust import certificates
from fl_core.trust.identity import Identity
from fl_core.wire.exchange_pb2 import Frame
from server import exchange as service
from server.exchange import Exchange, serve
from tests.e2e.federation import Wire
from tests.switch import run_all

NAMES = ("a", "b")
SECRET = secrets.token_bytes(32)
AUTHORITY = certificates.make_authority("test")


@dataclass
class Meeting:
    """A session of two on an exchange, each party with its own token and certificate."""

    address: str
    tls: bool = False
    timeout: float = 20.0
    away: float = 20.0
    identities: dict[str, Identity] = field(default_factory=lambda: {n: Identity.create(n) for n in NAMES})

    def __post_init__(self) -> None:
        cards = {name: identity.card for name, identity in self.identities.items()}
        self.name = SessionName("ab" * 8, secrets.token_bytes(32), cards)

    def token(self, party: str, **changes) -> str:
        made = Token(self.name.session.hex(), self.name.run, party, NAMES, int(time.time()) + 600)
        return replace(made, **changes).encode(SECRET)

    def certificate(self, party: str, authority=AUTHORITY) -> Tls:
        own = certificates.issue_client(authority, name=party, roles=["engineer"])
        return Tls(AUTHORITY.certificate, own.certificate, own.key)

    @contextmanager
    def party(self, name: str, *, address: str = "", token: str = "", tls: Tls | None = None):
        channel = SealedChannel(self.identities[name], self.name, timeout=self.timeout)
        tls = tls or (self.certificate(name) if self.tls else None)
        with Stream(channel, address or self.address, token or self.token(name), tls=tls, away=self.away):
            yield channel


@contextmanager
def exchange(*, tls: bool = False, address: str = "127.0.0.1:0", secret: bytes = SECRET):
    credentials = None
    if tls:
        pair = certificates.issue_server(AUTHORITY, ["localhost"])
        credentials = grpc.ssl_server_credentials([(pair.key, pair.certificate)], AUTHORITY.certificate, True)
    server, port = serve(Exchange(secret, tls=tls), address, credentials)
    try:
        yield f"{'localhost' if tls else '127.0.0.1'}:{port}"
    finally:
        server.stop(None).wait()


def talk(meeting, data=b"x" * 100, *, times=1, pause=0.0, **how):
    """Party a sends, b answers with the same; what each returned or raised."""

    def ask():
        with meeting.party("a", **how.get("a", {})) as channel:
            channel.gather(meeting.timeout)
            for _ in range(times):
                channel.send("b", data, step="ask")
                assert channel.recv("b", step="answer", max_bytes=len(data)) == data
                time.sleep(pause)
            channel.finish()
            return channel.transcript("b")

    def answer():
        with meeting.party("b", **how.get("b", {})) as channel:
            channel.gather(meeting.timeout)
            for _ in range(times):
                channel.send("a", channel.recv("a", step="ask", max_bytes=len(data)), step="answer")
            channel.finish()
            return channel.transcript("a")

    return run_all({"a": ask, "b": answer})


@pytest.mark.parametrize("tls", [False, True])
def test_two_parties_meet(tls):
    with exchange(tls=tls) as address:
        results = talk(Meeting(address, tls=tls), data=secrets.token_bytes(3 << 20), times=3)
    assert results["a"] == results["b"] and len(results["a"]) == 64


REFUSED = {
    "altered": lambda m: {"token": m.token("a")[:-6] + "AAAA=="},
    "expired": lambda m: {"token": m.token("a", until=int(time.time()) - 1)},
    "of another secret": lambda m: {"token": Token("00" * 32, "r", "a", NAMES, 1 << 40).encode(bytes(32))},
    "no token": lambda m: {"token": "-"},
}


@pytest.mark.parametrize("why", REFUSED)
def test_who_has_no_good_token_is_refused_and_told_so(why):
    with exchange() as address:
        meeting = Meeting(address, timeout=2)
        results = talk(meeting, a=REFUSED[why](meeting))
    assert isinstance(results["a"], ExchangeLost)
    assert "it refused this party" in str(results["a"])
    assert isinstance(results["b"], FedsealError)


def test_a_token_of_another_party_is_refused_with_tls():
    with exchange(tls=True) as address:
        meeting = Meeting(address, tls=True, timeout=2)
        results = talk(meeting, a={"tls": meeting.certificate("b")})
    assert "the certificate is of b, the token of a" in str(results["a"])


def test_a_certificate_of_another_authority_does_not_come_through():
    with exchange(tls=True) as address:
        meeting = Meeting(address, tls=True, timeout=4, away=1.0)
        stranger = certificates.make_authority("stranger")
        results = talk(meeting, a={"tls": meeting.certificate("a", stranger)})
    assert "was away" in str(results["a"])


def test_a_token_for_other_members_of_the_same_session_is_refused():
    with exchange() as address:
        meeting = Meeting(address, timeout=3)
        with meeting.party("b") as first:
            time.sleep(0.3)
            results = run_all({"a": lambda: _gather(meeting, token=meeting.token("a", members=("a", "b", "c")))})
            assert "other members" in str(results["a"])
            with pytest.raises(FedsealError):
                first.gather(0.5)


def _gather(meeting, **how):
    with meeting.party("a", **how) as channel:
        channel.gather(meeting.timeout)


def test_a_party_that_comes_late_learns_who_has_left():
    with exchange() as address:
        meeting = Meeting(address, timeout=10)
        with meeting.party("a"):
            time.sleep(0.3)
        began = time.monotonic()
        with pytest.raises(PeerLost, match="party a is gone"), meeting.party("b") as channel:
            channel.gather(10)
        assert time.monotonic() - began < 5


def test_a_party_that_speaks_in_anothers_name_is_put_out():
    with exchange() as address, grpc.insecure_channel(address) as line:
        meeting = Meeting(address, timeout=3)
        attend = line.stream_stream("/fedseal.exchange.Exchange/Attend", Frame.SerializeToString, Frame.FromString)
        lie = Frame(sender="a", to="b", kind=Frame.DATA, body=b"x")
        frames = list(attend(iter([lie]), metadata=[("fedseal-token", meeting.token("b"))], timeout=5))
        assert [f.kind for f in frames] == [Frame.NOTICE]


@pytest.mark.parametrize("party", NAMES)
def test_a_network_that_is_away_for_a_while_loses_nothing(party, monkeypatch):
    monkeypatch.setattr(service, "GRACE", 8.0)
    with exchange() as address:
        wire = Wire(int(address.rpartition(":")[2]))
        meeting = Meeting(address)

        def weather():
            time.sleep(0.5)
            wire.cut()
            time.sleep(2.0)
            wire.join()

        results = run_all(
            {
                "talk": lambda: talk(
                    meeting, data=b"y" * 5000, times=40, pause=0.05, **{party: {"address": f"127.0.0.1:{wire.port}"}}
                ),
                "weather": weather,
            }
        )["talk"]
        wire.close()
    assert results["a"] == results["b"] and isinstance(results["a"], str), results


def test_an_exchange_that_is_started_again_loses_nothing():
    with ExitStack() as first:
        address = first.enter_context(exchange())
        meeting = Meeting(address)

        def restart():
            time.sleep(0.5)
            first.close()
            time.sleep(0.5)
            with exchange(address=address):
                time.sleep(4)

        results = run_all({"talk": lambda: talk(meeting, times=40, pause=0.03), "restart": restart})["talk"]
    assert results["a"] == results["b"] and isinstance(results["a"], str), results


def test_an_exchange_that_stays_away_is_named():
    with ExitStack() as stack:
        address = stack.enter_context(exchange())
        meeting = Meeting(address, away=1.0)
        results = run_all(
            {"talk": lambda: talk(meeting, times=100, pause=0.05), "end": lambda: (time.sleep(0.5), stack.close())}
        )["talk"]
    for error in results.values():
        assert isinstance(error, ExchangeLost)
        assert address in str(error)


def _serve(pipe, secret) -> None:
    with exchange(secret=secret) as address:
        pipe.send(address)
        pipe.recv()
        status = Path("/proc/self/status").read_text()
        pipe.send(int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) // 1024)


@pytest.mark.slow
def test_a_gigabyte_passes_an_exchange_that_stays_small():
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs, SECRET), daemon=True)
    process.start()
    meeting = Meeting(ours.recv(), timeout=120)
    size = 1 << 30

    def pour():
        with meeting.party("a") as channel:
            channel.send("b", bytes(size), step="bulk")
            channel.finish()

    def drain():
        with meeting.party("b") as channel:
            time.sleep(2)  # a slow reader
            return len(channel.recv("a", step="bulk", max_bytes=size))

    assert run_all({"a": pour, "b": drain})["b"] == size
    ours.send(None)
    assert ours.recv() < 200
    process.join(10)
