"""A request that offers to upgrade, on an HTTP/1.1 connection (RFC 9110, section 7.8)."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from esg.server.accesslog.entries import Observation
from esg.server.asgi.disconnection import ClientDisconnected
from esg.server.asgi.exchange import DONE, GONE, START
from esg.server.asgi.types import Application, Headers
from esg.server.asgi.upgrade import Successor, Upgrade
from esg.server.http1.exchange import Exchange, Wire
from esg.server.http1.framing import VERSIONS, Framing
from esg.server.http1.response import Heads, check_fields
from esg.server.state import Upgrades

_LAST = {version: Framing(0, version=version, keep_alive=False) for version in VERSIONS}
"""After a refused upgrade the connection closes: the client may continue in either protocol."""


class UpgradeExchange(Exchange):
    """A request that offers to upgrade, until it is refused or has become another protocol."""

    __slots__ = ("upgrade",)

    def __init__(self, connection: Wire, offer: Exchange, upgrades: Upgrades) -> None:
        """`offer` is the ordinary exchange of the same request, which this one replaces."""
        super().__init__(connection, offer.scope, _LAST[offer.framing.version], offer.target)
        self.observation = offer.observation or Observation(offer.scope, offer.target)
        self.status = 0
        self.upgrade: Upgrade = upgrades.begin(self)

    def run(self, app: Application) -> Coroutine[Any, Any, None]:
        return self.upgrade.run(app)

    @property
    def name(self) -> str:
        return self.upgrade.name

    def _close_head(self, lines: list[bytes], body_length: int) -> None:
        if self.status == 426:  # its Upgrade is a connection option (RFC 9110, section 7.8)
            lines.append(b"connection: upgrade\r\n")
        super()._close_head(lines, body_length)

    def switch(self, fields: Headers, successor: Successor) -> bytes:
        connection = self._connection
        lines, flags, _ = check_fields(fields)
        heads: Heads = connection.service.heads
        lines[0] = heads.begin(101, flags) + b"connection: Upgrade\r\n"
        if self.state is START and (connection.ends_soon or connection.refuses):
            self.end_unanswered()
        if self.state is not START:
            raise ClientDisconnected("the client has gone, or the worker is about to stop")
        self.state = DONE
        self.status = 101
        received = connection.hand_over(successor)
        successor.write(b"".join((*lines, b"\r\n")))
        return received

    def end_unanswered(self) -> None:
        self.disconnect()
        self._connection.close()

    def wake(self) -> None:
        super().wake()
        leaves = self.state is START and self._connection.ends_soon
        if leaves or self.state is GONE or self.state is DONE:
            self.upgrade.on_client_left()

    def time_out(self) -> None:
        """`--request-timeout` is for requests, not for what they have become."""
        if not self.upgrade.opened:
            super().time_out()
