"""What all connections of a worker share: the application, settings, a coarse clock, counters."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from esg.errors import HTTPError
from esg.scoreboard import NOT_ACCEPTING, Cell, Row
from esg.seldom import Seldom
from esg.server.accesslog.access_log import AccessLog, LoggedAccess, SocketRecord
from esg.server.asgi.types import Application, Endpoint, Receive, Scope, Send
from esg.server.http1.exchange import BODY, Exchange
from esg.server.http1.observed import Observed
from esg.server.http1.parser import parser_class
from esg.server.http1.response import Heads
from esg.server.proxy.headers import trusted_proxies
from esg.server.turns import Turns
from esg.server.websocket.codec import library as websocket_library
from esg.server.websocket.holdings import Holdings
from esg.settings.schema import Config

if TYPE_CHECKING:
    from esg.server.http1.connection import Connection
    from esg.server.websocket.handshake import Handshake
    from esg.server.websocket.session import Session

logger = logging.getLogger("esg")

TICK = 1.0
"""Seconds between two turns of the clock: deadlines and the Date are as fine as this."""

STANDSTILL = 2 * TICK
"""Seconds between two turns that mean that this process, or its loop, stood still."""

LATE_TURNS = 3
"""Turns of the loop in which it reads what clients sent while it stood still."""

EXPIRE_AGAIN = 60.0
"""Seconds until a connection is looked at again whose deadline could not be dealt with."""


class Service:
    """One application being served on one event loop."""

    __slots__ = (
        "_full",
        "_refusals",
        "_row",
        "_stood_still",
        "_warned_of_http10",
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
        "exchange",
        "handshakes",
        "heads",
        "held",
        "holdings",
        "idle_deadline",
        "load",
        "loop",
        "now",
        "on_due",
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
        "turns",
        "websockets",
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
        """`on_due` is called once, when the request number `due_at` begins; 0 is never.

        `subject` is how the log names this worker.
        """
        self.app = app
        self.config = config
        self.loop = loop
        self.context = contextvars.copy_context()
        self.turns = Turns(loop, self.context)
        """Among which connections that have much to do divide it."""
        self.start = _task_starter(loop, config.reset_contextvars)
        self.subject = subject
        self.access_log = access_log
        self.exchange = Observed if access_log is not None and access_log.observes else Exchange
        """What a request on a connection is made."""
        self.parser = parser_class(config.http)
        self.websockets = websocket_library(config)
        """What makes WebSockets of upgrades; None if nothing does."""
        self.sockets: set[Session] = set()
        """The WebSockets that are open, or on their way out."""
        self.handshakes: set[Handshake] = set()
        """Those that wait for the application's answer."""
        self.root_path = config.root_path
        self.holdings = Holdings(config.ws_max_buffered, config.ws_max_size)
        """What WebSockets hold of their clients' messages."""
        self._full = Seldom()
        self._refusals = Seldom()
        self._warned_of_http10 = False
        self._stood_still = False
        """Whether the last turn of the clock came late."""
        self.proxies = trusted_proxies(config) if config.proxy_headers else None
        """Whose word on a request's client is taken."""
        self.state: dict[str, Any] = {}
        self.heads = Heads(config.server_header, config.date_header, config.header)
        self.connections: set[Connection | Session] = set()
        self.load = 0
        """Connections, with those that were accepted but have no transport yet."""
        self.running: set[Exchange] = set()
        self.draining = False
        self.cancels = False
        """Whether the worker cancels what is left at the end of its drain."""
        self.accepting = False
        self.now = loop.time()
        self.requests = 0
        self.statuses = [0] * 10
        self.due_at = due_at
        self.on_due = on_due
        self.attentive_from = _attentive_from(config, due_at)
        """The number of the first request that `attend` is to look at."""
        self._row = row
        self.held: list[Exchange] = []
        """Exchanges whose response's head waits for its body, but not beyond this turn."""
        self.small_head = min(
            config.limit_request_line,
            config.limit_request_header_size,
            config.limit_request_fields * 4,
        )
        """Bytes of head, with a field taking at least four, that can break no limit."""
        self.idle_deadline = self.now + config.timeout_keep_alive + TICK
        """When a connection that becomes idle now is closed; the clock may be a tick behind."""

    # -- connections and requests ------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        """A connection begins."""
        self.connections.add(connection)

    def lost(self, connection: Connection) -> None:
        """A connection is over."""
        self.connections.discard(connection)
        self.change_load(-1)

    def socket_opened(self, session: Session, handshake: Handshake) -> None:
        """A connection has become a WebSocket."""
        self.connections.add(session)
        self.sockets.add(session)
        self.statuses[1] += 1
        if self.access_log is not None:
            session.record = SocketRecord(handshake.scope, handshake.target)
            session.record.accepted(handshake.seconds, handshake.response_headers)
            self.access_log.record_socket(session.record)

    def socket_lost(self, session: Session) -> None:
        """A WebSocket's connection is over."""
        self.connections.discard(session)
        self.sockets.discard(session)
        self.change_load(-1)
        record = session.record
        if self.access_log is not None and record is not None:
            record.closed(session.code, session.sent, session.round_trip)
            self.access_log.record_socket(record)

    def change_load(self, by: int) -> None:
        """Count connections taken or gone, and let the other workers see how many there are."""
        self.load += by
        self._row[Cell.LOAD] = self.load if self.accepting else NOT_ACCEPTING

    def release_heads(self) -> None:
        """Send the heads that no body has followed; one call a turn serves all of them."""
        held, self.held = self.held, []
        for exchange in held:
            if exchange.state is BODY:
                exchange.flush_head()

    def log_error(self, event: str) -> None:
        """Log something that went wrong in this worker."""
        logger.error("%s %s", self.subject, event)

    def log_refusal(self, client: Endpoint | None, error: HTTPError) -> None:
        """Log why a client's request is refused; its next such requests at level DEBUG alone."""
        before = self._refusals.now(self.loop.time())
        level = logging.DEBUG if before is None else logging.INFO
        more = f" ({before} more refused before)" if before else ""
        peer = client[0] if client else "a UNIX socket"
        text = "%s refused a request from %s: %s (%d)%s"
        logger.log(level, text, self.subject, peer, error, error.status, more)

    def warn_of_holdings(self) -> None:
        """Log that a WebSocket was closed since all of them hold too much; not each time."""
        before = self._full.now(self.loop.time())
        if before is not None:
            text = "%s closed a WebSocket: the messages of all clients would exceed %d bytes%s"
            more = f" ({before} more closed before)" if before else ""
            logger.warning(text, self.subject, self.config.ws_max_buffered, more)

    def warn_of_http10_upgrades(self) -> None:
        """Log, once, what to do about a proxy that asks for WebSockets over HTTP/1.0."""
        if not self._warned_of_http10:
            self._warned_of_http10 = True
            logger.warning(
                "%s a WebSocket was requested over HTTP/1.0, which has no upgrades; it is served, "
                "but if nginx is in front, set `proxy_http_version 1.1;` in its location",
                self.subject,
            )

    def attend(self, exchange: Exchange) -> Application:
        """Look at a request that begins, where there is something to look for.

        Returns the application that is to answer it.
        """
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
        self.idle_deadline = now + self.config.timeout_keep_alive + TICK
        self.heads.refresh(time.time())
        self._publish()
        if self.attentive_from:
            self._note_beginnings()
        stood_still, self._stood_still = self._stood_still, now - before > STANDSTILL
        if not self._stood_still:
            self._sweep()
        elif stood_still:
            # Again: a loop that blocks all the time must not keep its clients for ever.
            self._sweep_later(LATE_TURNS)
        # else what clients sent meanwhile is to be read before anybody is late

    def _note_beginnings(self) -> None:
        """Note when requests began that nobody has noted: now, or up to a second ago.

        It is for the log of a worker that is stuck, and costs a request nothing when it begins.
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
        """Deal with connections, handshakes and requests that are past their deadline."""
        now = self.now
        for connection in [c for c in self.connections if c.deadline < now]:
            try:
                connection.expire(now)
            except Exception as error:  # noqa: BLE001 - the others are to be looked at, too
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

    def _failed_to_expire(
        self, what: Connection | Session | Handshake | None, error: Exception
    ) -> None:
        """Log a fault of this server's, and look again later, not each second."""
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
    """The application that answers when there are too many requests (RFC 9110, 15.6.4)."""
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
    """How to run a coroutine as a task, its first step at once where Python can (3.12).

    `empty_context`: with no context variable set, instead of what it inherits.
    """
    if empty_context:
        ordinary = _task_starter(loop, empty_context=False)
        return lambda coroutine: ordinary(coroutine, context=contextvars.Context())
    if sys.version_info >= (3, 12):
        return functools.partial(asyncio.Task, loop=loop, eager_start=True)
    # A name of its own would be made for every task: 0.2 of the 1.3 microseconds that one costs.
    return functools.partial(asyncio.Task, loop=loop, name="request")
