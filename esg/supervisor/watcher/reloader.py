"""Keeps a watcher running while the settings ask for one, and passes on its reports."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from setproctitle import setproctitle

from esg import mailbox
from esg.mailbox import Mailbox
from esg.settings.schema import Config
from esg.supervisor.child import Child
from esg.supervisor.children import Children, Duties
from esg.supervisor.fleet.backoff import Backoff
from esg.supervisor.watcher import watch as watcher


class Watcher(Child):
    """The process that looks for changed files."""

    kind = "watcher"


class Reloader:
    """The arbiter's side of `--reload`. It only waits for a child that it has killed."""

    def __init__(
        self,
        children: Children,
        log: Callable[[int, str], None],
        on_change: Callable[[], None],
    ) -> None:
        """`on_change` is called when files have changed; `log` writes a line about the arbiter."""
        self._children = children
        self._log = log
        self._on_change = on_change
        self._config: Config | None = None
        self._watcher: Watcher | None = None
        self._started = 0
        """How many watchers were started; the number of the newest."""
        self._reason = ""
        self._backoff = Backoff()
        self._since = watcher.stamp()

    def code_is_read(self) -> None:
        """Note that a reload begins to read the code now, so it may miss later changes."""
        self._since = watcher.stamp()

    def follow(self, config: Config) -> None:
        """Watch the files of these settings from now on, or nothing."""
        before = self._config
        self._config = config if config.reload else None
        if self._watcher is not None and (before is None or _watched(before) != _watched(config)):
            self._dismiss()
        self.tick(time.monotonic())

    def stop(self) -> None:
        """Stop watching."""
        self._config = None
        self._dismiss()

    def next_deadline(self) -> float | None:
        """The time by which `tick` has to be called, in monotonic seconds; None for any time."""
        wanting = self._config is not None and self._watcher is None
        return self._backoff.retry_at if wanting else None

    def tick(self, now: float) -> None:
        """Start a watcher if one is wanted and the delay after a failure is over."""
        if self._config is None or self._watcher is not None or not self._backoff.allows(now):
            return
        try:
            self._watcher = self._start(self._config)
        except OSError as error:
            self._failed(f"can't be started: {error}")

    def close(self) -> None:
        """Kill and reap all watchers."""
        self._config = self._watcher = None
        self._children.end(Watcher)

    def _start(self, config: Config) -> Watcher:
        """Start a watcher. Raises OSError, with nothing left open, if there is no room for one."""
        self._started += 1
        ours, theirs = mailbox.pair()
        ours.sender = "the watcher"
        child = Watcher(self._started, ours)
        duties = Duties(mailbox.FromWatcher, self._on_mail, self._on_end)
        self._children.start(child, theirs, lambda: _run(config, theirs, self._since), duties)
        return child

    def _dismiss(self) -> None:
        """Stop the watcher without waiting for its end."""
        child, self._watcher = self._watcher, None
        if child is not None:
            self._children.dismiss(child)
            child.signal(signal.SIGKILL)

    def _on_end(self, child: Watcher, status: int | None) -> None:
        if child is self._watcher:  # otherwise it was dismissed
            self._watcher = None
            self._failed(self._reason or child.describe(status))
            self._reason = ""

    def _failed(self, reason: str) -> None:
        if self._config is None:
            return
        delay = self._backoff.failed(time.monotonic())
        then = f"in {delay:.1f} s" if delay else "at once"
        self._log(logging.ERROR, f"the watcher of --reload ended, next start {then}: {reason}")

    def _on_mail(self, child: Watcher, messages: Sequence[Any]) -> None:
        changed = False
        for message in messages:
            match message:
                case mailbox.Watching():
                    self._log(logging.INFO, f"watching {message.what}")
                case mailbox.Changed():
                    self._log(logging.INFO, f"changed: {message.what}")
                    changed = True
                case mailbox.CantWatch():
                    self._reason = message.reason
        if changed:
            self._on_change()


def _watched(config: Config) -> tuple[object, ...]:
    """The settings that a watcher depends on."""
    return (
        config.reload,
        config.reload_dir,
        config.reload_include,
        config.reload_exclude,
        config.reload_delay,
        config.reload_engine,
        config.app_dir,
        config.folder,
        config.real_folder,
        config.files,
    )


def _run(config: Config, post: Mailbox, since: int) -> int:
    setproctitle(f"esg: watcher [{config.title}]")
    return watcher.run(config, post, since)
