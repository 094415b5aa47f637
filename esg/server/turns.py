"""Shares of the event loop's turns, for connections that have much to do.

One connection can bring so much work with one read (tiny frames, chunks, records) that all others
would wait for it. So a connection handles a bounded part of it, and puts the rest off to a later
turn; it isn't read meanwhile. A worker spends about `SHARE` seconds of a turn on work of this kind,
however many connections have some, and they take turns.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context

SHARE = 0.004
"""Seconds of a turn that are spent on such work; a part that has begun is finished."""

PART = 0.001
"""Seconds of a turn that one connection should take."""

SMALL = 512
"""Bytes that are never put off: they can't be much work."""

WORTH_COUNTING = 0.0002
"""Seconds of work that are worth a look at how much there was in this turn."""


class Turns:
    """The shares of one worker's loop."""

    __slots__ = ("_context", "_due", "_loop", "_scheduled", "_spent", "clock", "full")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`context` is that in which work is done that was put off."""
        self._loop = loop
        self._context = context
        self.clock = clock
        self._due: deque[Callable[[], None]] = deque()
        self._scheduled = False
        self._spent = 0.0
        self.full = False
        """Whether this turn's share is used up: what isn't small has to be put off."""

    def spend(self, seconds: float) -> None:
        """Count work that was done in this turn."""
        if seconds < WORTH_COUNTING:
            return
        self._spent += seconds
        self.full = self._spent >= SHARE
        self._schedule()

    def put_off(self, go_on: Callable[[], None]) -> None:
        """Have `go_on` called once, in a later turn, behind what others have put off."""
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
            self._spent = 0.0  # those that went on may have counted their part
            self.spend(self.clock() - begun)
            if due:
                self._schedule()
