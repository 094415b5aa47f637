"""The protocol of the service manager (systemd): notifications, watchdog, and passed sockets.

Written from sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3) and systemd.service(5). Without
a service manager, nothing here has any effect.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import MutableMapping, Sequence

from esg.errors import ListenError
from esg.net.listeners import Handed
from esg.supervisor.fleet.actions import State

FIRST_FD = 3  # sd_listen_fds(3), SD_LISTEN_FDS_START

EXTENSION = 15.0
"""Seconds by which each EXTEND_TIMEOUT_USEC= extends the time for a start, reload or stop."""

EXTEND_EVERY = 5.0
"""Seconds between two of these messages. They don't go on forever, because the time of each worker
is limited."""

RETRY_EVERY = 0.1
"""Seconds until a message is sent again if the service manager was too busy to take it."""

MOST_UNSENT = 64
"""The most messages that wait to be sent again; if there are more, the oldest are dropped."""

LONGEST_STATUS = 1000
"""The most bytes of STATUS= in a message. systemd ignores a whole datagram, even with READY=1 in
it, if it is longer than 4096 bytes.
"""

MOST_DIGITS = 18
"""The most digits of a number in an environment variable."""

SETTLED: State = "serving"
"""The state in which the service manager isn't waiting for anything."""


class Notifier:
    """Sends messages to the service manager, and keeps track of when the next ones are due."""

    def __init__(
        self, address: str = "", watchdog: float = 0.0, capacity: int | None = None
    ) -> None:
        """`address` is NOTIFY_SOCKET. `watchdog` is the watchdog's timeout in seconds, or 0.

        `capacity` is FDSTORE.
        """
        self.capacity = capacity
        """How many descriptors the manager stores; None if the manager doesn't announce it. systemd
        has done so since version 254, except for units that may not store any.
        """
        self.problem = ""
        """Why nothing can be sent to the address; empty if there is no problem."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        if address and address[0] not in "/@":
            self._address = ""
            self.problem = f"NOTIFY_SOCKET={address}: only UNIX sockets are supported"
        self._watchdog = watchdog / 2
        self._state: State | None = None
        self._next_ping = 0.0
        self._next_extension = 0.0
        self._unsent: deque[bytes] = deque(maxlen=MOST_UNSENT)
        self._retry_at = 0.0

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str], pid: int) -> Notifier:
        """Read the variables, and remove them, because children mustn't inherit them."""
        address = environ.pop("NOTIFY_SOCKET", "")
        interval = environ.pop("WATCHDOG_USEC", "")
        meant_for = environ.pop("WATCHDOG_PID", "") or str(pid)
        watchdog = (_number(interval) or 0) / 1e6 if meant_for == str(pid) else 0.0
        return cls(address, watchdog, _number(environ.pop("FDSTORE", "")))

    def send(self, *lines: str, fds: Sequence[int] = ()) -> bool:
        """Send assignments, and descriptors, in one message; True if the manager has received it.

        It never blocks. If the manager is too busy, the message is sent later; a message with
        descriptors is dropped instead.
        """
        if not self._address:
            return False
        text = "\n".join(map(_printable, lines)).encode()
        if not self._unsent or fds:
            try:
                self._transmit(text, fds)
                return True
            except BlockingIOError:
                pass
            except OSError:
                return False
        if not fds:
            self._unsent.append(text)
        return False

    def _transmit(self, text: bytes, fds: Sequence[int] = ()) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(self._address)
            socket.send_fds(sock, [text], list(fds))

    def _send_rest(self, now: float) -> None:
        """Send the messages that the manager was too busy to take."""
        self._retry_at = now + RETRY_EVERY
        try:
            while self._unsent:
                self._transmit(self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()

    def tell(self, state: State, status: str, *, again: bool = False) -> None:
        """Report the current state and status. `again`: report the state even if it is the same."""
        news = state != self._state or again
        usec = time.monotonic_ns() // 1000
        self.send(*(messages(state, usec) if news else ()), f"STATUS={_cut(status)}")
        if state != self._state:
            self._next_extension = 0.0
        self._state = state

    def turn(self, now: float) -> None:
        """Send the messages due at `now`, in monotonic seconds; call it each turn of the loop."""
        if self._unsent and now >= self._retry_at:
            self._send_rest(now)
        if self._watchdog and now >= self._next_ping:
            self._next_ping = now + self._watchdog
            self.send("WATCHDOG=1")
        if self._is_awaited and now >= self._next_extension:
            self._next_extension = now + EXTEND_EVERY
            self.send(f"EXTEND_TIMEOUT_USEC={int(EXTENSION * 1e6)}")

    def next_deadline(self) -> float | None:
        """The time by which `turn` has to be called, in monotonic seconds; None for any time."""
        deadlines = [self._next_ping] if self._watchdog and self._address else []
        if self._is_awaited:
            deadlines.append(self._next_extension)
        if self._unsent:
            deadlines.append(self._retry_at)
        return min(deadlines, default=None)

    @property
    def _is_awaited(self) -> bool:
        return bool(self._address) and self._state != SETTLED


def _printable(line: str) -> str:
    """The text on one line, without characters that make the manager ignore the whole message."""
    line = line.replace("\n", " ")
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def _cut(text: str) -> str:
    return _printable(text).encode()[:LONGEST_STATUS].decode(errors="ignore")


def _number(text: str) -> int | None:
    """The number that a service manager wrote in ASCII digits; None for anything else."""
    is_number = text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS
    return int(text) if is_number else None


def messages(state: State, monotonic_usec: int) -> list[str]:
    """The messages for the service manager when a state is entered. Pure.

    A reload that failed or was refused ends with READY=1, like one that succeeded, because systemd
    knows no other message; the failure is reported in STATUS=.
    """
    match state:
        case "serving":
            return ["READY=1"]
        case "reloading":
            return ["RELOADING=1", f"MONOTONIC_USEC={monotonic_usec}"]
        case "stopping":
            return ["STOPPING=1"]
        case "starting":
            return []


def handed_over(
    environ: MutableMapping[str, str], pid: int, *, needed: bool
) -> tuple[list[Handed], str]:
    """The sockets that the service manager passed to this process, and a warning or "".

    Call it before opening anything, because a descriptor opened earlier could be mistaken for a
    passed one. The variables are removed, because children mustn't inherit them. Sockets meant for
    another process are ignored; if they are `needed`, because no setting says where to listen,
    ListenError is raised.
    """
    given = {name: environ.pop(name) for name in list(environ) if name.startswith("LISTEN_")}
    environ.pop("FDSTORE", None)
    count = given.get("LISTEN_FDS", "")
    meant_for = given.get("LISTEN_PID", "")
    names = given.get("LISTEN_FDNAMES", "").split(":")
    number_of = _number(count)
    if not count:
        return [], ""
    if number_of is None:
        return [], f"LISTEN_FDS={count[:MOST_DIGITS]} is not a number: ignored"
    if meant_for != str(pid):
        problem = (
            f"LISTEN_FDS={count} is meant for process {meant_for or '?'} (LISTEN_PID), not for "
            f"this one, {pid}"
        )
        if needed:
            raise ListenError(f"{problem}; start esg with exec, or say where to listen")
        return [], f"{problem}: ignored"
    found = []
    for number, fd in enumerate(range(FIRST_FD, FIRST_FD + number_of)):
        name = names[number] if number < len(names) and names[number] else "unknown"
        try:
            os.set_inheritable(fd, False)
        except OSError:
            raise ListenError(f"LISTEN_FDS={count}, but descriptor {fd} isn't open") from None
        found.append(Handed(fd, name))
    return found, ""
