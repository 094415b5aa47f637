"""Logs what a server is waiting for if that takes long; for `esg.Server`, which has no arbiter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from esg import waits


class Reminder:
    """Logs a line after `FIRST_WAIT` seconds, and again every `INTERVAL` seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, log: Callable[[str], None]) -> None:
        self._loop = loop
        self._log = log
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, describe: Callable[[], str]) -> None:
        """Begin to remind; the function returns the text of the line."""
        self.end()
        self._timer = self._loop.call_later(waits.FIRST_WAIT, self._remind, describe)

    def end(self) -> None:
        """End the reminders."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _remind(self, describe: Callable[[], str]) -> None:
        self._timer = self._loop.call_later(waits.INTERVAL, self._remind, describe)
        self._log(describe())
