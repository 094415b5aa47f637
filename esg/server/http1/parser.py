"""The interface of parsers; `parsers.py` chooses one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from esg.errors import HTTPError


class Sink(Protocol):
    """The methods that a parser calls, in order; a trailer field is an `on_header` after the
    body."""

    raised: HTTPError | None
    """The last exception of one of these methods. httptools would make it the context of its own
    error, where Python also puts any other exception that is being handled.
    """

    def on_url(self, piece: bytes) -> None:
        """A piece of the request target."""

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field, its name as the client wrote it."""

    def on_headers_complete(self) -> None:
        """The header section is complete; the parser's `method` and `http_version` are valid."""

    def on_body(self, piece: bytes) -> None:
        """A piece of the body, without its framing."""

    def on_message_complete(self) -> None:
        """The body (and any trailer section) is complete."""


class Parser(Protocol):
    """Bytes in, calls to a sink out; a thin adapter for a library's parser, without policy."""

    @property
    def feed(self) -> Callable[[bytes | memoryview], None]:
        """Parse some bytes; pass its exceptions to `recover`."""

    @property
    def method(self) -> Callable[[], bytes]:
        """The request's method, unchanged."""

    @property
    def http_version(self) -> Callable[[], str]:
        """The version, as "1.1"."""

    @property
    def persists(self) -> Callable[[], bool]:
        """Whether version and Connection options together keep the connection open.

        Only use it if there are no such options: then it means that the version is 1.1, at
        a tenth of the cost of httptools' version.
        """

    @property
    def upgrades(self) -> Callable[[], bool]:
        """Whether the request offers to change the protocol.

        Then its body, if it has one, is not parsed: `on_message_complete` is called immediately,
        and `recover` continues with the body.
        """

    def recover(
        self, error: Exception, data: bytes | memoryview, body_length: int
    ) -> bytes | memoryview:
        """The part of `data` that is still to be parsed after `feed` raised `error` for it.

        `body_length` is the length of the awaited body, -1 for chunks, 0 if there is none.
        Raises BadRequest if the data can't be parsed, or the HTTPError that the sink raised.
        """


class HoldingParser:
    """A parser that parses nothing: after a handshake, the protocol of the bytes isn't known."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = b""

    def feed(self, data: bytes | memoryview) -> None:
        """Keep some bytes."""
        self.held += data

    def method(self) -> bytes:
        """See `Parser`; nothing is parsed that could have one."""
        raise NotImplementedError

    def http_version(self) -> str:
        """See `method`."""
        raise NotImplementedError

    def persists(self) -> bool:
        """See `method`."""
        raise NotImplementedError

    def upgrades(self) -> bool:
        """See `method`."""
        raise NotImplementedError

    def recover(
        self, error: Exception, data: bytes | memoryview, body_length: int
    ) -> bytes | memoryview:
        """See `Parser`."""
        raise error
