"""Keeps a watcher running while the settings ask for one, and passes on what it tells."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import time
from collections.abc import Callable

from setproctitle import setproctitle

from esg import mailbox
from esg.mailbox import Mailbox
from esg.settings.schema import Config
from esg.supervisor.fleet.backoff import Backoff
from esg.supervisor.processes import WorkerHandle, fork
from esg.supervisor.watcher import watch as watcher


class Reloader:
    """The arbiter's side of `--reload`. Never waits, but for a child that it has killed."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        log: Callable[[int, str], None],
        on_change: Callable[[], None],
    ) -> None:
        """`on_change` is called when files have changed; `log` writes a line about the arbiter."""
        self._selector = selector
        self._log = log
        self._on_change = on_change
        self._config: Config | None = None
        self._handle: WorkerHandle | None = None
        self._leaving: list[WorkerHandle] = []
        self._reason = ""
        self._backoff = Backoff()
        self._since = watcher.stamp()

    def code_is_read(self) -> None:
        """From now on the newest code is read: what changes later may not be in what serves."""
        self._since = watcher.stamp()

    def follow(self, config: Config) -> None:
        """Watch what these settings say from now on, or nothing."""
        before = self._config
        self._config = config if config.reload else None
        if self._handle is not None and (before is None or _watched(before) != _watched(config)):
            self._dismiss()
        self.tick(time.monotonic())

    def stop(self) -> None:
        """Watch no more."""
        self._config = None
        self._dismiss()

    def next_deadline(self) -> float | None:
        """When `tick` wants to be called, if at all; monotonic seconds."""
        wanting = self._config is not None and self._handle is None
        return self._backoff.retry_at if wanting else None

    def tick(self, now: float) -> None:
        """Start a watcher if one is wanted, and may be started by now."""
        if self._config is None or self._handle is not None or not self._backoff.allows(now):
            return
        try:
            self._handle = self._started(self._config)
        except OSError as error:
            self._failed(f"can't be started: {error}")
            return
        handle = self._handle
        self._selector.register(handle.mailbox, selectors.EVENT_READ, lambda: self._on_mail(handle))

    def reaped(self, pid: int, status: int) -> None:
        """Take note of the end of a child, whichever it was."""
        handle = self._handle
        if handle is not None and handle.pid == pid:
            handle.reaped = True
            self._on_mail(handle)  # its last words
            self._dismiss()
            self._failed(self._reason or handle.describe(status))
            self._reason = ""
        self._leaving = [h for h in self._leaving if h.pid != pid]

    def let_go(self) -> None:
        """In another child: close what is the arbiter's."""
        for handle in (*self._leaving, *filter(None, (self._handle,))):
            handle.close()

    def close(self) -> None:
        """End: no watcher is left, and none is a zombie."""
        self.stop()
        for handle in self._leaving:
            os.waitpid(handle.pid, 0)
        self._leaving = []

    def _started(self, config: Config) -> WorkerHandle:
        handle, theirs = WorkerHandle.open(0, 0)
        try:
            handle.pid = fork(lambda: _run(config, theirs, self._since))
        except OSError:
            handle.close()
            raise
        finally:
            theirs.close()
        return handle

    def _dismiss(self) -> None:
        """Let the watcher go; it has nothing to finish."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        self._unregister(handle)
        handle.close()
        if not handle.reaped:
            handle.signal(signal.SIGKILL)
            self._leaving.append(handle)

    def _failed(self, reason: str) -> None:
        if self._config is None:
            return
        delay = self._backoff.failed(time.monotonic())
        then = f"in {delay:.1f} s" if delay else "at once"
        self._log(logging.ERROR, f"the watcher of --reload ended, next start {then}: {reason}")

    def _on_mail(self, handle: WorkerHandle) -> None:
        messages, alive = handle.mailbox.receive(mailbox.FromWatcher)
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
        if not alive:  # it has ended, and is reaped in a moment
            self._unregister(handle)
        if changed:
            self._on_change()

    def _unregister(self, handle: WorkerHandle) -> None:
        if handle.mailbox in [key.fileobj for key in self._selector.get_map().values()]:
            self._selector.unregister(handle.mailbox)


def _watched(config: Config) -> tuple[object, ...]:
    """What of the settings a watcher goes by."""
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
