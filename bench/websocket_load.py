"""The load on WebSockets: a process of its own, started by websocket.py.

    python websocket_load.py PORT echo|broadcast CLIENTS BYTES SECONDS

Prints messages received, seconds, and its own share of a CPU as JSON. It is simple on
purpose: frames are made once and answers are only counted, so that the server is measured.
"""

import asyncio
import json
import resource
import sys
import time
from typing import cast

import uvloop

MASK = b"\x12\x34\x56\x78"
WARM_UP = 0.5  # seconds

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: c2l4dGVlbiBieXRlcyBvaw==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def head(size: int, mask: int) -> bytes:
    if size < 126:
        return bytes((0x82, mask | size))
    if size < 65536:
        return bytes((0x82, mask | 126)) + size.to_bytes(2, "big")
    return bytes((0x82, mask | 127)) + size.to_bytes(8, "big")


class Client(asyncio.Protocol):
    """Shakes hands, then counts whole answers; `on_answer` is called for each of them."""

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.ready = asyncio.get_running_loop().create_future()
        self.buffer = b""
        self.left = run.answer_size
        self.take = self._shake_hands

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(1 << 22)
        self.transport.write(HANDSHAKE)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.run.over:
            self.run.failure = f"a connection was lost: {exc}"

    def data_received(self, data: bytes) -> None:
        self.take(data)

    def _shake_hands(self, data: bytes) -> None:
        self.buffer += data
        if b"\r\n\r\n" in self.buffer:
            assert self.buffer.startswith(b"HTTP/1.1 101"), self.buffer
            self.buffer = b""
            self.take = self._check_first
            self.ready.set_result(None)

    def _check_first(self, data: bytes) -> None:
        """Check the first answer; of the others, only the size is checked."""
        self.buffer += data
        if len(self.buffer) >= self.run.answer_size:
            assert self.buffer[: self.run.answer_size] == self.run.answer, self.buffer[:100]
            data, self.buffer = self.buffer, b""
            self.take = self._count
            self._count(data)

    def _count(self, data: bytes) -> None:
        self.left -= len(data)
        while self.left <= 0:
            self.left += self.run.answer_size
            self.run.answers += 1
            self.run.on_answer(self)


class Run:
    def __init__(self, kind: str, clients: int, size: int) -> None:
        content = bytes(range(256)) * (size // 256 + 1)
        content = content[:size]
        masked = bytes(byte ^ MASK[at % 4] for at, byte in enumerate(content))
        self.message = head(size, 0x80) + MASK + masked
        self.answer = head(size, 0) + content
        self.answer_size = len(self.answer)
        self.answers = 0
        self.clients: list[Client] = []
        self.count = clients
        self.over = False
        self.failure = ""
        self.on_answer = self._echoed if kind == "echo" else self._heard
        self.kind = kind

    def _echoed(self, client: Client) -> None:
        client.transport.write(self.message)

    def _heard(self, client: Client) -> None:
        if self.answers % self.count == 0:
            client.transport.write(self.message)

    async def measure(self, port: int, seconds: float) -> dict[str, object]:
        loop = asyncio.get_running_loop()
        for _ in range(self.count):
            _, client = await loop.create_connection(lambda: Client(self), "127.0.0.1", port)
            await client.ready
            self.clients.append(client)
        for client in self.clients if self.kind == "echo" else self.clients[:1]:
            client.transport.write(self.message)
        await asyncio.sleep(WARM_UP)
        before, begun, cpu = self.answers, time.perf_counter(), _cpu()
        await asyncio.sleep(seconds)
        taken = time.perf_counter() - begun
        result = {
            "messages": self.answers - before,
            "all": self.answers,
            "seconds": taken,
            "cpu": round((_cpu() - cpu) / taken, 3),
            "failure": self.failure,
        }
        self.over = True
        for client in self.clients:
            client.transport.abort()
        return result


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    port, kind, clients, size, seconds = sys.argv[1:]
    run = Run(kind, int(clients), int(size))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(run.measure(int(port), float(seconds)))))


if __name__ == "__main__":
    main()
