"""The workers as the fleet sees them: their states, and the deadline of each state.

A worker that has ended isn't a member any more. `ESCALATION` says what happens to a worker that
outlives its deadline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from esg.supervisor.fleet import actions as do
from esg.supervisor.fleet.actions import Action
from esg.supervisor.fleet.terms import GenerationTerms


class WorkerState(Enum):
    """The states of a worker's life."""

    BOOTING = "booting"
    READY = "ready"
    DRAINING = "draining"


NEXT_STATES: Mapping[WorkerState, frozenset[WorkerState]] = {
    WorkerState.BOOTING: frozenset({WorkerState.READY, WorkerState.DRAINING}),
    WorkerState.READY: frozenset({WorkerState.DRAINING}),
    WorkerState.DRAINING: frozenset({WorkerState.DRAINING}),
}
"""The states that may follow each state. A draining worker may be told again, with a new deadline.

A worker can exit in every state.
"""

ESCALATION: tuple[tuple[Callable[[int], Action], float], ...] = (
    (do.DumpStack, 1.0),
    (do.Abort, 2.0),
    (do.Kill, 10.0),
    (do.Kill, 10.0),
)
"""The steps against a worker that outlives its deadline, each with the seconds until the next."""

EXIT_MARGIN = 8.0
"""Seconds after its grace period for a worker to cancel requests and shut its lifespan down."""

QUIT_GRACE = 8.0
"""Seconds for a worker to end after it was told to quit, or reported that it can't boot."""

ACCEPTING_WAIT = 1.0
"""Seconds for which a reload waits until a draining worker says that it accepts no connections."""

OVERTAKEN_WAIT = 1.0
"""Seconds for which a canary waits for the end of an older canary that it overtook. Otherwise,
reloads in quick succession would fill the memory with workers that aren't wanted any more."""


@dataclass(slots=True)
class Member:
    """A worker as the fleet sees it. Times are monotonic seconds."""

    number: int
    generation: GenerationTerms
    deadline: float | None
    since: float
    """The time at which it was forked."""
    grace_ends: float | None = None
    accepts_until: float = -math.inf
    """The time until which it may still accept connections, although it was told to stop."""
    ready_since: float = math.inf
    """The time at which it began to serve."""
    share: float = 0.0
    """Its part of the jitter, from 0 to 1."""
    expires: float = math.inf
    """The time at which it has lived for long enough (`--max-lifetime`)."""
    condemned: bool = False
    """Whether it was killed for its memory."""
    state: WorkerState = WorkerState.BOOTING
    due: str = ""
    """Why it has to be replaced; empty if it needn't be."""
    escalated: int = 0
    """The number of steps of the escalation that were taken."""
    explained: bool = False
    """Whether it has reported why it can't boot."""
    beat: float | None = None
    """The time of its last heartbeat, as of the last check."""
    late_since: float | None = None
    """The time of the check that first found it late, if it could be stuck soon."""
    discarded_at: float | None = None
    """The time at which it was told to end during its boot; None if it was serving by then."""

    @property
    def active(self) -> bool:
        return self.state is not WorkerState.DRAINING

    @property
    def booting(self) -> bool:
        return self.state is WorkerState.BOOTING

    @property
    def ready(self) -> bool:
        return self.state is WorkerState.READY

    def is_overdue(self, now: float) -> bool:
        """Whether the time for its requests is over."""
        return self.grace_ends is not None and now >= self.grace_ends

    def become(self, state: WorkerState, deadline: float | None) -> None:
        """Enter a state with this deadline."""
        assert state in NEXT_STATES[self.state], f"{self.state} is followed by {state}"
        self.state = state
        self.deadline = deadline

    def leave(self, deadline: float) -> None:
        """It is draining from now on."""
        self.become(WorkerState.DRAINING, deadline)
        self.discarded_at = None

    def finish_requests(self, now: float) -> None:
        """Give it the grace period for its requests, and then a margin to end by itself."""
        self.grace_ends = now + self.generation.terms.graceful_timeout
        self.accepts_until = now + ACCEPTING_WAIT
        self.leave(self.grace_ends + EXIT_MARGIN)

    def drain(self, reason: str, now: float, *, final: bool) -> Action:
        """Make it finish its requests, then exit."""
        self.finish_requests(now)
        return do.Drain(self.number, reason, self.generation.terms.graceful_timeout, final)

    def discard(self, now: float, *, final: bool) -> Action:
        """Make it end during its boot."""
        self.leave(now + QUIT_GRACE)
        self.discarded_at = now
        self.accepts_until = now + ACCEPTING_WAIT  # it may have begun to serve meanwhile
        return do.Discard(self.number, self.generation.terms.graceful_timeout, final)

    def quit(self, now: float) -> Action:
        """Make it end immediately."""
        self.leave(now + QUIT_GRACE)
        return do.Quit(self.number)

    def condemn(self, now: float) -> Action:
        """Kill it, because it needs too much memory."""
        self.leave(now + QUIT_GRACE)
        self.condemned = self.explained = True
        return do.Kill(self.number)

    def escalate(self, now: float) -> Action:
        """Take the next step against a worker that doesn't end."""
        action, pause = ESCALATION[min(self.escalated, len(ESCALATION) - 1)]
        self.escalated += 1
        self.deadline = now + pause
        return action(self.number)

    def forgive(self, gap: float) -> None:
        """Extend its deadlines by this many seconds."""
        if self.deadline is not None:
            self.deadline += gap
        if self.grace_ends is not None:
            self.grace_ends += gap


class Members(dict[int, Member]):
    """The workers of a fleet, by number."""

    def active(self) -> list[Member]:
        """The workers that aren't draining."""
        return [member for member in self.values() if member.active]

    def ready(self) -> list[Member]:
        """The workers that serve and aren't draining."""
        return [member for member in self.values() if member.ready]

    def staying(self, generation: int) -> list[Member]:
        """The active workers of this generation that needn't be replaced."""
        return [m for m in self.active() if m.generation.number == generation and not m.due]

    def accepting_until(self, current: GenerationTerms) -> float:
        """The time after which no replaced worker accepts connections, as far as is known."""
        replaced = [member for member in self.values() if member.generation != current]
        return max((member.accepts_until for member in replaced), default=-math.inf)

    def canary_must_wait(self, settled: int, now: float) -> bool:
        """Whether a new canary waits for the end of a canary that it overtook.

        `settled` is the newest generation that has been adopted or has failed. A canary never waits
        for a worker that failed or that finishes requests, because it may be the repair.
        """
        return any(
            member.discarded_at is not None
            and now < member.discarded_at + OVERTAKEN_WAIT
            and member.generation.number > settled
            for member in self.values()
        )

    def free_number(self) -> int:
        """The lowest number that no worker has."""
        number = 1
        while number in self:
            number += 1
        return number
