"""The arbiter: waits, turns what happened into events, performs the actions that come back.

It decides nothing (the fleet does), never blocks but in the selector, and never imports the
application.
"""

from __future__ import annotations

import functools
import logging
import os
import selectors
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar

from setproctitle import setproctitle

from esg import commands, mailbox, waits
from esg.errors import ESGError
from esg.introduction import introduction
from esg.log.files import LogFiles
from esg.log.records import Subject, arbiter_subject, log_event, worker_subject
from esg.log.setup import reopen_handlers
from esg.openfiles import explained
from esg.payload import DUMP_SIGNAL, Payload, Settings
from esg.seldom import Seldom
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
from esg.supervisor.oom import OOMKills
from esg.supervisor.pidfile import PidFile
from esg.supervisor.sockets import Sockets
from esg.supervisor.systemd import Notifier, handed_over
from esg.supervisor.watcher.reloader import Reloader
from esg.supervisor.workers import LAST_LINES, Workers

_ForFleet = mailbox.Ready | mailbox.BootFailed | mailbox.Due | mailbox.Draining
"""Mail of workers that the fleet decides on."""

LOG_PAUSE = 0.25
"""Seconds until the arbiter tries again to write lines that a log had no room for."""

FAILURE_PAUSE = 0.1
"""Seconds between two turns of the loop when something raised in the first."""

_T = TypeVar("_T")


class Arbiter:
    """The master process: sockets, children, signals."""

    def __init__(
        self, settings: Settings, payload: Payload, read_settings: Callable[[], Settings]
    ) -> None:
        """`payload` is what workers run; `read_settings` reads the settings again for a reload.

        Raises ListenError if a service manager's sockets aren't there.
        """
        config = settings.config
        # It takes its variables, and opens nothing: see below.
        self._notifier = Notifier.from_environment(os.environ, os.getpid())
        # Before anything is opened, which could be taken for one of them.
        self._handed = handed_over(os.environ, os.getpid(), needed=not config.says_where)
        self._read_settings_again = read_settings
        self._no_lifespan = 0
        """The newest generation of which the log says that its application has no lifespan."""
        self._oom_kills = OOMKills()
        self._fleet = Fleet(Terms.of(config), time.monotonic(), capacity=Workers.capacity)
        self._selector = selectors.DefaultSelector()
        self._children = Children(self._selector, self._attempt, self._let_go)
        duties = Duties(mailbox.FromWorker, self._on_mail, self._on_exit)
        self._workers = Workers(self._children, payload, config.real_folder, duties)
        self._sockets = Sockets(
            self._notifier,
            functools.partial(self._log, logging.INFO),
            functools.partial(self._children.of, WorkerHandle),
            functools.partial(self._log, logging.ERROR),
        )
        self._pid_file: PidFile | None = None
        self._signals = signals.SignalQueue()
        self._exit_code: int | None = None
        self._warned: set[str] = set()
        self._serving = False
        self._introduced = False
        self._failed = False
        """Whether something raised in this turn of the loop."""
        self._failures: dict[tuple[type[Exception], str, int], Seldom] = {}
        self._log_files = LogFiles()
        self._generations = Generations(settings, self._sockets, self._log_files)
        self._reloader = Reloader(
            self._children, self._log, lambda: self._dispatch(on.ReloadAsked())
        )
        self._control = Control(self._selector, self._on_command)

    # -- the loop ----------------------------------------------------------------------

    def run(self) -> int:
        """Serve until told to stop; returns the exit code.

        Raises ListenError, LogFileError, PidFileError or ConfigError if it can't begin.
        """
        self._generations.open_log().apply(self._subject())
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
        self._log_notices(config)
        self._selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
        self._dispatch(on.Started())
        self._reloader.follow(config)
        self._serving = True
        while self._exit_code is None:
            for key, _ in self._selector.select(self._time_to_wait()):
                self._attempt(key.data)
            if self._time_left() == 0:
                self._attempt(self._look_around)
                self._dispatch(on.Tick())
                self._attempt(self._reloader.tick, time.monotonic())
            self._attempt(self._log_files.flush)
            self._attempt(self._notifier.turn, time.monotonic())
            self._attempt(self._control.turn, time.monotonic())
            if self._failed:  # what is still to be done would be tried without a pause
                self._failed = False
                time.sleep(FAILURE_PAUSE)
        return self._exit_code

    def _look_around(self) -> None:
        """Check the workers and the listeners, about once a second."""
        self._attempt(self._oom_kills.look, time.monotonic())
        self._dispatch(on.BeatsRead(self._workers.beats()))
        self._workers.look_after()
        self._sockets.look_after()

    def _attempt(self, function: Callable[..., _T], *arguments: object) -> _T | None:
        """Call this. Once workers serve, whatever it raises is logged, and None returned.

        The workers need an arbiter more than they need any one thing that it does.
        """
        try:
            return function(*arguments)
        except Exception as error:
            if not self._serving:
                raise
            self._failed = True
            self._report(error)
            return None

    def _report(self, error: Exception) -> None:
        """Log an uncaught error; one of the same type and place is logged once a minute."""
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        place = (type(error), frame.f_code.co_filename, line)
        more = self._failures.setdefault(place, Seldom()).now(time.monotonic())
        if more is None:
            return
        before = f" ({more} more like it before)" if more else ""
        event = f"unexpected error, the arbiter goes on: {error!r}{before}"
        detail = "".join(traceback.format_exception(error)).rstrip()
        log_event(logging.CRITICAL, self._subject(), event, detail)

    def _time_left(self) -> float | None:
        """Until the fleet or the reloader has something to decide."""
        return _time_until(self._fleet.next_deadline(), self._reloader.next_deadline())

    def _time_to_wait(self) -> float | None:
        """The same, or until the service manager, `esgctl` or a log wants to be written to."""
        return _time_until(
            self._fleet.next_deadline(),
            self._reloader.next_deadline(),
            self._notifier.next_deadline(),
            self._control.next_deadline(),
            time.monotonic() + LOG_PAUSE if self._log_files.waiting() else None,
        )

    def _dispatch(self, event: on.Event) -> None:
        """Hand an event to the fleet and perform what it wants, then what that brought about."""
        events = deque((event,))
        while events and self._exit_code is None:
            for action in self._attempt(self._decide, events.popleft()) or ():
                consequence = self._attempt(self._PERFORM[type(action)], self, action)
                if consequence is not None:
                    events.append(consequence)

    def _decide(self, event: on.Event) -> list[do.Action]:
        return self._fleet.handle(event, time.monotonic())

    def _listen(self) -> None:
        handed, warning = self._handed
        unused = self._generations.listen(handed)
        warnings = [warning, self._notifier.problem]
        warnings += [f"{name} was handed over, and no --bind takes it" for name in unused]
        for text in filter(None, warnings):
            self._log(logging.WARNING, text)

    def _log_notices(self, config: Config, before: Config | None = None) -> None:
        """Log what there is to say about the settings, and wasn't of those `before`."""
        said = [*before.notices(), *privileges.notices(before)] if before is not None else []
        for level, text in [*config.notices(), *privileges.notices(config)]:
            if (level, text) not in said:
                self._log_action(do.Log(level, text))

    def _close(self) -> None:
        self._reloader.close()
        self._control.close()
        self._signals.close()
        self._selector.close()
        self._sockets.close()
        if self._pid_file is not None:
            self._pid_file.release()
        self._log_files.flush(LAST_LINES)

    def _log(self, level: int, event: str) -> None:
        log_event(level, self._subject(), event)

    def _warn_once(self, text: str, about: str = "") -> None:
        """Log a warning, unless it is empty or one with this text, or about this, was logged."""
        if text and (about or text) not in self._warned:
            self._warned.add(about or text)
            self._log(logging.WARNING, text)

    def _subject(self) -> Subject:
        return arbiter_subject(self._generations.current.number, os.getpid())

    # -- what happened -----------------------------------------------------------------

    def _on_signals(self) -> None:
        for signum in self._signals.read():
            if self._exit_code is not None:
                return
            self._attempt(self._on_signal, signum)

    def _on_signal(self, signum: signal.Signals) -> None:
        if signum in signals.EVENTS:
            self._log(logging.INFO, f"received {signum.name}")
            self._dispatch(signals.EVENTS[signum])
        elif signum == signals.RELOAD:
            self._log(logging.INFO, f"received {signum.name}")
            self._dispatch(on.ReloadAsked())
        elif signum == signals.CHILD:
            self._children.reap()
        elif signum in signals.UNAVAILABLE:
            self._log(logging.WARNING, f"{signum.name} does nothing in this version")

    def _on_command(self, command: str, job: int, peer: str) -> None:
        self._log(logging.INFO, f"received {command} from {peer}")
        self._dispatch(on.ReloadAsked(job))

    def _on_exit(self, handle: WorkerHandle, status: int | None) -> None:
        detail = self._attempt(handle.last_stack) or ""
        self._attempt(handle.close)
        self._attempt(self._workers.remove, handle.number)
        oom_file = None
        if handle.is_killed(status):
            oom_file = self._attempt(self._oom_kills.take, time.monotonic())
        reason = handle.describe(status, oom_file)
        self._dispatch(on.WorkerExited(handle.number, reason, status == 0, detail))
        self._attempt(self._sockets.release)

    def _on_mail(self, handle: WorkerHandle, messages: Sequence[mailbox.FromWorker]) -> None:
        for message in messages:
            if isinstance(message, mailbox.NoLifespan):
                self._log_lifespan(handle, message)
            elif isinstance(message, mailbox.Serves):
                self._introduce(message)
            elif isinstance(message, mailbox.InStartup | mailbox.HeldRequests):
                handle.progress.take(message, time.monotonic())
            elif isinstance(message, mailbox.UntrustedPeer):
                self._warn_of_peer(handle, message)
            else:
                if isinstance(message, mailbox.Ready):
                    handle.serves = True
                    handle.progress.boot_is_over()
                    self._workers.show_rows(handle)
                self._dispatch(self._event_of(handle.number, message))

    def _let_go(self, child: Child) -> None:
        """In a new process: close what is the arbiter's, but not what this child was given."""
        self._control.let_go()
        self._selector.close()
        self._signals.close()
        self._sockets.let_go(child.listeners if isinstance(child, WorkerHandle) else ())
        if self._pid_file is not None:
            self._pid_file.close()
        self._workers.let_go(child)

    def _log_lifespan(self, handle: WorkerHandle, message: mailbox.NoLifespan) -> None:
        """Log that the application has no lifespan, for the first worker of a generation."""
        if handle.generation > self._no_lifespan:
            self._no_lifespan = handle.generation
            subject = worker_subject(handle.number, handle.generation, handle.pid or 0)
            level = logging.INFO if message.usual else logging.WARNING
            log_event(level, subject, message.line)

    def _warn_of_peer(self, handle: WorkerHandle, message: mailbox.UntrustedPeer) -> None:
        """Warn once while the same peers are trusted. A worker that drains may be out of date."""
        current = self._generations.current
        if handle.generation == current.number:
            about = f"peers other than {current.config.forwarded_allow_ips}"
            self._warn_once(message.line, about)

    def _introduce(self, message: mailbox.Serves) -> None:
        """Log what is served, as soon as the first worker knows all of it."""
        if not self._introduced:
            self._introduced = True
            current = self._generations.current
            on_terminal = current.logs is not None and os.isatty(current.logs.error.fd)
            text = introduction(current.config, message, on_terminal=on_terminal)
            self._log(logging.INFO, text)

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

    # -- what to do --------------------------------------------------------------------

    def _spawn(self, action: do.Spawn) -> on.Event | None:
        try:
            self._sockets.look_after()
            handle = self._workers.spawn(action.number, self._generations[action.generation])
        except OSError as error:
            return on.SpawnFailed(action.number, explained(error))
        except ESGError as error:
            return on.SpawnFailed(action.number, str(error))
        except Exception as error:  # noqa: BLE001 - the fleet must hear of it, whatever it is
            self._report(error)
            return on.SpawnFailed(action.number, f"unexpected error: {error!r}")
        self._warn_once(handle.stacks.problem)
        return None

    def _drain(self, action: do.Drain) -> None:
        handle = self._workers.get(action.number)
        if handle is None:
            return  # its end is about to be dealt with
        handle.draining = True
        # A reload that drops a bind leaves its queue to the last worker that has it.
        self._sockets.release()
        dropped = self._sockets.given_up(handle.listeners)
        handle.post(mailbox.Drain(action.reason, action.grace, action.final, dropped))

    def _discard(self, action: do.Discard) -> None:
        """In boot a worker ends on the signal; one that serves leaves that to the mail."""
        handle = self._workers.get(action.number)
        if handle is not None:  # else it couldn't be forked, which the fleet is yet to hear
            handle.draining = True
            handle.post(mailbox.Drain("discarded", action.grace, action.final))
            self._signal(action.number, signal.SIGTERM)

    def _quit(self, action: do.Quit) -> None:
        if not self._signal(action.number, signal.SIGQUIT):
            self._workers.tell([action.number], mailbox.Drain("SIGQUIT", 0.0, final=False))

    def _dump_stack(self, action: do.DumpStack) -> None:
        self._signal(action.number, DUMP_SIGNAL)

    def _ask_where(self, action: do.AskWhere) -> None:
        handle = self._workers.get(action.number)
        if handle is not None:
            handle.ask_for_stack()

    def _report_boot(self, action: do.ReportBoot) -> None:
        handle = self._workers.get(action.number)
        if handle is not None:
            config, now = self._generations[handle.generation].config, time.monotonic()
            line = handle.progress.of_boot(config, action.seconds, handle.stack(), now)
            self._log_action(do.Log("info", line, action.number))

    def _report_stop(self, action: do.ReportStop) -> None:
        loads = list(map(self._workers.load, action.numbers))
        setup = self._generations.current.logs
        on_terminal = setup is not None and os.isatty(setup.error.fd)
        hint = "Ctrl-C again" if on_terminal else "SIGQUIT"
        self._log(logging.INFO, waits.stopping(loads, "" if action.quick else hint))

    def _signal(self, number: int, signum: int) -> bool:
        """Send a worker a signal; False if that isn't possible.

        If the kernel doesn't permit it, that is logged once.
        """
        handle = self._workers.get(number)
        if handle is None:
            return True  # it couldn't be forked, which the fleet is yet to hear
        try:
            return handle.signal(signum)
        except PermissionError as error:
            if not handle.is_beyond_reach:
                handle.is_beyond_reach = True
                event = f"can't be sent {signal.Signals(signum).name}: {error.strerror}; "
                self._log_action(do.Log("error", event + privileges.WHAT_SIGNALS_NEED, number))
            return False

    def _abort(self, action: do.Abort) -> None:
        handle = self._workers.get(action.number)
        if handle is None:
            return
        detail = self._workers.stuck_in(handle)
        self._log_action(do.Log("error", "stacks of its threads:", action.number, detail))
        self._signal(action.number, signal.SIGABRT)

    def _kill(self, action: do.Kill) -> None:
        if not self._signal(action.number, signal.SIGKILL):
            # A worker ends when its mailbox is closed, as it does when it has lost its arbiter.
            for handle in filter(None, [self._workers.get(action.number)]):
                self._children.dismiss(handle)

    def _close_listeners(self, action: do.CloseListeners) -> None:
        self._sockets.close()

    def _reopen_logs(self, action: do.ReopenLogs) -> None:
        files, errors = self._log_files.reopen()
        reopen_handlers()
        for error in errors:
            self._log(logging.ERROR, error)
        news = mailbox.NewLogFiles([file.path for file in files], [file.fd for file in files])
        self._workers.tell(action.numbers, news)
        self._log(logging.INFO, "log files reopened")

    def _show_failure(self, action: do.ShowFailure) -> None:
        self._workers.tell(action.numbers, mailbox.ReloadFailed(action.reason, action.detail))

    def _log_action(self, action: do.Log) -> None:
        level = logging.getLevelNamesMapping()[action.level.upper()]
        handle = self._workers.get(action.number or 0)
        if handle is None:
            subject = self._subject()
        else:
            subject = worker_subject(handle.number, handle.generation, handle.pid or 0)
        log_event(level, subject, action.event, action.detail)

    def _read_settings(self, action: do.ReadSettings) -> on.Event:
        """Read and check the settings for a reload; opens nothing."""
        self._reloader.code_is_read()
        try:
            with folders.kept():  # reading them goes to where the new generation is to be
                settings = self._read_settings_again()
                check_reload(self._generations.current.config, settings.config)
                privileges.identity(settings.config)
        except Exception as error:  # noqa: BLE001 - whatever it is, what serves goes on serving
            return on.ReloadRefused(_reason(error), action.job)
        if settings.config.app_is_object:
            self._log(
                logging.WARNING,
                "the application was given as an object, so its code stays as it is; "
                "give MODULE:ATTRIBUTE to load new code at a reload",
            )
        generation = self._generations.add(settings)
        return on.ReloadRequested(generation.number, generation.terms, action.job)

    def _prepare(self, action: do.Prepare) -> on.Event:
        try:
            self._generations.prepare(action.generation, self._subject())
        except Exception as error:  # noqa: BLE001 - whatever it is, what serves goes on serving
            return on.PrepareFailed(action.generation, _reason(error))
        return on.Prepared(action.generation)

    def _adopt(self, action: do.Adopt) -> None:
        before = self._generations.adopt(action.generation)
        after = self._generations.current
        folders.follow(after.config)
        if after.logs is not None:
            try:
                after.logs.apply(self._subject())
            except ESGError as error:
                self._log(logging.ERROR, f"can't log as configured: {error}")
        self._log_notices(after.config, before.config)
        self._reloader.follow(after.config)

    def _retire(self, action: do.Retire) -> None:
        self._generations.retire(action.generation)

    def _stop_watching(self, action: do.StopWatching) -> None:
        self._reloader.stop()

    def _tell(self, action: do.Tell) -> None:
        self._notifier.tell(action.state, action.status, again=action.again)
        generation = self._generations.current
        setproctitle(f"esg: arbiter [{generation.config.title}] gen {generation.number}")
        self._log(logging.DEBUG, f"{action.state}: {action.status}")

    def _answer(self, action: do.Answer) -> None:
        answer = commands.Answer(action.ok, action.text, action.detail, action.stopping)
        self._control.answer(action.job, answer)

    def _exit(self, action: do.Exit) -> None:
        self._exit_code = action.code
        because = f": {' '.join(action.reason.split())}" if action.reason else ""
        self._log(logging.INFO, f"stopped, exit status {action.code}{because}")

    _PERFORM: ClassVar[dict[type[do.Action], Callable[..., on.Event | None]]] = {
        do.Spawn: _spawn,
        do.Drain: _drain,
        do.Discard: _discard,
        do.Quit: _quit,
        do.DumpStack: _dump_stack,
        do.AskWhere: _ask_where,
        do.ReportBoot: _report_boot,
        do.ReportStop: _report_stop,
        do.Abort: _abort,
        do.Kill: _kill,
        do.CloseListeners: _close_listeners,
        do.ReopenLogs: _reopen_logs,
        do.ShowFailure: _show_failure,
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
    """Why a reload is refused: what to do, or the error as it is if nobody expected it."""
    return str(error) if isinstance(error, ESGError) else f"{type(error).__name__}: {error}"


def _time_until(*deadlines: float | None) -> float | None:
    """Seconds until the first of these; None if there is none."""
    deadline = min((d for d in deadlines if d is not None), default=None)
    return None if deadline is None else max(0.0, deadline - time.monotonic())
