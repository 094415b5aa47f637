"""Shares the turns of the event loop between connections that have a lot of work.

One read from one connection can bring so much work (tiny frames, chunks, records) that all other
connections would have to wait. So a connection handles a bounded part of the work, and puts the
rest off to a later turn; nothing is read from it until then. A worker spends about `SHARE` seconds
of a turn on work that was put off, however many connections have some; they take turns.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context

SHARE = 0.004
"""Seconds of a turn that are spent on this work. A part that has begun is always finished."""

PART = 0.001
"""Seconds of a turn that one connection should use at most."""

SMALL = 512
"""Reads of up to this many bytes are never put off, because they can't be much work."""

WORTH_COUNTING = 0.0002
"""Seconds of work below which it isn't counted, because counting has a cost of its own."""


class Turns:
    """Shares the turns of one worker's event loop."""

    __slots__ = ("_context", "_due", "_loop", "_scheduled", "_spent", "clock", "full")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`context` is the context in which work that was put off runs."""
        self._loop = loop
        self._context = context
        self.clock = clock
        self._due: deque[Callable[[], None]] = deque()
        self._scheduled = False
        self._spent = 0.0
        self.full = False
        """Whether this turn's share is used up. If so, put off all reads larger than `SMALL`."""

    def spend(self, seconds: float) -> None:
        """Count work that was done in this turn."""
        if seconds < WORTH_COUNTING:
            return
        self._spent += seconds
        self.full = self._spent >= SHARE
        self._schedule()

    def put_off(self, go_on: Callable[[], None]) -> None:
        """Call `go_on` once, in a later turn, after everything that was put off before."""
        self._due.append(go_on)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._run, context=self._context)

    def _run(self) -> None:
        self._scheduled = False
        self._spent, self.full = 0.0, False
        due = self._due
        if not due:
            return
        begun = self.clock()
        try:
            for _ in range(len(due)):
                due.popleft()()
                if self.clock() - begun >= SHARE:
                    break
        finally:
            self._spent = 0.0  # the callbacks may have counted their own part as well
            self.spend(self.clock() - begun)
            if due:
                self._schedule()
