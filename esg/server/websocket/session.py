"""One WebSocket as its application has it, and what frames become messages when.

Everything that affects what an application may send is in this file:

    state      | websocket.accept | .send | .close      | .http.response.start | .body, the last
    -----------+------------------+-------+-------------+----------------------+----------------
    CONNECTING | OPEN             | error | CLOSED, 403 | DENYING              | error
    DENYING    | error            | error | error       | error                | CLOSED
    OPEN       | error            | OPEN  | CLOSED      | error                | error
    CLOSED     | ClientDisconnected, an OSError

From CLOSED on, `receive` gives what the client sent before, then `websocket.disconnect`. Every
state becomes CLOSED when the client leaves or the server closes. See the ASGI WebSocket
specification, version 2.4. Before it is OPEN, a session is an HTTP exchange (`handshake.py`); from
then on it is the protocol of its transport.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from esg.server.asgi import Message, Scope
from esg.server.http1.exchange import ClientDisconnected, is_disconnect
from esg.server.loops import lines_writer
from esg.server.service import TICK, Service
from esg.server.websocket.codec import Codec
from esg.server.websocket.frames import (
    ABNORMAL,
    BINARY,
    CLOSE,
    CONTINUATION,
    GOING_AWAY,
    INTERNAL_ERROR,
    INVALID_DATA,
    MASKED_HEADER,
    NORMAL,
    PING_FRAME,
    TEXT,
    TOO_BIG,
    Failure,
    check_close_code,
    check_header,
    cut_reason,
    frame_head,
    pack,
    unmask,
)

if TYPE_CHECKING:
    from esg.server.access_log import SocketRecord
    from esg.server.websocket.handshake import Handshake

logger = logging.getLogger("esg")

CONNECTING = "websocket.accept, websocket.close or websocket.http.response.start"
DENYING = "websocket.http.response.body"
OPEN = "websocket.send or websocket.close"
CLOSED = ""
"""The states of a session, each the messages that are expected in it."""

_PLAIN = (TEXT, BINARY)

QUEUE_BYTES = 1 << 20
"""Bytes of messages that wait for the application; beyond it none is added."""

BACKLOG = 65536
"""Bytes of frames behind a full queue, until the client is no more read from.

Pings and pongs among them are dealt with at once.
"""

MOST_PIECES = 100
"""Pieces of a frame that are kept as they came."""

LARGE = 16384
"""Bytes of a message that are worth a second piece, or a view, to save a copy."""

CLOSE_LIMIT = 10.0
"""Seconds that a client has to answer a close frame."""

LINGER = 2.0
"""Seconds a closing connection waits for the client's end (RFC 6455, section 7.1.1)."""


class Session(asyncio.Protocol):
    """One WebSocket."""

    __slots__ = (
        "_backlog",
        "_backlogged",
        "_codec",
        "_compresses",
        "_deaf",
        "_fragmented",
        "_handshake",
        "_have",
        "_heard",
        "_limit",
        "_make_codec",
        "_most_queued",
        "_paused",
        "_pieces",
        "_ping_at",
        "_pinged_at",
        "_pong_by",
        "_progress_at",
        "_queue",
        "_queued",
        "_scope",
        "_special",
        "_told_connect",
        "_transport",
        "_unsent",
        "_waiters",
        "_wanted",
        "_write_waiters",
        "code",
        "deadline",
        "is_closing",
        "reason",
        "record",
        "round_trip",
        "sent",
        "service",
        "state",
        "write",
        "write_lines",
        "write_paused",
    )

    _transport: asyncio.Transport
    write: Callable[[bytes], None]
    """Send bytes, in order: the transport's own method."""
    write_lines: Callable[[Iterable[bytes]], None]
    """Send several pieces, in order, at once where the transport can."""
    is_closing: Callable[[], bool]
    """Whether nothing that is written goes anywhere any more: the transport's own method."""

    def __init__(self, service: Service, handshake: Handshake, scope: Scope) -> None:
        config = service.config
        self.service = service
        self._handshake: Handshake | None = handshake
        self._scope = scope
        self.state = CONNECTING
        self.code = ABNORMAL
        """How the connection was closed; what the application is told."""
        self.reason = ""
        self.record: SocketRecord | None = None
        """What the access log says of it, where there is one."""
        # receiving
        self._queue: deque[str | bytes] = deque()
        self._queued = 0
        """Characters and bytes in the queue."""
        self._most_queued: float = config.ws_max_queue or math.inf
        self._limit: float = config.ws_max_size or math.inf
        self._waiters: tuple[asyncio.Future[None], ...] = ()
        self._told_connect = False
        # reading
        self._codec: Codec | None = None
        self._make_codec: Callable[[], Codec]
        self._compresses = False
        self._pieces: list[bytes | bytearray] = []
        """A frame that isn't whole yet."""
        self._have = 0
        """Bytes of it."""
        self._wanted = 0
        """Bytes of it that are needed to go on."""
        self._fragmented = False
        """Whether a message is coming in fragments."""
        self._backlog: deque[bytes] = deque()
        """Frames behind a full queue."""
        self._backlogged = 0
        self._special = False
        """Whether a plain message isn't just put into the queue."""
        self._paused = False
        self._deaf = False
        """Whether all that comes is dropped."""
        # writing
        self.sent = 0
        """Bytes of messages, as the application sent them."""
        self.write_paused = False
        self._write_waiters: list[asyncio.Future[None]] = []
        self._unsent = 0
        self._progress_at = 0.0
        # time
        self.deadline = math.inf
        self._heard = False
        """Whether anything has come since the last ping."""
        self._ping_at = math.inf
        self._pinged_at = 0.0
        self._pong_by = math.inf
        self.round_trip = math.nan
        """Seconds from the last ping to its pong."""

    # -- the application's side --------------------------------------------------------

    async def receive(self) -> Message:
        """The ASGI `receive`."""
        while True:
            if self._queue:
                content = self._queue.popleft()
                self._queued -= len(content)
                if self._special and not self._queue:
                    # In a turn of its own: one client's messages shan't keep all others waiting.
                    service = self.service
                    service.loop.call_soon(self._refill, context=service.context)
                key = "text" if type(content) is str else "bytes"
                return {"type": "websocket.receive", key: content}
            if not self._told_connect:
                self._told_connect = True
                return {"type": "websocket.connect"}
            if self.state is CLOSED and not self._backlog:
                return {
                    "type": "websocket.disconnect",
                    "code": self.code,
                    "reason": self.reason,
                }
            waiter = self.service.loop.create_future()
            self._waiters = (*self._waiters, waiter)
            await waiter

    async def send(self, message: Message) -> None:
        """The ASGI `send`. Raises ClientDisconnected once the connection is closed."""
        if self.state is not OPEN or message["type"] != "websocket.send":
            await self._send_other(message)
            return
        text = message.get("text")
        if text is None:
            first, content = BINARY, _as_bytes(message.get("bytes"))
        else:
            first, content = TEXT, text.encode()
        size = len(content)
        if self._compresses:
            self.write(self._codec_now().message(first, content))
        elif size < LARGE:
            self.write(pack(first, content))
        else:
            self.write_lines((frame_head(first, size), content))
        self.sent += size
        if self.write_paused or self.is_closing():
            await self._writable()

    async def _send_other(self, message: Message) -> None:
        kind, state = message["type"], self.state
        if state is CLOSED:
            raise ClientDisconnected(f"the WebSocket is closed ({self.code})")
        handshake = self._handshake
        if state is OPEN and kind == "websocket.close":
            code = message.get("code")
            code = NORMAL if code is None else check_close_code(code)
            self._queue.clear()
            self._backlog.clear()
            self._queued = self._backlogged = 0
            self.close_with(code, message.get("reason") or "")
        elif handshake is not None and state is CONNECTING and kind == "websocket.accept":
            self._accept(handshake, message)
        elif handshake is not None and state is CONNECTING and kind == "websocket.close":
            self.state = CLOSED
            await handshake.deny(403)
        elif handshake is not None and kind == "websocket.http.response.start":
            if state is not CONNECTING:
                raise RuntimeError(f"expected {state}, got {kind!r}")
            await handshake.send({**message, "type": "http.response.start"})
            self.state = DENYING
        elif handshake is not None and state is DENYING and kind == DENYING:
            if not message.get("more_body", False):
                self.state = CLOSED
            await handshake.send({**message, "type": "http.response.body"})
        else:
            raise RuntimeError(f"expected {state}, got {kind!r}")

    def disconnect(self) -> None:
        """The client has gone before the handshake was over."""
        self.state = CLOSED
        self._wake()

    def ended(self) -> None:
        """The application has returned."""
        if self.state is OPEN:
            self.close_with(NORMAL, "")

    def cancelled(self) -> None:
        """The application was cancelled: the worker ends."""
        if self.state is OPEN:
            self.close_with(GOING_AWAY, "")

    def failed(self, error: BaseException) -> None:
        """The application has raised an exception."""
        if self.state is CLOSED and is_disconnect(error):
            logger.debug("the client left its WebSocket", exc_info=error)
            return
        logger.error(
            "%s exception in the application: WebSocket %s",
            self.service.subject,
            ascii(self._scope["path"]),
            exc_info=error,
        )
        if self.state is OPEN:
            self.close_with(INTERNAL_ERROR, "")

    # -- opening -------------------------------------------------------------------------

    def _accept(self, handshake: Handshake, message: Message) -> None:
        head, self._make_codec, self._compresses = handshake.response(message)
        rest = handshake.hand_over(self)
        self._handshake = None
        self.state = OPEN
        config, now = self.service.config, self.service.loop.time()
        if config.ws_ping_interval:
            self.deadline = self._ping_at = now + config.ws_ping_interval
        self.write(head)
        if rest:
            self.data_received(rest)

    def take_transport(self, transport: asyncio.Transport, write_paused: bool) -> None:
        """Become the protocol of a transport that an HTTP connection had."""
        self._transport = transport
        self.write, self.write_lines = transport.write, lines_writer(transport)
        self.is_closing = transport.is_closing
        transport.set_protocol(self)
        if write_paused:
            self.pause_writing()

    # -- from the event loop -------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._heard = True
        if self._have:
            data = self._completed(data)
            if not data:
                return
        try:
            self._split(data)
        except Failure as failure:
            self._fail(failure)

    def eof_received(self) -> bool:
        """Without a close frame, or behind it: there is nothing left to say."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._deaf = True
        self._forget_partial()
        self.deadline = math.inf
        self.state = CLOSED
        self._special = True
        self.write = self.write_lines = _write_nothing
        self._resume_writers()
        self._wake()
        self.service.socket_lost(self)

    def pause_writing(self) -> None:
        self.write_paused = True
        self._unsent = self._transport.get_write_buffer_size()
        self._progress_at = now = self.service.now
        self._look_at(now + self.service.config.timeout_send + TICK)

    def resume_writing(self) -> None:
        self._resume_writers()

    def _resume_writers(self) -> None:
        self.write_paused = False
        waiters, self._write_waiters = self._write_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _writable(self) -> None:
        """Wait until the client has taken enough of what was sent."""
        if self.is_closing():
            await asyncio.sleep(0)
        while self.write_paused:
            waiter = self.service.loop.create_future()
            self._write_waiters.append(waiter)
            await waiter
        if self.write is _write_nothing:
            raise ClientDisconnected(f"the WebSocket is closed ({self.code})")

    # -- frames --------------------------------------------------------------------------

    def _split(self, data: bytes) -> None:
        """Take each whole frame; keep what is left for when more has come. Raises Failure."""
        at, end, wanted = 0, len(data), MASKED_HEADER
        while end - at >= MASKED_HEADER:
            first, second = data[at], data[at + 1]
            length, start = second & 0x7F, at + MASKED_HEADER
            if length > 125:
                start += 2 if length == 126 else 8
                if start > end:
                    check_header(first, second > 127, 0, self._compresses)
                    wanted = start - at
                    break
                length = int.from_bytes(data[at + 2 : start - 4], "big")
            stop = start + length
            plain = first in _PLAIN and second > 127 and not self._special
            if plain and stop <= end and length <= self._limit:
                content = data[start:stop] if length < LARGE else memoryview(data)[start:stop]
                content = unmask(content, data[start - 4 : start])
                self.on_message(content if first == BINARY else _text(content))
                at = stop
                continue
            check_header(first, second > 127, length, self._compresses)
            if length > self._limit:
                raise Failure(TOO_BIG, f"over size limit ({length} > {self._limit} bytes)")
            if stop > end:
                wanted = stop - at
                break
            self._take_frame(data[at:stop])
            if self._deaf:
                return
            at = stop
        if at < end:
            if end - at >= 2 and end - at < MASKED_HEADER:
                length = data[at + 1] & 0x7F
                check_header(data[at], data[at + 1] > 127, length, self._compresses)
            self._pieces, self._have, self._wanted = [data[at:]], end - at, wanted

    def _completed(self, data: bytes) -> bytes:
        """What there is of a frame, with some more; nothing if that still isn't enough."""
        pieces = self._pieces
        pieces.append(data)
        self._have += len(data)
        if self._have < self._wanted:
            if len(pieces) > MOST_PIECES:
                _merge(pieces)
            return b""
        self._forget_partial()
        return b"".join(pieces)

    def _forget_partial(self) -> None:
        self._pieces, self._have = [], 0

    def _take_frame(self, frame: bytes) -> None:
        """A frame that may have to wait for its turn. Raises Failure."""
        opcode = frame[0] & 0x0F
        if opcode < CLOSE and self.state is CLOSED:
            return
        in_turn = opcode <= CLOSE and self.state is OPEN
        if in_turn and (self._backlog or self._full()):
            self._special = True
            self._backlog.append(frame)
            self._backlogged += len(frame)
            if self._backlogged > BACKLOG and not self._paused:
                self._paused = True
                self._transport.pause_reading()
            return
        self._decode(frame)

    def _decode(self, frame: bytes) -> None:
        first = frame[0]
        if first in _PLAIN and not self._fragmented:
            start = MASKED_HEADER + {126: 2, 127: 8}.get(frame[1] & 0x7F, 0)
            content = unmask(frame[start:], frame[start - 4 : start])
            self.on_message(content if first == BINARY else _text(content))
            return
        if first & 0x0F < CLOSE:
            self._fragmented = not first & 0x80
            self._special = self._special or self._fragmented
        self._codec_now().feed(frame, self)
        if first == CONTINUATION | 0x80:
            self._special = self._is_special()

    def _codec_now(self) -> Codec:
        """The codec, made when it is first needed: most connections that idle need none."""
        if self._codec is None:
            self._codec = self._make_codec()
        return self._codec

    def on_message(self, message: str | bytes) -> None:
        """See `Sink`."""
        self._queue.append(message)
        self._queued += len(message)
        if self._waiters:
            self._wake()
        if len(self._queue) >= self._most_queued or self._queued > QUEUE_BYTES:
            self._special = True

    def on_pong(self, content: bytes) -> None:
        """See `Sink`. One that answers nothing means nothing (RFC 6455, section 5.5.3)."""
        if self._pong_by < math.inf and content == self._ping_content():
            self.round_trip = self.service.loop.time() - self._pinged_at
            self._pong_by = math.inf

    def on_close(self, code: int, reason: str) -> None:
        """See `Sink`. The codec has answered it."""
        if self.state is OPEN or (self._deaf and self.code == ABNORMAL):
            self.state, self.code, self.reason = CLOSED, code, reason
        self._deaf = True
        self._wake()
        self.deadline = self.service.now + LINGER + TICK
        if self.write is not _write_nothing:
            self._transport.close()

    # -- the queue -----------------------------------------------------------------------

    def _full(self) -> bool:
        return len(self._queue) >= self._most_queued or self._queued > QUEUE_BYTES

    def _is_special(self) -> bool:
        closed = self.state is CLOSED
        return closed or self._fragmented or bool(self._backlog) or self._full()

    def _refill(self) -> None:
        """The application took all messages there were, so there is room for others."""
        try:
            while self._backlog and not self._full():
                frame = self._backlog.popleft()
                self._backlogged -= len(frame)
                self._decode(frame)
        except Failure as failure:
            self._fail(failure)
        self._special = self._is_special()
        if self._paused and not self._backlog:
            self._paused = False
            if self.write is not _write_nothing:
                self._transport.resume_reading()
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, ()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # -- closing -------------------------------------------------------------------------

    def close_with(self, code: int, reason: str) -> None:
        """Begin the closing handshake; the client has a limited time to answer."""
        if self.state is not OPEN:
            return
        reason = cut_reason(reason)
        self.state, self.code, self.reason = CLOSED, code, reason
        self.write(self._codec_now().close(code, reason))
        self._await_end(CLOSE_LIMIT)

    def _fail(self, failure: Failure) -> None:
        """The client broke the protocol: say so, and hear no more (RFC 6455, section 7.1.7)."""
        if self.write is _write_nothing:
            return
        if self.state is OPEN:
            self.close_with(failure.code, failure.reason)
        self._hang_up()

    def _hang_up(self) -> None:
        """End our side, and drop what still comes: closing with unread bytes resets."""
        self._deaf = True
        self._forget_partial()
        self._await_end(LINGER)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _await_end(self, limit: float) -> None:
        self._wake()
        self._special = True
        self._ping_at = self._pong_by = math.inf
        self.deadline = self.service.now + limit + TICK
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def close(self) -> None:
        """End it now, with what is left to send: the worker ends."""
        self._transport.close()

    # -- time ----------------------------------------------------------------------------

    def _look_at(self, moment: float) -> None:
        self.deadline = min(self.deadline, moment)

    def expire(self, now: float) -> None:
        """The deadline has passed: see what it was for."""
        if self.state is CLOSED:
            self._transport.abort()
            return
        config = self.service.config
        self.deadline = math.inf
        if self.write_paused and not self._progresses(now, config.timeout_send):
            self._transport.abort()
            return
        if self._pong_by < now:
            if not (self._heard or self._paused):
                self._die()
                return
            self._heard = False
            self._pong_by = now + config.ws_ping_timeout
        if self._ping_at < now:
            self._ping(now)
        self._look_at(min(self._ping_at, self._pong_by))

    def _progresses(self, now: float, limit: float) -> bool:
        """Whether the client took something of what is to be sent to it, in time."""
        before, self._unsent = self._unsent, self._transport.get_write_buffer_size()
        if self._unsent < before:
            self._progress_at = now
        self._look_at(now + limit)
        return now - self._progress_at < limit

    def _ping(self, now: float) -> None:
        config = self.service.config
        self._ping_at = now + config.ws_ping_interval
        if self._pong_by < math.inf:
            return  # one is still to be answered
        self._pinged_at = now
        self._heard = False
        self.write(pack(PING_FRAME, self._ping_content()))
        if config.ws_ping_timeout:
            self._pong_by = now + config.ws_ping_timeout

    def _ping_content(self) -> bytes:
        return b"%x" % int(self._pinged_at * 1e6)

    def _die(self) -> None:
        """A peer that answers no ping is gone, though its connection may not look so."""
        self.close_with(INTERNAL_ERROR, "keepalive ping timeout")
        self.code, self.reason = ABNORMAL, ""
        self._hang_up()


def _text(content: bytes) -> str:
    """The text of a message. Raises Failure (RFC 6455, section 8.1)."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise Failure(INVALID_DATA, f"{error.reason} at position {error.start}") from None


def _merge(pieces: list[bytes | bytearray]) -> None:
    """Make one of many: a list of single bytes takes more memory than they."""
    whole = pieces[0]
    if not isinstance(whole, bytearray):
        whole = bytearray(whole)
    for piece in pieces[1:]:
        whole += piece
    pieces[:] = [whole]


def _as_bytes(content: Any) -> bytes:
    """The content of a binary message. Raises TypeError if it is none."""
    if not isinstance(content, bytes | bytearray | memoryview):
        raise TypeError(f"websocket.send has text or bytes, not {type(content).__name__}")
    return bytes(content)


def _write_nothing(data: object) -> None:
    """What a connection that is lost does with a message."""
