"""The listening sockets of each generation, by its number.

A generation shares the sockets of earlier generations that have the same binds. A new bind is
opened before the generation's first worker boots; if it fails, the reload is refused. A socket that
was given up is never used again, because its draining workers refuse new connections on it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from esg.errors import ESGError
from esg.mailbox import NewListener
from esg.net.binds import parse_bind
from esg.net.listeners import Handed, Listener
from esg.net.opening import open_listeners
from esg.net.unixsocket import access
from esg.seldom import Seldom
from esg.settings.schema import Config
from esg.supervisor.child import WorkerHandle
from esg.supervisor.fdstore import Store, is_stored
from esg.supervisor.systemd import Notifier


@dataclass(slots=True)
class _Opened:
    """The listeners of one generation."""

    config: Config
    listeners: Sequence[Listener]
    retired: bool = False
    """Whether they are only needed until the last worker that accepts on them drains."""


class Sockets:
    """The arbiter's listeners, by generation."""

    def __init__(
        self,
        notifier: Notifier,
        log: Callable[[str], None],
        workers: Callable[[], Iterable[WorkerHandle]],
        log_error: Callable[[str], None] | None = None,
    ) -> None:
        """`notifier` stores copies of the sockets for a crash. `log` logs a line for the operator.

        `workers` returns the workers that may have listeners open. `log_error` logs faults; by
        default, `log` does.
        """
        self._log = log
        self._log_error = log_error or log
        self._complaints: dict[Listener, Seldom] = {}
        self._workers = workers
        self._store = Store(notifier)
        self._handed: Sequence[Handed] = ()
        self._opened: dict[int, _Opened] = {}

    def begin(self, number: int, config: Config, handed: Sequence[Handed]) -> list[str]:
        """Listen for the first generation, also on sockets that the service manager handed over.

        Sockets that no bind claims are closed; their names are returned for a warning. Raises the
        same errors as `open`.
        """
        stored = [item for item in handed if is_stored(item)]
        self._handed = [item for item in handed if item not in stored]
        binds = [parse_bind(bind, config.binds_origin) for bind in self._binds(config)]
        kept = self._store.take_back(stored, binds)
        try:
            listeners = self._open(number, config, kept, at_start=True)
        except BaseException:
            for listener in kept:
                listener.close()  # the service manager keeps its copy for the next start
            raise
        used = {listener.borrowed for listener in listeners}
        unused = [item for item in self._handed if item.fd not in used]
        for item in unused:
            os.close(item.fd)
        return [f"{item.name} (fd://{item.fd})" for item in unused]

    def open(self, number: int, config: Config) -> Sequence[Listener]:
        """Listen for a generation with this configuration.

        Raises ListenError or ConfigError; nothing has changed then.
        """
        self.look_after()
        return self._open(number, config, self._all(), at_start=False)

    def of(self, number: int) -> Sequence[Listener]:
        """The listeners of a generation."""
        return self._opened[number].listeners

    def retire(self, number: int) -> None:
        """Note that a generation gets no more workers. It may have no listeners."""
        if number in self._opened:
            self._opened[number].retired = True
            self.release()

    def release(self) -> None:
        """Close the listeners of retired generations on which no worker accepts any more."""
        accepting = {worker.generation for worker in self._workers() if worker.accepts}
        before = self._opened
        self._opened = {
            number: opened
            for number, opened in before.items()
            if not opened.retired or number in accepting
        }
        held = self._all()
        given_up = {
            listener: opened.config
            for opened in before.values()
            for listener in opened.listeners
            if listener not in held
        }
        for listener, config in given_up.items():
            self._log(f"no longer listening on {listener.url(config.scheme)}")
            self._close(listener)

    def look_after(self) -> None:
        """Repair listeners that a process sharing them broke, for instance a faulty application.

        A listener that can't be repaired gets a new socket, which is sent to the workers that have
        the old one.
        """
        configs = {
            one: opened.config for opened in self._opened.values() for one in opened.listeners
        }
        for listener, config in configs.items():
            fault = listener.fault
            if fault:
                self._complain(listener, config, f"{fault}; {self._mend(listener, config)}")

    def _mend(self, listener: Listener, config: Config) -> str:
        """Make a listener accept connections again; returns what was done, for the log."""
        if listener.repair(config.backlog):
            return "listening again"
        try:
            listener.reopen(access(config), config.backlog)
        except (OSError, ESGError) as error:
            return f"can't listen again: {error}; restart ESG"
        self._store.remove(listener)
        self._store.put(listener)
        untold = ""
        for worker in self._workers():
            if any(one is listener for one in worker.listeners) and not worker.reaped:
                try:
                    worker.post(NewListener(listener.url(), [listener.fileno()]))
                except OSError as error:  # the others need it, too
                    untold += f"; worker={worker.number} can't be sent it: {error}"
        return f"listening again with a new socket{untold}"

    def _complain(self, listener: Listener, config: Config, text: str) -> None:
        complaints = self._complaints.setdefault(listener, Seldom())
        more = complaints.now(time.monotonic())
        if more is not None:
            count = f" ({more} more times before)" if more else ""
            self._log_error(f"{listener.url(config.scheme)}: {text}{count}")

    def given_up(self, listeners: Sequence[Listener]) -> list[str]:
        """The addresses of those listeners that were given up."""
        held = self._all()
        return [listener.url() for listener in listeners if listener not in held]

    def let_go(self, kept: Sequence[Listener]) -> None:
        """In a forked child: close its copies of all listeners except the `kept` ones."""
        for listener in self._all():
            if listener not in kept:
                listener.close()

    def close(self) -> None:
        """Close all listeners."""
        for listener in self._all():
            self._close(listener)
        self._opened = {}

    def _open(
        self, number: int, config: Config, kept: Sequence[Listener], *, at_start: bool
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
        self._opened[number] = _Opened(config, listeners)
        for listener in listeners:
            if listener not in before:
                self._log(f"listening on {listener.url(config.scheme)}")
                self._store.put(listener)
        return listeners

    def _leaving(self) -> list[tuple[str, Listener]]:
        """The listeners that were given up, each with a worker that may still have it open."""
        held = self._all()
        return [
            (f"worker {worker.number} (pid {worker.pid})", listener)
            for worker in self._workers()
            for listener in worker.listeners
            if not worker.reaped and listener not in held
        ]

    def _binds(self, config: Config) -> tuple[str, ...]:
        if config.has_explicit_address or not self._handed:
            return config.binds
        return tuple(f"fd://{item.fd}" for item in self._handed)

    def _all(self) -> list[Listener]:
        found = (listener for opened in self._opened.values() for listener in opened.listeners)
        return list(dict.fromkeys(found))

    def _close(self, listener: Listener) -> None:
        self._complaints.pop(listener, None)
        self._store.remove(listener)
        listener.remove()
