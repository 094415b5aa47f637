"""Limits how often an event is logged that clients could cause at will."""

from __future__ import annotations

import math

COMPLAINT_INTERVAL = 60.0
"""Seconds between two log lines about the same kind of failure."""


class Seldom:
    """Allows one event per interval and counts those it suppressed. Pure."""

    __slots__ = ("_interval", "_last", "suppressed")

    def __init__(self, interval: float = COMPLAINT_INTERVAL) -> None:
        """`interval` is the shortest time between two allowed events, in seconds."""
        self._interval = interval
        self._last = -math.inf
        self.suppressed = 0
        """Events that were suppressed since the last one that was allowed."""

    def now(self, time: float) -> int | None:
        """None to stay silent; otherwise how many were suppressed since the last one."""
        if time - self._last < self._interval:
            self.suppressed += 1
            return None
        self._last, suppressed, self.suppressed = time, self.suppressed, 0
        return suppressed
