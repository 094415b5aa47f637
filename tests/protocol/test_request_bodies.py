"""Request bodies, as an application receives them."""

from __future__ import annotations

import asyncio
import hashlib
import random

import pytest

from .apps import Probe, Recorder, echo, hello, read_body, respond
from .wire import chunked, get, post, post_chunked, request, turns, until

MEGABYTE = 1 << 20


@pytest.fixture(params=[None, 1], ids=["whole", "bytewise"])
def piece(request):
    return request.param


async def test_a_request_without_a_body_has_an_empty_one(serve):
    probe = Probe()
    client = serve(probe).connect()
    await client.send(get())
    await probe.called.wait()
    message = await probe.receive()
    assert message == {"type": "http.request", "body": b"", "more_body": False}
    probe.done.set()
    await finish(client, probe)


async def finish(client, probe):
    """Let a probe's request succeed."""
    await respond(probe.send)
    probe.done.set()
    await client.response()


async def test_a_body_with_a_content_length_is_received(serve):
    client = serve(echo).connect()
    assert (await client.request(post(b"hello"))).body == b"hello"
    assert (await client.request(post(b""))).body == b""
    assert (await client.request(post(b"again"))).body == b"again"


@pytest.mark.parametrize("method", [b"GET", b"DELETE", b"OPTIONS", b"PUT", b"PATCH"])
async def test_any_method_may_have_a_body(serve, method):
    client = serve(echo).connect()
    data = request(method, b"/", b"Content-Length: 5") + b"hello"
    assert (await client.request(data)).body == b"hello"
    assert (await client.request(data)).body == b"hello"


async def test_a_chunked_body_is_received(serve):
    client = serve(echo).connect()
    assert (await client.request(post_chunked(b"one", b"two"))).body == b"onetwo"
    assert (await client.request(post_chunked())).body == b""
    assert (await client.request(post_chunked(b"three"))).body == b"three"


@pytest.mark.parametrize("coding", [b"chunked", b"Chunked", b"CHUNKED"])
async def test_coding_names_are_case_insensitive(serve, coding):
    client = serve(echo).connect()
    head = request(b"POST", b"/", b"Transfer-Encoding: " + coding)
    assert (await client.request(head + chunked(b"x"))).body == b"x"


@pytest.mark.parametrize("size", [b"a", b"A", b"00a", b"0000000A"])
async def test_chunk_sizes_are_hexadecimal(serve, size):
    client = serve(echo).connect()
    head = request(b"POST", b"/", b"Transfer-Encoding: chunked")
    body = size + b"\r\n0123456789\r\n0\r\n\r\n"
    assert (await client.request(head + body)).body == b"0123456789"


@pytest.mark.parametrize("extension", [b";a", b";a=b", b';a="b;c\\" d"', b";a;b=c;d"])
async def test_chunk_extensions_are_ignored(serve, extension):
    client = serve(echo).connect()
    head = request(b"POST", b"/", b"Transfer-Encoding: chunked")
    body = b"5" + extension + b"\r\nhello\r\n0" + extension + b"\r\n\r\n"
    assert (await client.request(head + body)).body == b"hello"


async def test_trailers_never_become_headers(serve):
    record = Recorder()
    client = serve(record).connect()
    trailers = b"X-Forwarded-For: 10.0.0.1\r\nAuthorization: secret\r\nHost: other\r\n"
    for _ in range(2):
        response = await client.request(post_chunked(b"x", trailers=trailers))
        assert response.body == b"x"
    await client.request(get())
    for scope in record.scopes:
        names = [name for name, _ in scope["headers"]]
        assert b"authorization" not in names
        assert b"x-forwarded-for" not in names
        assert dict(scope["headers"])[b"host"] == b"example.org"


async def test_trailers_of_an_unread_body_never_become_headers(serve):
    record = Recorder()
    paths = []

    async def app(scope, receive, send):
        paths.append(scope["path"])
        if scope["path"] == "/unread":
            await respond(send)
        else:
            await record(scope, receive, send)

    client = serve(app).connect()
    trailers = b"Authorization: secret\r\n"
    await client.send(post_chunked(b"x", target=b"/unread", trailers=trailers) + get(b"/next"))
    await client.response()
    await client.response()
    assert record.scope["headers"] == [(b"host", b"example.org")]


async def test_an_application_receives_a_body_as_it_arrives(serve):
    probe = Probe()
    client = serve(probe).connect()
    await client.send(request(b"POST", b"/", b"Content-Length: 10"))
    await probe.called.wait()
    waiting = asyncio.ensure_future(probe.receive())
    await turns(10)
    assert not waiting.done()
    await client.send(b"first")
    received = [await waiting]
    while sum(len(message["body"]) for message in received) < 5:
        received.append(await probe.receive())
    assert b"".join(message["body"] for message in received) == b"first"
    assert all(message["more_body"] for message in received)

    await client.send(b"after")
    received = [await probe.receive()]
    while received[-1]["more_body"]:
        received.append(await probe.receive())
    assert b"".join(message["body"] for message in received) == b"after"
    await finish(client, probe)


async def test_only_the_disconnect_is_received_after_the_last_piece(serve):
    probe = Probe()
    server = serve(probe)
    client = server.connect()
    await client.send(post(b"hello"))
    await probe.called.wait()
    assert await read_body(probe.receive) == b"hello"
    waiting = asyncio.ensure_future(probe.receive())
    await turns(20)
    assert not waiting.done()
    client.reset()
    assert await waiting == {"type": "http.disconnect"}
    assert await probe.receive() == {"type": "http.disconnect"}
    probe.done.set()


async def test_the_response_ends_a_receive_that_waits(serve):
    probe = Probe()
    client = serve(probe).connect()
    await client.send(get())
    await probe.called.wait()
    await probe.receive()
    waiting = asyncio.ensure_future(probe.receive())
    await respond(probe.send)
    assert await waiting == {"type": "http.disconnect"}
    assert await probe.receive() == {"type": "http.disconnect"}
    await client.response()
    probe.done.set()


async def test_after_the_response_an_unread_body_is_no_longer_received(serve):
    probe = Probe()
    client = serve(probe).connect()
    await client.send(post(b"hello"))
    await probe.called.wait()
    await respond(probe.send)
    assert await probe.receive() == {"type": "http.disconnect"}
    await client.response()
    probe.done.set()


@pytest.mark.parametrize("after", range(6))
async def test_a_cancelled_receive_loses_nothing(serve, after):
    """The cancellation may come before or after the data, or in the turn that woke the task."""
    probe = Probe()
    client = serve(probe).connect()
    await client.send(request(b"POST", b"/", b"Content-Length: 11"))
    await probe.called.wait()
    received = b""
    for piece in (b"hel", b"lo ", b"wo"):
        waiting = asyncio.ensure_future(probe.receive())
        await turns(2)
        client.sock.send(piece)
        await turns(after)
        waiting.cancel()
        await asyncio.wait([waiting])
        if not waiting.cancelled():
            received += waiting.result()["body"]
    await client.send(b"rld")
    assert received + await read_body(probe.receive) == b"hello world"
    await finish(client, probe)


async def test_a_receive_with_a_timeout_loses_nothing(serve):
    got = []

    async def app(scope, receive, send):
        more = True
        while more:
            try:
                async with asyncio.timeout(0.001):
                    message = await receive()
            except TimeoutError:
                continue
            got.append(message["body"])
            more = message["more_body"]
        await respond(send)

    client = serve(app).connect()
    await client.send(request(b"POST", b"/", b"Content-Length: 26"))
    for letter in b"abcdefghijklmnopqrstuvwxyz":
        await turns(20)
        await client.send(bytes([letter]))
    await client.response()
    assert b"".join(got) == b"abcdefghijklmnopqrstuvwxyz"


async def test_concurrent_receives_share_the_body(serve):
    probe = Probe()
    client = serve(probe).connect()
    await client.send(request(b"POST", b"/", b"Content-Length: 4"))
    await probe.called.wait()
    receivers = [asyncio.ensure_future(probe.receive()) for _ in range(3)]
    for piece in (b"a", b"b", b"c"):
        await client.send(piece)
        await until(lambda piece=piece: any(body_of(task) == piece for task in receivers))
    await client.send(b"d")
    assert await read_body(probe.receive) == b"d"
    assert sorted(body_of(task) for task in receivers) == [b"a", b"b", b"c"]
    await finish(client, probe)


def body_of(task):
    return task.result()["body"] if task.done() else None


async def test_every_waiting_receive_learns_of_the_disconnect(serve):
    probe = Probe()
    client = serve(probe).connect()
    await client.send(get())
    await probe.called.wait()
    await probe.receive()
    receivers = [asyncio.ensure_future(probe.receive()) for _ in range(3)]
    await turns(5)
    client.reset()
    assert await asyncio.gather(*receivers) == [{"type": "http.disconnect"}] * 3
    probe.done.set()


async def test_bodies_are_bytes(serve):
    kinds = set()

    async def app(scope, receive, send):
        more = True
        while more:
            message = await receive()
            kinds.add(type(message["body"]))
            more = message["more_body"]
        await respond(send)

    client = serve(app).connect()
    await client.request(post(b"hello"))
    await client.request(post_chunked(b"hello", b"x"))
    assert kinds == {bytes}


class TestLarge:
    @pytest.fixture
    def piece(self):
        return None

    @pytest.mark.parametrize("framing", ["length", "chunked"])
    async def test_a_large_upload_arrives_whole(self, serve, framing):
        body = random.Random(1).randbytes(20 * MEGABYTE)
        digest = hashlib.sha256()

        async def app(scope, receive, send):
            more = True
            while more:
                message = await receive()
                digest.update(message["body"])
                more = message["more_body"]
            await respond(send)

        client = serve(app).connect()
        if framing == "length":
            data = post(body)
        else:
            pieces = [body[at : at + 100_000] for at in range(0, len(body), 100_000)]
            data = post_chunked(*pieces)
        assert (await client.request(data)).status == 200
        assert digest.digest() == hashlib.sha256(body).digest()
        assert (await client.request(get())).status == 200

    @pytest.mark.parametrize("framing", ["length", "chunked"])
    async def test_an_application_that_does_not_receive_stops_the_client(self, serve, framing):
        """Besides, little of the body waits in memory."""
        size = 50 * MEGABYTE
        probe = Probe()
        client = serve(probe).connect()
        body = bytes(size)
        data = post(body) if framing == "length" else post_chunked(body)
        sent = await client.push(data)
        assert sent < size // 2

        message = await probe.receive()
        assert len(message["body"]) < MEGABYTE
        received = len(message["body"])
        sending = asyncio.ensure_future(client.send(data[sent:]))
        while message["more_body"]:
            message = await probe.receive()
            received += len(message["body"])
            assert len(message["body"]) < MEGABYTE
        assert received == size
        await sending
        await finish(client, probe)

    async def test_chunk_headers_leave_no_deadline_for_the_next_request(self, serve):
        """They count like a header section, but only until the body ends."""
        server = serve(echo, timeout_request_header=10, timeout_keep_alive=100)
        client = server.connect()
        for data in (request(b"POST", b"/", b"Transfer-Encoding: chunked"), b"1\r\n", b"x\r\n"):
            await client.send(data)
            await turns(10)
        await client.send_pieces([b"0", b"\r", b"\n", b"\r", b"\n"])
        assert (await client.response()).body == b"x"
        server.advance(50)
        await client.quiet()
        assert (await client.request(post(b"y"))).body == b"y"

    async def test_a_body_in_many_tiny_chunks_arrives_whole(self, serve):
        client = serve(echo).connect()
        data = post_chunked(*[b"x"] * 50_000)
        assert (await client.request(data)).body == b"x" * 50_000

    @pytest.mark.parametrize("size", [60_000, 65_536, 65_537, 70_000, 131_072, 300_000])
    async def test_a_paused_upload_goes_on_when_received(self, serve, size):
        """The next request follows immediately."""
        release = asyncio.Event()
        record = Recorder()

        async def app(scope, receive, send):
            await release.wait()
            await record(scope, receive, send)

        client = serve(app).connect()
        body = bytes(size)
        sending = asyncio.ensure_future(client.send(post(body) + get(b"/next")))
        await turns(50)
        release.set()
        assert (await client.response()).body == body
        assert (await client.response()).body == b""
        await sending
        assert record.scopes[1]["path"] == "/next"

    @pytest.mark.parametrize("size", [1, 65_535, 65_536, 65_537, 200_000])
    @pytest.mark.parametrize("framing", ["length", "chunked"])
    async def test_an_unread_body_does_not_hurt_the_next_request(self, serve, framing, size):
        client = serve(hello).connect()
        body = b"GET /x HTTP/1.1\r\nHost: evil\r\n\r\n" * (size // 31 + 1)
        data = post(body[:size]) if framing == "length" else post_chunked(body[:size])
        for _ in range(3):
            response = await client.request(data)
            assert response.body == b"hello"
            assert not response.closes
        await client.quiet()
