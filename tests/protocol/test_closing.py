"""The end of a connection must not destroy its last response (RFC 9112, section 9.6).

If a socket with unread bytes is closed, the kernel sends a reset, and the client's kernel
discards the data that the client hasn't read yet.
"""

from __future__ import annotations

import asyncio

import pytest

from esg.server.http1.connection import DISCARD_LIMIT

from .apps import hello, piece, respond, start
from .wire import get, post, post_chunked, request, settled, turns, until

MEGABYTE = 1 << 20
LARGE = 5 * MEGABYTE


def body_of(framing):
    return post(bytes(LARGE)) if framing == "length" else post_chunked(*[bytes(65536)] * 80)


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_an_early_response_reaches_a_client_that_is_still_sending(serve, framing):
    """The client reads only after it has sent everything."""
    client = serve(hello).connect()
    await client.send(body_of(framing))
    assert (await client.response()).body == b"hello"


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_413_reaches_a_client_that_is_still_sending(serve, framing):
    client = serve(hello, limit_request_body=1000).connect()
    await client.send(body_of(framing))
    response = await client.response()
    assert response.status == 413
    await client.closed()


async def test_an_early_large_response_reaches_a_client_that_is_still_sending(serve):
    body = bytes(LARGE)

    async def app(scope, receive, send):
        await respond(send, body, 403)

    client = serve(app).connect()
    sending = asyncio.ensure_future(client.send(post(bytes(LARGE))))
    response = await client.response()
    assert (response.status, len(response.body)) == (403, LARGE)
    await sending


async def test_a_500_reaches_a_client_that_is_still_sending(serve, log):
    async def app(scope, receive, send):
        raise ValueError

    client = serve(app).connect()
    await client.send(post(bytes(LARGE)))
    assert (await client.response()).status == 500
    await client.closed()
    log.claim("exception in the application")


async def test_a_response_that_closes_reaches_a_client_that_continues_to_send(serve):
    client = serve(hello).connect()
    await client.send(get(b"/", b"Connection: close") + bytes(LARGE))
    response = await client.response()
    assert response.body == b"hello"
    await client.closed()


async def test_a_large_response_that_closes_arrives_whole(serve):
    body = bytes(30 * MEGABYTE)

    async def app(scope, receive, send):
        await respond(send, body)

    server = serve(app)
    client = server.connect(receive_buffer=65536)
    await client.send(get(b"/", b"Connection: close"))
    assert len((await client.response()).body) == len(body)
    await client.closed()


async def test_a_large_response_ended_by_the_close_arrives_whole(serve):
    async def app(scope, receive, send):
        await start(send)
        for _ in range(30):
            await piece(send, bytes(MEGABYTE))
        await piece(send, more=False)

    client = serve(app).connect(receive_buffer=65536)
    await client.send(b"GET / HTTP/1.0\r\n\r\n")
    assert len((await client.response()).body) == 30 * MEGABYTE


async def test_a_slow_reader_of_the_last_response_is_waited_for(serve):
    body = bytes(30 * MEGABYTE)

    async def app(scope, receive, send):
        await respond(send, body)

    server = serve(app)
    client = server.connect(receive_buffer=65536)
    await client.send(get(b"/", b"Connection: close"))
    await client.head()
    for _ in range(10):
        await client.skip(3 * MEGABYTE)
        await settled(lambda: len(server.service.connections))
        server.advance(30)
    await client.closed()


async def test_a_last_response_that_the_client_does_not_read_is_dropped(serve):
    async def app(scope, receive, send):
        await respond(send, bytes(30 * MEGABYTE))

    server = serve(app)
    client = server.connect(receive_buffer=65536)
    await client.send(get(b"/", b"Connection: close"))
    await client.head()
    for _ in range(4):
        await settled(lambda: len(server.service.connections))
        server.advance(65)
    await server.connections(0)


async def test_the_server_closes_its_side_immediately(serve):
    """A client that reads to the end must not have to wait for the linger time."""
    client = serve(hello).connect()
    await client.request(get(b"/", b"Connection: close"))
    await client.closed()


async def test_the_connection_is_over_when_the_client_closes_too(serve):
    server = serve(hello)
    client = server.connect()
    await client.request(get(b"/", b"Connection: close"))
    await client.closed()
    client.close()
    await server.connections(0)


async def test_a_connection_that_will_end_is_announced(serve):
    """Without the field, the client would send its next request on a closing connection."""
    client = serve(hello).connect()
    await client.send(request(b"POST", b"/", b"Content-Length: %d" % LARGE) + bytes(1000))
    response = await client.response()
    if not response.closes:
        await client.send(bytes(LARGE - 1000))
        response = await client.request(get())
        assert response.body == b"hello"
    else:
        await client.closed()


async def test_a_small_unread_rest_of_a_body_is_read_and_the_connection_stays_open(serve):
    client = serve(hello).connect()
    await client.send(request(b"POST", b"/", b"Content-Length: 10000") + bytes(1000))
    response = await client.response()
    assert not response.closes
    await client.send(bytes(9000) + get())
    assert (await client.response()).body == b"hello"


async def refuse_in_pieces(scope, receive, send):
    """Like every response behind Starlette's BaseHTTPMiddleware."""
    if scope["method"] == "GET":
        await respond(send)
        return
    await start(send, 413, [(b"content-length", b"2")])
    await piece(send, b"no")
    await piece(send, more=False)


async def refuse_while_reading(scope, receive, send):
    """Like Quart."""

    async def read():
        while (await receive())["type"] == "http.request":
            pass

    reading = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    await refuse_in_pieces(scope, receive, send)
    reading.cancel()


@pytest.mark.parametrize("app", [refuse_in_pieces, refuse_while_reading])
@pytest.mark.parametrize("size", [100_000, 300_000, 2_000_000])
async def test_an_early_response_in_pieces_announces_the_end_of_the_connection(serve, app, size):
    server = serve(app)
    client = server.connect()
    await client.send(request(b"POST", b"/", b"Content-Length: %d" % size))
    response = await client.response()
    assert (response.status, response.body) == (413, b"no")
    await client.push(bytes(size))
    if response.closes:
        assert size > DISCARD_LIMIT
        await client.closed()
    else:
        assert (await client.request(get())).body == b"hello"


@pytest.mark.parametrize("app", [hello, refuse_in_pieces, refuse_while_reading])
async def test_a_chunked_body_is_read_further_after_an_early_response(serve, app):
    """Its size isn't known, so the response can't say that it is too large."""
    client = serve(app).connect()
    await client.send(request(b"POST", b"/", b"Transfer-Encoding: chunked"))
    assert not (await client.response()).closes
    await client.send((b"10000\r\n" + bytes(65536) + b"\r\n") * 20 + b"0\r\n\r\n")
    assert (await client.request(get())).body == b"hello"


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_slow_upload_is_dropped_for_a_while_so_that_its_413_arrives(serve, framing):
    """A reset would destroy the response, because this client reads it at the end."""
    server = serve(hello, limit_request_body=1000)
    client = server.connect()
    if framing == "length":
        head, data = request(b"POST", b"/", b"Content-Length: 1000000"), bytes(10_000)
    else:
        head = request(b"POST", b"/", b"Transfer-Encoding: chunked")
        data = b"2710\r\n" + bytes(10_000) + b"\r\n"
    await client.send(head)
    for _ in range(7):
        await client.send(data)
        await turns(20)
        server.advance(4)
    response = await client.response()
    assert response.status == 413
    assert response.closes
    await client.closed()
    await server.connections(1)
    for _ in range(3):
        server.advance(4)
        await turns(3)
    await server.connections(0)


async def test_an_endless_unwanted_body_is_not_read_forever(serve):
    server = serve(hello)
    client = server.connect()
    await client.send(request(b"POST", b"/", b"Transfer-Encoding: chunked"))
    assert (await client.response()).body == b"hello"
    for _ in range(25):
        await client.push((b"10000\r\n" + bytes(65536) + b"\r\n") * 8)
        await turns(10)
        server.advance(2)
    await server.connections(0)


async def test_a_connection_closed_while_requests_wait_drops_them_quietly(serve, log):
    release = asyncio.Event()
    calls = []

    async def app(scope, receive, send):
        calls.append(scope["path"])
        await release.wait()
        await respond(send, headers=[(b"connection", b"close")])

    server = serve(app)
    client = server.connect()
    await client.send(get(b"/1") + get(b"/2") * 5000)
    await until(lambda: calls)
    await turns(20)
    release.set()
    assert (await client.response()).body == b"hello"
    await client.closed()
    await server.connections(1)
    for _ in range(2):
        await turns(20)
        server.advance(6)
    await server.connections(0)
    assert calls == ["/1"]
    assert log.errors == []
