"""httptools as a parser: bytes in, calls to a sink out. Knows nothing of policy or responses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import httptools

from esg.errors import BadRequest, HTTPError


class Sink(Protocol):
    """What a parser calls, in order; a trailer field is an `on_header` after the body."""

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

    __slots__ = ("feed", "http_version", "method", "persists")

    def __init__(self, sink: Sink) -> None:
        parser = httptools.HttpRequestParser(sink)
        self.feed: Callable[[bytes | memoryview], None] = parser.feed_data
        """Parse some bytes; what it raises is for `recover`."""
        self.method: Callable[[], bytes] = parser.get_method
        self.http_version: Callable[[], str] = parser.get_http_version
        self.persists: Callable[[], bool] = parser.should_keep_alive
        """Whether version and Connection options together keep the connection open. Where there
        are no such options that says that the version is 1.1, at a tenth of the cost of asking.
        """

    def recover(self, error: Exception, data: bytes | memoryview) -> bytes | memoryview:
        """The part of `data` that is still to be parsed after `feed` raised `error` for it.

        Raises BadRequest for what can't be parsed, or the HTTPError that the sink raised.
        """
        if isinstance(error, httptools.HttpParserUpgrade):
            # The request offers to change the protocol, and nobody took it up: HTTP goes on
            # behind it (RFC 9110, section 7.8).
            return data[error.args[0] :]
        if isinstance(error, httptools.HttpParserCallbackError):
            cause = error.__context__
            raise (cause if isinstance(cause, HTTPError) else error) from None
        if isinstance(error, httptools.HttpParserError):
            raise BadRequest(str(error)) from None
        raise error
