"""What is sent to one client, whether the client reads it, and how long it may take to do so.

An `Outflow` collects what is sent within one turn of the loop. It holds the calls of `send` that
wait for the client, and measures whether the client makes progress. After the server's last byte,
it decides how long to wait until the client closes the connection. It has no timer: its owner has a
deadline, and calls it once that has passed.
"""

from __future__ import annotations

import asyncio
import math

from esg.server.output import Head, Output
from esg.server.transports import lines_writer, reset, unsent

MOST_COLLECTED = 16384
"""Bytes that wait for the end of a turn; more are written at once."""

JOIN_LIMIT = 65536
"""The largest number of bytes that are copied into one piece, rather than written as several."""

LINGER = 2.0
"""Seconds a closing connection waits for the client's end (RFC 9112, section 9.6; RFC 6455, section
7.1.1).
"""


class Outflow:
    """The data that is sent to one client. Times are seconds by the event loop's clock."""

    __slots__ = (
        "_collected",
        "_finished",
        "_loop",
        "_output",
        "_progress_at",
        "_silence",
        "_talk_until",
        "_unsent",
        "_waiters",
        "heard",
        "held",
        "paused",
        "pieces",
        "transport",
        "waits",
    )

    transport: asyncio.Transport

    def __init__(self, loop: asyncio.AbstractEventLoop, output: Output) -> None:
        self._loop = loop
        self._output = output
        self.pieces: list[bytes] = []
        """What waits for the end of this turn. While a head is held, or while something waits, a
        small piece may be appended without `write`."""
        self._collected = 0
        """The bytes of these pieces that came by `write`."""
        self.held: Head | None = None
        """The response whose head waits for its body, but not beyond this turn."""
        self.waits = False
        """Whether `Output` will write the pieces at the end of this turn."""
        self.paused = False
        """Whether so much waits to be sent that `send` has to wait."""
        self._waiters: dict[asyncio.Future[None], None] = {}
        """The calls that wait, in order; cancelled ones are removed."""
        self._unsent = 0
        """Bytes that the client hadn't acknowledged at the last check."""
        self._progress_at = 0.0
        """When a check last found fewer unacknowledged bytes than the check before it."""
        self.heard = False
        """Whether the client has sent something since the last check."""
        self._finished = False
        self._silence = LINGER
        self._talk_until = -math.inf

    def attach(self, transport: asyncio.Transport) -> None:
        """Use this transport, whose protocol passes on `pause_writing` and `resume_writing`."""
        self.transport = transport

    # -- sending -------------------------------------------------------------------------

    def hold(self, head: Head) -> None:
        """Send the head of this response at the end of the turn, unless its body comes before."""
        self.held = head
        if not self.waits:
            self._output.add(self)

    def write(self, data: bytes) -> None:
        """Send bytes, in order, together with all others of this turn of the loop."""
        pieces = self.pieces
        if pieces:
            collected = self._collected + len(data)
        else:
            output = self._output
            if not self.waits:
                output.add(self)
            if output.first is self:
                output.first = None
                self.transport.write(data)
                return
            collected = len(data)
        pieces.append(data)
        self._collected = collected
        if collected > MOST_COLLECTED:
            self.flush()

    @property
    def busy(self) -> bool:
        """Whether anything waits to be sent."""
        return bool(self.pieces) or self.waits or self.paused or self.held is not None

    def flush(self) -> None:
        """Write what was collected: before the connection is closed or used by something else."""
        pieces = self.pieces
        if len(pieces) == 1:
            self.transport.write(pieces.pop())
        elif pieces:
            self.pieces = []
            if sum(map(len, pieces)) > JOIN_LIMIT:
                lines_writer(self.transport)(pieces)
            else:
                self.transport.write(b"".join(pieces))

    def drop(self) -> None:
        """Forget what was collected, because the connection is lost."""
        self.pieces.clear()

    # -- waiting for the client ----------------------------------------------------------

    def pause(self, now: float) -> None:
        """Too much waits to be sent; from now on the client has to make progress."""
        self.paused = True
        self._unsent = unsent(self.transport)
        self._progress_at = now

    def resume(self) -> None:
        """Wake every `send` that waits: there is room again, or the connection is lost."""
        self.paused = False
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def waiter(self) -> asyncio.Future[None]:
        """A future that `resume` completes."""
        waiter = self._loop.create_future()
        self._waiters[waiter] = None
        waiter.add_done_callback(self._forget)
        return waiter

    def _forget(self, waiter: asyncio.Future[None]) -> None:
        self._waiters.pop(waiter, None)

    async def writable(self) -> None:
        """Wait until the client has taken enough of what was sent.

        If the connection breaks, this takes at least one turn of the loop, so that the loop
        notices.
        """
        if self.transport.is_closing():
            await asyncio.sleep(0)
        while self.paused and not self._finished:
            await self.waiter()

    # -- progress ------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Measure progress from now on, whatever was unsent before."""
        self._unsent = 0
        self._progress_at = now

    def stalls(self, now: float, limit: float) -> bool:
        """Check progress; return whether the client has taken nothing for `limit` seconds."""
        before, self._unsent = self._unsent, unsent(self.transport)
        if self._unsent < before:
            self._progress_at = now
        return now - self._progress_at >= limit

    # -- the end of a connection ---------------------------------------------------------

    def linger(self, now: float, silence: float, talk_until: float = -math.inf) -> None:
        """The server has sent its last byte, so no `send` waits; wait until the client closes.

        Once the client has taken everything, it may be silent for `silence` seconds. Until
        `talk_until`, that time begins again whenever the client sends something.
        """
        self._finished = True
        self._wake()
        self.begin(now)
        self.heard = False
        self._silence = silence
        self._talk_until = talk_until

    def lingers(self, now: float, limit: float, *, acknowledged: bool) -> bool:
        """Whether to wait longer until the client closes; at most `limit` seconds without progress.

        `acknowledged`: wait until the client's kernel has taken everything. Otherwise wait only
        until this machine's kernel has taken everything; it sends the rest by itself.
        """
        heard, self.heard = self.heard, False
        if heard and now < self._talk_until:
            self._progress_at = now
        self.stalls(now, 0)
        waits = self._unsent if acknowledged else self.transport.get_write_buffer_size()
        return now - self._progress_at < (limit if waits else self._silence)

    @property
    def next_look(self) -> float:
        """Seconds until a connection that lingers should be looked at again."""
        return min(self._silence, LINGER)

    def end(self) -> None:
        """End the connection, and drop unsent data, which the kernel would otherwise keep."""
        if self.transport.get_write_buffer_size():
            reset(self.transport)
        else:
            self.transport.abort()
