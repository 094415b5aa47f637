"""Limits on what a client may send: 414, 431 and 413."""

from __future__ import annotations

import pytest

from .apps import Disconnected, Gate, Recorder, hello, read_body, respond
from .wire import Client, get, post, post_chunked, request, turns, until


async def refused(client: Client, status: int) -> None:
    response = await client.response()
    assert response.status == status
    assert response.closes
    await client.closed()


# -- request line ----------------------------------------------------------------------


async def test_a_target_below_the_limit_is_accepted(serve):
    record = Recorder()
    client = serve(record, limit_request_line=100).connect()
    assert (await client.request(get(b"/" + b"a" * 80))).status == 200
    assert record.scope["path"] == "/" + "a" * 80


@pytest.mark.parametrize("size", [101, 1000, 100_000])
@pytest.mark.parametrize("query", [b"", b"?"])
async def test_a_target_that_is_too_long_is_refused(serve, size, query):
    record = Recorder()
    client = serve(record, limit_request_line=100).connect()
    await client.send(get(b"/" + query + b"a" * size))
    await refused(client, 414)
    assert record.calls == 0


@pytest.mark.parametrize("piece", [1, 50])
async def test_a_target_that_is_too_long_is_refused_if_it_comes_in_pieces(serve, piece):
    record = Recorder()
    client = serve(record, limit_request_line=100).connect(piece=piece)
    await client.send(get(b"/" + b"a" * 200))
    await refused(client, 414)
    assert record.calls == 0


async def test_by_default_targets_of_8000_bytes_are_accepted(serve):
    record = Recorder()
    client = serve(record).connect()
    assert (await client.request(get(b"/" + b"a" * 8000))).status == 200
    await client.send(get(b"/" + b"a" * 8200))
    await refused(client, 414)


async def test_a_target_without_end_is_refused(serve):
    client = serve(Recorder()).connect()
    await client.push(b"GET /" + b"a" * 10_000_000)
    response = await client.response()
    assert response.status in (414, 431)


# -- fields ----------------------------------------------------------------------------


def with_fields(count: int, size: int = 1) -> bytes:
    """A request with `count` fields, the Host among them."""
    return get(b"/", *[b"X-%04d: %b" % (n, b"v" * size) for n in range(count - 1)])


async def test_as_many_fields_as_the_limit_are_accepted(serve):
    record = Recorder()
    client = serve(record).connect()
    assert (await client.request(with_fields(100))).status == 200
    assert len(record.scope["headers"]) == 100


@pytest.mark.parametrize("before", [get(b"/first"), post(b"body"), post_chunked(b"body")])
async def test_fields_that_begin_after_another_request_are_counted(serve, before):
    """In one piece with the end of the other request; that piece must be counted, too."""
    record = Recorder()
    client = serve(record).connect()
    await client.send(before[:-2])
    await turns(3)
    await client.send(before[-2:] + with_fields(150)[:-2])
    assert (await client.response()).status == 200
    await client.send(b"\r\n")
    await refused(client, 431)
    assert record.calls == 1


async def test_as_many_fields_as_the_limit_are_accepted_after_another_request(serve):
    record = Recorder()
    client = serve(record).connect()
    await client.send(get(b"/first") + with_fields(100)[:-2])
    assert (await client.response()).status == 200
    await client.send(b"\r\n")
    assert (await client.response()).status == 200


@pytest.mark.parametrize("count", [101, 5000])
async def test_too_many_fields_are_refused(serve, count):
    record = Recorder()
    client = serve(record).connect()
    await client.send(with_fields(count))
    await refused(client, 431)
    assert record.calls == 0


@pytest.mark.parametrize("piece", [1, 100])
async def test_too_many_fields_are_refused_if_they_come_in_pieces(serve, piece):
    record = Recorder()
    client = serve(record, limit_request_fields=10).connect(piece=piece)
    await client.send(with_fields(11))
    await refused(client, 431)
    assert record.calls == 0


async def test_a_header_section_below_the_limit_is_accepted(serve):
    client = serve(Recorder()).connect()
    assert (await client.request(with_fields(100, 600))).status == 200


@pytest.mark.parametrize(("count", "size"), [(2, 70_000), (100, 700), (2, 3_000_000)])
async def test_a_header_section_that_is_too_large_is_refused(serve, count, size):
    record = Recorder()
    client = serve(record).connect()
    await client.push(with_fields(count, size))
    await refused(client, 431)
    assert record.calls == 0


@pytest.mark.parametrize("piece", [1, 100])
async def test_a_header_section_that_is_too_large_is_refused_if_it_comes_in_pieces(serve, piece):
    record = Recorder()
    client = serve(record, limit_request_header_size=256).connect(piece=piece)
    await client.send(with_fields(5, 100))
    await refused(client, 431)
    assert record.calls == 0


async def test_a_header_section_without_end_is_refused(serve):
    client = serve(Recorder()).connect()
    await client.push(b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 1_000_000)
    assert (await client.response()).status == 431


async def test_limits_also_apply_after_another_request(serve):
    """In one write, so that there is no boundary before the second request."""
    record = Recorder()
    server = serve(record, limit_request_header_size=1000, limit_request_fields=20)
    for bad, status in (
        (with_fields(15, 200), 431),
        (with_fields(21), 431),
        (get(b"/" + b"a" * 8200), 414),
    ):
        client = server.connect()
        await client.send(get(b"/1") + bad)
        assert (await client.response()).status == 200
        await refused(client, status)
    assert [scope["path"] for scope in record.scopes] == ["/1"] * 3


async def test_every_request_of_a_connection_has_the_whole_limit(serve):
    client = serve(Recorder(), limit_request_header_size=1000).connect()
    for _ in range(20):
        assert (await client.request(with_fields(8, 100))).status == 200
    await client.send(with_fields(8, 100) * 20)
    for _ in range(20):
        assert (await client.response()).status == 200


async def test_a_body_does_not_count_as_header(serve):
    client = serve(Recorder(), limit_request_header_size=256).connect()
    for _ in range(3):
        assert (await client.request(post(bytes(100_000)))).status == 200


async def test_endless_empty_lines_do_not_keep_a_connection_open(serve):
    client = serve(Recorder()).connect()
    await client.push(b"\r\n" * 1_000_000)
    assert (await client.response()).status in (400, 431)


@pytest.mark.parametrize(
    "trailers", [b"X-A: b\r\n" * 200_000, b"X-A: " + b"b" * 1_000_000 + b"\r\n"]
)
async def test_trailers_have_limits_too(serve, trailers):
    client = serve(Recorder()).connect()
    await client.push(post_chunked(b"x", trailers=trailers))
    assert (await client.response()).status in (400, 431)


# -- body ------------------------------------------------------------------------------


async def test_a_body_exactly_at_the_limit_is_accepted(serve):
    client = serve(Recorder(), limit_request_body=1000).connect()
    assert (await client.request(post(bytes(1000)))).status == 200
    assert (await client.request(post_chunked(bytes(400), bytes(600)))).status == 200


@pytest.mark.parametrize("size", [1001, 10_000_000])
async def test_a_body_that_will_be_too_large_is_refused(serve, size):
    """Known from its Content-Length, before any byte has arrived."""
    record = Recorder()
    client = serve(record, limit_request_body=1000).connect()
    await client.send(request(b"POST", b"/", b"Content-Length: %d" % size))
    await refused(client, 413)
    assert record.calls == 0


async def test_a_body_that_will_be_too_large_is_not_asked_for(serve):
    client = serve(Recorder(), limit_request_body=1000).connect()
    fields = (b"Content-Length: 1001", b"Expect: 100-continue")
    await client.send(request(b"POST", b"/", *fields))
    await refused(client, 413)


@pytest.mark.parametrize("chunk", [100, 1001, 60_000])
async def test_a_chunked_body_that_gets_too_large_is_refused(serve, chunk):
    record = Recorder()
    client = serve(record, limit_request_body=1000).connect()
    await client.send(post_chunked(*[bytes(chunk)] * 20))
    await refused(client, 413)
    assert record.bodies == []


async def test_a_chunked_body_that_gets_too_large_is_a_disconnect_to_the_application(serve):
    outcome = []

    async def app(scope, receive, send):
        try:
            await read_body(receive)
        except Disconnected:
            outcome.append("disconnected")

    server = serve(app, limit_request_body=1000)
    client = server.connect()
    await client.send(request(b"POST", b"/", b"Transfer-Encoding: chunked"))
    await until(lambda: server.service.running)
    for _ in range(11):
        await client.send(b"64\r\n" + bytes(100) + b"\r\n")
        await turns(3)
    await refused(client, 413)
    await until(lambda: outcome)


async def test_a_body_that_is_too_large_after_another_request_is_refused(serve):
    gate = Gate()
    client = serve(gate, limit_request_body=1000).connect()
    await client.send(get(b"/1") + post(bytes(1001)))
    await until(lambda: gate.paths)
    gate.open.set()
    assert (await client.response()).body == b"/1"
    await refused(client, 413)
    assert gate.paths == ["/1"]


async def test_a_large_body_that_is_refused_is_not_held_in_memory(serve):
    """The client may continue to send, and still reads why it was refused."""
    client = serve(Recorder(), limit_request_body=1000).connect()
    await client.send(post(bytes(5_000_000)))
    await refused(client, 413)


async def test_by_default_bodies_have_no_limit(serve):
    async def app(scope, receive, send):
        await respond(send, b"%d" % len(await read_body(receive)))

    client = serve(app).connect()
    assert (await client.request(post(bytes(20_000_000)))).body == b"20000000"


async def test_limits_do_not_affect_other_connections(serve):
    server = serve(hello, limit_request_body=10)
    await refused_by(server, post(bytes(11)))
    assert (await server.connect().request(post(bytes(10)))).status == 200


async def refused_by(server, data):
    client = server.connect()
    await client.send(data)
    await refused(client, 413)
