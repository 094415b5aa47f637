"""One HTTP/1.1 connection: bytes to parser, requests to exchanges, responses to bytes, in order.

It is the sink of the parser, holds the exchange that is being answered and the pipelined ones
behind it, and owns every deadline of the connection. What a request means is decided in
`framing.py`, what a response looks like in `exchange.py` and `response.py`.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import TYPE_CHECKING, Any, cast

from esg.errors import (
    BadRequest,
    ContentTooLarge,
    HeaderFieldsTooLarge,
    HTTPError,
    NotImplementedByServer,
    RequestTimeout,
    URITooLong,
)
from esg.server.accesslog.access_log import Refused
from esg.server.asgi.types import (
    Endpoint,
    Headers,
    http_scope,
    http_template,
    is_authority_form,
    tls_scope,
)
from esg.server.http1.exchange import DONE, Exchange
from esg.server.http1.framing import (
    DECIDING,
    DECIDING_FROM_PROXY,
    PLAIN,
    PLAIN_FORWARDED,
    Framing,
    check_size,
    check_trailers,
    examine,
)
from esg.server.http1.parser import Held, Parser
from esg.server.http1.response import Content, plain_content, plain_response
from esg.server.http1.sendfile import Copies, copy_part, send_part
from esg.server.proxy import headers as proxy_headers
from esg.server.state import TICK, Service
from esg.server.transports import end_output, lines_writer, reset, unsent
from esg.server.turns import PART, SMALL

if TYPE_CHECKING:
    from esg.server.websocket.session import Session

FEED_FIRST = 4096
"""Bytes given to the parser at once, so that a bound on what it may find can be kept."""

FEED_BODY = 1024
"""The same of a body, which may be in tiny chunks."""

FEED_SLICE = 16384
"""The same where parsing those before was quick."""

QUICK = 0.00005
"""Seconds that a piece takes at most which is no flood of something tiny."""

PIPELINE_LIMIT = 16
"""Requests parsed ahead of the one being answered; beyond it the connection isn't read."""

BODY_BUFFER = 65536
"""Bytes of request body held for applications that don't ask; beyond it we stop reading."""

CHUNK_OVERHEAD = 8
"""Bytes that frame a byte of a body in chunks, at most, beyond what a header section may have."""

DISCARD_LIMIT = 262144
"""Bytes of unread request body that are read and dropped to keep a connection alive.

If more is to come, the response says that the connection closes. A body in chunks, whose size
nobody knows, is read for LINGER_LONGEST seconds.
"""

LINGER = 2.0
"""Seconds a closing connection waits for the client's end (RFC 9112, section 9.6)."""

LINGER_UPLOADING = 5.0
"""Seconds without a byte that it waits for if the client may still be sending its request."""

LINGER_LONGEST = 30.0
"""Seconds for which bytes of such a client are read and dropped.

A client that sends the whole of its request before it reads needs them, or the reset that answers
its next bytes destroys the response. These are nginx's lingering_timeout and lingering_time.
"""

SILENCE = 1.0
"""Seconds without a byte of a response after which a client that has closed its side counts as
gone.
"""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

METHODS = {
    name.encode("ascii"): name for name in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
}
"""Names of methods that needn't be made anew for each request."""


class Wait(Enum):
    """What a connection waits for, which says what its deadline means."""

    REQUEST = "a request"
    HEAD = "the rest of a header section"
    BODY = "the rest of a request's body"
    APPLICATION = "the application"
    SENDING = "the client to take what was sent"
    END = "the client's end of the connection"


REQUEST, HEAD, BODY, APPLICATION, SENDING, END = Wait


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_body_put_off",
        "_deciding",
        "_exchange",
        "_fed",
        "_head_size",
        "_headers",
        "_heard",
        "_incoming",
        "_linger",
        "_linger_until",
        "_make_scope",
        "_paused",
        "_pending",
        "_progress_at",
        "_queue",
        "_refusal",
        "_refused",
        "_start",
        "_target",
        "_template",
        "_transport",
        "_unsent",
        "_wait",
        "_waits_for_turn",
        "_write_waiters",
        "_wrote",
        "buffered",
        "deadline",
        "ends_soon",
        "is_closing",
        "left",
        "parser",
        "raised",
        "service",
        "write",
        "write_paused",
    )

    _transport: asyncio.Transport
    write: Callable[[bytes], None]
    """Send bytes, in order: the transport's own method."""
    is_closing: Callable[[], bool]
    """Whether nothing that is written goes anywhere any more: the transport's own method."""

    def __init__(
        self,
        service: Service,
        client: Endpoint | None,
        server: Endpoint | None,
        tls: dict[str, Any] | None = None,
        *,
        scheme: str = "http",
    ) -> None:
        """`tls` is the scopes' extension of that name, for a connection over TLS.

        `scheme` is that of one that isn't: what its client speaks with the proxy.
        """
        self.service = service
        self.parser: Parser = service.parser(self)
        self._template = http_template(
            client,
            server,
            service.root_path,
            tls,
            scheme=scheme,
            sendfile=service.config.sendfile,
        )
        self._make_scope = http_scope if tls is None else tls_scope
        matter = service.proxies is not None and service.proxies.matter_from(client and client[0])
        self._deciding = DECIDING_FROM_PROXY if matter else DECIDING
        # the request whose header section is being read
        self._target = b""
        self._headers: Headers = []
        self._head_size = 0
        """Bytes fed since the last header section that was complete."""
        self._fed = 0
        """The same before this piece's first header section was: no section is larger."""
        # requests: being received, about to begin, being answered, waiting behind that
        self._incoming: Exchange | None = None
        self._start: Exchange | None = None
        self._exchange: Exchange | None = None
        self._queue: deque[Exchange] = deque()
        self._refusal: int | None = None
        self._refused: Refused | None = None
        """The request that is to be answered with that, for the access log."""
        self.raised: HTTPError | None = None
        self._body_put_off = False
        # reading
        self.buffered = 0
        self._pending = b""
        self._paused = False
        """Whether reading is paused because what was read finds no taker."""
        self._waits_for_turn = False
        """Whether it is because what was read is to be parsed in a later turn of the loop."""
        self.ends_soon = False
        """Whether the client has closed its side, so that no further request can come."""
        self.left = False
        """Whether it seems to have closed the whole connection: see `_look_for_client`."""
        # writing
        self.write_paused = False
        self._write_waiters: list[asyncio.Future[None]] = []
        self._unsent = 0
        """Bytes that waited to be sent when that was last looked at."""
        self._progress_at = 0.0
        """When there were last fewer of them."""
        self._wrote = False
        """Whether something was written since that was last looked at, once `ends_soon`."""
        # closing
        self._heard = False
        """Whether the client has sent something since that was last looked at."""
        self._linger = LINGER
        self._linger_until = 0.0
        # time
        self._wait = REQUEST
        self.deadline = math.inf

    # -- from the event loop -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.write = self._transport.write
        self.is_closing = self._transport.is_closing
        self.service.opened(self)
        self._await(REQUEST, self.service.config.timeout_request_header)

    def data_received(self, data: bytes) -> None:
        if self._wait is END or self._refusal is not None:
            self._heard = True
            return  # read only to be dropped: the connection is on its way out
        if self._pending or self._paused:
            self._pending += data
            return
        self._feed(data)

    def eof_received(self) -> bool:
        """The client sends no more; the response to what it sent may still be due."""
        self.ends_soon = True
        if self._wait is END:
            return False
        self.write = self._write_half_closed
        if self._pending:
            return True  # what came before the end is parsed first
        return self._input_ended()

    def _input_ended(self) -> bool:
        """All that the client has sent is parsed; whether a response to it is still owed."""
        incoming, self._incoming = self._incoming, None
        if incoming is not None and incoming is self._exchange:
            return False  # it was cut off in its middle
        if incoming is not None:
            self._queue.remove(incoming)
        if not self._owes:
            return False
        self._wake_exchanges()
        self._watch()
        return True

    @property
    def _owes(self) -> bool:
        """Whether a request that came in whole still awaits its response, or a part of that."""
        return self._exchange is not None or bool(self._queue)

    @property
    def _owes_next(self) -> bool:
        """Whether something behind the request being answered awaits its response."""
        return bool(self._queue or self._pending) or self._refusal is not None

    def _wake_exchanges(self) -> None:
        for exchange in filter(None, (self._exchange, *self._queue)):
            exchange.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.service.lost(self)
        self.deadline = math.inf
        self._wait = END
        self._waits_for_turn = False
        del self.parser  # it holds this connection's methods: a reference cycle
        self.write = _write_nothing
        if self._exchange is not None:
            if self._exchange.head_sent and self._exchange.state is not DONE:
                self.record(self._exchange)
            self._exchange.disconnect()
            self._exchange = None
        self._queue.clear()
        self._incoming = self._start = None
        self._resume_writers()

    def pause_writing(self) -> None:
        self.write_paused = True
        if self._wait is not END:
            self._unsent = unsent(self._transport)
            self._progress_at = self.service.now
            self._await(SENDING, self.service.config.timeout_send)

    def resume_writing(self) -> None:
        self._resume_writers()
        if self._wait is not END:
            self._await(REQUEST, self.service.config.timeout_keep_alive)
            self._watch()
            if self._exchange is None and (self._queue or self._refusal is not None):
                self._next()

    # -- from the parser -----------------------------------------------------------------

    def on_url(self, piece: bytes) -> None:
        self._target = self._target + piece if self._target else piece

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailer fields come here too, after the list of the header section has been given away;
        # they are dropped, and never become part of what a proxy in front has vouched for.
        if value[-1:] <= b" ":  # space, tab or nothing: llhttp strips the front only
            value = value.strip(b" \t")
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        target, headers = self._target, self._headers
        self._target, self._headers = b"", []
        service, parser = self.service, self.parser
        make_scope = self._make_scope  # a call of `self.a_slot()` is slower by 0.05 us
        try:
            if self._fed > service.small_head:
                self._check_limits(target, headers)
            self._head_size = 0
            method = parser.method()
            framing = examine(method, headers, parser, self._deciding)
            name = METHODS.get(method)
            if framing is not PLAIN or name is None:
                name = self._checked_method(method, framing, target)
            scope = make_scope(self._template, name, target, headers, service.state)
        except HTTPError as error:
            self.raised = error
            sent_as = parser.method().decode("ascii", "replace")
            self._note_refused(error.status, sent_as, target, parser.http_version(), headers)
            raise
        if framing is not PLAIN:
            scope["http_version"] = framing.version
            if framing.forwarded and service.proxies is not None:
                proxy_headers.heed(scope, service.proxies)
                if framing is PLAIN_FORWARDED:
                    framing = PLAIN
        self._incoming = exchange = service.exchange(self, scope, framing, target)
        if self._exchange is None and not self.write_paused:
            self._exchange = self._start = exchange
        else:
            self._queue.append(exchange)

    def _check_limits(self, target: bytes, headers: Headers) -> None:
        config = self.service.config
        if len(target) > config.limit_request_line:
            raise URITooLong("the request target is too long")
        if len(headers) > config.limit_request_fields:
            raise HeaderFieldsTooLarge("too many header fields")
        if self._fed > config.limit_request_header_size:
            check_size(headers, config.limit_request_header_size)

    def _checked_method(self, method: bytes, framing: Framing, target: bytes) -> str:
        """What few requests need: refuse what isn't served here; the method's name."""
        limit = self.service.config.limit_request_body
        if limit and framing.length > limit:
            raise ContentTooLarge("the request's body is too large")
        if method == b"CONNECT":
            if not is_authority_form(target):
                raise BadRequest("the target of CONNECT is a host and a port")
            raise NotImplementedByServer("CONNECT is for proxies")
        self._body_put_off = framing.length != 0 and self.parser.upgrades()
        return method.decode("ascii")

    def on_body(self, piece: bytes) -> None:
        exchange = self._incoming
        if exchange is None:
            return
        exchange.body_came(piece)
        limit = self.service.config.limit_request_body
        if limit and exchange.received > limit:
            self.raised = ContentTooLarge("the request's body is too large")
            raise self.raised

    def on_message_complete(self) -> None:
        if self._headers:
            self._drop_trailers()
        if self._body_put_off:
            self._body_put_off = False
            return
        exchange, self._incoming = self._incoming, None
        if exchange is not None and not exchange.complete:
            exchange.body_ended()
            self._head_size = 0

    def _drop_trailers(self) -> None:
        trailers, self._headers, self._head_size = self._headers, [], 0
        config = self.service.config
        try:
            check_trailers(trailers, config.limit_request_fields, config.limit_request_header_size)
        except HTTPError as error:
            self.raised = error
            raise

    # -- reading -------------------------------------------------------------------------

    def _feed(self, data: bytes) -> None:
        """Parse what came, and then start the request that it completed the header of."""
        try:
            if self._incoming is None and len(data) <= FEED_FIRST:
                self._fed = self._head_size = self._head_size + len(data)
                self.parser.feed(data)
            else:
                self._parse_sliced(data)
        except Exception as error:  # noqa: BLE001 - the parser sorts out what it was
            self._recover(error, data)
        exchange = self._start
        if exchange is not None:
            self._start = None
            self._begin(exchange)
        elif self._exchange is not None and self._exchange.state is DONE:
            self._go_on_if_discarded()
        if (self._head_size or self._target) and self._refusal is None:
            self._count_begun_head()
            self._check_head_size()
        if self._incoming is not None or self._head_size or self._queue:
            self._regulate()
            self._watch()

    def _recover(self, error: Exception, data: bytes | memoryview) -> None:
        """The parser stopped: go on behind that, or refuse the request that is coming in."""
        stopped: Exception | None = error
        while stopped is not None:
            awaited = 0 if self._incoming is None else self._incoming.framing.length
            try:
                data = self.parser.recover(stopped, data, awaited)
            except HTTPError as refusal:
                self._refuse_incoming(refusal)
                return
            if self.service.websockets is not None and self._take_up():
                self.parser = Held()
            stopped = self._try_to_parse(data)

    def _take_up(self) -> bool:
        """Whether the request that has just offered to change the protocol wants a WebSocket.

        It is made a handshake then; what comes behind it is held until it has been answered.
        """
        from esg.server.websocket.handshake import Handshake, is_handshake

        offered = self._queue[-1] if self._queue else self._start
        if offered is None or offered.framing.length or not is_handshake(offered.scope):
            return False
        handshake = Handshake(self, offered.scope, offered.framing, offered.target)
        if self._queue:
            self._queue[-1] = handshake
        else:
            self._exchange = self._start = handshake
        return True

    @property
    def refuses(self) -> bool:
        """Whether what came behind the request being answered can't be served."""
        return self._refusal is not None

    def hand_over(self, session: Session) -> bytes:
        """Give the transport away; returns what the client has sent behind the handshake."""
        held = self.parser.held if isinstance(self.parser, Held) else b""
        rest, self._pending = held + self._pending, b""
        self._exchange = None
        self._wait = END
        self.deadline = math.inf
        self.write = _write_nothing
        self.service.connections.discard(self)
        session.take_transport(self._transport, self.write_paused)
        if self._paused or self._waits_for_turn:
            self._waits_for_turn = False
            self._transport.resume_reading()
        return rest

    def _try_to_parse(self, data: bytes | memoryview) -> Exception | None:
        receiving = self._incoming
        received = 0 if receiving is None else receiving.received
        if receiving is None:
            self._head_size += len(data)
        self._fed = self._head_size + len(data)
        try:
            self.parser.feed(data)
        except Exception as error:  # noqa: BLE001 - the parser sorts out what it was
            return error
        if receiving is not None and receiving is self._incoming:
            # What is no body is the header of a chunk or a trailer, and bounded like a header
            # section, but for what a body in small chunks needs.
            body = receiving.received - received
            self._head_size = max(0, self._head_size + len(data) - body * (1 + CHUNK_OVERHEAD))
        self._count_begun_head()
        return None

    def _count_begun_head(self) -> None:
        """Count the part of a head that came behind another request, in one piece with that.

        How large it is isn't known, but what may be large enough to break a limit is looked at.
        """
        if self._target and not self._head_size:
            self._head_size = self.service.small_head

    def _parse_sliced(self, data: bytes) -> None:
        """Parse in pieces, to stop where enough requests wait, or where it takes too long.

        What is all body goes in whole.
        """
        turns = self.service.turns
        rest, size = memoryview(data), FEED_FIRST if self._incoming is None else FEED_BODY
        until = 0.0
        while rest and self._refusal is None:
            if len(self._queue) >= PIPELINE_LIMIT:
                self._pending = bytes(rest)
                self._pause_reading()
                return
            all_body = self._incoming is not None and self._incoming.unread >= len(rest)
            begun = turns.clock()
            until = until or begun + PART
            if not all_body and len(rest) > SMALL and (turns.full or begun >= until):
                self._pending = bytes(rest)
                self._wait_for_turn()
                return
            piece = rest if all_body else rest[:size]
            rest = rest[len(piece) :]
            stopped = self._try_to_parse(piece)
            if stopped is not None:
                self._recover(stopped, piece)
            elif self._head_size:
                self._check_head_size()
            took = turns.clock() - begun
            turns.spend(took)
            size = FEED_SLICE if took < QUICK else FEED_BODY

    def _wait_for_turn(self) -> None:
        """Go on in a later turn of the loop, since others wait for this one to end."""
        self._waits_for_turn = True
        self._transport.pause_reading()
        self.service.turns.put_off(self._take_turn)

    def _take_turn(self) -> None:
        if self._waits_for_turn:
            self._waits_for_turn = False
            self._resume_reading()

    def _check_head_size(self) -> None:
        """Bound a header section that is still incomplete."""
        config = self.service.config
        if len(self._target) > config.limit_request_line:
            self._refuse_incoming(URITooLong("the request target is too long"))
        elif self._head_size > config.limit_request_header_size + config.limit_request_line:
            self._refuse_incoming(HeaderFieldsTooLarge("the header section is too large"))

    def body_taken(self, size: int) -> None:
        """The application took bytes of a body, so there is room for more."""
        self.buffered -= size
        if self._paused and self._wait is not END:
            self._regulate()
            self._watch()

    def _regulate(self) -> None:
        """Read as long as what was read finds a taker."""
        if self._wait is END:
            return  # what comes is dropped, by reading it
        full = self.buffered > BODY_BUFFER or len(self._queue) >= PIPELINE_LIMIT
        if full and not self._paused:
            self._pause_reading()
        elif self._paused and not full:
            self._paused = False
            # Not in the context of the application that took the body: loops keep the context
            # in which they are told to read.
            self.service.loop.call_soon(self._resume_reading, context=self.service.context)

    def _pause_reading(self) -> None:
        self._paused = True
        self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._waits_for_turn:
            return
        if self._pending and not self._paused and self._wait is not END:
            data, self._pending = self._pending, b""
            self._feed(data)
            if self.ends_soon and not self._pending and not self._input_ended():
                self.close()
                return
        if not (self._pending or self._paused):
            self._transport.resume_reading()  # at the end, too: to drop what still comes

    # -- one exchange after the other ----------------------------------------------------

    def _begin(self, exchange: Exchange) -> None:
        service = self.service
        service.running.add(exchange)
        service.requests += 1
        app = service.app
        if service.requests >= service.attentive_from:
            app = service.attend(exchange)
        exchange.task = service.start(exchange.run(app))

    def _begin_queued(self) -> None:
        if self._exchange is not None:
            self._begin(self._exchange)

    def may_go_on(self, exchange: Exchange) -> bool:
        """Whether the connection can stay open after this response.

        It can't if the application may leave more of the request's body unread than we would read.
        """
        if self._queue or self._refusal is not None:
            return True  # what was sent already is answered first
        if exchange.unread > DISCARD_LIMIT or exchange.expects_unread:
            return False
        return not self.service.draining and (not self.ends_soon or bool(self._pending))

    def exchange_done(self, exchange: Exchange) -> None:
        """The response is complete: take up the next request, or close."""
        service = self.service
        service.statuses[exchange.status // 100] += 1
        if service.access_log is not None:
            service.access_log.record(exchange)
        if not exchange.keep_alive or (self.ends_soon and not self._owes_next):
            self.close()
        elif exchange.complete:
            self._next()
        else:
            self._discard_rest()

    def record(self, exchange: Exchange) -> None:
        """Count a finished exchange, and log it."""
        self.service.statuses[exchange.status // 100] += 1
        if self.service.access_log is not None:
            self.service.access_log.record(exchange)

    def _discard_rest(self) -> None:
        """Read past a body that the application didn't want."""
        self._linger_until = self.service.now + LINGER_LONGEST + TICK
        self._regulate()
        self._watch()

    def _go_on_if_discarded(self) -> None:
        exchange = self._exchange
        assert exchange is not None
        if exchange.complete:
            self._next()
        elif self.service.now > self._linger_until:
            self.close()
            self._linger_until = self.service.now

    def _next(self) -> None:
        """The turn of the next request, or of waiting for one."""
        self._exchange = None
        if self._wait is not SENDING:
            # What `_await` does, spelt out: every request comes by here.
            self._wait = REQUEST
            self.deadline = self.service.idle_deadline
        elif self._queue:
            return  # a client that doesn't read its responses gets no more of them yet
        if self._queue:
            self._exchange = self._queue.popleft()
            # Not from within the last one's task, whose context variables are its own.
            self.service.loop.call_soon(self._begin_queued, context=self.service.context)
        elif self._refusal is not None:
            self._answer_refusal()
        elif self._head_size and self._wait is not SENDING:
            self._await(HEAD, self.service.config.timeout_request_header)
        if self._paused:
            self._regulate()

    # -- refusing and closing ----------------------------------------------------------

    def _refuse_incoming(self, error: HTTPError) -> None:
        """What is being received can't be served: answer it in its turn, then close."""
        incoming, self._incoming = self._incoming, None
        self._pending = b""
        if incoming is not None and incoming in self._queue:
            self._queue.remove(incoming)
        self._refusal = error.status
        if self._refused is None:
            if incoming is not None:
                self._note_refused_exchange(error.status, incoming)
            elif self._target:
                method = self.parser.method().decode("ascii", "replace")
                self._note_refused(error.status, method, self._target, "1.1", self._headers)
            else:
                self._note_refused(error.status)
        self.service.log_refusal(self._template["client"], error)
        if self._exchange is not None and self._exchange is incoming:
            self._give_up(incoming)
        elif not self._owes:
            self._answer_refusal()

    def _give_up(self, exchange: Exchange) -> None:
        """The request being answered turned out to be broken in its body."""
        self._start = None
        if exchange.state is DONE:
            self.close()
            return
        head_sent = exchange.head_sent
        exchange.disconnect()
        if head_sent:
            self.cut()
        else:
            exchange.status = self._refusal or 400
            self.answer_error(exchange.status, exchange.framing.head_only)
        self.record(exchange)

    def abandon(self, exchange: Exchange) -> None:
        """The client turned out to be gone, before the event loop noticed."""
        if self._wait is not END:
            self.record(exchange)
            exchange.disconnect()
            self.cut()

    def _answer_refusal(self) -> None:
        """Nothing stands before the request that was refused, so its turn has come."""
        status = self._refusal or 400
        self.service.statuses[status // 100] += 1
        if self.service.access_log is not None and self._refused is not None:
            self.service.access_log.record_refused(self._refused)
        self.answer_error(status)

    def _note_refused(
        self,
        status: int,
        method: str = "-",
        target: bytes = b"",
        version: str = "-",
        headers: Headers | None = None,
    ) -> None:
        """Keep what is known of a request that can't be served, until it is its turn in the log."""
        if self.service.access_log is not None:
            scope = self._template | {"method": method, "http_version": version}
            scope["headers"] = headers or []
            target = target[: self.service.config.limit_request_line]
            self._refused = Refused(scope, target, status, len(plain_content(status)[1]))

    def _note_refused_exchange(self, status: int, exchange: Exchange) -> None:
        if self.service.access_log is not None:
            size = len(plain_content(status)[1])
            self._refused = Refused(exchange.scope, exchange.target, status, size)

    def answer_error(
        self, status: int, head_only: bool = False, content: Content | None = None
    ) -> None:
        """Answer with a response of the server's own, and close."""
        service = self.service
        retry = service.cancels and status == 503
        self.write(plain_response(status, service.heads, head_only, content, retry=retry))
        self.close()

    def close(self) -> None:
        """Send what is left to send, then wait a little for the client to close.

        Closing with unread bytes makes the kernel send a reset, which can destroy the last
        response before the client has read it (RFC 9112, section 9.6).
        """
        uploading = self._incoming is not None or self._refusal is not None
        self._exchange = self._start = None
        self._queue.clear()
        self._pending = b""
        if self._transport.is_closing():
            return
        if self.ends_soon or not self._transport.can_write_eof():
            self._transport.close()
            return
        if self._paused or self._waits_for_turn:
            self._paused = self._waits_for_turn = False
            self._transport.resume_reading()
        self._unsent = 0
        self._heard = False
        self._progress_at = self.service.now
        self._linger = LINGER_UPLOADING if uploading else LINGER
        self._linger_until = self.service.now + LINGER_LONGEST + TICK
        self._await(END, LINGER)
        end_output(self._transport)

    def cut(self) -> None:
        """End a response in its middle, with a reset, so that it can't be taken for whole."""
        self._exchange = self._start = None
        self._queue.clear()
        reset(self._transport)

    # -- writing -------------------------------------------------------------------------

    def send_continue(self) -> None:
        """Tell a client that waits for it to send its body (RFC 9110, section 10.1.1)."""
        self.write(CONTINUE)
        self._watch()

    async def writable(self) -> None:
        """Wait until the client has taken enough of what was sent.

        One turn of the loop at least, where the connection breaks: it is to notice that.
        """
        if self.is_closing():
            await asyncio.sleep(0)
        while self.write_paused:
            waiter = self.service.loop.create_future()
            self._write_waiters.append(waiter)
            await waiter

    def write_lines(self, pieces: Iterable[bytes]) -> None:
        """Send several pieces at once, in order."""
        if self.ends_soon:
            self.write(b"".join(pieces))
        elif self.write is not _write_nothing:
            lines_writer(self._transport)(pieces)

    def _write_half_closed(self, data: bytes) -> None:
        """What `write` is once the client has closed its side: see `_look_for_client`."""
        self._wrote = True
        self.left = False
        self._transport.write(data)

    async def send_file(self, fd: int, offset: int, count: int) -> int:
        """Send a part of a file; returns the number of bytes sent. Raises OSError.

        Nothing else may be written meanwhile.
        """
        loop, transport = self.service.loop, self._transport
        if transport.get_extra_info("sslcontext") is not None:
            with Copies(fd) as copies:
                return await copy_part(
                    loop, lambda piece: self.write(piece), copies, offset, count, self._flushed
                )
        transport.set_write_buffer_limits(0)  # so that what is writable has nothing unsent
        try:
            # Event loops don't let others wait for a transport's descriptor, but for a copy of it.
            with Copies(fd, transport.get_extra_info("socket").fileno()) as copies:
                await self.writable()
                return await send_part(
                    loop,
                    copies,
                    offset,
                    count,
                    lambda: self._descriptor_writable(copies.descriptors[1]),
                )
        finally:
            if self._wait is not END:
                transport.set_write_buffer_limits()
                self.resume_writing()

    async def _flushed(self) -> bool:
        await self.writable()
        return self._wait is not END

    async def _descriptor_writable(self, fd: int) -> bool:
        """Wait until `fd` can be written to, or until the connection is over: then it is False."""
        if self._wait is END:
            return False
        loop, waiter = self.service.loop, self.service.loop.create_future()
        self._unsent = 0
        self._progress_at = self.service.now
        self._await(SENDING, self.service.config.timeout_send)
        self._write_waiters.append(waiter)
        loop.add_writer(fd, self._resume_writers)
        try:
            await waiter
        finally:
            loop.remove_writer(fd)
        return self._wait is not END

    def _resume_writers(self) -> None:
        self.write_paused = False
        waiters, self._write_waiters = self._write_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # -- time ----------------------------------------------------------------------------

    def _await(self, wait: Wait, limit: float) -> None:
        self._wait = wait
        # The service's clock is up to a tick behind, and no time shall be shorter than promised.
        self.deadline = self.service.now + limit + TICK

    def _watch(self) -> None:
        """Set the deadline that fits what the client owes us after some bytes came."""
        if self._wait is END or self._wait is SENDING:
            return
        incoming = self._incoming
        if incoming is not None and not self._paused and not incoming.expects_unread:
            self._await(BODY, self.service.config.timeout_request_body)
        elif self._exchange is not None:
            self._await(APPLICATION, SILENCE if self.ends_soon else math.inf)
        elif self._wait is not HEAD and self._head_size:
            self._await(HEAD, self.service.config.timeout_request_header)

    def close_if_idle(self, deadline: float) -> None:
        """Close if no request is under way, and one was last early enough for this deadline."""
        if self._wait is REQUEST and self._exchange is None and self.deadline <= deadline:
            self.close()

    def expire(self, now: float) -> None:
        """The deadline has passed: do what it was for, if it is still what we wait for."""
        wait = self._wait
        if wait is SENDING or wait is END:
            self._expire_sending(now)
        elif wait is BODY and self._incoming is not None:
            self._refuse_incoming(RequestTimeout("the request's body stood still"))
        elif self._exchange is not None:
            if self.ends_soon:
                self._look_for_client()
            self._await(APPLICATION, SILENCE if self.ends_soon else math.inf)
        elif wait is HEAD:
            self._refuse_incoming(RequestTimeout("the request's header did not come in time"))
        else:
            self.close()

    def _look_for_client(self) -> None:
        """Decide whether a client that has closed its side has left, and tell the application.

        TCP says the same of a client that has closed its socket and of one that only sends no more
        (`printf ... | nc`). They differ when something is sent to them: the first answers with a
        reset, which ends the connection. So as long as a response makes progress, nothing needs to
        be decided, and the second sort of client gets all of it. If the response stands still, the
        client is taken for the first sort, which is far more frequent, so that a stream or a long
        poll for nobody ends.
        """
        self.left = not self._wrote
        self._wrote = False
        if self.left:
            self._wake_exchanges()

    def _expire_sending(self, now: float) -> None:
        """Go on as long as the client takes something of what is to be sent to it."""
        lingering, limit = self._wait is END, self.service.config.timeout_send
        before, self._unsent = self._unsent, unsent(self._transport)
        heard, self._heard = self._heard, False
        if self._unsent < before or (lingering and heard and now < self._linger_until):
            self._progress_at = now
        # When all is with the kernel, that goes on without us.
        stalls = bool(self._transport.get_write_buffer_size()) or not lingering
        if now - self._progress_at < (limit if stalls else self._linger):
            self.deadline = now + (LINGER if lingering else limit)
        elif stalls:
            reset(self._transport)  # the kernel would go on trying, with what it has buffered
        else:
            self._transport.abort()


def _write_nothing(data: bytes) -> None:
    """What a connection that is lost does with a response."""
