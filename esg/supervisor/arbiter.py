"""The arbiter: waits, turns what happened into events, performs the actions that come back.

It decides nothing (the fleet does), never blocks but in the selector, and never imports the
application.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable
from typing import ClassVar

from setproctitle import setproctitle

from esg import logs, mailbox, scoreboard
from esg.config import Config, check_reload
from esg.errors import ESGError
from esg.listeners import Listener, open_listeners
from esg.payload import DUMP_SIGNAL, Assignment, Payload
from esg.supervisor import actions as do
from esg.supervisor import events as on
from esg.supervisor import signals
from esg.supervisor.fleet import Fleet
from esg.supervisor.processes import WorkerHandle, fork, reap


class Arbiter:
    """The master process: sockets, children, signals."""

    def __init__(self, config: Config, payload: Payload, read_config: Callable[[], Config]) -> None:
        """`payload` is what workers run; `read_config` reads the settings anew for a reload."""
        self._config = config
        self._payload = payload
        self._read_config = read_config
        self._generation = 1
        self._fleet = Fleet(config, time.monotonic(), capacity=scoreboard.CAPACITY)
        self._board = scoreboard.Scoreboard()
        self._handles: dict[int, WorkerHandle] = {}
        self._listeners: list[Listener] = []
        self._selector = selectors.DefaultSelector()
        self._signals = signals.SignalQueue()
        self._exit_code: int | None = None

    # -- the loop ----------------------------------------------------------------------

    def run(self) -> int:
        """Serve until told to stop; returns the exit code. Raises ListenError."""
        self._listen()
        self._signals.install()
        self._selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
        self._dispatch(on.Started())
        while self._exit_code is None:
            for key, _ in self._selector.select(self._time_left()):
                key.data()
            if self._time_left() == 0:
                self._dispatch(self._beats())
                self._dispatch(on.Tick())
        self._close()
        return self._exit_code

    def _time_left(self) -> float | None:
        deadline = self._fleet.next_deadline()
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def _dispatch(self, event: on.Event) -> None:
        """Hand an event to the fleet and perform what it wants, then what that brought about."""
        events = deque((event,))
        while events:
            for action in self._fleet.handle(events.popleft(), time.monotonic()):
                consequence = self._PERFORM[type(action)](self, action)
                if consequence is not None:
                    events.append(consequence)

    def _listen(self) -> None:
        config = self._config
        self._listeners = open_listeners(config.binds, config.backlog, config.binds_origin)
        for listener in self._listeners:
            self._log(logging.INFO, f"listening on {listener.url(config.scheme)}")

    def _close(self) -> None:
        self._signals.close()
        self._selector.close()
        for listener in self._listeners:
            listener.close()

    def _log(self, level: int, event: str) -> None:
        subject = logs.arbiter_subject(self._generation, os.getpid())
        logs.logger.log(level, "%s %s", subject, event)

    # -- what happened -----------------------------------------------------------------

    def _on_signals(self) -> None:
        for signum in self._signals.read():
            if signum in signals.EVENTS:
                self._log(logging.INFO, f"received {signum.name}")
                self._dispatch(signals.EVENTS[signum])
            elif signum == signals.RELOAD:
                self._log(logging.INFO, f"received {signum.name}")
                self._dispatch(self._reload_event())
            elif signum == signals.CHILD:
                self._on_children()
            elif signum in signals.UNAVAILABLE:
                self._log(logging.WARNING, f"{signum.name} does nothing in this version")

    def _reload_event(self) -> on.Event:
        try:
            config = self._read_config()
            check_reload(self._config, config)
        except ESGError as error:
            return on.ReloadRefused(str(error))
        return on.ReloadRequested(config)

    def _on_children(self) -> None:
        for pid, status in reap():
            for handle in [h for h in self._handles.values() if h.pid == pid]:
                self._on_exit(handle, status)

    def _on_exit(self, handle: WorkerHandle, status: int) -> None:
        self._on_mail(handle)  # its last words, if it left any
        if handle.mailbox in self._watched():
            self._selector.unregister(handle.mailbox)
        self._board.clear(handle.number)
        detail = "" if handle.aborted else handle.stack()
        handle.close()
        event = on.WorkerExited(handle.number, handle.describe(status), status == 0, detail)
        self._dispatch(event)
        if self._handles[handle.number] is handle:
            del self._handles[handle.number]

    def _watched(self) -> set[object]:
        return {key.fileobj for key in self._selector.get_map().values()}

    def _on_mail(self, handle: WorkerHandle) -> None:
        messages, alive = handle.mailbox.receive()
        for message in messages:
            self._dispatch(self._event_of(handle.number, message))
        if not alive and handle.mailbox in self._watched():
            self._selector.unregister(handle.mailbox)

    def _event_of(self, number: int, message: mailbox.Message) -> on.Event:
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
            case mailbox.Drain():
                raise AssertionError("only the arbiter sends Drain")

    def _beats(self) -> on.BeatsRead:
        now = time.monotonic_ns()
        return on.BeatsRead({number: self._board.age(number, now) for number in self._handles})

    # -- what to do --------------------------------------------------------------------

    def _spawn(self, action: do.Spawn) -> on.Event | None:
        try:
            handle = self._fork_worker(action)
        except OSError as error:
            return on.SpawnFailed(action.number, str(error))
        self._handles[action.number] = handle
        self._selector.register(handle.mailbox, selectors.EVENT_READ, lambda: self._on_mail(handle))
        return None

    def _fork_worker(self, action: do.Spawn) -> WorkerHandle:
        """Fork a worker. Raises OSError, with nothing left open, if there is no room for one."""
        self._board.clear(action.number)
        self._board.note_highest(max([action.number, *self._handles]))
        handle, workers_end = WorkerHandle.open(action.number, action.generation)
        assignment = Assignment(
            number=action.number,
            generation=action.generation,
            config=action.config,
            listeners=self._listeners,
            mailbox=workers_end,
            row=self._board.row(action.number),
            stack_fd=handle.stack_fd,
        )
        try:
            handle.pid = fork(lambda: self._run_worker(assignment, handle))
        except OSError:
            handle.close()
            raise
        finally:
            workers_end.close()
        return handle

    def _run_worker(self, assignment: Assignment, own: WorkerHandle) -> int:
        """In the child: let go of what is the arbiter's, then run the payload."""
        own.mailbox.close()
        for handle in self._handles.values():
            handle.close()
        self._selector.close()
        self._signals.close()
        config = assignment.config
        setproctitle(
            f"esg: worker {assignment.number} gen {assignment.generation} [{config.title}]"
        )
        logs.configure(config.log_level, config.use_colors)
        return self._payload(assignment)

    def _drain(self, action: do.Drain) -> None:
        message = mailbox.Drain(action.reason, action.grace, action.final)
        self._handles[action.number].mailbox.send(message)

    def _quit(self, action: do.Quit) -> None:
        self._handles[action.number].signal(signal.SIGQUIT)

    def _dump_stack(self, action: do.DumpStack) -> None:
        self._handles[action.number].signal(DUMP_SIGNAL)

    def _abort(self, action: do.Abort) -> None:
        handle = self._handles[action.number]
        stack = handle.stack() or "(it could not be written)"
        self._log_action(do.Log("error", "stacks of its threads:", action.number, stack))
        handle.signal(signal.SIGABRT)

    def _kill(self, action: do.Kill) -> None:
        self._handles[action.number].signal(signal.SIGKILL)

    def _close_listeners(self, action: do.CloseListeners) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    def _log_action(self, action: do.Log) -> None:
        event = f"{action.event}\n{action.detail}" if action.detail else action.event
        level = logging.getLevelNamesMapping()[action.level.upper()]
        handle = self._handles.get(action.number or 0)
        if handle is None:
            self._log(level, event)
            return
        subject = logs.worker_subject(handle.number, handle.generation, handle.pid)
        logs.logger.log(level, "%s %s", subject, event)

    def _tell(self, action: do.Tell) -> None:
        config = action.config
        if config is not self._config or action.generation != self._generation:
            logs.configure(config.log_level, config.use_colors)
        self._config, self._generation = config, action.generation
        setproctitle(f"esg: arbiter [{config.title}] gen {action.generation}")
        self._log(logging.DEBUG, f"{action.state}: {action.status}")

    def _exit(self, action: do.Exit) -> None:
        self._log(logging.INFO, f"stopped, exit status {action.code}")
        self._exit_code = action.code

    _PERFORM: ClassVar[dict[type[do.Action], Callable[..., on.Event | None]]] = {
        do.Spawn: _spawn,
        do.Drain: _drain,
        do.Quit: _quit,
        do.DumpStack: _dump_stack,
        do.Abort: _abort,
        do.Kill: _kill,
        do.CloseListeners: _close_listeners,
        do.Log: _log_action,
        do.Tell: _tell,
        do.Exit: _exit,
    }
