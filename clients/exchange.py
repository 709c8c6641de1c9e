"""A party's stream to the exchange: it dials out, and comes back by itself when the line breaks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import grpc

from fl_core.session.sealed import MAX_FRAME, SealedChannel
from fl_core.wire.exchange_pb2 import Frame

METHOD = "/fedseal.exchange.Exchange/Attend"
TOKEN_HEADER = "fedseal-token"  # noqa: S105  # the header's name
AWAY = 20.0  # seconds the exchange may be away
PAUSES = (0.1, 0.3, 1.0)
JOIN_SECONDS = 5.0
_KEEPALIVE = [
    ("grpc.keepalive_time_ms", 3000),
    ("grpc.keepalive_timeout_ms", 4000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.ping_timeout_ms", 4000),  # of the transport's own pings, which hold up those above
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_FRAME),
    ("grpc.max_send_message_length", MAX_FRAME),
    ("grpc.enable_retries", 0),
    ("grpc.min_reconnect_backoff_ms", 2000),  # and so long a connection may take
    ("grpc.use_local_subchannel_pool", 1),
]
_FINAL = (
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INVALID_ARGUMENT,
)
_log = logging.getLogger("fedseal.exchange")


@dataclass(frozen=True)
class Tls:
    """PEM bytes: the authority of the exchange, and this party's certificate with its key."""

    authority: bytes
    certificate: bytes
    key: bytes


class Stream:
    """Carries a channel's frames; a context manager.

    Parameters
    ----------
    channel : whose frames they are.
    address : host:port of the exchange.
    token : from the message that opened the session.
    tls : None on loopback.
    away : seconds without the exchange after which the session is lost.
    """

    def __init__(
        self, channel: SealedChannel, address: str, token: str, *, tls: Tls | None = None, away: float = AWAY
    ) -> None:
        self._channel, self._address, self._token, self._tls, self._away = channel, address, token, tls, away
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="exchange-stream")

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let the stream take what is left, for a few seconds."""
        self._channel.leave()
        self._ending.set()
        self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        last, tries = time.monotonic(), 0
        while True:
            began = time.monotonic()
            with self._dial() as line:
                error = self._carry(line)
            if error is None or (self._ending.is_set() and time.monotonic() - began > JOIN_SECONDS):
                return
            if error.code() in _FINAL:
                self._channel.lose(f"it refused this party: {error.details()}")
                return
            if self._came:
                last, tries = time.monotonic(), 0
            if time.monotonic() - last > self._away or self._ending.is_set():
                self._channel.lose(f"{self._address} was away for more than {self._away:g} s")
                return
            _log.warning("the exchange at %s is away (%s); trying again", self._address, error.code().name)
            time.sleep(PAUSES[min(tries, len(PAUSES) - 1)])
            tries += 1

    def _dial(self) -> grpc.Channel:
        if self._tls is None:
            return grpc.insecure_channel(self._address, _KEEPALIVE)
        held = grpc.ssl_channel_credentials(self._tls.authority, self._tls.key, self._tls.certificate)
        return grpc.secure_channel(self._address, held, _KEEPALIVE)

    def _carry(self, line: grpc.Channel) -> grpc.RpcError | None:
        """One stream, to its end: None when it ended as it should, else why it broke."""
        self._came = False
        attend = line.stream_stream(METHOD, Frame.SerializeToString, Frame.FromString)
        frames: Iterator[Frame] = self._channel.outgoing()
        try:
            for frame in attend(frames, metadata=[(TOKEN_HEADER, self._token)]):
                self._came = True
                self._channel.incoming(frame)
        except grpc.RpcError as error:
            return error
        return None
