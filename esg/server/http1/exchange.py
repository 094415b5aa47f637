"""The response of an exchange as HTTP/1.1 writes it: heads, chunks, and the connection's end.

The states of the response are those of `asgi/exchange.py`. RFC 9112, sections 6 and 7.
"""

from __future__ import annotations

from typing import Any, Protocol

from esg.server.asgi import exchange as asgi
from esg.server.asgi.disconnection import ClientDisconnected
from esg.server.asgi.exchange import (
    BODY,
    DONE,
    FILE,
    GONE,
    START,
    TRAILERS,
    as_bytes,
)
from esg.server.asgi.request_body import UNKNOWN_LENGTH
from esg.server.asgi.types import Headers, Message
from esg.server.asgi.upgrade import Successor
from esg.server.http1.framing import PLAIN, Framing
from esg.server.http1.response import (
    CHUNKED,
    CLOSE,
    CONTENT_LENGTH,
    DEFAULTS,
    NO_CONTENT,
    STREAMING,
    TRAILING,
    USUAL,
    Heads,
    check_fields,
    status_line,
)
from esg.server.http1.sendfile import FileWire, send_file
from esg.server.outflow import MOST_COLLECTED

LAST_CHUNK = b"0\r\n\r\n"

SMALL_CHUNK = 256
"""Pieces of a stream with fewer bytes, such as events or words of a text, take the shortest way."""

MOST_SMALL_CHUNKS = MOST_COLLECTED // SMALL_CHUNK
"""The most of them that wait for the end of a turn."""

SIZES = tuple(b"%x\r\n" % size for size in range(SMALL_CHUNK))
"""The first line of a small chunk, by its size."""


class Wire(asgi.Carrier, FileWire, Protocol):
    """The HTTP/1.1 connection of an exchange."""

    ends_soon: bool
    """Whether the client has closed its side, so that no further request can come."""

    def may_go_on(self, exchange: Any) -> bool:
        """Whether the connection can stay open after this response."""

    def abandon(self, exchange: Any) -> None:
        """The client has left, and the event loop hasn't noticed yet."""

    # for upgrades

    @property
    def refuses(self) -> bool:
        """Whether the data after the request being answered can't be served."""

    def hand_over(self, successor: Successor) -> bytes:
        """Give the transport away; returns the data that the client has sent after the request."""

    def close(self) -> None:
        """Send the rest, then wait a short time for the client to close."""


class Exchange(asgi.Exchange[Wire, Framing]):
    """One request and its response on an HTTP/1.1 connection."""

    __slots__ = (
        "_flags",
        "_remaining",
        "_trailers",
        "keep_alive",
    )

    # These are set when the application gives the head; `_trailers` only if it announces some.
    keep_alive: bool
    """Whether the connection stays open; decided when the head is sent."""
    _flags: int
    """The kinds of the application's fields, and how the body is delimited: see `response.py`."""
    _remaining: int
    """Bytes of body that are still to come by the Content-Length; UNKNOWN_LENGTH without one."""
    _trailers: list[bytes]

    # -- the head ------------------------------------------------------------------------

    def _start(self, message: Message, reason: bytes | None = None) -> None:
        connection = self._connection
        heads: Heads = connection.service.heads
        status = message["status"]
        ready = heads.ready.get(status) or heads.add(status)
        code, begin, no_content, fields, head, flags, length = ready
        headers = message.get("headers", ())
        observation = self.observation
        if observation is not None:
            headers = [(name, value) for name, value in headers]
        if headers == fields:
            lines = [head]
        else:
            lines, flags, length = check_fields(headers, begin)
            if flags & DEFAULTS:
                lines[0] = heads.begin(code, flags)
            if fields is None:
                heads.remember(code, headers, lines, flags, length)
            flags |= no_content
        if message.get("trailers"):
            flags |= TRAILING
            self._trailers = [LAST_CHUNK[:-2]]
        if observation is not None:
            observation.response_headers = headers
        if reason is not None:
            rest = lines[0].removeprefix(status_line(code))
            lines[0] = status_line(code, reason) + rest
        self.status = code
        self.keep_alive = True
        self._flags = flags
        self._remaining = length
        self.held_head = lines
        self.state = BODY
        connection.outflow.hold(self)

    def flush_head(self) -> None:
        lines = self.held_head
        if lines is not None and self.state is BODY:
            self.held_head = None
            self._close_head(lines, UNKNOWN_LENGTH)
            self._connection.write(b"".join(lines))

    def _close_head(self, lines: list[bytes], body_length: int) -> None:
        """Decide how the body is delimited and whether the connection stays open; make the fields.

        `body_length` is UNKNOWN_LENGTH if more of the body is still to come.
        """
        framing, connection, flags = self.framing, self._connection, self._flags
        usual = framing is PLAIN and flags & CONTENT_LENGTH and flags <= USUAL
        if usual and not (connection.ends_soon or connection.service.draining):
            lines.append(b"\r\n")
            return
        if framing.head_only or flags & NO_CONTENT:
            self._bodiless_head(lines, body_length)
        elif flags & CONTENT_LENGTH:
            pass  # the application has delimited it
        elif body_length >= 0 and not flags & TRAILING:
            self._remaining = body_length
            lines.append(b"content-length: %d\r\n" % body_length)
        elif framing.http11:
            self._flags = flags | CHUNKED
            lines.append(b"transfer-encoding: chunked\r\n")
        else:
            flags |= CLOSE  # the end of the connection marks the end of the body
        goes_on = not flags & CLOSE and framing.keep_alive
        if connection.ends_soon or connection.service.draining or not self.body.complete:
            goes_on = connection.may_go_on(self) and goes_on
        if not goes_on:
            self.keep_alive = False
            lines.append(b"connection: close\r\n\r\n")
        elif framing.http11:
            lines.append(b"\r\n")
        else:
            lines.append(b"connection: keep-alive\r\n\r\n")

    def _bodiless_head(self, lines: list[bytes], body_length: int) -> None:
        """A response to HEAD, or a 304, may have the length that its body would have; a 204 may
        not."""
        if self.status == 204:
            lines[:] = [line for line in lines if line[:15].lower() != b"content-length:"]
        elif body_length > 0 and not self._flags & CONTENT_LENGTH:
            lines.append(b"content-length: %d\r\n" % body_length)
        self._flags |= NO_CONTENT
        self._remaining = UNKNOWN_LENGTH

    # -- the body ------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        state = self.state
        if message["type"] != state:
            await self._extend(message)
            return
        if state is START:
            self._start(message)
            return
        body = message.get("body", b"")
        if type(body) is not bytes:
            body = as_bytes(body)
        if "more_body" not in message or not message["more_body"]:
            self._send_body(body, False)
            self._finish()
            return
        connection = self._connection
        outflow = connection.outflow
        if self._flags & STREAMING and body:
            size = len(body)
            if size < SMALL_CHUNK and not (outflow.paused or connection.ends_soon):
                pieces = outflow.pieces
                if 0 < len(pieces) < MOST_SMALL_CHUNKS:  # `write`, inlined for a stream of events
                    pieces.append(SIZES[size] + body + b"\r\n")
                    return
                outflow.flush()
            connection.write(b"%x\r\n%b\r\n" % (size, body))
        else:
            self._send_body(body, True)
        if outflow.paused or connection.is_closing():
            await outflow.writable()

    def _send_body(self, body: bytes, more: bool) -> None:
        size = len(body)
        lines = self.held_head
        if lines is not None:
            self.held_head = None
            self._close_head(lines, UNKNOWN_LENGTH if more else size)
        if more or self._remaining != size:
            body = self._framed(body, more)
        elif self.observation is not None:
            self.observation.sent += size
        connection = self._connection
        if lines is not None:
            outflow = connection.outflow
            if size < MOST_COLLECTED:
                lines.append(body)
                body = b""
            data = b"".join(lines)
            if outflow.held is self and not connection.ends_soon:
                outflow.held = None  # `write`, inlined for the usual response
                output = connection.service.output
                if output.first is outflow:
                    output.first = None
                    outflow.transport.write(data)
                else:
                    outflow.pieces.append(data)
            else:
                connection.write(data)
        if body:
            connection.write(body)

    def _framed(self, body: bytes, more: bool) -> bytes:
        """A piece of the body as it is sent."""
        size = len(body)
        if self._flags & CHUNKED:
            if self.observation is not None:
                self.observation.sent += size
            else:
                self._flags |= STREAMING
            chunk = b"%x\r\n%b\r\n" % (size, body) if size else b""
            return chunk if more or self._flags & TRAILING else chunk + LAST_CHUNK
        allowed = self._count(size, more)
        return body if allowed == size else body[:allowed]

    def _count(self, size: int, more: bool) -> int:
        """Count a piece of a body that isn't in chunks; returns how much of the piece is sent.

        If the body doesn't match its Content-Length, this is logged and ends the connection.
        """
        before = self._remaining
        if before == UNKNOWN_LENGTH:
            allowed = 0 if self._flags & NO_CONTENT else size
        else:
            allowed = min(size, before)
            self._remaining = before - allowed
            if size > before or (self._remaining and not more):
                self.keep_alive = False
                over = size - before
                amount = "1 byte" if abs(over) == 1 else f"{abs(over)} bytes"
                fault = f"{amount} {'longer' if over > 0 else 'shorter'}"
                self.log_error(f"the body is {fault} than its Content-Length")
        if self.observation is not None:
            self.observation.sent += allowed
        return allowed

    def _finish(self) -> None:
        if self._flags & TRAILING:
            self.state = TRAILERS
            return
        self.state = DONE
        if self.body.pieces or self._receivers:
            self._settle()
        self._connection.exchange_done(self)

    async def _send_file(self, fd: int, offset: int, count: int, more: bool) -> None:
        if self.state is GONE:
            raise ClientDisconnected("the client has disconnected")
        connection = self._connection
        lines, self.held_head = self.held_head or [], None
        if lines:
            self._close_head(lines, UNKNOWN_LENGTH if more else count)
        begin, size, end = self._file_frame(count, more)
        self.state = FILE
        connection.write(b"".join(lines) + begin)
        try:
            sent = await send_file(connection, fd, offset, size) if size else 0
        except ConnectionError:
            connection.abandon(self)
        if self.state is not FILE:
            raise ClientDisconnected("the client has disconnected")
        self.state = BODY
        if sent < size:
            raise EOFError(f"the file ends {size - sent} bytes before its announced end")
        if end:
            connection.write(end)
        if not more:
            self._finish()

    def _file_frame(self, size: int, more: bool) -> tuple[bytes, int, bytes]:
        """The bytes before and after a part of a file, and how much of the part is sent."""
        if not self._flags & CHUNKED:
            return b"", self._count(size, more), b""
        if self.observation is not None:
            self.observation.sent += size
        begin, end = (b"%x\r\n" % size, b"\r\n") if size else (b"", b"")
        return begin, size, end if more or self._flags & TRAILING else end + LAST_CHUNK

    # -- extensions ----------------------------------------------------------------------
    # https://asgi.readthedocs.io/en/latest/extensions.html

    def _send_early_hint(self, message: Message) -> None:
        """A 103 (Early Hints, RFC 8297), if the final head wasn't sent. HTTP/1.0 has none."""
        lines, _, _ = check_fields((b"link", link) for link in message["links"])
        if self.framing.http11 and not self.head_sent:
            self._connection.write(b"HTTP/1.1 103 Early Hints\r\n%b\r\n" % b"".join(lines))

    def _send_trailers(self, message: Message) -> None:
        """Trailer fields, which are sent together with the last of them (RFC 9112, section 7.1.2).

        They are only sent to a client that asked for them, and only after a chunked body.
        """
        fields = [(n, v) for n, v in message.get("headers", ()) if n.lower() != b"content-length"]
        self._trailers += check_fields(fields)[0]
        if message.get("more_trailers", False):
            return
        if self._flags & CHUNKED:
            wanted = _wants_trailers(self.scope["headers"])
            self._connection.write(b"".join([*self._trailers, b"\r\n"]) if wanted else LAST_CHUNK)
        self._flags &= ~TRAILING
        self._finish()


def _wants_trailers(headers: Headers) -> bool:
    """Whether a client understands trailer fields (RFC 9110, section 10.1.4)."""
    options = b",".join(value.lower() for name, value in headers if name == b"te").split(b",")
    return b"trailers" in (option.strip() for option in options)
