"""The net under the arbiter's loop: what raises there is logged, and the loop goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

FAILURE_PAUSE = 0.1
"""Seconds between two turns of the loop when something raised in the first."""

_T = TypeVar("_T")


class Net:
    """Calls functions, and catches what they raise once it is spread."""

    def __init__(self, report: Callable[[Exception], None]) -> None:
        """`report` is given each error that was caught."""
        self._report = report
        self._spread = False
        self._caught = False
        """Whether something raised in this turn of the loop."""

    def spread(self) -> None:
        """From now on workers serve, and they need an arbiter more than any one thing it does."""
        self._spread = True

    def attempt(self, function: Callable[..., _T], *arguments: object) -> _T | None:
        """Call a function. Once the net is spread, errors are reported, and None is returned."""
        try:
            return function(*arguments)
        except Exception as error:
            if not self._spread:
                raise
            self._caught = True
            self._report(error)
            return None

    def pause(self) -> None:
        """Wait a moment if something raised, since it may raise again in the next turn."""
        if self._caught:
            self._caught = False
            time.sleep(FAILURE_PAUSE)
