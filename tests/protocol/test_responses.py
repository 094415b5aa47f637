"""Applications' responses as bytes on the wire."""

from __future__ import annotations

import asyncio
import email.utils
import socket
from http import HTTPStatus

import pytest

from esg.server.http1.exchange import MOST_SMALL_CHUNKS, SMALL_CHUNK
from esg.server.outflow import MOST_COLLECTED

from .apps import echo, hello, piece, respond, start
from .wire import get, parse_head, request, turns, until


def answering(body=b"hello", status=200, headers=()):
    """An application that sends one whole response."""

    async def app(scope, receive, send):
        await respond(send, body, status, headers)

    return app


def streaming(*pieces, status=200, headers=()):
    """An application that sends a response in pieces."""

    async def app(scope, receive, send):
        await start(send, status, headers)
        for body in pieces:
            await piece(send, body)
        await piece(send, more=False)

    return app


async def response_to(serve, app, data, method="GET", **settings):
    return await serve(app, **settings).connect().request(data, method)


# -- framing ---------------------------------------------------------------------------


async def test_a_whole_body_gets_a_content_length(serve):
    response = await response_to(serve, hello, get())
    assert response[b"content-length"] == b"5"
    assert response.body == b"hello"
    assert b"transfer-encoding" not in response


async def test_an_empty_whole_body_has_length_zero(serve):
    response = await response_to(serve, answering(b""), get())
    assert response[b"content-length"] == b"0"


async def test_a_body_in_pieces_is_chunked(serve):
    response = await response_to(serve, streaming(b"one", b"", b"two"), get())
    assert response.chunks == [b"one", b"two"]
    assert b"content-length" not in response


async def test_a_response_in_pieces_may_be_empty(serve):
    response = await response_to(serve, streaming(), get())
    assert response.body == b""


async def test_a_given_content_length_is_kept(serve):
    app = streaming(b"he", b"llo", headers=[(b"Content-Length", b"5")])
    response = await response_to(serve, app, get())
    assert response.all(b"content-length") == [b"5"]
    assert response.chunks is None
    assert response.body == b"hello"


async def test_a_given_content_length_with_a_whole_body_is_not_doubled(serve):
    app = answering(headers=[(b"content-length", b"5")])
    response = await response_to(serve, app, get())
    assert response.all(b"content-length") == [b"5"]


@pytest.mark.parametrize("coding", [b"chunked", b"gzip, chunked", b"identity"])
@pytest.mark.parametrize("make", [answering, streaming])
async def test_a_given_transfer_encoding_is_not_doubled(serve, coding, make):
    app = make(b"hello", headers=[(b"Transfer-Encoding", coding)])
    client = serve(app).connect()
    response = await client.request(get())
    assert response.all(b"transfer-encoding") in ([], [b"chunked"])
    assert response.body == b"hello"
    assert (await client.request(get())).body == b"hello"


async def test_transfer_encoding_and_content_length_never_go_out_together(serve):
    headers = [(b"transfer-encoding", b"chunked"), (b"content-length", b"5")]
    response = await response_to(serve, streaming(b"hello", headers=headers), get())
    assert (b"transfer-encoding" in response) + (b"content-length" in response) == 1
    assert response.body == b"hello"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("make", [answering, streaming])
async def test_bodies_may_be_any_kind_of_bytes(serve, kind, make):
    response = await response_to(serve, make(kind(b"hello")), get())
    assert response.body == b"hello"


async def test_a_message_without_body_has_an_empty_one(serve):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    response = await response_to(serve, app, get())
    assert response[b"content-length"] == b"0"


@pytest.mark.parametrize("size", [1, 65535, 65536, 65537, 3_000_000])
async def test_whole_bodies_of_any_size_arrive(serve, size):
    body = bytes(range(256)) * (size // 256 + 1)
    response = await response_to(serve, answering(body[:size]), get())
    assert response.body == body[:size]


@pytest.mark.parametrize("size", [1, 65535, 65536, 65537, 3_000_000])
async def test_pieces_of_any_size_arrive(serve, size):
    body = bytes(range(256)) * (size // 256 + 1)
    response = await response_to(serve, streaming(body[:size], b"end"), get())
    assert response.body == body[:size] + b"end"


# -- responses without a body ----------------------------------------------------------


@pytest.mark.parametrize("make", [answering, streaming])
async def test_head_has_the_head_of_get_and_no_body(serve, make):
    client = serve(make(b"hello")).connect()
    await client.send(request(b"HEAD", b"/") + get())
    head = await client.response("HEAD")
    full = await client.response()
    assert head.status == full.status == 200
    if b"content-length" in head:
        assert head[b"content-length"] == full[b"content-length"]
    assert full.body == b"hello"


async def test_head_with_a_whole_body_says_its_length(serve):
    response = await response_to(serve, hello, request(b"HEAD", b"/"), "HEAD")
    assert response[b"content-length"] == b"5"


async def test_head_keeps_a_given_length_and_needs_no_body(serve):
    client = serve(answering(b"", headers=[(b"content-length", b"1000")])).connect()
    response = await client.request(request(b"HEAD", b"/"), "HEAD")
    assert response.all(b"content-length") == [b"1000"]
    await client.quiet()


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("make", [answering, streaming])
@pytest.mark.parametrize("body", [b"", b"unwanted"])
async def test_no_content_and_not_modified_have_no_body(serve, status, make, body):
    client = serve(make(body, status=status)).connect()
    await client.send(get() + get())
    for _ in range(2):
        response = await client.response()
        assert response.status == status
        assert b"transfer-encoding" not in response
        assert not response.closes
    await client.quiet()


async def test_no_content_has_no_content_length(serve):
    app = answering(b"", 204, [(b"content-length", b"0"), (b"x-a", b"b")])
    response = await response_to(serve, app, get())
    assert b"content-length" not in response
    assert response[b"x-a"] == b"b"


async def test_not_modified_may_have_a_content_length(serve):
    app = answering(b"", 304, [(b"content-length", b"1000")])
    response = await response_to(serve, app, get())
    assert response[b"content-length"] == b"1000"


# -- HTTP/1.0 --------------------------------------------------------------------------

KEEP_ALIVE = b"Connection: keep-alive"


async def test_http10_closes_by_default(serve):
    client = serve(hello).connect()
    response = await client.request(get(version=b"1.0"))
    assert response.closes
    assert response.body == b"hello"
    await client.closed()


async def test_http10_needs_no_host(serve):
    client = serve(hello).connect()
    assert (await client.request(b"GET / HTTP/1.0\r\n\r\n")).status == 200


async def test_http10_is_kept_alive_on_request(serve):
    client = serve(hello).connect()
    for _ in range(2):
        response = await client.request(get(b"/", KEEP_ALIVE, version=b"1.0"))
        assert response[b"connection"] == b"keep-alive"
        assert response[b"content-length"] == b"5"


async def test_http10_is_never_chunked(serve):
    client = serve(streaming(b"he", b"llo")).connect()
    response = await client.request(get(b"/", KEEP_ALIVE, version=b"1.0"))
    assert b"transfer-encoding" not in response
    assert response.closes
    assert response.body == b"hello"


async def test_an_http10_stream_of_known_length_is_kept_alive(serve):
    client = serve(streaming(b"he", b"llo", headers=[(b"content-length", b"5")])).connect()
    for _ in range(2):
        response = await client.request(get(b"/", KEEP_ALIVE, version=b"1.0"))
        assert response[b"connection"] == b"keep-alive"
        assert response.body == b"hello"


async def test_http10_head_and_not_modified_are_kept_alive(serve):
    client = serve(streaming(b"x", status=304)).connect()
    await client.request(get(b"/", KEEP_ALIVE, version=b"1.0"))
    await client.request(request(b"HEAD", b"/", KEEP_ALIVE, version=b"1.0"), "HEAD")
    await client.quiet()


async def test_an_http10_request_may_have_a_body(serve):
    client = serve(echo).connect()
    head = b"POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\n"
    assert (await client.request(head + b"hello")).body == b"hello"


# -- the head --------------------------------------------------------------------------


async def test_fields_keep_their_order_case_and_duplicates(serve):
    headers = [(b"X-B", b"1"), (b"x-a", b"caf\xe9"), (b"X-B", b"2"), (b"Set-Cookie", b"a=b; c")]
    response = await response_to(serve, answering(headers=headers), get())
    assert [field for field in response.fields if field in headers] == headers


async def test_headers_may_be_any_iterable_of_pairs(serve):
    async def app(scope, receive, send):
        headers = ([name, b"v"] for name in (b"x-a", b"x-b"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body"})

    response = await response_to(serve, app, get())
    assert (response[b"x-a"], response[b"x-b"]) == (b"v", b"v")


async def test_values_may_be_empty_or_long(serve):
    headers = [(b"x-empty", b""), (b"x-long", b"v" * 100_000)]
    response = await response_to(serve, answering(headers=headers), get())
    assert response[b"x-empty"] == b""
    assert len(response[b"x-long"]) == 100_000


@pytest.mark.parametrize(
    ("status", "line"),
    [(200, b"OK"), (201, b"Created"), (404, b"Not Found"), (418, None), (299, b""), (599, b"")],
)
async def test_a_status_line_has_the_usual_phrase(serve, status, line):
    response = await response_to(serve, answering(status=status), get())
    assert response.status == status
    if line is not None:
        assert response.reason == line


async def test_status_may_be_an_enum(serve):
    response = await response_to(serve, answering(status=HTTPStatus.ACCEPTED), get())
    assert (response.status, response.reason) == (202, b"Accepted")


async def test_date_and_server_are_added(serve):
    response = await response_to(serve, hello, get())
    assert response[b"server"] == b"esg"
    assert email.utils.parsedate_to_datetime(response[b"date"].decode())
    assert response[b"date"].endswith(b" GMT")


async def test_date_and_server_can_be_off(serve):
    response = await response_to(serve, hello, get(), date_header=False, server_header=False)
    assert b"server" not in response
    assert b"date" not in response


@pytest.mark.parametrize("name", [b"Date", b"server"])
async def test_the_applications_own_date_or_server_is_not_doubled(serve, name):
    response = await response_to(serve, answering(headers=[(name, b"mine")]), get())
    assert response[name.lower()] == b"mine"
    assert b"date" in response
    assert b"server" in response


async def test_own_fields_of_one_response_do_not_show_in_the_next(serve):
    headers = iter([[(b"server", b"mine"), (b"date", b"today")], []])

    async def app(scope, receive, send):
        await respond(send, headers=next(headers))

    client = serve(app).connect()
    assert (await client.request(get()))[b"server"] == b"mine"
    response = await client.request(get())
    assert response[b"server"] == b"esg"
    assert response[b"date"] != b"today"


async def test_date_is_as_the_clock_says(serve, monkeypatch):
    server = serve(hello)
    client = server.connect()
    for now, date in (
        (0, b"Thu, 01 Jan 1970 00:00:00 GMT"),
        (784111777, b"Sun, 06 Nov 1994 08:49:37 GMT"),
        (4102444799, b"Thu, 31 Dec 2099 23:59:59 GMT"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("time.time", lambda now=now: float(now))
            server.service.tick()
        assert (await client.request(get()))[b"date"] == date


async def test_date_of_an_error_response_is_renewed_too(serve, monkeypatch):
    server = serve(hello)
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: 784111777.0)
        server.service.tick()
    response = await server.connect().request(b"nonsense\r\n\r\n")
    assert response[b"date"] == b"Sun, 06 Nov 1994 08:49:37 GMT"


# -- the connection --------------------------------------------------------------------


@pytest.mark.parametrize("value", [b"close", b"Close", b"foo, CLOSE"])
async def test_the_application_may_close_the_connection(serve, value):
    client = serve(answering(headers=[(b"Connection", value)])).connect()
    response = await client.request(get())
    assert response.all(b"connection") == [b"close"]
    await client.closed()


@pytest.mark.parametrize("value", [b"keep-alive", b"upgrade", b""])
async def test_the_application_cannot_keep_a_connection_that_closes(serve, value):
    client = serve(answering(headers=[(b"connection", value)])).connect()
    response = await client.request(get(b"/", b"Connection: close"))
    assert response.all(b"connection") == [b"close"]
    await client.closed()


@pytest.mark.parametrize("value", [b"keep-alive", b"upgrade", b""])
async def test_other_connection_options_of_the_application_are_dropped(serve, value):
    client = serve(answering(headers=[(b"connection", value)])).connect()
    for _ in range(2):
        response = await client.request(get())
        assert response.status == 200
        assert b"connection" not in response


# -- when bytes are sent ---------------------------------------------------------------


async def test_a_head_without_body_is_sent_soon(serve):
    """An event stream's head must not wait for its first event."""
    release = asyncio.Event()

    async def app(scope, receive, send):
        await start(send, headers=[(b"content-type", b"text/event-stream")])
        await release.wait()
        await piece(send, b"data: x\n\n")
        await piece(send, more=False)

    client = serve(app).connect()
    await client.send(get())
    head = await client.head()
    assert head[b"content-type"] == b"text/event-stream"
    assert head[b"transfer-encoding"] == b"chunked"
    await client.quiet()
    release.set()
    await client.exactly(b"9\r\ndata: x\n\n\r\n0\r\n\r\n")


async def test_a_piece_is_sent_before_the_next_one_is_there(serve):
    release = asyncio.Event()

    async def app(scope, receive, send):
        await start(send)
        await piece(send, b"first")
        await release.wait()
        await piece(send, b"second", more=False)

    client = serve(app).connect()
    await client.send(get())
    await client.head()
    await client.exactly(b"5\r\nfirst\r\n")
    await client.quiet()
    release.set()
    await client.exactly(b"6\r\nsecond\r\n0\r\n\r\n")


async def test_head_and_body_go_out_in_one_write(serve):
    client = serve(hello).connect()
    await client.send(get())
    data = await client._loop.sock_recv(client.sock, 65536)
    head, _, body = data.partition(b"\r\n\r\n")
    assert parse_head(head + b"\r\n\r\n").status == 200
    assert body == b"hello"


async def test_pieces_are_not_held_back_by_the_kernel(serve):
    """Without TCP_NODELAY a small piece waits for the client's delayed ACK, 40 ms (tcp(7))."""
    server = serve(hello)
    client = server.connect()
    assert (await client.request(get())).body == b"hello"
    (connection,) = server.service.connections
    sock = connection.transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# -- fields that are sent again --------------------------------------------------------


async def values_of(serve, fields, change):
    """The values of x in four responses; `change` alters the list of fields in between."""
    values = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": b"hello"})
        change(fields, len(values))

    client = serve(app).connect()
    for _ in range(4):
        values.append((await client.request(get()))[b"x"])
    return values


async def test_fields_are_those_of_this_response(serve):
    def change(fields, count):
        fields[0] = (b"x", b"%d" % (count // 2))

    assert await values_of(serve, [(b"x", b"first")], change) == [b"first", b"0", b"0", b"1"]


async def test_fields_may_be_changed_in_place(serve):
    def change(fields, count):
        fields[0][1] = b"%d" % (count // 2)

    assert await values_of(serve, [[b"x", b"first"]], change) == [b"first", b"0", b"0", b"1"]


async def test_fields_may_be_added_and_removed(serve):
    def change(fields, count):
        if count % 2:
            fields.pop()
        else:
            fields.append((b"connection", b"keep-alive"))

    assert await values_of(serve, [(b"x", b"1")], change) == [b"1"] * 4


@pytest.mark.parametrize("status", [200, 204, 304, 404])
async def test_a_response_like_the_last_one_is_framed_like_it(serve, status):
    async def app(scope, receive, send):
        headers = [(b"content-length", b"5"), (b"server", b"own"), (b"x", b"1")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"hello"})

    client = serve(app).connect()
    first, *others = [await client.request(get()) for _ in range(3)]
    assert first.all(b"server") == [b"own"]
    assert (b"content-length" in first) == (status != 204)
    for other in others:
        assert other == first


# -- streams of many pieces ------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [
        [SMALL_CHUNK - 1] * (3 * MOST_SMALL_CHUNKS + 1),
        [SMALL_CHUNK, 1] * MOST_SMALL_CHUNKS,
        [0, 1, 0, 15, 16, 17, SMALL_CHUNK - 1, SMALL_CHUNK, MOST_COLLECTED, 1, 100_000, 1, 0],
    ],
    ids=["small ones", "alternating", "of all sizes"],
)
async def test_pieces_of_a_stream_arrive_in_order(serve, sizes):
    pieces = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    client = serve(streaming(*pieces)).connect()
    for _ in range(2):
        response = await client.request(get())
        assert response.all(b"transfer-encoding") == [b"chunked"]
        assert response.body == b"".join(pieces)


async def test_small_pieces_of_one_turn_do_not_pile_up(serve):
    """Even if the application doesn't let the loop run, about MOST_COLLECTED bytes wait at most."""
    waiting = []

    async def app(scope, receive, send):
        await start(send)
        (connection,) = server.service.connections
        for _ in range(10 * MOST_SMALL_CHUNKS):
            await piece(send, bytes(SMALL_CHUNK - 1))
            waiting.append(sum(map(len, connection.outflow.pieces)))
        await piece(send, more=False)

    server = serve(app)
    response = await server.connect().request(get())
    assert len(response.body) == 10 * MOST_SMALL_CHUNKS * (SMALL_CHUNK - 1)
    assert MOST_COLLECTED / 2 < max(waiting) < 1.1 * MOST_COLLECTED


async def test_a_stream_of_small_pieces_waits_for_a_slow_client(serve):
    sent = 0

    async def app(scope, receive, send):
        nonlocal sent
        await start(send)
        for _ in range(200_000):
            await piece(send, bytes(100))
            sent += 1
            if sent % 1000 == 0:
                await asyncio.sleep(0)
        await piece(send, more=False)

    server = serve(app)
    client = server.connect(receive_buffer=4096)
    await client.send(get())
    await until(lambda: any(c.outflow.paused for c in server.service.connections))
    before = sent
    await turns(50)
    assert sent == before < 200_000
    assert len((await client.response()).body) == 200_000 * 100
