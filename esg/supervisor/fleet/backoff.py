"""When to start a worker after another one failed: immediately, then after growing delays.

It never gives up.
"""

from __future__ import annotations

FIRST_DELAY = 0.5
LONGEST_DELAY = 30.0
STABLE_TIME = 60.0


class Backoff:
    """Delays of 0, 0.5, 1, 2 ... 30 seconds; after a minute without failures they begin at 0."""

    __slots__ = ("_failures", "retry_at")

    def __init__(self) -> None:
        self._failures = 0
        self.retry_at = 0.0

    def failed(self, now: float) -> float:
        """Note a failure; returns the seconds to wait before the next start.

        Failures during a delay count together with the failure that caused the delay: four workers
        that are killed together are one failure, not four.
        """
        if now < self.retry_at:
            return self.retry_at - now
        if now - self.retry_at >= STABLE_TIME:
            self._failures = 0
        self._failures += 1
        delay = 0.0
        if self._failures > 1:
            doublings = min(self._failures - 2, 10)
            delay = min(FIRST_DELAY * 2**doublings, LONGEST_DELAY)
        self.retry_at = now + delay
        return delay

    def allows(self, now: float) -> bool:
        """Whether a worker may be started now."""
        return now >= self.retry_at
