"""Signals of the arbiter: a table from signal to event, and the socket that wakes the loop.

A handler only stores its signal, and the interpreter writes to a socket that the loop watches. The
loop then handles the signal like any other event.
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
"""Signals, each with the event of the fleet that it causes."""

RELOAD = signal.SIGHUP
CHILD = signal.SIGCHLD

COUNTED = (signal.SIGTTIN, signal.SIGTTOU, signal.SIGINT)
"""Signals of which each one counts. Any other signal counts once if it arrives several times before
it is read, like pending signals in the kernel (signal(7)).
"""

UNAVAILABLE = (signal.SIGUSR2,)
"""Signals without a meaning yet. They only log a warning; their default action would end the
process.
"""

HANDLED = (*EVENTS, RELOAD, CHILD, *UNAVAILABLE)


class SignalQueue:
    """Signals as a readable file. See signal.set_wakeup_fd in the Python documentation.

    The file only says that signals are waiting; which ones is in a list. The file can fill up, and
    a flood of one signal must neither hide another one nor keep the loop busy.
    """

    def __init__(self) -> None:
        self._pending: list[signal.Signals] = []
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def install(self) -> None:
        """Handle the signals in `HANDLED` for the life of the process, and unblock all signals.

        The signal mask is inherited (sigprocmask(2)). If the parent had blocked SIGTERM, neither
        the service nor the children of its workers could be stopped with it.
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
        """The signals that arrived since the last call, in order."""
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                continue
        pending, self._pending = self._pending, []
        return pending

    def close(self) -> None:
        """Close both ends. The handlers stay installed, but signals have no effect any more."""
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()
