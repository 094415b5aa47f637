"""httptools as a parser: bytes in, calls to a sink out. It contains no policy, and no responses."""

from __future__ import annotations

from collections.abc import Callable

import httptools

from esg.errors import BadRequest, VersionNotSupported
from esg.server.http1.parser import Sink


class HttptoolsParser:
    """The llhttp parser of httptools, in its strict mode."""

    __slots__ = ("_sink", "feed", "http_version", "method", "persists", "upgrades")

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._use(httptools.HttpRequestParser(sink))

    def _use(self, parser: httptools.HttpRequestParser) -> None:
        self.feed: Callable[[bytes | memoryview], None] = parser.feed_data
        self.method: Callable[[], bytes] = parser.get_method
        self.http_version: Callable[[], str] = parser.get_http_version
        self.persists: Callable[[], bool] = parser.should_keep_alive
        self.upgrades: Callable[[], bool] = parser.should_upgrade

    def recover(
        self, error: Exception, data: bytes | memoryview, body_length: int
    ) -> bytes | memoryview:
        """See `Parser`."""
        if isinstance(error, httptools.HttpParserUpgrade):
            # The request offers to change the protocol. Unless the server accepts, HTTP continues
            # after it, beginning with its body (RFC 9110, section 7.8).
            if body_length:
                self._resume(body_length)
            return data[error.args[0] :]
        if isinstance(error, httptools.HttpParserCallbackError):
            raise self._raised(error) from None
        if isinstance(error, httptools.HttpParserError):
            # llhttp accepts more versions than ESG serves, and refuses all others itself.
            unknown = error.args == ("Invalid HTTP version",)
            raise (VersionNotSupported if unknown else BadRequest)(str(error)) from None
        raise error

    def _raised(self, error: Exception) -> Exception:
        """What the sink raised. The traceback of what `recover` raises has its frame, so a variable
        there would make a reference cycle.
        """
        raised, self._sink.raised = self._sink.raised, None
        return raised or error

    def _resume(self, body_length: int) -> None:
        """Expect the body of a request that llhttp has treated as an upgrade.

        llhttp can't be told to parse the body, so a new parser gets a header section with
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
    """A sink that passes everything on, except the header section that resumes a body."""

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
