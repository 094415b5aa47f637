"""The invariants of the fleet, over random histories in simulated time.

`World` simulates everything outside the fleet: it starts, loses and kills workers as the actions
say, lets time pass, and lets workers boot, fail, hang, fall due and die at random. After every
event the invariants are checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from esg.supervisor.fleet import actions as do
from esg.supervisor.fleet import events as on
from esg.supervisor.fleet.fleet import Fleet
from esg.supervisor.fleet.heartbeats import CHECK_INTERVAL, STANDSTILL, SUSPENSION
from esg.supervisor.fleet.members import (
    ACCEPTING_WAIT,
    ESCALATION,
    EXIT_MARGIN,
    NEXT_STATES,
    OVERTAKEN_WAIT,
    QUIT_GRACE,
    WorkerState,
)
from esg.supervisor.fleet.reload import NEXT_STAGES, Reload, Stage
from esg.supervisor.fleet.terms import GenerationTerms, Terms

GRACE = 10.0
BOOT_LIMIT = 8.0
BEAT_LIMIT = 5.0
ESCALATION_TIME = sum(pause for _, pause in ESCALATION[:3])


@dataclass
class Process:
    """A worker in the world, with the orders that it got from the fleet."""

    number: int
    generation: int
    born: float
    ready: bool = False
    told: list[str] = field(default_factory=list)
    leaving_since: float | None = None
    stuck: bool = False
    stuck_since: float = 0.0
    dead: bool = False
    repeats_ready: bool = False
    may_accept: bool = False
    """Whether it was told to drain, and hasn't said yet that it accepts no connections."""


class World:
    """Performs actions on simulated processes, and passes events to the fleet."""

    def __init__(self, terms: Terms, capacity: int = 64) -> None:
        self.now = 100.0
        self.fleet = Fleet(terms, self.now, capacity=capacity)
        self.processes: dict[int, Process] = {}
        self.log: list[do.Log] = []
        self.exits: list[int] = []
        self.jobs = 0
        self.answers: dict[int, do.Answer] = {}
        self.told: list[do.Tell] = []
        self.generations = 1
        self.prepared = {1}
        self.cannot_prepare = False
        self.adopted = 1
        self.ever_adopted = {1}
        self.retired: set[int] = set()
        self.consequences: list[on.Event] = []
        self.reads: list[int | None] = []
        self.listening = self.watching = True
        self.spawns = 0
        self.violations: list[str] = []
        self.may_dip = False
        self.confirms = True
        """Whether workers say that they accept no connections any more."""

    def tell(self, event: on.Event) -> list[do.Action]:
        """Pass an event to the fleet and perform the actions that it returns."""
        ready_before = self.ready_count()
        if isinstance(event, on.WorkerStoppedAccepting) and event.number in self.processes:
            self.processes[event.number].may_accept = False
        actions = self.fleet.handle(event, self.now)
        for action in actions:
            self.perform(action)
        dipped = self.ready_count() < min(ready_before, self.fleet.target)
        if dipped and not self.may_dip and not self.fleet.stopping:
            self.violations.append(f"{event} made {self.ready_count()} of {ready_before} ready")
        consequences, self.consequences = self.consequences, []
        for consequence in consequences:
            actions += self.tell(consequence)
        return actions

    def perform(self, action: do.Action) -> None:
        match action:
            case do.Spawn(number, generation):
                assert number not in self.processes, "a number is used twice"
                assert generation in self.prepared, "its sockets aren't open"
                assert generation not in self.retired, "its sockets are closed"
                self.processes[number] = Process(number, generation, self.now)
                self.spawns += 1
            case do.Drain() | do.Discard() | do.Quit():
                process = self.processes[action.number]
                process.told.append(type(action).__name__)
                if process.leaving_since is None:
                    process.leaving_since = self.now
                    process.may_accept = isinstance(action, do.Drain | do.Discard)
                    if process.may_accept and self.confirms:
                        self.consequences.append(on.WorkerStoppedAccepting(action.number))
            case do.DumpStack() | do.Abort():
                process = self.processes[action.number]
                process.told.append(type(action).__name__)
                if process.leaving_since is None:
                    process.leaving_since = self.now
            case do.Kill():
                process = self.processes[action.number]
                process.dead = True
                if process.leaving_since is None:
                    process.leaving_since = self.now
            case do.CloseListeners():
                self.listening = False
            case do.ReadSettings(job):
                self.reads.append(job)
            case do.Prepare(generation):
                assert generation not in self.prepared | self.retired
                self.consequences.append(self.prepare(generation))
            case do.Adopt(generation):
                assert generation in self.prepared - self.retired
                self.adopted = generation
                self.ever_adopted.add(generation)
            case do.Retire(generation):
                assert generation <= self.generations, "nobody knows this generation"
                assert generation not in self.retired, "a generation is retired twice"
                assert generation != self.adopted, "the generation that serves is retired"
                self.retired.add(generation)
            case do.StopWatching():
                self.watching = False
            case do.Log():
                self.log.append(action)
                if action.event.startswith("reloaded "):
                    self.check_reloaded_line()
            case do.Tell():
                self.told.append(action)
            case do.Answer(job):
                assert 0 < job <= self.jobs, "nobody has asked"
                assert job not in self.answers, "a job is answered twice"
                self.answers[job] = action
            case do.Exit(code):
                self.exits.append(code)

    def check_reloaded_line(self) -> None:
        """The line names the generation that was adopted last, the one that serves."""
        serving = {p.generation for p in self.processes.values() if p.leaving_since is None}
        if serving != {self.adopted}:
            self.violations.append(f"reloaded gen={self.adopted}, while {serving} serve")
        accepting = {p.number for p in self.processes.values() if self.is_waited_for(p)}
        if accepting and not self.fleet.stopping:
            self.violations.append(f"reloaded, while {accepting} may accept connections")

    def is_waited_for(self, process: Process) -> bool:
        """Whether a reload waits until this process of an old generation stops accepting."""
        since = process.leaving_since
        waited = since is not None and self.now >= since + ACCEPTING_WAIT
        return process.may_accept and process.generation != self.adopted and not waited

    def prepare(self, generation: int) -> on.Event:
        """Open the sockets and log files of a generation."""
        if self.cannot_prepare:
            return on.PrepareFailed(generation, "can't listen: address in use")
        self.prepared.add(generation)
        return on.Prepared(generation)

    def reload(self, terms: Terms, job: int | None = None) -> list[do.Action]:
        """Read valid settings for a new generation."""
        self.generations += 1
        return self.tell(on.ReloadAccepted(self.generations, terms, job))

    def ask_for_reload(self, terms: Terms) -> int:
        """A reload that a client waits for; returns the number of the job."""
        self.jobs += 1
        self.reload(terms, self.jobs)
        return self.jobs

    @property
    def unretired(self) -> set[int]:
        return set(range(1, self.generations + 1)) - self.retired

    def ready_count(self) -> int:
        return sum(p.ready and p.leaving_since is None for p in self.processes.values())

    def exit(self, process: Process, clean: bool = False) -> None:
        """The process ends, and the arbiter reaps it."""
        del self.processes[process.number]
        was_serving = process.leaving_since is None
        self.may_dip = was_serving
        status = "exit status 0" if clean else "killed by SIGKILL"
        self.tell(on.WorkerExited(process.number, status, clean))
        self.may_dip = False

    def reap(self) -> None:
        for process in [p for p in self.processes.values() if p.dead]:
            self.exit(process)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and wake the fleet at each of its deadlines."""
        end = self.now + seconds
        while not self.exits:
            deadline = self.fleet.next_deadline()
            if deadline is None or deadline > end:
                break
            self.now = max(self.now, deadline)
            self.wake()
        self.now = max(self.now, end)
        if not self.exits:
            self.wake()

    def wake(self) -> None:
        ages = {
            p.number: (self.now - p.stuck_since if p.stuck else 0.0)
            for p in self.processes.values()
        }
        self.may_dip = any(age > BEAT_LIMIT for age in ages.values())
        self.tell(on.BeatsRead(ages))
        self.tell(on.Tick())
        for process in [p for p in self.processes.values() if p.repeats_ready]:
            self.tell(on.WorkerReady(process.number))
        self.may_dip = False
        self.reap()


def terms_of(
    workers: int, surge: int, drain_delay: float = 0.0, *, debug: bool = False, **limits: Any
) -> Terms:
    return Terms(
        workers=workers,
        surge=surge,
        graceful_timeout=GRACE,
        timeout_boot=BOOT_LIMIT,
        timeout=BEAT_LIMIT,
        drain_delay=drain_delay,
        debug=debug,
        **limits,
    )


MEMORY_LIMITS = {"max_memory": 100, "max_memory_hard": 200}


class FleetHistories(RuleBasedStateMachine):
    """Random histories of a fleet and its world."""

    @initialize(
        workers=st.integers(1, 5),
        surge=st.integers(1, 3),
        boots=st.sampled_from((True, True, True, False)),
        delay=st.sampled_from((0.0, 5.0)),
        lifetime=st.sampled_from((0.0, 0.0, 20.0)),
    )
    def begin(self, workers: int, surge: int, boots: bool, delay: float, lifetime: float) -> None:
        limits = {"max_lifetime": lifetime, "max_lifetime_jitter": 10.0, **MEMORY_LIMITS}
        self.world = World(terms_of(workers, surge, delay, **limits))
        self.surge = surge
        self.served = False
        self.world.tell(on.Started())
        if boots:
            self.all_boot()

    def some(self, data: st.DataObject, **wanted: object) -> Process | None:
        chosen = [
            p
            for p in self.world.processes.values()
            if all(getattr(p, name) == value for name, value in wanted.items())
        ]
        return data.draw(st.sampled_from(chosen)) if chosen else None

    alive = precondition(lambda self: not self.world.exits)

    @precondition(lambda self: self.world.exits)
    @rule()
    def nothing_more_happens(self) -> None:
        """The arbiter has ended."""

    # -- what workers do -----------------------------------------------------------------

    @alive
    @rule(confirms=st.booleans())
    def drains_are_confirmed(self, confirms: bool) -> None:
        """Workers say, or don't say, that they accept no connections any more."""
        self.world.confirms = confirms

    @alive
    @rule(data=st.data())
    def boots(self, data: st.DataObject) -> None:
        process = self.some(data, ready=False, stuck=False)
        if process is not None:
            if process.leaving_since is None:
                process.ready = True
                self.served = True
            self.world.tell(on.WorkerReady(process.number))

    @alive
    @rule(data=st.data())
    def repeats_ready(self, data: st.DataObject) -> None:
        """It repeats this from now on, also while it drains."""
        repeating = [
            p for p in self.world.processes.values() if p.ready or p.leaving_since is not None
        ]
        if repeating:
            data.draw(st.sampled_from(repeating)).repeats_ready = True

    @alive
    @rule()
    def every_worker_boots(self) -> None:
        self.all_boot()

    def all_boot(self) -> None:
        for process in list(self.world.processes.values()):
            if not process.ready and not process.stuck and process.leaving_since is None:
                process.ready = self.served = True
                self.world.tell(on.WorkerReady(process.number))

    @alive
    @rule(data=st.data(), says_why=st.booleans())
    def fails_to_boot(self, data: st.DataObject, says_why: bool) -> None:
        process = self.some(data, ready=False)
        if process is None:
            return
        if says_why:
            process.leaving_since = self.world.now
            self.world.tell(on.WorkerBootFailed(process.number, "broken", "Traceback", 4))
        self.world.exit(process)

    @alive
    @rule()
    def logs_are_rotated(self) -> None:
        """Every worker gets the new files, in any state."""
        actions = self.world.tell(on.ReopenRequested())
        (reopen,) = [action for action in actions if isinstance(action, do.ReopenLogs)]
        assert set(reopen.numbers) >= set(self.world.processes)

    @alive
    @rule(data=st.data())
    def falls_due(self, data: st.DataObject) -> None:
        process = self.some(data, ready=True, leaving_since=None)
        if process is not None:
            self.world.tell(on.WorkerDue(process.number, "max-requests"))

    @alive
    @rule(data=st.data(), size=st.sampled_from((50, 150, 250)))
    def needs_memory(self, data: st.DataObject, size: int) -> None:
        process = self.some(data)
        if process is None:
            return
        self.world.may_dip = size > MEMORY_LIMITS["max_memory_hard"]
        self.world.tell(on.MemoryRead({process.number: size}))
        self.world.may_dip = False

    @alive
    @rule(data=st.data())
    def finishes_draining(self, data: st.DataObject) -> None:
        leaving = [p for p in self.world.processes.values() if p.leaving_since is not None]
        if leaving:
            self.world.exit(data.draw(st.sampled_from(leaving)), clean=True)

    @alive
    @rule(data=st.data())
    def is_killed(self, data: st.DataObject) -> None:
        process = self.some(data)
        if process is not None:
            self.world.exit(process)

    @alive
    @rule(data=st.data())
    def gets_stuck(self, data: st.DataObject) -> None:
        process = self.some(data, stuck=False)
        if process is not None:
            process.stuck, process.stuck_since = True, self.world.now

    # -- what the operator does ------------------------------------------------------------

    @alive
    @rule(
        workers=st.integers(1, 5),
        is_awaited=st.booleans(),
        can_listen=st.sampled_from((True, True, True, False)),
    )
    def reload(self, workers: int, is_awaited: bool, can_listen: bool) -> None:
        terms = terms_of(workers, self.surge)
        world = self.world
        active = [p for p in world.processes.values() if p.leaving_since is None]
        room = world.fleet.target + self.surge - len(active)
        boots_now = can_listen and self.served and room > 0 and not world.fleet.reload.running
        spawns = world.spawns
        world.cannot_prepare = not can_listen
        if is_awaited:
            world.ask_for_reload(terms)
        else:
            world.reload(terms)
        world.cannot_prepare = False
        if boots_now and not world.fleet.stopping:
            assert world.spawns > spawns, "a reload waits for workers that failed or are leaving"

    @alive
    @rule()
    def reload_is_refused(self) -> None:
        before = set(self.world.processes)
        self.world.tell(on.ReloadRefused("unknown key"))
        assert set(self.world.processes) == before

    @alive
    @rule()
    def awaited_reload_is_refused(self) -> None:
        self.world.jobs += 1
        self.world.tell(on.ReloadRefused("unknown key", self.world.jobs))
        assert not self.world.answers[self.world.jobs].ok

    @alive
    @rule(by=st.sampled_from((-1, 1)))
    def resize(self, by: int) -> None:
        self.world.tell(on.Resize(by))

    @alive
    @precondition(lambda self: self.world.spawns > 8)
    @rule(quick=st.booleans())
    def shut_down(self, quick: bool) -> None:
        self.world.tell(on.ShutdownRequested(quick=quick))

    @alive
    @rule(seconds=st.sampled_from((0.1, 0.6, 1.0, 2.5, 7.0, 20.0, 70.0)))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    # -- invariants ----------------------------------------------------------------------------

    @invariant()
    def no_event_makes_too_few_workers_ready(self) -> None:
        assert not self.world.violations, self.world.violations

    @invariant()
    def never_more_than_target_and_surge(self) -> None:
        active = [p for p in self.world.processes.values() if p.leaving_since is None]
        assert len(active) <= self.world.fleet.target + self.surge

    @invariant()
    def one_step_at_a_time(self) -> None:
        """Beyond the missing workers, no more replacements boot than the surge allows."""
        active = [p for p in self.world.processes.values() if p.leaving_since is None]
        ready = sum(p.ready for p in active)
        assert len(active) - ready <= max(0, self.world.fleet.target - ready) + self.surge

    @invariant()
    def leaving_workers_are_gone_in_time(self) -> None:
        limit = max(GRACE + EXIT_MARGIN, QUIT_GRACE) + QUIT_GRACE + ESCALATION_TIME + 0.1
        for process in self.world.processes.values():
            if process.leaving_since is not None:
                assert self.world.now - process.leaving_since <= limit

    @invariant()
    def stuck_workers_are_gone_in_time(self) -> None:
        limit = max(BEAT_LIMIT, BOOT_LIMIT) + CHECK_INTERVAL * 4 + ESCALATION_TIME + 0.1
        for process in self.world.processes.values():
            if process.stuck and process.leaving_since is None:
                assert self.world.now - max(process.stuck_since, process.born) <= limit

    @invariant()
    def the_arbiter_never_gives_up_once_it_served(self) -> None:
        if self.world.exits and self.served:
            assert self.world.fleet.stopping
            assert self.world.exits == [0]

    @invariant()
    def serving_is_only_reported_once_it_serves(self) -> None:
        """READY=1 is sent for it; no report is repeated unless a reload began again."""
        states = [told.state for told in self.world.told]
        if "serving" in states:
            assert self.served
        if "stopping" in states:
            assert set(states[states.index("stopping") :]) == {"stopping"}
        for told, after in zip(self.world.told, self.world.told[1:], strict=False):
            assert told.state != after.state or told.status != after.status or after.again

    @invariant()
    def a_good_answer_is_only_given_when_the_new_generation_serves_alone(self) -> None:
        if any(answer.ok for answer in self.world.answers.values()):
            assert any("reloaded workers=" in line.event for line in self.world.log)

    @invariant()
    def nobody_waits_without_a_reload(self) -> None:
        fleet = self.world.fleet
        if self.world.jobs > len(self.world.answers):
            assert fleet.reload.running or not self.served

    @invariant()
    def only_generations_that_are_not_needed_are_retired(self) -> None:
        fleet = self.world.fleet
        assert self.world.unretired == fleet.reload.needed() | {fleet.current.number}

    @invariant()
    def files_are_watched_until_a_stop(self) -> None:
        assert self.world.watching is not self.world.fleet.stopping

    @invariant()
    def exit_leaves_no_worker(self) -> None:
        if self.world.exits:
            assert not self.world.processes
            assert not self.world.listening
            assert len(self.world.exits) == 1

    def teardown(self) -> None:
        """After any history, the fleet becomes complete again if workers can boot, and
        after a shutdown every history ends in Exit."""
        if not hasattr(self, "world"):
            return
        self._heals()
        self._ends()

    def _heals(self) -> None:
        world, quiet = self.world, 0
        for _ in range(80):
            if world.exits or world.fleet.stopping:
                return
            for process in list(world.processes.values()):
                if process.leaving_since is not None and not process.stuck:
                    world.exit(process, clean=True)
                elif not process.ready and not process.stuck and process.leaving_since is None:
                    process.ready = True
                    world.tell(on.WorkerReady(process.number))
            world.pass_time(2.0)
            members = world.fleet.members.values()
            complete = all(m.ready and not m.due for m in members)
            quiet += complete and len(members) == world.fleet.target
            if quiet > 20:  # longer than between two due workers
                break
        assert len(members) == world.fleet.target
        assert all(m.state is WorkerState.READY and not m.due for m in members)
        assert {m.generation for m in members} == {world.fleet.current}
        assert world.unretired == {world.fleet.current.number}
        assert not world.fleet.reload.running
        assert set(world.answers) == set(range(1, world.jobs + 1))

    def _ends(self) -> None:
        world = self.world
        if not world.exits:
            world.tell(on.ShutdownRequested())
            world.pass_time(GRACE + EXIT_MARGIN + QUIT_GRACE + ESCALATION_TIME + 10)
        assert world.exits
        assert not world.processes
        assert world.unretired == {world.fleet.current.number}
        assert set(world.answers) == set(range(1, world.jobs + 1))


HISTORIES = int(os.environ.get("ESG_TEST_HISTORIES", "250"))
FleetHistories.TestCase.settings = settings(
    max_examples=HISTORIES,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class TestFleetHistories(FleetHistories.TestCase):  # type: ignore[name-defined,misc]
    """Random histories, different in every run; ESG_TEST_HISTORIES=1000 takes a minute."""


# -- single histories, each about one invariant or one pitfall -----------------------------------


def serving(workers: int = 3, surge: int = 1, *, debug: bool = False) -> World:
    """A world whose first generation is ready."""
    world = World(terms_of(workers, surge, debug=debug))
    world.tell(on.Started())
    boot_all(world)
    return world


def boot_all(world: World) -> None:
    for process in list(world.processes.values()):
        if not process.ready and process.leaving_since is None:
            process.ready = True
            world.tell(on.WorkerReady(process.number))


def generations(world: World) -> list[int]:
    return sorted(p.generation for p in world.processes.values() if p.leaving_since is None)


def events(world: World) -> str:
    return "\n".join(line.event for line in world.log)


def test_all_workers_of_the_first_generation_start_together() -> None:
    world = World(terms_of(4, 1))
    world.tell(on.Started())
    assert sorted(world.processes) == [1, 2, 3, 4]


def test_a_reload_boots_one_canary_and_drains_nothing_for_it() -> None:
    world = serving(3)
    world.reload(terms_of(3, 1))
    assert generations(world) == [1, 1, 1, 2]


def test_a_reload_rolls_until_only_the_new_generation_is_left() -> None:
    world = serving(3)
    world.reload(terms_of(3, 1))
    for _ in range(3):
        boot_all(world)
    assert generations(world) == [2, 2, 2]
    assert "reloaded workers=3" in events(world)


def test_a_canary_that_fails_leaves_exactly_the_old_generation() -> None:
    world = serving(3)
    before = set(world.processes)
    world.reload(terms_of(3, 1))
    (canary,) = (p for p in world.processes.values() if p.generation == 2)
    canary.leaving_since = world.now
    world.tell(on.WorkerBootFailed(canary.number, "no module", "Traceback", 4))
    world.exit(canary)
    world.pass_time(60)
    assert set(world.processes) == before
    assert "reload failed, gen=1 goes on serving" in events(world)
    world.reload(terms_of(3, 1))
    for _ in range(3):
        boot_all(world)
    assert generations(world) == [3, 3, 3]


def failures(actions: list[do.Action]) -> list[do.ShowFailure]:
    return [action for action in actions if isinstance(action, do.ShowFailure)]


def test_a_reload_is_done_once_no_old_worker_accepts() -> None:
    world = serving(workers=2)
    world.confirms = False
    old = sorted(world.processes)
    job = world.ask_for_reload(terms_of(2, 1))
    while not all(process.leaving_since for process in list(world.processes.values())[:2]):
        boot_all(world)
    assert job not in world.answers
    assert world.told[-1].state == "reloading"
    world.tell(on.WorkerStoppedAccepting(old[0]))
    assert job not in world.answers
    world.tell(on.WorkerStoppedAccepting(old[1]))
    assert world.answers[job].ok
    assert world.told[-1].state == "serving"


def test_a_reload_waits_for_an_old_worker_that_was_discarded_when_it_began_to_accept() -> None:
    world = serving(workers=1)
    world.confirms = False
    world.exit(world.processes[1])
    job = world.ask_for_reload(terms_of(1, 1))
    discarded, canary = world.processes.values()
    canary.ready = True
    world.tell(on.WorkerReady(canary.number))
    assert discarded.told == ["Discard"]
    assert job not in world.answers
    world.tell(on.WorkerReady(discarded.number))
    world.tell(on.WorkerStoppedAccepting(discarded.number))
    assert world.answers[job].ok


def test_a_reload_does_not_wait_long_for_an_old_worker_that_says_nothing() -> None:
    world = serving(workers=1)
    world.confirms = False
    job = world.ask_for_reload(terms_of(1, 1))
    boot_all(world)
    assert job not in world.answers
    world.pass_time(ACCEPTING_WAIT)
    assert world.answers[job].ok


def test_a_reload_during_that_wait_begins_after_it() -> None:
    world = serving(workers=1)
    world.confirms = False
    first = world.ask_for_reload(terms_of(1, 1))
    boot_all(world)
    second = world.ask_for_reload(terms_of(1, 1))
    boot_all(world)
    assert world.answers == {}
    world.pass_time(ACCEPTING_WAIT)
    assert world.answers == {first: do.Answer(first, True, "reloaded gen=2 workers=1")}
    boot_all(world)
    world.pass_time(ACCEPTING_WAIT)
    assert world.answers[second].text == "reloaded gen=3 workers=1"


def test_a_stop_during_that_wait_answers_that_the_reload_is_done() -> None:
    world = serving(workers=1)
    world.confirms = False
    job = world.ask_for_reload(terms_of(1, 1))
    boot_all(world)
    world.tell(on.ShutdownRequested())
    assert world.answers[job].ok


def test_workers_are_told_why_a_reload_failed() -> None:
    world = serving(2, debug=True)
    old = tuple(world.processes)
    world.reload(terms_of(2, 1))
    (canary,) = (p for p in world.processes.values() if p.generation == 2)
    canary.leaving_since = world.now
    (told,) = failures(world.tell(on.WorkerBootFailed(canary.number, "no module", "Traceback", 4)))
    assert told.numbers == old
    assert told.detail == "Traceback"


def test_workers_are_told_why_a_reload_was_refused() -> None:
    world = serving(2, debug=True)
    (told,) = failures(world.tell(on.ReloadRefused("unknown key")))
    assert told == do.ShowFailure(tuple(world.processes), "unknown key", "")


def test_workers_without_debug_are_not_told_why_a_reload_failed() -> None:
    world = serving(2)
    assert failures(world.tell(on.ReloadRefused("unknown key"))) == []
    world.reload(terms_of(2, 1))
    assert failures(world.tell(on.WorkerBootFailed(3, "no module", "Traceback", 4))) == []


def test_a_worker_that_dies_outside_a_reload_fails_no_reload() -> None:
    world = serving(2)
    number, _ = world.processes.popitem()
    world.may_dip = True
    assert failures(world.tell(on.WorkerExited(number, "killed by SIGKILL"))) == []


def test_a_canary_that_hangs_is_dumped_aborted_and_given_up() -> None:
    world = serving(2)
    world.reload(terms_of(2, 1))
    (canary,) = (p for p in world.processes.values() if p.generation == 2)
    world.pass_time(BOOT_LIMIT + 1.5)
    assert canary.told == ["DumpStack", "Abort"]
    assert not world.fleet.reload.running


def test_a_new_worker_that_dies_before_the_roll_ends_brings_the_old_generation_back() -> None:
    world = serving(3)
    world.reload(terms_of(3, 1))
    boot_all(world)
    fresh = next(p for p in world.processes.values() if p.generation == 2 and p.ready)
    world.exit(fresh)
    for _ in range(6):
        boot_all(world)
        world.pass_time(1)
    assert generations(world) == [1, 1, 1]


def test_a_canary_that_served_by_the_time_it_is_discarded_may_finish_its_requests() -> None:
    world = serving(2)
    world.reload(terms_of(2, 1))
    (canary,) = (p for p in world.processes.values() if p.generation == 2)
    world.reload(terms_of(2, 1))
    assert canary.told == ["Discard"]
    world.tell(on.WorkerReady(canary.number))  # its message was on the way
    world.pass_time(max(GRACE, QUIT_GRACE) + EXIT_MARGIN - 1)
    assert canary.told == ["Discard"]
    world.pass_time(2)
    assert canary.told[1] == "DumpStack"


def test_a_reload_requested_while_a_canary_boots_replaces_it() -> None:
    world = serving(2)
    world.reload(terms_of(2, 1))
    world.reload(terms_of(2, 1))
    assert generations(world) == [1, 1]
    (overtaken,) = [p for p in world.processes.values() if p.generation == 2]
    world.exit(overtaken)
    assert generations(world) == [1, 1, 3]


def test_an_overtaken_canary_that_does_not_end_delays_the_next_one_only_briefly() -> None:
    world = serving(2)
    world.reload(terms_of(2, 1))
    world.reload(terms_of(2, 1))
    world.pass_time(OVERTAKEN_WAIT + CHECK_INTERVAL)
    assert generations(world) == [1, 1, 3]


def test_an_overtaken_canary_that_serves_does_not_delay_the_next_one() -> None:
    world = serving(2)
    world.reload(terms_of(2, 1))
    (canary,) = (p for p in world.processes.values() if p.generation == 2)
    world.reload(terms_of(2, 1))
    world.tell(on.WorkerReady(canary.number))
    assert generations(world) == [1, 1, 3]


def test_a_canary_does_not_wait_for_workers_of_a_failed_roll() -> None:
    world = serving(4)
    world.reload(terms_of(4, 1))
    boot_all(world)
    fresh = next(p for p in world.processes.values() if p.generation == 2 and p.ready)
    booting = [p for p in world.processes.values() if p.generation == 2 and not p.ready]
    world.exit(fresh)
    assert [p.told for p in booting] == [["Discard"]]  # it still exists
    boot_all(world)
    world.reload(terms_of(4, 1))
    assert 3 in generations(world)


def test_a_canary_does_not_wait_for_one_that_could_not_boot() -> None:
    world = serving(2)
    world.reload(terms_of(2, 1))
    (canary,) = (p for p in world.processes.values() if p.generation == 2)
    canary.leaving_since = world.now
    world.tell(on.WorkerBootFailed(canary.number, "no module", "Traceback", 4))
    world.reload(terms_of(2, 1))
    assert generations(world) == [1, 1, 3]


def test_a_second_ready_changes_nothing() -> None:
    world = serving(2)
    process = world.processes[1]
    assert world.tell(on.WorkerReady(1)) == []
    world.tell(on.WorkerRetiring(1, "SIGTERM"))
    process.leaving_since = world.now
    process.repeats_ready = True
    world.pass_time(GRACE + EXIT_MARGIN + ESCALATION[0][1] + ESCALATION[1][1])
    assert process.told == ["DumpStack", "Abort"]


def test_the_last_line_of_a_reload_names_the_generation_that_serves() -> None:
    world = serving(1)
    actions = world.reload(terms_of(1, 1))
    (number,) = [a.number for a in actions if isinstance(a, do.Spawn)]
    world.processes[number].ready = True
    actions = world.tell(on.WorkerReady(number))
    adopted = next(i for i, a in enumerate(actions) if isinstance(a, do.Adopt))
    reloaded = actions.index(do.Log("info", "reloaded workers=1"))
    assert adopted < reloaded


def test_a_reload_requested_during_a_roll_begins_after_it() -> None:
    world = serving(3)
    world.reload(terms_of(3, 1))
    boot_all(world)
    world.reload(terms_of(3, 1))
    assert 3 not in generations(world)
    for _ in range(6):
        boot_all(world)
    assert generations(world) == [3, 3, 3]


def test_the_previous_and_the_queued_generation_of_a_reload_are_not_retired() -> None:
    world = serving(3)
    world.reload(terms_of(3, 1))
    assert world.unretired == {1, 2}  # the canary boots
    boot_all(world)
    world.reload(terms_of(3, 1))
    assert world.unretired == {1, 2, 3}  # it rolls
    while world.fleet.current.number != 3:
        boot_all(world)
    assert world.unretired == {2, 3}
    for _ in range(6):
        boot_all(world)
    assert world.unretired == {3}


def test_a_reload_that_is_overtaken_before_it_begins_is_never_prepared() -> None:
    world = serving(3)
    world.reload(terms_of(3, 1))
    boot_all(world)
    for _ in range(2):
        world.reload(terms_of(3, 1))
    assert world.unretired == {1, 2, 4}
    for _ in range(6):
        boot_all(world)
    assert world.prepared == {1, 2, 4}


def test_a_generation_is_retired_before_its_last_worker_is_drained() -> None:
    """That worker is told which sockets only it has."""
    world = serving(1)
    world.reload(terms_of(1, 1))
    world.processes[2].ready = True
    actions = world.tell(on.WorkerReady(2))
    (drain,) = [action for action in actions if isinstance(action, do.Drain)]
    order = [actions.index(action) for action in (do.Adopt(2), do.Retire(1), drain)]
    assert order == sorted(order)


def test_a_queued_reload_is_prepared_before_the_sockets_that_it_may_share_are_closed() -> None:
    world = serving(2)
    world.reload(terms_of(2, 1))
    boot_all(world)
    world.reload(terms_of(2, 1))
    (last,) = [p for p in world.processes.values() if p.generation == 2 and not p.ready]
    last.ready = True
    actions = world.tell(on.WorkerReady(last.number))
    assert actions.index(do.Prepare(3)) < actions.index(do.Retire(1))


def refused(world: World) -> list[do.Action]:
    """A reload whose sockets can't be opened."""
    world.cannot_prepare = True
    world.jobs += 1
    actions = world.reload(terms_of(2, 1), world.jobs)
    world.cannot_prepare = False
    return actions


def test_a_reload_that_cannot_be_prepared_is_refused() -> None:
    world = serving(2, debug=True)
    actions = refused(world)
    text = "reload refused, gen=1 goes on serving: can't listen: address in use"
    assert do.Log("error", text) in actions
    assert world.answers == {1: do.Answer(1, False, text)}
    assert failures(actions)
    assert generations(world) == [1, 1]
    assert world.unretired == {1}
    assert states(world)[1:] == ["serving", "reloading", "serving"]


def test_a_reload_that_cannot_be_prepared_leaves_the_canary_before_it_alone() -> None:
    world = serving(2)
    world.reload(terms_of(2, 1))
    refused(world)
    assert generations(world) == [1, 1, 2]
    for _ in range(2):
        boot_all(world)
    assert generations(world) == [2, 2]


def test_a_reload_that_is_prepared_during_a_roll_waits_for_its_end() -> None:
    reload = Reload()
    for number, job in ((2, 1), (3, 2)):
        reload.ask(GenerationTerms(number, terms_of(1, 1)), job)
        reload.prepare_next()
        if number == 2:
            assert reload.prepared(2)
    reload.promote(GenerationTerms(1, terms_of(1, 1)), 1)
    assert not reload.prepared(3)
    reload.ask(GenerationTerms(4, terms_of(1, 1)), 3)
    assert reload.finish() == (1,)
    assert reload.prepare_next() == GenerationTerms(4, terms_of(1, 1))
    assert reload.give_up() == (2, 3)


def test_settings_are_not_read_for_a_reload_during_a_stop() -> None:
    world = serving(1)
    world.tell(on.ReloadAsked(1))
    assert world.reads == [1]
    world.tell(on.ShutdownRequested())
    world.jobs = 2
    world.tell(on.ReloadAsked(2))
    assert world.reads == [1]
    assert world.answers[2] == do.Answer(2, False, "reload ignored: stopping", stopping=True)


@pytest.mark.parametrize("state", WorkerState)
def test_a_worker_only_enters_states_that_the_table_allows(state: WorkerState) -> None:
    for target in WorkerState:
        member = serving(1).fleet.members[1]
        member.state = state
        if target in NEXT_STATES[state]:
            member.become(target, None)
            assert member.state is target
        else:
            with pytest.raises(AssertionError, match="is followed by"):
                member.become(target, None)


def test_a_reload_only_enters_stages_that_the_table_allows() -> None:
    """Each stage can be followed by the stages in the table, and by no others."""

    def at(stage: Stage) -> Reload:
        reload = Reload()
        for number in (2, 3):
            reload.ask(GenerationTerms(number, terms_of(1, 1)), None)
            reload.prepare_next()
            if number == 2 and stage is not Stage.IDLE:
                reload.prepared(2)
        if stage is Stage.ROLLING:
            reload.promote(GenerationTerms(1, terms_of(1, 1)), 1)
        assert reload.stage is stage
        return reload

    steps = {
        Stage.CANARY: lambda reload: reload.prepared(
            (reload.preparing or reload.queued).generation.number
        ),
        Stage.ROLLING: lambda reload: reload.promote(GenerationTerms(1, terms_of(1, 1)), 1),
        Stage.IDLE: lambda reload: reload.finish(),
    }
    for stage, (target, step) in itertools.product(Stage, steps.items()):
        reload = at(stage)
        if target in NEXT_STAGES[stage]:
            step(reload)
            assert reload.stage is target
        else:
            with contextlib.suppress(AssertionError):
                step(reload)
            assert reload.stage is stage


def test_the_first_boot_failure_ends_everything_and_is_reported_once() -> None:
    world = World(terms_of(4, 1))
    world.tell(on.Started())
    for process in list(world.processes.values()):
        process.leaving_since = world.now
        world.tell(on.WorkerBootFailed(process.number, "no module", "Traceback", 4))
    for process in list(world.processes.values()):
        world.exit(process)
    assert world.exits == [4]
    assert sum(line.detail == "Traceback" for line in world.log) == 1


def test_a_boot_failure_after_another_worker_was_ready_is_retried() -> None:
    world = World(terms_of(2, 1))
    world.tell(on.Started())
    first, second = world.processes.values()
    first.ready = True
    world.tell(on.WorkerReady(first.number))
    world.exit(second)
    world.pass_time(1)
    assert not world.exits
    assert len(world.processes) == 2


def test_a_due_worker_serves_until_its_replacement_is_ready() -> None:
    world = serving(2)
    due = world.processes[1]
    world.tell(on.WorkerDue(1, "max-requests"))
    assert due.told == []
    boot_all(world)
    assert due.told == ["Drain"]


def test_workers_due_together_are_replaced_one_after_the_other() -> None:
    world = serving(4)
    for number in (1, 2, 3, 4):
        world.tell(on.WorkerDue(number, "max-requests"))
    booting = [p for p in world.processes.values() if not p.ready]
    assert len(booting) == 1


def test_a_killed_worker_is_replaced_immediately() -> None:
    world = serving(2)
    world.exit(world.processes[1])
    assert len(world.processes) == 2


def test_a_crash_loop_backs_off_and_never_ends_the_arbiter() -> None:
    world = serving(1)
    starts = []
    for _ in range(10):
        world.exit(world.processes[1])
        died = world.now
        while 1 not in world.processes:
            world.pass_time(0.25)
        starts.append(world.now - died)
        boot_all(world)
    assert starts[0] == 0
    assert starts[1:8] == pytest.approx([0.5, 1, 2, 4, 8, 16, 30], abs=0.3)
    assert not world.exits


def test_a_stable_minute_forgives_earlier_crashes() -> None:
    world = serving(1)
    for _ in range(4):
        world.exit(world.processes[1])
        while 1 not in world.processes:
            world.pass_time(1)
        boot_all(world)
    world.pass_time(61)
    world.exit(world.processes[1])
    assert 1 in world.processes


def test_new_code_that_boots_does_not_wait_for_earlier_failures() -> None:
    world = serving(3)
    world.exit(world.processes[1])
    for _ in range(60):  # the code is broken by now, so every boot fails
        for process in [p for p in world.processes.values() if not p.ready]:
            process.leaving_since = world.now
            world.tell(on.WorkerBootFailed(process.number, "broken", "Traceback", 4))
            world.exit(process)
        world.pass_time(0.5)
    assert generations(world) == [1, 1]
    world.reload(terms_of(3, 1))
    for _ in range(6):
        boot_all(world)
        for process in [p for p in world.processes.values() if p.leaving_since is not None]:
            world.exit(process, clean=True)
    assert generations(world) == [2, 2, 2]


def test_a_stuck_worker_is_dumped_then_aborted_then_killed() -> None:
    world = serving(2)
    process = world.processes[1]
    process.stuck, process.stuck_since = True, world.now
    world.pass_time(BEAT_LIMIT + CHECK_INTERVAL * 4)
    assert process.told == ["DumpStack", "Abort"]
    world.pass_time(3)
    assert world.processes.get(1) is not process


def looks(
    timeout: float, begun: float, stuck_at: float, until: float, workers: int = 3
) -> tuple[list[float], float | None]:
    """The times at which a fleet checks its workers, and when it declares worker 1 stuck.

    Its loop stands still from `stuck_at`. Each worker beats once a second; `begun` shifts beats.
    """
    fleet = Fleet(dataclasses.replace(terms_of(workers, 1), timeout=timeout), 0.0)
    fleet.handle(on.Started(), 0.0)
    for number in range(1, workers + 1):
        fleet.handle(on.WorkerReady(number), 0.0)
    phases = {number: (begun + number / 3) % 1 for number in range(1, workers + 1)}
    times: list[float] = []
    while (now := fleet.next_deadline()) is not None and now < until:
        times.append(now)
        turned = {number: min(now, stuck_at) if number == 1 else now for number in phases}
        beats = {number: (turned[number] - phase) // 1 + phase for number, phase in phases.items()}
        actions = fleet.handle(on.BeatsRead({n: now - beat for n, beat in beats.items()}), now)
        if do.DumpStack(1) in actions:
            return times, now
        assert not any(isinstance(action, do.DumpStack) for action in actions)
        fleet.handle(on.Tick(), now)
    return times, None


@pytest.mark.parametrize("begun", [0.0, 0.01, 0.3, 0.6, 0.65])
@pytest.mark.parametrize("stuck_after", [0.01, 0.35, 0.5, 0.99])
@pytest.mark.parametrize("timeout", [0.5, 1, 1.5, 2, 5, 30])
def test_a_stuck_worker_is_found_a_second_after_its_timeout(
    timeout: float, begun: float, stuck_after: float
) -> None:
    stuck_at = 10 + begun + stuck_after
    _, found = looks(timeout, begun, stuck_at, until=100)
    assert found is not None
    latest = timeout + 1 if timeout >= 1.5 else timeout + 2
    assert timeout <= found - stuck_at <= latest + 1e-6


@pytest.mark.parametrize("timeout", [0, 0.5, 1, 2, 30])
def test_a_healthy_fleet_is_checked_once_a_second(timeout: float) -> None:
    times, found = looks(timeout, 0.4, stuck_at=1000, until=100)
    assert found is None
    assert len(times) <= 100


def test_no_worker_is_stuck_because_the_machine_stood_still() -> None:
    world = World(dataclasses.replace(terms_of(2, 1), timeout=1.0))
    world.tell(on.Started())
    boot_all(world)
    world.pass_time(5)
    for age in (2.0, 0.1, 2.0, 0.1):  # all processes slept, and then the workers beat again
        world.now = max(world.now, world.fleet.next_deadline() or 0.0) + age
        world.tell(on.BeatsRead(dict.fromkeys(world.processes, age)))
    assert all(p.told == [] for p in world.processes.values())


def test_a_beat_in_the_future_is_no_sign_of_life() -> None:
    """The scoreboard reports this beat as infinitely old."""
    world = serving(2)
    for _ in range(4):
        world.now = max(world.now, world.fleet.next_deadline() or 0.0)
        world.tell(on.BeatsRead({1: float("inf"), 2: 0.0}))
    assert world.processes[1].told[:1] == ["DumpStack"]
    assert world.processes[2].told == []


def test_a_worker_that_is_late_once_is_not_stuck() -> None:
    """All workers are late when a machine that was suspended for a short time wakes."""
    world = serving(1)
    for age in (BEAT_LIMIT * 3, 0.5, BEAT_LIMIT * 3, 0.5):
        world.now += CHECK_INTERVAL
        world.tell(on.BeatsRead({1: age}))
    assert world.processes[1].told == []


def unlimited() -> World:
    """One ready worker; its event loop may stand still forever."""
    world = World(dataclasses.replace(terms_of(1, 1), timeout=0))
    world.tell(on.Started())
    boot_all(world)
    return world


@pytest.mark.parametrize("event", [on.ShutdownRequested(), on.WorkerRetiring(1, "SIGTERM")])
def test_a_worker_that_stands_still_when_its_grace_is_over_has_no_margin(event: on.Event) -> None:
    world = unlimited()
    process = world.processes[1]
    process.stuck, process.stuck_since = True, world.now
    begun = world.now
    world.tell(event)
    world.pass_time(GRACE - 0.1)
    assert not {"DumpStack", "Abort"} & set(process.told)
    world.pass_time(2 * CHECK_INTERVAL + ESCALATION[0][1] + 0.2)
    assert process.told[-2:] == ["DumpStack", "Abort"]
    assert world.now - begun < GRACE + 3.5
    assert "(--graceful-timeout)" in events(world)


def test_a_worker_that_turns_when_its_grace_is_over_has_its_margin() -> None:
    world = unlimited()
    process = world.processes[1]
    world.tell(on.ShutdownRequested())
    world.pass_time(GRACE + EXIT_MARGIN - 0.1)
    assert process.told == ["Drain"]


def test_the_shutdown_of_an_application_may_block_for_a_moment() -> None:
    world = unlimited()
    process = world.processes[1]
    world.tell(on.ShutdownRequested())
    world.pass_time(GRACE)
    process.stuck, process.stuck_since = True, world.now
    world.pass_time(STANDSTILL + CHECK_INTERVAL - 0.1)
    assert process.told == ["Drain"]


def test_no_worker_is_stuck_because_the_arbiter_stood_still() -> None:
    world = serving(2)
    world.now += SUSPENSION + BEAT_LIMIT * 10
    world.tell(on.BeatsRead({1: 55.0, 2: 55.0}))
    world.tell(on.Tick())
    assert all(p.told == [] for p in world.processes.values())


def test_a_second_interrupt_makes_a_shutdown_quick() -> None:
    world = serving(1)
    world.tell(on.ShutdownRequested(insistent=True))
    assert world.processes[1].told == ["Drain"]
    world.tell(on.ShutdownRequested(insistent=True))
    assert world.processes[1].told == ["Drain", "Quit"]


def test_a_second_term_changes_nothing() -> None:
    world = serving(1)
    world.tell(on.ShutdownRequested())
    world.tell(on.ShutdownRequested())
    assert world.processes[1].told == ["Drain"]


def test_load_balancers_have_time_to_notice_a_shutdown() -> None:
    world = World(terms_of(2, 1, drain_delay=5.0))
    world.tell(on.Started())
    boot_all(world)
    world.tell(on.ShutdownRequested())
    world.pass_time(4.9)
    assert world.listening
    assert world.ready_count() == 2
    assert world.told[-1].state == "stopping"
    world.pass_time(0.1)
    assert not world.listening
    assert [p.told for p in world.processes.values()] == [["Drain"], ["Drain"]]


def test_a_worker_that_drains_while_others_accept_leaves_them_the_queue() -> None:
    world = World(terms_of(2, 1, drain_delay=5.0))
    world.tell(on.Started())
    world.processes[1].ready = True
    world.tell(on.WorkerReady(1))
    actions = world.tell(on.ShutdownRequested())
    (discard,) = [action for action in actions if isinstance(action, do.Discard)]
    assert not discard.final
    world.now += 5.0
    (drain,) = [a for a in world.tell(on.Tick()) if isinstance(a, do.Drain)]
    assert drain.final


def test_a_quick_shutdown_does_not_wait_for_load_balancers() -> None:
    world = World(terms_of(1, 1, drain_delay=5.0))
    world.tell(on.Started())
    boot_all(world)
    world.tell(on.ShutdownRequested())
    world.tell(on.ShutdownRequested(quick=True))
    assert not world.listening
    assert world.processes[1].told == ["Quit"]


# -- reports and answers ----------------------------------------------------------------


def states(world: World) -> list[str]:
    """The reported states, without repetitions that differ only in the number of workers."""
    told = world.told
    return [
        after.state
        for before, after in zip([None, *told], told, strict=False)
        if before is None or before.state != after.state or after.again
    ]


def test_serving_is_reported_when_every_worker_of_the_first_generation_is_ready() -> None:
    world = World(terms_of(2, 1))
    world.tell(on.Started())
    world.tell(on.WorkerReady(1))
    assert states(world) == ["starting"]
    world.tell(on.WorkerReady(2))
    assert states(world) == ["starting", "serving"]
    assert world.told[-1].status == "gen 1: 2 of 2 workers ready"


def test_the_beginning_and_the_end_of_a_reload_are_reported() -> None:
    world = serving(2)
    world.reload(terms_of(2, 1))
    assert states(world)[1:] == ["serving", "reloading"]
    for _ in range(2):
        boot_all(world)
    assert states(world)[1:] == ["serving", "reloading", "serving"]


def test_a_refused_reload_is_reported_as_one_that_ended() -> None:
    world = serving(1)
    world.tell(on.ReloadRefused("unknown key 'wrokers'"))
    assert states(world)[1:] == ["serving", "reloading", "serving"]
    status = "gen 1: 1 of 1 workers ready; last reload refused: unknown key 'wrokers'"
    assert world.told[-1].status == status
    world.reload(terms_of(1, 1))
    assert "refused" not in world.told[-1].status


def test_a_failed_reload_is_reported() -> None:
    world = serving(1)
    world.reload(terms_of(1, 1))
    world.tell(on.WorkerBootFailed(2, "no module", "Traceback", 4))
    assert states(world)[1:] == ["serving", "reloading", "serving"]
    assert "; last reload failed: a worker could not boot" in world.told[-1].status


def test_a_reload_requested_during_another_is_reported_again() -> None:
    world = serving(2)
    world.reload(terms_of(2, 1))
    world.reload(terms_of(2, 1))
    assert states(world)[1:] == ["serving", "reloading", "reloading"]


def test_a_reload_requested_before_anything_serves_is_not_reported() -> None:
    world = World(terms_of(2, 1))
    world.tell(on.Started())
    world.tell(on.ReloadRefused("unknown key"))
    assert states(world) == ["starting"]


def test_a_client_that_waits_for_a_reload_is_told_when_it_ends() -> None:
    world = serving(2)
    job = world.ask_for_reload(terms_of(2, 1))
    boot_all(world)
    assert world.answers == {}
    boot_all(world)
    assert world.answers == {job: do.Answer(job, True, "reloaded gen=2 workers=2")}
    assert world.told[-1].state == "serving"


def test_a_client_that_waits_for_a_reload_is_told_why_it_failed() -> None:
    world = serving(1)
    job = world.ask_for_reload(terms_of(1, 1))
    actions = world.tell(on.WorkerBootFailed(2, "no module", "Traceback", 4))
    text = "reload failed, gen=1 goes on serving: gen=2: a worker could not boot"
    assert actions[-1] == do.Answer(job, False, text, "Traceback")
    assert isinstance(actions[-2], do.Tell)  # so that the status is known when the answer arrives


def test_a_client_whose_reload_is_overtaken_is_told_about_the_newer_one() -> None:
    world = serving(1)
    jobs = [world.ask_for_reload(terms_of(1, 1)) for _ in range(2)]
    (overtaken,) = [p for p in world.processes.values() if p.generation == 2]
    world.exit(overtaken)
    boot_all(world)
    assert {job: world.answers[job].text for job in jobs} == dict.fromkeys(
        jobs, "reloaded gen=3 workers=1"
    )


def test_a_failed_reload_does_not_answer_for_the_queued_one() -> None:
    world = serving(2)
    first = world.ask_for_reload(terms_of(2, 1))
    boot_all(world)
    second = world.ask_for_reload(terms_of(2, 1))
    fresh = next(p for p in world.processes.values() if p.generation == 2 and p.ready)
    world.exit(fresh)
    assert not world.answers[first].ok
    for _ in range(6):
        for process in [p for p in world.processes.values() if p.leaving_since is not None]:
            world.exit(process, clean=True)
        boot_all(world)
        world.pass_time(1)
    assert world.answers[second].ok


def test_a_client_that_waits_for_a_reload_is_told_about_a_shutdown() -> None:
    world = serving(2)
    jobs = [world.ask_for_reload(terms_of(2, 1))]
    boot_all(world)
    jobs.append(world.ask_for_reload(terms_of(2, 1)))
    world.tell(on.ShutdownRequested())
    jobs.append(world.ask_for_reload(terms_of(2, 1)))
    assert [(job, world.answers[job].ok) for job in jobs] == [(job, False) for job in jobs]


def test_a_shutdown_in_the_middle_of_a_reload_ends() -> None:
    world = serving(2)
    world.reload(terms_of(2, 1))
    world.tell(on.ShutdownRequested())
    for process in list(world.processes.values()):
        world.exit(process, clean=True)
    assert world.exits == [0]


def test_the_last_worker_cannot_be_removed() -> None:
    world = serving(1)
    world.tell(on.Resize(-1))
    assert world.ready_count() == 1


def test_a_resize_is_kept_by_a_reload_with_the_same_number_of_workers() -> None:
    world = serving(2)
    world.tell(on.Resize(+1))
    boot_all(world)
    world.reload(terms_of(2, 1))
    for _ in range(5):
        boot_all(world)
    assert generations(world) == [2, 2, 2]


def test_a_fork_that_fails_is_tried_again() -> None:
    world = serving(1)
    world.tell(on.Resize(+1))
    del world.processes[2]
    world.tell(on.SpawnFailed(2, "Resource temporarily unavailable"))
    world.pass_time(1)
    assert 2 in world.processes
