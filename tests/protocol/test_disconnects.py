"""Clients that leave, or close one direction, and how applications learn about it."""

from __future__ import annotations

import asyncio

import pytest

from esg.server.asgi.disconnection import ClientDisconnected
from esg.server.http1.connection import SILENCE
from esg.server.state import TICK
from tests.support.futures import cancelled_futures

from .apps import Gate, Probe, echo, hello, piece, read_body, respond, start
from .wire import get, post, request, settled, turns, until


def gone(client, how):
    client.reset() if how == "reset" else client.close()


def test_a_send_to_a_client_that_left_raises_an_oserror():
    """Applications may not rely on more."""
    assert issubclass(ClientDisconnected, OSError)


@pytest.fixture(params=["close", "reset"])
def how(request):
    return request.param


async def test_send_after_the_client_left_raises_oserror(serve, how):
    probe = Probe()
    server = serve(probe)
    client = server.connect()
    await client.send(get())
    await probe.called.wait()
    await start(probe.send)
    gone(client, how)
    with pytest.raises(ClientDisconnected):
        await leave_quietly(probe.send)
    with pytest.raises(ClientDisconnected):
        await piece(probe.send, b"still")
    probe.done.set()


async def test_cancelled_calls_of_receive_take_no_memory(serve):
    """Applications that stream may ask often, and briefly, whether the client has left."""
    probe = Probe()
    server = serve(probe)
    client = server.connect()
    await client.send(get())
    await probe.called.wait()
    await probe.receive()
    before = cancelled_futures()
    for _ in range(50):
        call = asyncio.ensure_future(probe.receive())
        await turns(2)
        call.cancel()
        await asyncio.wait([call])
    del call
    assert cancelled_futures() - before < 5
    await respond(probe.send)
    probe.done.set()
    assert (await client.response()).status == 200


async def test_a_whole_response_to_a_client_that_left_is_ignored(serve):
    """Errors for each client that doesn't wait would only fill the log."""
    probe = Probe()
    server = serve(probe)
    client = server.connect()
    await client.send(get())
    await probe.called.wait()
    client.reset()
    await server.connections(0)
    await respond(probe.send, b"too late")
    probe.done.set()


async def test_a_stream_to_a_client_that_left_raises_oserror(serve):
    """Otherwise the application might never end."""
    probe = Probe()
    server = serve(probe)
    client = server.connect()
    await client.send(get())
    await probe.called.wait()
    client.reset()
    await server.connections(0)
    await start(probe.send)
    with pytest.raises(ClientDisconnected):
        await piece(probe.send, b"too late")
    probe.done.set()


async def test_every_later_receive_reports_the_disconnect(serve):
    probe = Probe()
    server = serve(probe)
    client = server.connect()
    await client.send(get())
    await probe.called.wait()
    client.reset()
    await server.connections(0)
    for _ in range(3):
        assert await probe.receive() == {"type": "http.disconnect"}
    probe.done.set()


async def test_a_body_cut_short_ends_in_a_disconnect(serve, how):
    probe = Probe()
    server = serve(probe)
    client = server.connect()
    await client.send(request(b"POST", b"/", b"Content-Length: 100") + b"begin")
    await probe.called.wait()
    await turns(5)
    gone(client, how)
    await server.connections(0)
    kinds = []
    while not kinds or kinds[-1] != "http.disconnect":
        message = await probe.receive()
        assert message.get("more_body", True)  # a part must never pass for the whole
        kinds.append(message["type"])
    probe.done.set()


async def leave_quietly(send):
    while True:
        await piece(send, bytes(65536))
        await asyncio.sleep(0)


async def leave_in_group(send):
    async with asyncio.TaskGroup() as group:
        group.create_task(leave_quietly(send))
        group.create_task(leave_quietly(send))


async def leave_in_nested_groups(send):
    async with asyncio.TaskGroup() as group:
        group.create_task(leave_in_group(send))


async def leave_with_a_cause(send):
    class StreamBroken(Exception):
        pass

    try:
        await leave_quietly(send)
    except OSError as error:
        raise StreamBroken from error


@pytest.mark.parametrize(
    "leave", [leave_quietly, leave_in_group, leave_in_nested_groups, leave_with_a_cause]
)
async def test_a_client_that_left_is_no_error_in_the_log(serve, log, how, leave):
    async def app(scope, receive, send):
        await start(send)
        await leave(send)

    server = serve(app)
    client = server.connect()
    await client.send(get())
    await client.head()
    gone(client, how)
    await until(lambda: server.service.idle)
    assert log.errors == []


async def test_the_applications_own_error_is_logged_even_if_the_client_left(serve, log):
    async def app(scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass
        raise KeyError("clean-up failed")

    server = serve(app)
    client = server.connect()
    await client.send(get())
    await turns(10)
    client.reset()
    await until(lambda: server.service.idle)
    assert "clean-up failed" in log.claim("exception in the application")


async def test_an_error_in_one_group_with_the_disconnect_is_logged(serve, log):
    async def fail(leaving):
        await asyncio.wait([leaving])
        raise KeyError("and this")

    async def app(scope, receive, send):
        await start(send)
        leaving = asyncio.ensure_future(leave_quietly(send))
        results = await asyncio.gather(leaving, fail(leaving), return_exceptions=True)
        raise BaseExceptionGroup("both", results)

    server = serve(app)
    client = server.connect()
    await client.send(get())
    await client.head()
    client.reset()
    await until(lambda: server.service.idle)
    assert "and this" in log.claim("exception in the application")


async def test_the_application_is_not_cancelled_by_a_disconnect(serve):
    gate = Gate()
    finished = []

    async def app(scope, receive, send):
        try:
            await gate.open.wait()
        finally:
            finished.append(asyncio.current_task().cancelling())

    server = serve(app)
    client = server.connect()
    await client.send(get())
    await until(lambda: server.service.running)
    client.reset()
    await server.connections(0)
    await turns(20)
    assert finished == []
    gate.open.set()
    await until(lambda: server.service.idle)
    assert finished == [0]


# -- half a connection -----------------------------------------------------------------


async def test_a_client_that_only_stops_sending_gets_its_response(serve):
    """As in: printf 'GET / HTTP/1.1...' | nc."""
    client = serve(hello).connect()
    await client.send(get())
    client.shutdown()
    response = await client.response()
    assert response.body == b"hello"
    await client.closed()


async def test_a_half_closed_client_gets_a_response_that_takes_time(serve):
    gate = Gate()
    server = serve(gate)
    client = server.connect()
    await client.send(get(b"/slow"))
    client.shutdown()
    await until(lambda: gate.paths)
    await turns(20)
    gate.open.set()
    response = await client.response()
    assert response.body == b"/slow"
    assert response.closes
    await client.closed()


async def test_a_half_closed_client_gets_a_stream_to_its_end(serve):
    async def app(scope, receive, send):
        await start(send)
        for number in range(100):
            await piece(send, b"%d," % number)
            await asyncio.sleep(0)
        await piece(send, more=False)

    client = serve(app).connect()
    await client.send(get())
    client.shutdown()
    response = await client.response()
    assert response.body.count(b",") == 100
    await client.closed()


async def test_a_half_closed_client_gets_a_stream_that_makes_progress(serve):
    """Even if the response takes a long time, and the application listens for a disconnect."""
    heard, more = [], asyncio.Semaphore(0)

    async def app(scope, receive, send):
        async def listen():
            while (await receive())["type"] != "http.disconnect":
                pass
            heard.append("disconnect")

        listening = asyncio.ensure_future(listen())
        await start(send)
        for _ in range(10):
            await more.acquire()
            await piece(send, b"x")
        await more.acquire()
        await piece(send, more=False)
        await listening

    server = serve(app)
    client = server.connect()
    await client.send(get())
    client.shutdown()
    await client.head()
    await until(lambda: all(connection.ends_soon for connection in server.service.connections))
    for _ in range(10):
        more.release()
        await client.exactly(b"1\r\nx\r\n")
        server.advance(SILENCE + 2 * TICK)
        await turns(3)
        assert heard == []
    more.release()
    await client.exactly(b"0\r\n\r\n")
    await client.closed()


async def test_a_half_closed_client_that_reads_slowly_has_not_left(serve):
    heard = []

    async def app(scope, receive, send):
        async def listen():
            while (await receive())["type"] != "http.disconnect":
                pass
            heard.append("disconnect")

        listening = asyncio.ensure_future(listen())
        await respond(send, bytes(20_000_000))
        await listening

    server = serve(app)
    client = server.connect(receive_buffer=65536)
    await client.send(get())
    client.shutdown()
    await client.head()
    for _ in range(5):
        await client.skip(1_000_000)
        server.advance(SILENCE + 2 * TICK)
        await turns(3)
    assert len(await client.rest()) == 15_000_000


async def test_a_half_closed_client_gets_a_large_body(serve):
    body = bytes(30_000_000)

    async def app(scope, receive, send):
        await respond(send, body)

    server = serve(app)
    client = server.connect(receive_buffer=65536)
    await client.send(get())
    client.shutdown()
    await settled(lambda: len(server.service.running))
    assert len((await client.response()).body) == len(body)
    await client.closed()


async def test_the_body_of_a_half_closed_client_is_read(serve):
    client = serve(echo).connect()
    await client.send(post(b"hello" * 100_000))
    client.shutdown()
    assert (await client.response()).body == b"hello" * 100_000
    await client.closed()


async def test_all_requests_before_the_half_close_are_answered(serve):
    gate = Gate()
    client = serve(gate).connect()
    await client.send(get(b"/1") + get(b"/2") + get(b"/3"))
    client.shutdown()
    await until(lambda: gate.paths)
    gate.open.set()
    for body in (b"/1", b"/2", b"/3"):
        assert (await client.response()).body == body
    await client.closed()


async def test_an_incomplete_request_after_a_complete_one_is_not_served(serve):
    gate = Gate()
    server = serve(gate)
    client = server.connect()
    await client.send(get(b"/1") + request(b"POST", b"/2", b"Content-Length: 10") + b"part")
    client.shutdown()
    await until(lambda: gate.paths)
    gate.open.set()
    assert (await client.response()).body == b"/1"
    await client.rest()
    await server.connections(0)
    assert gate.paths == ["/1"]


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\n"])
async def test_a_client_that_closes_without_a_request_is_disconnected(serve, sent):
    server = serve(hello)
    client = server.connect()
    await server.connections(1)
    if sent:
        await client.send(sent)
    client.shutdown()
    await client.rest()
    await server.connections(0)


async def test_an_idle_client_that_closes_is_disconnected(serve):
    server = serve(hello)
    client = server.connect()
    await client.request(get())
    client.shutdown()
    await client.closed()
    await server.connections(0)


async def test_a_client_that_resets_immediately_leaves_nothing_behind(serve, log):
    server = serve(hello)
    for _ in range(20):
        server.connect().reset()
    client = server.connect()
    assert (await client.request(get())).status == 200
    await server.connections(1)
    assert log.errors == []


async def test_a_reset_during_a_response_leaves_nothing_behind(serve, log):
    async def app(scope, receive, send):
        await respond(send, bytes(20_000_000))

    server = serve(app)
    client = server.connect(receive_buffer=65536)
    await client.send(get() + get())
    await client.head()
    client.reset()
    await server.connections(0)
    await until(lambda: server.service.idle)


async def test_a_request_read_in_full_is_still_there_after_the_client_left(serve):
    """Data from before the disconnect may be lost, but a part must not look complete."""
    probe = Probe()
    server = serve(probe)
    client = server.connect()
    await client.send(post(b"hello"))
    await probe.called.wait()
    await turns(5)
    assert await read_body(probe.receive) == b"hello"
    client.reset()
    assert (await probe.receive())["type"] == "http.disconnect"
    probe.done.set()


# -- an application that never waits ---------------------------------------------------


async def test_an_endless_stream_to_a_client_that_left_does_not_block_others(serve):
    ended = []

    async def app(scope, receive, send):
        if scope["path"] == "/":
            await respond(send)
            return
        await start(send)
        try:
            while True:
                await piece(send, b"x" * 100)
        except OSError as error:
            ended.append(error)
            raise

    server = serve(app)
    leaver = server.connect(receive_buffer=4096)
    await leaver.send(get(b"/stream"))
    await leaver.head()
    leaver.reset()
    await until(lambda: ended)
    assert (await server.connect().request(get(b"/"))).status == 200


# -- applications that end at a disconnect ---------------------------------------------------


async def silence(server):
    """Let enough time pass that a client with a closed sending side counts as gone."""
    await until(lambda: all(connection.ends_soon for connection in server.service.connections))
    server.advance(SILENCE + 2 * TICK)


async def wait_for_disconnect(scope, receive, send):
    while (await receive())["type"] != "http.disconnect":
        pass


async def stream_until_disconnect(scope, receive, send):
    await start(send)
    await piece(send, b"first")
    await wait_for_disconnect(scope, receive, send)


@pytest.mark.parametrize("app", [wait_for_disconnect, stream_until_disconnect])
@pytest.mark.parametrize("how", ["close", "reset", "half"])
async def test_an_application_may_end_when_it_hears_that_the_client_left(serve, app, how):
    server = serve(app)
    client = server.connect()
    await client.send(get())
    await until(lambda: server.service.running)
    await turns(3)
    if how == "half":
        client.shutdown()
    else:
        gone(client, how)
    await silence(server)
    await until(lambda: server.service.idle)
    # The log has no error (the fixture checks), and no request becomes a 500 because of it.
    assert server.service.statuses[5] == 0


async def raise_on_disconnect(scope, receive, send):
    await wait_for_disconnect(scope, receive, send)
    raise ClientDisconnected("as frameworks do")


@pytest.mark.parametrize("how", ["close", "reset", "half"])
async def test_an_application_may_raise_when_it_hears_that_the_client_left(serve, how):
    server = serve(raise_on_disconnect)
    client = server.connect()
    await client.send(get())
    await until(lambda: server.service.running)
    await turns(3)
    if how == "half":
        client.shutdown()
    else:
        gone(client, how)
    await silence(server)
    await until(lambda: server.service.idle)
    assert server.service.statuses[5] == 0
