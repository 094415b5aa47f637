"""Sends a part of a file on a socket without blocking the event loop, and without copying it.

The kernel moves the bytes (sendfile(2)); a thread calls it, because reading from a disk blocks.
Over TLS, where the bytes have to be encrypted first, they are read and written piece by piece.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable
from typing import BinaryIO

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


async def send_part(
    loop: asyncio.AbstractEventLoop,
    out: int,
    fd: int,
    offset: int,
    count: int,
    writable: Callable[[], Awaitable[bool]],
) -> int:
    """Send `count` bytes from `offset` of the file `fd` on the non-blocking socket `out`.

    `writable` is awaited before each attempt; with False it ends the sending. Nothing else may be
    written to the socket meanwhile. Returns the number of bytes sent, less than `count` if the
    file ends earlier. Raises OSError if the client is gone.
    """
    sent = 0
    while sent < count and await writable():
        size = await loop.run_in_executor(None, _send_some, out, fd, offset + sent, count - sent)
        if size == 0:
            break
        sent += size or 0
    return sent


def _send_some(out: int, fd: int, offset: int, count: int) -> int | None:
    """Send what the socket takes now; None if it takes nothing."""
    try:
        return os.sendfile(out, fd, offset, min(count, MOST_AT_ONCE))
    except BlockingIOError:
        return None


async def copy_part(
    loop: asyncio.AbstractEventLoop,
    write: Callable[[bytes], None],
    fd: int,
    offset: int,
    count: int,
    writable: Callable[[], Awaitable[bool]],
) -> int:
    """The same by way of `write`."""
    sent = 0
    while sent < count and await writable():
        size = min(PIECE, count - sent)
        piece = await loop.run_in_executor(None, os.pread, fd, size, offset + sent)
        if not piece:
            break
        write(piece)
        sent += len(piece)
    return sent
