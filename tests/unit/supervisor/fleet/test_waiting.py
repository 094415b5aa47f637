"""The reports about a long boot or stop, and their times."""

from __future__ import annotations

import pytest

from esg import waits
from esg.supervisor.fleet import actions as do
from esg.supervisor.fleet.waiting import Booting, Waiting
from esg.waits import Load


def run(waiting, begin, end, *, booting=(), stopping=(), quick=False):
    """Every report from `begin` to `end`, with its time; `look` is only called when it is due."""
    found, now = [], begin
    while now <= end:
        found += [
            (round(now, 1), action) for action in waiting.look(booting, stopping, now, quick=quick)
        ]
        if waiting.next_look is None:
            break
        assert waiting.next_look > now
        now = waiting.next_look
    return found


def test_a_stop_is_reported_after_two_seconds_and_then_every_five():
    reports = run(Waiting(), 100.0, 115.0, stopping=(2, 1))
    report = do.ReportStop((1, 2), quick=False)
    assert reports == [(102.0, report), (107.0, report), (112.0, report)]


def test_a_report_says_that_a_stop_is_quick():
    assert run(Waiting(), 0.0, 3.0, stopping=(1,), quick=True) == [(2.0, do.ReportStop((1,), True))]


def test_a_boot_is_reported_after_two_seconds_and_then_every_five():
    reports = run(Waiting(), 100.0, 113.0, booting=(Booting(2, 101.0), Booting(1, 100.0)))
    assert [at for at, _ in reports] == [102.0, 102.2, 107.0, 107.2, 112.0, 112.2]
    assert [type(action) for _, action in reports] == [do.AskWhere, do.ReportBoot] * 3
    assert {action.number for _, action in reports} == {1}
    assert reports[1][1].seconds == pytest.approx(2.2)


def test_a_worker_that_got_ready_is_not_reported():
    waiting = Waiting()
    (asked,) = waiting.look([Booting(1, 0.0)], (), 2.0, quick=False)
    assert asked == do.AskWhere(1)
    assert waiting.look([], (), 2.2, quick=False) == []
    assert waiting.next_look is None


def test_a_worker_that_began_to_boot_later_is_not_reported_yet():
    waiting = Waiting()
    waiting.look([Booting(1, 0.0)], (), 2.0, quick=False)
    assert waiting.look([Booting(1, 2.1)], (), 2.2, quick=False) == []
    assert waiting.next_look == 7.0


def test_no_check_is_due_if_nothing_is_waited_for():
    waiting = Waiting()
    assert waiting.look((), (), 5.0, quick=False) == []
    assert waiting.next_look is None


@pytest.mark.parametrize(
    ("loads", "text"),
    [
        ([Load(3, 1, 2, 3)], "1 request and 2 WebSockets in worker 3; Ctrl-C again to cut them"),
        ([Load(3, 1, 0, 1)], "1 request in worker 3; Ctrl-C again to cut it"),
        ([Load(1, 0, 1, 1), Load(2, 3, 0, 5)], "1 WebSocket in worker 1, 3 requests in worker 2;"),
        ([Load(1, 0, 0, 2)], "2 open connections in worker 1; Ctrl-C again to cut them"),
        ([Load(1, 0, 0, 0)], "the end of worker 1; Ctrl-C"),
        ([Load(1, 0, 0, 0), Load(2, 0, 0, 0)], "the end of workers 1 and 2; Ctrl-C"),
        ([Load(n, 1, 0, 1) for n in range(1, 6)], "in worker 3, 2 more busy workers; Ctrl-C"),
        ([Load(n, 0, 0, 0) for n in range(1, 6)], "the end of workers 1, 2, 3 and 2 more;"),
    ],
)
def test_the_line_about_a_stop_says_what_it_waits_for(loads, text):
    line = waits.stopping(loads, "Ctrl-C again")
    assert line.startswith("waiting for ")
    assert text in line


def test_a_quick_stop_has_no_hint():
    assert waits.stopping([Load(1, 2, 0, 2)], "") == "waiting for 2 requests in worker 1"


@pytest.mark.parametrize(
    ("load", "text"),
    [
        (Load(1, 1, 0, 1), "waiting for 1 request; Ctrl-C again to cut it"),
        (Load(1, 2, 1, 3), "waiting for 2 requests and 1 WebSocket; Ctrl-C again to cut them"),
        (Load(1, 0, 0, 1), "waiting for 1 open connection; Ctrl-C again to cut it"),
        (Load(1, 0, 0, 0), "waiting for the application's shutdown; Ctrl-C again to cut it"),
    ],
)
def test_the_line_about_a_single_servers_stop_says_what_it_waits_for(load, text):
    assert waits.stopping_alone(load, "Ctrl-C again") == text
    assert waits.stopping_alone(load, "") == text.partition(";")[0]
