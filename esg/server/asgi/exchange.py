"""The ASGI state machine of one request, for every protocol.

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
returns `http.disconnect`; every state becomes GONE when the client leaves. See the ASGI HTTP
specification: up to version 2.3 servers ignore messages to a client that has left; since 2.4
`send` raises an OSError. Only a stream needs the error, because nothing else would end it; for a
response that ends anyway it would only be one more exception in the application's error reports.

A protocol derives its own class from `Exchange`, which writes the bytes (`http1/exchange.py`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from typing import Any, Generic, Protocol, TypeVar

from esg import forks
from esg.server.accesslog.entries import Observation
from esg.server.asgi import debug_page
from esg.server.asgi.disconnection import ClientDisconnected, is_disconnect
from esg.server.asgi.files import file_part, open_file
from esg.server.asgi.request_body import MOST_PIECES, NO_BODY, Framing, RequestBody
from esg.server.asgi.responses import Content, plain_content
from esg.server.asgi.types import (
    PATH_SEND,
    ZERO_COPY_SEND,
    Application,
    Message,
    Scope,
)
from esg.server.cancellation import cancel, is_destroyed, was_cancelled
from esg.server.outflow import Outflow
from esg.server.stacks import task_stack
from esg.server.state import Service

logger = logging.getLogger("esg")

START = "http.response.start"
BODY = "http.response.body"
FILE = "nothing while a file is being sent"
TRAILERS = "http.response.trailers, after the body"
DONE = ""
GONE = "no message: the client has disconnected"
"""The states of a response. START and BODY are the type of the message expected in them; in the
other states no message is expected.
"""

CHECK = "esg.http.check"
"""ESG's own message: it sends nothing, and raises ClientDisconnected if the client has left."""

REASONED_START = "esg.http.response.start"
"""Like `http.response.start`, with a `reason`: the phrase of the status line, as checked bytes. For
WSGI applications; ASGI has no such field.
"""

FILE_PART = "esg.http.response.file"
"""Like `http.response.zerocopysend` with `fd`, `offset` and `count`, for WSGI applications, which
may always send files like this (`wsgi.file_wrapper`).
"""

TURNS_TO_CANCEL = 5
"""Turns of the event loop before a `send` to a client that has left raises ClientDisconnected.

A framework that listens for `http.disconnect` cancels its stream meanwhile, which it handles better
than an error.
"""


class Source(Protocol):
    """The reader of a connection, which stops reading while too much waits for applications."""

    buffered: int
    """Bytes of bodies that wait for applications."""

    def body_taken(self, size: int) -> None:
        """Subtract bytes that an application took, or that no application will ever take."""


class Carrier(Protocol):
    """The connection that an exchange is on, or its stream on that connection."""

    service: Service
    outflow: Outflow
    client_left: bool
    """Whether the client seems to have left, although the connection is still open."""

    @property
    def reader(self) -> Source:
        """Where the request's body comes from."""

    @property
    def is_closing(self) -> Any:
        """A method: whether the connection is being closed, so that nothing can be sent."""

    def send_continue(self) -> None:
        """Send the 100 (Continue) that the client waits for before it sends the body."""

    def answer_error(self, status: int, head_only: bool, content: Content) -> None:
        """Send one of the server's own responses, and close."""

    def exchange_done(self, exchange: Any) -> None:
        """The response is complete."""

    def cut(self) -> None:
        """End a response in its middle, so that the client can tell that it isn't complete."""


C = TypeVar("C", bound=Carrier)
F = TypeVar("F", bound=Framing)


class Exchange(Generic[C, F]):
    """One request and its response: `receive`, `send`, and the application's failures."""

    __slots__ = (
        "_body_delivered",
        "_connection",
        "_disconnect_delivered",
        "_receivers",
        "body",
        "framing",
        "held_head",
        "observation",
        "scope",
        "started",
        "state",
        "status",
        "target",
        "task",
    )

    def __init__(self, connection: C, scope: Scope, framing: F, target: bytes) -> None:
        self._connection = connection
        self.scope = scope
        self.framing = framing
        self.target = target
        self.task: asyncio.Task[None]
        self.started: float
        """When the application was called; accurate to a second if there is no time limit."""
        self.observation: Observation | None = None
        """None unless the access log's format needs it."""
        # the request's body
        if framing.length == 0:
            self.body = NO_BODY
        else:
            self.body = RequestBody(framing.length, framing.expects_continue)
        self._body_delivered = False
        """Whether `receive` has given the application the end of the body."""
        self._disconnect_delivered = False
        """Whether `receive` has reported that the client has left, although it is still
        connected."""
        self._receivers: tuple[asyncio.Future[None], ...] = ()
        """Calls of `receive` that wait for something to return."""
        # the response
        self.state = START
        self.held_head: list[bytes] | None = None
        """The head, until it is sent together with the first piece of the body."""
        self.status: int

    # -- what a protocol does ------------------------------------------------------------

    def _start(self, message: Message, reason: bytes | None = None) -> None:
        """Take the head; it is held for the body's first piece, so that both are sent together.

        `reason` replaces the usual reason phrase, if the protocol has one.
        """
        raise NotImplementedError

    def flush_head(self) -> None:
        """Send a head that is still held, because no body followed in the same turn."""
        raise NotImplementedError

    def _send_body(self, body: bytes, more: bool) -> None:
        """Send a piece of the body, after a held head."""
        raise NotImplementedError

    def _finish(self) -> None:
        """The body is complete, and so is the response, except for trailers."""
        raise NotImplementedError

    def _send_early_hint(self, message: Message) -> None:
        """A 103 (Early Hints, RFC 8297), if the final head wasn't sent."""
        raise NotImplementedError

    def _send_trailers(self, message: Message) -> None:
        """Trailer fields, which are sent together with the last of them."""
        raise NotImplementedError

    async def _send_file(self, fd: int, offset: int, count: int, more: bool) -> None:
        """A part of a file as a piece of the body."""
        raise NotImplementedError

    # -- the application's side --------------------------------------------------------

    async def run(self, app: Application) -> None:
        """Call the application.

        The exchange has ended afterwards, even if the application failed.
        """
        service = self._connection.service
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError as error:
            if not was_cancelled():
                self.fail_if_open(error)
            self.end_badly()  # nothing more happens in this exchange
            raise
        except BaseException as error:  # applications may raise anything
            if is_destroyed(error, service.loop):
                raise
            self.fail(error)
        else:
            if self.state is not DONE and self.state is not GONE:
                self.returned_early()
        finally:
            service.running.discard(self)

    async def receive(self) -> Message:
        """The ASGI `receive` of this request."""
        while True:
            if self.state is DONE or self.state is GONE:
                return {"type": "http.disconnect"}
            body = self.body
            over = self._body_delivered or self._disconnect_delivered
            if body.pieces or (body.complete and not over):
                complete = self._body_delivered = body.complete
                content = body.take()
                if content:
                    self._connection.reader.body_taken(len(content))
                return {"type": "http.request", "body": content, "more_body": not complete}
            if self._connection.client_left:
                self._disconnect_delivered = True
                return {"type": "http.disconnect"}
            if body.awaits_continue:
                body.awaits_continue = False
                if not self.head_sent:
                    self._connection.send_continue()
            receiver = self._connection.service.loop.create_future()
            waiting = [other for other in self._receivers if not other.done()]  # or cancelled
            self._receivers = (*waiting, receiver)
            await receiver

    async def send(self, message: Message) -> None:
        """The ASGI `send` of this request.

        Each protocol has its own, which passes messages that its state doesn't expect to `_extend`.
        Raises ClientDisconnected for a piece of a stream once the client is gone.
        """
        raise NotImplementedError

    async def _extend(self, message: Message) -> None:
        """Handle a message other than the expected head or piece of the body."""
        kind, state = message["type"], self.state
        if state is GONE:
            await _send_to_nobody(message)
            return
        if kind == CHECK:
            if self._connection.client_left:
                self._disconnect_delivered = True
                raise ClientDisconnected("the client has disconnected")
            return
        if kind == REASONED_START and state is START:
            self._start(message, message["reason"])
        elif kind == FILE_PART and state is BODY:
            await self._send_file(message["fd"], message["offset"], message["count"], more=False)
        elif kind == "http.response.early_hint" and state in (START, BODY):
            self._send_early_hint(message)
        elif kind == "http.response.trailers" and state is TRAILERS:
            self._send_trailers(message)
        elif kind in (PATH_SEND, ZERO_COPY_SEND) and state is BODY:
            if not self._connection.service.config.sendfile:
                raise RuntimeError(f"{kind!r} is not among the scope's extensions (--sendfile)")
            await self._send_from_file(message)
        else:
            expected = repr(state) if state else "nothing more"
            raise RuntimeError(f"expected {expected}, got {kind!r}")

    async def _send_from_file(self, message: Message) -> None:
        """A file, or a part of one, as a piece of the body.

        Raises OSError if a path can't be opened, and ValueError if it isn't a regular file.
        """
        if message["type"] == ZERO_COPY_SEND:
            part = file_part(message["file"], message.get("offset"), message.get("count"))
            await self._send_file(*part, message.get("more_body", False))
            return
        loop = self._connection.service.loop
        self.state = FILE
        try:
            file = await loop.run_in_executor(None, open_file, message["path"])
        finally:
            if self.state is FILE:
                self.state = BODY
        with file:
            await self._send_file(file.fileno(), 0, os.fstat(file.fileno()).st_size, more=False)

    def _settle(self) -> None:
        """The exchange has ended, so drop the rest of the request's body."""
        self._connection.reader.body_taken(len(self.body.take()))
        self.wake()

    # -- what may go wrong -------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """The application has raised an exception."""
        if (self.state is GONE or self._disconnect_delivered) and is_disconnect(error):
            logger.debug("the client left before its response", exc_info=error)
            self._leave()
            return
        forks.end_if_forked_child(self._connection.service.loop, error)
        self.log_error("exception in the application", error)
        self.end_badly(error=error)

    def fail_if_open(self, error: asyncio.CancelledError) -> None:
        """The application has raised this itself; it is no error once the exchange has ended."""
        if self.state is not DONE and self.state is not GONE:
            self.fail(error)

    def returned_early(self) -> None:
        """The application has returned before its response was complete."""
        if self._disconnect_delivered:
            logger.debug("the application ended when it heard that the client had gone")
            self._leave()
            return
        if self._connection.service.cancels:
            self.end_badly()  # the application caught its cancellation
            return
        what = "without a response" if self.state is START else "before its response was complete"
        self.log_error(f"the application returned {what}")
        self.end_badly()

    def _leave(self) -> None:
        """Both sides have given up: end the connection without sending another byte."""
        if self.state is DONE or self.state is GONE:
            return
        if self.head_sent:
            self.record()
        self.disconnect()
        self._connection.cut()

    def time_out(self) -> None:
        """The request has taken too long: log where it waits, answer 503, and cancel it."""
        self.started = math.inf
        if self.state is DONE:
            return  # the response was sent, so the application may take longer
        self.log_error("request timed out (--request-timeout)", stack=task_stack(self.task))
        self.end_badly(503)
        self.cancel()

    def cancel(self) -> None:
        """Cancel the application's task. If that isn't possible, log it."""
        if not cancel(self.task):
            self.log_error("can't cancel the request: its tasks wait for each other in a circle")

    def end_badly(self, status: int = 500, error: BaseException | None = None) -> None:
        """Answer `status` if no byte of a response was sent; otherwise cut the response off.

        When the worker cancels its requests, the status is 503. `error` is what `--debug` shows.
        """
        if self.state is DONE or self.state is GONE:
            return
        service = self._connection.service
        if service.cancels:
            status, error = 503, None
        head_sent = self.head_sent
        self.state = DONE
        self.held_head = None
        if head_sent:
            self._connection.cut()
        elif error is not None and service.config.debug:
            self.answer(status, debug_page.content(error, self.scope["headers"]))
        else:
            self.answer(status)
        self.record()
        self.wake()

    def answer(self, status: int, content: Content | None = None) -> None:
        """Answer in place of the application, and close."""
        content = content or plain_content(status)
        self.status = status
        if self.observation is not None:
            self.observation.sent = 0 if self.framing.head_only else len(content[1])
        self._connection.answer_error(status, self.framing.head_only, content)

    def record(self) -> None:
        """Count this exchange, which has ended, and log it."""
        service = self._connection.service
        service.statuses[self.status // 100] += 1
        if service.access_log is not None:
            observation = self.observation
            if observation is None:
                service.access_log.record(self)
            else:
                observation.status = self.status
                service.access_log.record(observation)

    def log_error(self, what: str, error: BaseException | None = None, stack: str = "") -> None:
        """Log something that went wrong with this request."""
        logger.error(
            "%s %s: %s%s",
            self._connection.service.subject,
            what,
            self.name,
            f"\n{stack}" if stack else "",
            exc_info=error,
        )

    @property
    def name(self) -> str:
        """The name of this request in the log."""
        return f"{self.scope['method']} {self.scope['path']!a}"

    # -- the connection's side ---------------------------------------------------------

    def body_came(self, piece: bytes) -> None:
        """A piece of the request's body arrived; it is dropped if the response is complete."""
        body, size = self.body, len(piece)
        body.received += size
        if self.state is not DONE and self.state is not GONE:
            body.pieces.append(piece)
            if len(body.pieces) > MOST_PIECES:
                body.join()
            self._connection.reader.buffered += size
            if self._receivers:
                self.wake()

    def body_ended(self) -> None:
        """The request's body is complete."""
        self.body.complete = True
        self.body.awaits_continue = False
        if self._receivers:
            self.wake()

    def disconnect(self) -> None:
        """The client has left: wake everything that waits for it."""
        self.state = GONE
        self._settle()

    def wake(self) -> None:
        """Let calls of `receive` that wait check again what they can return."""
        receivers, self._receivers = self._receivers, ()
        for receiver in receivers:
            if not receiver.done():
                receiver.set_result(None)

    @property
    def head_sent(self) -> bool:
        """Whether the response has begun on the wire; only valid while the client is connected."""
        return self.held_head is None and self.state is not START


async def _send_to_nobody(message: Message) -> None:
    """Raise ClientDisconnected if more is to follow; see the module's docstring."""
    for _ in range(TURNS_TO_CANCEL):
        await asyncio.sleep(0)
    if message.get("more_body", False) or message["type"] == CHECK:
        raise ClientDisconnected("the client has disconnected")


def as_bytes(body: object) -> bytes:
    """Convert a body that isn't `bytes`. Raises TypeError if that isn't possible."""
    if not isinstance(body, bytes | bytearray | memoryview):
        raise TypeError(f"the body is bytes, not {type(body).__name__}")
    return bytes(body)
