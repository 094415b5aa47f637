"""Limits on simultaneous requests and connections, and on a request's time."""

from __future__ import annotations

import asyncio

import pytest

from .apps import Gate, Probe, hello, piece, respond, start
from .wire import Truncated, get, turns, until

# -- requests at once ------------------------------------------------------------------


async def test_a_request_beyond_the_limit_is_refused(serve):
    gate = Gate()
    server = serve(gate, limit_concurrency=2)
    first, second, third = (server.connect() for _ in range(3))
    for client in (first, second):
        await client.send(get(b"/ok"))
    await until(lambda: len(gate.paths) == 2)
    response = await third.request(get(b"/third"))
    assert (response.status, response[b"retry-after"]) == (503, b"1")
    assert response.closes
    await third.closed()
    assert "/third" not in gate.paths
    assert server.service.statuses[5] == 1

    gate.open.set()
    for client in (first, second):
        assert (await client.response()).body == b"/ok"
    assert (await server.connect().request(get(b"/late"))).body == b"/late"


async def test_idle_connections_do_not_count_as_requests(serve):
    server = serve(hello, limit_concurrency=1)
    for _ in range(3):
        client = server.connect()
        assert (await client.request(get())).status == 200
        assert (await client.request(get())).status == 200
    assert len(server.service.connections) == 3


async def test_pipelined_requests_are_counted_one_at_a_time(serve):
    client = serve(hello, limit_concurrency=1).connect()
    await client.send(get() * 5)
    assert [(await client.response()).status for _ in range(5)] == [200] * 5


async def test_limit_concurrency_works_with_max_requests(serve):
    server = serve(hello, limit_concurrency=5, max_requests=3)
    client = server.connect()
    for _ in range(5):
        await client.request(get())
    assert server.dues == [3]


# -- connections at once ---------------------------------------------------------------


async def test_a_connection_beyond_the_limit_waits_until_another_ends(serve):
    server = serve(hello, limit_connections=2)
    first, second, third = (server.connect() for _ in range(3))
    for client in (first, second):
        assert (await client.request(get())).status == 200
    await third.send(get())
    await third.quiet()
    assert len(server.service.connections) == 2
    first.close()
    assert (await third.response()).status == 200
    assert len(server.service.connections) == 2


# -- time for a request ----------------------------------------------------------------


async def inner(event):
    await event.wait()  # this is where it waits


async def test_a_request_that_takes_too_long_is_answered_and_cancelled(serve, log):
    seen = []

    async def app(scope, receive, send):
        try:
            await inner(asyncio.Event())
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    server = serve(app, request_timeout=30)
    client = server.connect()
    await client.send(get(b"/slow"))
    await until(lambda: server.service.running)
    server.advance(29)
    await client.quiet()
    server.advance(2)
    response = await client.response()
    assert response.status == 503
    assert response.closes
    await client.closed()
    await until(lambda: not server.service.running)
    assert seen == ["cancelled"]
    record = log.claim("request timed out (--request-timeout): GET '/slow'")
    assert "this is where it waits" in record
    assert "exchange.py" not in record


@pytest.mark.parametrize("kind", ["task", "generator", "both"])
async def test_the_stack_leads_through_tasks_and_generators(serve, log, kind):
    async def generator():
        await inner(asyncio.Event())
        yield

    async def through():
        async for _ in generator():
            pass

    async def app(scope, receive, send):
        if kind == "generator":
            await through()
        else:
            await asyncio.ensure_future(inner(asyncio.Event()) if kind == "task" else through())

    server = serve(app, request_timeout=30)
    client = server.connect()
    await client.send(get())
    await until(lambda: server.service.running)
    await turns(5)
    server.advance(32)
    assert (await client.response()).status == 503
    assert "this is where it waits" in log.claim("request timed out")
    await until(lambda: not server.service.running)


async def test_a_response_that_had_begun_is_cut(serve, log):
    async def app(scope, receive, send):
        await start(send)
        await piece(send, b"some")
        await inner(asyncio.Event())

    server = serve(app, request_timeout=30)
    client = server.connect()
    await client.send(get())
    await client.head()
    server.advance(32)
    with pytest.raises((Truncated, ConnectionResetError)):
        await client.read(1000)
    log.claim("request timed out")
    await until(lambda: not server.service.running)


async def test_an_application_that_ignores_its_cancellation_is_logged_once(serve, log):
    release = asyncio.Event()

    async def app(scope, receive, send):
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        await respond(send)

    server = serve(app, request_timeout=30)
    client = server.connect()
    await client.send(get())
    await until(lambda: server.service.running)
    for _ in range(3):
        server.advance(32)
    assert (await client.response()).status == 503
    log.claim("request timed out")
    release.set()
    await until(lambda: not server.service.running)
    log.claim("exception in the application")  # it tried to send at the end


async def test_work_after_a_response_is_not_limited_by_the_request_timeout(serve):
    probe = Probe()
    server = serve(probe, request_timeout=30)
    client = server.connect()
    await client.send(get())
    await probe.called.wait()
    await respond(probe.send)
    await client.response()
    server.advance(32)
    await turns(5)
    assert len(server.service.running) == 1
    probe.done.set()
    await until(lambda: not server.service.running)
