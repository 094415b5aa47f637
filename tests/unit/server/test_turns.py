"""Work that is postponed to later turns of the event loop, with the test's loop and clock."""

from __future__ import annotations

import contextvars

import pytest

from esg.server.turns import SHARE, WORTH_COUNTING, Turns


class Loop:
    """A loop that the test turns; its clock advances with the work."""

    def __init__(self):
        self.due = []
        self.now = 0.0
        self.turns = Turns(self, contextvars.copy_context(), lambda: self.now)

    def call_soon(self, callback, *, context):
        self.due.append(lambda: context.run(callback))

    def turn(self):
        due, self.due = self.due, []
        for callback in due:
            callback()

    def work(self, seconds):
        self.now += seconds


@pytest.fixture
def loop():
    return Loop()


def test_work_is_done_in_the_next_turn_and_once(loop):
    done = []
    loop.turns.put_off(lambda: done.append(1))
    assert done == []
    loop.turn()
    loop.turn()
    assert done == [1]
    assert loop.due == []


def test_a_turn_does_as_much_work_as_its_share_allows(loop):
    done = []

    def go_on(number):
        done.append(number)
        loop.work(SHARE / 4)

    for number in range(10):
        loop.turns.put_off(lambda number=number: go_on(number))
    loop.turn()
    assert done == [0, 1, 2, 3]
    loop.turn()
    loop.turn()
    assert done == list(range(10))


def test_connections_take_turns(loop):
    """A task that always has more work waits behind all others that had to wait."""
    done = []

    def go_on(name):
        done.append(name)
        loop.work(SHARE)
        loop.turns.put_off(lambda: go_on(name))

    for name in "abc":
        loop.turns.put_off(lambda name=name: go_on(name))
    for _ in range(6):
        loop.turn()
    assert done == list("abcabc")


def test_one_part_that_takes_longer_than_a_share_is_finished(loop):
    loop.turns.put_off(lambda: loop.work(SHARE * 10))
    loop.turn()
    assert loop.turns.full
    loop.turn()
    assert not loop.turns.full


def test_a_turn_is_full_when_reads_have_taken_its_share(loop):
    loop.turns.spend(SHARE / 2)
    assert not loop.turns.full
    loop.turns.spend(SHARE / 2)
    assert loop.turns.full
    loop.turn()
    assert not loop.turns.full
    assert loop.due == []


def test_little_work_costs_no_turn(loop):
    loop.turns.spend(WORTH_COUNTING / 2)
    assert loop.due == []


def test_work_that_fails_does_not_stop_other_work(loop):
    done = []
    loop.turns.put_off(lambda: 1 / 0)
    loop.turns.put_off(lambda: done.append(1))
    with pytest.raises(ZeroDivisionError):
        loop.turn()
    loop.turn()
    assert done == [1]
