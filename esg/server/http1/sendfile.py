"""Sends a part of a file on a socket without blocking the event loop, and without copying it.

The kernel moves the bytes (sendfile(2)); a thread calls it, because reading from a disk blocks.
Over TLS, where the bytes have to be encrypted first, they are read and written piece by piece.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import BinaryIO, TypeVar

T = TypeVar("T")

PIECE = 262144
"""Bytes read at once where the kernel can't send the file itself."""

MOST_AT_ONCE = 1 << 24
"""Bytes asked of one sendfile(2): few enough that a thread is soon free for others."""


def open_file(path: str) -> BinaryIO:
    """Open a regular file. Raises OSError, and ValueError for what might block, as a FIFO does."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return os.fdopen(fd, "rb")
    os.close(fd)
    raise ValueError(f"http.response.pathsend sends regular files only, not {path!r}")


class Copies:
    """Copies of descriptors for a thread, which stay open as long as it uses them.

    A thread can't be cancelled. One that began with the number of a descriptor that has been closed
    meanwhile, as when its request is cancelled, would use whatever has that number then: another
    client's connection. As a context manager this ends with the request, and the copies are closed
    by that or by the thread, whichever is later.
    """

    def __init__(self, *descriptors: int) -> None:
        self._lock = threading.Lock()
        self._used = self._ended = False
        self.descriptors: list[int] = []
        """The copies, in the same order."""
        try:
            for descriptor in descriptors:
                self.descriptors.append(os.dup(descriptor))
        except OSError:
            self._close()
            raise

    def use(self, call: Callable[..., T], *args: int) -> T | None:
        """In the thread: `call(*descriptors, *args)`; None if the request is over."""
        with self._lock:
            if self._ended:
                return None
            self._used = True
        try:
            return call(*self.descriptors, *args)
        finally:
            with self._lock:
                self._used = False
                if self._ended:
                    self._close()

    def __enter__(self) -> Copies:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._ended = True
            if not self._used:
                self._close()

    def _close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []


async def send_part(
    loop: asyncio.AbstractEventLoop,
    copies: Copies,
    offset: int,
    count: int,
    writable: Callable[[], Awaitable[bool]],
) -> int:
    """Send `count` bytes from `offset` of a file on a non-blocking socket.

    `copies` are those of the file's and the socket's descriptor, in this order. `writable` is
    awaited before each attempt; with False it ends the sending. Nothing else may be written to the
    socket meanwhile. Returns the number of bytes sent, less than `count` if the file ends earlier.
    Raises OSError if the client is gone.
    """
    sent = 0
    while sent < count and await writable():
        size = await loop.run_in_executor(None, copies.use, _send_some, offset + sent, count - sent)
        if size == 0:
            break
        sent += size or 0
    return sent


def _send_some(fd: int, out: int, offset: int, count: int) -> int | None:
    """Send what the socket takes now; None if it takes nothing."""
    try:
        return os.sendfile(out, fd, offset, min(count, MOST_AT_ONCE))
    except BlockingIOError:
        return None


async def copy_part(
    loop: asyncio.AbstractEventLoop,
    write: Callable[[bytes], None],
    copies: Copies,
    offset: int,
    count: int,
    writable: Callable[[], Awaitable[bool]],
) -> int:
    """The same by way of `write`; `copies` has the file's descriptor alone."""
    sent = 0
    while sent < count and await writable():
        size = min(PIECE, count - sent)
        piece = await loop.run_in_executor(None, copies.use, os.pread, size, offset + sent)
        if not piece:
            break
        write(piece)
        sent += len(piece)
    return sent
