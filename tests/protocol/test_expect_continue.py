"""`Expect: 100-continue` (RFC 9110, section 10.1.1)."""

from __future__ import annotations

import asyncio

import pytest

from .apps import Probe, echo, hello, piece, read_body, respond, start
from .wire import chunked, get, request, turns

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
EXPECT = b"Expect: 100-continue"


def expecting(*fields, version=b"1.1", expect=EXPECT):
    return request(b"POST", b"/", *(fields or (b"Content-Length: 5",)), expect, version=version)


async def test_the_first_receive_asks_for_the_body(serve):
    probe = Probe()
    client = serve(probe).connect()
    await client.send(expecting())
    await probe.called.wait()
    await client.quiet()
    body = asyncio.ensure_future(read_body(probe.receive))
    await client.exactly(CONTINUE)
    await client.send(b"hello")
    assert await body == b"hello"
    await respond(probe.send)
    probe.done.set()
    assert not (await client.response()).closes


async def test_the_body_is_requested_once(serve):
    probe = Probe()
    client = serve(probe).connect()
    await client.send(expecting())
    await probe.called.wait()
    receivers = [asyncio.ensure_future(probe.receive()) for _ in range(2)]
    await client.exactly(CONTINUE)
    await client.send(b"he")
    await turns(10)
    await client.send(b"llo")
    await asyncio.gather(*receivers)
    await respond(probe.send)
    probe.done.set()
    assert (await client.response()).status == 200


@pytest.mark.parametrize("value", [b"100-Continue", b"100-CONTINUE"])
async def test_the_expectation_is_case_insensitive(serve, value):
    client = serve(echo).connect()
    await client.send(expecting(expect=b"Expect: " + value))
    await client.exactly(CONTINUE)
    await client.send(b"hello")
    assert (await client.response()).body == b"hello"


async def test_a_chunked_body_is_asked_for_too(serve):
    client = serve(echo).connect()
    await client.send(expecting(b"Transfer-Encoding: chunked"))
    await client.exactly(CONTINUE)
    await client.send(chunked(b"hello"))
    assert (await client.response()).body == b"hello"


async def test_the_connection_stays_open(serve):
    client = serve(echo).connect()
    for _ in range(3):
        await client.send(expecting())
        await client.exactly(CONTINUE)
        await client.send(b"hello")
        response = await client.response()
        assert response.body == b"hello"
        assert not response.closes


async def test_http10_never_gets_a_continue(serve):
    client = serve(echo).connect()
    await client.send(expecting(version=b"1.0"))
    await client.quiet()
    await client.send(b"hello")
    assert (await client.response()).body == b"hello"


async def test_a_request_without_a_body_gets_no_continue(serve):
    client = serve(echo).connect()
    response = await client.request(get(b"/", EXPECT))
    assert response.body == b""
    assert not response.closes
    response = await client.request(expecting(b"Content-Length: 0"))
    assert response.body == b""


async def test_no_continue_is_sent_if_the_body_has_already_arrived(serve):
    client = serve(echo).connect()
    response = await client.request(expecting() + b"hello")
    assert response.body == b"hello"
    assert (await client.request(expecting() + b"again")).body == b"again"


async def test_other_expectations_are_ignored(serve):
    client = serve(echo).connect()
    data = expecting(expect=b"Expect: something=else") + b"hello"
    assert (await client.request(data)).body == b"hello"


async def test_a_final_response_without_reading_closes(serve):
    """The client may send the body or not, so it isn't known what the next bytes are."""
    client = serve(hello).connect()
    await client.send(expecting())
    response = await client.response()
    assert response.closes
    await client.closed()


async def test_a_body_sent_after_the_final_response_is_not_parsed_as_a_request(serve):
    calls = 0

    async def app(scope, receive, send):
        nonlocal calls
        calls += 1
        await respond(send, status=403)

    client = serve(app).connect()
    body = get(b"/smuggled")
    await client.send(expecting(b"Content-Length: %d" % len(body)))
    assert (await client.response()).status == 403
    await client.send(body)
    await client.closed()
    assert calls == 1


async def test_a_stream_that_began_without_reading_closes(serve):
    async def app(scope, receive, send):
        await start(send)
        await piece(send, b"x")
        await piece(send, more=False)

    client = serve(app).connect()
    await client.send(expecting())
    assert (await client.response()).closes
    await client.closed()


async def test_no_continue_inside_a_final_response(serve):
    async def app(scope, receive, send):
        await start(send)
        await piece(send, b"x")
        await turns(5)
        reading = asyncio.ensure_future(read_body(receive))
        await turns(5)
        await piece(send, b"y", more=False)
        await asyncio.wait([reading])
        assert reading.exception()

    client = serve(app).connect()
    await client.send(expecting())
    response = await client.response()
    assert response.body == b"xy"
    await client.closed()


async def test_after_another_request_the_continue_waits_its_turn(serve):
    release = asyncio.Event()

    async def app(scope, receive, send):
        if scope["method"] == "GET":
            await release.wait()
            await respond(send, b"first")
        else:
            await echo(scope, receive, send)

    client = serve(app).connect()
    await client.send(get() + expecting())
    await client.quiet()
    release.set()
    assert (await client.response()).body == b"first"
    await client.exactly(CONTINUE)
    await client.send(b"hello")
    assert (await client.response()).body == b"hello"
