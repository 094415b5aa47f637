"""What a parser is to a connection; `parsers.py` chooses one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from esg.errors import HTTPError


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


class Parser(Protocol):
    """Bytes in, calls to a sink out; a thin adapter on somebody else's parser, without policy."""

    @property
    def feed(self) -> Callable[[bytes | memoryview], None]:
        """Parse some bytes; what it raises is for `recover`."""

    @property
    def method(self) -> Callable[[], bytes]:
        """The request's method, as it came."""

    @property
    def http_version(self) -> Callable[[], str]:
        """The version, as "1.1"."""

    @property
    def persists(self) -> Callable[[], bool]:
        """Whether version and Connection options together keep the connection open.

        To be asked only where there are no such options: then it says that the version is 1.1, at
        a tenth of the cost of asking httptools for that.
        """

    @property
    def upgrades(self) -> Callable[[], bool]:
        """Whether the request offers to change the protocol.

        Then its body, if it has one, is not parsed: `on_message_complete` comes at once, and
        `recover` goes on with the body.
        """

    def recover(
        self, error: Exception, data: bytes | memoryview, body_length: int
    ) -> bytes | memoryview:
        """The part of `data` that is still to be parsed after `feed` raised `error` for it.

        `body_length` is that of the request whose body is awaited, -1 for chunks, 0 if none is.
        Raises BadRequest for what can't be parsed, or the HTTPError that the sink raised.
        """


class Held:
    """A parser that parses nothing: behind a handshake it isn't known what bytes are."""

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
