"""A worker's reports about its boot and its requests, which are only for the log. Pure."""

from __future__ import annotations

import math

from esg import mailbox, stacktext, waits
from esg.log.records import visible
from esg.settings.schema import Config

MOST_SHOWN = 6
"""The most requests that the log names. A worker with ESG's own code names at most five."""

LONGEST_REQUEST = 160
"""The most characters of a request that the log shows."""

LONGEST_AGE = 1e9
"""The largest age of a request that is shown, in seconds. A worker may claim any."""

STANDSTILL = 2.0
"""Seconds without a heartbeat after which the event loop counts as standing still."""


class Progress:
    """How far the boot of a worker has come, and which requests it held when it got stuck."""

    def __init__(self) -> None:
        self._startup_began: float | None = None
        self._startup_place = ""
        self._boots = True
        self._held: tuple[mailbox.HeldRequests, float] | None = None

    def take(self, message: mailbox.InStartup | mailbox.HeldRequests, now: float) -> None:
        """Remember a report of the worker."""
        if isinstance(message, mailbox.HeldRequests):
            self._held = message, now
            return
        if self._startup_began is None:
            self._startup_began = now
        self._startup_place = message.place[-stacktext.LONGEST_PLACE :]

    def boot_is_over(self) -> None:
        """The worker is ready."""
        self._boots = False

    def of_boot(self, config: Config, since_fork: float, stacks: str, now: float) -> str:
        """The text about what the boot is waiting for.

        `config` is the worker's, `since_fork` is in seconds, and `stacks` is the text that its
        `faulthandler` has just written, if anything.
        """
        importing, place = stacktext.where_boot_stands(stacks, config.real_folder)
        if importing and place:
            return waits.importing(since_fork, place)
        if self._startup_began is not None:
            seconds = now - self._startup_began
            return waits.in_startup(
                config.app or "the application", seconds, place or self._startup_place
            )
        return waits.starting(since_fork)

    def of_stuck(self, in_flight: int, since_beat: float, now: float) -> str:
        """The text about a stuck worker before its stacks; empty if the stacks are enough.

        It names the requests that the worker held, the oldest first, or says where the worker's
        startup waits if it isn't ready yet. At its last heartbeat, `since_beat` seconds ago, the
        worker had `in_flight` requests.
        """
        stands_still = since_beat >= STANDSTILL
        if self._boots:
            place = "" if stands_still else self._startup_place
            return f"its lifespan startup waited at {place}" if place else ""
        if not stands_still:
            return ""
        if self._held is None or now - self._held[1] > since_beat:  # of an earlier standstill
            return _unknown(in_flight)
        message, told_at = self._held
        lines = [
            _line(name, age + now - told_at, blocks=number == message.blocking)
            for number, (name, age) in enumerate(zip(message.requests, message.ages, strict=False))
        ][:MOST_SHOWN]
        if not lines:
            return "it held no request"
        more = message.count - len(lines)
        if more > 0:
            lines.append(f"  and {more} more")
        return "\n".join(["requests that it held, the oldest first:", *lines])


def _line(request: str, age: float, *, blocks: bool) -> str:
    text = f"  {visible(request[:LONGEST_REQUEST])}"
    if math.isfinite(age):
        text += f", for {min(max(age, 0.0), LONGEST_AGE):.0f} s"
    return f"{text} (blocks the event loop)" if blocks else text


def _unknown(in_flight: int) -> str:
    if not in_flight:
        return "it held no request at its last heartbeat"
    count = "1 request" if in_flight == 1 else f"{in_flight} requests"
    return f"it held {count} at its last heartbeat, and can't say which"
