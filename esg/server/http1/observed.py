"""An exchange that notes what access log formats may ask for: time, size, response fields.

It stands in for `Exchange` where the access log `observes`, so that others needn't pay for it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from esg.server.asgi.types import Headers, Message, Scope
from esg.server.http1.exchange import BODY, NO_BODY, START, Exchange
from esg.server.http1.framing import Framing
from esg.server.http1.response import REASONS, Content

if TYPE_CHECKING:
    from esg.server.http1.connection import Connection


class Observed(Exchange):
    """An exchange that knows how long it took and how much it sent."""

    __slots__ = ("_began", "_page", "_sent", "response_headers")

    def __init__(
        self, connection: Connection, scope: Scope, framing: Framing, target: bytes
    ) -> None:
        super().__init__(connection, scope, framing, target)
        self._began = time.perf_counter()
        self._sent = 0
        self._page: Content | None = None
        """What was sent in the application's place, if that isn't the usual."""
        self.response_headers: Headers = []
        """The fields that the application gave, which aren't all that were sent."""

    @property
    def seconds(self) -> float:
        """Seconds since the request's header section was complete."""
        return time.perf_counter() - self._began

    @property
    def sent(self) -> int:
        """Bytes of response body that were sent, without what frames them."""
        try:
            left = self._left
        except AttributeError:
            # The application's head never went out, so the response was the server's own.
            if self.framing.head_only:
                return 0
            return len(self._page[1] if self._page else REASONS.get(self.status, "Error"))
        if left == NO_BODY:
            return 0
        return self._sent if self._length < 0 else min(self._sent, self._length)

    def _answer(self, status: int, content: Content | None) -> None:
        self._page = content
        super()._answer(status, content)

    async def send(self, message: Message) -> None:
        """As `Exchange.send`; what is noted must be so before the last piece ends the exchange."""
        kind = message["type"]
        if kind == BODY and self.state is BODY:
            self._sent += _size(message.get("body"))
        elif kind == START and self.state is START:
            headers = [(name, value) for name, value in message.get("headers", ())]
            await super().send({**message, "headers": headers})
            self.response_headers = headers
            return
        await super().send(message)

    async def _send_file(self, fd: int, offset: int, count: int, more: bool) -> None:
        self._sent += count
        await super()._send_file(fd, offset, count, more)


def _size(body: object) -> int:
    """Bytes in a piece of body; 0 for one that is none, of which `Exchange.send` will complain."""
    if isinstance(body, bytes | bytearray):
        return len(body)
    return body.nbytes if isinstance(body, memoryview) else 0
