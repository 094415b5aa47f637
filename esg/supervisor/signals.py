"""Signals of the arbiter: a table from signal to event, and the file that wakes the loop.

A handler here does nothing but let the interpreter write the signal's number to a socket; the
loop reads it there and acts as on anything else that happened.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from types import FrameType

from esg.supervisor.fleet.events import Event, ReopenRequested, Resize, ShutdownRequested

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

COUNTED = (signal.SIGTTIN, signal.SIGTTOU, signal.SIGINT)
"""Signals of which each counts. Of others that wait, one stands for all (signal(7) is the same)."""

UNAVAILABLE = (signal.SIGUSR2,)
"""Signals that would end the process if left alone; they are answered with a warning."""

HANDLED = (*EVENTS, RELOAD, CHILD, *UNAVAILABLE)


class SignalQueue:
    """Signals as a readable file. See signal.set_wakeup_fd in the Python documentation.

    The file only says that there are some, since it has room for so many bytes: a storm of one
    signal must not hide another, nor keep the loop from everything else.
    """

    def __init__(self) -> None:
        self._pending: list[signal.Signals] = []
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def install(self) -> None:
        """Take the handled signals over, for the life of the process.

        None is blocked from then on: a mask is inherited (sigprocmask(2)), and a parent that blocks
        TERM would leave a service that can't be stopped, and children of workers that can't.
        """
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for signum in HANDLED:
            signal.signal(signum, self._note)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if signum in COUNTED or signum not in self._pending:
            self._pending.append(signal.Signals(signum))

    def fileno(self) -> int:
        return self._reader.fileno()

    def read(self) -> list[signal.Signals]:
        """The signals that came since the last call, in order."""
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                continue
        pending, self._pending = self._pending, []
        return pending

    def close(self) -> None:
        """Close both ends. The handlers stay, and what they note is not read any more."""
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()
