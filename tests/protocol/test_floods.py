"""A client that floods its connection gets its share of the event loop's time and no more.

The clock that limits turns advances each time it is read, so that tests count work and not
seconds: every parsed piece seems to take as long as a connection may take in a turn.
"""

from __future__ import annotations

import asyncio
import itertools
import zlib

import pytest

from esg.server.http1.reader import FEED_BODY, FEED_FIRST, PIPELINE_LIMIT
from esg.server.tls_transport import MOST_RECORDS
from esg.server.turns import PART, SHARE

from .apps import Gate, echo, read_body, respond
from .tls_client import TLSClient
from .wire import get, post, post_chunked, settled, turns, until
from .ws_client import BINARY, CONT, DEFLATE, WebSocket, frame

ATTACKERS = 10
CHUNK = len(b"1\r\nx\r\n")


def slow_clock(server):
    """Make each piece of work seem to take the time that a connection has in a turn."""
    ticks = itertools.count()
    server.service.turns.clock = lambda: next(ticks) * PART


async def watch(value, growth):
    """Note by how much a number grows in each turn of the loop."""
    before = value()
    while True:
        await asyncio.sleep(0)
        now = value()
        growth.append(now - before)
        before = now


async def test_tiny_chunks_of_many_connections_do_not_delay_others(serve):
    received, answered = 0, []

    async def app(scope, receive, send):
        nonlocal received
        if scope["path"] == "/quick":
            answered.append(received)
            await respond(send, b"")
            return
        size = 0
        while True:
            message = await receive()
            size += len(message["body"])
            received += len(message["body"])
            if not message["more_body"]:
                break
        await respond(send, b"%d" % size)

    server = serve(app)
    slow_clock(server)
    quick = server.connect()
    await quick.request(get(b"/quick"))
    count = 5000
    attackers = [server.connect() for _ in range(ATTACKERS)]
    growth = []
    watcher = asyncio.ensure_future(watch(lambda: received, growth))
    for attacker in attackers:
        await attacker.push(post_chunked(*[b"x"] * count))
    await quick.request(get(b"/quick"))
    assert answered[-1] < ATTACKERS * count / 2
    for attacker in attackers:
        assert (await attacker.response()).body == b"%d" % count
    watcher.cancel()
    # The postponed work, and the first piece of a read in the same turn.
    pieces = SHARE / PART + 2
    assert max(growth) <= pieces * FEED_FIRST / CHUNK
    assert max(growth) < ATTACKERS * count / 10


async def test_the_rest_of_a_body_waits_for_another_turn(serve):
    """The rest of a body in tiny chunks waits for another turn, in order."""
    pieces = []

    async def app(scope, receive, send):
        while True:
            message = await receive()
            pieces.append(message["body"])
            if not message["more_body"]:
                break
        await respond(send, b"".join(pieces))

    server = serve(app)
    client = server.connect()
    slow_clock(server)
    body = [b"%x" % (number % 16) for number in range(3000)]
    await client.send(post_chunked(*body) + get())
    assert (await client.response()).body == b"".join(body)
    await client.response()
    assert max(map(len, pieces)) <= FEED_FIRST / CHUNK + FEED_BODY / CHUNK


async def test_tiny_pipelined_requests_are_answered(serve):
    """One read is parsed in pieces of limited size, and each request gets its response."""
    gate = Gate()
    server = serve(gate)
    client = server.connect()
    data = b"GET / HTTP/1.1\r\nHost:x\r\n\r\n"
    sending = asyncio.ensure_future(client.send(data * 1000))
    await until(lambda: server.service.running)
    (connection,) = server.service.connections
    most = PIPELINE_LIMIT + FEED_FIRST / len(data) + 1
    assert await settled(lambda: len(connection.queue)) <= most
    gate.open.set()
    for _ in range(1000):
        await client.response()
    await sending


async def test_a_connection_may_end_while_its_rest_waits(serve):
    for end in ("close", "reset", "error"):
        server = serve(echo)
        slow_clock(server)
        client = server.connect()
        await client.push(post_chunked(*[b"x"] * 5000)[:-7] + (b"no chunk\r\n" * 100))
        if end == "close":
            client.close()
        elif end == "reset":
            client.reset()
        else:
            assert b" 400 " in await client.rest()
            client.close()
        await server.connections(0)


async def test_a_body_larger_than_the_limit_in_tiny_chunks_is_refused(serve):
    server = serve(echo, limit_request_body=1000)
    slow_clock(server)
    client = server.connect()
    await client.push(post_chunked(*[b"x"] * 20_000))
    assert (await client.response()).status == 413
    client.close()


async def test_a_websocket_of_tiny_frames_does_not_delay_others(serve):
    """Others are answered before its message is complete."""
    messages = []

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await respond(send, b"%d" % len(messages))
            return
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            messages.append(message["bytes"])
            await send({"type": "websocket.send", "bytes": b"done"})

    server = serve(app)
    socket = await WebSocket.open(server)
    quick = server.connect()
    data = frame(BINARY, b"", fin=False) + frame(CONT, b"12345678", fin=False) * 8000
    await socket.client.push(data + frame(CONT, b"end"))
    assert (await quick.request(get())).body == b"0"
    await socket.expect(BINARY, b"done")
    assert messages == [b"12345678" * 8000 + b"end"]


async def test_a_flood_of_pings_is_closed(serve):
    server = serve(_websocket)
    socket = await WebSocket.open(server)
    sending = asyncio.ensure_future(socket.client.push(frame(9) * 3000))
    first, content = await socket.frame()
    while first == 0x8A:
        first, content = await socket.frame()
    assert (first, int.from_bytes(content[:2], "big")) == (0x88, 1008)
    await sending


async def _websocket(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


class TestOverTLS:
    @pytest.fixture
    def tls(self, authority, certificate):
        certfile, keyfile = certificate
        settings = {"ssl_certfile": certfile, "ssl_keyfile": keyfile}
        return settings, authority.client_context()

    async def test_records_of_one_byte_are_handled_in_limited_numbers(self, serve):
        pieces = []

        async def app(scope, receive, send):
            while True:
                message = await receive()
                pieces.append(message["body"])
                if not message["more_body"]:
                    break
            await respond(send, b"".join(pieces))

        client = serve(app).connect()
        assert isinstance(client, TLSClient)
        await client.handshake()
        body = bytes(range(256)) * 4
        head, _, rest = post(body).partition(b"\r\n\r\n")
        client.tls.write(head + b"\r\n\r\n")
        for at in range(len(rest) - 1):
            client.tls.write(rest[at : at + 1])
        assert (await client.request(rest[-1:])).body == body
        assert max(map(len, pieces)) <= 2 * MOST_RECORDS

    async def test_a_body_that_waits_for_the_application_survives_the_end_of_tls(self, serve):
        """The close_notify is in the same read as data that isn't handled yet."""
        release = asyncio.Event()
        bodies = []

        async def app(scope, receive, send):
            await release.wait()
            bodies.append(len(await read_body(receive)))
            await respond(send, b"")

        client = serve(app).connect()
        body = b"x" * 200_000
        await client.handshake()
        sending = asyncio.ensure_future(client.send(post(body)))
        await turns(100)
        release.set()
        await sending
        client.shutdown()
        await client.rest()
        assert bodies == [len(body)]


# -- what a worker holds ---------------------------------------------------------------------


def deflated(data):
    """The first fragment of a compressed message that never ends."""
    compress = zlib.compressobj(9, zlib.DEFLATED, -12)
    return compress.compress(data) + compress.flush(zlib.Z_SYNC_FLUSH)


@pytest.mark.parametrize("ws", ["websockets", "wsproto"])
async def test_unfinished_compressed_messages_stay_below_the_limit(serve, log, ws):
    """Some are closed with 1013; the others together stay below the limit."""
    most, size = 2_000_000, 900_000
    server = serve(_websocket, ws=ws, ws_max_size=1_000_000, ws_max_buffered=most)
    fragment = frame(BINARY, deflated(bytes(size)), fin=False, rsv=4)
    sockets = [await WebSocket.open(server, b"/", DEFLATE) for _ in range(10)]
    for socket in sockets:
        await socket.client.send(fragment)
    await until(lambda: sum(session.code == 1013 for session in server.service.sockets) == 8)
    assert 0 <= server.service.holdings.left < size
    log.claim("would exceed 2000000 bytes")
    honest = await WebSocket.open(server)
    await honest.send(BINARY, b"x" * 1000)
    await honest.closes()
    for socket in sockets:
        socket.client.close()
    await server.connections(0)
    assert server.service.holdings.left == most


async def test_messages_that_wait_for_the_application_count_too(serve, log):
    """The memory is given back when the application has taken the messages, or has ended."""
    release = asyncio.Event()

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await release.wait()

    server = serve(app, ws_max_size=1_000_000, ws_max_buffered=2_000_000)
    sockets = [await WebSocket.open(server) for _ in range(3)]
    for socket in sockets:
        await socket.send(BINARY, bytes(900_000))
    await until(lambda: sum(session.code == 1013 for session in server.service.sockets) == 1)
    log.claim("would exceed 2000000 bytes")
    for socket in sockets:
        socket.client.close()
    await server.connections(0)
    assert server.service.holdings.left < 1_000_000
    release.set()
    await until(lambda: server.service.holdings.left == 2_000_000)


@pytest.mark.parametrize(
    "begin", [frame(BINARY, b"x", fin=False), frame(BINARY, b"x" * 10)[:-1], frame(9)[:3]]
)
async def test_a_message_that_never_ends_closes_the_websocket(serve, begin):
    server = serve(_websocket, ws_message_timeout=30, ws_ping_interval=0)
    socket = await WebSocket.open(server)
    await socket.client.send(begin)
    await turns(10)
    server.advance(20)
    await socket.client.quiet()
    server.advance(20)
    assert await socket.closing() == (1008, b"a message took too long")


async def test_a_message_that_ends_in_time_is_followed_by_another(serve):
    server = serve(_websocket, ws_message_timeout=30, ws_ping_interval=0)
    socket = await WebSocket.open(server)
    for _ in range(5):
        await socket.client.send(frame(BINARY, b"x", fin=False))
        await turns(10)
        server.advance(20)
        await socket.client.send(frame(CONT, b"x"))
        await turns(10)
        server.advance(20)
    await socket.closes()


async def test_a_message_that_is_not_read_has_more_time(serve):
    """ESG doesn't read from the client because the application is slow; the client isn't to
    blame."""
    release = asyncio.Event()

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await release.wait()
        while (await receive())["type"] != "websocket.disconnect":
            pass

    server = serve(app, ws_message_timeout=30, ws_ping_interval=0, ws_max_queue=1)
    socket = await WebSocket.open(server)
    large = frame(BINARY, bytes(300_000))
    await socket.client.push(large * 2 + large[:-1])
    for _ in range(5):
        server.advance(20)
        await turns(3)
    await socket.client.quiet()
    release.set()
    await socket.client.send(large[-1:])
    await socket.closes()
