"""Real connections without sockets, to see in microseconds how a server handles some bytes.

A `Stage` serves one parser on a separate event loop, a `Wire` takes the place of a transport,
and a `Verdict` is the result of the bytes: the responses, whether the server hung up, and the
complete requests that the application saw.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from esg.scoreboard import Row
from esg.server import protocols
from esg.server.http1.connection import Connection
from esg.server.state import Service
from esg.settings.schema import Config

T = TypeVar("T")

PARSERS = ("httptools", "h11")

MOST_TURNS = 2000
"""Turns of the loop after which a connection that is still busy counts as hanging."""

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [ -~]*\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length: ([0-9]+)\r\n", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Request:
    """A request as the application saw it, with its whole body."""

    method: str
    path: str
    raw_path: bytes
    query: bytes
    version: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The outcome of some bytes."""

    statuses: tuple[int, ...]
    """The statuses of the final responses, in order."""
    closed: bool
    """Whether the server has ended the connection."""
    requests: tuple[Request, ...]
    output: bytes = dataclasses.field(repr=False)

    @property
    def refused(self) -> bool:
        """Whether the server answered with an error of its own."""
        return any(status >= 400 for status in self.statuses)


class Wire(asyncio.Transport):
    """A transport to a client that reads everything immediately; it remembers what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Connection
        self.output: list[bytes] = []
        self.ended = False
        """Whether the server has ended its side."""

    def write(self, data: Any) -> None:
        assert not self.ended
        self.output.append(bytes(data))

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        self.ended = True

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """Do nothing: the test decides what the client sends."""

    def resume_reading(self) -> None:
        """See `pause_reading`."""


class Stage:
    """A service for one parser, on a separate loop; it must be closed."""

    def __init__(self, parser: str, **settings: Any) -> None:
        self._runner = asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)
        loop = self._runner.get_loop()
        self.unhandled: list[str] = []
        loop.set_exception_handler(lambda _, context: self.unhandled.append(repr(context)))
        config = Config(
            app="test:app", http=parser, date_header=False, server_header=False, **settings
        )
        self.service = Service(
            self._app,
            config,
            loop,
            Row.alone(),
            subject="worker=1 gen=1 pid=1",
            access_log=None,
            due_at=0,
            on_due=lambda: None,
        )
        protocols.enable(self.service)
        self._seen: dict[Any, list[Request]] = {}
        self.calls = 0
        """The number of calls of the application."""

    def close(self) -> None:
        """End the loop; its exception handler must not have been called."""
        self._runner.close()
        assert self.unhandled == []

    def play(self, plays: Iterable[Sequence[bytes]]) -> list[Verdict]:
        """Send each sequence of pieces on a separate connection, concurrently."""
        return self.run(self._play([list(pieces) for pieces in plays]))

    async def _play(self, plays: list[list[bytes]]) -> list[Verdict]:
        connections = []
        for number, pieces in enumerate(plays):
            wire = Wire()
            connections.append((self.connect(wire, number), wire, pieces))
        for turn in range(max(map(len, plays), default=0)):
            for connection, _, pieces in connections:
                if turn < len(pieces):
                    connection.data_received(pieces[turn])
            await asyncio.sleep(0)
        await self.settled([wire for _, wire, _ in connections])
        verdicts = []
        for number, (connection, wire, _) in enumerate(connections):
            output = b"".join(wire.output)
            seen = tuple(self._seen[number])
            verdicts.append(Verdict(statuses_of(output), wire.ended, seen, output))
            connection.connection_lost(None)
        for _ in range(MOST_TURNS):
            if self.service.idle:
                return verdicts
            await asyncio.sleep(0)
        raise AssertionError("the application hangs after the end of its connection")

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the stage's loop."""
        return self._runner.run(coroutine)

    def connect(self, wire: Wire, number: int = 0) -> Connection:
        """A connection over `wire`, from the client of this number; from within the loop."""
        connection = Connection(self.service, ("client", number), ("server", 80))
        wire.protocol = connection
        self._seen[number] = []
        self.service.change_load(1)
        connection.connection_made(wire)
        return connection

    async def settled(self, wires: list[Wire]) -> None:
        """Wait until nothing happens any more."""
        before, quiet = None, 0
        for _ in range(MOST_TURNS):
            now = (self.calls, sum(len(wire.output) + wire.ended for wire in wires))
            busy = now != before or self.service.turns._due  # postponed work runs later
            quiet = 0 if busy else quiet + 1
            if quiet == 8:
                return
            before = now
            await asyncio.sleep(0)
        raise AssertionError("the server doesn't come to rest")

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        """Note each request that is whole, and answer it."""
        self.calls += 1
        pieces, more = [], True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            pieces.append(message["body"])
            more = message["more_body"]
        request = Request(
            scope["method"],
            scope["path"],
            scope["raw_path"],
            scope["query_string"],
            scope["http_version"],
            tuple(scope["headers"]),
            b"".join(pieces),
        )
        self._seen[scope["client"][1]].append(request)
        headers = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def statuses_of(output: bytes) -> tuple[int, ...]:
    """The statuses of all final responses in what a server sent, each with a Content-Length."""
    statuses, at = [], 0
    while at < len(output):
        match = _STATUS_LINE.match(output, at)
        assert match, output[at : at + 200]
        end = output.index(b"\r\n\r\n", at) + 4
        if match[1] != b"100":
            statuses.append(int(match[1]))
            length = _LENGTH.search(output, at, end)
            assert length, output[at:end]
            # The body of a response to HEAD isn't sent, and those of this application are empty.
            size = int(length[1])
            end += size if output[end : end + 8] != b"HTTP/1.1" else 0
        at = end
    return tuple(statuses)
