"""The interface of WebSocket libraries; `libraries.py` chooses one.

The server itself handles handshakes, control frames, and frames that are a complete, uncompressed
message. Fragments and compressed messages go through a codec, which wraps a library.
"""

from __future__ import annotations

from typing import Protocol


class Sink(Protocol):
    """Receives the messages that a codec completes while it is fed."""

    def on_message(self, message: str | bytes) -> None:
        """A message is complete."""


class Codec(Protocol):
    """The frames of one connection: a thin adapter for a library, without policy of its own."""

    @property
    def unfinished(self) -> int:
        """Bytes (of a text: characters) held of a message that is arriving in fragments."""

    def feed(self, frame: bytes, sink: Sink) -> None:
        """Decode one complete data frame with a valid header. Raises Failure."""

    def message(self, first: int, content: bytes) -> bytes:
        """The frame of a message, compressed if compression was negotiated.

        `first` is the first byte of the frame without compression.
        """


Deflate = object
"""A library's own object for the compression that was negotiated for one connection."""


class Library(Protocol):
    """Makes the codecs of one library."""

    @property
    def name(self) -> str:
        """The library's name."""

    def agree(self, offers: str) -> tuple[str, Deflate] | None:
        """Choose one of the offered extensions (RFC 7692, section 5).

        Returns the value of the response's field and the argument for `codec`, or None if no offer
        is acceptable.
        """

    def codec(self, most_bytes: int, deflate: Deflate | None) -> Codec:
        """A codec that fails if a message has more than `most_bytes` bytes; 0 means no limit."""
