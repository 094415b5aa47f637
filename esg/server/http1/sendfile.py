"""Sends a part of a file on a socket without blocking the event loop, and without copying it.

The kernel moves the bytes (sendfile(2)); a thread calls it, because reading from a disk blocks.
Over TLS, where the bytes have to be encrypted first, they are read and written piece by piece.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Protocol, TypeVar

from esg.server.outflow import Outflow
from esg.server.state import Service

T = TypeVar("T")

PIECE = 262144
"""Bytes to read at once if the kernel can't send the file itself."""

MOST_AT_ONCE = 1 << 24
"""The most bytes for one sendfile(2): few enough that the thread is soon free for others."""


class Copies:
    """Copies of descriptors for a thread; they stay open while the thread uses them.

    A thread can't be cancelled. If a request is cancelled, its descriptors are closed, and a thread
    with their numbers would use other files that have these numbers by then, such as another
    client's connection. This is a context manager that ends with the request; the copies are closed
    by its end or by the thread, whichever is later.
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


class FileWire(Protocol):
    """The connection that a file is sent on."""

    service: Service
    transport: asyncio.Transport
    outflow: Outflow

    @property
    def write(self) -> Callable[[bytes], None]:
        """A method: send bytes, in order."""

    @property
    def over(self) -> bool:
        """Whether nothing more can be sent."""

    def await_sending(self) -> None:
        """Begin the client's time limit for data that is written to the socket directly."""

    def resume_writing(self) -> None:
        """Continue as after a pause."""


async def send_file(wire: FileWire, fd: int, offset: int, count: int) -> int:
    """Send a part of a file; returns the number of bytes sent. Raises OSError.

    Nothing else may be written meanwhile.
    """
    loop, transport = wire.service.loop, wire.transport

    async def flushed() -> bool:
        await wire.outflow.writable()
        return not wire.over

    if transport.get_extra_info("sslcontext") is not None:
        with Copies(fd) as copies:
            return await copy_part(
                loop, lambda piece: wire.write(piece), copies, offset, count, flushed
            )
    wire.outflow.flush()
    transport.set_write_buffer_limits(0)  # so that a writable socket means that nothing is unsent
    try:
        # Event loops don't allow waiting for a transport's descriptor, but they do for a copy.
        with Copies(fd, transport.get_extra_info("socket").fileno()) as copies:
            await wire.outflow.writable()
            out = copies.descriptors[1]
            return await send_part(loop, copies, offset, count, lambda: _writable(wire, out))
    finally:
        if not wire.over:
            transport.set_write_buffer_limits()
            wire.resume_writing()


async def _writable(wire: FileWire, fd: int) -> bool:
    """Wait until `fd` can be written to, or the connection has ended; returns False for the
    latter."""
    if wire.over:
        return False
    loop, outflow = wire.service.loop, wire.outflow
    wire.await_sending()
    waiter = outflow.waiter()
    loop.add_writer(fd, outflow.resume)
    try:
        await waiter
    finally:
        loop.remove_writer(fd)
    return not wire.over


async def send_part(
    loop: asyncio.AbstractEventLoop,
    copies: Copies,
    offset: int,
    count: int,
    writable: Callable[[], Awaitable[bool]],
) -> int:
    """Send `count` bytes from `offset` of a file on a non-blocking socket.

    `copies` are those of the file's and the socket's descriptor, in this order. `writable` is
    awaited before each attempt; if it gives False, sending ends. Nothing else may be written to the
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
    """Send as much as the socket accepts now; None if it accepts nothing."""
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
    """Like `send_part`, but with `write`; `copies` has only the file's descriptor."""
    sent = 0
    while sent < count and await writable():
        size = min(PIECE, count - sent)
        piece = await loop.run_in_executor(None, copies.use, os.pread, size, offset + sent)
        if not piece:
            break
        write(piece)
        sent += len(piece)
    return sent
