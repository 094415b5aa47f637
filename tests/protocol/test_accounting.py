"""What the access log, the scoreboard and the worker are told of requests."""

from __future__ import annotations

import os
import re

import pytest

from esg.scoreboard import Cell
from esg.server.http1.exchange import ClientDisconnected

from .apps import Disconnected, Gate, hello, piece, read_body, respond, start
from .wire import Truncated, get, request, turns, until


@pytest.fixture
def access_log():
    """A pipe, and a function that gives the lines written to it so far."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)

    def lines():
        try:
            return os.read(read_end, 1 << 20).decode().splitlines()
        except BlockingIOError:
            return []

    lines.fd = write_end
    yield lines
    os.close(read_end)
    os.close(write_end)


async def lines_after(log):
    await turns(10)
    return log()


async def test_a_line_for_each_request(serve, access_log):
    client = serve(hello, log_fd=access_log.fd).connect()
    await client.request(get(b"/a%20b?c=d"))
    await client.request(get(b"/", b"Connection: close", version=b"1.0"))
    host, port = client.sock.getsockname()
    assert await lines_after(access_log) == [
        f'INFO:     {host}:{port} - "GET /a%20b?c=d HTTP/1.1" 200 OK',
        f'INFO:     {host}:{port} - "GET / HTTP/1.0" 200 OK',
    ]


async def test_lines_of_pipelined_requests_are_in_order(serve, access_log):
    client = serve(hello, log_fd=access_log.fd).connect()
    await client.send(b"".join(get(b"/%d" % number) for number in range(30)))
    for _ in range(30):
        await client.response()
    lines = await lines_after(access_log)
    assert [re.search(r"GET /(\d+) ", line)[1] for line in lines] == [str(n) for n in range(30)]


async def test_a_failed_request_has_a_line(serve, access_log, log):
    async def app(scope, receive, send):
        raise ValueError

    client = serve(app, log_fd=access_log.fd).connect()
    await client.request(get(b"/bad"))
    (line,) = await lines_after(access_log)
    assert line.endswith('"GET /bad HTTP/1.1" 500 Internal Server Error')
    log.claim("exception in the application")


async def test_a_cut_response_has_one_line(serve, access_log, log):
    async def app(scope, receive, send):
        await start(send)
        await piece(send, b"part")
        raise ValueError

    client = serve(app, log_fd=access_log.fd).connect()
    with pytest.raises((ConnectionResetError, Truncated)):
        await client.request(get())
    assert len(await lines_after(access_log)) == 1
    log.claim("exception in the application")


async def test_a_response_whose_client_left_in_its_middle_has_one_line(serve, access_log):
    gate = Gate()

    async def app(scope, receive, send):
        await start(send)
        await piece(send, b"part")
        await gate.open.wait()
        with pytest.raises(ClientDisconnected):
            await piece(send, more=False)

    server = serve(app, log_fd=access_log.fd)
    client = server.connect()
    await client.send(get())
    await client.head()
    client.reset()
    await server.connections(0)
    gate.open.set()
    await until(lambda: server.service.idle)
    assert len(await lines_after(access_log)) == 1


async def test_an_early_response_whose_client_left_has_one_line(serve, access_log):
    server = serve(hello, log_fd=access_log.fd)
    client = server.connect()
    await client.send(request(b"POST", b"/", b"Content-Length: 1000") + b"part")
    await client.response()
    client.reset()
    await server.connections(0)
    server.service.tick()
    assert len(await lines_after(access_log)) == 1
    assert server.row[Cell.STATUS_2XX] == 1


async def test_an_aborted_upload_has_at_most_one_line(serve, access_log):
    async def app(scope, receive, send):
        with pytest.raises(Disconnected):
            await read_body(receive)

    server = serve(app, limit_request_body=10, log_fd=access_log.fd)
    client = server.connect()
    data = request(b"POST", b"/", b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n"
    await client.send(data)
    await until(lambda: server.service.running)
    await client.send(b"9\r\nmuch more\r\n")
    assert (await client.response()).status == 413
    (line,) = await lines_after(access_log)
    assert '"POST / HTTP/1.1" 413' in line


async def test_nothing_a_client_sends_breaks_out_of_its_line(serve, access_log):
    client = serve(hello, log_fd=access_log.fd).connect()
    await client.request(get(b'/"%0a\\'))
    (line,) = await lines_after(access_log)
    assert line.count('"') == 2


async def test_counters(serve, log):
    async def app(scope, receive, send):
        if scope["path"] == "/0":
            raise ValueError
        await respond(send, status=int(scope["path"][1:]))

    server = serve(app)
    for status in (200, 200, 204, 302, 404, 404, 503):
        await server.connect().request(get(b"/%d" % status))
    await server.connect().request(get(b"/0"))
    log.claim("exception in the application")
    await server.connect().request(b"nonsense\r\n\r\n")
    server.service.tick()
    row = server.row
    assert row[Cell.REQUESTS] == 8
    assert row[Cell.STATUS_2XX] == 3
    assert row[Cell.STATUS_3XX] == 1
    assert row[Cell.STATUS_4XX] == 3
    assert row[Cell.STATUS_5XX] == 2


async def test_gauges(serve):
    gate = Gate()
    server = serve(gate)
    busy, _idle = server.connect(), server.connect()
    await busy.send(get())
    await until(lambda: gate.paths)
    await server.connections(2)
    server.service.tick()
    assert server.row[Cell.CONNECTIONS] == 2
    assert server.row[Cell.IN_FLIGHT] == 1
    assert server.row[Cell.LOAD] == 2
    assert not server.service.idle
    gate.open.set()
    await busy.response()
    await turns(5)
    server.service.tick()
    assert server.row[Cell.IN_FLIGHT] == 0


async def test_the_worker_is_told_once_when_it_is_due(serve):
    server = serve(hello, max_requests=3)
    client = server.connect()
    for _ in range(6):
        assert (await client.request(get())).status == 200
    assert server.dues == [3]
