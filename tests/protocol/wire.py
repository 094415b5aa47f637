"""A client that sees every byte, and reads responses strictly (RFC 9112)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import socket
import struct
from collections.abc import Callable

DEADLINE = 10.0
"""Seconds to wait for something before the test fails."""

QUIET_TURNS = 30
"""Turns of the loop without progress after which no more bytes are on their way.

Client and server share one loop and one kernel, so a byte arrives in the next turn.
"""

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([2-9][0-9]{2}) ([ -~]*)")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+): ([^\x00\r\n]*)")

Fields = list[tuple[bytes, bytes]]


@dataclasses.dataclass
class Response:
    """A final response, as it was on the wire."""

    status: int
    reason: bytes
    fields: Fields
    body: bytes = b""
    chunks: list[bytes] | None = None
    """The chunks it came in, or None if it wasn't chunked."""

    def all(self, name: bytes) -> list[bytes]:
        return [value for found, value in self.fields if found.lower() == name]

    def __getitem__(self, name: bytes) -> bytes:
        """The value of a field that must occur exactly once."""
        (value,) = self.all(name)
        return value

    def __contains__(self, name: bytes) -> bool:
        return bool(self.all(name))

    @property
    def closes(self) -> bool:
        return self.all(b"connection") == [b"close"]


class Truncated(Exception):
    """The connection ended in the middle of a response."""


class Client:
    """One connection. `piece`: the most bytes in one write; each write has its own turn."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, piece: int | None = None
    ) -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.piece = piece
        self._loop = loop
        self._buffer = bytearray()

    # -- sending -----------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        """Send all of `data`, in pieces if the client has a `piece` size."""
        if self.piece is None:
            async with asyncio.timeout(DEADLINE):
                await self._loop.sock_sendall(self.sock, data)
        else:
            await self.send_pieces(
                [data[at : at + self.piece] for at in range(0, len(data), self.piece)]
            )

    async def send_pieces(self, pieces: list[bytes]) -> None:
        """Send pieces so that the server receives each one separately.

        The server may close the connection before the last piece; its response can still be
        read as usual.
        """
        for piece in pieces:
            try:
                async with asyncio.timeout(DEADLINE):
                    await self._loop.sock_sendall(self.sock, piece)
            except (BrokenPipeError, ConnectionResetError):
                return
            await turns(3)

    async def push(self, data: bytes) -> int:
        """Send as much of `data` as there is room for, and return the number of bytes.

        A server that has closed its end of the connection accepts no more.
        """
        view, sent, idle = memoryview(data), 0, 0
        while sent < len(data) and idle < QUIET_TURNS:
            try:
                sent += self.sock.send(view[sent : sent + 65536])
                idle = 0
            except BlockingIOError:
                idle += 1
            except (BrokenPipeError, ConnectionResetError):
                break
            await asyncio.sleep(0)
        return sent

    def shutdown(self) -> None:
        """Close the sending side, but continue to read."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Reset the connection."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # -- receiving ---------------------------------------------------------------------

    async def request(self, data: bytes, method: str = "GET") -> Response:
        """Send a request and read the response to it."""
        await self.send(data)
        return await self.response(method)

    async def response(self, method: str = "GET") -> Response:
        """Read one final response, framed as for a request of `method`."""
        async with asyncio.timeout(DEADLINE):
            response = parse_head(await self._read_until(b"\r\n\r\n"))
            await self._read_body(response, method)
        return response

    async def head(self) -> Response:
        """Read the head of a response, and leave its body."""
        async with asyncio.timeout(DEADLINE):
            return parse_head(await self._read_until(b"\r\n\r\n"))

    async def head_of(self, status: int) -> Response:
        """Read the head of a response that must have this status, which may be a 101."""
        async with asyncio.timeout(DEADLINE):
            head = await self._read_until(b"\r\n\r\n")
        response = parse_head(head.replace(b" 101 ", b" 201 ", 1))
        response.status = int(head[9:12])
        assert response.status == status, head
        return response

    async def exactly(self, expected: bytes) -> None:
        """Read exactly these bytes."""
        async with asyncio.timeout(DEADLINE):
            assert await self._read(len(expected)) == expected

    async def read(self, size: int) -> bytes:
        """Read `size` bytes."""
        async with asyncio.timeout(DEADLINE):
            return await self._read(size)

    async def rest(self) -> bytes:
        """Read until the server ends the connection; ConnectionResetError for an abrupt end."""
        async with asyncio.timeout(DEADLINE):
            while await self._receive():
                pass
        return self._take(len(self._buffer))

    async def closed(self) -> None:
        """Assert that the server has ended the connection without a reset or another byte."""
        assert await self.rest() == b""

    async def skip(self, size: int) -> None:
        """Read and discard `size` bytes."""
        async with asyncio.timeout(DEADLINE):
            while size > len(self._buffer):
                size -= len(self._buffer)
                self._buffer.clear()
                await self._receive_or_fail()
        del self._buffer[:size]

    async def quiet(self) -> None:
        """Assert that no byte has arrived, and that the connection is open."""
        await turns(QUIET_TURNS)
        with contextlib.suppress(BlockingIOError):
            self._buffer += self.sock.recv(65536) or b"<closed>"
        assert self._buffer == b""

    async def _read_body(self, response: Response, method: str) -> None:
        if method == "HEAD" or response.status in (204, 304):
            return
        if b"transfer-encoding" in response:
            assert response[b"transfer-encoding"] == b"chunked"
            assert b"content-length" not in response
            response.chunks = []
            while chunk := await self._read_chunk():
                response.chunks.append(chunk)
            response.body = b"".join(response.chunks)
        elif b"content-length" in response:
            response.body = await self._read(int(response[b"content-length"]))
        else:
            assert response.closes
            response.body = await self.rest()

    async def _read_chunk(self) -> bytes:
        size = await self._read_until(b"\r\n")
        assert re.fullmatch(rb"[0-9a-f]+\r\n", size)
        data = await self._read(int(size, 16))
        assert await self._read(2) == b"\r\n"
        return data

    async def _read_until(self, mark: bytes) -> bytes:
        while (at := self._buffer.find(mark)) < 0:
            await self._receive_or_fail()
        return self._take(at + len(mark))

    async def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._receive_or_fail()
        return self._take(size)

    def _take(self, size: int) -> bytes:
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return data

    async def _receive_or_fail(self) -> None:
        if not await self._receive():
            raise Truncated(f"the connection ended after {bytes(self._buffer[-200:])!r}")

    async def _receive(self) -> bool:
        data = await self._loop.sock_recv(self.sock, 1 << 20)
        self._buffer += data
        return bool(data)


def parse_head(data: bytes) -> Response:
    """Read a head like a strict client."""
    status_line, *lines = data[:-4].split(b"\r\n")
    match = _STATUS_LINE.fullmatch(status_line)
    assert match, status_line
    fields = []
    for line in lines:
        field = _FIELD.fullmatch(line)
        assert field, line
        fields.append((field[1], field[2]))
    return Response(int(match[1]), match[2], fields)


async def turns(count: int) -> None:
    """Let the loop turn `count` times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def settled(value: Callable[[], int]) -> int:
    """Wait until a number has stopped growing, and return it."""
    before, unchanged = value(), 0
    while unchanged < 10 * QUIET_TURNS:
        await asyncio.sleep(0)
        now = value()
        before, unchanged = now, unchanged + 1 if now == before else 0
    return before


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.001)


def get(target: bytes = b"/", *fields: bytes, version: bytes = b"1.1") -> bytes:
    """A GET request; each of `fields` is a line without its end."""
    return request(b"GET", target, *fields, version=version)


def request(method: bytes, target: bytes, *fields: bytes, version: bytes = b"1.1") -> bytes:
    """A request's head, with a Host."""
    start = b"%b %b HTTP/%b" % (method, target, version)
    return b"\r\n".join((start, b"Host: example.org", *fields, b"", b""))


def post(body: bytes, *fields: bytes, target: bytes = b"/", version: bytes = b"1.1") -> bytes:
    """A POST request with its body, delimited by a Content-Length."""
    length = b"Content-Length: %d" % len(body)
    return request(b"POST", target, length, *fields, version=version) + body


def chunked(*chunks: bytes, trailers: bytes = b"") -> bytes:
    """A chunked body."""
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return framed + b"0\r\n" + trailers + b"\r\n"


def post_chunked(
    *chunks: bytes, target: bytes = b"/", trailers: bytes = b"", fields: tuple[bytes, ...] = ()
) -> bytes:
    """A POST request with a chunked body."""
    head = request(b"POST", target, b"Transfer-Encoding: chunked", *fields)
    return head + chunked(*chunks, trailers=trailers)
