"""The decisions of the process manager: events in, actions out; no clock, no system call.

Everything that affects a worker's state is in this file. A worker goes

    BOOTING -> READY -> DRAINING -> gone

and a reload, a recycle, a resize and a shutdown are all made of one step: bring replacements to
READY, then drain what they replace. After each event the fleet compares the workers it has with
those it wants (`_reconcile`), so that half-done work heals itself. A worker that outlives a
deadline goes through `ESCALATION`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from esg.settings.schema import Config
from esg.supervisor.fleet import actions as do
from esg.supervisor.fleet import events as on
from esg.supervisor.fleet.actions import Action
from esg.supervisor.fleet.backoff import Backoff
from esg.supervisor.fleet.events import Event


class WorkerState(Enum):
    """Where a worker is in its life; one that is gone is no member of the fleet."""

    BOOTING = "booting"
    READY = "ready"
    DRAINING = "draining"


ESCALATION: tuple[tuple[Callable[[int], Action], float], ...] = (
    (do.DumpStack, 1.0),
    (do.Abort, 2.0),
    (do.Kill, 10.0),
    (do.Kill, 10.0),
)
"""What is done to a worker that outlives its deadline, and the seconds until the next step."""

EXIT_MARGIN = 8.0
"""Seconds beyond its grace in which a worker cancels requests and shuts its lifespan down."""

STANDSTILL = 3.0
"""Seconds for which the loop of a worker may stand still once its grace is over.

The lifespan's shutdown is allowed the same time, and may block.
"""

OVERTAKEN_WAIT = 1.0
"""Seconds for which a canary waits for one that it overtook to end, so that reloads in quick
succession don't fill the memory with workers that nobody wants any more."""

QUIT_GRACE = 8.0
"""Seconds a worker has to end that was told to quit, or that said it can't boot."""

CHECK_INTERVAL = 1.0
"""Seconds between two looks at the workers' beats; they beat as often."""

CONFIRMATION = 0.5
"""Seconds from the look that finds a worker late to the one that may condemn it.

After a pause of the whole machine every worker looks late. In this time, the event loop of each
healthy worker has turned again.
"""

LATENESS = 0.05
"""Seconds by which a beat may be late without being counted as missing."""

SUSPENSION = 3.0
"""A gap between two events longer than this means that the arbiter itself stood still."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What one load of the configuration produced."""

    number: int
    config: Config


@dataclass(slots=True)
class Member:
    """A worker as the fleet sees it."""

    number: int
    generation: Generation
    deadline: float | None
    grace_ends: float | None = None
    state: WorkerState = WorkerState.BOOTING
    due: str = ""
    escalated: int = 0
    explained: bool = False
    beat: float | None = None
    """When its event loop last turned, as of the last look."""
    late_since: float | None = None
    """When a look first found a beat missing that could soon be missing for too long."""
    discarded_at: float | None = None
    """When it was told to end while it booted, if it isn't known to have served by then."""

    @property
    def active(self) -> bool:
        return self.state is not WorkerState.DRAINING

    def is_overdue(self, now: float) -> bool:
        """Whether its requests have had their time."""
        return self.grace_ends is not None and now >= self.grace_ends


@dataclass(frozen=True, slots=True)
class Roll:
    """A reload past its canary: what it replaces, to go back to if it fails."""

    previous: Generation
    previous_target: int


class Fleet:
    """Wanted and actual workers. Single-threaded; times are monotonic seconds."""

    def __init__(self, config: Config, now: float, *, capacity: int = 1024) -> None:
        self.current = Generation(1, config)
        self.target = config.workers
        self.members: dict[int, Member] = {}
        self._capacity = capacity
        self._generations = 1
        self._settled = 1
        """The newest generation that has come to serve, or failed to."""
        self._candidate: Generation | None = None
        self._roll: Roll | None = None
        self._pending: Config | None = None
        self._pending_jobs: list[int] = []
        self._jobs: list[int] = []
        self._started = False
        self._served = False
        self._complete = False
        self._exit_code: int | None = None
        self._failure = ""
        """Why nothing ever served, once that is why the fleet stops."""
        self._quick = False
        self._closes_at: float | None = None
        self._trouble = ""
        self._backoff = Backoff()
        self._last_event = now
        self._next_check = now + CHECK_INTERVAL
        self._told: do.Tell | None = None
        self._out: list[Action] = []
        self._answers: list[do.Answer] = []

    # -- the interface -----------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in what happened at `now`; returns what is to be done, in order."""
        self._notice_suspension(now)
        self._HANDLERS[type(event)](self, event, now)
        self._escalate_overdue(now)
        self._close_in_time(now)
        self._reconcile(now)
        self._tell()
        # Who waits for an answer finds what was told when it comes.
        out, self._out, self._answers = [*self._out, *self._answers], [], []
        return out

    def next_deadline(self) -> float | None:
        """When `handle` wants to be called again with a Tick, at the latest."""
        deadlines = [m.deadline for m in self.members.values() if m.deadline is not None]
        deadlines.append(self._next_check)
        if self._closes_at is not None:
            deadlines.append(self._closes_at)
        if self._wants_spawn():
            deadlines.append(self._backoff.retry_at)
        return min(deadlines)

    @property
    def stopping(self) -> bool:
        """Whether a shutdown has begun."""
        return self._exit_code is not None

    @property
    def wanted(self) -> list[Config]:
        """The configurations that there may yet be new workers of."""
        previous = self._roll.previous if self._roll is not None else None
        generations = (self.current, self._candidate, previous)
        found = [generation.config for generation in generations if generation is not None]
        return found if self._pending is None else [*found, self._pending]

    @property
    def _closed(self) -> bool:
        """Whether nobody is to accept any more."""
        return self.stopping and self._closes_at is None

    @property
    def reloading(self) -> bool:
        """Whether a reload is on its way."""
        return self._candidate is not None or self._roll is not None

    # -- events ------------------------------------------------------------------------

    def _on_started(self, event: on.Started, now: float) -> None:
        self._started = True

    def _on_ready(self, event: on.WorkerReady, now: float) -> None:
        member = self.members.get(event.number)
        if member is None:
            return
        if member.discarded_at is not None and not (self._quick or member.escalated):
            # It served already when it was discarded, so it has requests to finish.
            self._finishing(member, now)
        if member.state is not WorkerState.BOOTING:
            return
        member.state = WorkerState.READY
        member.deadline = None
        self._served = True
        self._log("info", "ready", member)
        if member.generation is self._candidate:
            self._promote()

    def _on_boot_failed(self, event: on.WorkerBootFailed, now: float) -> None:
        member = self.members.get(event.number)
        if member is None or member.state is not WorkerState.BOOTING:
            return
        self._leaving(member, now + QUIT_GRACE)
        member.explained = True
        self._boot_failed(member, event.message, event.detail, event.exit_code, now)

    def _on_due(self, event: on.WorkerDue, now: float) -> None:
        member = self.members.get(event.number)
        if member is not None and member.state is WorkerState.READY and not member.due:
            member.due = event.reason
            self._log("info", f"due reason={event.reason}", member)

    def _on_retiring(self, event: on.WorkerRetiring, now: float) -> None:
        member = self.members.get(event.number)
        if member is not None and member.active:
            self._log("info", f"draining reason={event.reason}", member)
            self._finishing(member, now)

    def _on_exited(self, event: on.WorkerExited, now: float) -> None:
        member = self.members.pop(event.number, None)
        if member is None:
            return
        if member.state is WorkerState.BOOTING:
            message = f"died while booting: {event.status}"
            self._boot_failed(member, message, event.detail, 3, now)
        elif member.state is WorkerState.READY:
            self._log("error", f"died: {event.status}", member, event.detail)
            self._failed(member, f"a worker died: {event.status}", now)
        else:
            self._log(
                "info" if event.clean or member.explained else "warning",
                f"gone: {event.status}",
                member,
                event.detail,
            )

    def _on_spawn_failed(self, event: on.SpawnFailed, now: float) -> None:
        member = self.members.pop(event.number, None)
        if member is not None:
            self._boot_failed(member, f"can't be forked: {event.reason}", "", 3, now)

    def _on_beats(self, event: on.BeatsRead, now: float) -> None:
        if now < self._next_check:
            return
        if now - self._next_check > CONFIRMATION:  # this process stood still; did the others?
            self._forget_lateness()
        self._next_check = now + CHECK_INTERVAL
        for number, age in event.ages.items():
            member = self.members.get(number)
            if member is not None:
                self._check_beat(member, now - age, now)

    def _on_reload(self, event: on.ReloadRequested, now: float) -> None:
        if self.stopping:
            self._log("warning", "reload ignored: stopping")
            self._answer(event.job, False, "reload ignored: stopping")
            return
        if self._roll is not None or not self._served:
            self._log("info", "reload queued until the running one is over")
        self._pending = event.config
        if event.job is not None:
            self._pending_jobs.append(event.job)
        self._trouble = ""
        self._begin_reload()
        self._tell_reload()

    def _on_reload_refused(self, event: on.ReloadRefused, now: float) -> None:
        text = f"reload refused, gen={self.current.number} goes on serving: {event.reason}"
        self._log("error", text)
        self._answer(event.job, False, text)
        self._trouble = f"last reload refused: {event.reason}"
        self._show_failure(event.reason)
        self._tell_reload()

    def _on_resize(self, event: on.Resize, now: float) -> None:
        if self.stopping:
            return
        most = self._capacity // 2
        self.target = min(max(1, self.target + event.by), most)
        self._log("info", f"resized workers={self.target}")

    def _on_reopen(self, event: on.ReopenRequested, now: float) -> None:
        self._out.append(do.ReopenLogs(tuple(self.members)))

    def _on_shutdown(self, event: on.ShutdownRequested, now: float) -> None:
        quick = event.quick or (event.insistent and self.stopping)
        self._shut_down(0, quick, now)

    def _on_tick(self, event: on.Tick, now: float) -> None:
        """Time alone: what follows it is done after every event."""

    _HANDLERS: ClassVar[dict[type[Event], Callable[..., None]]] = {
        on.Started: _on_started,
        on.WorkerReady: _on_ready,
        on.WorkerBootFailed: _on_boot_failed,
        on.WorkerDue: _on_due,
        on.WorkerRetiring: _on_retiring,
        on.WorkerExited: _on_exited,
        on.SpawnFailed: _on_spawn_failed,
        on.BeatsRead: _on_beats,
        on.ReloadRequested: _on_reload,
        on.ReloadRefused: _on_reload_refused,
        on.Resize: _on_resize,
        on.ReopenRequested: _on_reopen,
        on.ShutdownRequested: _on_shutdown,
        on.Tick: _on_tick,
    }

    # -- failures and deadlines --------------------------------------------------------

    def _notice_suspension(self, now: float) -> None:
        """Forgive the workers the time in which the arbiter, and perhaps they too, stood still."""
        gap = now - self._last_event
        self._last_event = now
        if gap <= SUSPENSION:
            return
        for member in self.members.values():
            if member.deadline is not None:
                member.deadline += gap
            if member.grace_ends is not None:
                member.grace_ends += gap
        self._next_check = now + CHECK_INTERVAL * 2
        self._forget_lateness()

    def _forget_lateness(self) -> None:
        for member in self.members.values():
            member.late_since = None

    def _check_beat(self, member: Member, beat: float, now: float) -> None:
        """Condemn a worker whose event loop stands still, or look again when that is due.

        A look is only brought forward for a worker that missed a beat, so a healthy fleet is
        looked at once a second, and a stuck worker is found in time all the same.
        """
        if member.beat is None or beat - member.beat > LATENESS:
            member.late_since = None  # it has turned since
        member.beat = beat
        stuck_at = self._stuck_at(member, beat)
        missed = now - beat > CHECK_INTERVAL + LATENESS
        if stuck_at is None or not missed or stuck_at > now + CHECK_INTERVAL + CONFIRMATION:
            member.late_since = None
            return
        if member.late_since is None:
            member.late_since = now
        stuck_at = max(stuck_at, member.late_since + CONFIRMATION)
        if now < stuck_at:
            self._next_check = min(self._next_check, stuck_at)
        else:
            self._condemn_stuck(member, now - beat - CHECK_INTERVAL, now)

    def _stuck_at(self, member: Member, beat: float) -> float | None:
        """When a worker counts as stuck if its loop doesn't turn after this beat; None for never.

        The loop is known to stand still from when the next beat was due.
        """
        if member.state is WorkerState.BOOTING or member.escalated:
            return None
        known = beat + CHECK_INTERVAL
        limits = []
        if member.generation.config.timeout:
            limits.append(known + member.generation.config.timeout)
        if member.grace_ends is not None:
            limits.append(max(known + STANDSTILL, member.grace_ends))
        return min(limits, default=None)

    def _condemn_stuck(self, member: Member, still: float, now: float) -> None:
        limit = "--graceful-timeout" if member.is_overdue(now) else "--timeout"
        if still == math.inf:
            message = "stuck: its last heartbeat is in the future, so it isn't one"
        else:
            message = f"stuck: its event loop has stood still for {still:.1f} s ({limit})"
        self._log("error", message, member)
        was_active = member.active
        self._leaving(member, now)
        self._escalate(member, now)
        if was_active:
            self._failed(member, "a worker's event loop stood still", now)

    def _escalate_overdue(self, now: float) -> None:
        for member in list(self.members.values()):
            if member.deadline is None or now < member.deadline:
                continue
            if member.state is WorkerState.BOOTING:
                self._condemn_slow_boot(member, now)
                continue
            if not member.escalated:
                self._log("error", "overdue: has not ended in its time", member)
            self._escalate(member, now)

    def _condemn_slow_boot(self, member: Member, now: float) -> None:
        limit = member.generation.config.timeout_boot
        self._leaving(member, now)
        self._escalate(member, now)
        message = f"not ready after {limit:g} s (--timeout-boot)"
        self._boot_failed(member, message, "", 3, now)

    def _escalate(self, member: Member, now: float) -> None:
        step = min(member.escalated, len(ESCALATION) - 1)
        action, pause = ESCALATION[step]
        self._out.append(action(member.number))
        member.escalated += 1
        member.deadline = now + pause

    def _boot_failed(
        self, member: Member, message: str, detail: str, exit_code: int, now: float
    ) -> None:
        if self.stopping:
            return
        self._log("error", f"can't boot: {message}", member, detail)
        if not self._served:
            self._log("info", "giving up: nothing has served yet")
            self._failure = message
            self._shut_down(exit_code, True, now)
        else:
            self._failed(member, "a worker could not boot", now, detail or message)

    def _failed(self, member: Member, reason: str, now: float, detail: str = "") -> None:
        """A worker was lost by its own doing: undo its reload, or back off.

        `detail` is what tells more of the reason, such as a traceback.
        """
        if self.stopping:
            return
        if member.generation is self._candidate:
            self._candidate = None
            self._report_failed_reload(member.generation, reason, detail)
            return
        if self._roll is not None and member.generation is self.current:
            self._roll_back(reason, detail)
        delay = self._backoff.failed(now)
        if delay:
            self._log("warning", f"workers keep failing; next start in {delay:.1f} s")

    # -- reload ------------------------------------------------------------------------

    def _begin_reload(self) -> None:
        """Start the newest reload asked for, unless one is past its canary."""
        if self._pending is None or self._roll is not None or not self._served:
            return
        self._generations += 1
        self._candidate = Generation(self._generations, self._pending)
        self._pending = None
        # Who asked for a canary that is overtaken hears of the one that takes its place.
        self._jobs += self._pending_jobs
        self._pending_jobs = []
        self._log("info", f"reloading: gen={self._candidate.number} boots its first worker")

    def _promote(self) -> None:
        """The canary is ready: from here on the new generation is what is wanted."""
        assert self._candidate is not None
        self._roll = Roll(self.current, self.target)
        old, new = self.current.config, self._candidate.config
        if new.workers != old.workers:
            self.target = new.workers
        self._settled = self._candidate.number
        self._adopt(self._candidate)
        self._candidate = None
        self._backoff = Backoff()  # what failed before was other code

    def _adopt(self, generation: Generation) -> None:
        """Make this generation the one that serves and that log lines name."""
        self.current = generation
        self._out.append(do.Adopt(generation.number, generation.config))

    def _roll_back(self, reason: str, detail: str) -> None:
        assert self._roll is not None
        failed = self.current
        self._adopt(self._roll.previous)
        self.target = self._roll.previous_target
        self._roll = None
        self._report_failed_reload(failed, reason, detail)

    def _report_failed_reload(self, failed: Generation, reason: str, detail: str) -> None:
        self._settled = failed.number
        self._trouble = f"last reload failed: {reason}"
        text = f"reload failed, gen={self.current.number} goes on serving: gen={failed.number}: "
        text += reason
        self._log("error", text)
        self._answer_jobs(False, text, detail)
        self._show_failure(reason, detail)

    def _show_failure(self, reason: str, detail: str = "") -> None:
        shown = [m.number for m in self.members.values() if m.generation.config.debug]
        if shown:
            self._out.append(do.ShowFailure(tuple(shown), reason, detail))

    def _finish_roll(self) -> None:
        fresh = [m for m in self._fresh() if m.state is WorkerState.READY]
        stale = [m for m in self._active() if m.generation is not self.current]
        if self._roll is not None and not stale and len(fresh) >= self.target:
            self._roll = None
            self._log("info", f"reloaded workers={self.target}")
            self._answer_jobs(True, f"reloaded gen={self.current.number} workers={self.target}")
        if self._roll is None and self._candidate is None:
            self._begin_reload()

    def _answer_jobs(self, ok: bool, text: str, detail: str = "") -> None:
        """Answer all that wait for the reload that is over now."""
        for job in self._jobs:
            self._answer(job, ok, text, detail)
        self._jobs = []

    def _answer(self, job: int | None, ok: bool, text: str, detail: str = "") -> None:
        if job is not None:
            self._answers.append(do.Answer(job, ok, text, detail))

    # -- shutdown ----------------------------------------------------------------------

    def _shut_down(self, code: int, quick: bool, now: float) -> None:
        if not self.stopping:
            self._exit_code = code
            self._candidate = self._roll = self._pending = None
            self._jobs += self._pending_jobs
            self._answer_jobs(False, "reload given up: stopping")
            delay = 0.0 if quick else self.current.config.drain_delay
            self._log("info", f"stopping in {delay:g} s (--drain-delay)" if delay else "stopping")
            self._closes_at = now + delay
        if quick and self._closes_at is not None:
            self._closes_at = now
        hurry = quick and not self._quick
        self._quick = self._quick or quick
        self._close_in_time(now)
        for member in self.members.values():
            if hurry and not (member.escalated or member.explained):
                self._quit(member, now)
            elif member.state is WorkerState.BOOTING:
                self._discard(member, now)

    def _close_in_time(self, now: float) -> None:
        """Close the listeners, and drain all workers, once load balancers had time to notice."""
        if self._closes_at is None or (now < self._closes_at and self.members):
            return
        self._closes_at = None
        self._out.append(do.CloseListeners())
        for member in self.members.values():
            if member.state is WorkerState.READY and not self._quick:
                self._drain(member, "shutdown", now)

    # -- wanted and actual -------------------------------------------------------------

    def _reconcile(self, now: float) -> None:
        if self.stopping:
            if not self.members:
                self._out.append(do.Exit(self._exit_code or 0, self._failure))
            return
        if not self._started:
            return
        self._discard_booting(now)
        self._drain_surplus(now)
        self._finish_roll()
        self._spawn_canary(now)
        self._spawn_missing(now)
        self._note_complete()

    def _active(self) -> list[Member]:
        return [member for member in self.members.values() if member.active]

    def _fresh(self) -> list[Member]:
        """The active workers that are to stay."""
        return [m for m in self._active() if m.generation is self.current and not m.due]

    def _discard_booting(self, now: float) -> None:
        """Discard workers in boot that nobody wants any more."""
        wanted = (self.current, self._candidate)
        for member in self._active():
            if member.state is WorkerState.BOOTING and member.generation not in wanted:
                self._discard(member, now)
        booting = [m for m in self._fresh() if m.state is WorkerState.BOOTING]
        excess = len(self._active()) - self.target - self.current.config.surge
        surplus = max(len(self._fresh()) - self.target, excess)
        for member in booting[::-1][: max(0, surplus)]:
            self._discard(member, now)

    def _drain_surplus(self, now: float) -> None:
        """Drain as many ready workers as there are beyond the target: the stale ones first."""
        ready = [m for m in self._active() if m.state is WorkerState.READY]
        surplus = len(ready) - self.target
        if surplus <= 0:
            return
        ready.sort(key=lambda m: (m.generation is self.current, not m.due, -m.number))
        for member in ready[:surplus]:
            stale = member.generation is not self.current
            reason = "reload" if stale else member.due or "resize"
            self._drain(member, reason, now)

    def _room(self) -> int:
        """How many workers may be started at this moment."""
        free = self._capacity - len(self.members)
        return min(self.target + self.current.config.surge - len(self._active()), free)

    def _wants_spawn(self) -> bool:
        if self.stopping or not self._started:
            return False
        return len(self._fresh()) < self.target and self._room() > 0

    def _spawn_canary(self, now: float) -> None:
        if self._candidate is None or self._room() <= 0:
            return
        if any(self._waits_for(member, now) for member in self.members.values()):
            return
        if not any(m.generation is self._candidate for m in self._active()):
            self._spawn(self._candidate, now)

    def _waits_for(self, member: Member, now: float) -> bool:
        """Whether a new canary waits for this one, which was overtaken and is about to end.

        A worker that failed, or that finishes requests, holds no canary up: the next one may well
        be the repair.
        """
        began = member.discarded_at
        return (
            began is not None
            and now < began + OVERTAKEN_WAIT
            and member.generation.number > self._settled
        )

    def _spawn_missing(self, now: float) -> None:
        if self._wants_spawn() and self._backoff.allows(now):
            for _ in range(min(self.target - len(self._fresh()), self._room())):
                self._spawn(self.current, now)

    def _spawn(self, generation: Generation, now: float) -> None:
        number = next(n for n in range(1, self._capacity + 1) if n not in self.members)
        deadline = now + generation.config.timeout_boot
        self.members[number] = Member(number, generation, deadline)
        self._out.append(do.Spawn(number, generation.number, generation.config))

    def _drain(self, member: Member, reason: str, now: float) -> None:
        grace = member.generation.config.graceful_timeout
        self._log("info", f"draining reason={reason}", member)
        self._out.append(do.Drain(member.number, reason, grace, final=self._closed))
        self._finishing(member, now)

    def _discard(self, member: Member, now: float) -> None:
        grace = member.generation.config.graceful_timeout
        self._out.append(do.Discard(member.number, grace, final=self._closed))
        self._leaving(member, now + QUIT_GRACE)
        member.discarded_at = now

    def _quit(self, member: Member, now: float) -> None:
        self._out.append(do.Quit(member.number))
        self._leaving(member, now + QUIT_GRACE)

    def _finishing(self, member: Member, now: float) -> None:
        """It has its grace for what is in flight, then a margin for its own end."""
        member.grace_ends = now + member.generation.config.graceful_timeout
        self._leaving(member, member.grace_ends + EXIT_MARGIN)

    def _leaving(self, member: Member, deadline: float) -> None:
        member.state = WorkerState.DRAINING
        member.deadline = deadline
        member.discarded_at = None

    def _note_complete(self) -> None:
        ready = sum(m.state is WorkerState.READY for m in self._active())
        if not self._complete and ready >= self.target:
            self._complete = True
            self._log("info", f"serving workers={ready}")

    # -- telling -----------------------------------------------------------------------

    def _log(
        self, level: do.Level, event: str, member: Member | None = None, detail: str = ""
    ) -> None:
        self._out.append(do.Log(level, event, member.number if member else None, detail))

    def _tell(self) -> None:
        told = do.Tell(self._state(), self._status())
        if told != self._told:
            self._told = told
            self._out.append(told)

    def _tell_reload(self) -> None:
        """A reload was asked for: whoever did that waits for its begin and its end.

        One that is refused is told of as one that was over at once.
        """
        if self._complete and not self.stopping:
            told = do.Tell("reloading", self._status())
            self._out.append(dataclasses.replace(told, anew=True))
            self._told = told

    def _state(self) -> do.State:
        if self.stopping:
            return "stopping"
        if self.reloading:
            return "reloading"
        return "serving" if self._complete else "starting"

    def _status(self) -> str:
        ready = sum(m.state is WorkerState.READY for m in self.members.values())
        draining = len(self.members) - len(self._active())
        status = f"gen {self.current.number}: {ready} of {self.target} workers ready"
        if self._candidate is not None:
            status += f", gen {self._candidate.number} boots"
        status += f", {draining} draining" if draining else ""
        return status + (f"; {self._trouble}" if self._trouble else "")
