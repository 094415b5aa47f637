"""When to log what a boot or a stop is waiting for: after 2 seconds, then every 5. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from esg.frozen import frozen
from esg.supervisor.fleet import actions as do
from esg.waits import FIRST_WAIT, INTERVAL

STACK_TIME = 0.2
"""Seconds that a booting worker has to write its stacks before the arbiter reads them."""


@frozen
class Booting:
    """A worker that isn't ready yet, and when it was forked."""

    number: int
    since: float


class Waiting:
    """What ESG is waiting for at the moment, and when the next report is due."""

    def __init__(self) -> None:
        self.next_look: float | None = None
        """The time by which `look` has to be called again."""
        self._stop_seen: float | None = None
        self._reported = 0.0
        self._asked: Booting | None = None

    def look(
        self, booting: Iterable[Booting], stopping: Iterable[int], now: float, *, quick: bool
    ) -> list[do.Action]:
        """The actions that are due at `now`.

        `stopping` are the workers that a stop is waiting for. If there are none, the booting
        workers are reported. `quick`: the stop can't be hurried any more.
        """
        self.next_look = None
        numbers = tuple(sorted(stopping))
        if numbers:
            return self._look_at_stop(numbers, now, quick=quick)
        self._stop_seen = None
        oldest = min(booting, key=lambda worker: worker.since, default=None)
        return self._look_at_boot(oldest, now) if oldest is not None else []

    def _look_at_stop(
        self, numbers: tuple[int, ...], now: float, *, quick: bool
    ) -> list[do.Action]:
        self._asked = None
        if self._stop_seen is None:
            self._stop_seen = self._reported = now
            self.next_look = now + FIRST_WAIT
            return []
        first = self._reported == self._stop_seen
        self.next_look = self._reported + (FIRST_WAIT if first else INTERVAL)
        if now < self.next_look:
            return []
        self._reported = now
        self.next_look = now + INTERVAL
        return [do.ReportStop(numbers, quick)]

    def _look_at_boot(self, oldest: Booting, now: float) -> list[do.Action]:
        asked, self._asked = self._asked, None
        if asked == oldest and now >= self._reported + STACK_TIME:
            self.next_look = self._reported + INTERVAL
            return [do.ReportBoot(oldest.number, now - oldest.since)]
        if asked == oldest:
            self._asked, self.next_look = asked, self._reported + STACK_TIME
            return []
        due = max(oldest.since + FIRST_WAIT, self._reported + INTERVAL if self._reported else 0.0)
        if now < due:
            self.next_look = due
            return []
        self._asked, self._reported = oldest, now
        self.next_look = now + STACK_TIME
        return [do.AskWhere(oldest.number)]
