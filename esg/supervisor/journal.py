"""The arbiter's lines in the log: about itself, its workers and its settings."""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Callable

from esg import mailbox
from esg.introduction import introduction
from esg.log.records import Subject, arbiter_subject, log_event, worker_subject
from esg.seldom import Seldom
from esg.settings.schema import Config
from esg.supervisor import privileges
from esg.supervisor.child import WorkerHandle
from esg.supervisor.generations import Generation


class Journal:
    """Writes the arbiter's lines, and remembers those that are written only once."""

    def __init__(self, current: Callable[[], Generation]) -> None:
        """`current` returns the generation that serves."""
        self._current = current
        self._warned: set[str] = set()
        self._introduced = False
        self._no_lifespan = 0
        """The newest generation for which the log says that the application has no lifespan."""
        self._failures: dict[tuple[type[Exception], str, int], Seldom] = {}

    @property
    def subject(self) -> Subject:
        """The arbiter's subject in the log."""
        return arbiter_subject(self._current().number, os.getpid())

    @property
    def on_terminal(self) -> bool:
        """Whether the error log is a terminal."""
        logs = self._current().logs
        return logs is not None and os.isatty(logs.error.fd)

    def log(self, level: int, text: str) -> None:
        """Write a line about the arbiter."""
        log_event(level, self.subject, text)

    def info(self, text: str) -> None:
        """Write a line about the arbiter, at level INFO."""
        self.log(logging.INFO, text)

    def error(self, text: str) -> None:
        """Write a line about the arbiter, at level ERROR."""
        self.log(logging.ERROR, text)

    def about(self, handle: WorkerHandle | None, level: int, text: str, detail: str = "") -> None:
        """Write a line about a worker; about the arbiter if the worker is gone."""
        subject = self.subject
        if handle is not None:
            subject = worker_subject(handle.number, handle.generation, handle.pid or 0)
        log_event(level, subject, text, detail)

    def warn_once(self, text: str, about: str = "") -> None:
        """Write a warning, unless it is empty, or one with this text or topic was written
        before."""
        if text and (about or text) not in self._warned:
            self._warned.add(about or text)
            self.log(logging.WARNING, text)

    def notices(self, config: Config, before: Config | None = None) -> None:
        """Write the notices about these settings that weren't written for the settings `before`."""
        said = [*before.notices(), *privileges.notices(before)] if before is not None else []
        for level, text in [*config.notices(), *privileges.notices(config)]:
            if (level, text) not in said:
                self.log(logging.getLevelNamesMapping()[level.upper()], text)

    def introduce(self, message: mailbox.Serves) -> None:
        """Write what is served, and with what, once the first worker has reported it."""
        if not self._introduced:
            self._introduced = True
            config = self._current().config
            self.info(introduction(config, message, on_terminal=self.on_terminal))

    def no_lifespan(self, handle: WorkerHandle, message: mailbox.NoLifespan) -> None:
        """Write that the application has no lifespan, for the first worker of a generation."""
        if handle.generation > self._no_lifespan:
            self._no_lifespan = handle.generation
            self.about(handle, logging.INFO if message.usual else logging.WARNING, message.line)

    def untrusted(self, handle: WorkerHandle, message: mailbox.UntrustedPeer) -> None:
        """Warn of an untrusted peer, once for each setting of the trusted peers.

        Reports by workers of other generations are ignored, because their settings may differ.
        """
        current = self._current()
        if handle.generation == current.number:
            self.warn_once(message.line, f"peers other than {current.config.forwarded_allow_ips}")

    def unexpected(self, error: Exception) -> None:
        """Write an uncaught error, but errors of the same type and place at most once a minute."""
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        place = (type(error), frame.f_code.co_filename, line)
        more = self._failures.setdefault(place, Seldom()).now(time.monotonic())
        if more is None:
            return
        before = f" ({more} more like it before)" if more else ""
        event = f"unexpected error, the arbiter goes on: {error!r}{before}"
        detail = "".join(traceback.format_exception(error)).rstrip()
        log_event(logging.CRITICAL, self.subject, event, detail)
