"""What a library has to do for a WebSocket, and which one a worker uses.

Handshakes, control frames and frames that are a whole, uncompressed message are the server's own
business; fragments and compressed messages go through a codec.
"""

from __future__ import annotations

import importlib.util
from typing import Protocol

from esg.settings.schema import Config


class Sink(Protocol):
    """What a codec calls while it is fed."""

    def on_message(self, message: str | bytes) -> None:
        """A message is whole."""


class Codec(Protocol):
    """One connection's frames; a thin adapter on somebody else's library, without policy."""

    @property
    def unfinished(self) -> int:
        """Bytes held of a message that comes in fragments, or characters of a text."""

    def feed(self, frame: bytes, sink: Sink) -> None:
        """Take in a whole frame of data whose header is sound. Raises Failure."""

    def message(self, first: int, content: bytes) -> bytes:
        """The frame of a message, compressed if that was agreed on.

        `first` is the first byte it would have if it weren't compressed.
        """


Deflate = object
"""What a library needs to know of the compression that was agreed on, for one connection."""


class Library(Protocol):
    """What makes codecs."""

    @property
    def name(self) -> str:
        """The library's."""

    def agree(self, offers: str) -> tuple[str, Deflate] | None:
        """Choose among the offered extensions (RFC 7692, section 5).

        Gives the field's value for the response and what a codec has to know; None for none.
        """

    def codec(self, most_bytes: int, deflate: Deflate | None) -> Codec:
        """A codec that fails at messages of more bytes; 0 for no limit."""


def library(config: Config) -> Library | None:
    """What `--ws` names: None for no WebSockets.

    Whether it is installed has been checked when the settings were read (`prepare`).
    """
    name = config.ws
    if name == "none":
        return None
    if name == "wsproto":
        from esg.server.websocket.wsproto_codec import Wsproto

        return Wsproto()
    if name == "auto" and importlib.util.find_spec("websockets") is None:
        return None
    from esg.server.websocket.websockets_codec import Websockets

    return Websockets()
