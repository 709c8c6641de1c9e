"""A party's channel in a session: messages sealed to each peer, over one stream to the exchange that may break.

Who learns what: the exchange sees who talks to whom, sizes and times.  It cannot read, alter, repeat, reorder or invent
a message: every piece is sealed under a key of its direction and session (`fl_core.session.keys`) and numbered.  It can
drop and delay, which ends the session with an error that names peer and step.

A message is cut into pieces of 1 MiB.  A piece stays with its sender, sealed, until the peer's program has read it; at
most `WINDOW` bytes of them, then `send` waits.  When a stream comes back, each side says with a new epoch what it
expects next, and the same sealed bytes are sent again: no number is ever used for two plaintexts.  What still arrives
of an older epoch is dropped.

Transport: `outgoing` gives what to put on the stream, `incoming` takes what came.  Neither blocks the other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError

from fl_core.channel import MAX_STEP, Channel, Transcript, check_message
from fl_core.errors import BadFrame, BadMessage, BadSignature, ExchangeLost, FedsealError, PeerLost, PeerTimeout
from fl_core.session.keys import TAG_BYTES, Handshake, Keys, SessionName
from fl_core.session.peer import Peer
from fl_core.session.pieces import GO_ON, HEAD, PIECE, START, pieces
from fl_core.trust.identity import Identity
from fl_core.wire.exchange_pb2 import Control, Frame, Hello, Notice

WINDOW = 32 << 20
ACK_BYTES, ACK_PIECES = WINDOW // 8, 64
MAX_FRAME = PIECE + 4096
REPORT = "report"
MAX_REPORT = 256 << 10
_DATA = (Frame.DATA, Frame.BYE)
_Parsed = TypeVar("_Parsed", Notice, Hello, Control)


class SealedChannel(Channel):
    """One party's end; see the module.

    Parameters
    ----------
    identity : this party's.
    name : run, session and everybody's card.
    timeout : seconds a `recv`, or a `send` to a peer that does not read, waits.
    """

    def __init__(self, identity: Identity, name: SessionName, *, timeout: float) -> None:
        peers = [member for member in name.members if member != identity.name]
        super().__init__(identity.name, peers, session=name.session, timeout=timeout)
        self._handshake = Handshake(identity, name)
        self._peers = {peer: Peer() for peer in peers}
        self._transcripts = {peer: Transcript(self.me, peer) for peer in peers}
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)  # for the program
        self._work = threading.Condition(self._lock)  # for the stream
        self._failure: Callable[[str], FedsealError] | None = None
        self._parting: Control | None = None  # said again to whoever comes back
        self._stream = 0
        self._closing = False
        self._turn = 0
        self.step = "opening"  # what the program does now
        self.on_report: Callable[[str, bytes], None] | None = None  # takes reports that come between messages

    # ---- the program's side

    def gather(self, timeout: float) -> None:
        """Wait until every party has come and shown its session key.  Raises `PeerTimeout` naming one that has not."""
        with self._lock:
            for peer, state in self._peers.items():
                self._wait(state.is_met, peer, self.step, timeout)

    def transcript(self, peer: str) -> str:
        """A digest over all pieces' authentication tags; equal at both ends once both have read everything.

        It shows that two parties speak of one conversation.  It does not bind one that holds the keys and lies.
        """
        return self._transcripts[peer].hexdigest()

    def wait_any(self, *, timeout: float) -> str | None:
        """A peer from which a message waits, or None after `timeout` seconds.  Raises the session's failure."""
        with self._lock:
            end = time.monotonic() + timeout
            while True:
                self._raise_failure(self.step)
                self._take_reports()
                for peer, state in self._peers.items():
                    if state.has_news():
                        return peer
                if (left := end - time.monotonic()) <= 0:
                    return None
                self._news.wait(left)

    @property
    def talking(self) -> list[str]:
        """Peers that have not ended their part, or of which something is unread."""
        with self._lock:
            return [peer for peer, state in self._peers.items() if not state.inbox.ended or state.has_news()]

    def _send(self, to: str, parts: Sequence[memoryview], step: str) -> None:
        if len(step) > MAX_STEP:
            raise ValueError(f"a step's name of {len(step)} characters; allowed: {MAX_STEP}")
        state, self.step = self._peers[to], step
        with state.turn:
            for piece in pieces(parts, step):
                keys = self._room(to, state, step)
                number = state.outbox.end
                sealed = keys.send.seal(Frame.DATA, number, piece)
                self._transcripts[to].add(self.me, sealed[-TAG_BYTES:])
                with self._lock:
                    state.outbox.add(Frame.DATA, sealed)
                    self._work.notify()

    def _room(self, to: str, state: Peer, step: str) -> Keys:
        """Wait until the peer is there and reads."""
        with self._lock:
            self._wait(lambda: state.keys is not None and state.outbox.unread < WINDOW, to, step, self.timeout)
            assert state.keys is not None
            return state.keys

    def _recv(self, source: str, step: str, max_bytes: int, timeout: float) -> bytearray:
        self.step = step
        while True:
            said, message = self._message(source, step, max_bytes, timeout)
            if said == step or self.on_report is None:
                return message
            self.on_report(source, bytes(message))

    def _message(self, source: str, step: str, max_bytes: int, timeout: float) -> tuple[str, bytearray]:
        """The next message that `step` takes, or a report."""
        first = memoryview(self._piece(source, step, timeout))
        if len(first) < 1 + HEAD.size or first[:1] != START:
            raise self._refuse(source, step, "it is not the beginning of a message")
        length, total = HEAD.unpack_from(first, 1)
        at = 1 + HEAD.size + length
        said = str(first[at - length : at], "utf-8", "replace")
        between = said == REPORT != step and self.on_report is not None
        try:
            check_message(source, REPORT if between else step, said, total, MAX_REPORT if between else max_bytes)
        except BadFrame as error:
            self.abort(error)
            raise
        message, filled, rest = bytearray(total), 0, first[at:]
        while True:
            if len(rest) > total - filled:
                raise self._refuse(source, step, f"a message longer than the {total} bytes that it says")
            message[filled : filled + len(rest)] = rest
            filled += len(rest)
            if filled == total:
                return said, message
            piece = memoryview(self._piece(source, step, timeout))
            if piece[:1] != GO_ON or len(piece) == 1:
                raise self._refuse(source, step, f"a message that ends after {filled} of {total} bytes")
            rest = piece[1:]

    def _piece(self, source: str, step: str, timeout: float) -> bytes:
        """The next piece of a peer, opened."""
        state = self._peers[source]
        with self._lock:
            self._wait(state.has_news, source, step, timeout, reading=True)
            if state.first is not None:
                piece, state.first = state.first, None
                return piece
            number, sealed = state.inbox.take()
        return self._open(source, step, number, sealed)

    def _open(self, source: str, step: str, number: int, sealed: bytes) -> bytes:
        state = self._peers[source]
        keys = state.keys
        assert keys is not None
        self._transcripts[source].add(source, sealed[-TAG_BYTES:])
        try:
            piece = keys.receive.open(Frame.DATA, number, sealed)
        except BadMessage as error:
            raise self._refuse(source, step, str(error)) from None
        with self._lock:
            state.unsaid_bytes += len(sealed)
            state.unsaid_pieces += 1
            drained = state.inbox.ended and not state.inbox.held
            if drained or state.unsaid_bytes >= ACK_BYTES or state.unsaid_pieces >= ACK_PIECES:
                self._acknowledge(source)
        return piece

    def _take_reports(self) -> None:
        """Hand over the reports of all peers, while the program waits for one of them; with the lock held."""
        if self.on_report is None:
            return
        for peer, state in self._peers.items():
            while state.has_news():
                if state.first is None:
                    state.first = self._open(peer, self.step, *state.inbox.take())
                if not _is_report(state.first):
                    break
                _, message = self._message(peer, REPORT, MAX_REPORT, self.timeout)
                self.on_report(peer, bytes(message))

    def _wait(self, ready: Callable[[], bool], peer: str, step: str, timeout: float, *, reading: bool = False) -> None:
        """Wait with the lock held; what came before a peer left still counts."""
        state, end = self._peers[peer], time.monotonic() + timeout
        while not ready():
            self._raise_failure(step)
            if reading:
                self._take_reports()
            if reading and state.inbox.ended:
                raise PeerLost(peer, step, "it had ended its part")
            if (left := end - time.monotonic()) <= 0:
                raise PeerTimeout(peer, step, timeout)
            self._news.wait(left)

    def _raise_failure(self, step: str) -> None:
        if self._failure is not None:
            raise self._failure(step)

    def _refuse(self, source: str, step: str, problem: str) -> BadFrame:
        error = BadFrame(source, step, problem)
        self.abort(error)
        return error

    # ---- the end

    def abort(self, error: BaseException) -> None:
        """Tell every peer that this party stops, by code and step; no text leaves.  Whoever waits here is woken."""
        code = error.code if isinstance(error, FedsealError) else "internal"
        with self._lock:
            if self._parting is None:
                self._parting = Control(abort=Control.Abort(code=code, step=self.step[:MAX_STEP]))
                for peer in self._peers:
                    self._control(peer, self._parting)
            self._failure = self._failure or (lambda step: PeerLost(self.me, step, f"it stopped ({code})"))
            self._news.notify_all()

    def lose(self, why: str) -> None:
        """The exchange is away for good."""
        with self._lock:
            self._failure = self._failure or (lambda step: ExchangeLost(step, why))
            self._news.notify_all()

    def finish(self) -> None:
        """End this party's part once every peer has read what was sent to it, or has ended its own part.

        Raises `PeerTimeout`, or the session's failure where one came meanwhile; the stream ends in any case.
        """
        last = "the end of the session"
        try:
            with self._lock:
                self._raise_failure(last)
                for peer, state in self._peers.items():
                    self._acknowledge(peer)
                    if state.keys is not None and not state.left:
                        state.outbox.add(Frame.BYE, state.keys.send.seal(Frame.BYE, state.outbox.end, b""))
                self._work.notify_all()
                for peer, state in self._peers.items():
                    if state.keys is not None:
                        self._wait(state.is_done, peer, last, self.timeout)
                self._raise_failure(last)
        finally:
            self.leave()

    def leave(self) -> None:
        """End the stream once what is to be sent has been taken by it."""
        with self._lock:
            self._closing = True
            self._work.notify_all()

    # ---- the stream's side

    def outgoing(self) -> Iterator[Frame]:
        """What to put on the stream, one after the other, and in the end that this party leaves.

        A later call ends the earlier one's iterator.
        """
        with self._lock:
            self._stream += 1
            mine = self._stream
            self._work.notify_all()
        while True:
            with self._lock:
                while self._stream == mine and (frame := self._next_frame()) is None and not self._closing:
                    self._work.wait()
                if self._stream != mine:
                    return
            if frame is None:
                break
            yield frame
        yield Frame(sender=self.me, kind=Frame.NOTICE)

    def _next_frame(self) -> Frame | None:
        """Control first, then the peers in turn."""
        names = self.peers
        for peer in names:
            if self._peers[peer].controls:
                return self._peers[peer].controls.popleft()
        for step in range(len(names)):
            peer = names[(self._turn + step) % len(names)]
            box = self._peers[peer].outbox
            if box.ready:
                self._turn = (self._turn + step + 1) % len(names)
                number, kind, sealed = box.next()
                return Frame(sender=self.me, to=peer, kind=_kind(kind), epoch=box.epoch, number=number, body=sealed)
        return None

    def incoming(self, frame: Frame) -> None:
        """Take what came.  Whatever is wrong with it ends the session."""
        with self._lock:
            try:
                self._take(frame)
            except (BadMessage, BadSignature) as error:
                peer = frame.sender if frame.sender in self._peers else "?"
                text = str(error)
                self._failure = self._failure or (lambda step: BadFrame(peer, step, text))
                self.abort(BadFrame(peer, self.step, text))
            self._news.notify_all()

    def _take(self, frame: Frame) -> None:
        if not frame.sender and frame.kind == Frame.NOTICE:
            self._notice(_parse(Notice, frame.body))
            return
        if frame.sender not in self._peers or frame.to != self.me:
            raise BadMessage(f"a frame from {frame.sender[:64]!r} to {frame.to[:64]!r}")
        state = self._peers[frame.sender]
        if frame.kind == Frame.HELLO:
            self._meet(frame.sender, state, frame.body)
        elif state.keys is None:
            return  # of a stream before; it will be sent again
        elif frame.kind in _DATA:
            last = frame.kind == Frame.BYE
            if last:
                state.keys.receive.open(Frame.BYE, frame.number, frame.body)
            taken = state.inbox.add(frame.epoch, frame.number, frame.body, last=last, window=WINDOW + PIECE)
            if taken and last and not state.inbox.held:
                self._acknowledge(frame.sender)
        elif frame.kind == Frame.CONTROL:
            self._obey(frame.sender, state, frame)
        else:
            raise BadMessage(f"a frame of kind {frame.kind}")

    def _notice(self, notice: Notice) -> None:
        if notice.peer == self.me:
            return
        if notice.peer not in self._peers:
            raise BadMessage(f"news of {notice.peer[:64]!r}, who is not in the session")
        state = self._peers[notice.peer]
        if notice.what == Notice.HERE:
            state.controls.clear()  # of a stream before; what counts is said again
            frame = Frame(sender=self.me, to=notice.peer, kind=Frame.HELLO)
            frame.body = self._handshake.hello.SerializeToString()
            state.controls.append(frame)
            if state.keys is not None:
                self._ask(notice.peer, state)
            if self._parting is not None:
                self._control(notice.peer, self._parting)
            self._work.notify_all()
            return
        state.left = True
        if not state.inbox.ended or notice.what == Notice.GONE:
            why = "it left the session" if notice.what == Notice.LEFT else "its connection is lost"
            self._failure = self._failure or (lambda step: PeerLost(notice.peer, step, why))

    def _meet(self, peer: str, state: Peer, body: bytes) -> None:
        """A peer's session key; it has one a session."""
        if state.keys is None:
            state.keys, state.hello = self._handshake.keys(peer, _parse(Hello, body)), body
            self._ask(peer, state)
            if self._parting is not None:
                self._control(peer, self._parting)
        elif _parse(Hello, body).key != _parse(Hello, state.hello).key:
            raise BadMessage("a second session key")

    def _ask(self, peer: str, state: Peer) -> None:
        """Have a peer send from the next expected piece on, in a new epoch."""
        state.inbox.epoch += 1
        self._control(peer, Control(resume=Control.Resume(epoch=state.inbox.epoch, next=state.inbox.expected)))

    def _obey(self, peer: str, state: Peer, frame: Frame) -> None:
        assert state.keys is not None
        data = state.keys.receive_control.open(Frame.CONTROL, frame.number, frame.body)
        if frame.number <= state.seen_control:
            raise BadMessage("a control frame came again")
        state.seen_control = frame.number
        control = _parse(Control, data)
        if control.HasField("ack"):
            state.outbox.acknowledge(control.ack.read)
        elif control.HasField("resume"):
            state.outbox.resume(control.resume.epoch, control.resume.next)
            self._work.notify_all()
        elif control.HasField("abort"):
            why = f"it stopped in step {control.abort.step[:MAX_STEP]!r} ({control.abort.code[:MAX_STEP]})"
            self._failure = self._failure or (lambda step: PeerLost(peer, step, why))

    def _acknowledge(self, peer: str) -> None:
        state = self._peers[peer]
        state.unsaid_bytes = state.unsaid_pieces = 0
        self._control(peer, Control(ack=Control.Ack(read=state.inbox.consumed)))

    def _control(self, peer: str, control: Control) -> None:
        state = self._peers[peer]
        if state.keys is None:
            return
        number, state.sent_controls = state.sent_controls, state.sent_controls + 1
        body = state.keys.send_control.seal(Frame.CONTROL, number, control.SerializeToString())
        state.controls.append(Frame(sender=self.me, to=peer, kind=Frame.CONTROL, number=number, body=body))
        self._work.notify_all()


def _is_report(first: bytes) -> bool:
    """Whether a message that begins like this is a report that is all here."""
    if len(first) < 1 + HEAD.size or first[:1] != START:
        return False
    length, total = HEAD.unpack_from(first, 1)
    body = len(first) - 1 - HEAD.size - length
    return first[1 + HEAD.size :][:length] == REPORT.encode() and body == total


def _kind(number: int) -> Frame.Kind:
    return Frame.BYE if number == Frame.BYE else Frame.DATA


def _parse(kind: type[_Parsed], data: bytes) -> _Parsed:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise BadMessage(f"not a {kind.__name__}") from None
