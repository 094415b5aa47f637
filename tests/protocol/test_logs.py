"""The access log in its formats, and log lines about connections, for real requests."""

from __future__ import annotations

import io
import json
import logging
import os
import re
from types import SimpleNamespace

import pytest

from esg.log.records import TRACE, access_logger, logger
from esg.server.accesslog import entries

from .apps import Disconnected, Gate, hello, piece, read_body, respond, start
from .wire import get, request, turns, until

FORMAT = '"%(r)s" %(s)s %(b)s %({x-id}i)s %({x-kind}o)s %(D)s'


@pytest.fixture
def written():
    """A pipe, and a function that returns the lines written to it so far."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)

    async def lines():
        await turns(10)
        try:
            return os.read(read_end, 1 << 20).decode().splitlines()
        except BlockingIOError:
            return []

    lines.fd = write_end
    yield lines
    os.close(read_end)
    os.close(write_end)


async def sizes(serve, written, app, *requests, **settings):
    """The value of `%(b)s` for each of these requests."""
    server = serve(app, log_fd=written.fd, access_logformat="%(b)s", **settings)
    client = server.connect()
    for data in requests:
        await client.request(data)
    await until(lambda: sum(server.service.statuses) == len(requests))
    return await written()


# -- formats ---------------------------------------------------------------------------


async def test_a_line_has_the_configured_format(serve, written):
    async def app(scope, receive, send):
        await respond(send, b"12345", 201, [(b"X-Kind", b"new")])

    client = serve(app, log_fd=written.fd, access_logformat=FORMAT).connect()
    await client.request(get(b"/a?b=%20", b"X-Id: 7"))
    await client.request(get(b"/b"))
    first, second = await written()
    assert re.fullmatch(r'"GET /a\?b=%20 HTTP/1\.1" 201 5 7 new \d+', first)
    assert re.fullmatch(r'"GET /b HTTP/1\.1" 201 5 - new \d+', second)


async def test_the_duration_is_from_the_request_header_to_the_end_of_the_response(
    serve, written, monkeypatch
):
    clock = [100.0]
    monkeypatch.setattr(entries, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    gate = Gate()
    client = serve(gate, log_fd=written.fd, access_logformat="%(L)s %(T)s %(M)s %(D)s").connect()
    await client.send(b"GET / HTTP/1.1\r\n")
    await turns(5)
    clock[0] += 10  # not counted, because the client was slow
    await client.send(b"Host: a\r\n\r\n")
    await until(lambda: gate.paths)
    clock[0] += 1.25
    gate.open.set()
    await client.response()
    assert await written() == ["1.250000 1 1250 1250000"]


# -- sizes -----------------------------------------------------------------------------


async def test_the_size_of_a_body_of_known_length(serve, written):
    assert await sizes(serve, written, hello, get()) == ["5"]


async def test_the_size_of_a_body_in_chunks_is_without_their_frames(serve, written):
    async def app(scope, receive, send):
        await start(send)
        for size in (1, 10, 100):
            await piece(send, b"x" * size)
        await piece(send, more=False)

    assert await sizes(serve, written, app, get()) == ["111"]


async def test_a_response_to_head_has_the_size_0(serve, written):
    client = serve(hello, log_fd=written.fd, access_logformat="%(m)s %(b)s").connect()
    await client.send(request(b"HEAD", b"/"))
    await client.response("HEAD")
    assert await written() == ["HEAD 0"]


async def test_a_status_without_a_body_has_the_size_0(serve, written):
    async def app(scope, receive, send):
        await respond(send, b"", 204)

    assert await sizes(serve, written, app, get()) == ["0"]


async def test_only_the_sent_part_of_a_body_that_is_too_long_counts(serve, written, log):
    async def app(scope, receive, send):
        await respond(send, b"12345678", 200, [(b"content-length", b"3")])

    assert await sizes(serve, written, app, get()) == ["3"]
    log.claim("longer than its Content-Length")


async def test_a_page_with_a_traceback_counts(serve, written, log):
    async def app(scope, receive, send):
        raise ValueError

    client = serve(app, debug=True, log_fd=written.fd, access_logformat="%(b)s").connect()
    await client.send(get())
    response = await client.response()
    assert await written() == [str(len(response.body))]
    log.claim("exception in the application")


async def test_a_file_counts(serve, written, tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 1000)

    async def app(scope, receive, send):
        await start(send, 200, [(b"content-length", b"1000")])
        await send({"type": "http.response.pathsend", "path": str(tmp_path / "file")})

    assert await sizes(serve, written, app, get(), sendfile=True) == ["1000"]


async def test_the_servers_own_answer_to_a_failed_request_counts(serve, written, log):
    async def app(scope, receive, send):
        await start(send)
        raise ValueError

    assert await sizes(serve, written, app, get()) == [str(len("Internal Server Error"))]
    log.claim("exception in the application")


async def test_an_upload_that_is_refused_on_the_way_has_the_size_of_the_refusal(serve, written):
    async def app(scope, receive, send):
        with pytest.raises(Disconnected):
            await read_body(receive)

    server = serve(
        app, log_fd=written.fd, access_logformat="%(s)s %(b)s %({x}o)s", limit_request_body=3
    )
    client = server.connect()
    await client.send(request(b"POST", b"/", b"Transfer-Encoding: chunked") + b"2\r\nab\r\n")
    await until(lambda: server.service.running)
    await client.send(b"9\r\nmuch more\r\n")
    response = await client.response()
    assert await written() == [f"413 {len(response.body)} -"]


@pytest.mark.parametrize("version", [b"1.2", b"3.0"])
async def test_a_request_of_another_version_is_logged_with_that_version(serve, written, version):
    client = serve(hello, log_fd=written.fd, access_logformat="%(r)s %(s)s").connect()
    await client.send(get(b"/a", version=version))
    assert (await client.response()).status == 505
    assert await written() == [f"GET /a HTTP/{version.decode()} 505"]


# -- applications that misbehave ---------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"access_logformat": "combined"}, {"log_format": "json"}])
async def test_an_application_that_empties_its_scope_breaks_nothing(serve, written, log, settings):
    async def app(scope, receive, send):
        if scope["path"] == "/empty":
            scope.clear()
        await respond(send)

    client = serve(app, log_fd=written.fd, **settings).connect()
    for path in (b"/empty", b"/empty", b"/whole"):
        assert (await client.request(get(path))).status == 200
    (line,) = await written()
    assert "/whole" in line
    log.claim("access log: can't write the line of a request")


@pytest.mark.parametrize("body", ["text", None, 5])
async def test_a_body_of_a_wrong_type_is_reported_as_usual(serve, written, log, body):
    async def app(scope, receive, send):
        await start(send)
        await send({"type": "http.response.body", "body": body})

    assert await sizes(serve, written, app, get()) == ["21"]
    assert "the body is bytes, not" in log.claim("exception in the application")


async def test_fields_from_a_one_time_iterator_are_sent_and_logged(serve, written):
    async def app(scope, receive, send):
        fields = (field for field in [(b"x-kind", b"rare")])
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await piece(send, more=False)

    client = serve(app, log_fd=written.fd, access_logformat="%({x-kind}o)s").connect()
    response = await client.request(get())
    assert response[b"x-kind"] == b"rare"
    assert await written() == ["rare"]


# -- JSON ------------------------------------------------------------------------------


async def test_each_request_has_a_json_line(serve, written):
    client = serve(hello, log_fd=written.fd, log_format="json").connect()
    await client.request(get(b"/a?b", b"X-Request-ID: r-1"))
    host, port = client.sock.getsockname()
    (line,) = await written()
    fields = json.loads(line)
    assert fields["message"] == f'{host}:{port} - "GET /a?b HTTP/1.1" 200'
    assert (fields["path"], fields["query"], fields["request_id"]) == ("/a", "b", "r-1")
    assert (fields["status"], fields["bytes"], fields["client"]) == (200, 5, host)
    assert (fields["worker"], fields["generation"], fields["pid"]) == (1, 1, 1)
    assert 0 < fields["duration"] < 5


async def test_a_format_is_the_message_of_a_json_line(serve, written):
    settings = {"log_format": "json", "access_logformat": "%(m)s took %(D)s us"}
    client = serve(hello, log_fd=written.fd, **settings).connect()
    await client.request(get())
    (line,) = await written()
    assert re.fullmatch(r"GET took \d+ us", json.loads(line)["message"])


# -- through a logger ------------------------------------------------------------------


@pytest.fixture
def access_records():
    """The records of the logger `esg.access`."""
    records, handler = [], logging.StreamHandler(io.StringIO())
    handler.emit = records.append
    before = access_logger.level, access_logger.propagate
    access_logger.addHandler(handler)
    access_logger.setLevel(logging.INFO)
    access_logger.propagate = False
    yield records
    access_logger.removeHandler(handler)
    access_logger.level, access_logger.propagate = before


async def test_a_log_config_gets_records_with_uvicorns_arguments(serve, access_records):
    client = serve(hello, log_fd=-1).connect()
    await client.request(get(b'/"?b'))
    host, port = client.sock.getsockname()
    (record,) = access_records
    assert record.args == (f"{host}:{port}", "GET", "/\\x22?b", "1.1", 200)
    assert record.getMessage() == f'{host}:{port} - "GET /\\x22?b HTTP/1.1" 200'


async def test_a_log_config_with_a_format_gets_lines_in_it(serve, access_records):
    client = serve(hello, log_fd=-1, access_logformat="%(s)s %(b)s").connect()
    await client.request(get())
    assert [record.getMessage() for record in access_records] == ["200 5"]


async def test_a_logger_that_is_off_costs_no_record(serve, access_records):
    access_logger.setLevel(logging.WARNING)
    assert (await serve(hello, log_fd=-1).connect().request(get())).status == 200
    assert access_records == []


# -- tracing ---------------------------------------------------------------------------


async def test_at_level_trace_connections_and_requests_are_logged(serve, log):
    logger.setLevel(TRACE)
    server = serve(hello)
    client = server.connect()
    await client.request(get(b'/a"%0a'))
    host, port = client.sock.getsockname()
    client.close()
    await server.connections(0)
    assert log.messages == [
        f"worker=1 gen=1 pid=1 {host}:{port}: connection opened",
        f"worker=1 gen=1 pid=1 {host}:{port}: request begun: GET '/a\"%0a'",
        f"worker=1 gen=1 pid=1 {host}:{port}: connection closed",
    ]


async def test_at_level_debug_connections_and_requests_are_not_logged(serve, log):
    server = serve(hello)
    await server.connect().request(get())
    assert log.messages == []
