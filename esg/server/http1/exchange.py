"""One request and its response: what an application receives and sends.

Everything that affects the state of a response is in this file:

    state      | http.response.start | http.response.body, more to come | ... the last
    -----------+---------------------+----------------------------------+-----------
    START      | BODY                | error                            | error
    BODY       | error               | BODY                             | DONE
    DONE       | error               | error                            | error

A client that is gone turns every `send` into ClientDisconnected (an OSError), and every `receive`
into `http.disconnect`. See the ASGI HTTP specification, version 2.4.
"""

from __future__ import annotations

import asyncio
import logging
from enum import Enum
from typing import TYPE_CHECKING

from esg.server.asgi import Message, Scope
from esg.server.http1.framing import CHUNKED, Framing
from esg.server.http1.response import (
    Fields,
    check_fields,
    check_status,
    has_no_body,
)

if TYPE_CHECKING:
    from esg.server.http1.connection import Connection

logger = logging.getLogger("esg")

JOIN_LIMIT = 65536
"""Largest body, in bytes, that is copied behind its head to go out in one write."""


class ResponseState(Enum):
    """How far the response is."""

    START = "http.response.start"
    BODY = "http.response.body"
    DONE = "nothing"


START, BODY, DONE = ResponseState


class ClientDisconnected(OSError):
    """The client has gone away, so nothing can be sent to it."""


class Exchange:
    """One request and its response, on one connection, in turn."""

    __slots__ = (
        "_awaiting_continue",
        "_bodiless",
        "_chunked",
        "_connection",
        "_fields",
        "_gone",
        "_hung_up",
        "_left",
        "_pieces",
        "_told_end",
        "_waiters",
        "complete",
        "framing",
        "head_sent",
        "http11",
        "keep_alive",
        "received",
        "scope",
        "state",
        "status",
        "target",
        "task",
    )

    def __init__(
        self, connection: Connection, scope: Scope, framing: Framing, target: bytes
    ) -> None:
        self.scope = scope
        self.framing = framing
        self.target = target
        self.http11 = scope["http_version"] == "1.1"
        self.keep_alive = framing.keep_alive
        self.task: asyncio.Task[None] | None = None
        self._connection = connection
        # the request's body
        self.complete = framing.length == 0
        self.received = 0
        self._pieces: list[bytes] = []
        self._told_end = False
        self._awaiting_continue = framing.expects_continue
        self._waiters: list[asyncio.Future[None]] = []
        # the response
        self.state = START
        self.status = 0
        self.head_sent = False
        self._fields: Fields | None = None
        self._bodiless = False
        self._chunked = False
        self._left: int | None = None
        # the client
        self._gone = False
        self._hung_up = False

    # -- the application's side --------------------------------------------------------

    async def run(self) -> None:
        """Call the application, and see that the exchange ends whatever it does."""
        service = self._connection.service
        try:
            await service.app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            self._abandon()
            raise
        except BaseException as error:  # noqa: BLE001 - applications may raise anything
            self._failed(error)
        else:
            if self.state is not DONE and not self._gone:
                self._unfinished()
        finally:
            service.running.discard(self)
            self.task = None

    async def receive(self) -> Message:
        """The ASGI `receive` of this request."""
        while True:
            if self._gone or self.state is DONE:
                return {"type": "http.disconnect"}
            if self._pieces:
                return self._request_message(self._take_body())
            if self.complete and not self._told_end:
                return self._request_message(b"")
            if self._hung_up:
                return {"type": "http.disconnect"}
            if self._awaiting_continue and not self.complete:
                self._awaiting_continue = False
                if not self.head_sent:
                    self._connection.send_continue()
            waiter = self._connection.service.loop.create_future()
            self._waiters.append(waiter)
            await waiter

    async def send(self, message: Message) -> None:
        """The ASGI `send` of this request. Raises ClientDisconnected once the client is gone."""
        if self._gone:
            raise ClientDisconnected("the client has disconnected")
        kind = message["type"]
        if kind != self.state.value:
            raise RuntimeError(f"expected {self.state.value}, got {kind!r}")
        if self.state is START:
            self._start(message)
        else:
            body = message.get("body", b"")
            self._send_body(
                body if type(body) is bytes else bytes(body), message.get("more_body", False)
            )
            if self._connection.write_paused:
                await self._connection.writable()

    # -- the response ------------------------------------------------------------------

    def _start(self, message: Message) -> None:
        status = check_status(message["status"])
        self._fields = check_fields(message.get("headers", ()))
        self.status = status
        self.state = BODY
        self._connection.service.hold(self)

    def _send_body(self, body: bytes, more: bool) -> None:
        fields = self._fields
        if fields is not None:
            self._fields = None
            head = self._head(fields, None if more else len(body))
        else:
            head = b""
        data = self._framed(body, more)
        if not more:
            self.state = DONE
            if self._left:
                self._fail_framing(f"the body is {self._left} bytes shorter than Content-Length")
        if head and len(data) <= JOIN_LIMIT:
            self._connection.write(head + data)
        else:
            if head:
                self._connection.write(head)
            if data:
                self._connection.write(data)
        if not more:
            self._finish()

    def flush_head(self) -> None:
        """Send a head that is still held, since no body came with it in the same turn."""
        if self._fields is not None and not self._gone:
            fields, self._fields = self._fields, None
            self._connection.write(self._head(fields, None))

    def _head(self, fields: Fields, body_length: int | None) -> bytes:
        """The head's bytes, with the framing decided; `body_length` if the body is all there."""
        self.head_sent = True
        status = self.status
        lines = fields.lines
        self._bodiless = self.scope["method"] == "HEAD" or has_no_body(status)
        length = fields.length
        if status == 204:
            length = None
        elif length is None and body_length is not None and status != 304:
            length = body_length if not self._bodiless or body_length else None
        if length is not None:
            lines.append(b"content-length: %d\r\n" % length)
            self._left = None if self._bodiless else length
        elif not self._bodiless:
            if self.http11:
                self._chunked = True
                lines.append(b"transfer-encoding: chunked\r\n")
            else:
                self.keep_alive = False
        if fields.closes or not self._connection.may_go_on(self):
            self.keep_alive = False
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        elif not self.http11:
            lines.append(b"connection: keep-alive\r\n")
        begin = self._connection.service.heads.begin(status, fields.given)
        return b"%b%b\r\n" % (begin, b"".join(lines))

    def _framed(self, body: bytes, more: bool) -> bytes:
        """A piece of body as it goes on the wire."""
        if self._bodiless:
            return b""
        if self._chunked:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            return chunk if more else chunk + b"0\r\n\r\n"
        if self._left is not None:
            if len(body) > self._left:
                excess, body = len(body) - self._left, body[: self._left]
                self._fail_framing(f"the body is {excess} bytes longer than Content-Length")
            self._left -= len(body)
        return body

    def _fail_framing(self, what: str) -> None:
        """The application broke its own Content-Length: say so, and end the connection."""
        self._left = None
        self.keep_alive = False
        self._log_error(what)

    def _finish(self) -> None:
        self.state = DONE
        self._drop_body()
        self._wake()
        self._connection.exchange_done(self)

    # -- what may go wrong -------------------------------------------------------------

    def _failed(self, error: BaseException) -> None:
        if self._gone and _is_disconnect(error):
            logger.debug("the client left before its response", exc_info=error)
            return
        self._log_error("exception in the application", error)
        self._end_badly()

    def _unfinished(self) -> None:
        what = "without a response" if self.state is START else "before its response was complete"
        self._log_error(f"the application returned {what}")
        self._end_badly()

    def _abandon(self) -> None:
        """The task was cancelled: nothing more can come of this exchange."""
        if self.state is not DONE and not self._gone:
            self._end_badly()

    def _end_badly(self) -> None:
        """Answer 500 if no byte of a response is out; else cut it where it stands."""
        if self._gone or self.state is DONE:
            return
        self.state = DONE
        self._fields = None
        self.keep_alive = False
        if self.head_sent:
            self._connection.cut()
        else:
            self.status = 500
            self._connection.answer_error(500)
        self._connection.record(self)
        self._wake()

    def _log_error(self, what: str, error: BaseException | None = None) -> None:
        logger.error(
            "%s %s: %s %s",
            self._connection.service.subject,
            what,
            self.scope["method"],
            ascii(self.scope["path"]),
            exc_info=error,
        )

    # -- the connection's side ---------------------------------------------------------

    def body_came(self, piece: bytes) -> None:
        """A piece of the request's body; dropped if nobody will ask for it."""
        self.received += len(piece)
        if self.state is not DONE and not self._gone:
            self._pieces.append(piece)
            self._connection.buffered += len(piece)
            self._wake()

    def body_ended(self) -> None:
        """The request's body is complete."""
        self.complete = True
        self._wake()

    def disconnect(self) -> None:
        """The client is gone: wake whoever waits for it."""
        self._gone = True
        self._drop_body()
        self._wake()

    def hang_up(self) -> None:
        """The client will send nothing more, but may still read the response."""
        self._hung_up = True
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _take_body(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._connection.body_taken(len(body))
        return body

    def _drop_body(self) -> None:
        if self._pieces:
            self._take_body()

    def _request_message(self, body: bytes) -> Message:
        self._told_end = self.complete
        return {"type": "http.request", "body": body, "more_body": not self.complete}

    @property
    def unread(self) -> int:
        """Bytes of request body that are still to come; CHUNKED if that can't be known."""
        if self.complete:
            return 0
        return CHUNKED if self.framing.length == CHUNKED else self.framing.length - self.received

    @property
    def expects_unread(self) -> bool:
        """Whether the client still waits for a 100 (Continue) that was never sent."""
        return self._awaiting_continue and not self.complete


def _is_disconnect(error: BaseException) -> bool:
    """Whether an error says only that the client has gone, perhaps inside a group.

    Starlette turns ClientDisconnected, and an `http.disconnect` it didn't wait for, into an
    exception of its own.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(_is_disconnect(inner) for inner in error.exceptions)
    causes = (error, error.__cause__, error.__context__)
    if any(isinstance(cause, ClientDisconnected) for cause in causes):
        return True
    return type(error).__name__ == "ClientDisconnect"
