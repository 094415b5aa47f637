"""How a request switches to another protocol, without HTTP and that protocol knowing each other.

If there is a protocol to upgrade to, the worker's state has a hook for it, `Service.upgrades`. A
connection asks the hook about each request that offers to upgrade, and makes the request an
`UpgradableExchange`, whose `Upgrade` answers it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, runtime_checkable

from esg.server.accesslog.entries import Observation
from esg.server.asgi.types import Application, Headers, Message, Scope
from esg.server.state import Exchange


class Successor(Protocol):
    """The protocol that takes over a connection from HTTP."""

    write: Callable[[bytes], None]

    def take_transport(self, transport: asyncio.Transport, write_paused: bool) -> None:
        """Become the transport's protocol.

        `write_paused`: too much data already waits to be sent.
        """


@runtime_checkable
class Upgradable(Protocol):
    """Something that another protocol may take the place of."""

    def switch(self, fields: Headers, successor: Successor) -> bytes:
        """Accept with these fields, and give the connection away.

        Returns the data that the client has sent after its request. Raises InvalidHeader for fields
        that can't be sent, and ClientDisconnected if the client has left.
        """

    def end_unanswered(self) -> None:
        """The client has left: end the connection without a response."""


class UpgradableExchange(Exchange, Upgradable, Protocol):
    """A request that offers to upgrade: an `Exchange` that has these methods, too."""

    scope: Scope
    state: str

    async def send(self, message: Message) -> None:
        """The ASGI `send`."""

    def fail(self, error: BaseException) -> None:
        """The application has raised an exception."""

    def fail_if_open(self, error: asyncio.CancelledError) -> None:
        """The application has raised this itself."""

    @property
    def observation(self) -> Observation:
        """What the access log needs; every upgrade has one."""

    def returned_early(self) -> None:
        """The application has returned before its response was complete."""

    def end_badly(self, status: int = 500) -> None:
        """Answer `status`, or cut the response off."""

    def log_error(self, what: str, error: BaseException | None = None, stack: str = "") -> None:
        """Log something that went wrong with this request."""

    def cancel(self) -> None:
        """Cancel the application's task."""


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
