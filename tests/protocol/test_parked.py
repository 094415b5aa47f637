"""Idle connections, of which the server keeps little until the next request."""

from __future__ import annotations

import pytest

from esg.server.http1.connection import Connection
from esg.server.http1.parked import Parked
from esg.server.state import PARK_AFTER, TICK

from .apps import Recorder, echo_path, hello
from .wire import get, post, turns
from .ws_client import offer

KEEP_ALIVE = 60
IDLE = PARK_AFTER + 2 * TICK
"""Seconds after which an idle connection is parked at the latest."""


def kinds(server):
    return [type(connection) for connection in server.service.connections]


async def parked(server, data=b""):
    """A client whose connection is parked after its first request."""
    client = server.connect()
    await client.request(data or get())
    server.advance(IDLE)
    assert kinds(server) == [Parked]
    return client


async def test_an_idle_connection_is_parked_and_serves_further_requests(serve):
    app = Recorder()
    server = serve(app, timeout_keep_alive=KEEP_ALIVE)
    client = await parked(server)
    for number in range(3):
        body = b"%d" % number
        assert (await client.request(post(body))).body == body
        assert kinds(server) == [Connection]
        server.advance(IDLE)
        assert kinds(server) == [Parked]
    first, *others = [
        {key: scope[key] for key in ("client", "server", "scheme", "extensions", "root_path")}
        for scope in app.scopes
    ]
    assert first["client"] is not None
    assert others == [first] * 3


async def test_a_busy_connection_is_not_parked(serve):
    server = serve(hello, timeout_keep_alive=KEEP_ALIVE)
    client = server.connect()
    for _ in range(4):
        await client.request(get())
        server.advance(PARK_AFTER / 2)
        assert kinds(server) == [Connection]


async def test_a_request_that_has_begun_to_arrive_is_not_dropped(serve):
    server = serve(echo_path, timeout_keep_alive=KEEP_ALIVE)
    client = server.connect()
    await client.request(get())
    head = get(b"/late")
    await client.send(head[:7])
    await turns(10)
    server.advance(IDLE)
    assert kinds(server) == [Connection]
    await client.send(head[7:])
    assert (await client.response()).body == b"/late"


@pytest.mark.parametrize("begun", [b"G", b"GET", b"GET "])
async def test_a_request_that_begins_in_the_same_piece_as_the_one_before_is_not_dropped(
    serve, begun
):
    server = serve(echo_path, timeout_keep_alive=KEEP_ALIVE)
    client = server.connect()
    await client.send(get(b"/early") + begun)
    assert (await client.response()).body == b"/early"
    server.advance(IDLE)
    assert kinds(server) == [Connection]
    await client.send(get(b"/late").removeprefix(begun))
    assert (await client.response()).body == b"/late"


async def test_a_method_is_not_taken_for_the_end_of_another(serve):
    """LOCK and UNLOCK are methods."""
    app = Recorder()
    server = serve(app, timeout_keep_alive=KEEP_ALIVE)
    client = server.connect()
    await client.request(get() + b"UN")
    server.advance(IDLE)
    await client.request(b"LOCK / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert [scope["method"] for scope in app.scopes] == ["GET", "UNLOCK"]


async def test_requests_sent_ahead_to_a_parked_connection_are_answered_in_order(serve):
    server = serve(echo_path, timeout_keep_alive=KEEP_ALIVE)
    client = await parked(server)
    await client.send(get(b"/1") + get(b"/2") + get(b"/3"))
    assert [(await client.response()).body for _ in range(3)] == [b"/1", b"/2", b"/3"]


async def test_a_parked_connection_is_closed_at_the_end_of_its_keep_alive_time(serve):
    server = serve(hello, timeout_keep_alive=KEEP_ALIVE)
    client = await parked(server)
    server.advance(KEEP_ALIVE - IDLE - 1)
    await client.quiet()
    assert kinds(server) == [Parked]
    server.advance(3 * TICK)
    await client.closed()


async def test_without_more_keep_alive_time_nothing_is_parked(serve):
    server = serve(hello, timeout_keep_alive=PARK_AFTER)
    client = server.connect()
    await client.request(get())
    server.advance(IDLE)
    await client.closed()


async def test_a_head_that_follows_too_slowly_is_refused(serve):
    server = serve(hello, timeout_keep_alive=KEEP_ALIVE, timeout_request_header=5)
    client = await parked(server)
    await client.send(get()[:9])
    await turns(10)
    server.advance(5 + 2 * TICK)
    assert (await client.response()).status == 408


async def test_a_client_may_leave_while_its_connection_is_parked(serve):
    server = serve(hello, timeout_keep_alive=KEEP_ALIVE)
    client = await parked(server)
    client.close()
    await server.connections(0)
    assert server.service.load == 0


async def test_a_client_may_end_its_output_while_its_connection_is_parked(serve):
    server = serve(hello, timeout_keep_alive=KEEP_ALIVE)
    client = await parked(server)
    client.shutdown()
    await client.closed()
    assert server.service.load == 0


async def test_a_drain_closes_parked_connections(serve):
    server = serve(hello, timeout_keep_alive=KEEP_ALIVE)
    client = await parked(server)
    (connection,) = server.service.connections
    connection.close()
    await client.closed()
    client.close()
    await server.connections(0)


async def test_connections_that_were_idle_for_long_enough_can_be_closed(serve):
    server = serve(hello, timeout_keep_alive=KEEP_ALIVE)
    clients = [await parked(server)]
    clients += [server.connect() for _ in range(2)]
    for client in clients[1:]:
        await client.request(get())
    server.advance(1)
    now = server.service.now
    for connection in list(server.service.connections):
        connection.close_if_idle(now - 3)
    await clients[0].closed()
    await clients[1].quiet()
    for connection in list(server.service.connections):
        connection.close_if_idle(now)
    await clients[1].closed()
    await clients[2].closed()


async def test_a_parked_connection_can_become_a_websocket(serve):
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await hello(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.accept"})

    server = serve(app, timeout_keep_alive=KEEP_ALIVE)
    client = await parked(server)
    await client.send(offer())
    assert (await client._read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
