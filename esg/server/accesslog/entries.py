"""What an access log line describes: a finished request, a WebSocket, or a refused request."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, Protocol

from esg.server.asgi.types import Headers


class Entry(Protocol):
    """What every line is made from: a finished exchange, or one of the classes below."""

    status: int
    target: bytes
    """The request target as the client sent it."""

    @property
    def scope(self) -> Mapping[str, Any]:
        """The request's ASGI scope."""


class Observation:
    """Values of a finished exchange that only some formats of the log contain.

    An exchange has one only if the log `observes`, because keeping it up to date takes time.
    """

    __slots__ = ("_began", "response_headers", "scope", "sent", "status", "target")

    status: int

    def __init__(self, scope: Mapping[str, Any], target: bytes) -> None:
        self.scope = scope
        self.target = target
        self._began = time.perf_counter()
        """When the request's header section was complete."""
        self.sent = 0
        """Bytes of response body, without the framing."""
        self.response_headers: Headers = []
        """The fields that the application gave; the server may have sent more."""

    @property
    def seconds(self) -> float:
        """Seconds since the request's header section was complete."""
        return time.perf_counter() - self._began


class SocketRecord:
    """A WebSocket in the access log, with an exchange's attributes; logged at its start and end.

    When it is accepted, the status is 101. When it is closed, the method is WEBSOCKET and the
    status is the close code.
    """

    __slots__ = (
        "_began",
        "event",
        "response_headers",
        "round_trip",
        "scope",
        "seconds",
        "sent",
        "status",
        "target",
    )

    def __init__(self, scope: Mapping[str, Any], target: bytes) -> None:
        """`scope` and `target` are those of the handshake's request."""
        self.scope = scope
        self.target = target
        self._began = time.perf_counter()

    def accepted(self, seconds: float, headers: Headers) -> None:
        """Note that it was accepted, `seconds` after the request, with the application's fields."""
        self.event = "accepted"
        self.status = 101
        self.seconds = seconds
        self.sent = 0
        self.response_headers = headers
        self.round_trip = math.nan

    def closed(self, code: int, sent: int, round_trip: float) -> None:
        """Note that it was closed with `code`, after `sent` bytes of messages were sent.

        `round_trip` is the round-trip time of the last ping in seconds, or NaN if there was none.
        """
        self.event = "closed"
        self.scope = {**self.scope, "method": "WEBSOCKET"}
        self.status = code
        self.seconds = time.perf_counter() - self._began
        self.sent = sent
        self.round_trip = round_trip


class Refused:
    """A request that ESG answered itself because it can't be served; logged like an exchange.

    If a request was cut off or can't be parsed, its unknown parts are logged as `-`, or empty.
    """

    __slots__ = ("response_headers", "scope", "seconds", "sent", "status", "target")

    def __init__(self, scope: Mapping[str, Any], target: bytes, status: int, sent: int) -> None:
        """`sent` is the size of the response's body, in bytes."""
        self.scope = scope
        self.target = target
        self.status = status
        self.sent = sent
        self.seconds = 0.0
        self.response_headers: Headers = []
