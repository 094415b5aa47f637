"""While one client floods a worker, a client that behaves well hardly waits.

Each test compares the longest wait of the second client during the flood with its longest wait
without one. The bound is generous, because the machine may be busy with other tests. Without limits
on what one connection may do in a turn of the event loop, it is exceeded many times over.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.openssl import OpenSSL
from tests.support.runner import Esg
from tests.support.waiting import DEADLINE, eventually

pytestmark = pytest.mark.soak

Start = Callable[..., Esg]
Attack = Callable[[int, threading.Event], None]

ROUND = 0.5
"""Seconds for which the well-behaved client sends requests, without a flood and during one."""

ROUNDS = 3
"""Attempts to stay within the bound; one success is enough."""

LEFTOVERS = 60.0
"""Seconds to handle a flood that was read; h11 needs 20 us for a chunk of one byte."""

RATIO = 20
FLOOR = 0.02
"""A shorter wait without a flood counts as this many seconds."""

APP = """
async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""

OPTIONS = ("--lifespan", "off", "--no-access-log")


def longest_wait(esg: Esg) -> float:
    """The longest of many waits for a response, each on a connection of its own."""
    longest, end = 0.0, time.monotonic() + ROUND
    while (begun := time.monotonic()) < end:
        connection = esg.connect()
        with contextlib.closing(connection):
            connection.request("GET", "/", headers={"Connection": "close"})
            assert connection.getresponse().read() == b"ok"
        longest = max(longest, time.monotonic() - begun)
    return longest


@contextlib.contextmanager
def flooded(attack: Attack, port: int, clients: int) -> Iterator[None]:
    """Have this many clients attack inside the block; one that is cut off connects again."""
    over = threading.Event()

    def persist() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                attack(port, over)

    threads = [threading.Thread(target=persist) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def hold_to_the_bound(
    esg: Esg, attack: Attack, clients: int, prepare: Callable[[], None] = lambda: None
) -> None:
    """`prepare` is called before each round."""
    idle = longest_wait(esg)
    waits = []
    for _ in range(ROUNDS):
        prepare()
        with flooded(attack, esg.port, clients):
            waits.append(longest_wait(esg))
        # A worker handles everything that it has read before it notices that the clients left.
        eventually(
            lambda: not esg.connections(), "the worker is done with the flood", LEFTOVERS, 0.05
        )
        if waits[-1] <= RATIO * max(idle, FLOOR):
            return
    raise AssertionError(f"longest waits: {idle} s without the flood, {waits} during it")


def connected(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), DEADLINE)
    sock.settimeout(0.2)  # so that a flood that isn't read any more ends in time
    # Closing resets the connection, so the server drops what it hasn't read of the flood.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return sock


def pour(sock: socket.socket, block: bytes, over: threading.Event) -> None:
    """Send a block again and again."""
    left = memoryview(block)
    while not over.is_set():
        try:
            left = left[sock.send(left) :] or memoryview(block)
        except TimeoutError:
            continue


# -- WebSockets --------------------------------------------------------------------------

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: YWFhYWFhYWFhYWFhYWFhYQ==\r\n\r\n"
)
EMPTY_FRAGMENT, EMPTY_BEGINNING, EMPTY_PING = (
    bytes([first, 0x80]) + bytes(4) for first in (0x00, 0x02, 0x89)
)


def websocket_flood(first: bytes, frame: bytes) -> Attack:
    def attack(port: int, over: threading.Event) -> None:
        with connected(port) as sock:
            sock.settimeout(DEADLINE)
            sock.sendall(UPGRADE)
            sock.recv(4096)
            sock.settimeout(0.2)
            sock.sendall(first)
            pour(sock, frame * 10_000, over)

    return attack


@pytest.mark.parametrize("library", ["websockets", "wsproto"])
@pytest.mark.parametrize(
    "attack",
    [websocket_flood(EMPTY_BEGINNING, EMPTY_FRAGMENT), websocket_flood(b"", EMPTY_PING)],
    ids=["fragments", "pings"],
)
def test_tiny_websocket_frames_do_not_delay_others(
    start: Start, attack: Attack, library: str
) -> None:
    esg = start("--ws", library, *OPTIONS, source=APP)
    hold_to_the_bound(esg, attack, 2)


# -- HTTP --------------------------------------------------------------------------------


@pytest.mark.parametrize(("parser", "clients"), [("httptools", 20), ("h11", 3)])
def test_tiny_chunks_do_not_delay_others(start: Start, parser: str, clients: int) -> None:
    """h11 takes ten times as long for a chunk, so fewer clients do the same harm."""

    def attack(port: int, over: threading.Event) -> None:
        with connected(port) as sock:
            sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            pour(sock, b"1\r\nx\r\n" * 10_000, over)

    esg = start("--http", parser, *OPTIONS, source=APP)
    hold_to_the_bound(esg, attack, clients)


# -- TLS ---------------------------------------------------------------------------------


@pytest.fixture
def encrypted(start: Start, tmp_path: Path) -> Esg:
    authority = Authority(tmp_path)
    certificate, key = authority.issue()
    esg = start("--ssl-certfile", certificate, "--ssl-keyfile", key, *OPTIONS, source=APP)
    esg.tls = authority.client_context()
    return esg


def test_one_byte_tls_records_do_not_delay_others(encrypted: Esg) -> None:
    context = encrypted.tls
    assert context is not None
    count, clients = 10_000, 20
    prepared: list[tuple[socket.socket, bytes]] = []

    def prepare() -> None:
        for _ in range(clients):
            prepared.append(_one_byte_records(context, encrypted.port, count))

    def attack(port: int, over: threading.Event) -> None:
        try:
            sock, records = prepared.pop()
        except IndexError:
            over.wait(0.01)
            return
        with sock:
            sock.sendall(records)
            sock.recv(4096)
            over.wait()

    hold_to_the_bound(encrypted, attack, clients, prepare)
    assert prepared == []


def _one_byte_records(
    context: ssl.SSLContext, port: int, count: int
) -> tuple[socket.socket, bytes]:
    """A connection after its handshake, and a request whose body comes in `count` records."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    sock = socket.create_connection(("127.0.0.1", port), DEADLINE)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            incoming.write(sock.recv(65536))
    tls.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % count)
    for _ in range(count):
        tls.write(b"x")
    return sock, outgoing.read()


def test_key_updates_do_not_delay_others(encrypted: Esg) -> None:
    def attack(port: int, over: threading.Event) -> None:
        client = OpenSSL()
        with contextlib.closing(client), connected(port) as sock:
            sock.settimeout(DEADLINE)
            while not client.take(b""):
                sock.sendall(client.sent())
                if client.take(sock.recv(65536)):
                    break
            sock.sendall(client.sent() + client.data(b"G"))
            while not over.is_set():
                sock.sendall(b"".join(client.key_update() for _ in range(500)))

    hold_to_the_bound(encrypted, attack, 2)
