"""The access log, the scoreboard and the worker learn about requests."""

from __future__ import annotations

import json
import os
import re

import pytest

from esg.scoreboard import Cell
from esg.server.asgi.disconnection import ClientDisconnected

from .apps import Disconnected, Gate, hello, piece, read_body, respond, start
from .wire import Truncated, get, request, turns, until


@pytest.fixture
def access_log():
    """A pipe, and a function that returns the lines written to it so far."""
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


async def test_each_request_has_a_line(serve, access_log):
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


async def test_a_response_has_one_line_if_the_client_leaves_in_the_middle(serve, access_log):
    gate = Gate()

    async def app(scope, receive, send):
        await start(send)
        await piece(send, b"part")
        await gate.open.wait()
        with pytest.raises(ClientDisconnected):
            await piece(send)

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


async def test_no_data_from_a_client_can_forge_a_log_line(serve, access_log):
    client = serve(hello, log_fd=access_log.fd).connect()
    await client.request(get(b'/"%0a\\'))
    (line,) = await lines_after(access_log)
    assert line.count('"') == 2


async def test_the_scoreboard_counts_requests_by_status(serve, log):
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


async def test_the_scoreboard_has_connections_and_requests_in_progress(serve):
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


async def test_the_worker_is_called_once_when_it_is_due(serve):
    server = serve(hello, max_requests=3)
    client = server.connect()
    for _ in range(6):
        assert (await client.request(get())).status == 200
    assert server.dues == [3]


# -- requests that ESG answers itself ----------------------------------------------------

LONG = b"x" * 9000

REFUSED = {
    "not HTTP": (b"nonsense\r\n\r\n", 400, "-"),
    "no Host": (b"GET /h HTTP/1.1\r\n\r\n", 400, r"GET /h HTTP/1\.1|-"),
    "a target that isn't ASCII": (
        b"GET /\xff HTTP/1.1\r\nHost: h\r\n\r\n",
        400,
        r"(GET /\\xff HTTP/1\.1|-)",
    ),
    "a body that is too large": (
        b"POST /b?c HTTP/1.1\r\nHost: h\r\nContent-Length: 101\r\n\r\n",
        413,
        "POST /b?c HTTP/1.1",
    ),
    "a chunked body that is too large": (
        b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n65\r\n" + b"b" * 101,
        413,
        "POST /c HTTP/1.1",
    ),
    "a target that is too long": (b"GET /" + LONG + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414, ".*"),
    "a target without end": (b"GET /" + LONG, 414, ".*"),
    "too many fields": (
        b"GET /f HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        431,
        "GET /f HTTP/1.1",
    ),
    "CONNECT": (b"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n", 501, r"CONNECT h:443 HTTP/1\.1"),
    "an unknown coding": (
        b"POST /t HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n",
        501,
        "POST /t HTTP/1.1|-",
    ),
}


@pytest.mark.parametrize(("data", "status", "line"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("log_format", ["uvicorn", "combined", "json"])
async def test_a_request_that_is_refused_has_a_line(
    serve, access_log, data, status, line, log_format
):
    options = {
        "uvicorn": {},
        "combined": {"access_logformat": "combined"},
        "json": {"log_format": "json", "access_logformat": "combined"},
    }[log_format]

    async def app(scope, receive, send):
        await read_body(receive)
        await respond(send, b"served")

    client = serve(app, log_fd=access_log.fd, limit_request_body=100, **options).connect()
    await client.send(data)
    response = await client.response()
    assert response.status == status
    (logged,) = await lines_after(access_log)
    if log_format == "json":
        fields = json.loads(logged)
        assert fields["status"] == status
        assert fields["bytes"] == len(response.body)
        logged = fields["message"]
    quoted = re.findall(r'"([^"]*)"', logged)
    assert re.fullmatch(line.replace("?", r"\?"), quoted[0])
    assert f'" {status} ' in logged


@pytest.mark.parametrize("sent", [b"", b"GET /half HTTP/1.1\r\nHost: h\r\n"])
async def test_a_late_request_header_has_a_line(serve, access_log, sent):
    server = serve(hello, log_fd=access_log.fd, timeout_request_header=5)
    client = server.connect()
    await client.send(sent)
    await turns(10)
    server.advance(10)
    lines = await lines_after(access_log)
    if sent:
        (line,) = lines
        assert re.search(r'"(GET /half HTTP/1\.1|-)" 408 Request Timeout', line)
    else:
        assert lines == [], "a connection without a byte of a request has none"


async def test_the_lines_of_refused_requests_are_in_order(serve, access_log):
    gate = Gate()
    client = serve(gate, log_fd=access_log.fd).connect()
    await client.send(get(b"/first") + b"nonsense\r\n\r\n")
    await turns(10)
    assert access_log() == []
    gate.open.set()
    await client.response()
    await client.response()
    lines = await lines_after(access_log)
    assert [line.rpartition('" ')[2] for line in lines] == ["200 OK", "400 Bad Request"]


async def test_a_refused_request_goes_to_a_log_config_too(serve, caplog):
    caplog.set_level("INFO", logger="esg.access")
    client = serve(hello, log_fd=-1).connect()
    await client.send(b"nonsense\r\n\r\n")
    await client.response()
    (record,) = [record for record in caplog.records if record.name == "esg.access"]
    assert record.args[1:] == ("-", "-", "-", 400)


async def test_without_an_access_log_a_refused_request_is_not_remembered(serve):
    server = serve(hello)
    client = server.connect()
    await client.send(b"nonsense\r\n\r\n")
    assert (await client.response()).status == 400


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"http://h/abs?x=1", "/abs", "x=1"),
        (b"http://h?x", "/", "x"),
        (b"http://h", "/", ""),
        (b"/a://b?c", "/a://b", "c"),
        (b"http://h/p?u=http://o/q", "/p", "u=http://o/q"),
    ],
)
async def test_the_path_of_an_absolute_target_is_its_path(serve, access_log, target, path, query):
    options = {"log_format": "json", "access_logformat": "%(U)s|%(q)s|%({path_info}e)s"}
    client = serve(hello, log_fd=access_log.fd, **options).connect()
    await client.request(b"GET " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n")
    (line,) = await lines_after(access_log)
    fields = json.loads(line)
    assert fields["message"] == f"{path}|{query}|{path}"
    assert (fields["path"], fields.get("query", "")) == (path, query)
