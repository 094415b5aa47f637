"""The requests that a worker reports when its event loop stands still."""

from __future__ import annotations

import asyncio
import math
import threading
import time

import pytest

from esg.mailbox import PIPE_ATOMIC, encode
from esg.scoreboard import Cell, Row
from esg.server.asgi.upgrade import Upgradable
from esg.server.standstill import LONGEST_PATH, MOST_NAMED, Standstill, held_requests

NOW = 1000.0


class Exchange:
    """A request in progress."""

    def __init__(self, target=b"/", *, method="GET", started=None, task="a task"):
        self.target = target
        self.scope = {"method": method}
        if started is not None:
            self.started = started
        if task is not None:
            self.task = task


class Service:
    """A service whose clock was set at NOW, with these requests."""

    now = NOW

    def __init__(self, *exchanges):
        self.loop = asyncio.new_event_loop()
        self.running = set(exchanges)
        self.loop.close()


class Mail:
    """Keeps the sent messages."""

    def __init__(self):
        self.sent = []

    def send(self, message):
        self.sent.append(message)
        return True


def held(*exchanges, since_tick=30.0):
    return held_requests(Service(*exchanges), since_tick)


def test_requests_are_named_with_their_age_the_oldest_first():
    new, old = Exchange(b"/new"), Exchange(b"/old", started=NOW - 70)
    message = held(new, old, Exchange(b"/middle", started=NOW - 1))
    assert message.requests == ["GET /old", "GET /middle", "GET /new"]
    assert message.ages == [100.0, 31.0, 30.0]
    assert (message.count, message.blocking) == (3, -1)


def test_a_request_that_began_after_the_last_tick_is_younger():
    assert held(Exchange(started=NOW + 0.5)).ages == [29.5]


def test_the_age_of_a_request_that_timed_out_is_not_made_up():
    assert math.isnan(held(Exchange(started=math.inf)).ages[0])


def test_the_request_that_the_loop_runs_is_named_even_if_others_are_older():
    crowd = [Exchange(b"/old", started=NOW - 9 - n) for n in range(10_000)]
    message = held(*crowd, Exchange(b"/report", started=NOW, task=None))
    assert message.requests == ["GET /old"] * (MOST_NAMED - 1) + ["GET /report"]
    assert (message.count, message.blocking) == (10_001, MOST_NAMED - 1)


def test_the_loops_current_task_tells_which_request_it_runs():
    messages = []

    async def main():
        service = Service(Exchange(b"/a"), Exchange(b"/b", task=asyncio.current_task()))
        service.loop = asyncio.get_running_loop()
        looking = threading.Thread(target=lambda: messages.append(held_requests(service, 0.0)))
        looking.start()
        looking.join()  # blocks the loop

    asyncio.run(main())
    (message,) = messages
    assert message.requests[message.blocking] == "GET /b"


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (b"/report?token=secret", "GET /report"),
        (b"http://user:secret@host/report?a", "GET /report"),
        (b"/a%0Ab", "GET /a%0Ab"),
        (b"/a\nworker=1 gen=1 pid=1 ready", "GET /a\\x0aworker=1\\x20gen=1\\x20pid=1\\x20ready"),
        (b"/\x1b[31m\xff", "GET /\\x1b[31m\\xff"),
        (b"*", "GET *"),
        (b"/" + b"x" * 65536, "GET /" + "x" * (LONGEST_PATH - 1) + "..."),
    ],
)
def test_a_request_is_named_by_its_path_in_printable_characters(target, name):
    assert held(Exchange(target)).requests == [name]


class UpgradedExchange(Exchange, Upgradable):
    """A WebSocket."""


def test_a_websocket_is_named_as_one():
    assert held(UpgradedExchange(b"/chat?token=secret")).requests == ["WebSocket /chat"]


def test_an_application_that_changes_its_scope_does_no_harm():
    for method in (None, 5, "X" * 1000):
        (name,) = held(Exchange(method=method)).requests
        assert len(name) < 30


def test_a_report_fits_into_one_write():
    crowd = [Exchange(b"/" + b"\xff" * 65536, method="\xff" * 99) for _ in range(100)]
    assert len(encode(held(*crowd))) < PIPE_ATOMIC


# -- when it is reported ---------------------------------------------------------------------


def beaten(seconds_ago):
    """The row of a worker whose last heartbeat is that old."""
    row = Row.alone()
    row[Cell.BEAT] = time.monotonic_ns() - int(seconds_ago * 1e9)
    return row


def test_a_standstill_is_reported_once():
    mail = Mail()
    standstill = Standstill(Service(Exchange(b"/a")), beaten(5.0), mail)
    standstill.look()
    standstill.look()
    (message,) = mail.sent
    assert message.requests == ["GET /a"]
    assert message.ages == pytest.approx([5.0], abs=1.0)


def test_the_next_standstill_is_reported_after_a_pause(monkeypatch):
    mail, row = Mail(), beaten(5.0)
    standstill = Standstill(Service(), row, mail)
    standstill.look()
    row[Cell.BEAT] = time.monotonic_ns() - 2 * 10**9
    standstill.look()
    assert len(mail.sent) == 1
    later = time.monotonic() + 3.1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    standstill.look()
    assert len(mail.sent) == 2


def test_a_loop_that_turns_is_not_reported():
    mail = Mail()
    Standstill(Service(), beaten(1.0), mail).look()
    Standstill(Service(), Row.alone(), mail).look()
    assert mail.sent == []
