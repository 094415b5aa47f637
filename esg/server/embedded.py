"""`esg.Server`: a worker without an arbiter, in another program's event loop.

It is the arbiter of one worker on the same loop: it opens the sockets, holds the other end of the
worker's mailbox, and tells it to drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from esg import forks, mailbox, waits
from esg.errors import ConfigError
from esg.introduction import introduction
from esg.keywords import Config
from esg.loader import load_application
from esg.log.files import LogFiles
from esg.log.records import Subject, logger, worker_subject
from esg.log.setup import LogSetup, SavedLogging
from esg.net.listeners import Listener
from esg.net.opening import open_listeners
from esg.net.unixsocket import access
from esg.payload import Assignment, GenerationPart, WorkerPart
from esg.scoreboard import Row
from esg.server.asgi.interfaces import adapt
from esg.server.cancellation import cancel_others, close_generators
from esg.server.loops import loop_factory
from esg.server.prepare import check_packages, prepare
from esg.server.reminder import Reminder
from esg.server.worker import CANCEL_LIMIT, Worker
from esg.settings.declaration import PROCESSES
from esg.settings.schema import SETTINGS

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_MEANT_HERE = (
    "graceful_timeout",
    "max_requests",
    "max_requests_jitter",
    "name",
    "timeout_notify",
    "worker_class",
)
"""Settings about processes that have an effect without an arbiter."""


class Server:
    """Serves an application in this process, on the running event loop.

    Several may run in one process. `started` says whether it accepts connections; to stop it, set
    `should_exit`, from any thread, or `force_exit` to cancel running requests.
    """

    def __init__(self, config: Config) -> None:
        """Raises ConfigError for settings that need an arbiter, such as `workers`.

        Also raises it for settings that need a package that isn't installed.
        """
        for name, declared in SETTINGS.items():
            foreign = declared.group == PROCESSES and name not in _MEANT_HERE
            if (foreign or name in ("chdir", "reload")) and getattr(
                config, name
            ) != declared.default:
                raise ConfigError(
                    f"{config.origin(name)}: esg.Server runs in a process that isn't its own; "
                    "use esg.run()"
                )
        check_packages(config)
        self.config = config
        self.started = False
        self._should_exit = False
        self._force_exit = False
        self._draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._worker: Worker | None = None
        self._mailbox: mailbox.Mailbox
        self._final = True
        self._captured: list[signal.Signals] = []
        self._logged = 0
        """How many of the captured signals have been logged."""
        self._reason = "should_exit"
        self._subject = worker_subject(next(_numbers), 1, os.getpid())
        self._log_fd = -1
        """The descriptor of the log; -1 before it serves."""
        self._startup: tuple[float, str] | None = None
        """The time at which the application's startup began, and the place where it waits."""
        self._reminder: Reminder

    def run(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """Serve on a new event loop until told to stop, in any thread.

        Raises the same errors as `serve`, and RuntimeError in an event loop.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise RuntimeError("esg.Server.run() can't run in an event loop; await serve()")
        runner = asyncio.Runner(loop_factory=loop_factory(self.config.loop))
        loop = runner.get_loop()
        try:
            runner.run(self.serve(sockets))
        finally:
            endless = runner.run(_end_rest())
            if not endless:
                runner.close()
            else:  # `Runner.close` would wait for them without a limit
                loop.close()
                self._log(
                    "closed the event loop without waiting for tasks that can't be cancelled: "
                    f"{endless}",
                    "error",
                )

    async def serve(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """Serve until told to stop.

        `sockets` are bound TCP or UNIX sockets to accept from in place of the settings' addresses;
        they are closed at the end. In the main thread, SIGINT and SIGTERM stop the server; the
        previous handlers are restored afterwards, and the signals are raised again for them.

        Raises AppImportError or BootError if the application can't be loaded or started,
        ListenError if an address can't be listened on, ConfigError for other kinds of sockets, and
        RuntimeError if it is serving already. If the task is cancelled, running requests are
        cancelled, too, and the application still shuts down.
        """
        if self._worker is not None:
            raise RuntimeError("this server is already serving; make another one")
        with _logging(self.config, self._subject) as setup:
            await self._serve(sockets, setup)
        captured, self._captured = self._captured, []
        for signum in reversed(captured):
            signal.raise_signal(signum)

    async def _serve(self, sockets: Sequence[socket.socket] | None, setup: LogSetup) -> None:
        app = adapt(load_application(self.config, self.config.objects.app), self.config)
        settings = prepare(self.config, self.config.objects)
        self._loop = asyncio.get_running_loop()
        self._final = sockets is None
        self._log_fd = setup.error.fd
        self._reminder = Reminder(self._loop, self._log)
        listeners = self._listeners(sockets)
        self._mailbox, workers_end = mailbox.pair()
        assignment = Assignment(
            WorkerPart(number=1, mailbox=workers_end, row=Row.alone(), stack_fd=-1),
            GenerationPart(
                number=1,
                config=settings.config,
                listeners=listeners,
                logs=setup,
                objects=settings.objects,
            ),
        )
        self._worker = Worker(assignment, app, subject=self._subject)
        self._loop.add_reader(self._mailbox.fileno(), self._on_mail)
        try:
            with self._signals():
                await self._run_to_end(self._worker)
        finally:
            self._reminder.end()
            self._log("stopped")
            self.started = False
            self._worker = None
            self._loop.remove_reader(self._mailbox.fileno())
            self._mailbox.close()
            workers_end.close()
            for listener in listeners:
                listener.remove()

    async def _run_to_end(self, worker: Worker) -> None:
        """Let the worker run to its end, gracefully even if this task is cancelled."""
        running = asyncio.ensure_future(worker.run(own_process=False))
        self._pass_on()
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            self._log_draining("cancelled")
            worker.hurry("cancelled")
            await asyncio.gather(running, return_exceptions=True)
            raise

    # -- orders ------------------------------------------------------------------------

    @property
    def should_exit(self) -> bool:
        """Whether the server stops once running requests have finished."""
        return self._should_exit

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        self._should_exit = value
        self._wake()

    @property
    def force_exit(self) -> bool:
        """Whether the server stops immediately."""
        return self._force_exit

    @force_exit.setter
    def force_exit(self, value: bool) -> None:
        self._force_exit = value
        self._wake()

    def handle_exit(self, signum: int, frame: FrameType | None) -> None:
        """Handle SIGINT and SIGTERM: stop, or stop immediately on a SIGINT during a stop."""
        self._captured.append(signal.Signals(signum))
        if self._should_exit and signum == signal.SIGINT:
            self.force_exit = True
        else:
            self.should_exit = True

    def _wake(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                self._loop.call_soon_threadsafe(self._pass_on)

    def _pass_on(self) -> None:
        """Log the signals that arrived, and give the worker the matching orders."""
        for signum in self._captured[self._logged :]:
            self._logged += 1
            self._log(f"received {signum.name}")
        if self._worker is not None and self._should_exit:
            self._log_draining(self._reason)
            grace = self.config.graceful_timeout
            self._mailbox.send(mailbox.Drain("should_exit", grace, self._final))
        if self._worker is not None and self._force_exit:
            self._log_draining("force_exit")
            self._worker.hurry("force_exit")

    def _log_draining(self, reason: str) -> None:
        """Log that the worker drains, once."""
        if not self._draining:
            self._draining = True
            self._log(f"draining reason={reason}")
            self._reminder.begin(self._what_a_stop_waits_for)

    def _on_mail(self) -> None:
        for message in self._mailbox.receive()[0]:
            if isinstance(message, mailbox.InStartup):
                self._note_startup(message)
            elif isinstance(message, mailbox.Ready):
                self.started = True
                self._log("ready")
                if not self._draining:
                    self._reminder.end()
            elif isinstance(message, mailbox.Serves):
                on_terminal = self._ctrl_c_stops()
                self._log(
                    introduction(self.config, message, on_terminal=on_terminal, reads_files=False)
                )
            elif isinstance(message, mailbox.NoLifespan):
                self._log(message.line, "info" if message.usual else "warning")
            elif isinstance(message, mailbox.UntrustedPeer):
                self._log(message.line, "warning")
            elif isinstance(message, mailbox.Due):
                self._reason = message.reason
                self.should_exit = True

    # -- what takes long ---------------------------------------------------------------

    def _note_startup(self, message: mailbox.InStartup) -> None:
        if self._startup is None:
            self._startup = time.monotonic(), ""
            if not self._draining:
                self._reminder.begin(self._what_the_startup_waits_for)
        self._startup = self._startup[0], message.place

    def _what_the_startup_waits_for(self) -> str:
        assert self._startup is not None
        began, place = self._startup
        return waits.in_startup(self.config.app, time.monotonic() - began, place)

    def _what_a_stop_waits_for(self) -> str:
        assert self._worker is not None
        hint = "Ctrl-C again" if self._ctrl_c_stops() else "set force_exit"
        return waits.stopping_alone(self._worker.load(), "" if self._force_exit else hint)

    def _ctrl_c_stops(self) -> bool:
        """Whether Ctrl-C on a terminal can stop this server."""
        handled = signal.getsignal(signal.SIGINT) == self.handle_exit
        return handled and os.isatty(self._log_fd)

    # -- sockets and signals -----------------------------------------------------------

    def _listeners(self, sockets: Sequence[socket.socket] | None) -> list[Listener]:
        config = self.config
        if sockets is None:
            listeners = open_listeners(
                config.binds, config.backlog, config.binds_origin, access=access(config)
            )
        else:
            listeners = [_adopted(sock, config.backlog) for sock in sockets]
        for listener in listeners:
            self._log(f"listening on {listener.url(config.scheme)}")
        for level, text in config.notices():
            self._log(text, level)
        return listeners

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Call `handle_exit` on SIGINT and SIGTERM while in this context.

        This has no effect outside the main thread, because only that can set handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._before = {signum: signal.signal(signum, self.handle_exit) for signum in SIGNALS}
        _capturing.append(self)
        keep = forks.release_in_children(self._restore_signals)
        try:
            yield
        finally:
            keep()
            self._restore_signals()

    def _restore_signals(self) -> None:
        """Restore the previous handlers, whichever of several servers ends first."""
        later = _capturing[_capturing.index(self) + 1 :]
        _capturing.remove(self)
        if later:
            later[0]._before = self._before
            return
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def _log(self, event: str, level: str = "info") -> None:
        number = logging.getLevelNamesMapping()[level.upper()]
        logger.log(number, "%s %s", self._subject, event)


_numbers = itertools.count(1)
"""The numbers of this process's servers in the log, like those of an arbiter's workers."""

_capturing: list[Server] = []
"""The servers that have installed signal handlers; those of the newest are in force."""

_in_force: list[tuple[LogSetup, Subject]] = []
"""The log set-ups of this process's servers; the newest one applies to shared loggers."""

_before: list[SavedLogging] = []
"""The state of logging before the first server; at most one item."""


async def _end_rest() -> int:
    """End the tasks and generators that still run in the loop; returns how many tasks go on."""
    await cancel_others(CANCEL_LIMIT)
    await close_generators(CANCEL_LIMIT)
    return len(asyncio.all_tasks()) - 1


@contextlib.contextmanager
def _logging(config: Config, subject: Subject) -> Iterator[LogSetup]:
    """Log as configured in this context; restore logging and close the files at its end.

    Raises LogFileError or ConfigError.
    """
    setup = LogSetup.open(config, LogFiles(), config.objects)
    if not _in_force:
        _before[:] = [SavedLogging()]
    entry = setup, subject
    _in_force.append(entry)
    try:
        setup.apply(subject)
        yield setup
    finally:
        _in_force.remove(entry)
        if _in_force:
            newest, its_subject = _in_force[-1]
            newest.apply(its_subject)
        else:
            _before.pop().restore()
        setup.files.keep(())


def _adopted(sock: socket.socket, backlog: int) -> Listener:
    """A listener for a socket of the caller."""
    families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    if sock.family not in families or sock.type != socket.SOCK_STREAM:
        raise ConfigError(f"argument sockets: a TCP or UNIX stream socket is needed, not {sock!r}")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.listen(backlog)
    sock.setblocking(False)
    return Listener(sock)
