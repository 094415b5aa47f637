"""The arbiter: waits, turns what happens into events for the fleet, and performs its actions.

It decides nothing (the fleet does), never blocks except in the selector, and never imports the
application.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import ClassVar

from setproctitle import setproctitle

from esg import commands, mailbox
from esg.errors import ESGError
from esg.log.files import LogFiles
from esg.payload import Payload, Settings
from esg.settings import folders
from esg.settings.build import check_reload
from esg.settings.schema import Config
from esg.supervisor import privileges, signals
from esg.supervisor.child import Child, WorkerHandle
from esg.supervisor.children import Children, Duties
from esg.supervisor.control import Control
from esg.supervisor.fleet import actions as do
from esg.supervisor.fleet import events as on
from esg.supervisor.fleet.fleet import Fleet
from esg.supervisor.fleet.terms import Terms
from esg.supervisor.generations import Generations
from esg.supervisor.journal import Journal
from esg.supervisor.net import Net
from esg.supervisor.orders import Orders
from esg.supervisor.pidfile import PidFile
from esg.supervisor.sockets import Sockets
from esg.supervisor.systemd import Notifier, handed_over
from esg.supervisor.watcher.reloader import Reloader
from esg.supervisor.workers import LAST_LINES, Workers

_ForFleet = (
    mailbox.Ready | mailbox.BootFailed | mailbox.Due | mailbox.Draining | mailbox.StoppedAccepting
)
"""Kinds of workers' mail that become events of the fleet."""

LOG_PAUSE = 0.25
"""Seconds until the arbiter tries again to write lines that a log had no room for."""


class Arbiter:
    """The master process: sockets, children, signals."""

    def __init__(
        self, settings: Settings, payload: Payload, read_settings: Callable[[], Settings]
    ) -> None:
        """`payload` is the code of workers; `read_settings` reads the settings again for a reload.

        Raises ListenError if a service manager's sockets aren't open.
        """
        config = settings.config
        # This removes variables from the environment, and must open nothing: see below.
        self._notifier = Notifier.from_environment(os.environ, os.getpid())
        # Nothing may be opened before this: another file could be mistaken for one of the sockets.
        self._handed = handed_over(os.environ, os.getpid(), needed=not config.has_explicit_address)
        self._read_settings_again = read_settings
        self._journal = Journal(lambda: self._generations.current)
        self._net = Net(self._journal.unexpected)
        self._fleet = Fleet(
            Terms.of(config), time.monotonic(), capacity=Workers.capacity, phase=random.random()
        )
        self._selector = selectors.DefaultSelector()
        self._children = Children(self._selector, self._net.attempt, self._let_go)
        duties = Duties(mailbox.FromWorker, self._on_mail, self._on_exit)
        self._workers = Workers(self._children, payload, config.real_folder, duties)
        self._sockets = Sockets(
            self._notifier,
            self._journal.info,
            functools.partial(self._children.of, WorkerHandle),
            self._journal.error,
        )
        self._pid_file: PidFile | None = None
        self._signals = signals.SignalQueue()
        self._exit_code: int | None = None
        self._generations = Generations(settings, self._sockets, LogFiles())
        self._orders = Orders(
            self._workers, self._children, self._generations, self._sockets, self._journal
        )
        self._reloader = Reloader(
            self._children, self._journal.log, lambda: self._dispatch(on.ReloadAsked())
        )
        self._control = Control(self._selector, self._on_command)

    # -- the loop ----------------------------------------------------------------------

    def run(self) -> int:
        """Serve until told to stop; returns the exit code.

        Raises ListenError, LogFileError, PidFileError or ConfigError if it can't start.
        """
        self._generations.open_log().apply(self._journal.subject)
        self._signals.install()
        config = self._generations.current.config
        privileges.identity(config)
        if config.pid:
            self._pid_file = PidFile.acquire(config.pid, config.origin("pid"))
        try:
            if config.control_socket:
                self._control.open(config.control_socket, config.origin("control_socket"))
            return self._serve(config)
        finally:
            self._close()

    def _serve(self, config: Config) -> int:
        self._listen()
        self._journal.notices(config)
        self._selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
        self._dispatch(on.Started())
        self._reloader.follow(config)
        self._net.spread()
        while self._exit_code is None:
            for key, _ in self._selector.select(self._time_to_wait()):
                self._net.attempt(key.data)
            if self._time_left() == 0:
                self._net.attempt(self._look_around)
                self._dispatch(on.Tick())
                self._net.attempt(self._reloader.tick, time.monotonic())
            self._net.attempt(self._generations.files.flush)
            self._net.attempt(self._notifier.turn, time.monotonic())
            self._net.attempt(self._control.turn, time.monotonic())
            self._net.pause()
        return self._exit_code

    def _look_around(self) -> None:
        """Check the workers and the listeners, about once a second."""
        self._net.attempt(self._workers.count_kills)
        self._dispatch(on.BeatsRead(self._workers.beats()))
        sizes = self._workers.memory()
        if sizes:
            self._dispatch(on.MemoryRead(sizes))
        self._net.attempt(self._workers.look_after)
        self._sockets.look_after()

    def _time_left(self) -> float | None:
        """Seconds until the fleet or the reloader has something to decide."""
        return _time_until(self._fleet.next_deadline(), self._reloader.next_deadline())

    def _time_to_wait(self) -> float | None:
        """Like `_time_left`, but ends earlier if the notifier, `_control` or a log needs a turn."""
        return _time_until(
            self._fleet.next_deadline(),
            self._reloader.next_deadline(),
            self._notifier.next_deadline(),
            self._control.next_deadline(),
            time.monotonic() + LOG_PAUSE if self._generations.files.has_backlog() else None,
        )

    def _dispatch(self, event: on.Event) -> None:
        """Pass an event to the fleet and perform its actions, then handle the events that these
        cause."""
        events = deque((event,))
        while events and self._exit_code is None:
            for action in self._net.attempt(self._decide, events.popleft()) or ():
                consequence = self._net.attempt(self._perform, action)
                if consequence is not None:
                    events.append(consequence)

    def _decide(self, event: on.Event) -> list[do.Action]:
        return self._fleet.handle(event, time.monotonic())

    def _perform(self, action: do.Action) -> on.Event | None:
        if type(action) in Orders.PERFORM:
            return Orders.PERFORM[type(action)](self._orders, action)
        return self._PERFORM[type(action)](self, action)

    def _listen(self) -> None:
        handed, warning = self._handed
        unused = self._generations.listen(handed)
        warnings = [warning, self._notifier.problem]
        warnings += [f"{name} was handed over, and no --bind uses it" for name in unused]
        for text in filter(None, warnings):
            self._journal.log(logging.WARNING, text)

    def _close(self) -> None:
        self._reloader.close()
        self._control.close()
        self._signals.close()
        self._selector.close()
        self._sockets.close()
        if self._pid_file is not None:
            self._pid_file.release()
        self._generations.files.flush(LAST_LINES)

    # -- what happened -----------------------------------------------------------------

    def _on_signals(self) -> None:
        for signum in self._signals.read():
            if self._exit_code is not None:
                return
            self._net.attempt(self._on_signal, signum)

    def _on_signal(self, signum: signal.Signals) -> None:
        if signum in signals.EVENTS:
            self._journal.info(f"received {signum.name}")
            self._dispatch(signals.EVENTS[signum])
        elif signum == signals.RELOAD:
            self._journal.info(f"received {signum.name}")
            self._dispatch(on.ReloadAsked())
        elif signum == signals.CHILD:
            self._children.reap()
        elif signum in signals.UNAVAILABLE:
            self._journal.log(logging.WARNING, f"{signum.name} does nothing in this version")

    def _on_command(self, command: str, job: int, peer: str) -> None:
        self._journal.info(f"received {command} from {peer}")
        self._dispatch(on.ReloadAsked(job))

    def _on_exit(self, handle: WorkerHandle, status: int | None) -> None:
        reason = self._net.attempt(self._workers.reason, handle, status) or "gone"
        detail = self._net.attempt(self._workers.end, handle) or ""
        self._dispatch(on.WorkerExited(handle.number, reason, status == 0, detail))
        self._net.attempt(self._sockets.release)

    def _on_mail(self, handle: WorkerHandle, messages: Sequence[mailbox.FromWorker]) -> None:
        for message in messages:
            if isinstance(message, mailbox.NoLifespan):
                self._journal.no_lifespan(handle, message)
            elif isinstance(message, mailbox.Serves):
                self._journal.introduce(message)
            elif isinstance(message, mailbox.InStartup | mailbox.HeldRequests):
                handle.progress.take(message, time.monotonic())
            elif isinstance(message, mailbox.UntrustedPeer):
                self._journal.untrusted(handle, message)
            else:
                if isinstance(message, mailbox.Ready):
                    handle.serves = True
                    handle.progress.boot_is_over()
                    self._workers.show_rows(handle)
                self._dispatch(self._event_of(handle.number, message))

    def _let_go(self, child: Child) -> None:
        """In a new process: close the arbiter's descriptors, except those that this child was
        given."""
        self._control.let_go()
        self._selector.close()
        self._signals.close()
        self._sockets.let_go(child.listeners if isinstance(child, WorkerHandle) else ())
        if self._pid_file is not None:
            self._pid_file.close()
        self._workers.let_go(child)

    def _event_of(self, number: int, message: _ForFleet) -> on.Event:
        match message:
            case mailbox.Ready():
                return on.WorkerReady(number)
            case mailbox.BootFailed():
                return on.WorkerBootFailed(
                    number, message.message, message.detail, message.exit_code
                )
            case mailbox.Due():
                return on.WorkerDue(number, message.reason)
            case mailbox.Draining():
                return on.WorkerRetiring(number, message.reason)
            case mailbox.StoppedAccepting():
                return on.WorkerStoppedAccepting(number)

    # -- what to do --------------------------------------------------------------------

    def _close_listeners(self, action: do.CloseListeners) -> None:
        self._sockets.close()

    def _log_action(self, action: do.Log) -> None:
        level = logging.getLevelNamesMapping()[action.level.upper()]
        handle = self._workers.get(action.number or 0)
        self._journal.about(handle, level, action.event, action.detail)

    def _read_settings(self, action: do.ReadSettings) -> on.Event:
        """Read and check the settings for a reload; opens nothing."""
        self._reloader.code_is_read()
        try:
            with folders.kept():  # reading the settings changes to the folder of the new generation
                settings = self._read_settings_again()
                check_reload(self._generations.current.config, settings.config)
                privileges.identity(settings.config)
        except Exception as error:  # noqa: BLE001 - the running generation keeps serving after any error
            return on.ReloadRefused(_reason(error), action.job)
        if settings.config.app_is_object:
            self._journal.log(
                logging.WARNING,
                "the application was given as an object, so its code stays as it is; "
                "give MODULE:ATTRIBUTE to load new code at a reload",
            )
        generation = self._generations.add(settings)
        return on.ReloadAccepted(generation.number, generation.terms, action.job)

    def _prepare(self, action: do.Prepare) -> on.Event:
        try:
            self._generations.prepare(action.generation, self._journal.subject)
        except Exception as error:  # noqa: BLE001 - the running generation keeps serving after any error
            return on.PrepareFailed(action.generation, _reason(error))
        return on.Prepared(action.generation)

    def _adopt(self, action: do.Adopt) -> None:
        before = self._generations.adopt(action.generation)
        after = self._generations.current
        folders.enter_serving(after.config)
        if after.logs is not None:
            try:
                after.logs.apply(self._journal.subject)
            except ESGError as error:
                self._journal.error(f"can't log as configured: {error}")
        self._journal.notices(after.config, before.config)
        self._reloader.follow(after.config)

    def _retire(self, action: do.Retire) -> None:
        self._generations.retire(action.generation)

    def _stop_watching(self, action: do.StopWatching) -> None:
        self._reloader.stop()

    def _tell(self, action: do.Tell) -> None:
        self._notifier.tell(action.state, action.status, again=action.again)
        generation = self._generations.current
        setproctitle(f"esg: arbiter [{generation.config.title}] gen {generation.number}")
        self._journal.log(logging.DEBUG, f"{action.state}: {action.status}")

    def _answer(self, action: do.Answer) -> None:
        answer = commands.Answer(action.ok, action.text, action.detail, action.stopping)
        self._control.answer(action.job, answer)

    def _exit(self, action: do.Exit) -> None:
        self._exit_code = action.code
        because = f": {' '.join(action.reason.split())}" if action.reason else ""
        self._journal.info(f"stopped, exit status {action.code}{because}")

    _PERFORM: ClassVar[dict[type[do.Action], Callable[..., on.Event | None]]] = {
        do.CloseListeners: _close_listeners,
        do.Log: _log_action,
        do.ReadSettings: _read_settings,
        do.Prepare: _prepare,
        do.Adopt: _adopt,
        do.Retire: _retire,
        do.StopWatching: _stop_watching,
        do.Tell: _tell,
        do.Answer: _answer,
        do.Exit: _exit,
    }


def _reason(error: Exception) -> str:
    """Why a reload is refused: an error's advice, or the error itself if it is unexpected."""
    return str(error) if isinstance(error, ESGError) else f"{type(error).__name__}: {error}"


def _time_until(*deadlines: float | None) -> float | None:
    """Seconds until the first of these times; None if there is none."""
    deadline = min((d for d in deadlines if d is not None), default=None)
    return None if deadline is None else max(0.0, deadline - time.monotonic())
