"""The state of a reload from the request to its end: its generations, and the commands to answer.

A request is queued, then its generation is prepared (sockets and log files are opened), then its
first worker, the canary, boots. Once the canary is ready, the reload rolls: new workers replace the
old ones. It is reported as done once the old ones accept no connections any more. This module only
keeps the state; the fleet decides what to do with the workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from esg.frozen import frozen
from esg.supervisor.fleet.terms import GenerationTerms


class Stage(Enum):
    """How far the running reload has got."""

    IDLE = "no reload is running"
    CANARY = "the first worker of the new generation boots"
    ROLLING = "workers of the new generation replace those of the previous one"


NEXT_STAGES: Mapping[Stage, frozenset[Stage]] = {
    Stage.IDLE: frozenset({Stage.CANARY}),
    # A newer reload overtakes a canary, and a canary that fails ends its reload.
    Stage.CANARY: frozenset({Stage.CANARY, Stage.ROLLING, Stage.IDLE}),
    Stage.ROLLING: frozenset({Stage.IDLE}),
}
"""The stages that may follow each stage."""


@frozen
class Request:
    """A reload that was asked for, until its canary is forked."""

    generation: GenerationTerms
    jobs: tuple[int, ...] = ()
    """The commands to answer at its end."""


@frozen
class Roll:
    """The generation and number of workers to return to if a rolling reload fails."""

    previous: GenerationTerms
    previous_target: int


class Reload:
    """The running reload and the requests behind it.

    There is at most one request of each kind: of several that are queued, only the newest is kept.
    """

    __slots__ = ("_jobs", "candidate", "closing", "preparing", "queued", "roll", "settled", "stage")

    def __init__(self) -> None:
        self.stage = Stage.IDLE
        self.candidate: GenerationTerms | None = None
        """The generation whose canary is booting."""
        self.roll: Roll | None = None
        self.queued: Request | None = None
        self.preparing: Request | None = None
        self.settled = 1
        """The newest generation that has served or failed."""
        self.closing: tuple[int, ...] | None = None
        """The commands to answer once the workers that a roll replaced accept no connections; None
        if no roll waits for that."""
        self._jobs: tuple[int, ...] = ()

    @property
    def running(self) -> bool:
        """Whether a reload is preparing, booting its canary, rolling, or not reported yet."""
        idle = self.stage is Stage.IDLE and self.preparing is None
        return not idle or self.closing is not None

    def needed(self) -> set[int]:
        """The generations that may still get new workers because of a reload."""
        found = {request.generation.number for request in (self.queued, self.preparing) if request}
        if self.candidate is not None:
            found.add(self.candidate.number)
        if self.roll is not None:
            found.add(self.roll.previous.number)
        return found

    def is_candidate(self, generation: GenerationTerms) -> bool:
        """Whether this is the generation whose canary is booting."""
        return self.candidate is not None and self.candidate.number == generation.number

    def ask(self, generation: GenerationTerms, job: int | None) -> None:
        """Queue a request. It replaces the one that is queued, and takes over its jobs."""
        jobs = self.queued.jobs if self.queued is not None else ()
        self.queued = Request(generation, jobs if job is None else (*jobs, job))

    def prepare_next(self) -> GenerationTerms | None:
        """Begin to prepare the queued request, unless a roll or a preparation has to end first."""
        if self.queued is None or self.preparing is not None or self.roll is not None:
            return None
        self.preparing, self.queued = self.queued, None
        return self.preparing.generation

    def prepared(self, number: int) -> bool:
        """Note that this generation is prepared; returns whether its canary may boot now.

        The canary takes the place of an older one that it overtakes. False if this generation isn't
        wanted any more, or has to wait for a roll that began meanwhile.
        """
        request = self._take(number)
        if request is None:
            return False
        if self.roll is not None:
            newer = self.queued or request
            later = self.queued.jobs if self.queued is not None else ()
            self.queued = Request(newer.generation, request.jobs + later)
            return False
        self._enter(Stage.CANARY)
        self.candidate = request.generation
        # Commands that wait for an overtaken canary are answered with the result of the newer one.
        self._jobs += request.jobs
        return True

    def refuse(self, number: int) -> tuple[int, ...] | None:
        """Note that this generation can't be prepared.

        Returns its jobs; None if this generation isn't wanted any more.
        """
        request = self._take(number)
        return None if request is None else request.jobs

    def promote(self, current: GenerationTerms, target: int) -> GenerationTerms:
        """Note that the canary is ready. Returns the generation that replaces the current one."""
        assert self.candidate is not None
        self._enter(Stage.ROLLING)
        promoted, self.candidate = self.candidate, None
        self.settled = promoted.number
        self.roll = Roll(current, target)
        return promoted

    def fail(self, generation: GenerationTerms) -> tuple[int, ...]:
        """Note that the running reload, to this generation, has failed. Returns its jobs."""
        self.settled = generation.number
        return self.finish()

    def finish(self) -> tuple[int, ...]:
        """Note that the running reload is over. Returns its jobs."""
        self._enter(Stage.IDLE)
        self.candidate = self.roll = None
        jobs, self._jobs = self._jobs, ()
        return jobs

    def close(self) -> None:
        """Note that the roll is over; its jobs are to be answered when the old workers have
        stopped accepting."""
        self.closing = self.finish()

    def closed(self) -> tuple[int, ...]:
        """Note that the old workers have stopped accepting. Returns the jobs of the roll."""
        jobs, self.closing = self.closing or (), None
        return jobs

    def give_up(self) -> tuple[int, ...]:
        """Forget the running reload and all requests. Returns the jobs of all of them."""
        jobs = self.finish() if self.stage is not Stage.IDLE else ()
        for request in (self.preparing, self.queued):
            jobs += request.jobs if request is not None else ()
        self.preparing = self.queued = None
        return jobs

    def _take(self, number: int) -> Request | None:
        """End the preparation of this generation; None if another one or none is preparing."""
        request = self.preparing
        if request is None or request.generation.number != number:
            return None
        self.preparing = None
        return request

    def _enter(self, stage: Stage) -> None:
        assert stage in NEXT_STAGES[self.stage], f"{self.stage} is followed by {stage}"
        self.stage = stage
