"""Which worker accepts the next connection: only the policy, in simulated time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esg.seldom import Seldom
from esg.server.acceptor import MARGIN, PAUSE, Balance
from esg.server.endpoints import endpoint


class World:
    """Workers that share a socket; `first` always wakes before the others.

    A shared socket doesn't wake workers in a fair order, so the least fair order is simulated.
    """

    def __init__(self, workers, first=0, blocked=(), seed=1):
        self.balances = [Balance() for _ in range(workers)]
        self.loads = [0] * workers
        self.paused_until = [0.0] * workers
        self.first = first
        self.blocked = frozenset(blocked)
        self.dice = random.Random(seed)
        self.now = 0.0
        self.longest_wait = 0.0

    def connect(self):
        """One client connects, and is accepted at the end."""
        begin = self.now
        while not self._taken():
            pass
        self.longest_wait = max(self.longest_wait, self.now - begin)

    def _taken(self):
        running = [n for n in range(len(self.loads)) if n not in self.blocked]
        awake = [n for n in running if self.paused_until[n] <= self.now]
        if not awake:
            self.now = min(self.paused_until[n] for n in running)
            return False
        number = self.first if self.first in awake else self.dice.choice(awake)
        if self.balances[number].yields(self.loads[number], self.loads):
            self.paused_until[number] = self.now + PAUSE
            return False
        self.loads[number] += 1
        return True


@given(st.integers(0, 1000), st.lists(st.integers(0, 1000), max_size=8))
def test_the_least_loaded_worker_never_yields(own, others):
    balance = Balance()
    loads = [own, *(own + other for other in others)]
    assert not any(balance.yields(own, loads) for _ in range(5))


@given(st.integers(0, 1000), st.integers(0, MARGIN))
def test_a_small_lead_is_no_reason_to_yield(lowest, lead):
    assert not Balance().yields(lowest + lead, [lowest, lowest + lead])


@given(st.integers(0, 1000), st.integers(MARGIN + 1, 1000))
def test_a_large_lead_is_a_reason_to_yield(lowest, lead):
    assert Balance().yields(lowest + lead, [lowest, lowest + lead])


@pytest.mark.parametrize(
    ("own", "loads", "room"),
    [
        (0, [0, 0], 2),
        (0, [0, 50, 50], 52),
        (5, [5, 5, 9], 2),
        (6, [6, 5], 1),
        (20, [20, 5], 1),  # after a pause that was for nothing
        (7, [8, 9], 3),
    ],
)
def test_a_worker_accepts_as_many_at_once_as_leave_it_with_a_small_lead(own, loads, room):
    assert Balance.room(own, loads) == room


def test_a_worker_goes_on_yielding_while_the_other_catches_up():
    balance = Balance()
    assert all(balance.yields(20, [20, lowest]) for lowest in range(15))


def test_a_worker_alone_takes_everything():
    balance = Balance()
    assert not any(balance.yields(own, loads) for own in range(100) for loads in ([], [own]))


@pytest.mark.parametrize("workers", [2, 4, 8])
@pytest.mark.parametrize("gap", [0.0, PAUSE / 40, PAUSE / 2, PAUSE * 1.05, PAUSE * 5])
def test_connections_spread_evenly(workers, gap):
    """In a burst, or slowly, so that every pause is over before the next connection."""
    world = World(workers)
    for _ in range(workers * 50):
        world.connect()
        world.now += gap
    assert max(world.loads) - min(world.loads) <= 2 * MARGIN + 2


@pytest.mark.parametrize("workers", [2, 4, 8])
@pytest.mark.parametrize("gap", [0.0, PAUSE * 5])
def test_a_new_worker_catches_up(workers, gap):
    world = World(workers)
    world.loads = [50] * (workers - 1) + [0]
    for _ in range(50):
        world.connect()
        world.now += gap
    assert world.loads[-1] >= 45


@pytest.mark.parametrize("workers", [2, 4, 8])
@pytest.mark.parametrize("load", [0, 10])
def test_connections_do_not_wait_for_a_blocked_worker(workers, load):
    world = World(workers, blocked=[workers - 1])
    world.loads = [20] * (workers - 1) + [load]
    for _ in range(500):
        world.connect()
    assert world.longest_wait <= 3 * PAUSE
    assert world.loads[-1] == load


@pytest.mark.parametrize("workers", [2, 4])
def test_a_blocked_worker_soon_costs_a_fraction_of_a_pause(workers):
    world = World(workers, blocked=[workers - 1])
    for _ in range(200 * workers):
        world.connect()
    before = world.now
    for _ in range(1000):
        world.connect()
    assert world.now - before < 1000 * PAUSE / 3


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_a_blocked_worker_that_comes_back_gets_its_share(workers):
    world = World(workers, blocked=[workers - 1])
    for _ in range(workers * 20):
        world.connect()
    world.blocked = frozenset()
    for _ in range(workers * 50):
        world.connect()
    assert max(world.loads) - min(world.loads) <= 2 * MARGIN + 2


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (("127.0.0.1", 80), ("127.0.0.1", 80)),
        (("::1", 80, 0, 0), ("::1", 80)),
        (("::ffff:192.0.2.1", 80, 0, 0), ("192.0.2.1", 80)),
        (("::ffff:0:1", 80, 0, 0), ("::ffff:0:1", 80)),
        (("fe80::1%eth0", 80, 0, 2), ("fe80::1%eth0", 80)),
    ],
)
def test_an_endpoint_is_a_host_and_a_port(address, shown):
    assert endpoint(address) == shown


def test_seldom_allows_one_event_per_interval():
    seldom = Seldom(10)
    assert seldom.now(5) == 0
    assert [seldom.now(time) for time in (5, 6, 14.9)] == [None, None, None]
    assert seldom.now(15) == 3
    assert seldom.now(25) == 0
