"""Accepts connections from the listening sockets that all workers share, and spreads them evenly.

The worker that wakes first would accept most connections. So a worker that has more of them than
the least loaded one pauses for a moment. Measured with 64 keep-alive connections on 4 workers:
22, 6, 36 and 0 without the pause, 16 each with it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from esg.net.listeners import Listener
from esg.openfiles import explained
from esg.scoreboard import NOT_ACCEPTING
from esg.seldom import Seldom
from esg.server.accepted import Address, ConnectedSocket, Opening, acceptor_of, discard
from esg.server.asgi.types import Endpoint
from esg.server.endpoints import FROM_TRANSPORT, endpoint
from esg.server.http1.connection import Connection
from esg.server.proxy.headers import trusted_proxies
from esg.server.proxy.receiver import ProxyReceiver
from esg.server.state import Service
from esg.server.tls import ServerContext, server_context
from esg.server.tls_transport import TLSTransport

logger = logging.getLogger("esg")

MARGIN = 1
"""How many more connections than the least loaded worker a worker may have."""

PAUSE = 0.002
"""Seconds for which a worker that is ahead leaves new connections to the others."""

MOST_CREDIT = 64
"""The most connections that a worker accepts after a pause in which the workers behind it accepted
none.
"""

BATCH = 32
"""The most connections accepted in one turn of the event loop if this is the only worker."""

MOST_QUEUED = 100_000
"""More connections than a listener's queue can hold, so this limit accepts all of them."""

DRAIN_TIME = 0.25
"""Seconds that TCP handshakes in progress have to finish before a listener closes for good."""

FULL_PAUSE = 0.05
"""Seconds until a worker that has reached its limit of connections checks again."""

SHUT_PAUSE = 0.5
"""Seconds to wait before accepting again on a socket that was shut down."""

OUT_OF_FILES_PAUSE = 0.5
"""Seconds to wait after an accept that failed for lack of descriptors or memory."""


class Balance:
    """Decides from the loads of all workers whether to accept a connection now. Pure.

    A worker that is ahead pauses. If the workers behind it have as many connections after the pause
    as before, they may be blocked, and new connections must not wait for them. So one connection is
    accepted, two after the next of these pauses, then four, and a blocked worker soon costs little.
    """

    __slots__ = ("_behind", "_credit", "_paused", "_to_accept")

    def __init__(self) -> None:
        self._behind = -1
        """The sum of the connections of the workers that this one is ahead of."""
        self._credit = 1
        """How many connections to accept after the next pause."""
        self._to_accept = 0
        """How many of those are still to be accepted before the next pause."""
        self._paused = False

    @staticmethod
    def room(own: int, loads: Sequence[int]) -> int:
        """How many connections a worker that doesn't yield may accept before it looks again."""
        others = sorted(loads)
        if own in others:
            others.remove(own)
        return max(1, min(others, default=own) + MARGIN + 1 - own)

    def yields(self, own: int, loads: Sequence[int]) -> bool:
        """Whether a worker with `own` connections should leave the next one to the others."""
        if own <= min(loads, default=own) + MARGIN:
            self._to_accept = 0
            return False
        if self._to_accept:
            self._to_accept -= 1
            return False
        behind = sum(load for load in loads if load + MARGIN < own)
        if behind != self._behind:
            self._behind, self._credit, self._paused = behind, 1, False
        self._paused = not self._paused
        if not self._paused:
            self._to_accept = self._credit - 1
            self._credit = min(self._credit * 2, MOST_CREDIT)
        return self._paused


class Acceptor:
    """Accepts the connections of one worker, from every listener."""

    def __init__(
        self,
        service: Service,
        listeners: Sequence[Listener],
        loads: Callable[[], list[int]],
        ssl_context: ServerContext | None = None,
    ) -> None:
        """`loads` returns the number of connections of every worker that accepts.

        `ssl_context` is the one that `prepare` made; if it's missing, the TLS settings decide.
        """
        self._service = service
        self._listeners = list(listeners)
        self._loads = loads
        self._balance = Balance()
        self._limit = service.config.limit_connections or sys.maxsize
        config = service.config
        self._proxies = trusted_proxies(config) if config.proxy_protocol else None
        """The peers that have to begin with a PROXY protocol header; None if there are none."""
        # Without `prepare` there is no context. TLS mustn't turn into plain text then.
        self._context = ssl_context or server_context(config)
        self._begin = self._begin_plain if self._context is None else self._begin_tls
        self._failures = Seldom()
        self._refusals = Seldom()
        self._timers: dict[Listener, asyncio.TimerHandle] = {}
        self._expected = 1
        """How many connections the next turn should accept: as many as the last one found, or twice
        as many if it left some. An attempt at an empty queue would be a wasted system call."""
        self._closing = False
        self._shut: set[Listener] = set()
        """UNIX sockets that another process has shut down."""
        self._pause_timer: asyncio.TimerHandle | None = None
        """Ends a pause of all listeners."""

    def start(self) -> None:
        """Start accepting."""
        self._service.accepting = True
        self._service.change_load(0)
        for listener in self._listeners:
            self._watch(listener)

    def stop(self) -> None:
        """Stop accepting. Connections that the kernel has queued stay there for other workers."""
        self._service.accepting = False
        self._service.change_load(0)
        self._end_pause()
        for listener in self._listeners:
            self._unwatch(listener)
            listener.close()
        self._listeners = []

    async def stop_last(
        self, ends: Callable[[Listener], bool], *, empties_all: bool = False
    ) -> None:
        """Stop accepting; first empty the queues of listeners that nobody else accepts from.

        `ends` says which listeners those are. The queues of the other listeners are left to their
        next owners. With `empties_all` they are emptied, too, because there may be no next owners.
        """
        self._limit = sys.maxsize
        self._closing = True
        self._end_pause()
        unfinished = False
        for listener in self._listeners:
            self._unwatch(listener)
            if listener.refuse_new() if ends(listener) else empties_all:
                unfinished = True
                self._service.loop.add_reader(listener.fileno(), self._accept_batch, listener)
        if unfinished:
            await asyncio.sleep(DRAIN_TIME)
        for listener in self._listeners:
            if empties_all or ends(listener):
                self._accept_batch(listener, most=MOST_QUEUED)
        self.stop()

    @property
    def busy(self) -> bool:
        """Whether some accepted connections aren't HTTP connections yet, as during a handshake."""
        return self._service.load > len(self._service.connections)

    # -- the listeners -----------------------------------------------------------------

    def _watch(self, listener: Listener) -> None:
        self._timers.pop(listener, None)
        if self._pause_timer is None:
            self._service.loop.add_reader(listener.fileno(), self._on_readable, listener)

    def _unwatch(self, listener: Listener) -> None:
        timer = self._timers.pop(listener, None)
        if timer is not None:
            timer.cancel()
        self._service.loop.remove_reader(listener.fileno())

    def _pause(self, listener: Listener, seconds: float) -> None:
        self._unwatch(listener)
        loop = self._service.loop
        self._timers[listener] = loop.call_later(seconds, self._watch, listener)

    def _pause_all(self, seconds: float) -> None:
        """Pause all listeners together, since connections from all of them add to the same load.

        If each listener had a pause of its own, each would accept a connection after it. A worker
        that is ahead would then take as many connections per pause as it has listeners.
        """
        for listener in self._listeners:
            self._service.loop.remove_reader(listener.fileno())
        self._pause_timer = self._service.loop.call_later(seconds, self._watch_all)

    def _watch_all(self) -> None:
        self._pause_timer = None
        for listener in self._listeners:
            if listener not in self._timers:
                self._watch(listener)

    def _end_pause(self) -> None:
        if self._pause_timer is not None:
            self._pause_timer.cancel()
            self._pause_timer = None

    def _on_readable(self, listener: Listener) -> None:
        if self._pause_timer is not None:
            return  # another listener began a pause earlier in this turn
        if self._service.load >= self._limit:
            self._pause_all(FULL_PAUSE)
            return
        loads = [load for load in self._loads() if load != NOT_ACCEPTING]
        most = BATCH
        if len(loads) > 1:
            if self._balance.yields(self._service.load, loads):
                self._pause_all(PAUSE)
                return
            most = self._balance.room(self._service.load, loads)
        accepted = self._accept_batch(listener, min(self._expected, most))
        enough = accepted == self._expected
        self._expected = min(2 * accepted, BATCH) if enough else accepted or 1

    def _accept_batch(self, listener: Listener, most: int = BATCH) -> int:
        """Accept this many connections, or as many as are queued; returns how many there were."""
        accept = acceptor_of(listener.sock, self._service.loop)
        most = min(most, self._limit - self._service.load)
        for accepted in range(most):
            try:
                sock, peer = accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return accepted  # another worker was quicker, or the client has disconnected
            except OSError as error:
                if error.errno == errno.EINVAL:
                    self._on_shut(listener)
                else:
                    self._on_accept_error(listener, error)
                return accepted
            self._take(sock, peer, listener)
        return most

    def _on_shut(self, listener: Listener) -> None:
        """The socket was shut down: accept(2), EINVAL.

        The worker that closes a UNIX socket for good shuts it down for all, so this worker may be
        about to end as well. Otherwise another process made a mistake. The arbiter detects that,
        and repairs the socket or sends a new one.
        """
        if self._closing:  # this worker shut it down, and its queue is empty
            self._service.loop.remove_reader(listener.fileno())
            return
        is_certain = listener.path is None or listener in self._shut
        if is_certain and self._failures.now(self._service.loop.time()) is not None:
            fault = "a process that has the socket shut it down"
            self._service.log_error(f"can't accept on {listener.url()}: {fault}")
        self._shut.add(listener)
        self._pause(listener, SHUT_PAUSE)

    def replace(self, url: str, sock: socket.socket) -> None:
        """Replace a socket by another one that listens at the same address."""
        sock.setblocking(False)
        for listener in self._listeners:
            if listener.url() == url:
                self._unwatch(listener)
                listener.close()
                listener.sock = sock
                self._shut.discard(listener)
                if self._service.accepting:
                    self._watch(listener)
                return
        sock.close()

    def _on_accept_error(self, listener: Listener, error: OSError) -> None:
        """Out of descriptors or memory: the connection stays in the queue, so try again later."""
        if self._failures.now(self._service.loop.time()) is not None:
            self._service.log_error(f"can't accept: {explained(error)}")
        self._pause(listener, OUT_OF_FILES_PAUSE)

    # -- a connection ------------------------------------------------------------------

    def _take(self, sock: ConnectedSocket, peer: Address, listener: Listener) -> None:
        client: Endpoint | None = None
        server = FROM_TRANSPORT
        if isinstance(peer, tuple):
            client = endpoint(peer)
        else:
            server = listener.path or "", None
        if self._proxies is None:
            protocol = self._begin(client, server)
        elif self._proxies.trusts(client and client[0]):
            protocol = self._receiver(client, server)
        else:
            self._refuse(client, "no trusted proxy (--forwarded-allow-ips)")
            discard(sock)
            return
        self._service.change_load(+1)
        Opening(self._service.loop, protocol, sock, self._on_gone).step()

    def _on_gone(self) -> None:
        """A client disconnected before its socket was set up."""
        self._service.change_load(-1)

    # -- the protocols below HTTP --------------------------------------------------------

    def _receiver(self, client: Endpoint | None, server: Endpoint) -> asyncio.Protocol:
        """The protocol that reads a PROXY header, which comes first, even before TLS."""

        def fail(reason: str) -> None:
            self._service.change_load(-1)
            self._refuse(client, reason)

        return ProxyReceiver(
            self._service.loop,
            lambda named: (
                self._begin(named.client, named.server, "https" if named.secure else "http")
                if named.has_addresses
                else self._begin(client, server)
            ),
            limit=self._service.config.timeout_request_header,
            fail=fail,
        )

    def _begin_plain(
        self, client: Endpoint | None, server: Endpoint | None, scheme: str = "http"
    ) -> asyncio.Protocol:
        return Connection(self._service, client, server, scheme=scheme)

    def _begin_tls(
        self, client: Endpoint | None, server: Endpoint | None, scheme: str = "https"
    ) -> asyncio.Protocol:
        """The peer of this connection speaks TLS, whatever `scheme` a PROXY header says."""
        service = self._service

        def begin(tls: dict[str, Any]) -> asyncio.Protocol:
            return Connection(service, client, server, tls)

        def fail(reason: str) -> None:
            service.change_load(-1)
            who = client and client[0]
            logger.debug("%s TLS handshake with %s failed: %s", service.subject, who, reason)

        assert self._context is not None
        limit = service.config.ssl_handshake_timeout
        return TLSTransport(
            service.loop, service.turns, self._context, begin, limit=limit, fail=fail
        )

    def _refuse(self, client: Endpoint | None, reason: str) -> None:
        suppressed = self._refusals.now(self._service.loop.time())
        if suppressed is not None:
            more = f" ({suppressed} more like it before)" if suppressed else ""
            text = "%s refused a connection from %s: %s%s"
            who = client[0] if client else "a UNIX socket"
            logger.warning(text, self._service.subject, who, reason, more)
