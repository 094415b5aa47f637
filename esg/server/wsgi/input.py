"""`wsgi.input`: the request's body as a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from esg.server.asgi.disconnection import ClientDisconnected
from esg.server.asgi.types import Message


class Input:
    """`wsgi.input`: the request's body as a file. It is received while the application reads it.

    Each of the reading methods raises ClientDisconnected, an OSError, if the client leaves before
    its body is complete, because a short read would look like the end of the body.
    """

    __slots__ = ("_at", "_piece", "_receive", "more")

    def __init__(self, receive: Callable[[], Message]) -> None:
        """`receive` waits for the next message from the client."""
        self._receive = receive
        self._piece = b""
        self._at = 0
        self.more = False
        """Whether there may be more to receive."""

    def feed(self, message: Message) -> None:
        """Take in a received message. Raises ClientDisconnected."""
        if message["type"] == "http.disconnect":
            raise ClientDisconnected("the client left before its request was complete")
        self._piece, self._at = message.get("body", b""), 0
        self.more = message.get("more_body", False)

    def read(self, size: int | None = -1) -> bytes:
        """The next `size` bytes, or fewer at the end; without `size`, the rest of the body."""
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
        """The remaining lines; stops after the line that reaches `hint` bytes in all."""
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
        """End the request: the application can't read the rest of the body any more."""
        self._piece, self._at = b"", 0
        self._receive = _receive_nothing  # this also breaks a reference cycle

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
