"""The actions of the fleet that concern workers, performed by signals and mail."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from typing import ClassVar

from esg import mailbox, waits
from esg.errors import ESGError
from esg.log.setup import reopen_handlers
from esg.openfiles import explained
from esg.payload import DUMP_SIGNAL
from esg.supervisor import privileges
from esg.supervisor.children import Children
from esg.supervisor.fleet import actions as do
from esg.supervisor.fleet import events as on
from esg.supervisor.generations import Generations
from esg.supervisor.journal import Journal
from esg.supervisor.sockets import Sockets
from esg.supervisor.workers import Workers


class Orders:
    """Performs actions on workers. It isn't an error if a worker has already ended."""

    def __init__(
        self,
        workers: Workers,
        children: Children,
        generations: Generations,
        sockets: Sockets,
        journal: Journal,
    ) -> None:
        self._workers = workers
        self._children = children
        self._generations = generations
        self._sockets = sockets
        self._journal = journal

    def spawn(self, action: do.Spawn) -> on.Event | None:
        """Start a worker; if that fails, the fleet gets the reason."""
        try:
            self._sockets.look_after()
            handle = self._workers.spawn(action.number, self._generations[action.generation])
        except OSError as error:
            return on.SpawnFailed(action.number, explained(error))
        except ESGError as error:
            return on.SpawnFailed(action.number, str(error))
        except Exception as error:  # noqa: BLE001 - the fleet is told about any error
            self._journal.unexpected(error)
            return on.SpawnFailed(action.number, f"unexpected error: {error!r}")
        self._journal.warn_once(handle.stacks.problem)
        return None

    def drain(self, action: do.Drain) -> None:
        """Make a worker finish its requests and end."""
        handle = self._workers.get(action.number)
        if handle is None:
            return
        handle.draining = True
        # If a reload drops a bind, the last worker that has it serves its queue.
        self._sockets.release()
        dropped = self._sockets.given_up(handle.listeners)
        handle.post(mailbox.Drain(action.reason, action.grace, action.final, dropped))

    def discard(self, action: do.Discard) -> None:
        """The signal ends a booting worker; a serving worker ignores it and obeys the mail."""
        handle = self._workers.get(action.number)
        if handle is not None:
            handle.draining = True
            handle.post(mailbox.Drain("discarded", action.grace, action.final))
            self._signal(action.number, signal.SIGTERM)

    def quit(self, action: do.Quit) -> None:
        """Make a worker end soon, by mail if it can't be signalled."""
        if not self._signal(action.number, signal.SIGQUIT):
            self._workers.tell([action.number], mailbox.Drain("SIGQUIT", 0.0, final=False))

    def dump_stack(self, action: do.DumpStack) -> None:
        """Make a stuck worker write its stacks."""
        self._signal(action.number, DUMP_SIGNAL)

    def ask_where(self, action: do.AskWhere) -> None:
        """Make a worker whose boot takes long write its stacks."""
        handle = self._workers.get(action.number)
        if handle is not None:
            handle.ask_for_stack()

    def report_boot(self, action: do.ReportBoot) -> None:
        """Log what a long boot is waiting for."""
        handle = self._workers.get(action.number)
        if handle is not None:
            config, now = self._generations[handle.generation].config, time.monotonic()
            line = handle.progress.of_boot(config, action.seconds, handle.stack(), now)
            self._journal.about(handle, logging.INFO, line)

    def report_stop(self, action: do.ReportStop) -> None:
        """Log what a long stop is waiting for."""
        loads = list(map(self._workers.load, action.numbers))
        hint = "Ctrl-C again" if self._journal.on_terminal else "SIGQUIT"
        self._journal.info(waits.stopping(loads, "" if action.quick else hint))

    def abort(self, action: do.Abort) -> None:
        """Log the requests and stacks of a stuck worker, and end it."""
        handle = self._workers.get(action.number)
        if handle is not None:
            detail = self._workers.stuck_in(handle)
            self._journal.about(handle, logging.ERROR, "stacks of its threads:", detail)
            self._signal(action.number, signal.SIGABRT)

    def kill(self, action: do.Kill) -> None:
        """Kill a worker, or else close its mailbox: it then ends as if it had lost its arbiter."""
        handle = self._workers.get(action.number)
        if handle is not None and not self._signal(action.number, signal.SIGKILL):
            self._children.dismiss(handle)

    def show_failure(self, action: do.ShowFailure) -> None:
        """Make workers show why a reload has failed."""
        self._workers.tell(action.numbers, mailbox.ReloadFailed(action.reason, action.detail))

    def reopen_logs(self, action: do.ReopenLogs) -> None:
        """Reopen the log files, and send the new descriptors to workers."""
        files, errors = self._generations.files.reopen()
        reopen_handlers()
        for error in errors:
            self._journal.error(error)
        news = mailbox.NewLogFiles([file.path for file in files], [file.fd for file in files])
        self._workers.tell(action.numbers, news)
        self._journal.info("log files reopened")

    def _signal(self, number: int, signum: int) -> bool:
        """Send a worker a signal; False if that isn't possible.

        If the kernel doesn't permit it, this is logged once.
        """
        handle = self._workers.get(number)
        if handle is None:
            return True
        try:
            return handle.signal(signum)
        except PermissionError as error:
            if not handle.is_beyond_reach:
                handle.is_beyond_reach = True
                event = f"can't be sent {signal.Signals(signum).name}: {error.strerror}; "
                event += privileges.WHAT_SIGNALS_NEED
                self._journal.about(handle, logging.ERROR, event)
            return False

    PERFORM: ClassVar[dict[type[do.Action], Callable[..., on.Event | None]]] = {
        do.Spawn: spawn,
        do.Drain: drain,
        do.Discard: discard,
        do.Quit: quit,
        do.DumpStack: dump_stack,
        do.AskWhere: ask_where,
        do.ReportBoot: report_boot,
        do.ReportStop: report_stop,
        do.Abort: abort,
        do.Kill: kill,
        do.ShowFailure: show_failure,
        do.ReopenLogs: reopen_logs,
    }
