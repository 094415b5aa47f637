"""One request of a WSGI application: the application in a thread, the client on the event loop.

A `Call` has two sides. The application and the functions that it calls (`start_response`, `write`,
`wsgi.input`) run in a thread of the pool; `receive` and `send` run in the request's task on the
event loop. The thread gives orders to the task and waits for the answers. So a slow client blocks
its thread, never the loop, and only the connection's buffer and one piece of a body are in memory.

A thread can't be cancelled. If the request ends before its thread does, because its grace period is
over, the thread's next read from the client or write to it raises ClientDisconnected. A worker that
ends doesn't wait for the thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import io
import logging
import os
import re
import stat
import threading
import time
import wsgiref.util
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from enum import Enum
from types import TracebackType
from typing import Any, cast

from esg import forks
from esg.log.records import Subject
from esg.seldom import Seldom
from esg.server.asgi.disconnection import ClientDisconnected
from esg.server.asgi.exchange import CHECK, FILE_PART, REASONED_START
from esg.server.asgi.responses import REASONS
from esg.server.asgi.types import Headers, Message, Receive, Send
from esg.server.memo import Memo
from esg.server.wsgi.environ import Environ
from esg.server.wsgi.errors import ErrorStream, log
from esg.server.wsgi.input import Input

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]
WSGIApplication = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

FILE_BLOCK = 65536
"""The fewest bytes that `wsgi.file_wrapper` reads at once: each block costs a turn of the loop."""

HOP_BY_HOP = frozenset(
    (
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
    )
)
"""Response fields that are dropped, because applications may not set them (PEP 3333, "Other HTTP
Features"). `Connection` is passed on: the server closes the connection for `close`, and doesn't
copy the field.
"""

LOOK_EVERY = 0.1
"""Seconds between two checks of whether the client has left, while all pieces are empty."""


class FieldKind(Enum):
    """What a response field means to the server."""

    ORDINARY = 0
    HOP_BY_HOP = 1
    LENGTH = 2


_names: Memo[str, tuple[FieldKind, bytes]] = Memo(entries=512, longest=64)
"""The encoded names of response fields; applications send the same few names."""

_statuses: Memo[str, tuple[int, bytes]] = Memo(entries=128, longest=64)
"""The status lines that were parsed."""

_TOO_LONG = "the body is longer than its Content-Length"
_STATUS = re.compile(r"([2-9][0-9]{2})(?: ([^\x00-\x1f\x7f]*))?")


KERNEL_FILE = 262144
"""The smallest file, in bytes, that the kernel sends; smaller ones are quickly read and written."""


class FileWrapper(wsgiref.util.FileWrapper):
    """`wsgi.file_wrapper`: a file as an iterable of blocks (PEP 3333, "Platform-Specific...")."""

    def __init__(self, filelike: Any, block_size: int = FILE_BLOCK) -> None:
        """`block_size`: the bytes to read at once; at least FILE_BLOCK are read."""
        super().__init__(filelike, max(block_size, FILE_BLOCK))


class Begun:
    """A `receive` that was begun without a task, and can be awaited later if it has to wait."""

    __slots__ = ("_coroutine", "_future", "ended", "result")

    result: Message

    def __init__(self, receiving: Awaitable[Message]) -> None:
        self._coroutine = cast(Coroutine[Any, None, Message], receiving)
        self._future: asyncio.Future[Any] | None = None
        """What it waits for."""
        self.ended = False
        self._step()

    def advance(self) -> None:
        """Continue if what it waits for has happened."""
        if self._future is not None and self._future.done():
            self._step()

    def __await__(self) -> Generator[Any, None, Message]:
        while not self.ended:
            yield self._future
            self._step()
        return self.result

    def close(self) -> None:
        """Give it up."""
        self._coroutine.close()

    def _step(self) -> None:
        try:
            self._future = self._coroutine.send(None)
        except StopIteration as end:
            self.ended, self.result = True, end.value


Order = Callable[[], Awaitable[Any]]
"""Something that a thread wants its request's task to do."""


class Call:
    """One request: a thread calls `run`, and the request's task on the loop calls `serve`."""

    __slots__ = (
        "_answer",
        "_answered",
        "_app",
        "_context",
        "_environ",
        "_error",
        "_errors",
        "_first_message",
        "_head",
        "_head_sent",
        "_input",
        "_loop",
        "_next_look",
        "_orders",
        "_over",
        "_receive",
        "_remaining",
        "_request",
        "_send",
        "_subject",
        "_too_long",
        "_waiter",
        "thread",
    )

    def __init__(
        self,
        app: WSGIApplication,
        environ: Environ,
        receive: Receive,
        send: Send,
        loop: asyncio.AbstractEventLoop,
        subject: Subject | None,
        too_long: Seldom,
    ) -> None:
        self.thread = 0
        """The identifier of the thread that runs the application, or 0."""
        self._app = app
        self._environ = environ
        # These are read now, because the application may change the environ.
        self._errors: ErrorStream = environ["wsgi.errors"]
        self._request = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self._receive = receive
        self._send = send
        self._subject = subject
        self._too_long = too_long
        self._loop = loop
        self._context = contextvars.copy_context()
        self._first_message: Begun | None = None
        environ["wsgi.input"] = self._input = Input(self._ask_for_body)
        # the response
        self._head: Message | None = None
        self._head_sent = False
        """Whether the header section was sent, so that it can't be replaced any more."""
        self._remaining: int | None = None
        """The bytes of the body that are still to come, if there is a Content-Length."""
        self._next_look = 0.0
        """When to check again whether the client has left, in monotonic seconds."""
        # between thread and task
        self._orders: deque[Order | list[Message] | None] = deque()
        """Orders whose result the thread waits for, messages to send, and None: it is done."""
        self._waiter: asyncio.Future[None] | None = None
        self._over = False
        """Whether the task has ended, so that it carries out no more orders."""
        self._answered: threading.Lock | None = None
        self._answer: Any = None
        self._error: BaseException | None = None

    # -- on the loop -------------------------------------------------------------------

    async def look_at_body(self) -> None:
        """Take the part of the request's body that has arrived; often this is the whole body.

        It isn't taken if the client waits for a 100 (Continue), because receiving would send one.
        """
        self._input.more = True
        if "HTTP_EXPECT" in self._environ:
            return
        first = Begun(self._receive())
        if not first.ended:
            await asyncio.sleep(0)
            first.advance()
        if first.ended:
            self._input.feed(first.result)
        else:
            self._first_message = first

    async def serve(self) -> None:
        """Carry out the thread's orders until it is done; raises the application's exception."""
        try:
            while True:
                while not self._orders:
                    self._waiter = self._loop.create_future()
                    await self._waiter
                order = self._orders.popleft()
                if order is None:
                    break
                if isinstance(order, list):
                    for message in order:
                        await self._send(message)
                else:
                    await self._carry_out(order)
            if self._error is not None:
                raise self._error
        finally:
            self._over = True
            self._error = None  # its traceback has this frame: a reference cycle
            if self._first_message is not None:
                self._first_message.close()
            self._refuse()

    async def _carry_out(self, order: Order) -> None:
        """Carry out an order whose result the thread waits for."""
        try:
            self._answer = await order()
        except Exception as error:  # noqa: BLE001 - the thread raises it
            self._answer = error
        except asyncio.CancelledError:
            self._answer = ClientDisconnected("the request was cancelled")
            raise
        finally:
            assert self._answered is not None
            self._answered.release()

    async def _next_of_body(self) -> Message:
        if self._first_message is not None:
            first, self._first_message = self._first_message, None
            return await first
        return await self._receive()

    def _wake(self) -> None:
        """On the loop: let the task carry out new orders."""
        if self._over:
            self._refuse()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _refuse(self) -> None:
        """Refuse the thread's orders, because the request is over."""
        while self._orders:
            order = self._orders.popleft()
            if order is None and self._error is not None:
                self._log_late(self._error)
                self._error = None
            elif callable(order) and self._answered is not None:
                self._answer = ClientDisconnected("the request is over")
                self._answered.release()

    def _log_late(self, error: BaseException) -> None:
        if not isinstance(error, ClientDisconnected):
            what = "exception in the application after the end of its request"
            method, path = self._request
            log(self._subject, f"{what}: {method} {path!a}", error)

    @classmethod
    def end_in_child(cls) -> None:
        """In a forked child: end the process if a thread returns from the application.

        The child has no task that could carry out the thread's orders.
        """
        tell = cls._tell

        def end_or_tell(call: Call, order: Order | list[Message] | None, wake: bool = True) -> None:
            if forks.is_forked_child(call._loop):
                try:
                    call._errors.flush()
                finally:
                    forks.end(call._error)
            tell(call, order, wake)

        cls._tell = end_or_tell  # type: ignore[method-assign,assignment]

    # -- in the thread: orders ---------------------------------------------------------

    def _tell(self, order: Order | list[Message] | None, wake: bool = True) -> None:
        """Give an order. Raises ClientDisconnected if the task has ended.

        Without `wake`, the task carries it out together with the next one.
        """
        if not self._over:
            self._orders.append(order)
            if not wake:
                return
            try:
                self._loop.call_soon_threadsafe(self._wake)
                return
            except RuntimeError:  # the loop is closed
                self._over = True
        raise ClientDisconnected("the request is over")

    def _ask(self, order: Order) -> Any:
        """Give an order and wait for its result. Raises the order's exception."""
        if self._answered is None:
            self._answered = threading.Lock()
            self._answered.acquire()
        self._tell(order)
        self._answered.acquire()
        answer, self._answer = self._answer, None
        if isinstance(answer, BaseException):
            try:
                raise answer
            finally:
                del answer  # its traceback has this frame: a reference cycle
        return answer

    def _ask_for_body(self) -> Message:
        message: Message = self._ask(self._next_of_body)
        return message

    # -- in the thread: the application ------------------------------------------------

    def run(self) -> None:
        """Call the application and send its response; only raises what the log's handlers raise."""
        try:
            if not self._over:  # the request may have ended while it waited for a thread
                self.thread = threading.get_ident()
                self._context.run(self._respond)
        except BaseException as error:  # noqa: BLE001 - applications may raise anything
            self._error = error
        self.thread = 0
        self._input.close()
        try:
            self._tell(None)
        except ClientDisconnected:
            if self._error is not None:
                self._log_late(self._error)
                self._error = None
        # The response doesn't wait for this, because the logging is the application's.
        try:
            self._errors.flush()
        except BaseException as error:  # noqa: BLE001 - it may raise anything
            self._log_late(error)

    def _respond(self) -> None:
        result: Any = self._app(self._environ, self.start_response)
        try:
            part = _file_part(result, self._remaining)
            if part is not None and not self._head_sent:
                self._send_part(*part)
            elif isinstance(result, list | tuple) and len(result) == 1:
                piece = _checked(result[0])
                if self._remaining is not None and self._remaining < len(piece):
                    self._warn_too_long(result)
                    piece = piece[: self._remaining]
                # A plain list has no `close`, so the thread is done and wakes the task in a moment.
                self._send_last(piece, wake=type(result) not in (list, tuple))
            else:
                self._send_all(result)
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()

    def _send_part(self, fd: int, offset: int, count: int) -> None:
        """Let the kernel send a part of a file as the body; wait until it is sent."""
        self._remaining = count
        messages = self._with_head({"type": FILE_PART, "fd": fd, "offset": offset, "count": count})
        self._ask(lambda: self._send_each(messages))

    def _send_all(self, result: Any) -> None:
        """Send each piece immediately, without waiting for the next (PEP 3333, "Buffering").

        The iteration ends at the Content-Length (PEP 3333, "Handling the Content-Length Header").
        But an iterator may still have code to run after its last piece, so it is asked for one
        more piece; most have none.
        """
        complete = False
        for piece in _iterator(result):
            if complete:
                if _checked(piece):
                    self._warn_too_long(result)
                return
            if self._remaining is not None and self._remaining <= len(_checked(piece)):
                if self._remaining < len(piece):
                    self._warn_too_long(result)
                    self._send_last(piece[: self._remaining])
                    return
                if piece:
                    self._send_last(piece)
                    complete = True
                    continue
            self.write(piece)
        if not complete:
            self._send_last(b"")

    def _warn_too_long(self, result: Any) -> None:
        """Warn that the body is too long, except for a file: only a part of it may be wanted."""
        if isinstance(result, FileWrapper):
            return
        suppressed = self._too_long.now(time.monotonic())
        if suppressed is not None:
            more = f" ({suppressed} more before)" if suppressed else ""
            method, path = self._request
            event = f"{_TOO_LONG}, and was cut there: {method} {path!a}{more}"
            log(self._subject, event, level=logging.WARNING)

    def _send_last(self, piece: bytes, wake: bool = True) -> None:
        self._tell(self._with_head({"type": "http.response.body", "body": piece}), wake)

    def write(self, piece: bytes) -> None:
        """Send a piece, and wait if the client is slow. `start_response` returns this method."""
        if _checked(piece):
            if self._remaining is not None:
                self._remaining -= len(piece)
                if self._remaining < 0:
                    raise ValueError(_TOO_LONG)
            body = {"type": "http.response.body", "body": piece, "more_body": True}
            messages = self._with_head(body)
            self._ask(lambda: self._send_each(messages))
        else:
            self._look()

    def _look(self) -> None:
        """Raise ClientDisconnected if the client has left; sending an empty piece doesn't show
        it."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_EVERY
            self._ask(lambda: self._send({"type": CHECK}))

    def _with_head(self, body: Message) -> list[Message]:
        """The messages for a piece; before the first piece also the head, which is then final."""
        if self._head_sent:
            return [body]
        if self._head is None:
            raise RuntimeError("the application didn't call start_response before its first bytes")
        self._head_sent = True
        return [self._head, body]

    async def _send_each(self, messages: list[Message]) -> None:
        for message in messages:
            await self._send(message)

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """Set the head of the response (PEP 3333, "The start_response() Callable").

        Raises TypeError or ValueError for an invalid head; RuntimeError for a second call without
        `exc_info`; the exception in `exc_info` if the previous head was already sent.
        """
        if exc_info is not None:
            try:
                if self._head_sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # its traceback has this frame: a reference cycle
        elif self._head is not None:
            raise RuntimeError("start_response was called before, and this call has no exc_info")
        code, reason = _parsed_status(status)
        fields, self._remaining = _encoded(headers)
        self._head = {"type": "http.response.start", "status": code, "headers": fields}
        if reason:
            self._head |= {"type": REASONED_START, "reason": reason}
        return self.write


def _parsed_status(status: str) -> tuple[int, bytes]:
    """The code, and the reason phrase if it isn't the usual one (RFC 9112, section 4)."""
    if not isinstance(status, str):
        raise TypeError(f"the status is a string, not {type(status).__name__}")
    return _statuses.known.get(status) or _statuses.keep(status, _parse_status(status), status)


def _parse_status(status: str) -> tuple[int, bytes]:
    match = _STATUS.fullmatch(status)
    if match is None:
        raise ValueError(f"{status!r} isn't a status such as '200 OK', from 200 to 999")
    code, reason = int(match[1]), match[2] or ""
    if reason == REASONS.get(code):
        return code, b""
    try:
        return code, reason.strip().encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(f"the reason phrase of {status!r} can't be sent as Latin-1") from None


def _encoded(headers: Iterable[tuple[str, str]]) -> tuple[Headers, int | None]:
    """Response fields in ASGI's form, bytes, and their Content-Length. The server checks the
    values."""
    fields, length = [], None
    names = _names.known
    for name, value in headers:
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"header names and values are strings, not {name!r}: {value!r}")
        try:
            kind, encoded = names.get(name) or _names.keep(name, _encoded_name(name), name)
            if kind is not FieldKind.HOP_BY_HOP:
                fields.append((encoded, value.encode("latin-1")))
        except UnicodeEncodeError:
            raise ValueError(f"{name!r}: {value!r} can't be sent as Latin-1") from None
        if kind is FieldKind.LENGTH and length is None and value.isascii() and value.isdigit():
            length = int(value)
    return fields, length


def _encoded_name(name: str) -> tuple[FieldKind, bytes]:
    kind = FieldKind.ORDINARY
    if name.lower() in HOP_BY_HOP:
        kind = FieldKind.HOP_BY_HOP
    elif name.lower() == "content-length":
        kind = FieldKind.LENGTH
    return kind, name.encode("latin-1")


def _file_part(result: Any, length: int | None) -> tuple[int, int, int] | None:
    """Descriptor, offset and size of the file that `result` wraps, if the kernel can send it.

    Only files of Python's own classes count. Others may have a descriptor and read something else:
    `gzip.GzipFile` has that of the compressed file. `length` is the response's Content-Length.
    """
    if type(result) is not FileWrapper:
        return None
    file = result.filelike
    raw = getattr(file, "raw", file) if type(file) in (io.BufferedReader, io.FileIO) else None
    if type(raw) is not io.FileIO or file.closed:
        return None
    status = os.fstat(raw.fileno())
    if not stat.S_ISREG(status.st_mode):
        return None
    offset = file.tell()
    size = status.st_size - offset
    if length is not None:
        size = min(size, length)
    return (raw.fileno(), offset, size) if size >= KERNEL_FILE else None


def _checked(piece: Any) -> bytes:
    if not isinstance(piece, bytes):
        raise TypeError(f"the body is made of bytes, not {type(piece).__name__}")
    return piece


def _iterator(result: Any) -> Iterator[bytes]:
    if inspect.isawaitable(result):
        raise TypeError("the application returned a coroutine, so it isn't WSGI but ASGI")
    if isinstance(result, str | bytes):
        raise TypeError(f"the application returned {type(result).__name__}, not a list of bytes")
    try:
        return iter(result)
    except TypeError:
        what = type(result).__name__
        raise TypeError(f"the application returned {what}, not an iterable of bytes") from None
