"""httptools as a parser: bytes in, calls to a sink out. Knows nothing of policy or responses."""

from __future__ import annotations

from typing import Protocol

import httptools

from esg.errors import BadRequest, ESGError


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

    __slots__ = ("_parser", "http_version", "method")

    def __init__(self, sink: Sink) -> None:
        self._parser = httptools.HttpRequestParser(sink)
        self.method = self._parser.get_method
        self.http_version = self._parser.get_http_version

    def feed(self, data: bytes | memoryview) -> None:
        """Parse some bytes. Raises BadRequest, or whatever HTTPError the sink raised."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # The request offers to change the protocol, and nobody took it up: HTTP goes on
            # behind it (RFC 9110, section 7.8).
            rest = data[upgrade.args[0] :]
            if rest:
                self.feed(rest)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if isinstance(cause, ESGError):
                raise cause from None
            raise
        except httptools.HttpParserError as error:
            raise BadRequest(str(error)) from None
