"""Opens the listeners for binds: with new sockets, kept ones, or ones that were handed over."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Iterator, Sequence

from esg.errors import ListenError
from esg.net.binds import Address, Bind, Descriptor, UnixAddress, parse_bind
from esg.net.listeners import Handed, Listener
from esg.net.streamsocket import (
    InetName,
    SocketName,
    adopted,
    listening_socket,
    listening_unix_socket,
    stream_at,
)
from esg.net.unixsocket import Access


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

    If a bind has a host name, ESG listens on every address of that host. `access` says who may
    connect to UNIX sockets that are files.

    A socket in `handed` is taken if a bind names it or has its address. That happens only
    `at_start`, because later its number may belong to another file. A listener in `kept` is used
    again if it was opened for one of the binds, or has its address. The listeners in `leaving` are
    closed in this process, but the workers named with them may still have them open.

    Raises ListenError, or ConfigError for a bind that isn't an address; then no new socket is left
    open.
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
    return list(dict.fromkeys(found))  # binds with the same address share a listener


class _Opener:
    """What one call of `open_listeners` works with. The methods raise ListenError."""

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
        """Listen on every socket address that `address` stands for."""
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
        self, family: int, name: SocketName, address: Address, siblings: Sequence[Listener]
    ) -> Listener:
        only_ipv6 = name[0] != "::" or not takes_ipv4(address, siblings, self._addresses)
        try:
            sock = listening_socket(family, name, self._backlog, only_ipv6)
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
            sock, file = listening_unix_socket(address.kernel_name, self._access, self._backlog)
        except OSError as error:
            self._blame(error, address.kernel_name)
            raise
        self.opened.append(Listener(sock, address, file))
        return self.opened[-1]

    def _as_it_is(
        self, listener: Listener, address: Bind, siblings: Sequence[Listener]
    ) -> Listener:
        """Return the listener unchanged. Raises ListenError if it doesn't fit `address`."""
        reason = misfit(listener, address, siblings, self._addresses)
        if reason:
            raise ListenError(f"{reason}, which only a restart can change")
        return listener

    def _listener_at(
        self, family: int, name: SocketName, address: Bind, siblings: Sequence[Listener] = ()
    ) -> Listener | None:
        """The listener that already has this address, or a socket handed over with it."""
        for listener in (*self.opened, *self._kept):
            if listener.name == name and not _is_elsewhere(listener, address):
                return self._as_it_is(listener, address, siblings)
        for item in self._handed if self._at_start else ():
            if stream_at(item.fd) == (family, name):
                return self._take(item.fd, address)
        return None

    # -- sockets that were handed over -----------------------------------------------------

    def _adopt(self, address: Descriptor) -> list[Listener]:
        found = []
        for fd in self._numbers(address):
            known = [
                listener for listener in (*self.opened, *self._kept) if listener.borrowed == fd
            ]
            found.append(known[0] if known else self._take(fd, address))
        return found

    def _numbers(self, address: Descriptor) -> list[int]:
        """The descriptors that `address` stands for."""
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
                "sockets are handed over only at startup, and ESG didn't adopt this one then; "
                "restart ESG to use it"
            )
        self.opened.append(Listener(adopted(fd, self._backlog), address, borrowed=fd))
        return self.opened[-1]

    # -- addresses in use ----------------------------------------------------------------

    def _blame(self, error: OSError, name: SocketName) -> None:
        """If ESG itself uses the address, raise a ListenError that says for what."""
        if error.errno == errno.EADDRINUSE:
            for holder, held in self._holders():
                if _overlap(held, name):
                    raise ListenError(f"the address is in use, {holder}")

    def _holders(self) -> Iterator[tuple[str, SocketName]]:
        """The addresses that ESG itself uses, each with the words for an error about it."""
        advice = "" if self._at_start else "; only a restart can change that"
        for listener in (*self.opened, *self._kept):
            yield f"by ESG itself, for {listener.bind}{advice}", listener.name
        for item in self._handed if self._at_start else ():
            _, name = stream_at(item.fd)
            text = (
                f"by the socket {item.name}, which was handed over; bind fd://{item.fd} to use it"
            )
            yield text, name
        for who, listener in self._leaving:
            text = f"perhaps by {who}, which is stopping; try again when it has ended"
            yield text, listener.name


def _is_elsewhere(listener: Listener, address: Bind) -> bool:
    """Whether a relative path now leads to another file, for example in a new release."""
    if listener.file is None or not isinstance(address, UnixAddress):
        return False
    return listener.file.path != os.path.abspath(address.path) and not os.path.isabs(address.path)


def takes_ipv4(address: Address, siblings: Iterable[Listener], addresses: Iterable[Bind]) -> bool:
    """Whether `::` in `address` also accepts IPv4 clients, because no other bind does on that port.

    `siblings` are other listeners of the same bind, `addresses` are all binds.
    """
    if any(listener.sock.family == socket.AF_INET for listener in siblings):
        return False
    return Address("0.0.0.0", address.port) not in addresses


def misfit(
    listener: Listener, address: Bind, siblings: Iterable[Listener], addresses: Iterable[Bind]
) -> str:
    """Why a listener can't be used for `address`; empty if it can.

    `siblings` and `addresses` are those of `takes_ipv4`.
    """
    if not isinstance(address, Address) or listener.name[0] != "::":
        return ""
    if listener.borrowed is not None:
        return ""  # the program that opened it decides
    wanted = takes_ipv4(address, siblings, addresses)
    if wanted == (not listener.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)):
        return ""
    if wanted:
        return "it accepts no IPv4 clients, because another bind did that until now"
    return "it also accepts IPv4 clients, for which there is another bind now"


def _overlap(one: SocketName, other: SocketName) -> bool:
    """Whether a socket bound to one of these addresses could prevent binding the other."""
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    if one[1] != other[1]:
        return False
    hosts = {str(one[0]), str(other[0])}
    all_ipv4 = "0.0.0.0" in hosts and not any(":" in host for host in hosts)
    return len(hosts) == 1 or "::" in hosts or all_ipv4


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
    # IPv4 first: `takes_ipv4` looks at the IPv4 listeners of the same bind.
    return sorted({(int(family), name) for family, _, _, _, name in found})


def _usable(
    addresses: list[tuple[int, InetName]],
) -> list[tuple[int, InetName]]:
    """The addresses among these that this machine has; all of them if it has none.

    In containers, `localhost` is often also ::1 while there is no IPv6. If no address can be used,
    binding one of them shows the reason.
    """
    return [address for address in addresses if _exists(*address)] or addresses


def _exists(family: int, name: InetName) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.bind((name[0], 0, *name[2:]))
    except OSError as error:
        return error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return True


def _explained(error: OSError, address: Bind) -> str:
    if error.errno == errno.EADDRINUSE:
        other = "port" if isinstance(address, Address) else "name"
        return f"the address is in use; stop the program that uses it, or choose another {other}"
    if isinstance(address, Address) and error.errno == errno.EACCES and address.port < 1024:
        return (
            f"no permission for port {address.port}; use a port from 1024 up, "
            "or give the program CAP_NET_BIND_SERVICE"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    return error.strerror or os.strerror(error.errno or 0)
