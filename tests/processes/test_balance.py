"""Connections spread evenly over the workers, and never wait for one that can't take them."""

from __future__ import annotations

import collections
import http.client
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.support.runner import Esg, answer
from tests.support.waiting import all_along

Start = Callable[..., Esg]


@contextmanager
def held(connections: list[http.client.HTTPConnection]) -> Iterator[None]:
    """Close these connections at the end of the block."""
    try:
        yield
    finally:
        for connection in connections:
            connection.close()


def spread(connections: list[http.client.HTTPConnection]) -> list[int]:
    """The number of connections that each worker has, from the responses to `/whoami`."""
    workers = [answer(connection)["worker"] for connection in connections]
    return sorted(collections.Counter(workers).values())


def test_keep_alive_connections_that_come_at_once_are_spread_evenly(start: Start) -> None:
    esg = start("--workers", "4")
    connections = [esg.connect() for _ in range(64)]
    with held(connections):
        for connection in connections:
            connection.request("GET", "/whoami")
        counts = spread(connections)
    assert len(counts) == 4
    assert all(12 <= count <= 20 for count in counts), counts


def test_keep_alive_connections_that_come_one_by_one_are_spread_evenly(start: Start) -> None:
    esg = start("--workers", "4")
    connections = []
    workers: collections.Counter[int] = collections.Counter()
    with held(connections):
        for _ in range(64):
            connections.append(esg.begin("/whoami"))
            workers[answer(connections[-1])["worker"]] += 1
    assert len(workers) == 4
    assert all(12 <= count <= 20 for count in workers.values()), workers


def test_a_worker_that_is_added_gets_its_share_of_new_connections(start: Start) -> None:
    esg = start("--workers", "1")
    first = [esg.begin("/whoami") for _ in range(16)]
    with held(first):
        assert spread(first) == [16]
        esg.signal(signal.SIGTTIN)
        esg.wait_for_log("ready", count=2)
        second = [esg.begin("/whoami") for _ in range(16)]
        with held(second):
            workers = [answer(connection)["worker"] for connection in second]
    assert workers.count(2) >= 13


def test_no_new_connection_waits_for_a_stopped_worker(start: Start) -> None:
    esg = start("--workers", "2")
    stopped, other = esg.workers()
    os.kill(stopped, signal.SIGSTOP)
    connections = [esg.begin("/whoami") for _ in range(40)]
    with held(connections):
        assert {answer(connection)["pid"] for connection in connections} == {other}
    os.kill(stopped, signal.SIGCONT)


def test_no_new_connection_waits_for_a_blocked_worker(start: Start) -> None:
    esg = start("--workers", "2")
    blocked = esg.in_flight("/block/2")
    (pid,) = esg.notes("block")
    all_along(1.0, lambda: esg.whoami()["pid"] != pid, "the other worker answers")
    assert answer(blocked)["pid"] == pid
    blocked.close()
