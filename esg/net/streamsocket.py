"""Sockets that listen: opened, taken over from another program, and examined.

`listeners` knows which address of the settings such a socket belongs to.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import stat
import struct
from collections.abc import Iterator
from typing import Any

from esg.errors import ListenError
from esg.net import unixsocket
from esg.net.unixsocket import Access, SocketFile

SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>; the socket module has no names for these
SO_DETACH_FILTER = 27
SO_GET_FILTER = SO_ATTACH_FILTER

_POLLRDHUP = 0x2000
"""poll(2): the other side will send no more. Not every Python build has `select.POLLRDHUP`."""

# Classic BPF, run on each TCP segment for the listener: drop a SYN without ACK, pass the rest.
# The offsets count from the TCP header; byte 13 holds the flags (RFC 9293, section 3.1).
_DROP_NEW_CONNECTIONS = (
    (0x30, 0, 0, 13),  # ldb [13]
    (0x54, 0, 0, 0x12),  # and #SYN|ACK
    (0x15, 0, 1, 0x02),  # jeq #SYN
    (0x06, 0, 0, 0),  # ret 0: drop
    (0x06, 0, 0, 0xFFFFFFFF),  # ret -1: pass
)

InetName = tuple[Any, ...]
"""Host and port, and with IPv6 also flow and scope, as in the socket module."""

SocketName = str | InetName
"""What bind(2) takes: an InetName, or the name of a UNIX socket."""


def listening_socket(family: int, name: SocketName, backlog: int, only_ipv6: bool) -> socket.socket:
    """A TCP socket that listens at this address and doesn't block. Raises OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit it (tcp(7)); not every event loop sets it on them.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            # Without it, `::` takes IPv4 clients as well (ipv6(7)).
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only_ipv6))
        sock.bind(name)
        sock.listen(backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def listening_unix_socket(
    name: str, access: Access, backlog: int
) -> tuple[socket.socket, SocketFile | None]:
    """A socket that listens at the path `name`, and its file.

    A name that begins with NUL is abstract, and has no file.
    """
    file = None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if name.startswith("\0"):
            sock.bind(name)
            sock.listen(backlog)
        else:
            file = unixsocket.listen(sock, name, access, backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock, file


def adopted(fd: int, backlog: int | None = None) -> socket.socket:
    """Take over the listening stream socket that is open as `fd`.

    A socket that is bound but doesn't listen begins to listen with `backlog` (listen(2)); without a
    backlog it is refused. The backlog of a socket that already listens isn't changed.

    Programs that a worker starts don't inherit the socket. If `fd` is a standard stream, /dev/null
    takes its place. O_NONBLOCK is set, which affects every process that has the socket (open(2),
    file status flags). Raises ListenError if `fd` can't be used; its text is only the reason.
    """
    try:
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        raise ListenError(
            "that descriptor isn't open; the program that starts ESG must hand it over"
        ) from None
    if not is_socket:
        raise ListenError("that descriptor isn't a socket")
    with _borrowed(fd) as probe:
        reason = _why_unfit(probe) or _made_to_listen(probe, backlog)
    if reason:
        raise ListenError(reason)
    if fd < 3:
        number = os.dup(fd)  # not inherited, and above 2, because 0 to 2 are open
        with open(os.devnull, "r+b", buffering=0) as nothing:
            os.dup2(nothing.fileno(), fd)
    else:
        number = fd
        os.set_inheritable(fd, False)
    sock = socket.socket(fileno=number)
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):  # a sandbox may deny it; responses are slower then
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _why_unfit(sock: socket.socket) -> str:
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        return "that socket is neither TCP nor UNIX"
    if sock.type != socket.SOCK_STREAM:
        udp = sock.type == socket.SOCK_DGRAM and sock.family != socket.AF_UNIX
        return f"that socket is {'UDP' if udp else sock.type.name}; a stream socket is needed"
    return ""


def _made_to_listen(sock: socket.socket, backlog: int | None) -> str:
    """Make a bound socket listen if it doesn't yet; returns why that is impossible, or ""."""
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return ""
    name = name_of(sock)
    if not (name[1] if isinstance(name, tuple) else name):
        return "that socket isn't bound; call bind() on it before it is handed over"
    if backlog is None:
        return "that socket doesn't listen"
    try:
        sock.listen(backlog)
    except OSError as error:
        return f"that socket can't listen: {error.strerror}"
    return ""


@contextlib.contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    """The socket that is open as `fd`; it stays open. Raises OSError if `fd` isn't open."""
    sock = socket.socket(fileno=fd)
    try:
        yield sock
    finally:
        sock.detach()


def stream_at(fd: int) -> tuple[int, SocketName]:
    """Family and address of the stream socket `fd`; 0 and "" if `fd` is anything else."""
    with contextlib.suppress(OSError), _borrowed(fd) as sock:
        if sock.type == socket.SOCK_STREAM:
            return sock.family, name_of(sock)
    return 0, ""


def name_of(sock: socket.socket) -> SocketName:
    """The address that a socket is bound to."""
    name: str | bytes | InetName = sock.getsockname()
    return os.fsdecode(name) if isinstance(name, bytes) else name


def is_shut(sock: socket.socket) -> bool:
    """Whether a UNIX socket was shut down (shutdown(2)), so that it accepts no connections."""
    poll = select.poll()
    poll.register(sock, _POLLRDHUP)
    return any(events & (_POLLRDHUP | select.POLLHUP) for _, events in poll.poll(0))


def drop_new_connections(sock: socket.socket) -> None:
    """Attach a filter that drops the first packet of each new TCP connection. Raises OSError."""
    code = b"".join(struct.pack("=HBBI", *line) for line in _DROP_NEW_CONNECTIONS)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HL", len(_DROP_NEW_CONNECTIONS), ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def allow_new_connections(sock: socket.socket) -> None:
    """Detach the filter of a socket. Raises OSError if it has none, or if the filter is locked."""
    sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def has_filter(sock: socket.socket) -> bool:
    """Whether a filter decides which packets a socket gets (socket(7), SO_ATTACH_FILTER).

    If the buffer is too small for the filter, the kernel returns the filter's length. EACCES means
    that there is a filter that can't be shown. `socket.getsockopt` can't be used: its buffer holds
    a few bytes, but the kernel counts in instructions, and would write beyond the buffer.
    """
    length = ctypes.c_uint32(0)
    result = _libc.getsockopt(
        sock.fileno(), socket.SOL_SOCKET, SO_GET_FILTER, None, ctypes.byref(length)
    )
    return bool(length.value) if result == 0 else ctypes.get_errno() == errno.EACCES


_libc = ctypes.CDLL(None, use_errno=True)
