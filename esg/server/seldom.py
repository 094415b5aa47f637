"""How often something may be said that others can cause at will."""

from __future__ import annotations

import math

COMPLAINT_INTERVAL = 60.0
"""Seconds between two lines in the log about the same kind of failure."""


class Seldom:
    """Says yes once in an interval, and counts the rest. Pure."""

    __slots__ = ("_interval", "_last", "_suppressed")

    def __init__(self, interval: float = COMPLAINT_INTERVAL) -> None:
        """`interval` is that between two times, in seconds."""
        self._interval = interval
        self._last = -math.inf
        self._suppressed = 0

    def now(self, time: float) -> int | None:
        """None if it shan't be said at this time; else how often it wasn't since it last was."""
        if time - self._last < self._interval:
            self._suppressed += 1
            return None
        self._last, suppressed, self._suppressed = time, self._suppressed, 0
        return suppressed
