"""Listening sockets: how an address is written, bound, described and stopped."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import socket
import struct
from collections.abc import Sequence

from esg.errors import ConfigError, ListenError

SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>; the socket module doesn't name it

# Classic BPF, run on each TCP segment for the listener: drop a SYN without ACK, pass the rest.
# The offsets count from the TCP header; byte 13 holds the flags (RFC 9293, section 3.1).
_DROP_NEW_CONNECTIONS = (
    (0x30, 0, 0, 13),  # ldb [13]
    (0x54, 0, 0, 0x12),  # and #SYN|ACK
    (0x15, 0, 1, 0x02),  # jeq #SYN
    (0x06, 0, 0, 0),  # ret 0: drop
    (0x06, 0, 0, 0xFFFFFFFF),  # ret -1: pass
)


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """A TCP address to listen on, as the operator wrote it."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_bind(text: str, origin: str) -> Address:
    """Read `HOST:PORT`, `[V6]:PORT` or `HOST`. Raises ConfigError, which names `origin`."""
    if text.startswith(("unix:", "fd://")):
        raise ConfigError(f"{origin}: {text!r}: this version listens on TCP only; use HOST:PORT")
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, "8000"
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"{origin}: {text!r}: write an IPv6 address in brackets, [::1]:8000")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{origin}: {text!r}: expected HOST:PORT with a port from 0 to 65535")
    return Address(host, int(port))


@dataclasses.dataclass(slots=True, eq=False)
class Listener:
    """A bound, listening, non-blocking socket that this program opened."""

    sock: socket.socket

    def url(self, scheme: str = "http") -> str:
        """The address as a URL, for the log."""
        host, port = self.sock.getsockname()[:2]
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def fileno(self) -> int:
        return self.sock.fileno()

    def refuse_new(self) -> None:
        """Let no new connection begin, while those already in the kernel's queue stay acceptable.

        Closing the last descriptor of a listener resets what is queued on it, so whoever closes
        for good stops the inflow first, accepts what is there, and then closes. It acts on the
        socket, thus for every process that holds it. See socket(7), SO_ATTACH_FILTER; where the
        kernel has none, closing is as abrupt as it always was.
        """
        code = b"".join(struct.pack("=HBBI", *line) for line in _DROP_NEW_CONNECTIONS)
        buffer = ctypes.create_string_buffer(code)
        program = struct.pack("HL", len(_DROP_NEW_CONNECTIONS), ctypes.addressof(buffer))
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        except OSError as error:
            if error.errno not in (errno.ENOPROTOOPT, errno.EPERM, errno.EBADF):
                raise

    def close(self) -> None:
        self.sock.close()


def open_listeners(binds: Sequence[str], backlog: int, origin: str) -> list[Listener]:
    """Listen on every address of `binds`.

    A host name is listened on at every address that it has. Raises ListenError, or ConfigError
    for an address that isn't one; then nothing stays open.
    """
    opened: list[Listener] = []
    addresses = [parse_bind(bind, origin) for bind in binds]
    ipv4_ports = [address.port for address in addresses if address.host == "0.0.0.0"]
    try:
        for address in addresses:
            opened += _open(address, backlog, origin, address.port in ipv4_ports)
    except BaseException:
        for listener in opened:
            listener.close()
        raise
    return opened


def _open(address: Address, backlog: int, origin: str, ipv4_too: bool) -> list[Listener]:
    """Listen on all that an address stands for; `ipv4_too`: another one takes IPv4 clients."""
    listeners: list[Listener] = []
    port = address.port
    try:
        for family, host in _usable(_resolved(address, origin)):
            sock = _listening_socket(family, host, port, backlog, host != "::" or ipv4_too)
            listeners.append(Listener(sock))
            ipv4_too = ipv4_too or family == socket.AF_INET
            port = listeners[0].sock.getsockname()[1]
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise ListenError(
            f"can't listen on {address} ({origin}): {_explained(error, address)}"
        ) from None
    return listeners


def _resolved(address: Address, origin: str) -> list[tuple[int, str]]:
    try:
        found = socket.getaddrinfo(
            address.host or None,
            address.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
    except OSError as error:
        reason = error.strerror or str(error)
        raise ListenError(f"can't listen on {address} ({origin}): {reason}") from None
    # IPv4 first, since what an IPv6 socket may take depends on it.
    return sorted({(int(family), str(where[0])) for family, _, _, _, where in found})


def _usable(addresses: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Without those that this machine doesn't have, as containers know `localhost` as ::1 too.

    If it has none of them, all, so that the reason shows.
    """
    return [address for address in addresses if _exists(*address)] or addresses


def _exists(family: int, host: str) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.bind((host, 0))
    except OSError as error:
        return error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return True


def _listening_socket(
    family: int, host: str, port: int, backlog: int, only_ipv6: bool
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit it (tcp(7)); not every event loop sets it on them.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            # `::` takes IPv4 clients too, if nobody else does; see ipv6(7).
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only_ipv6))
        sock.bind((host, port))
        sock.listen(backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _explained(error: OSError, address: Address) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the address is in use; stop the program that has it, or choose another port"
    if error.errno == errno.EACCES and address.port < 1024:
        return (
            f"no permission for port {address.port}; use a port from 1024 up, "
            "or give the program CAP_NET_BIND_SERVICE"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    return error.strerror or os.strerror(error.errno or 0)
