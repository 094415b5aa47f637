"""A safety net for the arbiter's loop: exceptions are logged, and the loop continues."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

FAILURE_PAUSE = 0.1
"""Seconds between two turns of the loop after an exception in the first one."""

_T = TypeVar("_T")


class Net:
    """Calls functions. Once the net is spread, it catches their exceptions."""

    def __init__(self, report: Callable[[Exception], None]) -> None:
        """`report` is called with each caught exception."""
        self._report = report
        self._spread = False
        self._caught = False
        """Whether there was an exception in this turn of the loop."""

    def spread(self) -> None:
        """Catch exceptions from now on: workers serve, and need an arbiter more than any single
        action."""
        self._spread = True

    def attempt(self, function: Callable[..., _T], *arguments: object) -> _T | None:
        """Call a function.

        Once the net is spread, exceptions are reported, and None is returned.
        """
        try:
            return function(*arguments)
        except Exception as error:
            if not self._spread:
                raise
            self._caught = True
            self._report(error)
            return None

    def pause(self) -> None:
        """Wait a moment after an exception, because it may be raised again in the next turn."""
        if self._caught:
            self._caught = False
            time.sleep(FAILURE_PAUSE)
