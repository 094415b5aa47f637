"""How a request switches to another protocol, without HTTP and that protocol knowing each other.

If there is a protocol to upgrade to, the worker's state has a hook for it, `Service.upgrades`. A
connection asks the hook about each request that offers to upgrade, and makes the request an
`UpgradableExchange`, whose `Upgrade` answers it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from esg.server.accesslog.entries import Observation
from esg.server.asgi.exchange import Exchange
from esg.server.asgi.types import Application, Headers


class Successor(Protocol):
    """The protocol that takes over a connection from HTTP."""

    write: Callable[[bytes], None]

    def take_transport(self, transport: asyncio.Transport, write_paused: bool) -> None:
        """Become the transport's protocol.

        `write_paused`: too much data already waits to be sent.
        """


class UpgradableExchange(Exchange):
    """A request that offers to upgrade; a protocol derives its own class from this."""

    __slots__ = ()

    observation: Observation

    def switch(self, fields: Headers, successor: Successor) -> bytes:
        """Accept with these fields, and give the connection away.

        Returns the data that the client has sent after its request. Raises InvalidHeader for fields
        that can't be sent, and ClientDisconnected if the client has left.
        """
        raise NotImplementedError

    def end_unanswered(self) -> None:
        """The client has left: end the connection without a response."""
        raise NotImplementedError


class Upgrade(Protocol):
    """Answers one request that offers to upgrade."""

    @property
    def name(self) -> str:
        """The name of the request in the log."""

    @property
    def opened(self) -> bool:
        """Whether the connection has been given away."""

    def run(self, app: Application) -> Coroutine[Any, Any, None]:
        """Call the application.

        The exchange has ended afterwards, even if the application failed.
        """

    def on_client_left(self) -> None:
        """The client has left, or will leave soon, or the server itself has answered."""
