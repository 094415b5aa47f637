"""The control socket: receives commands from `esgctl`, and answers when their result is known.

Anyone who may open the socket's file may give commands: the arbiter's user and root.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import select
import selectors
import socket
import struct
import time
from collections.abc import Callable

from esg import commands
from esg.commands import Answer
from esg.errors import ListenError
from esg.net import unixsocket
from esg.net.unixsocket import Access, SocketFile

MODE = 0o600
"""Permissions of the socket's file."""

MOST_CLIENTS = 32
"""The most connections at once. Beyond that, the oldest one without a command is closed."""

NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Errors with which accept(2) fails and leaves the connection in the queue."""

PAUSE = 1.0
"""Seconds to wait before accepting again after one of the `NO_ROOM` errors."""


@dataclasses.dataclass(slots=True, eq=False)
class Client:
    """One connection, and what it has sent so far."""

    sock: socket.socket
    job: int
    received: bytes = b""
    asked: bool = False

    def peer(self) -> str:
        """The process and user at the other end, for the log: see SO_PEERCRED in unix(7)."""
        size = struct.calcsize("3i")
        data = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        pid, uid, _ = struct.unpack("3i", data)
        return f"pid={pid} uid={uid}"


class Control:
    """The arbiter's end. It never blocks, so a client that stalls delays no other client."""

    def __init__(
        self, selector: selectors.BaseSelector, on_command: Callable[[str, int, str], None]
    ) -> None:
        """`on_command` is called with a command, its job number, and the client's `peer`.

        For each job, `answer` has to be called once.
        """
        self._selector = selector
        self._on_command = on_command
        self._numbers = itertools.count(1)
        self._clients: dict[int, Client] = {}
        self._sock: socket.socket | None = None
        self._file: SocketFile | None = None
        self._paused_until: float | None = None

    def open(self, path: str, origin: str) -> None:
        """Listen at `path`. Raises ListenError, and then leaves nothing open.

        An existing socket that no program listens on is replaced. Any other file is left alone.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._file = unixsocket.listen(sock, path, Access(MODE), MOST_CLIENTS)
            sock.setblocking(False)
        except (OSError, ListenError) as error:
            sock.close()
            reason = getattr(error, "strerror", None) or error
            raise ListenError(
                f"can't open the control socket {path!r} ({origin}): {reason}"
            ) from None
        self._sock = sock
        self._selector.register(sock, selectors.EVENT_READ, self._accept)

    def answer(self, job: int, answer: Answer) -> None:
        """Answer a command, unless its client has disconnected."""
        client = self._clients.get(job)
        if client is not None:
            with contextlib.suppress(OSError):  # it has disconnected, or doesn't read
                client.sock.send(commands.encode_answer(answer))
            self._drop(client)

    def let_go(self) -> None:
        """In a forked child: close the arbiter's descriptors, and leave its socket file alone."""
        for client in self._clients.values():
            client.sock.close()
        if self._sock is not None:
            self._sock.close()

    def close(self) -> None:
        """Close the socket. Clients that are waiting are disconnected without an answer."""
        for client in list(self._clients.values()):
            self._drop(client)
        if self._file is not None:
            self._file.remove()
        if self._sock is not None:
            self._resume()
            self._selector.unregister(self._sock)
            self._sock.close()
            self._sock = None

    def next_deadline(self) -> float | None:
        """The time by which `turn` has to be called, in monotonic seconds; None for any time."""
        return self._paused_until

    def turn(self, now: float) -> None:
        """Accept again at the end of a pause."""
        if self._paused_until is not None and now >= self._paused_until:
            self._resume()

    def _pause(self) -> None:
        """Stop watching for clients for a while: accept(2) would fail in every turn of the loop."""
        assert self._sock is not None
        self._selector.unregister(self._sock)
        self._paused_until = time.monotonic() + PAUSE

    def _resume(self) -> None:
        if self._paused_until is not None and self._sock is not None:
            self._paused_until = None
            self._selector.register(self._sock, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        assert self._sock is not None
        try:
            sock, _ = self._sock.accept()
        except OSError as error:
            if error.errno in NO_ROOM:
                self._pause()
            return  # the client may also have disconnected
        sock.setblocking(False)
        client = Client(sock, next(self._numbers))
        self._clients[client.job] = client
        self._selector.register(sock, selectors.EVENT_READ, lambda: self._read(client))
        if len(self._clients) > MOST_CLIENTS:
            silent = next(c for c in self._clients.values() if not c.asked)
            self.answer(silent.job, Answer(False, "too many clients are waiting; try again"))

    def _read(self, client: Client) -> None:
        if client.job not in self._clients:  # it was answered earlier in this turn of the loop
            return
        try:
            data = client.sock.recv(commands.REQUEST_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if client.asked or not (data or client.received):
            self._on_end(client, data)
            return
        client.received += data
        line, end, _ = client.received.partition(b"\n")
        if data and not end and len(line) <= commands.REQUEST_LIMIT:
            return  # more of the line is to come; the end of the stream ends the line, too
        client.asked = True
        try:
            command = commands.decode_request(line)
        except ValueError as error:
            self.answer(client.job, Answer(False, str(error)))
            return
        self._on_command(command, client.job, client.peer())

    def _on_end(self, client: Client, data: bytes) -> None:
        """Drop a client that has disconnected, or that sends data after its request.

        A client that only shuts down its sending side (shutdown(2), as `nc -N` does) still waits
        for its answer.
        """
        poll = select.poll()
        poll.register(client.sock, 0)  # POLLHUP, for both directions: poll(2), unix(7)
        if data or not client.asked or poll.poll(0):
            self._drop(client)
        else:
            self._selector.unregister(client.sock)

    def _drop(self, client: Client) -> None:
        del self._clients[client.job]
        with contextlib.suppress(KeyError):  # `_on_end` may have done so
            self._selector.unregister(client.sock)
        with contextlib.suppress(OSError):  # a child that was just forked may still have a copy
            client.sock.shutdown(socket.SHUT_RDWR)
        client.sock.close()
        self._resume()
