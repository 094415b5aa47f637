"""The body of one request, between the client that sends it and the application that reads it."""

from __future__ import annotations

from typing import Protocol

UNKNOWN_LENGTH = -1
"""The length of a body whose size is only known at its end."""

MOST_PIECES = 256
"""Pieces of a body that are kept as they came. More are joined, because each piece takes more than
40 bytes of memory, even a piece of one byte.
"""


class Framing(Protocol):
    """The properties of a request's body and its response, from the request's head."""

    @property
    def length(self) -> int:
        """Bytes of the request's body, or UNKNOWN_LENGTH."""

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for a 100 (Continue) before it sends the body."""

    @property
    def head_only(self) -> bool:
        """Whether the response has no body, because the method is HEAD."""


class RequestBody:
    """The part of a body that has arrived."""

    __slots__ = ("awaits_continue", "complete", "length", "pieces", "received")

    def __init__(self, length: int, awaits_continue: bool) -> None:
        self.length = length
        """Bytes of the whole body, or UNKNOWN_LENGTH."""
        self.received = 0
        self.complete = False
        self.awaits_continue = awaits_continue
        """Whether the client waits for a 100 (Continue) that hasn't been sent yet."""
        self.pieces: list[bytes] = []
        """The data that the application hasn't taken yet."""

    def join(self) -> None:
        """Join all kept pieces."""
        self.pieces = [b"".join(self.pieces)]

    def take(self) -> bytes:
        """Remove and return everything that is kept."""
        pieces = self.pieces
        if not pieces:
            return b""
        self.pieces = []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @property
    def unread(self) -> int:
        """Bytes that have yet to arrive, or UNKNOWN_LENGTH."""
        if self.complete:
            return 0
        return self.length if self.length == UNKNOWN_LENGTH else self.length - self.received


NO_BODY = RequestBody(0, awaits_continue=False)
"""The body of every request without one. It never changes, so all of them share it."""

NO_BODY.complete = True
