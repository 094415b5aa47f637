"""WebSockets as applications and clients see them, with each library and each parser."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import zlib

import pytest

from esg.server.asgi.disconnection import ClientDisconnected
from esg.server.transports import unsent
from esg.server.websocket.limits import FRAME_OVERHEAD
from tests.support.futures import cancelled_futures

from .apps import Gate, Probe, hello
from .wire import get, settled, turns, until
from .ws_client import (
    ACCEPT,
    BINARY,
    CLOSE,
    CONT,
    DEFLATE,
    KEY,
    LIBRARIES,
    OFFER,
    PING,
    PONG,
    TEXT,
    WebSocket,
    close_payload,
    frame,
    offer,
)


@pytest.fixture(params=LIBRARIES)
def parser_settings(request):
    """With each library, over each parser."""
    return request.param


FRAGMENTS = frame(TEXT, fin=False) + frame(CONT, b"x")


class Echo:
    """Sends each message back; `seen` has all received events."""

    def __init__(self, **accept):
        self.accept = accept
        self.scope = None
        self.seen = []

    async def __call__(self, scope, receive, send):
        self.scope = scope
        while True:
            message = await receive()
            self.seen.append(message)
            kind = message.pop("type")
            if kind == "websocket.connect":
                await send({"type": "websocket.accept", **self.accept})
            elif kind == "websocket.receive":
                await send({"type": "websocket.send", **message})
            else:
                return


class Accepted(Probe):
    """Accepts, and leaves the rest to the test."""

    async def __call__(self, scope, receive, send):
        assert await receive() == {"type": "websocket.connect"}
        await send({"type": "websocket.accept"})
        await super().__call__(scope, receive, send)


async def probe(serve, **settings):
    """A server, a WebSocket on it, and the application's side of the WebSocket."""
    app = Accepted()
    server = serve(app, **settings)
    socket = await WebSocket.open(server)
    await app.called.wait()
    return server, socket, app


MUCH = 20_000_000
"""The size of a message that is too large for any socket buffer."""


async def stuck(serve, **settings):
    """Like `probe`, with a client that reads nothing yet, while a message of `MUCH` is being
    sent."""
    app = Accepted()
    server = serve(app, **settings)
    socket = await WebSocket.open(server, receive_buffer=4096)
    await app.called.wait()
    sending = asyncio.ensure_future(app.send({"type": "websocket.send", "bytes": b"x" * MUCH}))
    await turns(20)
    return server, socket, app, sending


def disconnected(code, reason=""):
    return {"type": "websocket.disconnect", "code": code, "reason": reason}


# -- the handshake ---------------------------------------------------------------------


async def test_messages_go_both_ways(serve):
    echo = Echo()
    socket = await WebSocket.open(serve(echo))
    await socket.echoes(TEXT, "h\u00e9llo".encode())
    await socket.echoes(BINARY, b"\x00\xff")
    await socket.closes(1000, b"bye")
    assert echo.seen == [
        {},
        {"text": "h\u00e9llo"},
        {"bytes": b"\x00\xff"},
        {"code": 1000, "reason": "bye"},
    ]


async def test_the_scope_has_every_field(serve):
    echo = Echo()
    server = serve(echo, root_path="/root")
    server.service.state = {"shared": 1}
    fields = (b"Sec-WebSocket-Protocol: one, two", b"Sec-WebSocket-Protocol:three", b"X-A: \xe9")
    socket = await WebSocket.open(server, b"/a%20b?c=%20", *fields)
    scope = echo.scope
    assert scope["type"] == "websocket"
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.4"}
    assert scope["http_version"] == "1.1"
    assert scope["scheme"] == "ws"
    assert "method" not in scope
    assert (scope["path"], scope["raw_path"]) == ("/root/a b", b"/root/a%20b")
    assert (scope["query_string"], scope["root_path"]) == (b"c=%20", "/root")
    assert scope["subprotocols"] == ["one", "two", "three"]
    assert (b"x-a", b"\xe9") in scope["headers"]
    assert (b"sec-websocket-key", KEY) in scope["headers"]
    assert scope["client"] == socket.client.sock.getsockname()
    assert scope["server"] == server.address
    assert scope["extensions"] == {"websocket.http.response": {}}
    assert scope["state"] == {"shared": 1}
    assert scope["state"] is not server.service.state


async def test_the_scope_behind_a_proxy_names_the_client(serve):
    echo = Echo()
    fields = (b"X-Forwarded-For: 192.0.2.7", b"X-Forwarded-Proto: wss")
    await WebSocket.open(serve(echo), b"/", *fields)
    assert (echo.scope["scheme"], echo.scope["client"]) == ("wss", ("192.0.2.7", 0))


async def test_the_accepting_response_has_the_subprotocol_and_fields(serve):
    echo = Echo(subprotocol="two", headers=[(b"x-b", b"1"), (b"X-b", b"\xe9")])
    socket = await WebSocket.open(serve(echo), b"/", b"Sec-WebSocket-Protocol: one, two")
    assert socket.response[b"sec-websocket-protocol"] == b"two"
    assert socket.response.all(b"x-b") == [b"1", b"\xe9"]
    assert socket.response[b"server"] == b"esg"
    assert b"sec-websocket-extensions" not in socket.response


@pytest.mark.parametrize("subprotocol", ["three", "", "one, two"])
async def test_a_subprotocol_that_was_not_offered_is_left_out(serve, log, subprotocol):
    echo = Echo(subprotocol=subprotocol)
    socket = await WebSocket.open(serve(echo), b"/", b"Sec-WebSocket-Protocol: one, two")
    assert b"sec-websocket-protocol" not in socket.response
    log.claim(f"without the subprotocol {subprotocol!r}, since the client offered ['one', 'two']")
    await socket.echoes(TEXT, b"x")


@pytest.mark.parametrize(
    "headers",
    [
        [(b"x", b"a\r\nb")],
        [(b"sec-websocket-protocol", b"one")],
        [(b"Sec-WebSocket-Accept", b"x")],
        [(b"upgrade", b"x")],
    ],
)
async def test_fields_that_cannot_be_sent_are_a_500(serve, log, headers):
    client = serve(Echo(headers=headers)).connect()
    assert (await client.request(offer())).status == 500
    log.claim("exception in the application: WebSocket '/'")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ((b"Version: 13", b"Version: 12"), 426),
        ((b"Sec-WebSocket-Version: 13\r\n", b""), 426),
        ((b"Sec-WebSocket-Key: " + KEY + b"\r\n", b""), 400),
        ((KEY, b"short"), 400),
        ((KEY, b"c2l4dGVlbiBieXRlcyBv"), 400),
        ((b"\r\n\r\n", b"\r\nSec-WebSocket-Key: " + KEY + b"\r\n\r\n"), 400),
    ],
)
async def test_an_invalid_handshake_is_refused(serve, change, status):
    gate = Gate()
    client = serve(gate).connect()
    response = await client.request(offer().replace(*change))
    assert response.status == status
    assert response.all(b"connection") == [b"upgrade"] * (status == 426) + [b"close"]
    assert status != 426 or response[b"sec-websocket-version"] == b"13"
    await client.closed()
    assert gate.paths == []


@pytest.mark.parametrize(
    "data",
    [
        offer().replace(b"GET", b"POST"),
        offer().replace(b"Upgrade: websocket", b"Upgrade: h2c"),
        offer().replace(b"keep-alive, Upgrade", b"keep-alive"),
        offer(b"/", b"Content-Length: 2") + b"xx",
    ],
)
async def test_other_upgrades_are_plain_http(serve, data):
    assert (await serve(hello).connect().request(data)).body == b"hello"


def offer10(*fields):
    """nginx sends this without `proxy_http_version 1.1;`."""
    return get(b"/", *OFFER, *fields, version=b"1.0").replace(b"keep-alive, Upgrade", b"upgrade")


async def test_a_websocket_over_http10_is_served_with_a_warning(serve, log):
    echo = Echo()
    server = serve(echo)
    for _ in range(3):
        client = server.connect()
        await client.send(offer10())
        await (await WebSocket.opened(client)).echoes(TEXT, b"x")
    assert log.claim("requested over HTTP/1.0").endswith(
        "set `proxy_http_version 1.1;` in its location"
    )
    assert echo.scope["http_version"] == "1.1"


async def test_a_websocket_over_http10_is_refused_without_chunks(serve, log):
    async def deny(scope, receive, send):
        await receive()
        await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b"a", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"b"})

    response = await serve(deny).connect().request(offer10())
    assert (response.status, response.body, response.closes) == (401, b"ab", True)
    log.claim("requested over HTTP/1.0")


async def test_an_invalid_handshake_over_http10_is_refused(serve, log):
    client = serve(hello).connect()
    response = await client.request(offer10().replace(KEY, b"short"))
    assert (response.status, response.closes) == (400, True)
    log.claim("requested over HTTP/1.0")


async def test_plain_requests_over_http10_cause_no_warning(serve):
    data = get(b"/", b"Connection: upgrade", b"Upgrade: h2c", version=b"1.0")
    assert (await serve(hello).connect().request(data)).body == b"hello"


async def test_with_ws_none_there_are_no_websockets(serve):
    client = serve(hello, ws="none").connect()
    response = await client.request(offer())
    assert (response.status, response.body) == (200, b"hello")
    assert (await client.request(get())).status == 200


async def test_tokens_are_found_in_any_case_and_in_lists(serve):
    data = offer().replace(b"Upgrade: websocket", b"UPGRADE: foo, WebSocket")
    client = serve(Echo()).connect()
    await client.send(data.replace(b"keep-alive, Upgrade", b"uPGRADE"))
    await (await WebSocket.opened(client)).echoes(TEXT, b"x")


async def test_a_handshake_waits_for_its_turn(serve):
    gate = Gate()

    async def app(scope, receive, send):
        await (echo if scope["type"] == "websocket" else gate)(scope, receive, send)

    echo = Echo()
    client = serve(app).connect()
    await client.send(get(b"/1") + offer(b"/2") + frame(TEXT, b"early"))
    await until(lambda: gate.paths == ["/1"])
    await turns(20)
    assert echo.scope is None
    gate.open.set()
    assert (await client.response()).body == b"/1"
    socket = await WebSocket.opened(client)
    await socket.expect(TEXT, b"early")
    await socket.client.send(get(b"/no"))
    assert (await socket.closing())[0] == 1002  # a request isn't a frame
    assert gate.paths == ["/1"]


async def test_frames_sent_together_with_the_handshake_are_read(serve):
    client = serve(Echo()).connect()
    await client.send(offer() + frame(TEXT, b"a" * 20000) + frame(TEXT, b"b"))
    socket = await WebSocket.opened(client)
    await socket.expect(TEXT, b"a" * 20000)
    await socket.expect(TEXT, b"b")


async def test_too_much_data_after_an_unanswered_handshake_ends_it(serve):
    app = Probe()
    client = serve(app).connect()
    await client.send(offer())
    await app.called.wait()
    await client.push(b"x" * 200_000)
    with pytest.raises(OSError, match="gone"):
        await app.send({"type": "websocket.accept"})
    app.done.set()


@pytest.mark.parametrize("piece", [1, 7])
async def test_frames_may_arrive_in_tiny_pieces(serve, piece):
    socket = await WebSocket.open(serve(Echo()), piece=piece)
    for size in (0, 1, 125, 126, 300):
        await socket.echoes(TEXT, b"x" * size)
    await socket.send(TEXT, b"a", fin=False)
    await socket.send(PING, b"!")
    await socket.expect(PONG, b"!")
    await socket.send(CONT, b"b")
    await socket.expect(TEXT, b"ab")
    await socket.closes()


# -- refusing --------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
async def test_a_refusal_is_a_403(serve, first):
    async def app(scope, receive, send):
        if first:
            await receive()
        await send({"type": "websocket.close"})
        assert await receive() == (
            {"type": "websocket.connect"} if not first else disconnected(1006)
        )

    client = serve(app).connect()
    response = await client.request(offer())
    assert response.status == 403
    assert response.closes
    await client.closed()


async def test_a_denial_response_is_sent(serve):
    async def app(scope, receive, send):
        headers = [(b"x-why", b"no"), (b"content-length", b"6")]
        await send({"type": "websocket.http.response.start", "status": 401, "headers": headers})
        body = {"type": "websocket.http.response.body"}
        await send({**body, "body": b"not", "more_body": True})
        await send({**body, "body": b"you"})
        with pytest.raises(ClientDisconnected):
            await send({**body, "body": b"more"})

    client = serve(app).connect()
    response = await client.request(offer())
    assert (response.status, response[b"x-why"], response.body) == (401, b"no", b"notyou")
    assert response.closes
    await client.closed()


@pytest.mark.parametrize(
    "messages",
    [
        [{"type": "websocket.send", "text": "x"}],
        [{"type": "http.response.start", "status": 200}],
        [{"type": "websocket.http.response.body", "body": b"x"}],
        [{"type": "websocket.http.response.start", "status": 400}, {"type": "websocket.accept"}],
    ],
)
async def test_a_message_out_of_turn_is_a_500(serve, log, messages):
    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    client = serve(app).connect()
    assert (await client.request(offer())).status == 500
    log.claim("exception in the application: WebSocket '/'")


async def test_an_exception_before_the_accept_is_a_500(serve, log):
    async def app(scope, receive, send):
        raise ValueError("no")

    assert (await serve(app).connect().request(offer())).status == 500
    assert "ValueError: no" in log.claim("exception in the application: WebSocket '/'")


async def test_a_return_without_an_answer_is_a_500(serve, log):
    async def app(scope, receive, send):
        pass

    assert (await serve(app).connect().request(offer())).status == 500
    log.claim("the application returned without a response")


async def test_a_handshake_that_is_never_answered_is_cancelled(serve, log):
    cancelled = []

    async def app(scope, receive, send):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    server = serve(app, ws_handshake_timeout=5)
    client = server.connect()
    await client.send(offer())
    await until(lambda: server.service.handshakes)
    server.advance(4.9)
    await client.quiet()
    server.advance(2)
    assert (await client.response()).status == 503
    await client.closed()
    await until(lambda: cancelled)
    assert "Event().wait()" in log.claim("--ws-handshake-timeout")
    assert not server.service.running


async def test_a_client_that_leaves_during_the_handshake_is_a_disconnect(serve):
    app = Probe()
    server = serve(app)
    client = server.connect()
    await client.send(offer())
    await app.called.wait()
    assert await app.receive() == {"type": "websocket.connect"}
    client.close()
    assert await app.receive() == disconnected(1006)
    with pytest.raises(ClientDisconnected):
        await app.send({"type": "websocket.accept"})
    app.done.set()


async def test_a_client_that_half_closes_during_the_handshake_is_a_disconnect(serve):
    app = Probe()
    server = serve(app)
    client = server.connect()
    await client.send(offer())
    await app.called.wait()
    await app.receive()
    client.shutdown()
    assert await app.receive() == disconnected(1006)
    with pytest.raises(ClientDisconnected):
        await app.send({"type": "websocket.accept"})
    app.done.set()


# -- sending and receiving -------------------------------------------------------------


async def test_a_message_has_exactly_one_content(serve):
    _, socket, app = await probe(serve)
    await app.send({"type": "websocket.send", "text": "t", "bytes": None})
    await socket.expect(TEXT, b"t")
    await app.send({"type": "websocket.send", "text": None, "bytes": b"b"})
    await socket.expect(BINARY, b"b")
    await app.send({"type": "websocket.send", "bytes": memoryview(b"m")})
    await socket.expect(BINARY, b"m")
    for wrong in ({}, {"bytes": "text"}):
        with pytest.raises(TypeError):
            await app.send({"type": "websocket.send", **wrong})
    with pytest.raises(RuntimeError):
        await app.send({"type": "websocket.accept"})
    app.done.set()
    await socket.ended(1000)


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536, 300_000])
async def test_frames_of_any_size_are_echoed(serve, size):
    socket = await WebSocket.open(serve(Echo()))
    await socket.echoes(TEXT, b"x" * size)
    await socket.echoes(BINARY, b"\xff" * size)


async def test_a_cancelled_receive_loses_nothing(serve):
    _, socket, app = await probe(serve)
    waiting = asyncio.ensure_future(app.receive())
    await turns(3)
    waiting.cancel()
    await turns(3)
    await socket.send(TEXT, b"a")
    assert await app.receive() == {"type": "websocket.receive", "text": "a"}
    app.done.set()


async def test_two_waiting_receives_get_one_message_each(serve):
    _, socket, app = await probe(serve)
    waiting = [asyncio.ensure_future(app.receive()) for _ in range(2)]
    await turns(3)
    await socket.send(TEXT, b"a")
    await socket.send(TEXT, b"b")
    assert {message["text"] for message in await asyncio.gather(*waiting)} == {"a", "b"}
    app.done.set()


async def test_pings_are_answered(serve):
    _, socket, app = await probe(serve)
    await socket.send(PING, b"are you there")
    await socket.expect(PONG, b"are you there")
    await socket.send(PONG, b"unasked")
    await socket.send(TEXT, b"x")
    assert (await app.receive())["text"] == "x"
    app.done.set()


# -- back-pressure ---------------------------------------------------------------------


async def test_a_slow_application_stops_the_client(serve):
    _, socket, app = await probe(serve, ws_max_queue=4)
    message = frame(BINARY, b"x" * 1000)
    pushed = await socket.client.push(message * 20000)
    assert pushed < len(message) * 20000
    whole = pushed // len(message)
    for _ in range(whole):
        assert len((await app.receive())["bytes"]) == 1000
    rest = message[pushed - whole * len(message) :]
    await socket.client.send(rest)
    assert len((await app.receive())["bytes"]) == 1000
    app.done.set()


def held(server):
    """A client's messages in memory: number and bytes of queued ones, and bytes behind them."""
    (session,) = server.service.sockets
    inbox = session._inbox
    return len(inbox.queue), inbox._held, inbox._backlogged


async def test_the_number_of_queued_messages_is_limited(serve):
    server, socket, app = await probe(serve, ws_max_queue=4)
    await socket.client.send(frame(TEXT, b"x") * 50)
    await until(lambda: held(server)[2] == 46 * (7 + FRAME_OVERHEAD))
    assert held(server)[0] == 4
    for _ in range(50):
        assert (await app.receive())["text"] == "x"
    assert held(server) == (0, 0, 0)
    app.done.set()


async def test_the_bytes_of_queued_messages_are_limited(serve):
    server, socket, app = await probe(serve, ws_max_queue=0)
    await socket.client.push(frame(BINARY, b"x" * 200_000) * 200)
    count, size, backlog = held(server)
    assert size <= 1_200_000 + 6 * 64
    assert backlog <= 400_000
    assert count <= 7
    app.done.set()


async def test_pings_are_answered_before_a_full_queue_is_read(serve):
    _, socket, app = await probe(serve, ws_max_queue=2)
    await socket.client.send(frame(TEXT, b"x") * 10 + frame(PING, b"now"))
    await socket.expect(PONG, b"now")
    await socket.client.send(frame(CLOSE, close_payload(4000, b"end")))
    for _ in range(10):
        assert (await app.receive())["text"] == "x"
    assert await app.receive() == disconnected(4000, "end")
    assert await socket.closing() == (4000, b"end")
    app.done.set()


@pytest.mark.parametrize("middle", [frame(TEXT, b"x"), FRAGMENTS], ids=["whole", "fragments"])
async def test_messages_that_a_client_sent_before_it_left_are_received(serve, middle):
    server, socket, app = await probe(serve, ws_max_queue=2)
    sent = frame(TEXT, b"x") * 2 + middle + frame(TEXT, b"x") * 2
    await socket.client.send(sent + frame(CLOSE, close_payload(4001)))
    assert await socket.closing() == (4001, b"")
    socket.client.close()
    await server.connections(0)
    for _ in range(5):
        assert (await app.receive())["text"] == "x"
    assert await app.receive() == disconnected(4001)
    app.done.set()


async def test_a_client_with_many_messages_does_not_keep_others_waiting(serve):
    server = serve(Echo(), ws_max_queue=4)
    turns_taken = 0

    async def other():
        nonlocal turns_taken
        while True:
            turns_taken += 1
            await asyncio.sleep(0)

    socket = await WebSocket.open(server)
    waiting = asyncio.ensure_future(other())
    await turns(2)
    before = turns_taken
    await socket.client.send(frame(TEXT, b"x") * 400)
    for _ in range(400):
        await socket.expect(TEXT, b"x")
    assert turns_taken - before > 90
    waiting.cancel()


async def test_fragments_behind_a_full_queue_are_received(serve):
    _, socket, app = await probe(serve, ws_max_queue=1)
    fragments = frame(TEXT, b"a", fin=False) + frame(CONT, b"b", fin=False) + frame(CONT, b"c")
    await socket.client.send((frame(TEXT, b"x") + fragments) * 3)
    for _ in range(3):
        assert [(await app.receive())["text"] for _ in range(2)] == ["x", "abc"]
    app.done.set()


@pytest.mark.parametrize("state", ["open", "closed", "gone"])
async def test_an_invalid_frame_behind_a_full_queue_ends_the_websocket(serve, state):
    """The application learns about the end, even if more bytes follow the invalid frame."""
    server, socket, app = await probe(serve, ws_max_queue=2)
    sent = frame(TEXT, b"x") * 3 + frame(TEXT, b"\xff") + frame(TEXT, b"y")
    await socket.client.send(sent)
    await until(lambda: held(server)[2])
    if state != "open":
        await socket.closes(4000)
    if state == "gone":
        await server.connections(0)
    for _ in range(3):
        assert (await app.receive())["text"] == "x"
    ended = await app.receive()
    if state == "open":
        assert ended["code"] == 1007
        assert (await socket.closing())[0] == 1007
    else:
        assert ended == disconnected(4000)
    app.done.set()


async def test_large_frames_behind_a_full_queue_are_not_read(serve):
    server, socket, app = await probe(serve, ws_max_queue=1)
    await socket.send(TEXT, b"x")
    large = frame(BINARY, b"y" * 10_000_000)
    pushed = await socket.client.push(large)
    assert pushed < len(large)
    (session,) = server.service.sockets
    assert session._inbox._have < 1_000_000
    assert (await app.receive())["text"] == "x"
    await socket.client.send(large[pushed:])
    assert len((await app.receive())["bytes"]) == 10_000_000
    app.done.set()


async def test_empty_messages_take_room_in_the_queue(serve):
    server, socket, app = await probe(serve, ws_max_queue=0)
    await socket.client.push(frame(TEXT) * 200_000)
    assert held(server)[0] <= (1 << 20) // 64 + 1
    app.done.set()


async def test_pings_of_a_client_that_reads_nothing_are_answered_by_one_pong(serve):
    server, socket, app, sending = await stuck(serve)
    (session,) = server.service.sockets
    before = session._transport.get_write_buffer_size()
    for number in range(1000):
        await socket.send(PING, b"%d" % number)
    await socket.send(TEXT, b"behind them")
    assert (await app.receive())["text"] == "behind them"
    assert session._transport.get_write_buffer_size() <= before
    await socket.client.skip(10 + MUCH)
    await sending
    await socket.expect(PONG, b"999")
    app.done.set()


async def test_a_slow_client_stops_the_application(serve):
    app = Accepted()
    server = serve(app)
    socket = await WebSocket.open(server, receive_buffer=4096)
    await app.called.wait()
    sent = 0

    async def send():
        nonlocal sent
        for _ in range(200):
            await app.send({"type": "websocket.send", "bytes": b"x" * 100_000})
            sent += 1

    sending = asyncio.ensure_future(send())
    assert await settled(lambda: sent) < 200
    await socket.client.skip(200 * (100_000 + 10))
    await sending
    app.done.set()


async def test_a_send_that_waits_ends_with_the_connection(serve):
    _, socket, app, sending = await stuck(serve)
    assert not sending.done()
    socket.client.reset()
    with pytest.raises(OSError, match="1006"):
        await sending
    app.done.set()


async def test_a_client_that_reads_nothing_is_reset(serve):
    server, _, app, sending = await stuck(serve, timeout_send=5, ws_ping_interval=0)
    server.advance(4)
    await turns(5)
    assert not sending.done()
    for _ in range(5):  # during the first ones, the kernel may still pass bytes on
        server.advance(4)
        await turns(5)
    assert sending.done()
    with pytest.raises(ClientDisconnected):
        await sending
    app.done.set()


async def test_a_slow_reader_is_not_closed_because_of_a_late_pong(serve):
    server, socket, app, sending = await stuck(
        serve, timeout_send=60, ws_ping_interval=20, ws_ping_timeout=10
    )
    left = MUCH
    for _ in range(5):
        server.advance(12)
        await socket.client.skip(100_000)
        left -= 100_000
    await socket.client.skip(left + 10)
    await sending
    assert (await socket.frame())[0] == 0x80 | PING
    app.done.set()


async def test_no_client_is_closed_because_the_process_stood_still(serve):
    server, socket, app = await probe(serve, ws_ping_interval=20, ws_ping_timeout=10)
    server.advance(21)
    first, content = await socket.frame()
    assert first == 0x80 | PING
    socket.client.sock.send(frame(PONG, content))  # no task runs that could read it
    server.stand_still(3600)
    await socket.client.quiet()
    server.advance(1)
    assert (await socket.frame())[0] == 0x80 | PING
    app.done.set()


# -- the end ---------------------------------------------------------------------------


async def test_a_send_that_waits_ends_with_a_close(serve):
    """The application learns about a drain at any point where it waits."""
    server, socket, app, sending = await stuck(serve)
    (session,) = server.service.sockets
    session.close_with(1012, "")
    with pytest.raises(ClientDisconnected, match="1012"):
        await sending
    assert await app.receive() == disconnected(1012)
    await socket.client.skip(10 + MUCH)
    await socket.ended(1012)
    app.done.set()


@pytest.mark.parametrize("who", ["server", "client"])
async def test_a_close_waits_for_a_client_that_still_reads(serve, who):
    server, socket, app, sending = await stuck(serve, timeout_send=60)
    if who == "server":
        (session,) = server.service.sockets
        session.close_with(1001, "")
    else:
        await socket.send(CLOSE, close_payload(1001))
    with pytest.raises(ClientDisconnected):
        await sending
    left = MUCH + 10
    for _ in range(10):
        server.advance(20)
        await socket.client.skip(100_000)
        left -= 100_000
    await socket.client.skip(left)
    assert await socket.closing() == (1001, b"")
    app.done.set()


@pytest.mark.parametrize("who", ["server", "client"])
async def test_a_close_does_not_wait_for_a_client_that_reads_nothing(serve, who):
    server, socket, app, sending = await stuck(serve, timeout_send=60)
    if who == "server":
        (session,) = server.service.sockets
        session.close_with(1001, "")
    else:
        await socket.send(CLOSE, close_payload(1001))
    with pytest.raises(ClientDisconnected):
        await sending
    for _ in range(5):
        server.advance(10)
    assert len(server.service.connections) == 1
    for _ in range(4):
        server.advance(10)
    await server.connections(0)
    app.done.set()


async def test_no_pong_follows_the_end(serve):
    _, socket, app, sending = await stuck(serve)
    await socket.send(PING, b"?")
    await socket.send(3)
    with pytest.raises(ClientDisconnected, match="1002"):
        await sending
    await socket.client.skip(10 + MUCH)
    assert (await socket.closing())[0] == 1002
    await socket.client.closed()
    app.done.set()


async def test_a_half_close_ends_the_websocket(serve):
    """It is noticed even if earlier data can't be sent, and without pings."""
    server, socket, app, sending = await stuck(serve, timeout_send=60, ws_ping_interval=0)
    socket.client.shutdown()
    with pytest.raises(ClientDisconnected, match="1006"):
        await sending
    assert await app.receive() == disconnected(1006)
    for _ in range(10):
        server.advance(10)
    await server.connections(0)
    app.done.set()


async def test_the_end_of_the_worker_does_not_wait_for_a_client(serve):
    server, _, app, sending = await stuck(serve)
    (session,) = server.service.sockets
    session.close()
    with pytest.raises(ClientDisconnected):
        await sending
    await server.connections(0)
    app.done.set()


async def test_a_cancellation_of_the_application_itself_is_a_failure(serve, log):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        raise asyncio.CancelledError

    socket = await WebSocket.open(serve(app))
    await socket.ended(1011)
    log.claim("exception in the application: WebSocket '/'")


async def test_a_cancellation_of_the_application_itself_during_the_handshake_is_a_failure(
    serve, log
):
    async def app(scope, receive, send):
        await receive()
        raise asyncio.CancelledError

    response = await serve(app).connect().request(offer())
    assert response.status == 500
    log.claim("exception in the application: WebSocket '/'")


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        ({}, 1000, b""),
        ({"code": 3000}, 3000, b""),
        ({"code": 4999, "reason": "because"}, 4999, b"because"),
        ({"code": None, "reason": None}, 1000, b""),
        ({"reason": "\u00e9" * 100}, 1000, "\u00e9".encode() * 61),
    ],
)
async def test_a_close_by_the_application_reaches_the_client(serve, message, code, reason):
    server, socket, app = await probe(serve)
    await app.send({"type": "websocket.close", **message})
    assert await socket.closing() == (code, reason)
    with pytest.raises(ClientDisconnected):
        await app.send({"type": "websocket.send", "text": "x"})
    with pytest.raises(ClientDisconnected):
        await app.send({"type": "websocket.close"})
    assert await app.receive() == disconnected(code, reason.decode())
    await socket.client.send(frame(TEXT, b"late") + frame(CLOSE, close_payload(code)))
    await socket.client.closed()
    await server.connections(0)
    app.done.set()


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000, "x"])
async def test_a_code_that_cannot_be_sent_is_refused(serve, code):
    _, socket, app = await probe(serve)
    with pytest.raises(ValueError, match=r"invalid literal|not a close code"):
        await app.send({"type": "websocket.close", "code": code})
    app.done.set()
    await socket.ended(1000)


async def test_an_exception_after_the_accept_closes_with_1011(serve, log):
    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})
        raise ValueError("oh")

    socket = await WebSocket.open(serve(app), b"/x")
    await socket.ended(1011)
    assert "ValueError: oh" in log.claim("exception in the application: WebSocket '/x'")


async def test_the_error_of_a_send_after_the_end_is_not_logged(serve):
    ended = []

    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})
        try:
            while True:
                await asyncio.sleep(0)
                await send({"type": "websocket.send", "text": "x"})
        finally:
            ended.append(True)

    socket = await WebSocket.open(serve(app))
    socket.client.reset()
    await until(lambda: ended)


@pytest.mark.parametrize(
    ("payload", "code", "reason"),
    [
        (b"", 1005, ""),
        (close_payload(1000), 1000, ""),
        (close_payload(1001, b"bye"), 1001, "bye"),
        (close_payload(4321, "\u00e9".encode()), 4321, "\u00e9"),
    ],
)
async def test_a_close_by_the_client_reaches_the_application(serve, payload, code, reason):
    _, socket, app = await probe(serve)
    waiting = asyncio.ensure_future(app.receive())
    await socket.send(CLOSE, payload)
    await socket.expect(CLOSE, payload)
    await socket.client.closed()
    assert await waiting == disconnected(code, reason)
    with pytest.raises(OSError, match=str(code)):
        await app.send({"type": "websocket.send", "text": "x"})
    app.done.set()


@pytest.mark.parametrize("how", ["close", "reset", "shutdown"])
async def test_a_client_that_leaves_without_a_close_frame_is_a_disconnect(serve, how):
    _, socket, app = await probe(serve)
    getattr(socket.client, how)()
    assert await app.receive() == disconnected(1006)
    with pytest.raises(OSError, match="1006"):
        await app.send({"type": "websocket.send", "text": "x"})
    app.done.set()


async def test_a_client_that_never_answers_a_close_is_disconnected(serve):
    server, socket, app = await probe(serve)
    app.done.set()
    assert (await socket.closing())[0] == 1000
    (session,) = server.service.sockets
    await until(lambda: unsent(session._transport) == 0)  # acknowledgements may be delayed
    server.advance(9)
    await turns(10)
    assert len(server.service.connections) == 1
    server.advance(3)
    await server.connections(0)


async def test_both_sides_may_close_at_once(serve):
    _server, socket, app = await probe(serve)
    await app.send({"type": "websocket.close", "code": 4000})
    await socket.send(CLOSE, close_payload(4001))
    assert await socket.closing() == (4000, b"")
    await socket.client.closed()
    app.done.set()


# -- limits ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frames",
    [
        frame(TEXT, b"x" * 101),
        frame(BINARY, b"x", length=1 << 40)[:14],
        frame(TEXT, b"x" * 60, fin=False) + frame(CONT, b"x" * 41),
        frame(BINARY, b"x" * 60, fin=False) + frame(CONT, b"x" * 40, fin=False) + frame(CONT, b"x"),
    ],
)
async def test_a_message_that_is_too_big_closes_with_1009(serve, frames):
    _, socket, app = await probe(serve, ws_max_size=100)
    await socket.client.send(frames)
    assert (await socket.closing())[0] == 1009
    assert (await app.receive())["code"] == 1009
    await socket.client.closed()
    app.done.set()


async def test_messages_exactly_at_the_limit_are_accepted(serve):
    socket = await WebSocket.open(serve(Echo(), ws_max_size=100))
    await socket.echoes(TEXT, b"x" * 100)
    await socket.send(TEXT, b"x" * 60, fin=False)
    await socket.send(CONT, b"x" * 40)
    await socket.expect(TEXT, b"x" * 100)


async def test_control_frames_do_not_count_as_messages(serve):
    socket = await WebSocket.open(serve(Echo(), ws_max_size=10))
    await socket.send(PING, b"x" * 100)
    await socket.expect(PONG, b"x" * 100)
    await socket.closes(1000, b"y" * 100)


async def test_a_limit_of_zero_means_no_limit(serve):
    socket = await WebSocket.open(serve(Echo(), ws_max_size=0))
    await socket.echoes(BINARY, b"x" * 20_000_000)


async def test_websockets_count_as_requests_in_progress(serve):
    server = serve(Echo(), limit_concurrency=2)
    first = await WebSocket.open(server)
    await WebSocket.open(server)
    response = await server.connect().request(offer())
    assert (response.status, response[b"retry-after"]) == (503, b"1")
    await first.closes()
    await until(lambda: len(server.service.running) == 1)
    await (await WebSocket.open(server)).echoes(TEXT, b"x")


async def test_the_request_timeout_does_not_apply_to_websockets(serve):
    server = serve(Echo(), request_timeout=5, ws_ping_interval=0)
    socket = await WebSocket.open(server)
    server.advance(20)
    await socket.echoes(TEXT, b"x")


async def test_cancelled_calls_of_receive_take_no_memory(serve):
    """Applications may wait for a message for a short time, again and again."""
    counts = []

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        before = cancelled_futures()
        for _ in range(50):
            call = asyncio.ensure_future(receive())
            await turns(2)
            call.cancel()
            await asyncio.wait([call])
        del call
        counts.append(cancelled_futures() - before)
        await send({"type": "websocket.close"})

    socket = await WebSocket.open(serve(app))
    await until(lambda: counts)
    assert counts[0] < 5
    await socket.closes()


async def test_the_scoreboard_counts_websockets(serve):
    from esg.scoreboard import Cell

    server = serve(Echo())
    socket = await WebSocket.open(server)
    await WebSocket.open(server)
    server.service.tick()
    row = server.row
    assert (row[Cell.WEBSOCKETS], row[Cell.CONNECTIONS], row[Cell.IN_FLIGHT]) == (2, 2, 2)
    assert (row[Cell.STATUS_1XX], row[Cell.REQUESTS], row[Cell.LOAD]) == (2, 2, 2)
    await socket.closes()
    await server.connections(1)
    server.service.tick()
    assert row[Cell.WEBSOCKETS] == 1
    assert row[Cell.LOAD] == 1


# -- pings -----------------------------------------------------------------------------


async def test_an_idle_client_is_pinged(serve):
    server, socket, app = await probe(serve, ws_ping_interval=20, ws_ping_timeout=10)
    server.advance(19)
    await socket.client.quiet()
    (session,) = server.service.sockets
    for _ in range(3):
        server.advance(2)
        first, content = await socket.frame()
        assert first == 0x80 | PING
        await socket.send(PONG, content)
        await until(lambda: session.round_trip >= 0)
        assert session.round_trip < 10
        session.round_trip = -1
        server.advance(19)
        await socket.client.quiet()
    app.done.set()


@pytest.mark.parametrize("answer", [None, b"something else"])
async def test_a_client_that_answers_no_ping_is_disconnected(serve, answer):
    server, socket, app = await probe(serve, ws_ping_interval=20, ws_ping_timeout=10)
    if answer:
        await socket.send(PONG, answer)
        await turns(5)
    server.advance(21)
    assert (await socket.frame())[0] == 0x80 | PING
    server.advance(9)
    await socket.client.quiet()
    server.advance(2)
    assert await socket.closing() == (1011, b"keepalive ping timeout")
    assert await app.receive() == disconnected(1006)
    await socket.client.closed()
    app.done.set()


async def test_a_client_that_sends_messages_counts_as_alive(serve):
    server, socket, app = await probe(serve, ws_ping_interval=20, ws_ping_timeout=10)
    server.advance(21)
    assert (await socket.frame())[0] == 0x80 | PING
    await socket.send(TEXT, b"x")
    await app.receive()
    server.advance(11)
    await socket.send(TEXT, b"x")
    await app.receive()
    server.advance(11)
    await socket.client.quiet()
    server.advance(11)
    assert (await socket.closing())[0] == 1011
    app.done.set()


async def test_a_client_is_not_closed_while_the_server_does_not_read(serve):
    server, socket, app = await probe(
        serve, ws_ping_interval=20, ws_ping_timeout=10, ws_max_queue=1
    )
    await socket.client.push(frame(BINARY, b"x" * 1000) * 20000)
    (session,) = server.service.sockets
    assert session._inbox.paused
    server.advance(21)
    assert (await socket.frame())[0] == 0x80 | PING
    for _ in range(3):
        server.advance(11)
    await socket.client.quiet()
    app.done.set()


async def test_a_ping_interval_of_zero_means_no_pings(serve):
    server, socket, app = await probe(serve, ws_ping_interval=0)
    server.advance(1000)
    await socket.client.quiet()
    app.done.set()


async def test_a_ping_timeout_of_zero_means_no_limit(serve):
    server, socket, app = await probe(serve, ws_ping_interval=20, ws_ping_timeout=0)
    for _ in range(3):
        server.advance(21)
        assert (await socket.frame())[0] == 0x80 | PING
    app.done.set()


# -- draining --------------------------------------------------------------------------


async def test_a_draining_worker_accepts_no_websockets(serve):
    gate = Gate()
    server = serve(gate)
    client = server.connect()
    server.service.draining = True
    response = await client.request(offer())
    assert response.status == 503
    assert response.closes
    assert gate.paths == []


async def test_a_drain_during_a_handshake_refuses_it(serve):
    app = Probe()
    server = serve(app)
    client = server.connect()
    await client.send(offer())
    await app.called.wait()
    server.service.draining = True
    with pytest.raises(ClientDisconnected):
        await app.send({"type": "websocket.accept"})
    assert (await client.response()).status == 503
    assert await app.receive() == {"type": "websocket.connect"}
    assert await app.receive() == disconnected(1006)
    app.done.set()


@pytest.mark.parametrize("middle", [frame(TEXT, b"x"), FRAGMENTS], ids=["whole", "fragments"])
async def test_a_close_by_the_server_leaves_the_application_its_messages(serve, middle):
    server, socket, app = await probe(serve, ws_max_queue=2)
    await socket.client.send(frame(TEXT, b"x") * 2 + middle + frame(TEXT, b"x") * 2)
    await until(lambda: held(server)[2])
    (session,) = server.service.sockets
    session.close_with(1012, "")
    assert await socket.closing() == (1012, b"")
    await socket.client.send(frame(TEXT, b"too late") + frame(CLOSE, close_payload(1012)))
    for _ in range(5):
        assert (await app.receive())["text"] == "x"
    assert await app.receive() == disconnected(1012)
    await socket.client.closed()
    app.done.set()


# -- compression -----------------------------------------------------------------------


async def test_compression_is_agreed_on(serve):
    import zlib

    socket = await WebSocket.open(serve(Echo()), b"/", DEFLATE)
    assert socket.response[b"sec-websocket-extensions"].startswith(b"permessage-deflate")
    deflate, inflate = zlib.compressobj(wbits=-9), zlib.decompressobj(wbits=-15)
    for text in (b"hello " * 100, b"hello " * 100, b""):
        data = deflate.compress(text) + deflate.flush(zlib.Z_SYNC_FLUSH)
        await socket.send(TEXT, data[:-4], rsv=4)
        first, content = await socket.frame()
        assert first == 0xC0 | TEXT
        assert inflate.decompress(content + b"\x00\x00\xff\xff") == text
    await socket.send(TEXT, b"plain")
    first, content = await socket.frame()
    assert inflate.decompress(content + b"\x00\x00\xff\xff") == b"plain"
    await socket.closes()


@pytest.mark.parametrize(
    "offered",
    [
        b"permessage-deflate; unknown=1",
        b"permessage-deflate; server_max_window_bits=7",
        b"permessage-deflate; server_no_context_takeover=1",
        b"x-webkit-deflate-frame",
        b"=;;",
    ],
)
async def test_unknown_and_invalid_offers_are_declined(serve, offered):
    field = b"Sec-WebSocket-Extensions: " + offered
    socket = await WebSocket.open(serve(Echo()), b"/", field)
    assert b"sec-websocket-extensions" not in socket.response
    await socket.echoes(TEXT, b"x")


async def test_messages_may_each_end_their_deflate_stream(serve):
    """RFC 7692, section 7.2.3.4."""
    app = Echo()
    server = serve(app)
    socket = await WebSocket.open(server, b"/", DEFLATE)
    for text in (b"Hello", b"World"):
        packer = zlib.compressobj(wbits=-9)
        ended = packer.compress(text) + packer.flush(zlib.Z_FINISH) + b"\0"
        await socket.send(TEXT, ended, rsv=4)
    if server.service.config.ws == "wsproto":  # it doesn't know this extension, and says so
        first, content = await socket.frame()
        while first != 0x80 | CLOSE:
            first, content = await socket.frame()
        assert content.startswith(close_payload(1007))
    else:
        await until(lambda: len(app.seen) == 3)
        assert app.seen[1:] == [{"text": "Hello"}, {"text": "World"}]


async def test_compression_can_be_turned_off(serve):
    server = serve(Echo(), ws_per_message_deflate=False)
    socket = await WebSocket.open(server, b"/", DEFLATE)
    assert b"sec-websocket-extensions" not in socket.response
    await socket.send(TEXT, b"x", rsv=4)
    assert (await socket.closing())[0] == 1002


async def test_a_small_frame_that_becomes_a_big_message_closes_with_1009(serve):
    import zlib

    socket = await WebSocket.open(serve(Echo(), ws_max_size=1_000_000), b"/", DEFLATE)
    deflate = zlib.compressobj(wbits=-9)
    data = deflate.compress(bytes(20_000_000)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    assert len(data) < 100_000
    await socket.send(BINARY, data[:-4], rsv=4)
    assert (await socket.closing())[0] == 1009


# -- the access log --------------------------------------------------------------------


@pytest.fixture
def lines():
    """A pipe for the access log, and a function that waits for its lines and returns them."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    text = bytearray()

    async def lines(count):
        def enough():
            with contextlib.suppress(BlockingIOError):
                text.extend(os.read(read_end, 65536))
            return text.count(b"\n") >= count

        await until(enough)
        return text.decode().splitlines()

    lines.fd = write_end
    yield lines
    os.close(read_end)
    os.close(write_end)


async def test_lines_have_uvicorns_form(serve, lines):
    server = serve(Echo(), log_fd=lines.fd)
    socket = await WebSocket.open(server, b"/a?b=%22")
    await socket.closes(4000)
    host, port = socket.client.sock.getsockname()
    accepted, closed = await lines(2)
    assert accepted == f'INFO:     {host}:{port} - "WebSocket /a?b=%22" [accepted]'
    begin = f'INFO:     {host}:{port} - "WebSocket /a?b=%22" [closed] 4000 '
    assert closed.startswith(begin)
    assert closed[len(begin) :].endswith("s")
    assert float(closed[len(begin) : -1]) < 10


async def test_a_refusal_is_logged_as_a_request(serve, lines):
    async def app(scope, receive, send):
        await send({"type": "websocket.close"})

    client = serve(app, log_fd=lines.fd).connect()
    await client.request(offer())
    (line,) = await lines(1)
    assert line.endswith('"GET / HTTP/1.1" 403 Forbidden')


async def test_lines_have_the_configured_format(serve, lines):
    server = serve(
        Echo(headers=[(b"x-kind", b"k")]),
        log_fd=lines.fd,
        access_logformat='"%(r)s" %(m)s %(s)s %(b)s %({x-kind}o)s %(D)d',
    )
    socket = await WebSocket.open(server, b"/a")
    await socket.echoes(TEXT, b"12345")
    await socket.closes()
    accepted, closed = await lines(2)
    assert accepted.startswith('"GET /a HTTP/1.1" GET 101 0 k ')
    assert closed.startswith('"WEBSOCKET /a HTTP/1.1" WEBSOCKET 1000 5 k ')


async def test_lines_may_be_json(serve, lines):
    server = serve(Echo(), log_fd=lines.fd, log_format="json", ws_ping_interval=20)
    socket = await WebSocket.open(server, b"/a?b")
    server.advance(21)
    _, content = await socket.frame()
    await socket.send(PONG, content)
    await socket.echoes(TEXT, b"x")
    await socket.closes(4000)
    accepted, closed = map(json.loads, await lines(2))
    assert (accepted["event"], accepted["status"], accepted["method"]) == ("accepted", 101, "GET")
    assert (accepted["path"], accepted["query"]) == ("/a", "b")
    assert "[accepted]" in accepted["message"]
    assert (closed["event"], closed["code"], closed["path"]) == ("closed", 4000, "/a")
    assert "status" not in closed
    assert closed["round_trip"] >= 0
    assert closed["duration"] >= 0
    assert closed["bytes"] == len("x")


async def test_an_abrupt_end_is_logged(serve, lines):
    socket = await WebSocket.open(serve(Echo(), log_fd=lines.fd))
    socket.client.reset()
    _, closed = await lines(2)
    assert "[closed] 1006 " in closed


async def test_the_answer_to_a_key_is_right():
    """The example of RFC 6455, section 1.3."""
    from esg.server.websocket.handshake import _answer

    assert _answer(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert _answer(KEY) == ACCEPT
    assert len(OFFER) == 4
