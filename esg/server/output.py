"""Collects what the connections of a worker send within one turn of the event loop.

At the end of the turn, each connection's bytes leave together in one write. Only the first write of
a turn leaves at once: while there is little to do, nothing waits. A response's head waits here for
the body, which usually follows in the same turn, so that the head can contain the body's length.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import Protocol

logger = logging.getLogger("esg")

MOST_WAITING = 16
"""The most connections that wait for the turn's end with something to send. When another one comes,
they are written first, except those whose head waits for its body: a turn may be long.
"""


class Head(Protocol):
    """A response whose head may wait for its body."""

    def flush_head(self) -> None:
        """Send the head without waiting for the body, if it wasn't sent."""


class Flow(Protocol):
    """What one connection sends: an `Outflow`."""

    transport: asyncio.Transport
    pieces: list[bytes]
    held: Head | None
    waits: bool

    def flush(self) -> None:
        """Write the pieces."""


class Output:
    """Everything that is to be sent at the end of this turn."""

    __slots__ = ("_context", "_due", "_flows", "_loop", "_most", "_subject", "first")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, subject: str, context: contextvars.Context
    ) -> None:
        """`subject` names this worker in the log; `context` is the context to write in.

        Without it, the context variables of one request would be seen while others are written.
        """
        self._loop = loop
        self._context = context
        self._subject = subject
        self._flows: list[Flow] = []
        self._most = MOST_WAITING
        self._due = False
        """Whether `_end_turn` is scheduled."""
        self.first: Flow | None = None
        """The connection that was added first in this turn, until it has written something."""

    def add(self, flow: Flow) -> None:
        """Flush this connection at the end of the turn, or earlier if many are waiting."""
        flows = self._flows
        flow.waits = True
        if len(flows) >= self._most:
            self._make_room()
            flows = self._flows
        flows.append(flow)
        if not self._due:
            self._due = True
            self.first = flow
            self._loop.call_soon(self._end_turn, context=self._context)

    def _make_room(self) -> None:
        flows = self._flows
        self._flows = [flow for flow in flows if flow.held is not None]
        self._most = len(self._flows) + MOST_WAITING
        self._write([flow for flow in flows if flow.held is None])

    def _end_turn(self) -> None:
        flows, self._flows = self._flows, []
        self._most = MOST_WAITING
        self._due = False
        self.first = None
        self._write(flows)

    def _write(self, flows: list[Flow]) -> None:
        for flow in flows:
            try:
                if flow.held is not None:
                    head, flow.held = flow.held, None
                    head.flush_head()
                flow.waits = False
                pieces = flow.pieces
                if len(pieces) == 1:  # `flush`, inlined for the usual response
                    flow.transport.write(pieces.pop())
                elif pieces:
                    flow.flush()
            except Exception:  # the others have something to send, too
                flow.waits = False
                logger.exception("%s can't write to a connection", self._subject)
                flow.transport.abort()
