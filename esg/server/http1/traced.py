"""A connection that logs what becomes of it; `Connection` is replaced by it at level TRACE."""

from __future__ import annotations

import asyncio

from esg.log.records import TRACE, logger
from esg.server.http1.connection import Connection
from esg.server.http1.exchange import Exchange


class Traced(Connection):
    """A connection that says when it opens and closes, and which requests begin on it."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._trace("connection opened")
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._trace(f"connection closed: {exc}" if exc else "connection closed")

    def _begin(self, exchange: Exchange) -> None:
        # Both as the client sent them, so neither may go into the log as it is.
        method, target = exchange.scope["method"], exchange.target.decode("latin-1")
        self._trace(f"request begun: {method} {target!a}")
        super()._begin(exchange)

    def _trace(self, event: str) -> None:
        client = self._template["client"]
        peer = f"{client[0]}:{client[1]}" if client and client[1] is not None else "a UNIX socket"
        logger.log(TRACE, "%s %s: %s", self.service.subject, peer, event)


def connection_type() -> type[Connection]:
    """What connections are made of, as long as the log's level is what it is now."""
    return Traced if logger.isEnabledFor(TRACE) else Connection
