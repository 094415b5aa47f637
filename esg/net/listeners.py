"""Listening sockets: how they are opened, taken over, described and stopped."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import os
import select
import socket
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from esg.errors import ListenError
from esg.net import unixsocket
from esg.net.binds import Address, Bind, Descriptor, UnixAddress, parse_bind
from esg.net.unixsocket import Access, SocketFile

SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>; the socket module doesn't name these
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
"""Host and port, over IPv6 also flow and scope, as the socket module has it."""

SocketName = str | InetName
"""What bind(2) takes: that, or the name of a UNIX socket."""


@dataclasses.dataclass(frozen=True, slots=True)
class Handed:
    """A socket that the service manager has handed over, as sd_listen_fds(3) describes."""

    fd: int
    name: str


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
    stored: bool | None = False
    """Whether the service manager keeps a copy of it in case of a crash; None if it was asked to
    and doesn't say whether it does.
    """
    name: SocketName = dataclasses.field(init=False)
    """What it is bound to; known of a closed one, too."""

    filtered: bool = dataclasses.field(init=False)
    """Whether it already had a filter when it was handed over, which may be intended."""

    def __post_init__(self) -> None:
        self.name = _name_of(self.sock)
        self.filtered = self.path is None and _has_filter(self.sock)

    def url(self, scheme: str = "http") -> str:
        """The address as a URL, for the log."""
        if self.path is not None:
            return f"unix:{self.path}"
        host, port = str(self.name[0]), self.name[1]
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    @property
    def path(self) -> str | None:
        """The path of a UNIX socket, `@NAME` of an abstract one, None of a TCP one."""
        if isinstance(self.name, tuple):
            return None
        return "@" + self.name[1:] if self.name.startswith("\0") else self.name

    def fileno(self) -> int:
        return self.sock.fileno()

    def refuse_new(self) -> bool:
        """Refuse new connections, while those already in the kernel's queue can still be accepted.

        Closing the last descriptor of a listener resets the connections queued on it. So a process
        that closes it for good first refuses new connections, then accepts the queued ones, and
        then closes it. Refusing affects every process that has the socket, so a borrowed socket is
        left alone. Returns whether connections that have begun may still arrive.

        TCP: socket(7), SO_ATTACH_FILTER; if the kernel doesn't have it, or a sandbox denies it with
        any error, connections that begin before the socket is closed are accepted, too. UNIX:
        shutdown(2), after which connect(2) is refused and the queue remains.
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
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        return True

    @property
    def fault(self) -> str:
        """What a process did to the socket that keeps clients out; empty if nothing is wrong.

        Any process with a descriptor of the socket can break it for all the others: it can shut it
        down (shutdown(2)), make it drop packets (socket(7), SO_ATTACH_FILTER), or make accept(2)
        wait.
        """
        if self.path is None and not self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return "it doesn't listen any more: a process that has the socket shut it down"
        if self.path is not None and _is_shut(self.sock):
            return "it takes no connections any more: a process that has the socket shut it down"
        if self.path is None and _has_filter(self.sock) != self.filtered:
            return "a process that has the socket attached a filter to it"
        if os.get_blocking(self.fileno()):
            return "a process that has the socket cleared its O_NONBLOCK"
        return ""

    def repair(self, backlog: int) -> bool:
        """Undo the faults that can be undone on the same socket; returns whether none is left.

        A TCP socket that was shut down can listen again (listen(2)), a UNIX socket can't.
        """
        with contextlib.suppress(OSError):
            os.set_blocking(self.fileno(), False)
        if self.path is None:
            if not self.filtered:
                with contextlib.suppress(OSError):
                    self.sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
            with contextlib.suppress(OSError):
                if not self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    with contextlib.suppress(OSError):  # only a port that the kernel chose is lost
                        self.sock.bind(self.name)
                    self.sock.listen(backlog)
        return not self.fault and _name_of(self.sock) == self.name

    def reopen(self, access: Access, backlog: int) -> None:
        """Listen at the same address with a new socket, in place of one beyond repair.

        `access` is that of UNIX sockets that are files. Raises ListenError, whose text is the
        reason alone, or OSError; then the listener is as before.
        """
        if self.borrowed is not None:
            raise ListenError("only the program that handed the socket over can open another one")
        if self.path is None:
            only_ipv6 = self.sock.family == socket.AF_INET6 and bool(
                self.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            )
            with contextlib.suppress(OSError):  # if it isn't: two can't listen at one address
                self.sock.shutdown(socket.SHUT_RD)
            sock = _listening_socket(self.sock.family, self.name, backlog, only_ipv6)
        elif self.file is None:
            raise ListenError("an abstract name is in use until all processes have closed it")
        else:
            sock, self.file = _listening_unix_socket(self.file.path, access, backlog)
        self.sock.close()
        self.sock = sock

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


def open_listeners(
    binds: Sequence[str],
    backlog: int,
    origin: str,
    *,
    access: Access = Access(),  # noqa: B008 - it is frozen
    handed: Sequence[Handed] = (),
    kept: Iterable[Listener] = (),
    leaving: Sequence[tuple[str, Listener]] = (),
    at_start: bool = True,
) -> list[Listener]:
    """Listen on every address of `binds`.

    A host name is listened on at every address that it has. `access` is that of UNIX sockets that
    are files. Sockets of `handed` are taken where a bind names them, or has their address, but only
    `at_start`: later their numbers may be anything's. Those of `kept` stay where a bind is the one
    that they were opened for, or has their address. `leaving` are closed here, while who is named
    with them may have them still. Raises ListenError, or ConfigError for an address that isn't one;
    then nothing new stays open.
    """
    addresses = [parse_bind(bind, origin) for bind in binds]
    opener = _Opener(
        addresses, backlog, origin, access, handed, list(kept), leaving, at_start=at_start
    )
    try:
        found = [listener for address in addresses for listener in opener.open(address)]
    except BaseException:
        for listener in opener.opened:
            listener.give_back()
        raise
    return list(dict.fromkeys(found))  # two binds may come to the same


class _Opener:
    """What the opening of several addresses has in common. Its methods raise ListenError."""

    def __init__(
        self,
        addresses: Sequence[Bind],
        backlog: int,
        origin: str,
        access: Access,
        handed: Sequence[Handed],
        kept: Sequence[Listener],
        leaving: Sequence[tuple[str, Listener]],
        *,
        at_start: bool,
    ) -> None:
        self.opened: list[Listener] = []
        self._addresses = addresses
        self._backlog = backlog
        self._origin = origin
        self._access = access
        self._handed = handed
        self._kept = kept
        self._leaving = leaving
        self._at_start = at_start

    def open(self, address: Bind) -> list[Listener]:
        """Listen on all that an address stands for."""
        kept = [
            listener
            for listener in self._kept
            if listener.bind == address and not _is_elsewhere(listener, address)
        ]
        try:
            match address:
                case Descriptor():
                    return self._adopt(address)
                case _ if kept:
                    return [self._as_it_is(listener, address, kept) for listener in kept]
                case Address():
                    return self._open_tcp(address)
                case UnixAddress():
                    return [self._open_unix(address)]
        except OSError as error:
            reason = _explained(error, address)
        except ListenError as error:
            reason = str(error)
        raise ListenError(f"can't listen on {address} ({self._origin}): {reason}")

    def _open_tcp(self, address: Address) -> list[Listener]:
        port = address.port
        found: list[Listener] = []
        for family, (host, _, *rest) in _usable(_resolved(address)):
            name = (host, port, *rest)
            there = self._listener_at(family, name, address, found) if port else None
            found.append(there or self._bind_tcp(family, name, address, found))
            port = int(found[0].name[1])
        return found

    def _bind_tcp(
        self, family: int, name: SocketName, address: Address, beside: Sequence[Listener]
    ) -> Listener:
        only_ipv6 = name[0] != "::" or not takes_ipv4(address, beside, self._addresses)
        try:
            sock = _listening_socket(family, name, self._backlog, only_ipv6)
        except OSError as error:
            self._blame(error, name)
            raise
        self.opened.append(Listener(sock, address))
        return self.opened[-1]

    def _open_unix(self, address: UnixAddress) -> Listener:
        there = self._listener_at(socket.AF_UNIX, address.kernel_name, address)
        if there is not None:
            return there
        try:
            sock, file = _listening_unix_socket(address.kernel_name, self._access, self._backlog)
        except OSError as error:
            self._blame(error, address.kernel_name)
            raise
        self.opened.append(Listener(sock, address, file))
        return self.opened[-1]

    def _as_it_is(self, listener: Listener, address: Bind, beside: Sequence[Listener]) -> Listener:
        """One that listens already. Raises ListenError if it does so otherwise than wanted."""
        reason = misfit(listener, address, beside, self._addresses)
        if reason:
            raise ListenError(f"{reason}, which only a restart can change")
        return listener

    def _listener_at(
        self, family: int, name: SocketName, address: Bind, beside: Sequence[Listener] = ()
    ) -> Listener | None:
        """One that has this address already, or was handed over with it, if there is one."""
        for listener in (*self.opened, *self._kept):
            if listener.name == name and not _is_elsewhere(listener, address):
                return self._as_it_is(listener, address, beside)
        for item in self._handed if self._at_start else ():
            if _stream_at(item.fd) == (family, name):
                return self._take(item.fd, address)
        return None

    # -- sockets that others have opened -------------------------------------------------

    def _adopt(self, address: Descriptor) -> list[Listener]:
        found = []
        for fd in self._numbers(address):
            known = [
                listener for listener in (*self.opened, *self._kept) if listener.borrowed == fd
            ]
            found.append(known[0] if known else self._take(fd, address))
        return found

    def _numbers(self, address: Descriptor) -> list[int]:
        """The descriptors that it stands for."""
        if isinstance(address.which, int):
            return [address.which]
        found = [item.fd for item in self._handed if item.name == address.which]
        if not found:
            names = ", ".join(sorted({item.name for item in self._handed}))
            raise ListenError(
                f"no socket of that name was handed over (LISTEN_FDNAMES: {names or 'none'})"
            )
        return found

    def _take(self, fd: int, address: Bind) -> Listener:
        if not self._at_start:
            raise ListenError(
                "sockets are handed over at a start, and this one isn't listened on; restart for it"
            )
        self.opened.append(Listener(adopted(fd, self._backlog), address, borrowed=fd))
        return self.opened[-1]

    # -- addresses in use ----------------------------------------------------------------

    def _blame(self, error: OSError, name: SocketName) -> None:
        """Raise ListenError if it was this program itself that had the address."""
        if error.errno == errno.EADDRINUSE:
            for holder, held in self._holders():
                if _overlap(held, name):
                    raise ListenError(f"the address is in use, {holder}")

    def _holders(self) -> Iterator[tuple[str, SocketName]]:
        """Who of this program has which address."""
        advice = "" if self._at_start else "; only a restart can change that"
        for listener in (*self.opened, *self._kept):
            yield f"by ESG itself, for {listener.bind}{advice}", listener.name
        for item in self._handed if self._at_start else ():
            _, name = _stream_at(item.fd)
            yield f"by the socket {item.name}, which was handed over; fd://{item.fd} takes it", name
        for who, listener in self._leaving:
            text = f"perhaps by {who}, which is on its way out; try again when it is gone"
            yield text, listener.name


def _is_elsewhere(listener: Listener, address: Bind) -> bool:
    """Whether a relative path now names another file, such as one in a new release."""
    if listener.file is None or not isinstance(address, UnixAddress):
        return False
    return listener.file.path != os.path.abspath(address.path) and not os.path.isabs(address.path)


def takes_ipv4(address: Address, beside: Iterable[Listener], addresses: Iterable[Bind]) -> bool:
    """Whether `::`, of this bind, takes IPv4 clients too: if nobody else does on that port.

    `beside` are other listeners of the same bind, `addresses` all that there are. Pure.
    """
    if any(listener.sock.family == socket.AF_INET for listener in beside):
        return False
    return Address("0.0.0.0", address.port) not in addresses


def misfit(
    listener: Listener, address: Bind, beside: Iterable[Listener], addresses: Iterable[Bind]
) -> str:
    """What is wrong with a listener for `address`; empty if nothing is. As `takes_ipv4`."""
    if not isinstance(address, Address) or listener.name[0] != "::":
        return ""
    if listener.borrowed is not None:
        return ""  # that is up to whoever has opened it
    wanted = takes_ipv4(address, beside, addresses)
    if wanted == (not listener.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)):
        return ""
    if wanted:
        return "it takes no IPv4 clients, since a bind for those was beside it"
    return "it takes IPv4 clients too, which another bind is for now"


def _overlap(one: SocketName, other: SocketName) -> bool:
    """Whether who has the one address can be in the way of the other. Pure."""
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    if one[1] != other[1]:
        return False
    hosts = {str(one[0]), str(other[0])}
    all_ipv4 = "0.0.0.0" in hosts and not any(":" in host for host in hosts)
    return len(hosts) == 1 or "::" in hosts or all_ipv4


def _is_shut(sock: socket.socket) -> bool:
    """Whether a UNIX socket was shut down, so that it takes no more connections: shutdown(2)."""
    poll = select.poll()
    poll.register(sock, _POLLRDHUP)
    return any(events & (_POLLRDHUP | select.POLLHUP) for _, events in poll.poll(0))


def _has_filter(sock: socket.socket) -> bool:
    """Whether a filter decides which packets a socket gets (socket(7), SO_ATTACH_FILTER).

    If there is no room for the filter itself, the kernel returns its length. EACCES means that
    there is a filter that can't be shown. `socket.getsockopt` can't be used: its buffer holds a few
    bytes, but the kernel counts in instructions, and would write beyond the buffer.
    """
    length = ctypes.c_uint32(0)
    result = _libc.getsockopt(
        sock.fileno(), socket.SOL_SOCKET, SO_GET_FILTER, None, ctypes.byref(length)
    )
    return bool(length.value) if result == 0 else ctypes.get_errno() == errno.EACCES


_libc = ctypes.CDLL(None, use_errno=True)


def _name_of(sock: socket.socket) -> SocketName:
    name: str | bytes | InetName = sock.getsockname()
    return os.fsdecode(name) if isinstance(name, bytes) else name


@contextlib.contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    """The socket that is open as `fd`, which stays open. Raises OSError if there is none."""
    sock = socket.socket(fileno=fd)
    try:
        yield sock
    finally:
        sock.detach()


def _stream_at(fd: int) -> tuple[int, SocketName]:
    """Family and address of a stream socket; 0 and an empty name of anything else."""
    with contextlib.suppress(OSError), _borrowed(fd) as sock:
        if sock.type == socket.SOCK_STREAM:
            return sock.family, _name_of(sock)
    return 0, ""


def adopted(fd: int, backlog: int | None = None) -> socket.socket:
    """The listening stream socket that is open as `fd`, taken over by this process.

    If it is only bound, it begins to listen with this backlog (listen(2)); without a backlog that
    is an error, too. The backlog of a socket that listens already is left as it is.

    Programs that a worker starts don't inherit it. If `fd` is a standard stream, it becomes
    /dev/null. O_NONBLOCK is set, which affects every process that has the socket (open(2), file
    status flags). Raises ListenError, whose text is only the reason, for anything else.
    """
    try:
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        raise ListenError(
            "that descriptor isn't open; whoever starts this program must hand it over"
        ) from None
    if not is_socket:
        raise ListenError("that descriptor is no socket")
    with _borrowed(fd) as probe:
        reason = _why_unfit(probe) or _made_to_listen(probe, backlog)
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
    name = _name_of(sock)
    if not (name[1] if isinstance(name, tuple) else name):
        return "that socket isn't bound; call bind() on it before it is handed over"
    if backlog is None:
        return "that socket doesn't listen"
    try:
        sock.listen(backlog)
    except OSError as error:
        return f"that socket can't listen: {error.strerror}"
    return ""


def _resolved(address: Address) -> list[tuple[int, InetName]]:
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
    return sorted({(int(family), name) for family, _, _, _, name in found})


def _usable(
    addresses: list[tuple[int, InetName]],
) -> list[tuple[int, InetName]]:
    """Without those that this machine doesn't have, as containers know `localhost` as ::1 too.

    If it has none of them, all, so that the reason shows.
    """
    return [address for address in addresses if _exists(*address)] or addresses


def _exists(family: int, name: InetName) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.bind((name[0], 0, *name[2:]))
    except OSError as error:
        return error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return True


def _listening_socket(
    family: int, name: SocketName, backlog: int, only_ipv6: bool
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit it (tcp(7)); not every event loop sets it on them.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            # `::` takes IPv4 clients too, if nobody else does; see ipv6(7).
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only_ipv6))
        sock.bind(name)
        sock.listen(backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _listening_unix_socket(
    name: str, access: Access, backlog: int
) -> tuple[socket.socket, SocketFile | None]:
    """A socket that listens at this path, and its file; an abstract name begins with NUL."""
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
