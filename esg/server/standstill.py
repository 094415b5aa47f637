"""Tells the arbiter which requests a worker holds while its event loop stands still.

The event loop can't do that, so a thread does. It takes no lock, because nothing changes what it
reads while the event loop stands still. If the event loop is in C code that keeps the interpreter's
lock, the thread can't run. The arbiter then gets no report, and says so in the log.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from typing import TYPE_CHECKING, Any

from esg import mailbox
from esg.scoreboard import Cell, Row
from esg.server.accesslog.lines import path_and_query, printable
from esg.server.asgi.upgrade import Upgradable

if TYPE_CHECKING:
    from esg.server.state import Service

STANDSTILL = 1.5
"""Seconds since the last heartbeat after which the event loop counts as standing still.

The arbiter never declares a worker stuck this early, with any `--timeout`. The only consequence of
a report is its line in the log.
"""

PAUSE = 3.0
"""The shortest time between two reports, in seconds, so that they can't fill the mailbox."""

MOST_NAMED = 5
"""The most requests that a report names."""

LONGEST_PATH = 100
"""The most characters of a path that are shown."""


class Standstill:
    """Watches the heartbeats of a worker from a thread other than that of the event loop."""

    def __init__(self, service: Service, row: Row, mail: mailbox.Mailbox) -> None:
        self._service = service
        self._row = row
        self._mail = mail
        self._reported_beat = 0
        self._reported_at = -math.inf

    def look(self) -> None:
        """Report the requests, once per standstill."""
        beat, now = self._row[Cell.BEAT], time.monotonic()
        since_beat = now - beat / 1e9
        if not beat or since_beat < STANDSTILL or beat == self._reported_beat:
            return
        if now - self._reported_at >= PAUSE:
            self._reported_beat, self._reported_at = beat, now
            self._mail.send(held_requests(self._service, since_beat))


def held_requests(service: Service, since_tick: float) -> mailbox.HeldRequests:
    """The requests in progress, the oldest first, and the one that the event loop is running.

    `since_tick` is the number of seconds since the service's clock was last set.
    """
    exchanges = list(service.running)
    named = heapq.nsmallest(MOST_NAMED, exchanges, key=_started)
    blocking = _running_on(service.loop, exchanges)
    if blocking is not None and blocking not in named:
        named[MOST_NAMED - 1 :] = [blocking]
    return mailbox.HeldRequests(
        requests=[_name(exchange) for exchange in named],
        ages=[_age(exchange, service.now, since_tick) for exchange in named],
        count=len(exchanges),
        blocking=-1 if blocking is None else named.index(blocking),
    )


def _started(exchange: Any) -> float:
    """When a request began, by the event loop's clock and to a second; inf if it isn't known.

    The service records that when it sets its clock, so a request without a start time began later.
    """
    started: float = getattr(exchange, "started", math.inf)
    return started


def _age(exchange: Any, now: float, since_tick: float) -> float:
    """Seconds for which a request has been in progress; `now` is the service's clock.

    NaN for a request that has timed out but still runs.
    """
    if not hasattr(exchange, "started"):
        return since_tick
    started = _started(exchange)
    return since_tick + now - started if math.isfinite(started) else math.nan


def _running_on(loop: asyncio.AbstractEventLoop, exchanges: list[Any]) -> Any:
    """The request whose task the event loop is running at the moment; None if it isn't known.

    The first step of a task may run before the exchange has the task (Python 3.12).
    """
    current = asyncio.current_task(loop)
    for exchange in exchanges:
        task = getattr(exchange, "task", None)
        if task is None or task is current:
            return exchange
    return None


def _name(exchange: Any) -> str:
    """Method or protocol, and path. The query may hold secrets, so it isn't part of the name."""
    path = printable(path_and_query(exchange.target)[0][: LONGEST_PATH + 1])
    if len(path) > LONGEST_PATH:
        path = path[:LONGEST_PATH] + "..."
    if isinstance(exchange, Upgradable):
        return f"WebSocket {path}"
    return f"{str(exchange.scope.get('method'))[:20]} {path}"
