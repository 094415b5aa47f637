"""A listening socket as the rest of ESG knows it: its address, where it came from, its faults."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket

from esg.errors import ListenError
from esg.frozen import frozen
from esg.net.binds import Bind
from esg.net.streamsocket import (
    SocketName,
    allow_new_connections,
    drop_new_connections,
    has_filter,
    is_shut,
    listening_socket,
    listening_unix_socket,
    name_of,
)
from esg.net.unixsocket import Access, SocketFile


@frozen
class Handed:
    """A socket that the service manager passed to ESG, as sd_listen_fds(3) describes."""

    fd: int
    name: str


@dataclasses.dataclass(slots=True, eq=False)
class Listener:
    """A listening, non-blocking socket."""

    sock: socket.socket
    bind: Bind | None = None
    """The address in the settings that it was opened for."""
    file: SocketFile | None = None
    """The file of a UNIX socket, if it was made here."""
    borrowed: int | None = None
    """The number of the descriptor, if another program opened the socket and may go on using it."""
    stored: bool | None = False
    """Whether the service manager keeps a copy of the socket, in case of a crash; None if it was
    asked to and didn't confirm it.
    """
    name: SocketName = dataclasses.field(init=False)
    """The address it is bound to; it is still known after the socket was closed."""
    filtered: bool = dataclasses.field(init=False)
    """Whether it already had a filter when it was handed over, which may be intended."""

    def __post_init__(self) -> None:
        self.name = name_of(self.sock)
        self.filtered = self.path is None and has_filter(self.sock)

    def url(self, scheme: str = "http") -> str:
        """The address as a URL, for the log."""
        if self.path is not None:
            return f"unix:{self.path}"
        host, port = str(self.name[0]), self.name[1]
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    @property
    def path(self) -> str | None:
        """The path of a UNIX socket, `@NAME` of an abstract one; None for a TCP socket."""
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
        with contextlib.suppress(OSError):
            drop_new_connections(self.sock)
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
        if self.path is not None and is_shut(self.sock):
            return "it accepts no connections any more: a process that has the socket shut it down"
        if self.path is None and has_filter(self.sock) != self.filtered:
            return "a process that has the socket attached a filter to it"
        if os.get_blocking(self.fileno()):
            return "a process that has the socket cleared its O_NONBLOCK"
        return ""

    def repair(self, backlog: int) -> bool:
        """Repair the faults that can be repaired on the same socket; returns whether none is left.

        A TCP socket that was shut down can listen again (listen(2)), a UNIX socket can't.
        """
        with contextlib.suppress(OSError):
            os.set_blocking(self.fileno(), False)
        if self.path is None:
            if not self.filtered:
                with contextlib.suppress(OSError):
                    allow_new_connections(self.sock)
            with contextlib.suppress(OSError):
                if not self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    with contextlib.suppress(OSError):  # shutdown only unbinds a kernel-chosen port
                        self.sock.bind(self.name)
                    self.sock.listen(backlog)
        return not self.fault and name_of(self.sock) == self.name

    def reopen(self, access: Access, backlog: int) -> None:
        """Listen at the same address with a new socket, because this one can't be repaired.

        `access` says who may connect to a UNIX socket that is a file. Raises ListenError, whose
        text is only the reason, or OSError; then the listener is unchanged.
        """
        if self.borrowed is not None:
            raise ListenError("only the program that handed the socket over can open another one")
        if self.path is None:
            only_ipv6 = self.sock.family == socket.AF_INET6 and bool(
                self.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            )
            with contextlib.suppress(OSError):  # two sockets can't listen at one address
                self.sock.shutdown(socket.SHUT_RD)
            sock = listening_socket(self.sock.family, self.name, backlog, only_ipv6)
        elif self.file is None:
            raise ListenError("an abstract name is in use until all processes have closed it")
        else:
            sock, self.file = listening_unix_socket(self.file.path, access, backlog)
        self.sock.close()
        self.sock = sock

    def close(self) -> None:
        self.sock.close()

    def remove(self) -> None:
        """Close the socket for good; its file is removed if it was made here and not replaced."""
        if self.file is not None:
            self.file.remove()
        self.close()

    def give_back(self) -> None:
        """Undo the opening; a borrowed socket is open again under its former number."""
        if self.borrowed is None:
            self.remove()
        elif self.borrowed < 3:
            os.dup2(self.sock.fileno(), self.borrowed)
            self.close()
        else:
            self.sock.detach()
