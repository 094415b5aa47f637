"""One request and its response: what an application receives and sends.

Everything that affects the state of a response is in this file:

    state      | http.response.start | http.response.body, more to come | ... the last
    -----------+---------------------+----------------------------------+-----------
    START      | BODY                | error                            | error
    BODY       | error               | BODY                             | DONE or TRAILERS
    DONE       | error               | error                            | error
    GONE       | ignored             | ClientDisconnected, an OSError   | ignored

The extensions: `http.response.early_hint` changes no state; `http.response.pathsend` and
`http.response.zerocopysend` are a piece of the body that passes through FILE; the last of
`http.response.trailers` ends TRAILERS, and with it the response. From DONE and GONE on, `receive`
gives `http.disconnect`; every state becomes GONE when the client does. See the ASGI HTTP
specification: up to version 2.3 servers ignore what is sent to a client that has gone, since 2.4
`send` raises an OSError. Only a stream needs the error, since nothing else would end it; for a
response that ends anyway it would be one more exception in the application's error reports.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import stat
from typing import TYPE_CHECKING

from esg import forks
from esg.server.asgi import debug_page
from esg.server.asgi.types import (
    PATH_SEND,
    ZERO_COPY_SEND,
    Application,
    Headers,
    Message,
    Scope,
)
from esg.server.http1.framing import CHUNKED, PLAIN, Framing
from esg.server.http1.response import (
    CLOSE,
    CONTENT_LENGTH,
    DEFAULTS,
    NO_CONTENT,
    TRAILING,
    USUAL,
    Content,
    check_fields,
    status_line,
)
from esg.server.http1.sendfile import open_file
from esg.server.stacks import task_stack

if TYPE_CHECKING:
    from esg.server.http1.connection import Connection

logger = logging.getLogger("esg")

NOTHING, BODY_END, DISCONNECT = range(3)
"""What `receive` has told the application of the request's end."""

START = "http.response.start"
BODY = "http.response.body"
FILE = "nothing while a file is being sent"
TRAILERS = "http.response.trailers, after the body"
DONE = ""
GONE = "no message: the client has disconnected"
"""The states of a response. START and BODY are the type of the message expected in them; in the
other states no message is an ordinary one.
"""

CHECK = "esg.http.check"
"""A message of ESG's own: it sends nothing, and raises ClientDisconnected if the client is gone."""

REASONED_START = "esg.http.response.start"
"""As `http.response.start`, with a `reason`: the phrase of the status line, as checked bytes. WSGI
applications give one; ASGI has none.
"""

IN_CHUNKS = -1
UNTIL_CLOSE = -2
NO_BODY = -3
"""How a body is delimited where it isn't by a number of bytes."""

LAST_CHUNK = b"0\r\n\r\n"

TURNS_TO_CANCEL = 5
"""Turns of the event loop that a `send` to nobody takes before it raises.

A framework that listens for `http.disconnect` cancels its stream meanwhile, which it expects more
than an error.
"""

MOST_PIECES = 256
"""Pieces of a request's body that are kept as they came: one of a byte takes 40 bytes and more."""

JOIN_LIMIT = 65536
"""Largest body, in bytes, that is copied behind its head."""


class ClientDisconnected(OSError):
    """The client has gone away, so nothing can be sent to it."""


class Exchange:
    """One request and its response, on one connection, in turn."""

    __slots__ = (
        "_awaiting_continue",
        "_connection",
        "_given",
        "_left",
        "_length",
        "_lines",
        "_pieces",
        "_told",
        "_trailers",
        "_waiters",
        "complete",
        "framing",
        "keep_alive",
        "received",
        "scope",
        "started",
        "state",
        "status",
        "target",
        "task",
    )

    def __init__(
        self, connection: Connection, scope: Scope, framing: Framing, target: bytes
    ) -> None:
        self._connection = connection
        self.scope = scope
        self.framing = framing
        self.target = target
        self.task: asyncio.Task[None]
        self.started: float
        """When the application was called, where there is a limit to its time."""
        # the request's body
        self.complete = framing.length == 0
        self.received = 0
        self._pieces: list[bytes] | None = None
        self._told = NOTHING
        self._awaiting_continue = framing.expects_continue
        self._waiters: tuple[asyncio.Future[None], ...] = ()
        # the response; what has no value yet is set together with _lines
        self.state = START
        self.keep_alive = True
        """Whether the connection stays open; decided when the head is sent."""
        self._lines: list[bytes] | None = None
        """The head, as long as it is held back."""
        self.status: int
        self._given: int
        self._length: int
        self._left: int
        self._trailers: list[bytes]

    # -- the application's side --------------------------------------------------------

    async def run(self, app: Application) -> None:
        """Call the application, and see that the exchange ends whatever it does."""
        service = self._connection.service
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            self._end_badly()  # nothing more can come of this exchange
            raise
        except BaseException as error:  # noqa: BLE001 - applications may raise anything
            self._failed(error)
        else:
            if self.state is not DONE and self.state is not GONE:
                self._unfinished()
        finally:
            service.running.discard(self)

    async def receive(self) -> Message:
        """The ASGI `receive` of this request."""
        while True:
            if self.state is DONE or self.state is GONE:
                return {"type": "http.disconnect"}
            if self._pieces:
                return self._request_message(self._take_body())
            if self.complete and not self._told:
                return self._request_message(b"")
            if self._connection.left:
                self._told = DISCONNECT
                return {"type": "http.disconnect"}
            if self._awaiting_continue and not self.complete:
                self._awaiting_continue = False
                if not self.head_sent:
                    self._connection.send_continue()
            waiter = self._connection.service.loop.create_future()
            self._waiters = (*self._waiters, waiter)
            await waiter

    async def send(self, message: Message) -> None:
        """The ASGI `send` of this request.

        Raises ClientDisconnected for a piece of a stream once the client is gone.
        """
        state = self.state
        if message["type"] != state:
            await self._extend(message)
            return
        if state is START:
            self._start(message)
            return
        connection = self._connection
        body = message.get("body", b"")
        if type(body) is not bytes:
            body = _as_bytes(body)
        size = len(body)
        more = "more_body" in message and message["more_body"]
        lines = self._lines
        if lines is not None:
            self._lines = None
            self._close_head(lines, -1 if more else size)
        if more or self._left != size:
            body = self._framed(body, more)
        if lines is not None:
            if size <= JOIN_LIMIT or not body:
                lines.append(body)
                connection.write(b"".join(lines))
            else:
                connection.write_lines((b"".join(lines), body))
        elif body:
            connection.write(body)
        if not more:
            self._finish()
        elif connection.write_paused or connection.is_closing():
            await connection.writable()

    async def _extend(self, message: Message) -> None:
        """What is neither the head nor a piece of the body, where one of them was expected."""
        kind, state = message["type"], self.state
        if state is GONE:
            await _send_to_nobody(message)
            return
        if kind == CHECK:
            if self._connection.left:
                self._told = DISCONNECT
                raise ClientDisconnected("the client has disconnected")
            return
        if kind == REASONED_START and state is START:
            await self.send({**message, "type": START})
            self._give_reason(message["reason"])
        elif kind == "http.response.early_hint" and state in (START, BODY):
            self._send_early_hint(message)
        elif kind == "http.response.trailers" and state is TRAILERS:
            self._send_trailers(message)
        elif kind in (PATH_SEND, ZERO_COPY_SEND) and state is BODY:
            if not self._connection.service.config.sendfile:
                raise RuntimeError(f"{kind!r} is not among the scope's extensions (--sendfile)")
            await (self._send_path if kind == PATH_SEND else self._send_zero_copy)(message)
        else:
            expected = repr(state) if state else "nothing more"
            raise RuntimeError(f"expected {expected}, got {kind!r}")

    # -- the response --------------------------------------------------------------------

    def _start(self, message: Message) -> None:
        """Take the head in; it waits for the body's first piece, so that both go out together."""
        service = self._connection.service
        heads, status = service.heads, message["status"]
        ready = heads.ready.get(status) or heads.add(status)
        code, begin, no_content, fields, head, given, length = ready
        headers = message.get("headers", ())
        if headers == fields:
            lines = [head]
        else:
            lines, given, length = check_fields(headers, begin)
            if given & DEFAULTS:
                lines[0] = heads.begin(code, given)
            if fields is None:
                heads.remember(code, headers, lines, given, length)
            given |= no_content
        if message.get("trailers"):
            given |= TRAILING
            self._trailers = [LAST_CHUNK[:-2]]
        self.status = code
        self._given = given
        self._length = length
        self._lines = lines
        self.state = BODY
        if not service.held:
            service.loop.call_soon(service.release_heads)
        service.held.append(self)

    def _give_reason(self, reason: bytes) -> None:
        """Replace the reason phrase of the head that is held (RFC 9112, section 4)."""
        assert self._lines is not None
        usual = status_line(self.status)
        self._lines[0] = status_line(self.status, reason) + self._lines[0].removeprefix(usual)

    def flush_head(self) -> None:
        """Send a head that is still held, since no body came with it in the same turn."""
        if self._lines is not None:
            lines, self._lines = self._lines, None
            self._close_head(lines, -1)
            self._connection.write(b"".join(lines))

    def _close_head(self, lines: list[bytes], body_length: int) -> None:
        """Decide how the body is delimited and whether the connection goes on, and say so.

        `body_length` is -1 if more of the body is to come than is there now.
        """
        framing, connection, given = self.framing, self._connection, self._given
        usual = framing is PLAIN and given & CONTENT_LENGTH and given <= USUAL
        if usual and not (connection.ends_soon or connection.service.draining):
            self._left = self._length
            lines.append(b"\r\n")
            return
        if framing.head_only or given & NO_CONTENT:
            self._bodiless_head(lines, body_length)
        elif self._length >= 0:
            self._left = self._length
        elif body_length >= 0 and not given & TRAILING:
            self._left = body_length
            lines.append(b"content-length: %d\r\n" % body_length)
        elif framing.http11:
            self._left = IN_CHUNKS
            lines.append(b"transfer-encoding: chunked\r\n")
        else:
            self._left = UNTIL_CLOSE
            self._given |= CLOSE
        if connection.ends_soon or connection.service.draining or not self.complete:
            self._given |= 0 if connection.may_go_on(self) else CLOSE
        if self._given & CLOSE or not framing.keep_alive:
            self.keep_alive = False
            lines.append(b"connection: close\r\n\r\n")
        elif framing.http11:
            lines.append(b"\r\n")
        else:
            lines.append(b"connection: keep-alive\r\n\r\n")

    def _bodiless_head(self, lines: list[bytes], body_length: int) -> None:
        """A response to HEAD may say how long its body would be, and 304 too, but not 204."""
        self._left = NO_BODY
        if self.status == 204:
            lines[:] = [line for line in lines if line[:15].lower() != b"content-length:"]
        elif body_length > 0 and not self._given & CONTENT_LENGTH:
            lines.append(b"content-length: %d\r\n" % body_length)

    def _framed(self, body: bytes, more: bool) -> bytes:
        """A piece of body as it goes on the wire."""
        begin, size, end = self._frame(len(body), more)
        if size < len(body):
            body = body[:size]
        return begin + body + end if begin or end else body

    def _frame(self, size: int, more: bool) -> tuple[bytes, int, bytes]:
        """What goes before and behind a piece of body, and how much of the piece is sent."""
        left = self._left
        if left == NO_BODY:
            return b"", 0, b""
        if left == IN_CHUNKS:
            begin, end = (b"%x\r\n" % size, b"\r\n") if size else (b"", b"")
            return begin, size, end if more or self._given & TRAILING else end + LAST_CHUNK
        if left == UNTIL_CLOSE:
            return b"", size, b""
        self._left = left - size
        if self._left < 0:
            self._fail_length(f"{-self._left} bytes longer")
            return b"", left, b""
        if self._left and not more:
            self._fail_length(f"{self._left} bytes shorter")
        return b"", size, b""

    def _fail_length(self, how: str) -> None:
        """The application broke its own Content-Length: say so, and end the connection."""
        self._left = 0
        self.keep_alive = False
        self._log_error(f"the body is {how} than its Content-Length")

    def _finish(self) -> None:
        """The body is complete, and so is the response, but for trailers."""
        if self._given & TRAILING:
            self.state = TRAILERS
            return
        self.state = DONE
        if self._pieces is not None or self._waiters:
            self._settle()
        self._connection.exchange_done(self)

    def _settle(self) -> None:
        """The exchange is over: what was not read of the request never will be."""
        self._take_body()
        self.wake()

    # -- extensions ------------------------------------------------------------------------
    # https://asgi.readthedocs.io/en/latest/extensions.html

    def _send_early_hint(self, message: Message) -> None:
        """A 103 (Early Hints, RFC 8297), as long as the final head isn't out; 1.0 has none."""
        lines, _, _ = check_fields((b"link", link) for link in message["links"])
        if self.framing.http11 and not self.head_sent:
            self._connection.write(b"HTTP/1.1 103 Early Hints\r\n%b\r\n" % b"".join(lines))

    def _send_trailers(self, message: Message) -> None:
        """Trailer fields, which go out with the last of them (RFC 9112, section 7.1.2).

        Only to a client that said it wants them, and only behind a body in chunks.
        """
        fields = [(n, v) for n, v in message.get("headers", ()) if n.lower() != b"content-length"]
        self._trailers += check_fields(fields)[0]
        if message.get("more_trailers", False):
            return
        if self._left == IN_CHUNKS:
            wanted = _wants_trailers(self.scope["headers"])
            self._connection.write(b"".join([*self._trailers, b"\r\n"]) if wanted else LAST_CHUNK)
        self._given &= ~TRAILING
        self._finish()

    async def _send_path(self, message: Message) -> None:
        """A whole file as the body, or as its last piece. Raises OSError if it can't be opened."""
        loop = self._connection.service.loop
        self.state = FILE
        try:
            file = await loop.run_in_executor(None, open_file, message["path"])
        finally:
            if self.state is FILE:
                self.state = BODY
        with file:
            await self._send_file(file.fileno(), 0, os.fstat(file.fileno()).st_size, more=False)

    async def _send_zero_copy(self, message: Message) -> None:
        """A part of an open file as a piece of the body. Raises ValueError if it is no file."""
        file = message["file"]
        fd = file if isinstance(file, int) else file.fileno()
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("http.response.zerocopysend sends regular files only")
        given, count = message.get("offset"), message.get("count")
        offset = os.lseek(fd, 0, os.SEEK_CUR) if given is None else given
        if count is None:
            count = max(0, status.st_size - offset)
        if given is None:
            os.lseek(fd, offset + count, os.SEEK_SET)
        await self._send_file(fd, offset, count, message.get("more_body", False))

    async def _send_file(self, fd: int, offset: int, count: int, more: bool) -> None:
        if self.state is GONE:
            raise ClientDisconnected("the client has disconnected")
        connection = self._connection
        lines, self._lines = self._lines or [], None
        if lines:
            self._close_head(lines, -1 if more else count)
        begin, size, end = self._frame(count, more)
        self.state = FILE
        connection.write(b"".join(lines) + begin)
        try:
            sent = await connection.send_file(fd, offset, size) if size else 0
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

    # -- what may go wrong -------------------------------------------------------------

    def _failed(self, error: BaseException) -> None:
        if (self.state is GONE or self._told == DISCONNECT) and is_disconnect(error):
            logger.debug("the client left before its response", exc_info=error)
            self._leave()
            return
        forks.end_if_forked_child(self._connection.service.loop, error)
        self._log_error("exception in the application", error)
        self._end_badly(error=error)

    def _unfinished(self) -> None:
        if self._told == DISCONNECT:
            logger.debug("the application ended when it heard that the client had gone")
            self._leave()
            return
        if self._connection.service.cancels:
            self._end_badly()  # it caught its cancellation
            return
        what = "without a response" if self.state is START else "before its response was complete"
        self._log_error(f"the application returned {what}")
        self._end_badly()

    def _leave(self) -> None:
        """Neither side goes on: end the connection without another byte."""
        if self.state is DONE or self.state is GONE:
            return
        if self.head_sent:
            self._connection.record(self)
        self.disconnect()
        self._connection.cut()

    def time_out(self) -> None:
        """The request has taken too long: log where it is, answer 503, and cancel it."""
        self.started = math.inf
        if self.state is DONE:
            return  # the response is out, and what the application does now is its own time
        self._log_error("request timed out (--request-timeout)", stack=task_stack(self.task))
        self._end_badly(503)
        self.task.cancel()

    def _end_badly(self, status: int = 500, error: BaseException | None = None) -> None:
        """Answer `status` if no byte of a response is out; else cut it where it stands.

        When the worker cancels its requests, that is 503. `error` is what `--debug` shows.
        """
        if self.state is DONE or self.state is GONE:
            return
        if self._connection.service.cancels:
            status, error = 503, None
        head_sent = self.head_sent
        self.state = DONE
        self._lines = None
        if head_sent:
            self._connection.cut()
        else:
            content = None
            if error is not None and self._connection.service.config.debug:
                content = debug_page.content(error, self.scope["headers"])
            self._answer(status, content)
        self._connection.record(self)
        self.wake()

    def _answer(self, status: int, content: Content | None) -> None:
        """Answer in the application's place, and close."""
        self.status = status
        self._connection.answer_error(status, self.framing.head_only, content)

    def _log_error(self, what: str, error: BaseException | None = None, stack: str = "") -> None:
        logger.error(
            "%s %s: %s%s",
            self._connection.service.subject,
            what,
            self._named,
            f"\n{stack}" if stack else "",
            exc_info=error,
        )

    @property
    def _named(self) -> str:
        """What the log calls this request."""
        return f"{self.scope['method']} {self.scope['path']!a}"

    # -- the connection's side ---------------------------------------------------------

    def body_came(self, piece: bytes) -> None:
        """A piece of the request's body; dropped if nobody will ask for it."""
        self.received += len(piece)
        if self.state is not DONE and self.state is not GONE:
            if self._pieces is None:
                self._pieces = [piece]
            else:
                self._pieces.append(piece)
                if len(self._pieces) > MOST_PIECES:
                    self._pieces = [b"".join(self._pieces)]
            self._connection.buffered += len(piece)
            self.wake()

    def body_ended(self) -> None:
        """The request's body is complete."""
        self.complete = True
        if self._waiters:
            self.wake()

    def disconnect(self) -> None:
        """The client is gone: wake whoever waits for it."""
        self.state = GONE
        self._settle()

    def wake(self) -> None:
        """Let `receive` look again at what there is."""
        waiters, self._waiters = self._waiters, ()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _take_body(self) -> bytes:
        pieces, self._pieces = self._pieces or [], None
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._connection.body_taken(len(body))
        return body

    def _request_message(self, body: bytes) -> Message:
        self._told = BODY_END if self.complete else NOTHING
        return {"type": "http.request", "body": body, "more_body": not self.complete}

    @property
    def head_sent(self) -> bool:
        """Whether the response has begun on the wire; holds as long as the client is there."""
        return self._lines is None and self.state is not START

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


async def _send_to_nobody(message: Message) -> None:
    """Raise ClientDisconnected if more is to follow; see the module's docstring."""
    for _ in range(TURNS_TO_CANCEL):
        await asyncio.sleep(0)
    if message.get("more_body", False) or message["type"] == CHECK:
        raise ClientDisconnected("the client has disconnected")


def _wants_trailers(headers: Headers) -> bool:
    """Whether a client understands trailer fields (RFC 9110, section 10.1.4)."""
    options = b",".join(value.lower() for name, value in headers if name == b"te").split(b",")
    return b"trailers" in (option.strip() for option in options)


def _as_bytes(body: object) -> bytes:
    """A body that is not `bytes` itself. Raises TypeError if it isn't like them either."""
    if not isinstance(body, bytes | bytearray | memoryview):
        raise TypeError(f"the body is bytes, not {type(body).__name__}")
    return bytes(body)


def is_disconnect(error: BaseException) -> bool:
    """Whether an error says only that the client has gone, perhaps inside a group.

    Starlette turns ClientDisconnected, and an `http.disconnect` it didn't wait for, into an
    exception of its own.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(is_disconnect(inner) for inner in error.exceptions)
    causes = (error, error.__cause__, error.__context__)
    if any(isinstance(cause, ClientDisconnected) for cause in causes):
        return True
    return type(error).__name__ == "ClientDisconnect"
