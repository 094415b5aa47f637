"""Accepts a connection and makes a transport of it, with few system calls and without a task."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

Address = tuple[Any, ...] | str | bytes
"""The address of a peer, as accept(2) reports it."""


class ConnectedSocket(Protocol):
    """What a loop's `connect_accepted_socket` needs of a connected socket."""

    @property
    def family(self) -> int: ...

    @property
    def type(self) -> int: ...

    def fileno(self) -> int: ...

    def detach(self) -> int: ...


class AcceptedSocket:
    """A connected socket as uvloop uses it, which only reads its descriptor and its family.

    `socket.socket` asks the kernel for the address of each new socket, and closes its descriptor
    when it is deleted. uvloop owns the descriptor once a transport has it, so neither is needed.
    """

    __slots__ = ("_fd", "family")

    type = socket.SOCK_STREAM

    def __init__(self, fd: int, family: int) -> None:
        self._fd = fd
        self.family = family

    def fileno(self) -> int:
        return self._fd

    def detach(self) -> int:
        """The descriptor, which the caller has to close."""
        return self._fd

    def close(self) -> None:
        """Do nothing: uvloop calls this after it has closed the descriptor."""


def acceptor_of(
    listener: socket.socket, loop: asyncio.AbstractEventLoop
) -> Callable[[], tuple[ConnectedSocket, Address]]:
    """The cheapest function that accepts a connection from `listener` for `loop`.

    It raises the errors of accept(2).
    """
    if not type(loop).__module__.startswith("uvloop") or not hasattr(listener, "_accept"):
        return listener.accept
    accept, family = listener._accept, listener.family

    def accept_for_uvloop() -> tuple[ConnectedSocket, Address]:
        fd, peer = accept()
        return AcceptedSocket(fd, family), peer

    return accept_for_uvloop


def discard(sock: ConnectedSocket) -> None:
    """Close a socket that no transport owns."""
    os.close(sock.detach())


class Opening:
    """Runs a loop's `connect_accepted_socket` to its end, as a task would, at a lower price.

    Both event loops wait once in it, for a future that is done right after `connection_made`.
    """

    __slots__ = ("_coroutine", "_failed", "_sock")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol: asyncio.Protocol,
        sock: ConnectedSocket,
        failed: Callable[[], None],
    ) -> None:
        """`failed` is called if the client disconnected before its socket was set up."""
        self._sock = sock
        self._failed = failed
        self._coroutine: Coroutine[Any, Any, Any] = loop.connect_accepted_socket(
            lambda: protocol,
            sock,  # type: ignore[arg-type]
        )

    def step(self, _: object = None) -> None:
        """Run it until it waits or ends."""
        try:
            future = self._coroutine.send(None)
        except StopIteration:
            return
        except OSError:
            discard(self._sock)
            self._failed()
        else:
            future._asyncio_future_blocking = False  # like a task that begins to wait for it
            future.add_done_callback(self.step)
