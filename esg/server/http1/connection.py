"""One HTTP/1.1 connection: requests are answered one after the other, and then it ends.

It is the protocol of its transport. Its `Reader` makes exchanges of what the client sends. The
connection holds the exchange that is being answered and the pipelined ones behind it, owns every
deadline, and closes. Its `Outflow` knows whether the client takes what is sent.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, cast

from esg.errors import HTTPError, RequestTimeout
from esg.server.accesslog.entries import Refused
from esg.server.asgi.exchange import DONE
from esg.server.asgi.responses import Content
from esg.server.asgi.types import Endpoint
from esg.server.asgi.upgrade import Successor
from esg.server.http1.exchange import Exchange
from esg.server.http1.parked import Parked
from esg.server.http1.reader import Reader
from esg.server.http1.response import Heads, plain_response
from esg.server.http1.upgrade import UpgradeExchange
from esg.server.outflow import LINGER, Outflow
from esg.server.state import TICK, Service
from esg.server.transports import end_output, reset

DISCARD_LIMIT = 262144
"""Bytes of unread request body that are read and dropped to keep a connection alive.

If more has yet to arrive, the response says that the connection closes. A chunked body, whose size
isn't known, is read for LINGER_LONGEST seconds.
"""

LINGER_UPLOADING = 5.0
"""Seconds of silence after which a closing connection ends, if the client may still be sending."""

LINGER_LONGEST = 30.0
"""Seconds for which a closing connection reads and drops what such a client sends.

Some clients send the whole request before they read the response. Without this time, their next
bytes would be answered by a reset, which destroys the response. The two numbers are nginx's
lingering_timeout and lingering_time.
"""

SILENCE = 1.0
"""Seconds without a byte of a response after which a client that has closed its side counts as
gone.
"""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Wait(Enum):
    """The event that a connection waits for, which gives its deadline a meaning."""

    REQUEST = "a request"
    NEXT = "another request"
    HEAD = "the rest of a header section"
    BODY = "the rest of a request's body"
    APPLICATION = "the application"
    SENDING = "the client to take what was sent"
    END = "the client's end of the connection"


REQUEST, NEXT, HEAD, BODY, APPLICATION, SENDING, END = Wait


NOTHING: deque[Any] = deque(maxlen=0)
"""The queue of a connection whose client sends no requests ahead: an empty one takes 700 bytes."""


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_client",
        "_discard_until",
        "_refused",
        "_wait",
        "_wrote",
        "client_left",
        "current",
        "deadline",
        "ends_soon",
        "is_closing",
        "outflow",
        "queue",
        "reader",
        "refusal",
        "service",
        "starting",
        "transport",
        "write",
    )

    transport: asyncio.Transport
    write: Callable[[bytes], None]
    """Send bytes, in order: a method of the outflow."""
    is_closing: Callable[[], bool]
    """Whether written data is dropped because the transport is closing: the transport's method."""

    def __init__(
        self,
        service: Service,
        client: Endpoint | None,
        server: Endpoint | None,
        tls: dict[str, Any] | None = None,
        *,
        scheme: str = "http",
    ) -> None:
        """`tls` is the scope's extension of that name, for a connection over TLS.

        Without TLS, `scheme` is what the client speaks with the proxy.
        """
        self.service = service
        self._client = client
        self.reader = Reader(self, service, client, server, tls, scheme)
        self.outflow = Outflow(service.loop, service.output)
        # requests: about to begin (then `current` is the same), being answered, waiting behind that
        self.starting: Exchange | None = None
        self.current: Exchange | None = None
        self.queue: deque[Exchange] = NOTHING
        self.refusal: int | None = None
        """The status to send after these requests, because the next one can't be served."""
        self._refused: Refused | None = None
        """The access log's entry for that request."""
        self._discard_until = 0.0
        """Until when to read the rest of a body that the application didn't want."""
        # the client's end
        self.ends_soon = False
        """Whether the client has closed its side, so that no further request can come."""
        self.client_left = False
        """Whether it seems to have closed the whole connection: see `_look_for_client`."""
        self._wrote = False
        """After `ends_soon`: whether something was written since `_look_for_client` last asked."""
        # time
        self._wait = REQUEST
        self.deadline = math.inf

    # -- from the event loop -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._attach(cast(asyncio.Transport, transport))
        if self.service.trace:
            self.service.log_trace(self._client, "connection opened")
        self._await(REQUEST, self.service.config.timeout_request_header)

    def resume(self, transport: asyncio.Transport, deadline: float) -> None:
        """Continue an idle connection that was parked, and would have been closed at `deadline`."""
        self._attach(transport)
        self.deadline = deadline

    def _attach(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.write = self.outflow.write
        self.is_closing = transport.is_closing
        self.outflow.attach(transport)
        self.reader.attach(transport)
        self.service.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._wait is END or self.refusal is not None:
            self.outflow.heard = True  # the connection is closing, so the data is dropped
            return
        reader = self.reader
        if reader.pending or reader.paused:
            reader.pending += data  # in its turn
        else:
            reader.feed(data)

    def eof_received(self) -> bool:
        """The client sends no more, but may still wait for responses."""
        self.ends_soon = True
        self.outflow.flush()  # the transport may close when this returns
        if self._wait is END:
            return False
        self.write = self._write_half_closed
        if self.reader.pending:
            return True  # data from before the end is parsed first
        return self.input_ended()

    def input_ended(self) -> bool:
        """Everything that the client has sent is parsed; returns whether a response is due."""
        receiving, self.reader.receiving = self.reader.receiving, None
        if receiving is not None and receiving is self.current:
            return False  # the request was cut off
        if receiving is not None:
            self.queue.remove(receiving)
        if self.current is None and not self.queue:
            return False
        self._wake_exchanges()
        self.watch()
        return True

    def _wake_exchanges(self) -> None:
        for exchange in filter(None, (self.current, *self.queue)):
            exchange.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.service.lost(self)
        self.deadline = math.inf
        self._wait = END
        self.reader.lost()
        self.write = _write_nothing
        self.outflow.drop()
        if self.current is not None:
            if self.current.head_sent and self.current.state is not DONE:
                self.current.record()
            self.current.disconnect()
        self._forget_exchanges()
        self.outflow.resume()
        if self.service.trace:
            self.service.log_closed(self._client, exc)

    def pause_writing(self) -> None:
        self.outflow.pause(self.service.now)
        if self._wait is not END:
            self._await(SENDING, self.service.config.timeout_send)

    def resume_writing(self) -> None:
        self.outflow.resume()
        if self._wait is not END:
            self._await(REQUEST, self.service.config.timeout_keep_alive)
            self.watch()
            if self.current is None and (self.queue or self.refusal is not None):
                self._next()

    # -- one exchange after the other ----------------------------------------------------

    def take(self, exchange: Exchange) -> None:
        """Answer a request in its turn: immediately, if no other is in front of it."""
        if self.current is None and not self.outflow.paused:
            self.current = self.starting = exchange
        else:
            if self.queue is NOTHING:
                self.queue = deque()
            self.queue.append(exchange)

    def make_upgradable(self) -> bool:
        """Make an `UpgradeExchange` of the last request, which offers an upgrade.

        Returns False if the upgrade isn't to a protocol that is served here.
        """
        upgrades = self.service.upgrades
        offer = self.queue[-1] if self.queue else self.starting
        if upgrades is None or offer is None:
            return False
        if offer.framing.length or not upgrades.accepts(offer.scope):
            return False
        exchange = UpgradeExchange(self, offer, upgrades)
        if self.queue:
            self.queue[-1] = exchange
        else:
            self.current = self.starting = exchange
        return True

    def begin(self) -> None:
        """Call the application for the request whose turn it is."""
        exchange, self.starting = self.current, None
        if exchange is None:
            return  # the connection has ended meanwhile
        service = self.service
        service.running.add(exchange)
        service.requests += 1
        app = service.app
        if service.requests >= service.attentive_from:
            app = service.attend(exchange)
        exchange.task = service.start(exchange.run(app))

    def exchange_done(self, exchange: Exchange) -> None:
        """The response is complete: take up the next request, or close."""
        exchange.record()
        if not exchange.keep_alive or (self.ends_soon and not self._owes_next):
            self.close()
        elif exchange.body.complete:
            self._next()
        else:  # read past a body that the application didn't want
            self._discard_until = self.service.now + LINGER_LONGEST + TICK
            self.reader.regulate()
            self.watch()

    @property
    def _owes_next(self) -> bool:
        """Whether another request waits behind the one being answered."""
        return bool(self.queue or self.reader.pending) or self.refusal is not None

    def body_discarded(self) -> None:
        """More was read of a body that the application didn't want."""
        assert self.current is not None
        if self.current.body.complete:
            self._next()
        elif self.service.now > self._discard_until:
            self.close(patience=0.0)  # the client's time is over

    def _next(self) -> None:
        """Start the next request, or wait for one."""
        self.current = None
        if self._wait is not SENDING:
            # The code of `_await`, inlined, because every request passes here.
            self._wait = NEXT
            self.deadline = self.service.idle_deadline
        elif self.queue:
            return  # no more responses until the client has read the previous ones
        if self.queue:
            self.current = self.queue.popleft()
            # Not in the previous request's task, which has its own context variables.
            self.service.loop.call_soon(self.begin, context=self.service.context)
        elif self.refusal is not None:
            self._answer_refusal()
        elif self.reader.head_size and self._wait is not SENDING:
            self._await(HEAD, self.service.config.timeout_request_header)
        if self.reader.paused:
            self.reader.regulate()

    def may_go_on(self, exchange: Exchange) -> bool:
        """Whether the connection can stay open after this response.

        It can't if the application may leave more of the request's body unread than we would read.
        """
        if self.queue or self.refusal is not None:
            return True  # requests that were sent already are answered first
        if exchange.body.unread > DISCARD_LIMIT or exchange.body.awaits_continue:
            return False
        return not self.service.draining and (not self.ends_soon or bool(self.reader.pending))

    def hand_over(self, successor: Successor) -> bytes:
        """Give the transport away; returns the data that the client has sent after the request."""
        self._forget_exchanges()
        self._wait = END
        self.deadline = math.inf
        self.write = _write_nothing
        self.service.connections.discard(self)
        self.outflow.flush()
        successor.take_transport(self.transport, self.outflow.paused)
        return self.reader.release()

    # -- refusing and closing ----------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether the connection is closing, so that arriving data is dropped."""
        return self._wait is END

    @property
    def refuses(self) -> bool:
        """Whether the data after the request being answered can't be served."""
        return self.refusal is not None

    def refuse(self, error: HTTPError, entry: Refused | None, receiving: Exchange | None) -> None:
        """A request can't be served: answer it in its turn, then close.

        `receiving` is its exchange, if there is one already.
        """
        if receiving is not None and receiving in self.queue:
            self.queue.remove(receiving)
        self.refusal = error.status
        self._refused = entry
        self.service.log_refusal(self._client, error)
        if self.current is not None and self.current is receiving:
            self._give_up(receiving)
        elif self.current is None and not self.queue:
            self._answer_refusal()

    def _give_up(self, exchange: Exchange) -> None:
        """The body of the request being answered turned out to be invalid."""
        self.starting = None
        if exchange.state is DONE:
            self.close()
            return
        head_sent = exchange.head_sent
        exchange.disconnect()
        if head_sent:
            self.cut()
        else:
            exchange.answer(self.refusal or 400)
        exchange.record()

    def _answer_refusal(self) -> None:
        """Answer the request that was refused, now that no other is in front of it."""
        status = self.refusal or 400
        self.service.statuses[status // 100] += 1
        if self.service.access_log is not None and self._refused is not None:
            self.service.access_log.record_refused(self._refused)
        self.answer_error(status)

    def answer_error(
        self, status: int, head_only: bool = False, content: Content | None = None
    ) -> None:
        """Send one of the server's own responses, and close."""
        service = self.service
        heads: Heads = service.heads
        retry = service.cancels and status == 503
        self.write(plain_response(status, heads, head_only, content, retry=retry))
        self.close()

    def abandon(self, exchange: Exchange) -> None:
        """The client has left, and the event loop hasn't noticed yet."""
        if self._wait is not END:
            exchange.record()
            exchange.disconnect()
            self.cut()

    def close(self, patience: float = LINGER_LONGEST) -> None:
        """Send the rest, then wait a short time for the client to close.

        Data from the client within `patience` seconds extends the wait.

        Closing with unread bytes makes the kernel send a reset, which can destroy the last
        response before the client has read it (RFC 9112, section 9.6).
        """
        uploading = self.reader.receiving is not None or self.refusal is not None
        self._forget_exchanges()
        self.reader.pending = b""
        if self.transport.is_closing():
            return
        self.outflow.flush()
        if self.ends_soon or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.reader.drop()
        now = self.service.now
        silence = LINGER_UPLOADING if uploading else LINGER
        self.outflow.linger(now, silence, now + patience + TICK if patience else now)
        self._await(END, LINGER)
        end_output(self.transport)

    def cut(self) -> None:
        """End an incomplete response with a reset, so that it can't be mistaken for a complete
        one."""
        self._forget_exchanges()
        self.outflow.flush()
        reset(self.transport)

    def end(self) -> None:
        """See `state.Connection`."""
        self.outflow.end()

    def _forget_exchanges(self) -> None:
        self.current = self.starting = None
        self.queue = NOTHING

    # -- writing -------------------------------------------------------------------------

    def send_continue(self) -> None:
        """Send the 100 that the client waits for before it sends the body (RFC 9110, 10.1.1)."""
        self.write(CONTINUE)
        self.watch()

    def _write_half_closed(self, data: bytes) -> None:
        """Replaces `write` after the client has closed its side: see `_look_for_client`."""
        self._wrote = True
        self.client_left = False
        self.outflow.write(data)

    # -- time ----------------------------------------------------------------------------

    def _await(self, wait: Wait, limit: float) -> None:
        self._wait = wait
        # The service's clock may be a tick behind, and no time may be shorter than its setting.
        self.deadline = self.service.now + limit + TICK

    def await_sending(self) -> None:
        """Begin the client's time limit for data that is written to the socket directly."""
        self.outflow.begin(self.service.now)
        self._await(SENDING, self.service.config.timeout_send)

    def watch(self) -> None:
        """Set the deadline for what the client has to send next."""
        if self._wait is END or self._wait is SENDING:
            return
        receiving = self.reader.receiving
        if receiving is not None and not self.reader.paused and not receiving.body.awaits_continue:
            self._await(BODY, self.service.config.timeout_request_body)
        elif self.current is not None:
            self._await(APPLICATION, SILENCE if self.ends_soon else math.inf)
        elif self._wait is not HEAD and self.reader.head_size:
            self._await(HEAD, self.service.config.timeout_request_header)

    def close_if_idle(self, since: float) -> None:
        """Close if no request has been in progress since this time."""
        limits = {NEXT: self.service.idle_limit, REQUEST: self.service.config.timeout_keep_alive}
        limit = limits.get(self._wait)
        if limit is not None and self.current is None and self.deadline - limit - TICK <= since:
            self.close()

    def _park(self, deadline: float) -> None:
        """Keep as little as possible until `deadline`, if nothing is left to send or to parse."""
        transport, reader = self.transport, self.reader
        busy = reader.busy or self.outflow.busy or self.refusal is not None or self.ends_soon
        if busy or transport.is_closing() or transport.get_write_buffer_size():
            self._wait, self.deadline = REQUEST, deadline
            return
        self.service.connections.discard(self)
        Parked(type(self), self.service, transport, reader.origin, deadline)
        self._wait = END
        self.deadline = math.inf
        reader.lost()

    def expire(self, now: float) -> None:
        """The deadline has passed: end what took too long, if it hasn't ended by now."""
        wait = self._wait
        if wait is END:
            self._expire_end(now)
        elif wait is SENDING:
            limit = self.service.config.timeout_send
            if self.outflow.stalls(now, limit):
                reset(self.transport)  # the kernel would keep trying to send its buffer
            else:
                self.deadline = now + limit
        elif wait is BODY and self.reader.receiving is not None:
            self.reader.refuse(RequestTimeout("the request's body stood still"))
        elif self.current is not None:
            if self.ends_soon:
                self._look_for_client()
            self._await(APPLICATION, SILENCE if self.ends_soon else math.inf)
        elif wait is NEXT and self.deadline + self._rest_of_keep_alive > now:
            self._park(self.deadline + self._rest_of_keep_alive)
        elif wait is HEAD:
            self.reader.refuse(RequestTimeout("the request's header did not come in time"))
        else:
            self.close()

    @property
    def _rest_of_keep_alive(self) -> float:
        """The seconds for which an idle connection stays open after it is parked."""
        return self.service.config.timeout_keep_alive - self.service.idle_limit

    def _expire_end(self, now: float) -> None:
        if self.outflow.lingers(now, self.service.config.timeout_send, acknowledged=False):
            self.deadline = now + self.outflow.next_look
        else:
            self.outflow.end()

    def _look_for_client(self) -> None:
        """Decide whether a client that has closed its side has left, and tell the application.

        TCP doesn't distinguish a client that has closed its socket from one that only stops sending
        (`printf ... | nc`). They differ when something is sent to them: the first answers with a
        reset, which ends the connection. While a response makes progress, nothing needs to be
        decided, and the second kind of client gets the whole response. If the response stands
        still, ESG assumes the first kind, which is far more frequent, so that a stream or a long
        poll for a client that has left ends.
        """
        self.client_left = not self._wrote
        self._wrote = False
        if self.client_left:
            self._wake_exchanges()


def _write_nothing(data: bytes) -> None:
    """The write method of a lost connection: drops the data."""
