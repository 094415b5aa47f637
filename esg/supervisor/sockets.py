"""The listening sockets of each generation: opened when it is asked for, closed when none has them.

A generation keeps what the one before it listened on and it wants too; a bind that is new is
opened before anything else changes, so that one which fails refuses the reload.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

from esg.config import Config
from esg.listeners import Handed, Listener, open_listeners
from esg.supervisor.systemd import Notifier
from esg.unixsocket import access


class Sockets:
    """What the arbiter listens on, and for which generation."""

    def __init__(self, notifier: Notifier, log: Callable[[str], None]) -> None:
        """`notifier` keeps copies, for a crash; `log` takes what the operator should know."""
        self._handed: list[Handed] = []
        self._given: list[Handed] = []
        self._notifier = notifier
        self._log = log
        self._sets: list[tuple[Config, Sequence[Listener]]] = []

    def take_over(self, handed: Sequence[Handed]) -> None:
        """Have these, from the service manager, at hand for what is opened first."""
        self._handed = list(handed)
        self._given = [item for item in handed if not item.from_store]

    def of(self, config: Config) -> Sequence[Listener]:
        """What a generation with this configuration listens on; opened if it isn't yet.

        Raises ListenError or ConfigError; then all is as before.
        """
        for known, listeners in self._sets:
            if known is config:
                return listeners
        before = self._all()
        listeners = open_listeners(
            self._binds(config),
            config.backlog,
            config.binds_origin,
            access=access(config),
            handed=self._handed,
            kept=before,
        )
        self._sets.append((config, listeners))
        for listener in listeners:
            if listener not in before:
                self._log(f"listening on {listener.url(config.scheme)}")
                self._store(listener)
        return listeners

    def discard_unused(self) -> list[str]:
        """Close what was handed over and isn't listened on; gives the names, for a warning.

        What the store has under a name that nothing has any more is removed from there, and stored
        anew if it is listened on all the same.
        """
        used = {listener.borrowed for listener in self._all()}
        used |= {listener.fileno() for listener in self._all()}
        unused = [item for item in self._handed if item.fd not in used]
        for item in unused:
            os.close(item.fd)
        names = {listener.store_name for listener in self._all()}
        stored = {item.fd: item.name for item in self._handed if item.from_store}
        for name in sorted(set(stored.values()) - names):
            self._notifier.send("FDSTOREREMOVE=1", f"FDNAME={name}")
        for listener in self._all():
            if stored.get(listener.fileno()) not in (None, listener.store_name):
                listener.stored = False
                self._store(listener)
        self._handed = []
        return [f"{item.name} (fd://{item.fd})" for item in unused if not item.from_store]

    def keep_only(self, config: Config) -> None:
        """Close what other generations listen on and this one doesn't."""
        kept = self.of(config)
        dropped = [listener for listener in self._all() if listener not in kept]
        self._sets = [(config, kept)]
        for listener in dropped:
            self._log(f"no longer listening on {listener.url(config.scheme)}")
            self._close(listener)

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

    def _binds(self, config: Config) -> tuple[str, ...]:
        if config.says_where or not self._given:
            return config.binds
        return tuple(f"fd://{item.fd}" for item in self._given)

    def _all(self) -> list[Listener]:
        found = (listener for _, listeners in self._sets for listener in listeners)
        return list(dict.fromkeys(found))

    def _store(self, listener: Listener) -> None:
        if listener.borrowed is None and not listener.stored:
            listener.stored = self._notifier.send(
                "FDSTORE=1", f"FDNAME={listener.store_name}", fds=[listener.fileno()]
            )

    def _close(self, listener: Listener) -> None:
        if listener.stored:
            self._notifier.send("FDSTOREREMOVE=1", f"FDNAME={listener.store_name}")
        listener.remove()


def only_in(listeners: Sequence[Listener], others: Iterable[Sequence[Listener]]) -> list[str]:
    """The binds of those listeners that none of the others has. Pure."""
    kept = {listener for other in others for listener in other}
    return [str(listener.bind) for listener in listeners if listener not in kept]
