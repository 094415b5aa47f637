"""The opening handshake: an HTTP exchange that may end in a WebSocket (RFC 6455, section 4.2)."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from esg.server.asgi.types import Application, Headers, Message, Scope
from esg.server.http1.exchange import DONE, GONE, START, ClientDisconnected
from esg.server.http1.framing import VERSIONS, Framing
from esg.server.http1.observed import Observed
from esg.server.http1.response import REASONS, InvalidHeader, check_fields
from esg.server.stacks import task_stack
from esg.server.state import TICK
from esg.server.websocket.codec import Codec
from esg.server.websocket.session import CLOSED, Session

if TYPE_CHECKING:
    from esg.server.http1.connection import Connection

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
"""Fields of the response that aren't the application's to give."""

_LAST = {version: Framing(0, version=version, keep_alive=False) for version in VERSIONS}
"""A connection on which a handshake was refused isn't used again: who knows what the client sent
after it.
"""


def is_handshake(scope: Scope) -> bool:
    """Whether an HTTP request with an Upgrade wants a WebSocket.

    RFC 9110 (section 7.8) has no upgrades of HTTP/1.0, but nginx sends them unless it is told to
    speak HTTP/1.1, and takes the answer for what it is.
    """
    if scope["method"] != "GET":
        return False
    return b"websocket" in _tokens(scope["headers"], b"upgrade")


class Handshake(Observed):
    """A request for a WebSocket, until it is one or has been refused."""

    __slots__ = ("_key", "deadline", "session", "socket_scope")

    def __init__(
        self, connection: Connection, scope: Scope, framing: Framing, target: bytes
    ) -> None:
        super().__init__(connection, scope, _LAST[framing.version], target)
        service = connection.service
        if not framing.http11:
            service.warn_of_http10_upgrades()
        self.socket_scope = _socket_scope(scope)
        self.session = Session(service, self, self.socket_scope)
        self.status = 0
        self.deadline = math.inf
        self._key = b""

    # -- the application's side --------------------------------------------------------

    async def run(self, app: Application) -> None:
        """Call the application, if there can be a WebSocket, and see that it comes to an end."""
        service = self._connection.service
        session = self.session
        try:
            if await self._refused(app):
                return
            service.handshakes.add(self)
            self.deadline = service.now + service.config.ws_handshake_timeout + TICK
            await app(self.socket_scope, session.receive, session.send)
        except asyncio.CancelledError as error:
            self._end_badly(503 if service.draining else 500)
            task = asyncio.current_task()
            if self.opened and task is not None and not task.cancelling():
                session.failed(error)  # it is the application's own
            session.cancelled()
            raise
        except BaseException as error:  # noqa: BLE001 - applications may raise anything
            if self.opened:
                session.failed(error)
            else:
                self._failed(error)
        else:
            if self.opened:
                session.ended()
            elif self.state is START and session.state is CLOSED:
                self._part()
            elif self.state is not DONE and self.state is not GONE:
                self._unfinished()
        finally:
            session.forget()
            service.handshakes.discard(self)
            service.running.discard(self)

    @property
    def _named(self) -> str:
        return f"WebSocket {self.scope['path']!a}"

    async def _refused(self, app: Application) -> bool:
        """Answer a request that can't become a WebSocket, or not now; False if it can."""
        headers = self.scope["headers"]
        service = self._connection.service
        version = _values(headers, b"sec-websocket-version")
        keys = _values(headers, b"sec-websocket-key")
        if service.draining or app is not service.app:
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

    def _close_head(self, lines: list[bytes], body_length: int) -> None:
        if self.status == 426:  # its Upgrade is a connection option (RFC 9110, section 7.8)
            lines.append(b"connection: upgrade\r\n")
        super()._close_head(lines, body_length)

    # -- accepting -----------------------------------------------------------------------

    @property
    def opened(self) -> bool:
        """Whether this is a WebSocket by now."""
        return self.status == 101

    def response(self, message: Message) -> tuple[bytes, Callable[[], Codec], bool]:
        """The response to accept with; what makes the codec; whether messages are compressed.

        Raises InvalidHeader for fields that can't be sent.
        """
        service = self._connection.service
        given_fields = [(name, value) for name, value in message.get("headers") or ()]
        for name, _ in given_fields:
            if name.lower() in _SERVERS_OWN:
                raise InvalidHeader(
                    f"{name!r} isn't for the headers of websocket.accept; "
                    "a subprotocol is its `subprotocol`"
                )
        fields = [
            (b"upgrade", b"websocket"),
            (b"sec-websocket-accept", _answer(self._key)),
            *given_fields,
        ]
        subprotocol = message.get("subprotocol")
        if subprotocol is not None and self._is_offered(subprotocol):
            fields.append((b"sec-websocket-protocol", subprotocol.encode("latin-1")))
        deflate = None
        library = service.websockets
        assert library is not None
        offers = b",".join(_values(self.scope["headers"], b"sec-websocket-extensions"))
        if offers and service.config.ws_per_message_deflate:
            agreed = library.agree(offers.decode("latin-1"))
            if agreed is not None:
                fields.append((b"sec-websocket-extensions", agreed[0].encode("latin-1")))
                deflate = agreed[1]
        lines, given, _ = check_fields(fields)
        lines[0] = service.heads.begin(101, given) + b"connection: Upgrade\r\n"
        self.response_headers = given_fields
        most = service.config.ws_max_size
        return (
            b"".join((*lines, b"\r\n")),
            lambda: library.codec(most, deflate),
            deflate is not None,
        )

    def _is_offered(self, subprotocol: str) -> bool:
        """Whether the client has offered this one; another fails its handshake (section 4.1)."""
        offered = self.socket_scope["subprotocols"]
        if subprotocol in offered:
            return True
        logger.warning(
            "%s accepted a WebSocket without the subprotocol %s, since the client offered %s",
            self._connection.service.subject,
            ascii(subprotocol),
            ascii(offered),
        )
        return False

    def hand_over(self, session: Session) -> bytes:
        """Give the connection to the session; returns what the client has sent already.

        Raises ClientDisconnected if there can be no WebSocket any more.
        """
        connection, service = self._connection, self._connection.service
        if service.draining:
            self._end_badly(503)
        elif connection.ends_soon or connection.refuses:
            self._part()
        if self.state is not START:
            raise ClientDisconnected("the client has gone, or the worker is about to")
        service.handshakes.discard(self)
        self.state = DONE
        self.status = 101
        rest = connection.hand_over(session)
        service.socket_opened(session, self)
        return rest

    def _part(self) -> None:
        """Nobody is left to answer: end the connection without a word."""
        self.disconnect()
        self._connection.close()

    # -- the connection's side ---------------------------------------------------------

    def wake(self) -> None:
        """The client has gone or will before long, or it was refused by the server itself."""
        super().wake()
        leaves = self.state is START and self._connection.ends_soon
        if not self.opened and (leaves or self.state is GONE or self.state is DONE):
            self.session.disconnect()

    def time_out(self) -> None:
        """`--request-timeout` is for requests, not for what they have become."""
        if not self.opened:
            super().time_out()

    def expire(self) -> None:
        """The application hasn't answered the handshake: log where it is, and refuse."""
        self.deadline = math.inf
        if self.state is not START:
            return
        stack = task_stack(self.task)
        self._log_error("WebSocket handshake not answered (--ws-handshake-timeout)", stack=stack)
        self._end_badly(503)
        self.task.cancel()


def _socket_scope(scope: Scope) -> Scope:
    """The scope of a WebSocket, of that of the request for it."""
    made: Scope = {name: value for name, value in scope.items() if name != "method"}
    extensions: dict[str, Any] = {"websocket.http.response": {}}
    if "tls" in scope["extensions"]:
        extensions["tls"] = scope["extensions"]["tls"]
    made["type"] = "websocket"
    made["http_version"] = "1.1"  # the specification has no 1.0 here
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
