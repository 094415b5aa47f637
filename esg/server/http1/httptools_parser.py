"""httptools as a parser: bytes in, calls to a sink out. Knows nothing of policy or responses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import httptools

from esg.errors import BadRequest, HTTPError


class Sink(Protocol):
    """What a parser calls, in order; a trailer field is an `on_header` after the body."""

    raised: HTTPError | None
    """What one of these methods raised last. httptools would hand it on as the context of its own
    error, where Python puts whatever else is being handled at the time.
    """

    def on_url(self, piece: bytes) -> None:
        """A piece of the request target."""

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field, its name as the client wrote it."""

    def on_headers_complete(self) -> None:
        """The header section is over; the parser's `method` and `http_version` hold."""

    def on_body(self, piece: bytes) -> None:
        """A piece of the body, without its framing."""

    def on_message_complete(self) -> None:
        """The body (and any trailer section) is over."""


class HttptoolsParser:
    """The llhttp parser of httptools, in its strict mode."""

    __slots__ = ("_sink", "feed", "http_version", "method", "persists", "upgrades")

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._use(httptools.HttpRequestParser(sink))

    def _use(self, parser: httptools.HttpRequestParser) -> None:
        self.feed: Callable[[bytes | memoryview], None] = parser.feed_data
        """Parse some bytes; what it raises is for `recover`."""
        self.method: Callable[[], bytes] = parser.get_method
        self.http_version: Callable[[], str] = parser.get_http_version
        self.persists: Callable[[], bool] = parser.should_keep_alive
        """Whether version and Connection options together keep the connection open. Where there
        are no such options that says that the version is 1.1, at a tenth of the cost of asking.
        """

        self.upgrades: Callable[[], bool] = parser.should_upgrade
        """Whether the request offers to change the protocol. Then its body, if it has one, is not
        parsed: `on_message_complete` comes at once, and `recover` goes on with the body.
        """

    def recover(
        self, error: Exception, data: bytes | memoryview, body_length: int
    ) -> bytes | memoryview:
        """The part of `data` that is still to be parsed after `feed` raised `error` for it.

        `body_length` is that of the request whose body is awaited, -1 for chunks, 0 if none is.
        Raises BadRequest for what can't be parsed, or the HTTPError that the sink raised.
        """
        if isinstance(error, httptools.HttpParserUpgrade):
            # The request offers to change the protocol, and nobody took it up: HTTP goes on
            # behind it, with its body first (RFC 9110, section 7.8).
            if body_length:
                self._resume(body_length)
            return data[error.args[0] :]
        if isinstance(error, httptools.HttpParserCallbackError):
            raised, self._sink.raised = self._sink.raised, None
            raise (raised or error) from None
        if isinstance(error, httptools.HttpParserError):
            raise BadRequest(str(error)) from None
        raise error

    def _resume(self, body_length: int) -> None:
        """Expect the body of a request whose header section llhttp left as that of an upgrade.

        It can't be told to go on with the body, so a new parser is shown a header section with
        the same framing, which the sink doesn't see.
        """
        resumed = _Resumed(self._sink)
        self._use(httptools.HttpRequestParser(resumed))
        framing = b"Transfer-Encoding: chunked"
        if body_length > 0:
            framing = b"Content-Length: %d" % body_length
        self.feed(b"POST / HTTP/1.1\r\nHost: resumed\r\n%b\r\n\r\n" % framing)
        resumed.passes = True


class _Resumed:
    """A sink that passes everything on, but not the header section that resumes a body."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.passes = False
        self.on_body = sink.on_body
        self.on_message_complete = sink.on_message_complete

    def on_url(self, piece: bytes) -> None:
        if self.passes:
            self._sink.on_url(piece)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.passes:
            self._sink.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.passes:
            self._sink.on_headers_complete()
