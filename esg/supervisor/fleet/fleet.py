"""The decisions of the process manager: events in, actions out; no clock, no system call.

A worker goes through the states in `members`, a reload through the stages in `reload`. A reload, a
recycle, a resize and a shutdown are all made of one step: start replacements, wait until they are
READY, then drain the workers that they replace. After each event the fleet compares the workers
that it has with those that it wants (`_reconcile`), so it also completes work that was interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from esg.supervisor.fleet import actions as do
from esg.supervisor.fleet import events as on
from esg.supervisor.fleet import recycling
from esg.supervisor.fleet.actions import Action
from esg.supervisor.fleet.backoff import Backoff
from esg.supervisor.fleet.events import Event
from esg.supervisor.fleet.heartbeats import Heartbeats
from esg.supervisor.fleet.members import QUIT_GRACE, Member, Members, WorkerState
from esg.supervisor.fleet.outbox import Outbox
from esg.supervisor.fleet.reload import Reload, Stage
from esg.supervisor.fleet.terms import GenerationTerms, Terms
from esg.supervisor.fleet.waiting import Booting, Waiting


@dataclass(slots=True)
class Shutdown:
    """A stop that has begun."""

    exit_code: int
    closes_at: float | None
    """When to close the listeners; None once they are closed."""
    quick: bool = False
    failure: str = ""
    """Why no worker ever served, if this is the reason for the stop."""


class Fleet:
    """Wanted and actual workers. Single-threaded; times are monotonic seconds."""

    def __init__(
        self, terms: Terms, now: float, *, capacity: int = 1024, phase: float = 0.0
    ) -> None:
        """`terms` are those of generation 1; `capacity` is the largest number of workers.

        `phase`, from 0 to 1, is where the jitter of the workers begins: see `recycling.share_of`.
        """
        self.current = GenerationTerms(1, terms)
        self.target = terms.workers
        self.members = Members()
        self.reload = Reload()
        self._capacity = capacity
        self._phase = phase
        self._spawned = 0
        self._unretired = {1}
        self._started = False
        self._served = False
        self._complete = False
        self._shutdown: Shutdown | None = None
        self._trouble = ""
        self._backoff = Backoff()
        self._heartbeats = Heartbeats(now)
        self._told: do.Tell | None = None
        self._out = Outbox()
        self._answers: list[do.Answer] = []
        self._waiting = Waiting()

    # -- the interface -----------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in an event that happened at `now`; returns the actions to perform, in order."""
        self._heartbeats.notice_suspension(self.members, now)
        self._HANDLERS[type(event)](self, event, now)
        self._escalate_overdue(now)
        self._close_in_time(now)
        self._reconcile(now)
        self._report_waiting(now)
        self._tell()
        # When a client gets its answer, the state and status have been reported already.
        out, self._out, self._answers = [*self._out, *self._answers], Outbox(), []
        return out

    def next_deadline(self) -> float:
        """The time by which `handle` has to be called again, with a Tick if nothing happens."""
        deadlines = [m.deadline for m in self.members.values() if m.deadline is not None]
        if not self.stopping:
            deadlines += [m.expires for m in self.members.ready() if not m.due]
        deadlines.append(self._heartbeats.next_look)
        if self._shutdown is not None and self._shutdown.closes_at is not None:
            deadlines.append(self._shutdown.closes_at)
        if self._wants_spawn():
            deadlines.append(self._backoff.retry_at)
        if self._waiting.next_look is not None:
            deadlines.append(self._waiting.next_look)
        if self.reload.closing is not None:
            deadlines.append(self.members.accepting_until(self.current))
        return min(deadlines)

    @property
    def stopping(self) -> bool:
        """Whether a shutdown has begun."""
        return self._shutdown is not None

    @property
    def _closed(self) -> bool:
        """Whether the listeners are closed, so that no worker should accept any more."""
        return self._shutdown is not None and self._shutdown.closes_at is None

    # -- events ------------------------------------------------------------------------

    def _on_started(self, event: on.Started, now: float) -> None:
        self._started = True

    def _on_ready(self, event: on.WorkerReady, now: float) -> None:
        member = self.members.get(event.number)
        if member is None:
            return
        hurried = self._shutdown is not None and self._shutdown.quick
        if member.discarded_at is not None and not (hurried or member.escalated):
            # It had begun to serve before it was discarded, so it has requests to finish.
            member.finish_requests(now)
        if not member.booting:
            return
        member.become(WorkerState.READY, None)
        member.ready_since, member.expires = now, recycling.expiry(member, now)
        self._served = True
        self._out.log("info", "ready", member)
        if self.reload.is_candidate(member.generation):
            self._promote()

    def _on_boot_failed(self, event: on.WorkerBootFailed, now: float) -> None:
        member = self.members.get(event.number)
        if member is None or not member.booting:
            return
        member.leave(now + QUIT_GRACE)
        member.explained = True
        self._boot_failed(member, event.message, event.detail, event.exit_code, now)

    def _on_due(self, event: on.WorkerDue, now: float) -> None:
        member = self.members.get(event.number)
        if member is not None and member.ready and not member.due:
            self._replace(member, event.reason)

    def _replace(self, member: Member, reason: str) -> None:
        """Have another worker take its place."""
        member.due = reason.partition(" ")[0]
        self._out.log("info", f"due reason={reason}", member)

    def _on_retiring(self, event: on.WorkerRetiring, now: float) -> None:
        member = self.members.get(event.number)
        if member is not None and member.active:
            self._out.log("info", f"draining reason={event.reason}", member)
            member.finish_requests(now)

    def _on_stopped_accepting(self, event: on.WorkerStoppedAccepting, now: float) -> None:
        member = self.members.get(event.number)
        if member is not None:
            member.accepts_until = -math.inf

    def _on_exited(self, event: on.WorkerExited, now: float) -> None:
        member = self.members.pop(event.number, None)
        if member is None:
            return
        if member.booting:
            message = f"died while booting: {event.status}"
            self._boot_failed(member, message, event.detail, 3, now)
        elif member.ready:
            self._out.log("error", f"died: {event.status}", member, event.detail)
            self._failed(member, f"a worker died: {event.status}", now)
        else:
            level: do.Level = "info" if event.clean or member.explained else "warning"
            self._out.log(level, f"gone: {event.status}", member, event.detail)

    def _on_spawn_failed(self, event: on.SpawnFailed, now: float) -> None:
        member = self.members.pop(event.number, None)
        if member is not None:
            self._boot_failed(member, f"can't be forked: {event.reason}", "", 3, now)

    def _on_beats(self, event: on.BeatsRead, now: float) -> None:
        for member, still in self._heartbeats.stuck(self.members, event.ages, now):
            self._condemn_stuck(member, still, now)

    def _on_memory(self, event: on.MemoryRead, now: float) -> None:
        to_replace, to_kill = recycling.too_large(self.members, event.sizes, now)
        for member, reason in to_replace:
            self._replace(member, reason)
        for member, text in to_kill:
            was_booting, was_active = member.booting, member.active
            self._out.append(member.condemn(now))
            if was_booting:
                self._boot_failed(member, text, "", 3, now)
                continue
            self._out.log("error", text, member)
            if was_active:
                self._failed(member, "a worker needed too much memory", now)

    def _on_resize(self, event: on.Resize, now: float) -> None:
        if self.stopping:
            return
        most = self._capacity // 2
        self.target = min(max(1, self.target + event.by), most)
        self._out.log("info", f"resized workers={self.target}")

    def _on_reopen(self, event: on.ReopenRequested, now: float) -> None:
        self._out.append(do.ReopenLogs(tuple(self.members)))

    def _on_shutdown(self, event: on.ShutdownRequested, now: float) -> None:
        quick = event.quick or (event.insistent and self.stopping)
        self._shut_down(0, quick, now)

    def _on_tick(self, event: on.Tick, now: float) -> None:
        """Do nothing here: `handle` checks the deadlines after every event."""

    # -- failures and deadlines --------------------------------------------------------

    def _condemn_stuck(self, member: Member, still: float, now: float) -> None:
        limit = "--graceful-timeout" if member.is_overdue(now) else "--timeout"
        if still == math.inf:
            message = "stuck: its last heartbeat has a time in the future"
        else:
            message = f"stuck: its event loop has stood still for {still:.1f} s ({limit})"
        self._out.log("error", message, member)
        was_active = member.active
        member.leave(now)
        self._out.append(member.escalate(now))
        if was_active:
            self._failed(member, "a worker's event loop stood still", now)

    def _escalate_overdue(self, now: float) -> None:
        for member in list(self.members.values()):
            if member.deadline is None or now < member.deadline:
                continue
            if member.booting:
                self._condemn_slow_boot(member, now)
                continue
            if not member.escalated:
                self._out.log("error", "overdue: has not ended in time", member)
            self._out.append(member.escalate(now))

    def _condemn_slow_boot(self, member: Member, now: float) -> None:
        limit = member.generation.terms.timeout_boot
        member.leave(now)
        self._out.append(member.escalate(now))
        message = f"not ready after {limit:g} s (--timeout-boot)"
        self._boot_failed(member, message, "", 3, now)

    def _boot_failed(
        self, member: Member, message: str, detail: str, exit_code: int, now: float
    ) -> None:
        if self.stopping:
            return
        self._out.log("error", f"can't boot: {message}", member, detail)
        if not self._served:
            self._out.log("info", "giving up: nothing has served yet")
            self._shut_down(exit_code, True, now, message)
        else:
            self._failed(member, "a worker could not boot", now, detail or message)

    def _failed(self, member: Member, reason: str, now: float, detail: str = "") -> None:
        """A worker failed: undo its reload, or back off.

        `detail` says more about the reason; it may be a traceback.
        """
        if self.stopping:
            return
        if self.reload.is_candidate(member.generation):
            self._fail_reload(member.generation, reason, detail)
            return
        if self.reload.roll is not None and member.generation == self.current:
            self._roll_back(reason, detail)
        delay = self._backoff.failed(now)
        if delay:
            self._out.log("warning", f"workers keep failing; next start in {delay:.1f} s")

    # -- reload ------------------------------------------------------------------------

    def _on_reload_asked(self, event: on.ReloadAsked, now: float) -> None:
        if self.stopping:
            self._ignore_reload(event.job)
        else:
            self._out.append(do.ReadSettings(event.job))

    def _on_reload(self, event: on.ReloadAccepted, now: float) -> None:
        self._unretired.add(event.generation)
        if self.stopping:
            self._ignore_reload(event.job)
            return
        if self.reload.roll is not None or not self._served:
            self._out.log("info", "reload queued until the running one is over")
        self._trouble = ""
        self.reload.ask(GenerationTerms(event.generation, event.terms), event.job)
        self._prepare_next()
        self._tell_reload()

    def _ignore_reload(self, job: int | None) -> None:
        self._out.log("warning", "reload ignored: stopping")
        self._answer(() if job is None else (job,), False, "reload ignored: stopping")

    def _on_reload_refused(self, event: on.ReloadRefused, now: float) -> None:
        self._refuse_reload(event.reason, () if event.job is None else (event.job,))
        self._tell_reload()

    def _on_prepared(self, event: on.Prepared, now: float) -> None:
        if self.reload.prepared(event.generation):
            self._out.log("info", f"reloading: gen={event.generation} boots its first worker")

    def _on_prepare_failed(self, event: on.PrepareFailed, now: float) -> None:
        jobs = self.reload.refuse(event.generation)
        if jobs is not None:
            self._refuse_reload(event.reason, jobs)

    def _refuse_reload(self, reason: str, jobs: tuple[int, ...]) -> None:
        text = f"reload refused, gen={self.current.number} goes on serving: {reason}"
        self._out.log("error", text)
        self._answer(jobs, False, text)
        self._trouble = f"last reload refused: {reason}"
        self._out.show_failure(self.members, reason)

    def _prepare_next(self) -> None:
        """Prepare the newest requested reload, unless another reload has to end first."""
        generation = self.reload.prepare_next() if self._served else None
        if generation is not None:
            self._out.append(do.Prepare(generation.number))

    def _promote(self) -> None:
        """The canary is ready: from now on, workers of the new generation are wanted."""
        old, new = self.current.terms, self.reload.promote(self.current, self.target)
        if new.terms.workers != old.workers:
            self.target = new.terms.workers
        self._adopt(new)
        self._backoff = Backoff()  # earlier failures were those of other code

    def _adopt(self, generation: GenerationTerms) -> None:
        """Make this generation the current one, which log lines name."""
        self.current = generation
        self._out.append(do.Adopt(generation.number))

    def _roll_back(self, reason: str, detail: str) -> None:
        roll, failed = self.reload.roll, self.current
        assert roll is not None
        self._adopt(roll.previous)
        self.target = roll.previous_target
        self._fail_reload(failed, reason, detail)

    def _fail_reload(self, failed: GenerationTerms, reason: str, detail: str) -> None:
        jobs = self.reload.fail(failed)
        self._trouble = f"last reload failed: {reason}"
        text = f"reload failed, gen={self.current.number} goes on serving: gen={failed.number}: "
        text += reason
        self._out.log("error", text)
        self._answer(jobs, False, text, detail)
        self._out.show_failure(self.members, reason, detail)

    def _is_rolled(self) -> bool:
        """Whether enough new workers are ready, so that all old ones can be drained."""
        ready = sum(member.ready for member in self.members.staying(self.current.number))
        return self.reload.stage is Stage.ROLLING and ready >= self.target

    def _report_rolled(self) -> None:
        """Report that a reload is done: all new connections reach its generation."""
        if self.reload.closing is None:
            return
        jobs = self.reload.closed()
        self._out.log("info", f"reloaded workers={self.target}")
        self._answer(jobs, True, f"reloaded gen={self.current.number} workers={self.target}")

    def _retire(self) -> None:
        """Retire the generations that get no more workers."""
        unneeded = self._unretired - self.reload.needed() - {self.current.number}
        self._unretired -= unneeded
        self._out += [do.Retire(number) for number in sorted(unneeded)]

    # -- shutdown ----------------------------------------------------------------------

    def _shut_down(self, code: int, quick: bool, now: float, failure: str = "") -> None:
        shutdown = self._shutdown or self._begin_shutdown(code, quick, now, failure)
        if quick and shutdown.closes_at is not None:
            shutdown.closes_at = now
        hurry = quick and not shutdown.quick
        shutdown.quick = shutdown.quick or quick
        self._close_in_time(now)
        for member in self.members.values():
            if hurry and not (member.escalated or member.explained):
                self._out.append(member.quit(now))
            elif member.booting:
                self._out.append(member.discard(now, final=self._closed))

    def _begin_shutdown(self, code: int, quick: bool, now: float, failure: str) -> Shutdown:
        delay = 0.0 if quick else self.current.terms.drain_delay
        self._shutdown = Shutdown(code, now + delay, failure=failure)
        self._out.append(do.StopWatching())
        self._report_rolled()
        self._answer(self.reload.give_up(), False, "reload given up: stopping")
        self._out.log("info", f"stopping in {delay:g} s (--drain-delay)" if delay else "stopping")
        return self._shutdown

    def _close_in_time(self, now: float) -> None:
        """At the end of `--drain-delay`, close the listeners and drain all workers."""
        shutdown = self._shutdown
        if shutdown is None or shutdown.closes_at is None:
            return
        if now < shutdown.closes_at and self.members:
            return
        shutdown.closes_at = None
        self._out.append(do.CloseListeners())
        for member in self.members.ready():
            if not shutdown.quick:
                self._drain(member, "shutdown", now)

    # -- wanted and actual -------------------------------------------------------------

    def _reconcile(self, now: float) -> None:
        if self._shutdown is not None:
            self._retire()
            if not self.members:
                self._out.append(do.Exit(self._shutdown.exit_code, self._shutdown.failure))
            return
        if not self._started:
            return
        for member, reason in recycling.outlived(self.members, now):
            self._replace(member, reason)
        self._discard_booting(now)
        if self._is_rolled():
            self.reload.close()
        # The order matters. A generation can take over the sockets of another generation only
        # before that one is retired. And when the last worker of a retired generation drains, it is
        # told which sockets only this worker has.
        self._prepare_next()
        self._retire()
        self._drain_surplus(now)
        if now >= self.members.accepting_until(self.current):
            self._report_rolled()
        self._spawn_canary(now)
        self._spawn_missing(now)
        self._note_complete()

    def _discard_booting(self, now: float) -> None:
        """Discard booting workers that aren't wanted any more."""
        booting = [member for member in self.members.values() if member.booting]
        for member in booting:
            wanted = member.generation == self.current
            if not (wanted or self.reload.is_candidate(member.generation)):
                self._out.append(member.discard(now, final=self._closed))
        staying = self.members.staying(self.current.number)
        excess = len(self.members.active()) - self.target - self.current.terms.surge
        surplus = max(len(staying) - self.target, excess)
        for member in [m for m in staying if m.booting][::-1][: max(0, surplus)]:
            self._out.append(member.discard(now, final=self._closed))

    def _drain_surplus(self, now: float) -> None:
        """Drain ready workers beyond the target number, those of older generations first."""
        ready = self.members.ready()
        surplus = len(ready) - self.target
        if surplus <= 0:
            return
        ready.sort(key=lambda m: (m.generation == self.current, not m.due, -m.number))
        for member in ready[:surplus]:
            stale = member.generation != self.current
            self._drain(member, "reload" if stale else member.due or "resize", now)

    def _drain(self, member: Member, reason: str, now: float) -> None:
        self._out.log("info", f"draining reason={reason}", member)
        self._out.append(member.drain(reason, now, final=self._closed))

    def _room(self) -> int:
        """The number of workers that may be started now."""
        free = self._capacity - len(self.members)
        most = self.target + self.current.terms.surge
        return min(most - len(self.members.active()), free)

    def _wants_spawn(self) -> bool:
        if self.stopping or not self._started:
            return False
        return len(self.members.staying(self.current.number)) < self.target and self._room() > 0

    def _spawn_canary(self, now: float) -> None:
        candidate = self.reload.candidate
        if candidate is None or self._room() <= 0 or self.reload.closing is not None:
            return
        if self.members.canary_must_wait(self.reload.settled, now):
            return
        if not any(m.generation == candidate for m in self.members.active()):
            self._spawn(candidate, now)

    def _spawn_missing(self, now: float) -> None:
        if self._wants_spawn() and self._backoff.allows(now):
            missing = self.target - len(self.members.staying(self.current.number))
            for _ in range(min(missing, self._room())):
                self._spawn(self.current, now)

    def _spawn(self, generation: GenerationTerms, now: float) -> None:
        number = self.members.free_number()
        deadline = now + generation.terms.timeout_boot
        share = recycling.share_of(self._spawned, self._phase)
        self.members[number] = Member(number, generation, deadline, since=now, share=share)
        self._spawned += 1
        self._out.append(do.Spawn(number, generation.number))

    def _note_complete(self) -> None:
        ready = len(self.members.ready())
        if not self._complete and ready >= self.target:
            self._complete = True
            self._out.log("info", f"serving workers={ready}")

    # -- reporting ---------------------------------------------------------------------

    def _report_waiting(self, now: float) -> None:
        """Log from time to time what a long boot or stop is waiting for."""
        booting = [Booting(m.number, m.since) for m in self.members.values() if m.booting]
        stopping = self.members if self._closed else ()
        quick = self._shutdown is not None and self._shutdown.quick
        self._out += self._waiting.look(booting, stopping, now, quick=quick)

    def _answer(self, jobs: tuple[int, ...], ok: bool, text: str, detail: str = "") -> None:
        stopping = self.stopping and not ok
        self._answers += [do.Answer(job, ok, text, detail, stopping) for job in jobs]

    def _tell(self) -> None:
        told = do.Tell(self._state(), self._status())
        if told != self._told:
            self._told = told
            self._out.append(told)

    def _tell_reload(self) -> None:
        """Report that a reload was asked for: the service manager waits for its start and its end.

        A refused reload is reported as one that ended immediately.
        """
        if self._complete and not self.stopping:
            status = self._status()
            self._told = do.Tell("reloading", status)
            self._out.append(do.Tell("reloading", status, again=True))

    def _state(self) -> do.State:
        if self.stopping:
            return "stopping"
        if self.reload.running:
            return "reloading"
        return "serving" if self._complete else "starting"

    def _status(self) -> str:
        draining = len(self.members) - len(self.members.active())
        ready = len(self.members.ready())
        status = f"gen {self.current.number}: {ready} of {self.target} workers ready"
        if self.reload.candidate is not None:
            status += f", gen {self.reload.candidate.number} boots"
        status += f", {draining} draining" if draining else ""
        return status + (f"; {self._trouble}" if self._trouble else "")

    _HANDLERS: ClassVar[dict[type[Event], Callable[..., None]]] = {
        on.Started: _on_started,
        on.WorkerReady: _on_ready,
        on.WorkerBootFailed: _on_boot_failed,
        on.WorkerDue: _on_due,
        on.WorkerRetiring: _on_retiring,
        on.WorkerStoppedAccepting: _on_stopped_accepting,
        on.WorkerExited: _on_exited,
        on.SpawnFailed: _on_spawn_failed,
        on.BeatsRead: _on_beats,
        on.MemoryRead: _on_memory,
        on.ReloadAsked: _on_reload_asked,
        on.ReloadAccepted: _on_reload,
        on.ReloadRefused: _on_reload_refused,
        on.Prepared: _on_prepared,
        on.PrepareFailed: _on_prepare_failed,
        on.Resize: _on_resize,
        on.ReopenRequested: _on_reopen,
        on.ShutdownRequested: _on_shutdown,
        on.Tick: _on_tick,
    }
