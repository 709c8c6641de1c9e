"""The exchange: a gRPC service that routes sealed frames between the parties of a session, and nothing else.

Who learns what: who talks to whom in which run, sizes and times.  Frames are sealed from party to party
(`fl_core.session`), so whoever runs the exchange can neither read nor change them; it can drop and delay.

Each party holds one outbound stream.  A frame for a party that is not there is dropped: when the party comes back the
two ends agree on what to send again.  A party that takes frames slowly slows down those who send to it (`BACKLOG`),
so memory here is bounded by the number of seats.  A party that lost its stream has `GRACE` to come back; then the
others are told.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError

from fl_core.errors import BadMessage
from fl_core.session.sealed import MAX_FRAME
from fl_core.session.token import Token
from fl_core.wire.exchange_pb2 import Frame, Notice

SERVICE, METHOD = "fedseal.exchange.Exchange", "Attend"
TOKEN_HEADER = "fedseal-token"  # noqa: S105  # the header's name
BACKLOG = 8 << 20
GRACE = 8.0
SEATS = 256
SESSIONS = 1000  # remembered for those who come late
KEEPALIVE = [
    ("grpc.keepalive_time_ms", 3000),
    ("grpc.keepalive_timeout_ms", 4000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.ping_timeout_ms", 4000),  # of the transport's own pings, which hold up those above
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
]
_log = logging.getLogger("fedseal.exchange")


class StreamOver(Exception):
    """A party's stream has ended, or the party came with another one."""


class _Seat:
    """A party's place in a session, and the stream that holds it now."""

    def __init__(self, party: str) -> None:
        self.party = party
        self.stream = 0  # counts the streams; 0: never there
        self.there = False
        self.over: Notice.What | None = None  # how it went, where it is expected back no more
        self.queue: deque[bytes] = deque()
        self.bytes = 0
        self.grace: threading.Timer | None = None


class Session:
    """The seats of one session; one lock for all of it."""

    def __init__(self, token: Token) -> None:
        self.members, self.until = token.members, token.until
        self._seats = {name: _Seat(name) for name in token.members}
        self._change = threading.Condition()

    def sit(self, party: str) -> int:
        """Take the seat, from an earlier stream if need be; the number names this stream from now on."""
        with self._change:
            seat = self._seats[party]
            seat.stream += 1
            seat.there, seat.over = True, None
            if seat.grace is not None:
                seat.grace.cancel()
                seat.grace = None
            seat.queue.clear()
            seat.bytes = 0
            self._tell(seat, Notice.HERE, party)  # so that it knows that it is through
            for other in self._seats.values():
                if other is not seat and other.there:
                    self._tell(other, Notice.HERE, party)
                    self._tell(seat, Notice.HERE, other.party)
                elif other.over is not None:
                    self._tell(seat, other.over, other.party)
            self._change.notify_all()
            return seat.stream

    def route(self, party: str, stream: int, to: str, raw: bytes) -> bool:
        """Pass a frame on, waiting while the receiver has enough; False once the sender's stream is over."""
        with self._change:
            sender, receiver = self._seats[party], self._seats[to]
            while sender.stream == stream and sender.there and receiver.there and receiver.bytes > BACKLOG:
                self._change.wait(1.0)
            if sender.stream != stream or not sender.there:
                return False
            if receiver.there:
                self._put(receiver, raw)
            return True

    def take(self, party: str, stream: int, timeout: float) -> bytes | None:
        """The next frame for a party, None after `timeout` seconds.  Raises `StreamOver`."""
        with self._change:
            seat = self._seats[party]
            if not seat.queue:
                self._change.wait_for(lambda: seat.queue or seat.stream != stream or not seat.there, timeout)
            if seat.stream != stream or (not seat.there and not seat.queue):
                raise StreamOver
            if not seat.queue:
                return None
            raw = seat.queue.popleft()
            seat.bytes -= len(raw)
            self._change.notify_all()
            return raw

    def leave(self, party: str, stream: int, *, lost: bool, grace: float = GRACE) -> None:
        """The party's stream ended, or broke: then it has `grace` seconds to come back."""
        with self._change:
            seat = self._seats[party]
            if seat.stream != stream or not seat.there:
                return
            seat.there = False
            if not lost:
                self._end(seat, Notice.LEFT)
            else:
                seat.grace = threading.Timer(grace, self._give_up, (party, stream))
                seat.grace.daemon = True
                seat.grace.start()
            self._change.notify_all()

    def _give_up(self, party: str, stream: int) -> None:
        with self._change:
            seat = self._seats[party]
            if seat.stream == stream:
                seat.grace = None
                self._end(seat, Notice.GONE)

    @property
    def empty(self) -> bool:
        """Whether nobody is there or expected back."""
        with self._change:
            return not any(seat.there or seat.grace for seat in self._seats.values())

    def _end(self, seat: _Seat, how: Notice.What) -> None:
        """Tell those who are there; whoever comes later is told then."""
        seat.over = how
        for other in self._seats.values():
            if other is not seat and other.there:
                self._tell(other, how, seat.party)

    def _tell(self, seat: _Seat, what: Notice.What, peer: str) -> None:
        body = Notice(what=what, peer=peer).SerializeToString()
        self._put(seat, Frame(to=seat.party, kind=Frame.NOTICE, body=body).SerializeToString())

    def _put(self, seat: _Seat, raw: bytes) -> None:
        seat.queue.append(raw)
        seat.bytes += len(raw)
        self._change.notify_all()


@dataclass
class Load:
    """What the exchange did so far."""

    frames: int = 0
    bytes: int = 0


class Exchange:
    """All sessions.

    Parameters
    ----------
    secret : shared with the coordinator, authenticates tokens.
    tls : whether a client certificate names the party, which must be the token's.
    """

    def __init__(self, secret: bytes, *, tls: bool = False) -> None:
        self._secret, self._tls = secret, tls
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        self.load = Load()

    def on_loopback(self) -> Exchange:
        """The same sessions for callers without a certificate."""
        other = Exchange(self._secret)
        other._sessions, other._lock, other.load = self._sessions, self._lock, self.load
        return other

    def attend(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Serve one stream."""
        try:
            token = self._token(context)
            session = self._open(token)
        except BadMessage as error:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
            raise
        stream = session.sit(token.party)
        context.add_callback(lambda: self._ended(token, session, stream))
        reader = threading.Thread(
            target=self._read, args=(requests, token, session, stream, context), daemon=True, name="exchange-reader"
        )
        reader.start()
        try:
            while time.time() < token.until:
                if (raw := session.take(token.party, stream, 1.0)) is not None:
                    yield raw
        except StreamOver:
            return
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the session's time is over")

    def _token(self, context: grpc.ServicerContext) -> Token:
        given = dict(context.invocation_metadata()).get(TOKEN_HEADER, "")
        token = Token.decode(str(given), self._secret)
        if self._tls:
            shown = [name.decode() for name in context.auth_context().get("x509_common_name", [])]
            if shown != [token.party]:
                raise BadMessage(f"the certificate is of {', '.join(shown) or 'nobody'}, the token of {token.party}")
        return token

    def _open(self, token: Token) -> Session:
        with self._lock:
            self._forget()
            session = self._sessions.setdefault(token.session, Session(token))
        if session.members != token.members:
            raise BadMessage("a token for other members of the session")
        return session

    def _read(
        self, requests: Iterator[bytes], token: Token, session: Session, stream: int, context: grpc.ServicerContext
    ) -> None:
        """Route what a party sends until it says that it leaves; a stream that just ends is a lost one."""
        try:
            for raw in requests:
                frame = Frame.FromString(raw)
                if frame.kind == Frame.NOTICE and frame.sender == token.party:
                    break
                if frame.sender != token.party or frame.to not in token.members or frame.kind == Frame.NOTICE:
                    raise BadMessage(f"a frame from {frame.sender[:64]!r} to {frame.to[:64]!r}")
                self.load.frames += 1
                self.load.bytes += len(raw)
                if not session.route(token.party, stream, frame.to, raw):
                    return
            else:
                return
        except (DecodeError, BadMessage) as error:
            _log.warning("run %s: party %s: %s; its stream is ended", token.run, token.party, error)
        except Exception:  # gRPC raises plain exceptions from a broken request stream
            if context.is_active():
                _log.exception("run %s: the stream of %s", token.run, token.party)
            return
        session.leave(token.party, stream, lost=False)

    def _ended(self, token: Token, session: Session, stream: int) -> None:
        session.leave(token.party, stream, lost=True)
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        """Drop sessions that nobody can come to any more, and the oldest of too many; a late party learns the rest."""
        now, spare = time.time(), len(self._sessions) - SESSIONS
        for number, (name, held) in enumerate(list(self._sessions.items())):
            if held.empty and (held.until < now or number < spare):
                del self._sessions[name]


def serve(
    exchange: Exchange, address: str, credentials: grpc.ServerCredentials | None = None
) -> tuple[grpc.Server, int]:
    """Start serving at host:port (0: any); returns the server and its port.  Raises `RuntimeError` if it is taken."""
    handler = grpc.method_handlers_generic_handler(
        SERVICE, {METHOD: grpc.stream_stream_rpc_method_handler(exchange.attend)}
    )
    server = grpc.server(
        ThreadPoolExecutor(SEATS, thread_name_prefix="exchange"),
        handlers=[handler],
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MAX_FRAME), *KEEPALIVE],
        maximum_concurrent_rpcs=SEATS,
    )
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    return server, port
