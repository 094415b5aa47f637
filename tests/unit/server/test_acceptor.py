"""A worker with several listeners, in simulated time."""

from __future__ import annotations

import asyncio
import errno
import types

import pytest

from esg.server.acceptor import FULL_PAUSE, OUT_OF_FILES_PAUSE, PAUSE, SHUT_PAUSE, Acceptor
from esg.server.prepare import prepare
from esg.settings.schema import Config


class Loop:
    """Replaces the event loop: reports readable listeners once in each millisecond."""

    def __init__(self):
        self.now = 0.0
        self.readers = {}
        self.timers = []

    def time(self):
        return self.now

    def add_reader(self, fd, callback, *args):
        self.readers[fd] = (callback, args)

    def remove_reader(self, fd):
        self.readers.pop(fd, None)

    def call_later(self, seconds, callback, *args):
        timer = types.SimpleNamespace(at=self.now + seconds, run=lambda: callback(*args))
        timer.cancel = lambda: self.timers.remove(timer)
        self.timers.append(timer)
        return timer

    def run(self, seconds, after=lambda: None):
        end = self.now + seconds
        while self.now < end:
            self.now += 0.001
            for timer in [timer for timer in self.timers if timer.at <= self.now]:
                self.timers.remove(timer)
                timer.run()
            # Like a poll: readable files are reported, even if a callback stopped watching them.
            for callback, args in list(self.readers.values()):
                callback(*args)
            after()


class Listener:
    """A listener that is always readable; `error` is the error of each accept."""

    def __init__(self, number):
        self.number = number
        self.sock = self
        self.accepted = 0
        self.error = None
        self.closed = False

    def fileno(self):
        return self.number

    def accept(self):
        if self.error:
            raise OSError(self.error, "failed")
        self.accepted += 1
        return None, ("192.0.2.1", 1)

    path = None

    def url(self):
        return f"http://127.0.0.1:{self.number}"

    def refuse_new(self):
        return False

    def close(self):
        self.closed = True


class Service:
    """The parts of a service that an acceptor needs."""

    def __init__(self, load, **settings):
        self.config = prepare(Config(app="test:app", **settings)).config
        self.loop = Loop()
        self.load = load
        self.accepting = False
        self.errors = []
        self.log_error = self.errors.append

    def change_load(self, by):
        self.load += by


@pytest.fixture
def world(monkeypatch):
    """Makes an acceptor with listeners, and other workers with these loads."""

    def take(self, sock, peer, listener):
        self._service.change_load(+1)

    monkeypatch.setattr(Acceptor, "_take", take)

    def make(count, own, *others, **settings):
        service = Service(own, **settings)
        listeners = [Listener(number) for number in range(count)]
        acceptor = Acceptor(service, listeners, lambda: [service.load, *others])
        acceptor.start()
        return service, listeners, acceptor

    return make


def taken(listeners):
    return sum(listener.accepted for listener in listeners)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_several_listeners_have_the_credit_of_one(world, count):
    """A worker that is ahead accepts one connection after a pause, then two, then four."""
    service, listeners, _ = world(count, 20, 5)
    before = []
    while len(before) < 7:
        service.loop.run(PAUSE / 2)
        if service.loop.readers == {} and taken(listeners) not in before:
            before.append(taken(listeners))
    assert before == [0, 1, 3, 7, 15, 31, 63]


def test_other_workers_get_the_connections_that_arrive_in_a_pause(world):
    others = [5.0]
    service, listeners, acceptor = world(2, 20)
    acceptor._loads = lambda: [service.load, int(others[0])]

    def take_some():
        others[0] += 1

    service.loop.run(5 * PAUSE, take_some)
    assert taken(listeners) == 0


def test_no_listener_starves(world):
    service, listeners, _ = world(3, 0, 0)
    service.loop.run(1.0, lambda: service.change_load(-service.load))
    assert min(listener.accepted for listener in listeners) > 100


def test_all_listeners_wait_for_room(world):
    service, listeners, _ = world(2, 3, limit_connections=4)
    service.loop.run(2 * FULL_PAUSE)
    assert taken(listeners) == 1
    service.load = 0
    service.loop.run(2 * FULL_PAUSE)
    assert taken(listeners) == 1 + 4


def test_a_listener_that_fails_leaves_the_others_alone(world):
    service, (bad, good), _ = world(2, 0, 0)
    bad.error = errno.EMFILE
    service.loop.run(OUT_OF_FILES_PAUSE / 2, lambda: service.change_load(-service.load))
    assert good.accepted > 10
    (line,) = service.errors
    assert line.startswith("can't accept: too many open files")
    assert "LimitNOFILE=" in line


def test_a_listener_that_failed_is_not_resumed_early(world):
    """A pause for all listeners that ends while one listener has a longer pause."""
    service, (bad, good), _ = world(2, 0, 0)
    bad.error = errno.EMFILE
    service.loop.run(0.001)
    bad.error = None
    service.load = 20
    service.loop.run(OUT_OF_FILES_PAUSE / 2)
    assert (good.accepted > 10, bad.accepted) == (True, 0)
    service.loop.run(OUT_OF_FILES_PAUSE)
    assert bad.accepted > 0


def test_a_stop_in_a_pause_ends_it(world):
    service, listeners, acceptor = world(2, 20, 5)
    service.loop.run(0.001)
    assert service.loop.readers == {}
    acceptor.stop()
    assert service.loop.timers == []
    assert all(listener.closed for listener in listeners)


class Queued(Listener):
    """A listener that has some connections in its queue."""

    left = 5

    def accept(self):
        if not self.left:
            raise BlockingIOError
        self.left -= 1
        return super().accept()


@pytest.mark.parametrize(("empties_all", "left"), [(False, 5), (True, 0)])
def test_a_worker_that_leaves_empties_queues_unless_others_may(
    world, monkeypatch, empties_all, left
):
    """If no other worker is known to stay, a worker accepts queued connections before leaving."""
    monkeypatch.setattr("esg.server.acceptor.DRAIN_TIME", 0)
    _, _, acceptor = world(0, 0, 0)
    acceptor._listeners = [Queued(1), Queued(2)]
    listeners = list(acceptor._listeners)
    stop = acceptor.stop_last(lambda listener: listener is listeners[1], empties_all=empties_all)
    asyncio.run(stop)
    assert [listener.left for listener in listeners] == [left, 0]
    assert all(listener.closed for listener in listeners)


def count_accepts(listener):
    """Make a listener note each call, including failed ones."""
    calls = []
    accept = listener.accept
    listener.accept = lambda: (calls.append(1), accept())[1]
    return calls


def test_a_tcp_socket_that_was_shut_down_is_an_error_and_no_busy_loop(world):
    service, (listener,), _ = world(1, 0, 0)
    listener.error = errno.EINVAL
    calls = count_accepts(listener)
    service.loop.run(4 * SHUT_PAUSE)
    assert len(calls) <= 5
    (error,) = service.errors
    assert error.startswith("can't accept on http://127.0.0.1:0: ")
    assert "shut it down" in error
    listener.error = None  # the arbiter has repaired it
    service.loop.run(2 * SHUT_PAUSE, lambda: service.change_load(-service.load))
    assert listener.accepted > 100


def test_a_unix_socket_that_was_shut_down_is_not_yet_an_error(world):
    service, (listener,), acceptor = world(1, 0, 0)
    listener.path = "/run/esg.sock"
    listener.error = errno.EINVAL
    service.loop.run(SHUT_PAUSE / 2)
    assert service.errors == []
    service.loop.run(SHUT_PAUSE)
    assert len(service.errors) == 1
    acceptor.stop()


def test_the_end_of_a_queue_is_no_error_when_a_worker_leaves(world):
    service, (listener,), acceptor = world(1, 0)
    listener.error = errno.EINVAL
    asyncio.run(acceptor.stop_last(lambda listener: True))
    assert service.errors == []


def test_a_socket_is_replaced_by_the_one_that_the_arbiter_opened(world):
    service, (old, other), acceptor = world(2, 0, 0)
    old.error = errno.EINVAL
    service.loop.run(0.002)
    new = Listener(7)
    new.setblocking = lambda blocking: None
    old.fileno = lambda: old.sock.number
    acceptor.replace(old.url(), new)
    assert old.closed
    assert not other.closed
    service.loop.run(0.01, lambda: service.change_load(-service.load))
    assert new.accepted > 0


def test_a_socket_for_an_address_that_is_not_listened_on_is_closed(world):
    _, _, acceptor = world(1, 0, 0)
    new = Listener(7)
    new.setblocking = lambda blocking: None
    acceptor.replace("http://127.0.0.2:80", new)
    assert new.closed
