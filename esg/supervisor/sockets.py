"""The listening sockets of each generation: opened when it is asked for, closed when none has them.

A generation keeps what the one before it listened on and it wants too; a bind that is new is
opened before anything else changes, so that one which fails refuses the reload. What is given up
is never taken up again, since workers on their way out keep new connections from it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence

from esg.errors import ESGError
from esg.mailbox import NewListener
from esg.net.binds import parse_bind
from esg.net.listeners import Handed, Listener, open_listeners
from esg.net.unixsocket import access
from esg.seldom import Seldom
from esg.settings.schema import Config
from esg.supervisor.fdstore import Store, is_stored
from esg.supervisor.processes import WorkerHandle
from esg.supervisor.systemd import Notifier


class Sockets:
    """What the arbiter listens on, and for which generation."""

    def __init__(
        self,
        notifier: Notifier,
        log: Callable[[str], None],
        workers: Callable[[], Iterable[WorkerHandle]],
        log_error: Callable[[str], None] | None = None,
    ) -> None:
        """`notifier` keeps copies, for a crash; `log` takes what the operator should know.

        `workers` gives those that may have listeners open; `log_error` takes faults, by default
        `log` does.
        """
        self._log = log
        self._log_error = log_error or log
        self._complaints: dict[Listener, Seldom] = {}
        self._workers = workers
        self._store = Store(notifier)
        self._handed: Sequence[Handed] = ()
        self._sets: list[tuple[Config, Sequence[Listener]]] = []

    def begin(self, config: Config, handed: Sequence[Handed]) -> list[str]:
        """Listen for the first generation, also on what the service manager has handed over.

        What it doesn't listen on is closed; gives the names of that, for a warning. Raises as `of`.
        """
        stored = [item for item in handed if is_stored(item)]
        self._handed = [item for item in handed if item not in stored]
        binds = [parse_bind(bind, config.binds_origin) for bind in self._binds(config)]
        kept = self._store.take_back(stored, binds)
        try:
            listeners = self._open(config, kept, at_start=True)
        except BaseException:
            for listener in kept:
                listener.close()  # the service manager keeps it for the next try
            raise
        used = {listener.borrowed for listener in listeners}
        unused = [item for item in self._handed if item.fd not in used]
        for item in unused:
            os.close(item.fd)
        return [f"{item.name} (fd://{item.fd})" for item in unused]

    def of(self, config: Config) -> Sequence[Listener]:
        """What a generation with this configuration listens on; opened if it isn't yet.

        Raises ListenError or ConfigError; then all is as before.
        """
        self.look_after()
        for known, listeners in self._sets:
            if known is config:
                return listeners
        return self._open(config, self._all(), at_start=False)

    def keep(self, wanted: Sequence[Config]) -> None:
        """Give up what neither these configurations nor a worker that accepts listens on."""
        in_use = [worker.listeners for worker in self._workers() if worker.accepts]
        before = self._sets
        self._sets = [
            (config, listeners)
            for config, listeners in before
            if any(config is one for one in wanted) or any(listeners is one for one in in_use)
        ]
        held = self._all()
        given_up = {one: config for config, ones in before for one in ones if one not in held}
        for listener, config in given_up.items():
            self._log(f"no longer listening on {listener.url(config.scheme)}")
            self._close(listener)

    def look_after(self) -> None:
        """Repair listeners that a process sharing them broke, for instance a faulty application.

        A listener that can't be repaired gets a new socket, which is sent to the workers that have
        the old one.
        """
        backlogs = {one: config for config, ones in self._sets for one in ones}
        for listener, config in backlogs.items():
            fault = listener.fault
            if fault:
                self._complain(listener, config, f"{fault}; {self._mend(listener, config)}")

    def _mend(self, listener: Listener, config: Config) -> str:
        """Have it take connections again; returns what was done, for the log."""
        if listener.repair(config.backlog):
            return "listening again"
        try:
            listener.reopen(access(config), config.backlog)
        except (OSError, ESGError) as error:
            return f"can't listen again: {error}; restart ESG"
        self._store.remove(listener)
        self._store.put(listener)
        for worker in self._workers():
            if any(one is listener for one in worker.listeners) and not worker.reaped:
                worker.post(NewListener(listener.url(), [listener.fileno()]))
        return "listening again with a new socket"

    def _complain(self, listener: Listener, config: Config, text: str) -> None:
        complaints = self._complaints.setdefault(listener, Seldom())
        more = complaints.now(time.monotonic())
        if more is not None:
            count = f" ({more} more times before)" if more else ""
            self._log_error(f"{listener.url(config.scheme)}: {text}{count}")

    def given_up(self, listeners: Sequence[Listener]) -> list[str]:
        """The addresses of those on which nobody else listens by now."""
        held = self._all()
        return [listener.url() for listener in listeners if listener not in held]

    def let_go(self, kept: Sequence[Listener]) -> None:
        """Close this process's descriptors of all but these; for a child, which has copies."""
        for listener in self._all():
            if listener not in kept:
                listener.close()

    def close(self) -> None:
        """Close all for good."""
        for listener in self._all():
            self._close(listener)
        self._sets = []

    def _open(
        self, config: Config, kept: Sequence[Listener], *, at_start: bool
    ) -> Sequence[Listener]:
        listeners = open_listeners(
            self._binds(config),
            config.backlog,
            config.binds_origin,
            access=access(config),
            handed=self._handed,
            kept=kept,
            leaving=self._leaving(),
            at_start=at_start,
        )
        before = self._all()
        self._sets.append((config, listeners))
        for listener in listeners:
            if listener not in before:
                self._log(f"listening on {listener.url(config.scheme)}")
                self._store.put(listener)
        return listeners

    def _leaving(self) -> list[tuple[str, Listener]]:
        """What was given up, with who may have it still."""
        held = self._all()
        return [
            (f"worker {worker.number} (pid {worker.pid})", listener)
            for worker in self._workers()
            for listener in worker.listeners
            if not worker.reaped and listener not in held
        ]

    def _binds(self, config: Config) -> tuple[str, ...]:
        if config.says_where or not self._handed:
            return config.binds
        return tuple(f"fd://{item.fd}" for item in self._handed)

    def _all(self) -> list[Listener]:
        found = (listener for _, listeners in self._sets for listener in listeners)
        return list(dict.fromkeys(found))

    def _close(self, listener: Listener) -> None:
        self._complaints.pop(listener, None)
        self._store.remove(listener)
        listener.remove()
