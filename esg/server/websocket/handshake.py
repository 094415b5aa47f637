"""The opening handshake: how a request for a WebSocket is answered (RFC 6455, section 4.2).

The request is an HTTP exchange like any other: it waits its turn, and is counted, refused and
logged like the others. A `Handshake` decides how it is answered, and makes the application's scope,
`receive` and `send`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
import math
from typing import Any

from esg.server.asgi.exchange import DONE, GONE, START
from esg.server.asgi.responses import REASONS, InvalidHeader
from esg.server.asgi.types import Application, Headers, Message, Scope
from esg.server.asgi.upgrade import UpgradableExchange
from esg.server.cancellation import is_destroyed, was_cancelled
from esg.server.stacks import task_stack
from esg.server.state import TICK, Service
from esg.server.websocket.codec import Library
from esg.server.websocket.session import CLOSED, Agreement, Session

logger = logging.getLogger("esg")

SPEC_VERSION = "2.4"

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

_SCHEMES = {"http": "ws", "https": "wss"}

_SERVERS_OWN = frozenset(
    (
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"sec-websocket-protocol",
        b"sec-websocket-version",
        b"upgrade",
        b"content-length",
    )
)
"""Fields of the response that the application may not set."""


class WebSockets:
    """Turns requests for WebSockets into WebSockets; a worker's upgrade hook."""

    __slots__ = ("_library", "_service", "_warned_of_http10")

    def __init__(self, service: Service, library: Library) -> None:
        self._service = service
        self._library = library
        self._warned_of_http10 = False

    def accepts(self, scope: Scope) -> bool:
        """Whether an HTTP request with an Upgrade wants a WebSocket.

        RFC 9110 (section 7.8) has no upgrades of HTTP/1.0, but nginx sends them unless it is told
        to speak HTTP/1.1, and understands the answer.
        """
        return scope["method"] == "GET" and b"websocket" in _tokens(scope["headers"], b"upgrade")

    def begin(self, exchange: UpgradableExchange) -> Handshake:
        """The handshake for a request that `accepts` has accepted."""
        if exchange.scope["http_version"] != "1.1":
            self._warn_of_http10()
        return Handshake(self._service, self._library, exchange)

    def _warn_of_http10(self) -> None:
        """Log, once, what to do about a proxy that asks for WebSockets over HTTP/1.0."""
        if not self._warned_of_http10:
            self._warned_of_http10 = True
            logger.warning(
                "%s a WebSocket was requested over HTTP/1.0, which has no upgrades; it is served, "
                "but if nginx is in front, set `proxy_http_version 1.1;` in its location",
                self._service.subject,
            )


class Handshake:
    """A request for a WebSocket, until the WebSocket is open or has been refused."""

    __slots__ = (
        "_exchange",
        "_key",
        "_library",
        "_service",
        "deadline",
        "opened",
        "scope",
        "session",
    )

    def __init__(self, service: Service, library: Library, exchange: UpgradableExchange) -> None:
        self._service = service
        self._library = library
        self._exchange = exchange
        self._key = b""
        self.scope = _socket_scope(exchange.scope)
        """The scope of the WebSocket; the scope of its request differs."""
        self.session = Session(service, self, self.scope)
        self.opened = False
        """Whether the WebSocket is open."""
        self.deadline = math.inf

    # -- the application's side --------------------------------------------------------

    async def run(self, app: Application) -> None:
        """Call the application unless the request is refused, and end the exchange in any case."""
        service, exchange, session = self._service, self._exchange, self.session
        try:
            if await self._refused(app):
                return
            service.handshakes.add(self)
            self.deadline = service.now + service.config.ws_handshake_timeout + TICK
            await app(self.scope, session.receive, session.send)
        except asyncio.CancelledError as error:
            if not was_cancelled():
                if self.opened:
                    session.failed(error)
                else:
                    exchange.fail_if_open(error)
            exchange.end_badly(503 if service.draining else 500)
            session.cancelled()
            raise
        except BaseException as error:  # applications may raise anything
            if is_destroyed(error, service.loop):
                raise
            if self.opened:
                session.failed(error)
            else:
                exchange.fail(error)
        else:
            if self.opened:
                session.ended()
            elif exchange.state is START and session.state is CLOSED:
                exchange.end_unanswered()
            elif exchange.state is not DONE and exchange.state is not GONE:
                exchange.returned_early()
        finally:
            session.forget()
            service.handshakes.discard(self)
            service.running.discard(exchange)

    @property
    def name(self) -> str:
        """The name of this request in the log."""
        return f"WebSocket {self.scope['path']!a}"

    async def _refused(self, app: Application) -> bool:
        """Answer a request that can't become a WebSocket, at least not now; False if it can."""
        headers = self._exchange.scope["headers"]
        version = _values(headers, b"sec-websocket-version")
        keys = _values(headers, b"sec-websocket-key")
        if self._service.draining or app is not self._service.app:
            await self.deny(503, [(b"retry-after", b"1")])
        elif version != [b"13"]:
            fields = [(b"upgrade", b"websocket"), (b"sec-websocket-version", b"13")]
            await self.deny(426, fields)
        elif len(keys) != 1 or not _is_key(keys[0]):
            await self.deny(400)
        else:
            self._key = keys[0]
            return False
        return True

    async def deny(self, status: int, fields: Headers | None = None) -> None:
        """Refuse the WebSocket with a short response."""
        body = REASONS[status].encode("ascii")
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
            *(fields or ()),
        ]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    async def send(self, message: Message) -> None:
        """Send a message of a response that refuses the WebSocket, as `http.response.*`."""
        await self._exchange.send(message)

    # -- accepting -----------------------------------------------------------------------

    def accept(self, message: Message) -> Agreement:
        """Answer `websocket.accept`; after this the session has the transport.

        Raises InvalidHeader for fields that can't be sent, and ClientDisconnected if a WebSocket
        isn't possible any more.
        """
        service, exchange = self._service, self._exchange
        given = [(name, value) for name, value in message.get("headers") or ()]
        fields, deflate = self._negotiate(given, message.get("subprotocol"))
        if service.draining:
            exchange.end_badly(503)
        received = exchange.switch(fields, self.session)
        self.opened = True
        service.handshakes.discard(self)
        service.socket_opened(self.session, exchange.observation, given)
        library, most = self._library, service.config.ws_max_size
        return Agreement(lambda: library.codec(most, deflate), deflate is not None, received)

    def _negotiate(self, given: Headers, subprotocol: str | None) -> tuple[Headers, Any]:
        """The fields of the accepting response, and the negotiated compression or None.

        Raises InvalidHeader for a field that the application may not set.
        """
        for name, _ in given:
            if name.lower() in _SERVERS_OWN:
                raise InvalidHeader(
                    f"{name!r} isn't for the headers of websocket.accept; "
                    "a subprotocol is its `subprotocol`"
                )
        fields = [
            (b"upgrade", b"websocket"),
            (b"sec-websocket-accept", _answer(self._key)),
            *given,
        ]
        if subprotocol is not None and self._is_offered(subprotocol):
            fields.append((b"sec-websocket-protocol", subprotocol.encode("latin-1")))
        headers = self._exchange.scope["headers"]
        offers = b",".join(_values(headers, b"sec-websocket-extensions"))
        if offers and self._service.config.ws_per_message_deflate:
            agreed = self._library.agree(offers.decode("latin-1"))
            if agreed is not None:
                fields.append((b"sec-websocket-extensions", agreed[0].encode("latin-1")))
                return fields, agreed[1]
        return fields, None

    def _is_offered(self, subprotocol: str) -> bool:
        """Whether the client has offered this subprotocol.

        A client fails the connection if it gets another one (section 4.1).
        """
        offered = self.scope["subprotocols"]
        if subprotocol in offered:
            return True
        logger.warning(
            "%s accepted a WebSocket without the subprotocol %s, since the client offered %s",
            self._service.subject,
            ascii(subprotocol),
            ascii(offered),
        )
        return False

    # -- the connection's side ---------------------------------------------------------

    def on_client_left(self) -> None:
        """The client has left, or will leave soon, or the server itself has answered."""
        if not self.opened:
            self.session.disconnect()

    def expire(self) -> None:
        """The application hasn't answered the handshake: log where it waits, and refuse."""
        self.deadline = math.inf
        exchange = self._exchange
        if exchange.state is not START:
            return
        stack = task_stack(exchange.task)
        what = "WebSocket handshake not answered (--ws-handshake-timeout)"
        exchange.log_error(what, stack=stack)
        exchange.end_badly(503)
        exchange.cancel()


def _socket_scope(scope: Scope) -> Scope:
    """The scope of a WebSocket, made from the scope of its request."""
    made: Scope = {name: value for name, value in scope.items() if name != "method"}
    extensions: dict[str, Any] = {"websocket.http.response": {}}
    if "tls" in scope["extensions"]:
        extensions["tls"] = scope["extensions"]["tls"]
    made["type"] = "websocket"
    made["http_version"] = "1.1"  # the specification doesn't allow 1.0 here
    made["asgi"] = {**scope["asgi"], "spec_version": SPEC_VERSION}
    made["scheme"] = _SCHEMES.get(scope["scheme"], scope["scheme"])
    made["subprotocols"] = _subprotocols(scope["headers"])
    made["extensions"] = extensions
    return made


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for other, value in headers if other == name]


def _tokens(headers: Headers, name: bytes) -> list[bytes]:
    """The members of a list, in lower case (RFC 9110, section 5.6.1)."""
    joined = b",".join(_values(headers, name)).lower()
    return [token.strip(b" \t") for token in joined.split(b",")]


def _subprotocols(headers: Headers) -> list[str]:
    joined = b",".join(_values(headers, b"sec-websocket-protocol")).decode("latin-1")
    return [name.strip() for name in joined.split(",") if name.strip()]


def _is_key(key: bytes) -> bool:
    """Whether a Sec-WebSocket-Key is 16 bytes in Base64."""
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        return False


def _answer(key: bytes) -> bytes:
    """The Sec-WebSocket-Accept for a key (section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
