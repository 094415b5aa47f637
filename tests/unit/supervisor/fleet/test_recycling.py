"""Workers are replaced for their age and their memory, and killed for too much memory."""

from __future__ import annotations

import itertools
import math

import pytest

from esg.supervisor.fleet import actions as do
from esg.supervisor.fleet import events as on
from esg.supervisor.fleet.fleet import Fleet
from esg.supervisor.fleet.recycling import MIB, SHORTEST_SERVICE, share_of
from esg.supervisor.fleet.terms import Terms

from .test_fleet_properties import World, boot_all, events, terms_of


def serving(workers: int = 3, surge: int = 1, **limits: float) -> World:
    world = World(terms_of(workers, surge, **limits))
    world.tell(on.Started())
    boot_all(world)
    return world


def leaving(world: World) -> list[int]:
    return sorted(p.number for p in world.processes.values() if p.leaving_since is not None)


def aging(world: World, seconds: float) -> None:
    """Let time pass, with replacements that boot and drained workers that end at once."""
    end = world.now + seconds
    while world.now < end:
        world.pass_time(min(1.0, end - world.now))
        boot_all(world)
        for process in [p for p in world.processes.values() if p.leaving_since is not None]:
            world.exit(process, clean=True)


# -- age -------------------------------------------------------------------------------------


def test_a_worker_is_replaced_when_its_time_is_over() -> None:
    world = serving(workers=1, max_lifetime=100.0)
    world.pass_time(99.9)
    assert list(world.processes) == [1]
    world.pass_time(0.1)
    assert "due reason=max-lifetime served=100s" in events(world)
    assert list(world.processes) == [1, 2]
    assert leaving(world) == []
    boot_all(world)
    assert leaving(world) == [1]
    assert "draining reason=max-lifetime" in events(world)


def test_the_time_begins_when_the_worker_serves() -> None:
    world = World(terms_of(1, 1, max_lifetime=5.0))
    world.tell(on.Started())
    world.pass_time(7)
    boot_all(world)
    world.pass_time(4.9)
    assert list(world.processes) == [1]


def test_workers_whose_time_is_over_together_are_replaced_one_at_a_time() -> None:
    world = serving(workers=3, max_lifetime=100.0)
    world.pass_time(100)
    assert events(world).count("due reason=max-lifetime") == 3
    for number in range(4, 7):
        assert len(world.processes) == 4
        boot_all(world)
        (left,) = leaving(world)
        world.exit(world.processes[left], clean=True)
        assert world.ready_count() == 3, number
    assert events(world).count("draining reason=max-lifetime") == 3


def test_the_jitter_spreads_workers_over_its_whole_length() -> None:
    world = serving(workers=8, max_lifetime=100.0, max_lifetime_jitter=80.0)
    expiries = sorted(m.expires - world.now for m in world.fleet.members.values())
    assert expiries[0] >= 100
    assert expiries[-1] <= 180
    gaps = [after - before for before, after in itertools.pairwise(expiries)]
    assert max(gaps) < 20
    assert min(gaps) > 2


@pytest.mark.parametrize("phase", [0.0, 0.3, 0.99])
def test_shares_are_between_0_and_1(phase: float) -> None:
    assert all(0 <= share_of(count, phase) < 1 for count in range(1000))


def test_two_services_that_start_together_are_not_due_together() -> None:
    def expiry(phase: float) -> float:
        terms = Terms.of(terms_of(1, 1, max_lifetime=100.0, max_lifetime_jitter=100.0))
        fleet = Fleet(terms, 0.0, phase=phase)
        fleet.handle(on.Started(), 0.0)
        fleet.handle(on.WorkerReady(1), 0.0)
        return fleet.members[1].expires

    assert expiry(0.1) == 110
    assert expiry(0.6) == 160


def test_without_a_lifetime_a_worker_never_expires() -> None:
    world = serving()
    assert {m.expires for m in world.fleet.members.values()} == {math.inf}
    world.pass_time(1000)
    assert "due" not in events(world)


def test_a_reload_gives_workers_the_new_lifetime() -> None:
    world = serving(workers=1)
    world.reload(terms_of(1, 1, max_lifetime=50.0))
    boot_all(world)
    aging(world, 60)
    assert "due reason=max-lifetime" in events(world)


def test_a_stop_waits_for_no_lifetime() -> None:
    world = serving(workers=1, drain_delay=500.0, max_lifetime=100.0)
    world.tell(on.ShutdownRequested())
    world.now += 101
    world.tell(on.Tick())
    assert world.fleet.next_deadline() > world.now
    assert "due" not in events(world)


# -- memory ----------------------------------------------------------------------------------

SOFT, HARD = 100 * MIB, 200 * MIB


def with_limits(workers: int = 2) -> World:
    return serving(workers, max_memory=SOFT, max_memory_hard=HARD)


def test_a_worker_with_too_much_memory_is_replaced() -> None:
    world = with_limits()
    world.pass_time(SHORTEST_SERVICE)
    world.tell(on.MemoryRead({1: SOFT, 2: SOFT + MIB}))
    assert "due reason=max-memory memory=101MiB" in events(world)
    assert "worker=1" not in events(world)
    boot_all(world)
    assert leaving(world) == [2]
    assert world.ready_count() == 2


def test_a_worker_is_not_replaced_for_its_memory_as_soon_as_it_serves() -> None:
    world = with_limits()
    world.pass_time(SHORTEST_SERVICE - 0.1)
    world.tell(on.MemoryRead({1: SOFT + 1}))
    assert "due" not in events(world)


def test_it_is_only_said_once() -> None:
    world = with_limits()
    world.pass_time(SHORTEST_SERVICE)
    for size in (SOFT + MIB, SOFT + 2 * MIB):
        world.tell(on.MemoryRead({1: size}))
    assert events(world).count("due reason=max-memory") == 1


def test_a_worker_above_the_hard_limit_is_killed_and_replaced() -> None:
    world = with_limits()
    world.may_dip = True
    actions = world.tell(on.MemoryRead({1: HARD + MIB}))
    assert do.Kill(1) in actions
    assert "killed: it had 201 MiB of memory (--max-memory-hard)" in events(world)
    assert len(world.processes) == 3
    world.reap()
    boot_all(world)
    assert world.ready_count() == 2


def test_it_is_killed_once() -> None:
    world = with_limits()
    world.may_dip = True
    world.tell(on.MemoryRead({1: HARD + MIB}))
    assert do.Kill(1) not in world.tell(on.MemoryRead({1: HARD + MIB}))


def test_a_draining_worker_above_the_hard_limit_is_killed_without_a_replacement() -> None:
    world = with_limits()
    world.tell(on.Resize(-1))
    (draining,) = leaving(world)
    actions = world.tell(on.MemoryRead({draining: HARD + 1}))
    assert do.Kill(draining) in actions
    assert len(world.processes) == 2


def test_workers_that_keep_needing_too_much_are_started_less_and_less_often() -> None:
    world = with_limits(workers=1)
    world.may_dip = True
    spawned = world.spawns
    for _ in range(60):
        world.tell(on.MemoryRead(dict.fromkeys(world.processes, HARD + 1)))
        world.reap()
        world.pass_time(1.0)
        boot_all(world)
    assert 2 < world.spawns - spawned < 15


def test_a_first_worker_that_needs_too_much_ends_the_start() -> None:
    world = World(terms_of(1, 1, max_memory_hard=HARD))
    world.tell(on.Started())
    world.tell(on.MemoryRead({1: HARD + MIB}))
    world.reap()
    assert world.exits == [3]
    assert "can't boot: killed: it had 201 MiB of memory (--max-memory-hard)" in events(world)


def test_a_canary_that_needs_too_much_fails_its_reload() -> None:
    world = with_limits()
    job = world.ask_for_reload(terms_of(2, 1, max_memory_hard=HARD))
    (canary,) = (p.number for p in world.processes.values() if p.generation == 2)
    world.tell(on.MemoryRead({canary: HARD + 1}))
    assert not world.answers[job].ok
    world.reap()
    assert {p.generation for p in world.processes.values()} == {1}
