"""Requests that are sent before the previous response has arrived (RFC 9112, section 9.3.2)."""

from __future__ import annotations

import gc

import pytest

from .apps import Gate, Recorder, echo, echo_path, respond
from .wire import get, post, post_chunked, turns, until

MANY = 4_000

FEW = 1_000
"""More requests than a server should keep before it can answer them."""


def parsed_requests() -> int:
    """The number of requests in this process's memory, by their scopes."""
    return sum(type(thing) is dict and thing.get("type") == "http" for thing in gc.get_objects())


async def test_requests_in_one_write_are_answered_in_order(serve):
    client = serve(echo_path).connect()
    await client.send(b"".join(get(b"/%d" % number) for number in range(50)))
    for number in range(50):
        response = await client.response()
        assert response.body == b"/%d" % number
        assert not response.closes
    await client.quiet()


async def test_bodies_stay_with_their_requests(serve):
    client = serve(echo).connect()
    await client.send(post(b"one") + post_chunked(b"t", b"wo") + get() + post(b"four"))
    for body in (b"one", b"two", b"", b"four"):
        assert (await client.response()).body == body


async def test_requests_of_a_connection_are_served_one_at_a_time(serve):
    gate = Gate()
    client = serve(gate).connect()
    await client.send(get(b"/1") + get(b"/2"))
    await until(lambda: gate.paths)
    await turns(20)
    assert gate.paths == ["/1"]
    gate.open.set()
    assert (await client.response()).body == b"/1"
    assert (await client.response()).body == b"/2"


async def test_a_request_that_comes_while_another_is_served_waits_its_turn(serve):
    gate = Gate()
    client = serve(gate).connect()
    await client.send(get(b"/1"))
    await until(lambda: gate.paths)
    await client.send(get(b"/2"))
    await client.send(get(b"/3"))
    gate.open.set()
    assert [(await client.response()).body for _ in range(3)] == [b"/1", b"/2", b"/3"]


async def test_few_requests_are_parsed_ahead_while_one_is_served(serve):
    gate = Gate()
    client = serve(gate).connect()
    before = parsed_requests()
    data = b"".join(get(b"/%d" % number) for number in range(MANY))
    assert await client.push(data) == len(data)
    await turns(50)
    assert parsed_requests() - before < FEW
    assert gate.paths == ["/0"]

    gate.open.set()
    for number in range(MANY):
        assert (await client.response()).body == b"/%d" % number
    await client.quiet()


async def test_a_client_that_goes_on_sending_requests_is_stopped(serve):
    gate = Gate()
    client = serve(gate).connect()
    padding = b"X-Padding: " + b"x" * 5000
    data = b"".join(get(b"/%d" % number, padding) for number in range(MANY))
    sent = await client.push(data)
    assert sent < len(data) // 2

    gate.open.set()
    for number in range(MANY):
        if sent < len(data):
            sent += await client.push(data[sent : sent + 20_000])
        response = await client.response()
        assert response.body == b"/%d" % number
    await client.quiet()


@pytest.mark.parametrize("first", [b"Connection: close", b"connection: TE, Close"])
async def test_no_request_after_one_that_closes_is_served(serve, first):
    record = Recorder()
    client = serve(record).connect()
    await client.send(get(b"/1", first) + get(b"/2"))
    assert (await client.response()).closes
    await client.closed()
    assert record.calls == 1


async def test_no_request_after_a_response_that_closes_is_served(serve):
    paths = []

    async def app(scope, receive, send):
        paths.append(scope["path"])
        await respond(send, headers=[(b"connection", b"close")])

    client = serve(app).connect()
    await client.send(get(b"/1") + get(b"/2"))
    assert (await client.response()).closes
    await client.closed()
    assert paths == ["/1"]


async def test_waiting_requests_are_dropped_with_their_client(serve):
    gate = Gate()
    server = serve(gate)
    client = server.connect()
    await client.send(get(b"/1") + get(b"/2") + get(b"/3"))
    await until(lambda: gate.paths)
    client.reset()
    await server.connections(0)
    gate.open.set()
    await until(lambda: server.service.idle)
    await turns(20)
    assert gate.paths == ["/1"]


async def test_a_slow_reader_of_many_responses_is_waited_for(serve):
    """Responses that the client doesn't read must not pile up in memory either."""
    body = b"x" * 100_000
    calls = 0

    async def app(scope, receive, send):
        nonlocal calls
        calls += 1
        await respond(send, body)

    client = serve(app).connect(receive_buffer=65536)
    await client.send(get() * 500)
    await turns(300)
    assert calls < 300
    for _ in range(500):
        assert len((await client.response()).body) == len(body)
    assert calls == 500


async def test_a_pipeline_that_ends_with_the_clients_end_is_answered_in_full(serve):
    client = serve(echo_path).connect()
    await client.send(b"".join(get(b"/%d" % number) for number in range(100)))
    client.shutdown()
    for number in range(100):
        assert (await client.response()).body == b"/%d" % number
    await client.closed()


async def test_a_long_pipeline_has_no_deep_stack(serve):
    """Calls of applications that never wait must not be nested in each other."""
    client = serve(echo_path).connect()
    upgrade = (b"Connection: upgrade", b"Upgrade: h2c")
    await client.send(b"".join(get(b"/%d" % number, *upgrade) for number in range(2_000)))
    for number in range(2_000):
        assert (await client.response()).body == b"/%d" % number


def finish_at_once(coroutine):
    """Run an application that never waits, as an eager task does (Python 3.12 and later)."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


@pytest.mark.parametrize("size", [40, 700, 900, 940, 950, 960, 980, 1000, 5000])
async def test_pipelined_requests_that_finish_immediately_are_all_answered(serve, size):
    """With request sizes that leave as many queued as a server may keep, or one fewer."""
    server = serve(echo_path)
    server.service.start = finish_at_once
    client = server.connect()
    padding = b"X: " + b"x" * (size - 40)
    await client.send(b"".join(get(b"/%d" % number, padding) for number in range(60)))
    for number in range(60):
        assert (await client.response()).body == b"/%d" % number
    assert (await client.request(get(b"/last"))).body == b"/last"
