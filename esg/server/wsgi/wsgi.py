"""Runs a WSGI application (PEP 3333) in threads, as an ASGI application.

A request is a `_Call`, with two sides: the application and all it calls (`start_response`, `write`,
`wsgi.input`) run in a thread of the pool; `receive` and `send` run in the request's task on the
event loop. The thread gives orders to the task and waits for the answer, so a slow client blocks
its thread, never the loop, and no more of a body is in memory than the connection and one piece.

A thread can't be cancelled. Where the request ends without it, because its grace is over, the next
thing that it wants of its client raises ClientDisconnected; the worker's end doesn't wait for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import queue
import re
import threading
import time
import wsgiref.util
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from esg import forks
from esg.log import setup as logs
from esg.payload import current_worker
from esg.seldom import Seldom
from esg.server import stacks
from esg.server.asgi.types import Headers, Message, Receive, Scope, Send
from esg.server.http1.exchange import CHECK, REASONED_START, ClientDisconnected
from esg.server.http1.response import REASONS
from esg.server.memo import Memo

logger = logging.getLogger("esg")

Environ = dict[str, Any]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]
WSGIApplication = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

FILE_BLOCK = 65536
"""Bytes that `wsgi.file_wrapper` reads at once, at least: each block is a turn of the loop."""

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
"""Response fields that are dropped: they are the server's business (PEP 3333, "Other HTTP
Features"). `Connection` is passed on, since the server obeys its `close`, and never copies it.
"""

LOOK_EVERY = 0.1
"""Seconds between two looks whether the client is still there, while no piece has any bytes."""

_TOO_LONG = "the body is longer than its Content-Length"
_STATUS = re.compile(r"([2-9][0-9]{2})(?: ([^\x00-\x1f\x7f]*))?")


class WSGIAdapter:
    """An ASGI application that runs a WSGI application."""

    def __init__(self, app: WSGIApplication, *, threads: int, multiprocess: bool) -> None:
        """`threads` requests run at once; more wait for a thread, in the order they came.

        `multiprocess`: whether other processes serve the same application.
        """
        worker = current_worker()
        subject = None
        if worker is not None:
            subject = logs.worker_subject(worker.number, worker.generation, worker.pid)
        self.app = app
        self._subject = subject
        self._threads = Threads(threads)
        self._keep_in_children = forks.release_in_children(_Call.end_in_child)
        self._too_long = Seldom()
        self._base: Environ = {
            "GATEWAY_INTERFACE": "CGI/1.1",
            "SERVER_SOFTWARE": "esg",
            "wsgi.version": (1, 0),
            "wsgi.errors": ErrorStream(subject),
            "wsgi.multithread": threads > 1,
            "wsgi.multiprocess": multiprocess,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
            "wsgi.file_wrapper": FileWrapper,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, the lifespan (which the application doesn't see), or refuse others."""
        kind = scope["type"]
        if kind == "http":
            await self._serve(scope, receive, send)
        elif kind == "lifespan":
            await self._live(receive, send)
        else:
            await receive()
            await send({"type": "websocket.close"})  # before it is accepted: a 403

    def close(self) -> None:
        """Let the threads end when they are done; no request can be served any more."""
        self._threads.close()
        self._keep_in_children()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        environ = self._base | request_environ(scope)
        call = _Call(self.app, environ, receive, send, self._subject, self._too_long)
        if _may_have_body(environ):
            await call.look_at_body()
        self._threads.submit(call.run)
        task = asyncio.current_task()
        stacks.helpers[task] = call
        try:
            await call.serve()
        finally:
            del stacks.helpers[task]


def _may_have_body(environ: Environ) -> bool:
    if environ["SERVER_PROTOCOL"] not in ("HTTP/1.1", "HTTP/1.0"):
        return True
    return environ.get("CONTENT_LENGTH", "0") != "0" or "HTTP_TRANSFER_ENCODING" in environ


# -- environ ---------------------------------------------------------------------------

_names: Memo[bytes, str] = Memo(entries=512, longest=64)
_known_names = _names.known
"""Field names that were seen before, with their keys: clients send the same few all the time."""


def _key(name: bytes) -> str:
    """The environ key of a request field, or "" for one that is dropped.

    `X_Real_IP` would get the same key as `X-Real-IP`, and so pass for a field that a proxy in
    front has set or removed. `Proxy` would become HTTP_PROXY, which programs that the application
    starts take for the proxy to use (CVE-2016-5385).
    """
    if b"_" in name or name == b"proxy":
        key = ""
    else:
        key = name.decode("latin-1").upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = f"HTTP_{key}"
    return _names.keep(name, key, name)


def request_environ(scope: Scope) -> Environ:
    """What a request's scope says, as CGI variables.

    Strings stand for bytes, one character each (PEP 3333, "Unicode Issues"). Fields of one name
    are joined with a comma, as RFC 9110, section 5.3, allows; cookies as RFC 6265 writes them.
    """
    root, path = _split_path(scope)
    query: bytes = scope["query_string"]
    uri = scope["raw_path"] + b"?" + query if query else scope["raw_path"]
    raw_uri = uri.decode("latin-1")
    client, server = scope["client"], scope["server"]
    environ: Environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": root,
        "PATH_INFO": path,
        "QUERY_STRING": query.decode("latin-1"),
        "REQUEST_URI": raw_uri,
        "RAW_URI": raw_uri,
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "wsgi.url_scheme": scope["scheme"],
    }
    environ["REMOTE_ADDR"] = client[0] if client else ""  # a UNIX socket has no address
    if client and client[1] is not None:
        environ["REMOTE_PORT"] = str(client[1])
    for name, value in scope["headers"]:
        key = _known_names.get(name)
        if key is None:
            key = _key(name)
        if key in environ:
            separator = "; " if key == "HTTP_COOKIE" else ","
            environ[key] = f"{environ[key]}{separator}{value.decode('latin-1')}"
        elif key:
            environ[key] = value.decode("latin-1")
    if server and server[1] is not None:
        environ["SERVER_NAME"] = server[0]
        environ["SERVER_PORT"] = str(server[1])
    else:
        environ["SERVER_NAME"], environ["SERVER_PORT"] = _named_server(environ)
    return environ


def _split_path(scope: Scope) -> tuple[str, str]:
    """SCRIPT_NAME and PATH_INFO, percent-decoded; `raw_path` has the root path in front."""
    raw_path: bytes = scope["raw_path"]
    if raw_path == b"*":
        return "", ""  # RFC 3875, section 4.1.5: it begins with a slash, or is empty
    root = scope["root_path"].encode()
    if raw_path.startswith(root):
        path = raw_path[len(root) :]
        path = unquote_to_bytes(path) if b"%" in path else path
    else:
        path = unquote_to_bytes(raw_path)
        path = path.removeprefix(root)
    return root.rstrip(b"/").decode("latin-1"), path.decode("latin-1")


def _named_server(environ: Environ) -> tuple[str, str]:
    """Name and port for a server that has no address of its own: as the client calls it."""
    name, _, port = environ.get("HTTP_HOST", "").rpartition(":")
    if not port.isdigit():
        name, port = environ.get("HTTP_HOST", ""), ""
    return name or "localhost", port or ("443" if environ["wsgi.url_scheme"] == "https" else "80")


MOST_HELD = 65536
"""Characters of an unfinished record of `wsgi.errors` that are held at most."""

_LINK = re.compile(
    r"\n(?:The above exception was the direct cause of the following exception"
    r"|During handling of the above exception, another exception occurred):\n\n"
)
"""What `traceback` writes between an exception and the one that it led to."""

_TRACEBACK = re.compile(r" *(?:\+ Exception Group )?Traceback \(most recent call last\):\n")
_TRACEBACK_END = re.compile(r"\S.*| +\+-{20,}")
"""The last line of a traceback names the exception, or closes a group of them."""

_LEVELS = {
    "CRITICAL": logging.CRITICAL,
    "FATAL": logging.CRITICAL,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "WARN": logging.WARNING,
    "NOTICE": logging.INFO,
    "INFO": logging.INFO,
    "DEBUG": logging.DEBUG,
    "TRACE": logs.TRACE,
}
_NAMES = "|".join(_LEVELS)
_LEVEL = re.compile(
    r"(?:\x1b\[[0-9;]{0,9}m)?"
    r"(?:(?:\[[^]\n]{1,40}\]|[0-9][0-9:.,+/Z -]{0,40}+(?:T[0-9:.,+Z-]{1,40}+)?)[ |:-]{0,4}+){0,3}"
    r"(?:\x1b\[[0-9;]{0,9}m)?"
    rf"(?:\[ *((?i:{_NAMES})) *\]|({_NAMES})\b)"
)
"""The level that a text begins with, perhaps behind a time, as in `ERROR:app:text`,
`[2026-11-26 10:00:00,123] ERROR in app: text` or `[2026-11-26 10:00:00 +0000] [7] [INFO] text`.
Nothing in it is tried in several ways, since a text may be a client's: 200 digits took 30 ms.
"""


class ErrorStream(threading.local):
    """`wsgi.errors`: a record in the log for each write. Each thread has records of its own.

    A text that doesn't end with a line end waits for the rest of its line, so that `print` makes
    one record. So does a traceback, which `traceback.print_exception` writes line by line.
    """

    _begun = ""

    def __init__(self, subject: logs.Subject | None) -> None:
        """`subject` is how the log names this worker."""
        self._subject = subject

    def write(self, text: str) -> int:
        """Log a text, together with what was held of the same record, once that is complete."""
        self._begun += text
        if _is_complete(self._begun) or len(self._begun) > MOST_HELD:
            self.flush()
        return len(text)

    def writelines(self, texts: Iterable[str]) -> None:
        """Write these as one text."""
        self.write("".join(texts))

    def flush(self) -> None:
        """Log a record that was begun as it is."""
        text, self._begun = self._begun.strip("\r\n"), ""
        if text and not text.isspace():
            _log(self._subject, f"wsgi.errors: {text}", level=_level_of(text))


def _is_complete(text: str) -> bool:
    """Whether nothing more of a record is to be expected."""
    if not text.endswith("\n"):
        return False
    link = _LINK.match(text)
    if link is not None:
        text = text[link.end() :]
    if not _TRACEBACK.match(text):
        return text != ""
    _, before, last = text[:-1].rpartition("\n")
    return bool(before) and _TRACEBACK_END.fullmatch(last) is not None


def _level_of(text: str) -> int:
    """The level that a text begins with, or WARNING."""
    match = _LEVEL.match(text)
    return _LEVELS[(match[1] or match[2]).upper()] if match else logging.WARNING


def _log(
    subject: logs.Subject | None,
    event: str,
    error: BaseException | None = None,
    *,
    level: int = logging.ERROR,
) -> None:
    if subject is None:
        logger.log(level, "%s", event, exc_info=error)
    else:
        logger.log(level, "%s %s", subject, event, exc_info=error)


class FileWrapper(wsgiref.util.FileWrapper):
    """`wsgi.file_wrapper`: a file as an iterable of blocks (PEP 3333, "Platform-Specific...")."""

    def __init__(self, filelike: Any, block_size: int = FILE_BLOCK) -> None:
        """`block_size`: bytes to read at once, as far as that is more than FILE_BLOCK."""
        super().__init__(filelike, max(block_size, FILE_BLOCK))


# -- one request -----------------------------------------------------------------------

Order = Callable[[], Awaitable[Any]]
"""What a thread wants its request's task to do."""


class _Call:
    """One request: in a thread, `run` and what it calls; on the loop, `serve` and what it calls."""

    __slots__ = (
        "_answer",
        "_answered",
        "_app",
        "_context",
        "_environ",
        "_error",
        "_errors",
        "_first",
        "_head",
        "_input",
        "_left",
        "_look_at",
        "_loop",
        "_orders",
        "_over",
        "_receive",
        "_request",
        "_send",
        "_sent",
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
        subject: logs.Subject | None,
        too_long: Seldom,
    ) -> None:
        self.thread = 0
        """The thread that is at it: its identifier, or 0 for none."""
        self._app = app
        self._environ = environ
        # The environ is the application's to change.
        self._errors: ErrorStream = environ["wsgi.errors"]
        self._request = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self._receive = receive
        self._send = send
        self._subject = subject
        self._too_long = too_long
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._first: asyncio.Task[Message] | None = None
        environ["wsgi.input"] = self._input = Input(self._ask_for_body)
        # the response
        self._head: Message | None = None
        self._sent = False
        """Whether the head is out, so that nothing can be changed in it."""
        self._left: int | None = None
        """Bytes of body to come, if the application has said how many there are."""
        self._look_at = 0.0
        """When to look again whether the client is there, in monotonic seconds."""
        # between thread and task
        self._orders: deque[tuple[Order | None, bool]] = deque()
        """What to do, and whether the thread waits for it; None says that the thread is done."""
        self._waiter: asyncio.Future[None] | None = None
        self._over = False
        """Whether no order will be taken any more."""
        self._answered: threading.Lock | None = None
        self._answer: Any = None
        self._error: BaseException | None = None

    # -- on the loop -------------------------------------------------------------------

    async def look_at_body(self) -> None:
        """Take what is there of the request's body: most bodies are there when the head is.

        But not if the client waits for a 100 (Continue), which asking for the body would send.
        """
        self._input.more = True
        if "HTTP_EXPECT" in self._environ:
            return
        self._first = self._loop.create_task(self._receive())  # type: ignore[arg-type]
        await asyncio.sleep(0)
        if self._first.done():
            self._input.feed(self._first.result())
            self._first = None

    async def serve(self) -> None:
        """Carry out the thread's orders until it is done; raises what the application raised."""
        try:
            while True:
                while not self._orders:
                    self._waiter = self._loop.create_future()
                    await self._waiter
                order, answered = self._orders.popleft()
                if order is None:
                    break
                await self._carry_out(order, answered)
            if self._error is not None:
                raise self._error
        finally:
            self._over = True
            self._error = None  # its traceback has this frame: a reference cycle
            if self._first is not None:
                self._first.cancel()
            self._refuse()

    async def _carry_out(self, order: Order, answered: bool) -> None:
        if not answered:
            await order()
            return
        try:
            self._answer = await order()
        except Exception as error:  # noqa: BLE001 - the thread's to raise
            self._answer = error
        except asyncio.CancelledError:
            self._answer = ClientDisconnected("the request was cancelled")
            raise
        finally:
            assert self._answered is not None
            self._answered.release()

    async def _next_of_body(self) -> Message:
        if self._first is not None:
            message = await self._first
            self._first = None
            return message
        return await self._receive()

    def _wake(self) -> None:
        """There are orders."""
        if self._over:
            self._refuse()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _refuse(self) -> None:
        """The request is over: nothing can be done for its thread any more."""
        while self._orders:
            order, answered = self._orders.popleft()
            if answered and self._answered is not None:
                self._answer = ClientDisconnected("the request is over")
                self._answered.release()
            elif order is None and self._error is not None:
                self._log_late(self._error)
                self._error = None

    def _log_late(self, error: BaseException) -> None:
        if not isinstance(error, ClientDisconnected):
            what = "exception in the application after the end of its request"
            method, path = self._request
            _log(self._subject, f"{what}: {method} {path!a}", error)

    @classmethod
    def end_in_child(cls) -> None:
        """In a forked child: have threads end the process that come back from the application.

        Nobody is there to carry out their orders.
        """
        tell = cls._tell

        def end_or_tell(call: _Call, order: Order | None, answered: bool = False) -> None:
            if forks.is_left(call._loop):
                forks.end(call._error)
            tell(call, order, answered)

        cls._tell = end_or_tell  # type: ignore[method-assign,assignment]

    # -- in the thread: orders ---------------------------------------------------------

    def _tell(self, order: Order | None, answered: bool = False) -> None:
        """Give an order. Raises ClientDisconnected if there is nobody to take it."""
        if not self._over:
            self._orders.append((order, answered))
            try:
                self._loop.call_soon_threadsafe(self._wake)
                return
            except RuntimeError:  # the loop is closed
                self._over = True
        raise ClientDisconnected("the request is over")

    def _ask(self, order: Order) -> Any:
        """Give an order, and wait until it is carried out. Raises what that raised."""
        if self._answered is None:
            self._answered = threading.Lock()
            self._answered.acquire()
        self._tell(order, answered=True)
        self._answered.acquire()
        answer, self._answer = self._answer, None
        if isinstance(answer, BaseException):
            try:
                raise answer
            finally:
                del answer  # with the traceback it got: a reference cycle
        return answer

    def _ask_for_body(self) -> Message:
        message: Message = self._ask(self._next_of_body)
        return message

    # -- in the thread: the application ------------------------------------------------

    def run(self) -> None:
        """Call the application and send its response; raises nothing."""
        try:
            if not self._over:  # while it waited for a thread
                self.thread = threading.get_ident()
                self._context.run(self._respond)
        except BaseException as error:  # noqa: BLE001 - applications may raise anything
            self._error = error
        self.thread = 0
        self._errors.flush()
        self._input.close()
        try:
            self._tell(None)
        except ClientDisconnected:
            if self._error is not None:
                self._log_late(self._error)
                self._error = None

    def _respond(self) -> None:
        result: Any = self._app(self._environ, self.start_response)
        try:
            if isinstance(result, list | tuple) and len(result) == 1:
                piece = _checked(result[0])
                if self._left is not None and self._left < len(piece):
                    self._warn_too_long(result)
                    piece = piece[: self._left]
                self._send_last(piece)
            else:
                self._send_all(result)
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()

    def _send_all(self, result: Any) -> None:
        """Send each piece as it comes; none waits for the one behind it (PEP 3333, "Buffering").

        Up to the Content-Length, where the iteration ends (PEP 3333, "Handling the Content-Length
        Header"). But an iterator may have something left to do after its last piece, so it is
        asked for one more; most have none.
        """
        complete = False
        for piece in _iterator(result):
            if complete:
                if _checked(piece):
                    self._warn_too_long(result)
                return
            if self._left is not None and self._left <= len(_checked(piece)):
                if self._left < len(piece):
                    self._warn_too_long(result)
                    self._send_last(piece[: self._left])
                    return
                if piece:
                    self._send_last(piece)
                    complete = True
                    continue
            self.write(piece)
        if not complete:
            self._send_last(b"")

    def _warn_too_long(self, result: Any) -> None:
        """The end of a file's part is where it should be, and anything else a mistake."""
        if isinstance(result, FileWrapper):
            return
        suppressed = self._too_long.now(time.monotonic())
        if suppressed is not None:
            more = f" ({suppressed} more before)" if suppressed else ""
            method, path = self._request
            event = f"{_TOO_LONG}, and was cut there: {method} {path!a}{more}"
            _log(self._subject, event, level=logging.WARNING)

    def _send_last(self, piece: bytes) -> None:
        messages = self._with_head({"type": "http.response.body", "body": piece})
        self._tell(lambda: self._send_each(messages))

    def write(self, piece: bytes) -> None:
        """What `start_response` returns: send a piece, and wait while the client is too slow."""
        if _checked(piece):
            if self._left is not None:
                self._left -= len(piece)
                if self._left < 0:
                    raise ValueError(_TOO_LONG)
            body = {"type": "http.response.body", "body": piece, "more_body": True}
            messages = self._with_head(body)
            self._ask(lambda: self._send_each(messages))
        else:
            self._look()

    def _look(self) -> None:
        """Raise ClientDisconnected if the client has left, which sending nothing doesn't show."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            self._ask(lambda: self._send({"type": CHECK}))

    def _with_head(self, body: Message) -> list[Message]:
        """The body's first piece takes the head along; until then, it can be replaced."""
        if self._sent:
            return [body]
        if self._head is None:
            raise RuntimeError("the application didn't call start_response before its first bytes")
        self._sent = True
        return [self._head, body]

    async def _send_each(self, messages: list[Message]) -> None:
        for message in messages:
            await self._send(message)

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """Take in the head of the response (PEP 3333, "The start_response() Callable").

        Raises TypeError or ValueError for a head that can't be sent; RuntimeError for a second
        call without `exc_info`; the error of `exc_info` if it is too late to say that.
        """
        if exc_info is not None:
            try:
                if self._sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # its traceback has this frame: a reference cycle
        elif self._head is not None:
            raise RuntimeError("start_response was called before, and this call has no exc_info")
        code, reason = _parsed_status(status)
        fields = _encoded(headers)
        self._left = _content_length(fields)
        self._head = {"type": "http.response.start", "status": code, "headers": fields}
        if reason:
            self._head |= {"type": REASONED_START, "reason": reason}
        return self.write


def _parsed_status(status: str) -> tuple[int, bytes]:
    """The code, and the reason phrase if it isn't the usual one (RFC 9112, section 4)."""
    if not isinstance(status, str):
        raise TypeError(f"the status is a string, not {type(status).__name__}")
    match = _STATUS.fullmatch(status)
    if match is None:
        raise ValueError(f"{status!r} is no status; one is '200 OK', from 200 to 999")
    code, reason = int(match[1]), match[2] or ""
    if reason == REASONS.get(code):
        return code, b""
    try:
        return code, reason.strip().encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(f"the reason phrase of {status!r} can't be sent as Latin-1") from None


def _encoded(headers: Iterable[tuple[str, str]]) -> Headers:
    """Response fields as ASGI has them: bytes. The server checks what is in them."""
    fields = []
    for name, value in headers:
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"header names and values are strings, not {name!r}: {value!r}")
        if name.lower() in HOP_BY_HOP:
            continue
        try:
            fields.append((name.encode("latin-1"), value.encode("latin-1")))
        except UnicodeEncodeError:
            raise ValueError(f"{name!r}: {value!r} can't be sent as Latin-1") from None
    return fields


def _content_length(fields: Headers) -> int | None:
    for name, value in fields:
        if name.lower() == b"content-length" and value.isdigit():
            return int(value)
    return None


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


class Input:
    """`wsgi.input`: the request's body as a file, received as it is read.

    Each of the reading methods raises ClientDisconnected, an OSError, if the client goes before
    its body is complete: a short read would pass for the end.
    """

    __slots__ = ("_at", "_piece", "_receive", "more")

    def __init__(self, receive: Callable[[], Message]) -> None:
        """`receive` waits for the next message from the client."""
        self._receive = receive
        self._piece = b""
        self._at = 0
        self.more = False
        """Whether there may be more than what was received."""

    def feed(self, message: Message) -> None:
        """Take what was received. Raises ClientDisconnected."""
        if message["type"] == "http.disconnect":
            raise ClientDisconnected("the client left before its request was complete")
        self._piece, self._at = message.get("body", b""), 0
        self.more = message.get("more_body", False)

    def read(self, size: int | None = -1) -> bytes:
        """The next `size` bytes, less at the end only; without `size` all that are left."""
        if size is None or size < 0:
            return b"".join(self._pieces())
        if size <= len(self._piece) - self._at:
            return self._take(size)
        parts = []
        while size > 0 and (self._at < len(self._piece) or self._received()):
            parts.append(self._take(size))
            size -= len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readline(self, size: int | None = -1) -> bytes:
        """The next line with its end, or at most `size` bytes of it."""
        left = -1 if size is None else size
        parts = []
        while left and (self._at < len(self._piece) or self._received()):
            end = self._piece.find(b"\n", self._at) + 1
            length = (end or len(self._piece)) - self._at
            part = self._take(length if left < 0 else min(left, length))
            parts.append(part)
            if part.endswith(b"\n"):
                break
            left = max(left - len(part), 0) if left > 0 else left
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """The lines that are left, but none after `hint` bytes of them."""
        lines, size = [], 0
        for line in self:
            lines.append(line)
            size += len(line)
            if hint is not None and 0 < hint <= size:
                break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def close(self) -> None:
        """The request is over: what is left of the body is not for this application."""
        self._piece, self._at = b"", 0
        self._receive = _receive_nothing  # and no reference cycle is left

    def _pieces(self) -> Iterator[bytes]:
        while self._at < len(self._piece) or self._received():
            yield self._take(len(self._piece))

    def _take(self, size: int) -> bytes:
        at = self._at
        if at == 0 and size >= len(self._piece):
            piece, self._piece = self._piece, b""
            return piece
        self._at = at + size
        return self._piece[at : self._at]

    def _received(self) -> bool:
        """Wait for the next piece; False at the end of the body."""
        while self.more:
            self.feed(self._receive())
            if self._piece:
                return True
        return False


def _receive_nothing() -> Message:
    return {"type": "http.disconnect"}


# -- threads ---------------------------------------------------------------------------

_END: Final = None


class Threads:
    """Daemon threads, made as they are needed: one that hangs doesn't keep its process from ending.

    `concurrent.futures` has no such threads: the interpreter waits for each of them at its end.
    """

    def __init__(self, size: int) -> None:
        """At most `size` threads; further jobs wait."""
        self._size = size
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._free = 0
        """Threads without a job, less the jobs that wait for one."""
        self.started = 0

    def submit(self, job: Callable[[], None]) -> None:
        """Have a thread run `job`, which must raise nothing. Raises RuntimeError for no thread."""
        with self._lock:
            self._free -= 1
            grows = self._free < 0 and self.started < self._size
            if grows:
                self.started += 1
                self._free += 1
        if grows:
            self._start()
        self._jobs.put(job)

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name=f"wsgi-{self.started}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no room for another
            with self._lock:
                self.started -= 1
                self._free -= 1
                if self.started == 0:
                    self._free += 1
                    raise

    def close(self) -> None:
        """Let each thread end when it has nothing more to do; nobody waits for that."""
        with self._lock:
            started, self.started, self._size = self.started, 0, 0
        for _ in range(started):
            self._jobs.put(_END)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not _END:
            job()
            del job  # while it waits for the next one, a thread shall hold nothing
            with self._lock:
                self._free += 1
