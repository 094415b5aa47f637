"""Signals of the arbiter: a table from signal to event, and the file that wakes the loop.

A handler here does nothing but let the interpreter write the signal's number to a socket; the
loop reads it there and acts as on anything else that happened.
"""

from __future__ import annotations

import signal
import socket
from types import FrameType

from esg.supervisor.events import Event, ReopenRequested, Resize, ShutdownRequested

EVENTS: dict[signal.Signals, Event] = {
    signal.SIGTERM: ShutdownRequested(),
    signal.SIGINT: ShutdownRequested(insistent=True),
    signal.SIGQUIT: ShutdownRequested(quick=True),
    signal.SIGTTIN: Resize(+1),
    signal.SIGTTOU: Resize(-1),
    signal.SIGUSR1: ReopenRequested(),
}
"""Signals that are events as they are."""

RELOAD = signal.SIGHUP
CHILD = signal.SIGCHLD

UNAVAILABLE = (signal.SIGUSR2,)
"""Signals that would end the process if left alone; they are answered with a warning."""

HANDLED = (*EVENTS, RELOAD, CHILD, *UNAVAILABLE)


def _wake(signum: int, frame: FrameType | None) -> None:
    """Does nothing: the wakeup descriptor has the number already."""


class SignalQueue:
    """Signals as a readable file. See signal.set_wakeup_fd in the Python documentation."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def install(self) -> None:
        """Take the handled signals over, for the life of the process."""
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for signum in HANDLED:
            signal.signal(signum, _wake)

    def fileno(self) -> int:
        return self._reader.fileno()

    def read(self) -> list[signal.Signals]:
        """The signals that came since the last call, in order."""
        try:
            return [signal.Signals(number) for number in self._reader.recv(4096)]
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Close both ends. The handlers stay: they do nothing, which is what is wanted at exit."""
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()
