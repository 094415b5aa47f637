"""Reads from one HTTP/1.1 client: passes bytes to the parser, and makes requests.

A `Reader` is the sink of the parser. It makes an exchange of each request and gives it to the
connection. It limits header sections, bodies and data that is read ahead, and stops reading while
the data isn't taken. `framing.py` decides what a request means.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Protocol, cast

from esg.errors import (
    BadRequest,
    ContentTooLarge,
    HeaderFieldsTooLarge,
    HTTPError,
    NotImplementedByServer,
    URITooLong,
    VersionNotSupported,
)
from esg.server.accesslog.entries import Observation, Refused
from esg.server.asgi.exchange import DONE
from esg.server.asgi.responses import plain_content
from esg.server.asgi.types import (
    Endpoint,
    Headers,
    http_scope,
    http_template,
    is_authority_form,
    tls_scope,
)
from esg.server.endpoints import FROM_TRANSPORT, local_endpoint
from esg.server.http1.exchange import Exchange, Wire
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
from esg.server.http1.parked import Origin
from esg.server.http1.parser import HoldingParser, Parser
from esg.server.proxy import headers as proxy_headers
from esg.server.state import Service
from esg.server.turns import PART, SMALL

FEED_FIRST = 4096
"""Bytes given to the parser at once, so that it can't find much before the limits are checked."""

FEED_BODY = 1024
"""The same for a body, which may be in tiny chunks."""

FEED_SLICE = 16384
"""The same after a piece that was quickly parsed."""

QUICK = 0.00005
"""A piece that was parsed in fewer seconds can't have been a flood of tiny parts."""

PIPELINE_LIMIT = 16
"""Requests parsed ahead of the one being answered. With more, the connection isn't read."""

BODY_BUFFER = 65536
"""Bytes of request bodies kept until applications take them. With more, the connection isn't
read."""

CHUNK_OVERHEAD = 8
"""Bytes of chunk framing allowed for each byte of a body, on top of what a header section may take.
"""

ENDS_OF_METHODS = frozenset(bytes([byte]) for byte in b"ABCDEFGHIJKLMNOPQRSTUVWXYZ- ")
"""Bytes that a part of a request may end with while the parser keeps it and hasn't passed any of it
on: letters of a method, or the space behind it.
"""

METHODS = {
    name.encode("ascii"): name for name in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
}
"""Names of methods that needn't be decoded for each request."""


class Taker(Wire, Protocol):
    """The connection as its reader sees it."""

    current: Exchange | None
    """The request that is being answered."""
    starting: Exchange | None
    """The same for a request that begins after the current bytes are parsed."""
    queue: deque[Exchange]
    """The requests behind it."""
    refusal: int | None
    """The status to send after these requests, because the next one can't be served."""

    @property
    def over(self) -> bool:
        """Whether the connection is closing, so that arriving data is dropped."""

    def take(self, exchange: Exchange) -> None:
        """Answer this request in its turn."""

    def make_upgradable(self) -> bool:
        """Make the request that was taken last an upgrade; returns False if it can't be one."""

    def begin(self) -> None:
        """Call the application for the request that is `starting`."""

    def body_discarded(self) -> None:
        """More was read of a body that the application didn't want."""

    def refuse(self, error: HTTPError, entry: Refused | None, receiving: Exchange | None) -> None:
        """A request can't be served; `receiving` is its exchange, if there is one already."""

    def input_ended(self) -> bool:
        """All that the client has sent is parsed; returns whether a response is still owed."""

    def watch(self) -> None:
        """Set the deadline that fits what the client owes now."""


class _Nobody:
    """Replaces a reader's connection after its end, so that neither keeps the other alive."""

    over = True


NOBODY = cast(Taker, _Nobody())

NO_PARSER: Parser = HoldingParser()
"""Replaces the parser then; nothing is fed to it."""


class Reader:
    """The requests of one connection, as they arrive."""

    __slots__ = (
        "_body_put_off",
        "_connection",
        "_deciding",
        "_head_limit",
        "_headers",
        "_last_byte",
        "_make_scope",
        "_parser",
        "_refused",
        "_target",
        "_template",
        "_transport",
        "_waits_for_turn",
        "buffered",
        "head_size",
        "paused",
        "pending",
        "raised",
        "receiving",
        "service",
    )

    _transport: asyncio.Transport

    def __init__(
        self,
        connection: Taker,
        service: Service,
        client: Endpoint | None,
        server: Endpoint | None,
        tls: dict[str, Any] | None,
        scheme: str,
    ) -> None:
        self._connection = connection
        self.service = service
        self._parser: Parser = service.parser(self)
        self._template = http_template(
            client,
            server,
            service.root_path,
            tls,
            scheme=scheme,
            sendfile=service.config.sendfile,
        )
        self._make_scope = http_scope if tls is None else tls_scope
        concerned = service.proxies is not None and service.proxies.concerns(client and client[0])
        self._deciding = DECIDING_FROM_PROXY if concerned else DECIDING
        # the request whose header section is being read
        self._target = b""
        self._headers: Headers = []
        self.head_size = 0
        """Bytes fed since the last header section that was complete."""
        self._last_byte = b""
        """The last byte that was fed."""
        self._head_limit = 0
        """An upper bound for the size of any header section in the current piece, in bytes."""
        self.raised: HTTPError | None = None
        self._refused: Refused | None = None
        """The request that can't be served, for the access log."""
        # the request whose body is being read
        self.receiving: Exchange | None = None
        self._body_put_off = False
        """Whether the parser leaves the body of a request that offers to upgrade for later."""
        self.buffered = 0
        """Bytes of bodies that wait for applications."""
        # what was read and not yet parsed
        self.pending = b""
        self.paused = False
        """Whether reading is paused because the data isn't taken."""
        self._waits_for_turn = False
        """Whether reading is paused because the data is parsed in a later turn of the loop."""

    # -- from the connection -------------------------------------------------------------

    def attach(self, transport: asyncio.Transport) -> None:
        """Pause and resume this transport."""
        self._transport = transport
        if self._template["server"] is FROM_TRANSPORT:
            self._template["server"] = local_endpoint(transport)

    @property
    def origin(self) -> Origin:
        """What the connection was made with."""
        template = self._template
        tls = template["extensions"].get("tls")
        return template["client"], template["server"], tls, template["scheme"]

    @property
    def busy(self) -> bool:
        """Whether anything was read that isn't part of a complete request, or may not be."""
        begun = self.head_size or self.pending or self._target or self.receiving is not None
        held = self._last_byte in ENDS_OF_METHODS or isinstance(self._parser, HoldingParser)
        return bool(begun or self.paused or held)

    def drop(self) -> None:
        """Parse nothing more. What arrives is still read, so that the client gets no reset."""
        self.pending = b""
        if self.paused or self._waits_for_turn:
            self.paused = self._waits_for_turn = False
            self._transport.resume_reading()

    def lost(self) -> None:
        """The connection has ended."""
        self.pending = b""
        self.paused = self._waits_for_turn = False
        self.receiving = None
        self._connection = NOBODY
        self._parser = NO_PARSER  # the other one holds this reader's methods: a reference cycle

    def release(self) -> bytes:
        """Let the transport's next protocol read; returns what this reader hasn't parsed."""
        held = self._parser.held if isinstance(self._parser, HoldingParser) else b""
        rest, self.pending = held + self.pending, b""
        if self.paused or self._waits_for_turn:
            self._waits_for_turn = False
            self._transport.resume_reading()
        self._connection = NOBODY
        return rest

    # -- from the parser -----------------------------------------------------------------

    def on_url(self, piece: bytes) -> None:
        self._target = self._target + piece if self._target else piece

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailer fields come here too, after the list of the header section has been given away;
        # they are dropped, and never mix with the fields that a proxy in front has set.
        if value[-1:] <= b" ":  # space, tab or nothing: llhttp strips the front only
            value = value.strip(b" \t")
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        target, headers = self._target, self._headers
        self._target, self._headers = b"", []
        service, parser = self.service, self._parser
        make_scope = self._make_scope  # a call of `self.a_slot()` is slower by 0.05 us
        try:
            if self._head_limit > service.small_head:
                self._check_limits(target, headers)
            self.head_size = 0
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
        self.receiving = exchange = Exchange(self._connection, scope, framing, target)
        if service.observes:
            exchange.observation = Observation(scope, target)
        self._connection.take(exchange)

    def _check_limits(self, target: bytes, headers: Headers) -> None:
        config = self.service.config
        if len(target) > config.limit_request_line:
            raise URITooLong("the request target is too long")
        if len(headers) > config.limit_request_fields:
            raise HeaderFieldsTooLarge("too many header fields")
        if self._head_limit > config.limit_request_header_size:
            check_size(headers, config.limit_request_header_size)

    def _checked_method(self, method: bytes, framing: Framing, target: bytes) -> str:
        """The method's name, for unusual requests.

        Raises HTTPError for methods that aren't served.
        """
        limit = self.service.config.limit_request_body
        if limit and framing.length > limit:
            raise ContentTooLarge("the request's body is too large")
        if method == b"CONNECT":
            if not is_authority_form(target):
                raise BadRequest("the target of CONNECT is a host and a port")
            raise NotImplementedByServer("CONNECT is for proxies")
        self._body_put_off = framing.length != 0 and self._parser.upgrades()
        return method.decode("ascii")

    def on_body(self, piece: bytes) -> None:
        exchange = self.receiving
        if exchange is None:
            return
        exchange.body_came(piece)
        limit = self.service.config.limit_request_body
        if limit and exchange.body.received > limit:
            self.raised = ContentTooLarge("the request's body is too large")
            raise self.raised

    def on_message_complete(self) -> None:
        if self._headers:
            self._drop_trailers()
        if self._body_put_off:
            self._body_put_off = False
            return
        exchange, self.receiving = self.receiving, None
        if exchange is not None and not exchange.body.complete:
            exchange.body_ended()
            self.head_size = 0

    def _drop_trailers(self) -> None:
        trailers, self._headers, self.head_size = self._headers, [], 0
        config = self.service.config
        try:
            check_trailers(trailers, config.limit_request_fields, config.limit_request_header_size)
        except HTTPError as error:
            self.raised = error
            raise

    # -- feeding the parser --------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Parse what arrived, then begin the request whose header section is complete now."""
        self._last_byte = data[-1:]
        try:
            if self.receiving is None and len(data) <= FEED_FIRST:
                self._head_limit = self.head_size = self.head_size + len(data)
                self._parser.feed(data)
            else:
                self._parse_sliced(data)
        except Exception as error:  # noqa: BLE001 - the parser sorts out what it was
            self._recover(error, data)
        connection = self._connection
        if connection.starting is not None:
            connection.begin()
        elif connection.current is not None and connection.current.state is DONE:
            connection.body_discarded()
        if (self.head_size or self._target) and connection.refusal is None:
            self._count_begun_head()
            self._check_head_size()
        if self.receiving is not None or self.head_size or connection.queue:
            self.regulate()
            connection.watch()

    def _recover(self, error: Exception, data: bytes | memoryview) -> None:
        """The parser stopped: continue after that point, or refuse the request that is arriving."""
        stopped: Exception | None = error
        while stopped is not None:
            awaited = 0 if self.receiving is None else self.receiving.framing.length
            try:
                data = self._parser.recover(stopped, data, awaited)
            except HTTPError as refusal:
                self.refuse(refusal)
                return
            if self.service.upgrades is not None and self._connection.make_upgradable():
                self._parser = HoldingParser()
            stopped = self._try_to_parse(data)

    def _try_to_parse(self, data: bytes | memoryview) -> Exception | None:
        receiving = self.receiving
        received = 0 if receiving is None else receiving.body.received
        if receiving is None:
            self.head_size += len(data)
        self._head_limit = self.head_size + len(data)
        try:
            self._parser.feed(data)
        except Exception as error:  # noqa: BLE001 - the parser sorts out what it was
            return error
        if receiving is not None and receiving is self.receiving:
            # Other bytes are chunk headers or trailers, which are limited like a header
            # section, plus an allowance for small chunks.
            body = receiving.body.received - received
            self.head_size = max(0, self.head_size + len(data) - body * (1 + CHUNK_OVERHEAD))
        self._count_begun_head()
        return None

    def _count_begun_head(self) -> None:
        """Count the part of a head that arrived in one piece with the request in front of it.

        Its size isn't known, so it is assumed to be large enough for its limits to be checked.
        """
        if self._target and not self.head_size:
            self.head_size = self.service.small_head

    def _parse_sliced(self, data: bytes) -> None:
        """Parse in pieces, and stop if enough requests wait or if it takes too long.

        A piece that is nothing but body isn't divided.
        """
        turns, connection = self.service.turns, self._connection
        rest, size = memoryview(data), FEED_BODY
        if self.receiving is None:
            # A body that follows the head arrives in one piece if the head is parsed alone. "P" is
            # POST, PUT or PATCH; other requests rarely have a body, but may be pipelined.
            end = data.find(b"\r\n\r\n", 0, FEED_FIRST) + 4 if data.startswith(b"P") else 0
            size = end if end > 4 else FEED_FIRST
        until = 0.0
        while rest and connection.refusal is None:
            if len(connection.queue) >= PIPELINE_LIMIT:
                self.pending = bytes(rest)
                self._pause()
                return
            all_body = self.receiving is not None and self.receiving.body.unread >= len(rest)
            begun = turns.clock()
            until = until or begun + PART
            if not all_body and len(rest) > SMALL and (turns.full or begun >= until):
                self.pending = bytes(rest)
                self._wait_for_turn()
                return
            piece = rest if all_body else rest[:size]
            rest = rest[len(piece) :]
            stopped = self._try_to_parse(piece)
            if stopped is not None:
                self._recover(stopped, piece)
            elif self.head_size:
                self._check_head_size()
            took = turns.clock() - begun
            turns.spend(took)
            size = FEED_SLICE if took < QUICK else FEED_BODY

    def _wait_for_turn(self) -> None:
        """Continue in a later turn of the loop, because other connections wait for their share."""
        self._waits_for_turn = True
        self._transport.pause_reading()
        self.service.turns.put_off(self._take_turn)

    def _take_turn(self) -> None:
        if self._waits_for_turn:
            self._waits_for_turn = False
            self._resume()

    def _check_head_size(self) -> None:
        """Refuse a header section that is too large before it is complete."""
        config = self.service.config
        if len(self._target) > config.limit_request_line:
            self.refuse(URITooLong("the request target is too long"))
        elif self.head_size > config.limit_request_header_size + config.limit_request_line:
            self.refuse(HeaderFieldsTooLarge("the header section is too large"))

    # -- refusing ------------------------------------------------------------------------

    def refuse(self, error: HTTPError) -> None:
        """Refuse what is arriving."""
        receiving, self.receiving = self.receiving, None
        self.pending = b""
        if self._refused is None:
            if receiving is not None:
                self._note_refused_exchange(error.status, receiving)
            elif self._target:
                method = self._parser.method().decode("ascii", "replace")
                is_known = isinstance(error, VersionNotSupported)  # otherwise it may be yet to come
                version = self._parser.http_version() if is_known else "1.1"
                self._note_refused(error.status, method, self._target, version, self._headers)
            else:
                self._note_refused(error.status)
        self._connection.refuse(error, self._refused, receiving)

    def _note_refused(
        self,
        status: int,
        method: str = "-",
        target: bytes = b"",
        version: str = "-",
        headers: Headers | None = None,
    ) -> None:
        """Keep the known parts of a refused request until the requests before it are logged."""
        if self.service.access_log is not None:
            scope = self._template | {"method": method, "http_version": version}
            scope["headers"] = headers or []
            target = target[: self.service.config.limit_request_line]
            self._refused = Refused(scope, target, status, len(plain_content(status)[1]))

    def _note_refused_exchange(self, status: int, exchange: Exchange) -> None:
        if self.service.access_log is not None:
            size = len(plain_content(status)[1])
            self._refused = Refused(exchange.scope, exchange.target, status, size)

    # -- pausing -------------------------------------------------------------------------

    def body_taken(self, size: int) -> None:
        """The application took bytes of a body, so there is room for more."""
        self.buffered -= size
        if self.paused and not self._connection.over:
            self.regulate()
            self._connection.watch()

    def regulate(self) -> None:
        """Pause reading while the data isn't taken, and resume it afterwards."""
        connection = self._connection
        if connection.over:
            return  # arriving data is read and dropped
        full = self.buffered > BODY_BUFFER or len(connection.queue) >= PIPELINE_LIMIT
        if full and not self.paused:
            self._pause()
        elif self.paused and not full:
            self.paused = False
            # Not in the context of the application that took the body, because event loops read in
            # the context in which reading was resumed.
            self.service.loop.call_soon(self._resume, context=self.service.context)

    def _pause(self) -> None:
        self.paused = True
        self._transport.pause_reading()

    def _resume(self) -> None:
        if self._waits_for_turn:
            return
        connection = self._connection
        if self.pending and not self.paused and not connection.over:
            data, self.pending = self.pending, b""
            self.feed(data)
            if connection.ends_soon and not self.pending and not connection.input_ended():
                connection.close()
                return
        if not (self.pending or self.paused):
            self._transport.resume_reading()  # at the end, too: to drop data that still arrives
