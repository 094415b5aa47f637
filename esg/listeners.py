"""Listening sockets: how an address is written, bound, taken over, described and stopped."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import os
import re
import socket
import stat
import struct
from collections.abc import Iterable, Sequence

from esg import unixsocket
from esg.errors import ConfigError, ListenError
from esg.unixsocket import Access, SocketFile

SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>; the socket module doesn't name these
SO_DETACH_FILTER = 27

# Classic BPF, run on each TCP segment for the listener: drop a SYN without ACK, pass the rest.
# The offsets count from the TCP header; byte 13 holds the flags (RFC 9293, section 3.1).
_DROP_NEW_CONNECTIONS = (
    (0x30, 0, 0, 13),  # ldb [13]
    (0x54, 0, 0, 0x12),  # and #SYN|ACK
    (0x15, 0, 1, 0x02),  # jeq #SYN
    (0x06, 0, 0, 0),  # ret 0: drop
    (0x06, 0, 0, 0xFFFFFFFF),  # ret -1: pass
)

_NAME = re.compile(r"[A-Za-z0-9_@][A-Za-z0-9._@-]*")
_STORE_PREFIX = "esg-"


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """A TCP address to listen on, as the operator wrote it."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclasses.dataclass(frozen=True, slots=True)
class UnixAddress:
    """A UNIX socket to listen on: a path, or with `@` in front an abstract name (unix(7))."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"

    @property
    def kernel_name(self) -> str:
        """What bind(2) takes."""
        return "\0" + self.path[1:] if self.path.startswith("@") else self.path


@dataclasses.dataclass(frozen=True, slots=True)
class Descriptor:
    """A socket that listens already: its descriptor, or its name in LISTEN_FDNAMES."""

    which: int | str

    def __str__(self) -> str:
        return f"fd://{self.which}"


Bind = Address | UnixAddress | Descriptor


@dataclasses.dataclass(frozen=True, slots=True)
class Handed:
    """A socket that the service manager has handed over, as sd_listen_fds(3) describes."""

    fd: int
    name: str

    @property
    def from_store(self) -> bool:
        """Whether it is one that this program has left with the service manager."""
        return self.name.startswith(_STORE_PREFIX)


def parse_bind(text: str, origin: str) -> Bind:
    """Read `HOST:PORT`, `[V6]:PORT`, `HOST`, `unix:PATH`, `unix:@NAME`, `fd://N` or `fd://NAME`.

    Raises ConfigError, which names `origin`.
    """
    if text.startswith("unix:"):
        return _parse_unix(text, origin)
    if text.startswith("fd://"):
        return _parse_descriptor(text, origin)
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


def _parse_unix(text: str, origin: str) -> UnixAddress:
    path = text.removeprefix("unix:")
    if path.startswith("//"):
        path = path[2:]
    if path in ("", "@"):
        raise ConfigError(f"{origin}: {text!r}: expected unix:PATH or unix:@NAME")
    size = len(os.fsencode(path))
    if size > unixsocket.LONGEST_PATH:
        raise ConfigError(
            f"{origin}: {text!r} has {size} bytes, and the path of a UNIX socket at most "
            f"{unixsocket.LONGEST_PATH}; choose a shorter one"
        )
    return UnixAddress(path)


def _parse_descriptor(text: str, origin: str) -> Descriptor:
    which = text.removeprefix("fd://")
    if which.isascii() and which.isdigit():
        return Descriptor(int(which))
    if not _NAME.fullmatch(which):
        raise ConfigError(
            f"{origin}: {text!r}: expected fd://N, or fd://NAME with a name of LISTEN_FDNAMES"
        )
    return Descriptor(which)


@dataclasses.dataclass(slots=True, eq=False)
class Listener:
    """A listening, non-blocking socket."""

    sock: socket.socket
    bind: Bind | None = None
    """What of the settings it came from."""
    file: SocketFile | None = None
    """The file of a UNIX socket, if it was made here."""
    borrowed: int | None = None
    """The descriptor as which somebody else gave it, who may have it served on after us."""
    stored: bool = False
    """Whether the service manager keeps a copy of it, for the case of a crash."""

    def url(self, scheme: str = "http") -> str:
        """The address as a URL, for the log."""
        if self.path is not None:
            return f"unix:{self.path}"
        host, port = self.sock.getsockname()[:2]
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    @property
    def path(self) -> str | None:
        """The path of a UNIX socket, `@NAME` of an abstract one, None of a TCP one."""
        if self.sock.family != socket.AF_UNIX:
            return None
        name = self.sock.getsockname()
        return os.fsdecode(name) if isinstance(name, str) else "@" + os.fsdecode(name[1:])

    @property
    def store_name(self) -> str:
        """What it is called in the service manager's store (sd_notify(3), FDNAME=)."""
        return store_name(self.bind)

    def fileno(self) -> int:
        return self.sock.fileno()

    def refuse_new(self) -> bool:
        """Let no new connection begin, while those already in the kernel's queue stay acceptable.

        Closing the last descriptor of a listener resets what is queued on it, so whoever closes
        for good stops the inflow first, accepts what is there, and then closes. It acts on the
        socket, thus for every process that holds it, so a borrowed one is left alone. Returns
        whether some that have begun may still come.

        TCP: socket(7), SO_ATTACH_FILTER; where the kernel has none, closing is as abrupt as it
        always was. UNIX: shutdown(2), after which connect(2) is refused and the queue remains.
        """
        if self.borrowed is not None:
            return False
        if self.sock.family == socket.AF_UNIX:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RD)
            return False
        code = b"".join(struct.pack("=HBBI", *line) for line in _DROP_NEW_CONNECTIONS)
        buffer = ctypes.create_string_buffer(code)
        program = struct.pack("HL", len(_DROP_NEW_CONNECTIONS), ctypes.addressof(buffer))
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        except OSError as error:
            if error.errno not in (errno.ENOPROTOOPT, errno.EPERM, errno.EBADF):
                raise
        return True

    def close(self) -> None:
        self.sock.close()

    def remove(self) -> None:
        """Close it for good: the file goes too, if it was made here and is still the same."""
        if self.file is not None:
            self.file.remove()
        self.close()

    def give_back(self) -> None:
        """Undo that it was opened: what is borrowed is again at the number that it had."""
        if self.borrowed is None:
            self.remove()
        elif self.borrowed < 3:
            os.dup2(self.sock.fileno(), self.borrowed)
            self.close()
        else:
            self.sock.detach()


def store_name(bind: Bind | None) -> str:
    """What a listener is called in the service manager's store; it allows no colon."""
    return _STORE_PREFIX + re.sub(r"[^A-Za-z0-9._@-]", "_", str(bind))[-200:]


def open_listeners(
    binds: Sequence[str],
    backlog: int,
    origin: str,
    *,
    access: Access = Access(),  # noqa: B008 - it is frozen
    handed: Sequence[Handed] = (),
    kept: Iterable[Listener] = (),
) -> list[Listener]:
    """Listen on every address of `binds`.

    A host name is listened on at every address that it has. `access` is that of UNIX sockets that
    are files. Sockets of `handed` are taken where a bind names them, or has their address, and
    those of `kept` where a bind is the one that they were opened for. Raises ListenError, or
    ConfigError for an address that isn't one; then nothing new stays open.
    """
    addresses = [parse_bind(bind, origin) for bind in binds]
    opener = _Opener(addresses, backlog, origin, access, handed)
    listeners: list[Listener] = []
    try:
        for address in addresses:
            found = [listener for listener in kept if listener.bind == address]
            if not found:
                listeners += opener.open(address)
            elif found[0] not in listeners:  # else the bind is there twice
                listeners += found
    except BaseException:
        for listener in opener.opened:
            listener.give_back()
        raise
    return listeners


class _Opener:
    """What the opening of several addresses has in common. Its methods raise ListenError."""

    def __init__(
        self,
        addresses: Sequence[Bind],
        backlog: int,
        origin: str,
        access: Access,
        handed: Sequence[Handed],
    ) -> None:
        self.opened: list[Listener] = []
        self._backlog = backlog
        self._origin = origin
        self._access = access
        self._handed = handed
        self._ipv4_ports = [
            a.port for a in addresses if isinstance(a, Address) and a.host == "0.0.0.0"
        ]

    def open(self, address: Bind) -> list[Listener]:
        """Listen on all that an address stands for."""
        before = len(self.opened)
        try:
            match address:
                case Descriptor():
                    self._adopt(address)
                case _ if self._take_stored(address):
                    pass
                case Address():
                    self._open_tcp(address)
                case UnixAddress():
                    self._open_unix(address)
        except OSError as error:
            reason = _explained(error, address)
        except ListenError as error:
            reason = str(error)
        else:
            return self.opened[before:]
        raise ListenError(f"can't listen on {address} ({self._origin}): {reason}")

    def _open_tcp(self, address: Address) -> None:
        port = address.port
        ipv4_too = port in self._ipv4_ports
        first = len(self.opened)
        for family, host in _usable(_resolved(address)):
            if not (port and self._take_at(family, (host, port), address)):
                only_ipv6 = host != "::" or ipv4_too
                sock = _listening_socket(family, host, port, self._backlog, only_ipv6)
                self.opened.append(Listener(sock, address))
            ipv4_too = ipv4_too or family == socket.AF_INET
            port = self.opened[first].sock.getsockname()[1]

    def _open_unix(self, address: UnixAddress) -> None:
        if self._take_at(socket.AF_UNIX, address.kernel_name, address):
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener = Listener(sock, address)
        try:
            if address.path.startswith("@"):
                sock.bind(address.kernel_name)
            else:
                listener.file = unixsocket.bind(sock, address.path, self._access)
            sock.listen(self._backlog)
            sock.setblocking(False)
        except BaseException:
            listener.remove()
            raise
        self.opened.append(listener)

    def _adopt(self, address: Descriptor) -> None:
        if isinstance(address.which, int):
            self._take(address.which, address)
            return
        found = [handed for handed in self._handed if handed.name == address.which]
        if not found:
            names = ", ".join(sorted({handed.name for handed in self._handed}))
            raise ListenError(
                f"no socket of that name was handed over (LISTEN_FDNAMES: {names or 'none'})"
            )
        for handed in found:
            self._take(handed.fd, address)

    def _take(self, fd: int, address: Bind) -> None:
        self.opened.append(Listener(adopted(fd), address, borrowed=fd))

    def _take_back(self, handed: Handed, address: Bind) -> None:
        """Take one of our own from the service manager's store: it is ours alone again."""
        listener = Listener(adopted(handed.fd), address, stored=True)
        with contextlib.suppress(OSError):  # there need not be a filter
            listener.sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        if listener.path and not listener.path.startswith("@"):
            with contextlib.suppress(OSError):
                listener.file = SocketFile.at(listener.path)
        self.opened.append(listener)

    def _take_stored(self, address: Bind) -> bool:
        """Take back what was left in the store under this address's name, each socket once."""
        taken: set[int] = set()
        for handed in self._handed:
            if handed.from_store and handed.name == store_name(address):
                inode = os.fstat(handed.fd).st_ino
                if inode not in taken:  # the store may have it twice
                    taken.add(inode)
                    self._take_back(handed, address)
        return bool(taken)

    def _take_at(self, family: int, where: tuple[str, int] | str, address: Bind) -> bool:
        """Take the socket that was handed over and has this address, if there is one."""
        handed = self._handed_at(family, where)
        if handed is None:
            return False
        if handed.from_store:  # under another name: the bind was written in another way
            self._take_back(handed, address)
        else:
            self._take(handed.fd, address)
        return True

    def _handed_at(self, family: int, where: tuple[str, int] | str) -> Handed | None:
        """The socket that was handed over and has this address."""
        for handed in self._handed:
            try:
                sock = socket.socket(fileno=handed.fd)
            except OSError:
                continue  # it is no socket, or was taken already
            try:
                if sock.family == family and _plain_name(sock) == where:
                    return handed
            finally:
                sock.detach()
        return None


def _plain_name(sock: socket.socket) -> tuple[str, int] | str:
    """What a socket is bound to, as it is given to bind(2)."""
    name = sock.getsockname()
    return name[:2] if isinstance(name, tuple) else os.fsdecode(name)


def adopted(fd: int) -> socket.socket:
    """The listening stream socket that is open as `fd`, for this process alone.

    Programs that a worker starts don't inherit it; a standard stream is /dev/null from now on.
    O_NONBLOCK is set, and so for every process that has the socket (open(2), file status flags).
    Raises ListenError, whose text is the reason alone, for anything else.
    """
    try:
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        raise ListenError(
            "that descriptor isn't open; whoever starts this program must hand it over"
        ) from None
    if not is_socket:
        raise ListenError("that descriptor is no socket")
    probe = socket.socket(fileno=fd)
    try:
        reason = _why_unfit(probe)
    finally:
        probe.detach()
    if reason:
        raise ListenError(reason)
    if fd < 3:
        number = os.dup(fd)  # not inherited, and none of the three, which are all open
        with open(os.devnull, "r+b", buffering=0) as nothing:
            os.dup2(nothing.fileno(), fd)
    else:
        number = fd
        os.set_inheritable(fd, False)
    sock = socket.socket(fileno=number)
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _why_unfit(sock: socket.socket) -> str:
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        return "that socket is neither TCP nor UNIX"
    if sock.type != socket.SOCK_STREAM:
        udp = sock.type == socket.SOCK_DGRAM and sock.family != socket.AF_UNIX
        return f"that socket is {'UDP' if udp else sock.type.name}; a stream socket is needed"
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "that socket doesn't listen; call listen() on it before it is handed over"
    return ""


def _resolved(address: Address) -> list[tuple[int, str]]:
    try:
        found = socket.getaddrinfo(
            address.host or None,
            address.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
    except OSError as error:
        raise ListenError(error.strerror or str(error)) from None
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


def _explained(error: OSError, address: Bind) -> str:
    if error.errno == errno.EADDRINUSE:
        other = "port" if isinstance(address, Address) else "name"
        return f"the address is in use; stop the program that has it, or choose another {other}"
    if isinstance(address, Address) and error.errno == errno.EACCES and address.port < 1024:
        return (
            f"no permission for port {address.port}; use a port from 1024 up, "
            "or give the program CAP_NET_BIND_SERVICE"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    return error.strerror or os.strerror(error.errno or 0)
