"""Logs what a server is waiting for while that takes long: `esg.Server` has no arbiter to do so."""

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
        """From now on something is waited for, and this says in words what."""
        self.end()
        self._timer = self._loop.call_later(waits.FIRST_WAIT, self._remind, describe)

    def end(self) -> None:
        """Nothing is waited for any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _remind(self, describe: Callable[[], str]) -> None:
        self._timer = self._loop.call_later(waits.INTERVAL, self._remind, describe)
        self._log(describe())
