"""Functions for transports that work the same with asyncio's and uvloop's event loops."""

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
    """The fastest function that sends several pieces on a transport. No piece may be empty.

    uvloop sends them in one system call. asyncio's `writelines` isn't used: it copies in Python
    3.11, and some later releases don't pause the protocol if the client is slow
    (python/cpython#127655).
    """
    if type(transport).__module__.startswith("uvloop"):
        return transport.writelines

    def write_each(pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            transport.write(piece)

    return write_each


def end_output(transport: asyncio.Transport) -> None:
    """Send what is buffered, then end our side of the connection; close it if that isn't possible.

    A client can still send after the end of our side.
    """
    if not transport.can_write_eof():
        transport.close()
        return
    try:
        transport.write_eof()
    except OSError:  # asyncio shuts the socket down at once; the client may have reset it already
        transport.abort()


def unsent(transport: asyncio.Transport) -> int:
    """How many bytes the client hasn't acknowledged, in the transport's and the kernel's buffers.

    The kernel may hold several megabytes. So a transport's own buffer may not change for a minute
    although the client reads all the time. See SIOCOUTQ in tcp(7).
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return 0
    held = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    return transport.get_write_buffer_size() + int.from_bytes(held, sys.byteorder)


def reset(transport: asyncio.Transport) -> None:
    """Reset the connection; data that the kernel hasn't sent yet is dropped."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()
