"""Finds workers whose event loop stands still, and notices when the arbiter itself stood still."""

from __future__ import annotations

from collections.abc import Mapping

from esg.supervisor.fleet.members import Member, Members

STANDSTILL = 3.0
"""Seconds for which the loop of a worker may stand still after its grace period.

The lifespan's shutdown is allowed the same time, and may block.
"""

CHECK_INTERVAL = 1.0
"""Seconds between two checks of the workers' heartbeats, and between two heartbeats."""

CONFIRMATION = 0.5
"""Seconds from the check that finds a worker late to the check that may declare it stuck.

After a pause of the whole machine, every worker looks late. Within this time, the event loop of
every healthy worker turns again.
"""

LATENESS = 0.05
"""Seconds by which a heartbeat may be late without being counted as missing."""

SUSPENSION = 3.0
"""If the time between two events is longer than this, the arbiter itself stood still."""


class Heartbeats:
    """Checks the heartbeats once a second, and earlier if a worker could be stuck before that."""

    def __init__(self, now: float) -> None:
        self.next_look = now + CHECK_INTERVAL
        self._last_event = now

    def notice_suspension(self, members: Members, now: float) -> None:
        """After the arbiter stood still, extend the deadlines of the workers by that time."""
        gap = now - self._last_event
        self._last_event = now
        if gap <= SUSPENSION:
            return
        for member in members.values():
            member.forgive(gap)
            member.late_since = None
        self.next_look = now + CHECK_INTERVAL * 2

    def stuck(
        self, members: Members, ages: Mapping[int, float], now: float
    ) -> list[tuple[Member, float]]:
        """The workers that are stuck, each with the seconds for which its loop has stood still.

        `ages` are the seconds since each worker's event loop last turned.
        """
        if now < self.next_look:
            return []
        if now - self.next_look > CONFIRMATION:  # the arbiter stood still; workers may have, too
            for late in members.values():
                late.late_since = None
        self.next_look = now + CHECK_INTERVAL
        found = []
        for number, age in ages.items():
            member = members.get(number)
            if member is not None and self._is_stuck(member, now - age, now):
                found.append((member, age - CHECK_INTERVAL))
        return found

    def _is_stuck(self, member: Member, beat: float, now: float) -> bool:
        """Whether a worker is stuck. If it could be stuck soon, the next check is made earlier.

        This is only done for a worker that missed a heartbeat. So a healthy fleet is checked once a
        second, and a stuck worker is still found in time.
        """
        if member.beat is None or beat - member.beat > LATENESS:
            member.late_since = None  # its loop has turned since the last check
        member.beat = beat
        stuck_at = _stuck_at(member, beat)
        missed = now - beat > CHECK_INTERVAL + LATENESS
        if stuck_at is None or not missed or stuck_at > now + CHECK_INTERVAL + CONFIRMATION:
            member.late_since = None
            return False
        if member.late_since is None:
            member.late_since = now
        stuck_at = max(stuck_at, member.late_since + CONFIRMATION)
        if now < stuck_at:
            self.next_look = min(self.next_look, stuck_at)
        return now >= stuck_at


def _stuck_at(member: Member, beat: float) -> float | None:
    """The time at which a worker counts as stuck if this was its last heartbeat; None for never.

    The loop is only known to stand still from the time at which the next heartbeat was due.
    """
    if member.booting or member.escalated:
        return None
    known = beat + CHECK_INTERVAL
    limits = []
    if member.generation.terms.timeout:
        limits.append(known + member.generation.terms.timeout)
    if member.grace_ends is not None:
        limits.append(max(known + STANDSTILL, member.grace_ends))
    return min(limits, default=None)
