"""An idle connection: what is kept of it until its client sends another request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, cast

from esg.server.asgi.types import Endpoint
from esg.server.state import Service

Origin = tuple[Endpoint | None, Endpoint | None, dict[str, Any] | None, str]
"""Client, server, TLS and scheme: the arguments of a connection that its scopes are made from."""


class Resumed(Protocol):
    """The connection that takes over when something happens."""

    def resume(self, transport: asyncio.Transport, deadline: float) -> None:
        """Continue on this transport, until `deadline` if nothing arrives."""

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""

    def close(self) -> None:
        """See `state.Connection`."""

    def end(self) -> None:
        """See `state.Connection`."""


class Parked(asyncio.Protocol):
    """The protocol of a connection between two requests that are far apart.

    A `Connection` with its reader and parser takes 4 KiB, and making another one takes less time
    than a request. So an idle one is replaced by this, which takes a tenth of that.
    """

    __slots__ = ("_connect", "_origin", "deadline", "service", "transport")

    def __init__(
        self,
        connect: Callable[..., Resumed],
        service: Service,
        transport: asyncio.Transport,
        origin: Origin,
        deadline: float,
    ) -> None:
        """Take the place of a connection that has nothing to send and nothing to parse.

        It is closed at `deadline`, in seconds by the event loop's clock. `connect` makes a
        connection again.
        """
        self._connect = connect
        self.service = service
        self.transport = transport
        self._origin = origin
        self.deadline = deadline
        service.connections.add(self)
        transport.set_protocol(self)

    def resumed(self) -> Resumed:
        """Make a connection of it again; returns that."""
        client, server, tls, scheme = self._origin
        connection = self._connect(self.service, client, server, tls, scheme=scheme)
        self.service.connections.discard(self)
        self.transport.set_protocol(cast(asyncio.Protocol, connection))
        connection.resume(self.transport, self.deadline)
        return connection

    # -- from the event loop -------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self.resumed().data_received(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.service.lost(self)
        if self.service.trace:
            self.service.log_closed(self._origin[0], exc)

    # -- see `state.Connection` ----------------------------------------------------------

    def expire(self, now: float) -> None:
        self.resumed().close()

    def close(self) -> None:
        self.resumed().close()

    def close_if_idle(self, since: float) -> None:
        """It has been idle for longer than any caller asks for."""
        self.resumed().close()

    def end(self) -> None:
        self.resumed().end()
