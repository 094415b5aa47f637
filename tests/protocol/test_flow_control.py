"""A client that reads slowly slows the application down, and memory stays bounded."""

from __future__ import annotations

import asyncio

import pytest

from esg.server.asgi.disconnection import ClientDisconnected
from tests.support.futures import cancelled_futures

from .apps import Disconnected, Probe, piece, read_body, respond, start
from .wire import chunked, get, post_chunked, request, settled, turns, until

MEGABYTE = 1 << 20
SIZE = 100 * MEGABYTE

KERNEL = 24 * MEGABYTE
"""More bytes than the kernel keeps for a loopback connection, at both ends together."""


class Source:
    """Streams SIZE bytes in pieces, and counts what was accepted."""

    def __init__(self, piece_size, known_length):
        self.piece_size = piece_size
        self.headers = [(b"content-length", b"%d" % SIZE)] if known_length else []
        self.accepted = 0
        self.failure = None

    async def __call__(self, scope, receive, send):
        await start(send, headers=self.headers)
        block = bytes(self.piece_size)
        try:
            while self.accepted < SIZE:
                await piece(send, block)
                self.accepted += len(block)
        except OSError as error:
            self.failure = error
            raise
        await piece(send, more=False)


@pytest.mark.parametrize("known_length", [True, False], ids=["length", "chunked"])
@pytest.mark.parametrize("size", [65536, MEGABYTE])
async def test_a_client_that_does_not_read_stops_the_application(serve, size, known_length):
    source = Source(size, known_length)
    server = serve(source)
    client = server.connect(receive_buffer=65536)
    await client.send(get())
    await until(lambda: source.accepted)
    stopped_at = await settled(lambda: source.accepted)
    assert stopped_at < KERNEL

    await client.head()
    if known_length:
        await client.skip(SIZE)
    else:
        framed = len(chunked(bytes(size))) - len(b"0\r\n\r\n")
        await client.skip(SIZE // size * framed)
        await client.exactly(b"0\r\n\r\n")
    assert source.accepted == SIZE


async def test_the_application_continues_as_the_client_reads(serve):
    source = Source(65536, known_length=True)
    client = serve(source).connect(receive_buffer=65536)
    await client.send(get())
    await until(lambda: source.accepted)
    before = await settled(lambda: source.accepted)
    await client.head()
    for _ in range(3):
        await client.skip(8 * MEGABYTE)
        after = await settled(lambda: source.accepted)
        assert before < after <= before + 8 * MEGABYTE + KERNEL
        before = after


async def test_a_blocked_send_fails_when_the_client_goes(serve):
    source = Source(MEGABYTE, known_length=True)
    server = serve(source)
    client = server.connect(receive_buffer=65536)
    await client.send(get())
    await until(lambda: source.accepted)
    await settled(lambda: source.accepted)
    assert source.failure is None
    client.reset()
    await until(lambda: source.failure)
    assert isinstance(source.failure, OSError)
    await until(lambda: server.service.idle)


async def test_a_client_that_reads_nothing_is_disconnected_at_the_limit(serve):
    source = Source(MEGABYTE, known_length=True)
    server = serve(source)
    client = server.connect(receive_buffer=65536)
    await client.send(get())
    await until(lambda: source.accepted)
    await settled(lambda: source.accepted)
    server.advance(55)
    await settled(lambda: source.accepted)
    assert source.failure is None
    for _ in range(8):  # during the first ones, the kernel may still pass bytes on
        server.advance(10)
    await until(lambda: source.failure)
    await server.connections(0)


async def test_a_client_that_reads_slowly_is_waited_for(serve):
    source = Source(MEGABYTE, known_length=True)
    server = serve(source)
    client = server.connect(receive_buffer=65536)
    await client.send(get())
    await until(lambda: source.accepted)
    await client.head()
    for _ in range(5):
        await settled(lambda: source.accepted)
        server.advance(50)
        await client.skip(8 * MEGABYTE)
    assert source.failure is None
    await client.skip(SIZE - 40 * MEGABYTE)


async def test_a_client_that_uploads_without_reading_is_disconnected_at_the_limit(serve):
    """After the end of the upload, the deadline for reading the response must still apply."""
    probe = Probe()
    server = serve(probe)
    client = server.connect(receive_buffer=65536)
    await client.send(request(b"POST", b"/", b"Content-Length: 10") + b"first")
    await probe.called.wait()
    await start(probe.send)
    sending = asyncio.ensure_future(piece(probe.send, bytes(SIZE)))
    await settled(lambda: sending.done())
    assert not sending.done()
    await client.send(b"after")
    assert await read_body(probe.receive) == b"firstafter"
    for _ in range(3):
        server.advance(65)
        await settled(lambda: sending.done())
    await server.connections(0)
    with pytest.raises(ClientDisconnected):
        await piece(probe.send, b"more")
    probe.done.set()


async def test_a_whole_large_body_outlives_the_keep_alive_time(serve):
    """A client that is still reading a response can't have sent the next request."""
    body = bytes(30 * MEGABYTE)

    async def app(scope, receive, send):
        await respond(send, body)

    server = serve(app)
    client = server.connect(receive_buffer=65536)
    await client.send(get())
    await client.head()
    server.advance(10)
    await client.skip(len(body) // 2)
    server.advance(10)
    await client.skip(len(body) // 2)
    await client.send(get())
    await client.head()
    await client.skip(len(body))


async def test_concurrent_sends_all_wait_and_all_go_on(serve):
    done = []

    async def app(scope, receive, send):
        await start(send)

        async def stream():
            for _ in range(10):
                await piece(send, bytes(MEGABYTE))
            done.append(1)

        await asyncio.gather(*(stream() for _ in range(4)))
        await piece(send, more=False)

    client = serve(app).connect(receive_buffer=65536)
    await client.send(get())
    await settled(lambda: len(done))
    assert len(done) < 4
    assert len((await client.response()).body) == 40 * MEGABYTE


async def test_cancelled_calls_of_send_take_no_memory(serve):
    """Applications may give each `send` a time limit while the client reads nothing."""
    probe = Probe()
    client = serve(probe).connect(receive_buffer=65536)
    await client.send(get())
    await probe.called.wait()
    await start(probe.send)
    sending = asyncio.ensure_future(piece(probe.send, bytes(KERNEL)))
    await turns(5)
    assert not sending.done()
    before = cancelled_futures()
    for _ in range(50):
        call = asyncio.ensure_future(piece(probe.send, b""))
        await turns(2)
        call.cancel()
        await asyncio.wait([call])
    del call
    await turns(2)
    assert cancelled_futures() - before < 5
    await client.head()
    await client.skip(KERNEL)
    await sending
    await piece(probe.send, more=False)
    probe.done.set()


async def test_an_upload_that_is_echoed_while_it_arrives_does_not_stall(serve):
    """An upload that is answered while it arrives must not stall."""

    async def app(scope, receive, send):
        await start(send)
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            more = message["more_body"]
            await piece(send, message["body"], more=more)

    client = serve(app).connect(receive_buffer=65536)
    body = bytes(20 * MEGABYTE)
    sending = asyncio.ensure_future(client.send(post_chunked(*[body[:100_000]] * 200)))
    response = await client.response()
    await sending
    assert len(response.body) == 200 * 100_000
