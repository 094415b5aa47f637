"""One WebSocket: the application's side of it, its states, its pings and its end.

Everything that affects what an application may send is in this file:

    state      | websocket.accept | .send | .close      | .http.response.start | .body, the last
    -----------+------------------+-------+-------------+----------------------+----------------
    CONNECTING | OPEN             | error | CLOSED, 403 | DENYING              | error
    DENYING    | error            | error | error       | error                | CLOSED
    OPEN       | error            | OPEN  | CLOSED      | error                | error
    CLOSED     | ClientDisconnected, an OSError

In CLOSED, `receive` returns the messages sent before, then `websocket.disconnect`. Every
state becomes CLOSED when the client leaves or the server closes. See the ASGI WebSocket
specification, version 2.4. Before it is OPEN, a session is an HTTP exchange (`handshake.py`); from
then on it is the protocol of its transport.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from esg import forks
from esg.server.accesslog.entries import SocketRecord
from esg.server.asgi.disconnection import ClientDisconnected, is_disconnect
from esg.server.asgi.types import Message, Scope
from esg.server.outflow import LINGER, Outflow
from esg.server.state import TICK, Service
from esg.server.transports import end_output, reset
from esg.server.websocket.codec import Codec
from esg.server.websocket.frames import (
    ABNORMAL,
    BINARY,
    CLOSE_FRAME,
    GOING_AWAY,
    INTERNAL_ERROR,
    LARGE,
    NORMAL,
    PING_FRAME,
    POLICY_VIOLATION,
    PONG_FRAME,
    SHORT,
    SHORT_HEADS,
    TEXT,
    TRY_AGAIN_LATER,
    Failure,
    check_close_code,
    close_content,
    cut_reason,
    frame_head,
    medium_head,
    pack,
    read_close,
)
from esg.server.websocket.inbox import Inbox

logger = logging.getLogger("esg")

CONNECTING = "websocket.accept, websocket.close or websocket.http.response.start"
DENYING = "websocket.http.response.body"
OPEN = "websocket.send or websocket.close"
CLOSED = ""
"""The states of a session. Each is the set of messages that are allowed in it."""

CLOSE_LIMIT = 10.0
"""Seconds that a client has to answer a close frame."""


class Opening(Protocol):
    """The part of a handshake that its session uses until the WebSocket is open."""

    def accept(self, message: Message) -> Agreement:
        """Answer `websocket.accept`, after which the session has the transport."""

    async def deny(self, status: int) -> None:
        """Refuse the WebSocket with a short response."""

    async def send(self, message: Message) -> None:
        """Send a message of a response that refuses the WebSocket, as `http.response.*`."""


class Agreement(NamedTuple):
    """The negotiated settings, and the data that the client has sent after its request."""

    make_codec: Callable[[], Codec]
    compresses: bool
    received: bytes


class Session(asyncio.Protocol):
    """One WebSocket."""

    __slots__ = (
        "_inbox",
        "_opening",
        "_outflow",
        "_owed_pong",
        "_ping_at",
        "_pinged_at",
        "_pong_by",
        "_scope",
        "_told_connect",
        "_transport",
        "_waiters",
        "code",
        "data_received",
        "deadline",
        "is_closing",
        "reason",
        "record",
        "round_trip",
        "sent",
        "service",
        "state",
        "write",
    )

    _transport: asyncio.Transport
    write: Callable[[bytes], None]
    """Send bytes, in order: a method of the outflow."""
    is_closing: Callable[[], bool]
    """Whether written data is dropped because the transport is closing: the transport's method."""
    data_received: Callable[[bytes], None]  # type: ignore[assignment]  # an attribute, not a method
    """Take in bytes from the client: the inbox's method, without a call in between."""

    def __init__(self, service: Service, opening: Opening, scope: Scope) -> None:
        self.service = service
        self._opening: Opening | None = opening
        self._scope = scope
        self.state = CONNECTING
        self.code = ABNORMAL
        """How the connection was closed, for the application."""
        self.reason = ""
        self.record: SocketRecord | None = None
        """The entry in the access log, if there is one."""
        # receiving
        self._inbox = Inbox(service, self)
        self.data_received = self._inbox.feed
        self._waiters: tuple[asyncio.Future[None], ...] = ()
        self._told_connect = False
        # writing
        self.sent = 0
        """The bytes of the messages that the application sent."""
        self._outflow = Outflow(service.loop, service.output)
        self._owed_pong: bytes | None = None
        """The content of a ping that arrived while the client read nothing."""
        # time
        self.deadline = math.inf
        self._ping_at = math.inf
        self._pinged_at = 0.0
        self._pong_by = math.inf
        self.round_trip = math.nan
        """Seconds from the last ping to its pong."""

    # -- the application's side --------------------------------------------------------

    async def receive(self) -> Message:
        """The ASGI `receive`."""
        inbox = self._inbox
        while not inbox.queue:
            if not self._told_connect:
                self._told_connect = True
                return {"type": "websocket.connect"}
            if self.state is CLOSED and inbox.exhausted:
                return {
                    "type": "websocket.disconnect",
                    "code": self.code,
                    "reason": self.reason,
                }
            waiter = self.service.loop.create_future()
            if self._waiters:
                waiting = [other for other in self._waiters if not other.done()]  # or cancelled
                self._waiters = (*waiting, waiter)
            else:
                self._waiters = (waiter,)
            await waiter
        content = inbox.next()
        if type(content) is str:
            return {"type": "websocket.receive", "text": content}
        return {"type": "websocket.receive", "bytes": content}

    async def send(self, message: Message) -> None:
        """The ASGI `send`. Raises ClientDisconnected once the connection is closed."""
        if self.state is not OPEN or message["type"] != "websocket.send":
            await self._send_other(message)
            return
        text = message.get("text")
        if text is None:
            first, content = BINARY, message.get("bytes")
            if type(content) is not bytes:
                content = _as_bytes(content)
        else:
            first, content = TEXT, text.encode()
        size = len(content)
        if self._inbox.compresses:
            self.write(self._inbox.codec().message(first, content))
        elif size < SHORT:
            self.write(SHORT_HEADS[first][size] + content)
        elif size < LARGE:
            self.write(medium_head(first, 126, size) + content)
        else:
            self.write(frame_head(first, size))
            self.write(content)
        self.sent += size
        if self._outflow.paused or self.is_closing():
            await self._writable()

    async def _send_other(self, message: Message) -> None:
        kind, state = message["type"], self.state
        if state is CLOSED:
            raise ClientDisconnected(f"the WebSocket is closed ({self.code})")
        opening = self._opening
        if state is OPEN and kind == "websocket.close":
            code = message.get("code")
            code = NORMAL if code is None else check_close_code(code)
            self._inbox.clear()
            self.close_with(code, message.get("reason") or "")
        elif opening is not None and state is CONNECTING and kind == "websocket.accept":
            self._accept(opening, message)
        elif opening is not None and state is CONNECTING and kind == "websocket.close":
            self.state = CLOSED
            await opening.deny(403)
        elif opening is not None and kind == "websocket.http.response.start":
            if state is not CONNECTING:
                raise RuntimeError(f"expected {state}, got {kind!r}")
            await opening.send({**message, "type": "http.response.start"})
            self.state = DENYING
        elif opening is not None and state is DENYING and kind == DENYING:
            await opening.send({**message, "type": "http.response.body"})
            if not message.get("more_body", False):
                self.state = CLOSED
        else:
            raise RuntimeError(f"expected {state}, got {kind!r}")

    def disconnect(self) -> None:
        """The client has left before the end of the handshake."""
        self.state = CLOSED
        self.on_arrival()

    def ended(self) -> None:
        """The application has returned."""
        if self.state is OPEN:
            self.close_with(NORMAL, "")

    def forget(self) -> None:
        """The application has ended, so it won't take the waiting messages."""
        self._inbox.clear()

    def cancelled(self) -> None:
        """The application was cancelled: the worker ends."""
        if self.state is OPEN:
            self.close_with(GOING_AWAY, "")

    def failed(self, error: BaseException) -> None:
        """The application has raised an exception."""
        if self.state is CLOSED and is_disconnect(error):
            logger.debug("the client left its WebSocket", exc_info=error)
            return
        forks.end_if_forked_child(self.service.loop, error)
        logger.error(
            "%s exception in the application: WebSocket %s",
            self.service.subject,
            ascii(self._scope["path"]),
            exc_info=error,
        )
        if self.state is OPEN:
            self.close_with(INTERNAL_ERROR, "")

    # -- opening -------------------------------------------------------------------------

    def _accept(self, opening: Opening, message: Message) -> None:
        make_codec, compresses, received = opening.accept(message)
        self._inbox.agree(make_codec, compresses)
        self._opening = None
        self.state = OPEN
        config, now = self.service.config, self.service.loop.time()
        if config.ws_ping_interval:
            self.deadline = self._ping_at = now + config.ws_ping_interval
        if received:
            self.data_received(received)

    def take_transport(self, transport: asyncio.Transport, write_paused: bool) -> None:
        """Become the protocol of the transport of an HTTP connection."""
        self._transport = transport
        self._outflow.attach(transport)
        self.write = self._outflow.write
        self.is_closing = transport.is_closing
        transport.set_protocol(self)
        if write_paused:
            self.pause_writing()

    # -- from the event loop -------------------------------------------------------------

    def eof_received(self) -> bool:
        """The client has ended its side, after a close frame or without one: end ours, too."""
        self._inbox.stop()
        if self.state is OPEN:
            self.state = CLOSED
            self._await_end(LINGER)
        self._outflow.flush()  # the transport closes when this returns
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._inbox.stop()
        self.deadline = math.inf
        self.state = CLOSED
        self.write = _write_nothing
        self._outflow.drop()
        self._outflow.resume()
        self.on_arrival()
        self.service.socket_lost(self)

    def pause_writing(self) -> None:
        now = self.service.now
        self._outflow.pause(now)
        self._expire_by(now + self.service.config.timeout_send + TICK)

    def resume_writing(self) -> None:
        self._outflow.resume()
        if self._owed_pong is not None:
            content, self._owed_pong = self._owed_pong, None
            self.write(pack(PONG_FRAME, content))

    async def _writable(self) -> None:
        """Wait until the client has read enough of what was sent."""
        await self._outflow.writable()
        if self.state is not OPEN:
            raise ClientDisconnected(f"the WebSocket is closed ({self.code})")

    # -- from the inbox ------------------------------------------------------------------

    def on_arrival(self) -> None:
        """See `Owner`."""
        waiters = self._waiters
        if waiters:
            self._waiters = ()
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def on_beginning(self) -> None:
        """See `Owner`."""
        limit = self.service.config.ws_message_timeout
        if limit and self.state is OPEN:
            self._expire_by(self.service.now + limit + TICK)

    def on_ping(self, content: bytes) -> None:
        """See `Owner`. A client that reads nothing only gets the newest pong (5.5.3)."""
        if self._outflow.paused:
            self._owed_pong = content
        else:
            self.write(pack(PONG_FRAME, content))

    def on_pong(self, content: bytes) -> None:
        """See `Owner`. An unsolicited pong has no effect (RFC 6455, section 5.5.3)."""
        if self._pong_by < math.inf and content == self._ping_content():
            self.round_trip = self.service.loop.time() - self._pinged_at
            self._pong_by = math.inf

    def on_close(self, content: bytes) -> None:
        """See `Owner`. The answer has the same content (RFC 6455, section 5.5.1)."""
        code, reason = read_close(content)
        if self.state is OPEN:
            self.state, self.code, self.reason = CLOSED, code, reason
            self.write(pack(CLOSE_FRAME, content))
        self._inbox.stop()
        self._await_end(LINGER)
        self._outflow.flush()
        self._transport.close()

    def on_failure(self, failure: Failure) -> None:
        """See `Owner`. Send the close code, and read no more (RFC 6455, section 7.1.7)."""
        if self.write is _write_nothing:
            return
        if self.state is OPEN:
            self.close_with(failure.code, failure.reason)
        if failure.code == TRY_AGAIN_LATER:
            self.service.warn_of_holdings()
        self._hang_up()

    def pause_reading(self) -> None:
        """See `Owner`."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """See `Owner`."""
        if self.write is not _write_nothing:
            self._transport.resume_reading()

    # -- closing -------------------------------------------------------------------------

    def close_with(self, code: int, reason: str) -> None:
        """Begin the closing handshake; the client has a limited time to answer."""
        if self.state is not OPEN:
            return
        self.state, self.code, self.reason = CLOSED, code, cut_reason(reason)
        self.write(pack(CLOSE_FRAME, close_content(code, self.reason)))
        self._inbox.shut()
        self._await_end(CLOSE_LIMIT)

    def _hang_up(self) -> None:
        """End our side, and drop data that still arrives: unread data would cause a reset."""
        self._inbox.stop()
        self._await_end(LINGER)
        self._outflow.flush()
        end_output(self._transport)

    def _await_end(self, silence: float) -> None:
        """Tell the application; the client has `silence` seconds after it has read everything."""
        self.on_arrival()
        self._ping_at = self._pong_by = math.inf
        self._owed_pong = None
        now = self.service.now
        self._outflow.linger(now, silence)
        self.deadline = now + silence + TICK

    def close(self) -> None:
        """End the connection now, because the worker ends; data that isn't sent yet is lost."""
        self._outflow.flush()
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()

    def end(self) -> None:
        """See `state.Connection`."""
        self._outflow.end()

    # -- time ----------------------------------------------------------------------------

    def _expire_by(self, moment: float) -> None:
        self.deadline = min(self.deadline, moment)

    def expire(self, now: float) -> None:
        """Handle the deadline, which may have one of several reasons."""
        if self.state is CLOSED:
            self._expire_closing(now)
            return
        config = self.service.config
        self.deadline = math.inf
        if self._outflow.paused:
            if self._outflow.stalls(now, config.timeout_send):
                reset(self._transport)
                return
            self._expire_by(now + config.timeout_send)
        if self._pong_by < now:
            # A client isn't to blame if we don't read from it, or if it is still reading data that
            # was sent before the ping.
            if not (self._inbox.heard or self._inbox.paused or self._outflow.paused):
                self._die()
                return
            self._inbox.heard = False
            self._pong_by = now + config.ws_ping_timeout
        if config.ws_message_timeout:
            late = self._inbox.begun + config.ws_message_timeout + TICK
            if late < now and not self._inbox.excuses(now):
                self.on_failure(Failure(POLICY_VIOLATION, "a message took too long"))
                return
            self._expire_by(max(late, now))
        if self._ping_at < now:
            self._ping(now)
        self._expire_by(min(self._ping_at, self._pong_by))

    def _expire_closing(self, now: float) -> None:
        """Wait while the client reads what was sent; then it has limited time to close."""
        if self._outflow.lingers(now, self.service.config.timeout_send, acknowledged=True):
            self.deadline = now + self._outflow.next_look
        else:
            reset(self._transport)

    def _ping(self, now: float) -> None:
        config = self.service.config
        self._ping_at = now + config.ws_ping_interval
        if self._pong_by < math.inf:
            return  # a ping is still to be answered
        self._pinged_at = now
        self._inbox.heard = False
        self.write(pack(PING_FRAME, self._ping_content()))
        if config.ws_ping_timeout:
            self._pong_by = now + config.ws_ping_timeout

    def _ping_content(self) -> bytes:
        return b"%x" % int(self._pinged_at * 1e6)

    def _die(self) -> None:
        """A peer that doesn't answer pings has left, even if its connection looks open."""
        self.close_with(INTERNAL_ERROR, "keepalive ping timeout")
        self.code, self.reason = ABNORMAL, ""
        self._hang_up()


def _as_bytes(content: Any) -> bytes:
    """The content of a binary message. Raises TypeError for another type."""
    if not isinstance(content, bytes | bytearray | memoryview):
        raise TypeError(f"websocket.send has text or bytes, not {type(content).__name__}")
    return bytes(content)


def _write_nothing(data: object) -> None:
    """The write method of a lost connection: drops the data."""
