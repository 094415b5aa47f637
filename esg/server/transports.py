"""What is done with transports the same way whichever event loop has made them."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Callable, Iterable

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, on, 0 seconds: see socket(7)


def lines_writer(transport: asyncio.WriteTransport) -> Callable[[Iterable[bytes]], None]:
    """How to send several pieces on a transport, none of them empty.

    With uvloop in one system call. asyncio's `writelines` copies in Python 3.11, and in some later
    releases it doesn't pause a protocol whose client is slow (python/cpython#127655).
    """
    if type(transport).__module__.startswith("uvloop"):
        return transport.writelines

    def write_each(pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            transport.write(piece)

    return write_each


def end_output(transport: asyncio.Transport) -> None:
    """Send what is left to send, then the end of our side, where that can be told."""
    if not transport.can_write_eof():
        transport.close()
        return
    try:
        transport.write_eof()
    except OSError:  # asyncio shuts the socket down at once, and the client may have reset it
        transport.abort()


def unsent(transport: asyncio.Transport) -> int:
    """Bytes that the client hasn't acknowledged: those in the transport and those in the kernel.

    The kernel may hold some megabytes, so that a transport stands still for a minute in front of a
    client that takes something all the time. See tcp(7), SIOCOUTQ.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return 0
    held = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    return transport.get_write_buffer_size() + int.from_bytes(held, sys.byteorder)


def reset(transport: asyncio.Transport) -> None:
    """End the connection, and what the kernel still has to send along with it."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()
