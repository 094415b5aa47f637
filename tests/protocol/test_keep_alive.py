"""Connections that stay open, that are closed, and that drain."""

from __future__ import annotations

import asyncio

import pytest

from .apps import Gate, Recorder, echo, echo_path, hello, piece, start
from .wire import chunked, get, post, post_chunked, request, turns, until


async def test_a_connection_serves_many_requests(serve):
    server = serve(echo_path)
    client = server.connect()
    for number in range(200):
        response = await client.request(get(b"/%d" % number))
        assert response.body == b"/%d" % number
        assert b"connection" not in response
    assert len(server.service.connections) == 1


@pytest.mark.parametrize(
    "fields",
    [
        (b"Connection: close",),
        (b"Connection: Close",),
        (b"Connection: keep-alive, close",),
        (b"Connection: close, keep-alive",),
        (b"Connection: TE ,\tclose",),
        (b"Connection: keep-alive", b"Connection: close"),
    ],
)
async def test_the_client_may_close(serve, fields):
    client = serve(hello).connect()
    response = await client.request(get(b"/", *fields))
    assert response.closes
    await client.closed()


@pytest.mark.parametrize(
    "fields",
    [
        (b"Connection: keep-alive",),
        (b"Connection:",),
        (b"Connection: closed",),
        (b"Connection: x-close",),
        (b"Close: close",),
        (b"Keep-Alive: timeout=5",),
        (b"Proxy-Connection: keep-alive",),
    ],
)
async def test_other_connection_options_do_not_close(serve, fields):
    client = serve(hello).connect()
    for _ in range(2):
        assert not (await client.request(get(b"/", *fields))).closes


async def test_proxy_connection_closes_with_an_announcement_or_not_at_all(serve):
    """A field that isn't in any standard, although some parsers obey it."""
    client = serve(hello).connect()
    response = await client.request(get(b"/", b"Proxy-Connection: close"))
    if response.closes:
        await client.closed()
    else:
        assert (await client.request(get())).status == 200


@pytest.mark.parametrize("fields", [(), (b"Connection: close",)])
async def test_http10_closes_unless_asked_not_to(serve, fields):
    client = serve(hello).connect()
    assert (await client.request(get(b"/", *fields, version=b"1.0"))).closes
    await client.closed()


@pytest.mark.parametrize("option", [b"keep-alive", b"Keep-Alive", b"TE, keep-alive"])
async def test_http10_stays_open_with_the_option_keep_alive(serve, option):
    client = serve(hello).connect()
    for _ in range(2):
        response = await client.request(get(b"/", b"Connection: " + option, version=b"1.0"))
        assert response[b"connection"] == b"keep-alive"


async def test_http10_keep_alive_and_close_closes(serve):
    client = serve(hello).connect()
    data = get(b"/", b"Connection: keep-alive, close", version=b"1.0")
    assert (await client.request(data)).closes
    await client.closed()


async def test_versions_may_change_between_requests(serve):
    client = serve(hello).connect()
    keep = b"Connection: keep-alive"
    assert (await client.request(get())).status == 200
    assert (await client.request(get(b"/", keep, version=b"1.0")))[b"connection"] == b"keep-alive"
    assert b"connection" not in await client.request(get())


@pytest.mark.parametrize("between", [b"\r\n", b"\r\n\r\n\r\n"])
async def test_empty_lines_between_requests_are_skipped(serve, between):
    client = serve(hello).connect()
    for _ in range(3):
        assert (await client.request(between + get())).status == 200


# -- draining --------------------------------------------------------------------------


async def test_draining_leaves_an_idle_connection_and_serves_its_next_request(serve):
    """Its next request may already be on its way, and must not be lost."""
    server = serve(hello)
    client = server.connect()
    await client.request(get())
    server.service.draining = True
    server.service.tick()
    await client.quiet()
    response = await client.request(get())
    assert response.body == b"hello"
    assert response.closes
    await client.closed()


async def test_draining_serves_the_first_request_of_a_new_connection(serve):
    server = serve(hello)
    client = server.connect()
    await server.connections(1)
    server.service.draining = True
    assert (await client.request(get())).closes
    await client.closed()


async def test_draining_lets_the_keep_alive_time_end_an_idle_connection(serve):
    server = serve(hello, timeout_keep_alive=5)
    client = server.connect()
    await client.request(get())
    server.service.draining = True
    server.advance(8)
    await client.closed()


async def test_draining_waits_for_a_response_and_closes_after_it(serve):
    gate = Gate()
    server = serve(gate)
    client = server.connect()
    await client.send(get(b"/slow"))
    await until(lambda: gate.paths)
    server.service.draining = True
    gate.open.set()
    response = await client.response()
    assert response.body == b"/slow"
    assert response.closes
    await client.closed()


async def test_draining_answers_every_request_that_was_pipelined(serve):
    gate = Gate()
    server = serve(gate)
    client = server.connect()
    await client.send(b"".join(get(b"/%d" % number) for number in range(5)))
    await until(lambda: gate.paths)
    await turns(10)
    server.service.draining = True
    gate.open.set()
    for number in range(5):
        response = await client.response()
        assert response.body == b"/%d" % number
        assert response.closes == (number == 4)
    await client.closed()


async def test_draining_answers_requests_that_were_not_even_parsed(serve):
    gate = Gate()
    server = serve(gate)
    client = server.connect()
    await client.send(b"".join(get(b"/%d" % number) for number in range(2000)))
    await until(lambda: gate.paths)
    await turns(10)
    server.service.draining = True
    gate.open.set()
    for number in range(2000):
        response = await client.response()
        assert response.body == b"/%d" % number
        if response.closes:
            break
    await client.closed()


async def test_draining_in_the_middle_of_a_stream_closes_after_the_stream(serve):
    release = asyncio.Event()

    async def app(scope, receive, send):
        await start(send)
        await piece(send, b"first")
        await release.wait()
        await piece(send, b"second", more=False)

    server = serve(app, timeout_keep_alive=5)
    client = server.connect()
    await client.send(get())
    await client.head()
    server.service.draining = True
    release.set()
    await client.exactly(b"5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n")
    # The response didn't say "close", so the next request is served, or the timeout ends the
    # connection.
    await client.send(get())
    assert (await client.head()).closes


async def test_draining_reads_an_upload_to_its_end(serve):
    record = Recorder()
    server = serve(record)
    client = server.connect()
    await client.send(request(b"POST", b"/", b"Content-Length: 10") + b"first")
    await until(lambda: record.scopes)
    server.service.draining = True
    await client.send(b"after")
    response = await client.response()
    assert response.body == b"firstafter"
    assert response.closes


async def test_draining_closes_an_http10_connection_after_its_next_response(serve):
    server = serve(hello)
    client = server.connect()
    keep = b"Connection: keep-alive"
    await client.request(get(b"/", keep, version=b"1.0"))
    server.service.draining = True
    assert (await client.request(get(b"/", keep, version=b"1.0"))).closes
    await client.closed()


# -- offers to change the protocol -----------------------------------------------------


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0, foo"])
@pytest.mark.parametrize("option", [b"Upgrade", b"keep-alive, upgrade", b"Upgrade, HTTP2-Settings"])
async def test_an_upgrade_that_is_not_served_is_plain_http(serve, protocol, option):
    record = Recorder()
    client = serve(record, ws="none").connect()
    offer = (b"Connection: " + option, b"Upgrade: " + protocol)
    for _ in range(3):
        response = await client.request(get(b"/a", *offer))
        assert response.status == 200
        assert not response.closes
    assert (await client.request(get(b"/b"))).status == 200
    assert [scope["path"] for scope in record.scopes] == ["/a", "/a", "/a", "/b"]
    assert (b"upgrade", protocol) in record.scopes[0]["headers"]


async def test_pipelined_requests_around_an_upgrade_are_answered(serve):
    client = serve(echo_path).connect()
    offer = (b"Connection: upgrade", b"Upgrade: h2c")
    await client.send(get(b"/1") + get(b"/2", *offer) + get(b"/3") + get(b"/4", *offer))
    for number in range(1, 5):
        assert (await client.response()).body == b"/%d" % number
    await client.quiet()


async def test_the_body_of_an_upgrade_is_received(serve):
    """Some HTTP clients send this with their first request, to switch to HTTP/2."""
    record = Recorder()
    client = serve(record).connect()
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk")
    assert (await client.request(post(b"hello", *offer))).body == b"hello"
    head = request(b"POST", b"/", b"Transfer-Encoding: chunked", *offer)
    assert (await client.request(head + chunked(b"he", b"llo"))).body == b"hello"
    assert (await client.request(get())).body == b""


OFFER = (b"Connection: upgrade", b"Upgrade: h2c")


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_large_body_of_an_upgrade_is_received(serve, framing):
    client = serve(echo).connect()
    body = bytes(range(256)) * 10_000
    if framing == "length":
        data = post(body, *OFFER)
    else:
        data = post_chunked(*[body[at : at + 50_000] for at in range(0, len(body), 50_000)])
        data = data.replace(b"\r\n", b"\r\n" + b"\r\n".join((*OFFER, b"")), 1)
    sending = asyncio.ensure_future(client.send(data + get(b"/next", *OFFER) + data + get()))
    assert (await client.response()).body == body
    assert (await client.response()).body == b""
    assert (await client.response()).body == body
    assert (await client.response()).body == b""
    await sending


async def test_an_upgrade_that_expects_a_continue_gets_one(serve):
    client = serve(echo).connect()
    for _ in range(2):
        fields = (*OFFER, b"Expect: 100-continue", b"Content-Length: 5")
        await client.send(request(b"POST", b"/", *fields))
        await client.exactly(b"HTTP/1.1 100 Continue\r\n\r\n")
        await client.send(b"hello")
        assert (await client.response()).body == b"hello"


async def test_an_upgrade_does_not_lift_the_limit_on_bodies(serve):
    server = serve(echo, limit_request_body=100)
    for data in (post(bytes(101), *OFFER), post_chunked(bytes(60), bytes(60), fields=OFFER)):
        client = server.connect()
        await client.send(data)
        assert (await client.response()).status == 413
        await client.closed()


async def test_an_upgrade_does_not_make_the_parser_lenient(serve):
    server = serve(echo)
    for body in (b"-1\r\nx\r\n", b"1\nx\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\nnonsense\r\n\r\n"):
        client = server.connect()
        await client.send(request(b"POST", b"/", b"Transfer-Encoding: chunked", *OFFER) + body)
        response = await client.response()
        if response.status == 200:
            response = await client.response()
        assert response.status == 400
        await client.closed()


async def test_an_upgrade_in_http10_is_ignored(serve):
    client = serve(echo).connect()
    data = (
        b"POST / HTTP/1.0\r\nContent-Length: 5\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\nhello"
    )
    response = await client.request(data)
    assert response.body == b"hello"
    assert response.closes
    await client.closed()


async def test_an_upgrade_with_the_option_close_closes(serve):
    client = serve(hello).connect()
    response = await client.request(get(b"/", b"Connection: upgrade, close", b"Upgrade: h2c"))
    assert response.closes
    await client.closed()


async def test_an_upgrade_option_or_field_alone_is_ignored(serve):
    client = serve(hello).connect()
    for _ in range(2):
        assert (await client.request(get(b"/", b"Connection: upgrade"))).status == 200
        assert (await client.request(get(b"/", b"Upgrade: h2c"))).status == 200
