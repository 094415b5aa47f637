"""The state that all connections of a worker share: application, settings, clock, counters."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import math
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from esg.errors import HTTPError
from esg.log.records import TRACE
from esg.scoreboard import NOT_ACCEPTING, Cell, Row
from esg.seldom import Seldom
from esg.server.accesslog.access_log import AccessLog, LoggedAccess
from esg.server.accesslog.entries import Entry, Observation, SocketRecord
from esg.server.asgi.types import Application, Endpoint, Headers, Receive, Scope, Send
from esg.server.holdings import Holdings
from esg.server.output import Output
from esg.server.proxy.headers import trusted_proxies
from esg.server.turns import Turns
from esg.settings.schema import Config

logger = logging.getLogger("esg")

TICK = 1.0
"""Seconds between two ticks of the clock, the resolution of deadlines and the Date."""

PARK_AFTER = 2.0
"""Seconds after its last response for which an idle connection keeps what the next request needs.
"""

STANDSTILL = 2 * TICK
"""If more seconds pass between two ticks, this process or its loop stood still."""

LATE_TURNS = 3
"""Turns of the loop for reading the data that arrived while the loop stood still."""

EXPIRE_AGAIN = 60.0
"""Seconds until the next try after an exception at a connection's deadline."""


class Connection(Protocol):
    """The part of a connection, of any protocol, that its worker uses."""

    deadline: float
    """When to call `expire`, by the event loop's clock."""

    def expire(self, now: float) -> None:
        """Handle a deadline that has passed."""

    def close(self) -> None:
        """Close it, because the worker ends."""

    def end(self) -> None:
        """End it without waiting for the client; data that isn't sent yet is lost."""


class Handshake(Protocol):
    """A WebSocket that waits for the application's answer."""

    deadline: float

    def expire(self) -> None:
        """The deadline has passed: refuse the WebSocket."""


class Session(Connection, Protocol):
    """A WebSocket."""

    code: int
    """How it was closed."""
    sent: int
    round_trip: float
    record: SocketRecord | None

    def close_with(self, code: int, reason: str) -> None:
        """Send a close frame; the client has limited time to answer."""


class Exchange(Entry, Protocol):
    """A request that is being answered."""

    started: float
    held_head: list[bytes] | None
    task: asyncio.Task[None]

    def time_out(self) -> None:
        """`--request-timeout` has passed."""

    def end_badly(self) -> None:
        """End the response, which the application won't complete."""


class Upgrades(Protocol):
    """A protocol that requests can be upgraded to: see `asgi/upgrade.py`."""

    def accepts(self, scope: Scope) -> bool:
        """Whether a request that offers to upgrade is for this protocol."""

    def begin(self, exchange: Any) -> Any:
        """The `Upgrade` for an `UpgradableExchange` whose request `accepts` has accepted."""


class Service:
    """One application being served on one event loop."""

    __slots__ = (
        "_full",
        "_refusals",
        "_row",
        "_stood_still",
        "accepting",
        "access_log",
        "app",
        "attentive_from",
        "cancels",
        "config",
        "connections",
        "context",
        "draining",
        "due_at",
        "handshakes",
        "heads",
        "holdings",
        "idle_deadline",
        "idle_limit",
        "load",
        "loop",
        "now",
        "observes",
        "on_due",
        "output",
        "parser",
        "proxies",
        "requests",
        "root_path",
        "running",
        "small_head",
        "sockets",
        "start",
        "state",
        "statuses",
        "subject",
        "trace",
        "turns",
        "upgrades",
    )

    def __init__(
        self,
        app: Application,
        config: Config,
        loop: asyncio.AbstractEventLoop,
        row: Row,
        *,
        subject: str,
        access_log: AccessLog | LoggedAccess | None,
        due_at: int,
        on_due: Callable[[], None],
    ) -> None:
        """`on_due` is called once, when request number `due_at` begins; never if that is 0.

        `subject` names this worker in the log.
        """
        self.app = app
        self.config = config
        self.loop = loop
        self.context = contextvars.copy_context()
        self.turns = Turns(loop, self.context)
        """Shares the event loop between connections with a lot of work."""
        self.start = _task_starter(loop, config.reset_contextvars)
        self.subject = subject
        self.access_log = access_log
        self.observes = access_log is not None and access_log.observes
        """Whether the access log's format asks for an `Observation` of each request."""
        self.trace = logger.isEnabledFor(TRACE)
        """Whether the log says when connections begin and end, and when requests begin."""
        # What `protocols.enable` sets:
        self.parser: Callable[[Any], Any]
        """The parser of HTTP/1.1, called with the sink of one connection."""
        self.heads: Any
        """HTTP/1.1's `Heads`: how responses begin."""
        self.upgrades: Upgrades | None = None
        """The protocol that requests can be upgraded to."""
        self.sockets: set[Session] = set()
        """The WebSockets that are open or closing."""
        self.handshakes: set[Handshake] = set()
        """The handshakes that wait for the application's answer."""
        self.root_path = config.root_path
        self.holdings = Holdings(config.ws_max_buffered, config.ws_max_size)
        """The memory that WebSockets use for their clients' messages."""
        self._full = Seldom()
        self._refusals = Seldom()
        self._stood_still = False
        """Whether the last tick of the clock came late."""
        self.proxies = trusted_proxies(config) if config.proxy_headers else None
        """The proxies that are trusted to name a request's client."""
        self.state: dict[str, Any] = {}
        self.connections: set[Connection] = set()
        self.load = 0
        """Connections, including accepted ones that have no transport yet."""
        self.running: set[Exchange] = set()
        self.draining = False
        self.cancels = False
        """Whether the worker is cancelling requests at the end of its drain."""
        self.accepting = False
        self.now = loop.time()
        self.requests = 0
        self.statuses = [0] * 10
        self.due_at = due_at
        self.on_due = on_due
        self.attentive_from = 0 if self.trace else _attentive_from(config, due_at)
        """The number of the first request that `attend` is to look at."""
        self._row = row
        self.output = Output(loop, subject, self.context)
        """What connections send in this turn."""
        self.small_head = min(
            config.limit_request_line,
            config.limit_request_header_size,
            config.limit_request_fields * 4,
        )
        """A header section up to this many bytes can't exceed a limit, because each field takes at
        least four bytes."""
        self.idle_limit = min(config.timeout_keep_alive, PARK_AFTER)
        self.idle_deadline = self.now + self.idle_limit + TICK
        """The time to park or close a connection that becomes idle now; the clock may be a tick
        behind."""

    # -- connections and requests ------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        """A connection begins."""
        self.connections.add(connection)

    def lost(self, connection: Connection) -> None:
        """A connection has ended."""
        self.connections.discard(connection)
        self.change_load(-1)

    def socket_opened(self, session: Session, request: Observation, fields: Headers) -> None:
        """A connection has become a WebSocket; `fields` are those of the application."""
        self.connections.add(session)
        self.sockets.add(session)
        self.statuses[1] += 1
        if self.access_log is not None:
            session.record = SocketRecord(request.scope, request.target)
            session.record.accepted(request.seconds, fields)
            self.access_log.record_socket(session.record)

    def socket_lost(self, session: Session) -> None:
        """A WebSocket's connection has ended."""
        self.connections.discard(session)
        self.sockets.discard(session)
        self.change_load(-1)
        record = session.record
        if self.access_log is not None and record is not None:
            record.closed(session.code, session.sent, session.round_trip)
            self.access_log.record_socket(record)

    def change_load(self, by: int) -> None:
        """Count new or ended connections, and publish their number to the other workers."""
        self.load += by
        self._row[Cell.LOAD] = self.load if self.accepting else NOT_ACCEPTING

    def log_error(self, event: str) -> None:
        """Log something that went wrong in this worker."""
        logger.error("%s %s", self.subject, event)

    def log_refusal(self, client: Endpoint | None, error: HTTPError) -> None:
        """Log why a client's request is refused; further ones soon after only at level DEBUG."""
        before = self._refusals.now(self.loop.time())
        level = logging.DEBUG if before is None else logging.INFO
        more = f" ({before} more refused before)" if before else ""
        peer = client[0] if client else "a UNIX socket"
        text = "%s refused a request from %s: %s (%d)%s"
        logger.log(level, text, self.subject, peer, error, error.status, more)

    def warn_of_holdings(self) -> None:
        """Log that a WebSocket was closed because all of them together hold too much memory.

        This is logged at most once a minute.
        """
        before = self._full.now(self.loop.time())
        if before is not None:
            text = "%s closed a WebSocket: the messages of all clients would exceed %d bytes%s"
            more = f" ({before} more closed before)" if before else ""
            logger.warning(text, self.subject, self.config.ws_max_buffered, more)

    def log_closed(self, client: Endpoint | None, error: Exception | None) -> None:
        """Log the end of a connection, at level TRACE."""
        self.log_trace(client, f"connection closed: {error}" if error else "connection closed")

    def log_trace(self, client: Endpoint | None, event: str) -> None:
        """Log what happens on a connection, at level TRACE."""
        peer = f"{client[0]}:{client[1]}" if client and client[1] is not None else "a UNIX socket"
        logger.log(TRACE, "%s %s: %s", self.subject, peer, event)

    def attend(self, exchange: Exchange) -> Application:
        """Handle a new request if its number is due, or --limit-concurrency or a trace applies.

        Returns the application that answers it.
        """
        if self.trace:
            # Both come from the client, so they are escaped for the log.
            method, target = exchange.scope["method"], exchange.target.decode("latin-1")
            self.log_trace(exchange.scope["client"], f"request begun: {method} {target!a}")
        if self.requests == self.due_at:
            self.on_due()
        exchange.started = self.loop.time()
        most = self.config.limit_concurrency
        return overloaded if most and len(self.running) > most else self.app

    # -- time --------------------------------------------------------------------------

    def tick(self) -> None:
        """Once a second: the clock, the Date, the scoreboard, and connections past a deadline."""
        before, self.now = self.now, self.loop.time()
        now = self.now
        self.idle_deadline = now + self.idle_limit + TICK
        self.heads.refresh(time.time())
        self._publish()
        if self.attentive_from:
            self._note_beginnings()
        stood_still, self._stood_still = self._stood_still, now - before > STANDSTILL
        if not self._stood_still:
            self._sweep()
        elif stood_still:
            # It is late again: a loop that always blocks must not keep its clients forever.
            self._sweep_later(LATE_TURNS)
        # otherwise, data that arrived meanwhile is read before any client counts as late

    def _note_beginnings(self) -> None:
        """Record a start time for requests that have none yet: they began up to a second ago.

        The log of a stuck worker needs it. Recorded here, it costs a new request nothing.
        """
        now = self.now
        for exchange in self.running:
            try:
                exchange.started  # noqa: B018 - raises if it has no value yet
            except AttributeError:
                exchange.started = now

    def _sweep_later(self, turns: int) -> None:
        if turns:
            self.loop.call_soon(self._sweep_later, turns - 1)
        else:
            self._sweep()

    def _sweep(self) -> None:
        """Handle connections, handshakes and requests that are past their deadline."""
        now = self.now
        for connection in [c for c in self.connections if c.deadline < now]:
            try:
                connection.expire(now)
            except Exception as error:  # noqa: BLE001 - the others must be handled, too
                self._failed_to_expire(connection, error)
        for handshake in [h for h in self.handshakes if h.deadline < now]:
            try:
                handshake.expire()
            except Exception as error:  # noqa: BLE001
                self._failed_to_expire(handshake, error)
        if self.config.request_timeout:
            begun = now - self.config.request_timeout
            for exchange in [e for e in self.running if e.started <= begun]:
                try:
                    exchange.time_out()
                except Exception as error:  # noqa: BLE001
                    self._failed_to_expire(None, error)

    def _failed_to_expire(self, what: Connection | Handshake | None, error: Exception) -> None:
        """Log an error of this server, and try again later, not every second."""
        if what is not None:
            what.deadline = self.now + EXPIRE_AGAIN
        event = "can't deal with a deadline that has passed"
        logger.error("%s %s", self.subject, event, exc_info=error)

    def _publish(self) -> None:
        row = self._row
        row.beat()
        row[Cell.CONNECTIONS] = len(self.connections)
        row[Cell.IN_FLIGHT] = len(self.running)
        row[Cell.REQUESTS] = self.requests
        row[Cell.WEBSOCKETS] = len(self.sockets)
        for hundreds in range(1, 6):
            row[Cell.STATUS_1XX + hundreds - 1] = self.statuses[hundreds]

    @property
    def idle(self) -> bool:
        """Whether nothing is left to finish: no connection, and no application call."""
        return not self.connections and not self.running


async def overloaded(scope: Scope, receive: Receive, send: Send) -> None:
    """The application that answers if there are too many requests (RFC 9110, 15.6.4)."""
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"retry-after", b"1"),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": b"Service Unavailable"})


def _attentive_from(config: Config, due_at: int) -> float:
    if config.limit_concurrency or config.request_timeout:
        return 0
    return due_at or math.inf


def _task_starter(
    loop: asyncio.AbstractEventLoop, empty_context: bool
) -> Callable[..., asyncio.Task[None]]:
    """A function that runs a coroutine as a task, from Python 3.12 on with its first step at once.

    `empty_context`: the task's context has no variables, instead of the inherited ones.
    """
    if empty_context:
        ordinary = _task_starter(loop, empty_context=False)
        return lambda coroutine: ordinary(coroutine, context=contextvars.Context())
    if sys.version_info >= (3, 12):
        return functools.partial(asyncio.Task, loop=loop, eager_start=True)
    # Otherwise a name is made for every task, which takes 0.2 of a task's 1.3 microseconds.
    return functools.partial(asyncio.Task, loop=loop, name="request")
