"""WSGI applications over a real connection: PEP 3333, with the validator and beyond it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import io
import logging
import sys
import threading
import time
import tracemalloc
import weakref
from wsgiref.validate import validator

import pytest

from esg.server.http1.connection import SILENCE
from esg.server.state import TICK
from esg.server.wsgi.adapter import WSGIAdapter
from esg.server.wsgi.call import HOP_BY_HOP

from .wire import (
    Truncated,
    get,
    post,
    post_chunked,
    request,
    settled,
    turns,
    until,
)

MEGABYTE = 1 << 20
LONGEST_WAIT = 10.0
"""The most seconds that an application's thread waits for the test."""

KERNEL = 24 * MEGABYTE
"""More bytes than the kernel keeps for a loopback connection, at both ends together."""


def wsgi(status="200 OK", headers=(("Content-Type", "text/plain"),), body=(b"hello",)):
    """An application that returns this response."""

    def app(environ, start_response):
        start_response(status, list(headers))
        return body

    return app


class Result:
    """The result of an application, in pieces; it counts the calls of `close`."""

    def __init__(self, *pieces):
        self.pieces = iter(pieces)
        self.closed = 0
        self.thread = None

    def __iter__(self):
        return self

    def __next__(self):
        piece = next(self.pieces)
        if isinstance(piece, BaseException):
            raise piece
        return piece() if callable(piece) else piece

    def close(self):
        self.closed += 1
        self.thread = threading.current_thread()


def returning(result, headers=()):
    def app(environ, start_response):
        start_response("200 OK", list(headers))
        return result

    return app


# -- under the standard library's validator ---------------------------------------------


@validator
def checked(environ, start_response):
    """Reads the body with each method, and answers in pieces."""
    body = environ["wsgi.input"]
    if environ["REQUEST_METHOD"] in ("GET", "HEAD", "OPTIONS"):
        pieces = [environ["PATH_INFO"].encode("latin-1"), b"", b" and more"]
    else:
        how = environ["QUERY_STRING"]
        pieces = {
            "read": lambda: [body.read(1 << 30)],
            "line": lambda: list(iter(lambda: body.readline(), b"")),
            "lines": lambda: body.readlines(),
            "iterate": lambda: list(body),
        }[how]()
    environ["wsgi.errors"].flush()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return iter(pieces)


async def test_the_validator_passes_get_and_head(serve_wsgi):
    client = serve_wsgi(checked).connect()
    for _ in range(3):
        response = await client.request(get(b"/path?query=x"))
        assert response.body == b"/path and more"
        response = await client.request(request(b"HEAD", b"/path"), "HEAD")
        assert response.status == 200


@pytest.mark.parametrize("how", [b"read", b"line", b"lines", b"iterate"])
async def test_the_validator_passes_bodies(serve_wsgi, how):
    client = serve_wsgi(checked).connect()
    for body in (b"", b"line\nand another", b"\n" * 10, bytes(300_000)):
        target = b"/?" + how
        fields = b"Content-Type: application/octet-stream"
        response = await client.request(post(body, fields, target=target))
        assert response.body == body
        pieces = [body[at : at + 50_000] for at in range(0, len(body), 50_000)]
        response = await client.request(post_chunked(*pieces, target=target, fields=(fields,)))
        assert response.body == body


async def test_the_validator_passes_http10_and_options(serve_wsgi):
    server = serve_wsgi(checked)
    response = await server.connect().request(get(version=b"1.0"))
    assert response.body == b"/ and more"
    response = await server.connect().request(request(b"OPTIONS", b"*"))
    assert response.body == b" and more"


async def test_the_validator_passes_write_and_a_root_path(serve_wsgi):
    @validator
    def app(environ, start_response):
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        write(environ["SCRIPT_NAME"].encode())
        write(environ["PATH_INFO"].encode())
        return [b"."]

    client = serve_wsgi(app, root_path="/api").connect()
    response = await client.request(get(b"/x"))
    assert response.chunks == [b"/api", b"/x", b"."]


# -- the response's head ---------------------------------------------------------------


async def test_a_list_of_one_has_a_length(serve_wsgi):
    client = serve_wsgi(wsgi()).connect()
    response = await client.request(get())
    assert (response.status, response[b"content-length"], response.body) == (200, b"5", b"hello")
    assert response[b"content-type"] == b"text/plain"


async def test_a_given_length_is_kept(serve_wsgi):
    headers = [("Content-Length", "5")]
    for body in ([b"hello"], [b"hel", b"lo"], iter([b"hel", b"", b"lo", b""])):
        response = await serve_wsgi(wsgi(headers=headers, body=body)).connect().request(get())
        assert (response[b"content-length"], response.body) == (b"5", b"hello")


async def test_an_empty_body_has_length_zero(serve_wsgi):
    for body in ([], [b""], [b"", b""], iter([])):
        client = serve_wsgi(wsgi(body=body)).connect()
        response = await client.request(get())
        assert (response[b"content-length"], response.body) == (b"0", b"")
        assert not response.closes


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_a_status_without_a_body_is_not_chunked(serve_wsgi, status):
    client = serve_wsgi(wsgi(status, headers=[], body=[])).connect()
    for _ in range(2):
        response = await client.request(get())
        assert response.status == int(status[:3])
        assert b"transfer-encoding" not in response


async def test_head_has_the_length_but_not_the_body(serve_wsgi):
    client = serve_wsgi(wsgi()).connect()
    for _ in range(2):
        response = await client.request(request(b"HEAD", b"/"), "HEAD")
        assert response[b"content-length"] == b"5"


async def test_the_pieces_of_an_iterator_are_sent_in_chunks(serve_wsgi):
    client = serve_wsgi(wsgi(body=iter([b"a", b"", b"bc"]))).connect()
    response = await client.request(get())
    assert response.chunks == [b"a", b"bc"]


async def test_several_fields_of_one_name_are_sent(serve_wsgi):
    headers = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=\xe9")]
    response = await serve_wsgi(wsgi(headers=headers)).connect().request(get())
    assert response.all(b"set-cookie") == [b"a=1", b"b=\xe9"]


@pytest.mark.parametrize(
    ("status", "headers", "reason"),
    [
        ("20", [], "'20' isn't a status"),
        ("OK 200", [], "isn't a status"),
        ("100 Continue", [], "isn't a status"),
        ("200 OK\r\nX: y", [], "isn't a status"),
        (200, [], "the status is a string, not int"),
        ("200 \x00", [], "isn't a status"),
        ("200 a\tb", [], "isn't a status"),
        ("200 a\x7f", [], "isn't a status"),
        ("200 \u20ac", [], "can't be sent as Latin-1"),
        ("200 OK", [(b"X", b"y")], "strings, not b'X'"),
        ("200 OK", [("X", 1)], "strings, not 'X': 1"),
        ("200 OK", [("X", "\u20ac")], "can't be sent as Latin-1"),
        ("200 OK", [("X", "a\r\nSet-Cookie: b")], "CR, LF or NUL"),
        ("200 OK", [("X y", "a")], "valid header name"),
        ("200 OK", [("Content-Length", "5x")], "no length"),
    ],
)
async def test_a_head_that_cannot_be_sent_is_a_500(serve_wsgi, log, status, headers, reason):
    response = await serve_wsgi(wsgi(status, headers)).connect().request(get())
    assert response.status == 500
    assert reason in log.claim("exception in the application")


@pytest.mark.parametrize("body", [[b"hello"], [b"hel", b"lo"]])
async def test_hop_by_hop_fields_are_dropped(serve_wsgi, body):
    """Examples of event streams set Connection: keep-alive; PEP 3333 leaves these to the server."""
    headers = [(name.title(), "x") for name in (*HOP_BY_HOP, "connection")]
    app = wsgi(headers=[*headers, ("X-Other", "1"), ("Connection", "keep-alive")], body=body)
    client = serve_wsgi(app).connect()
    response = await client.request(get())
    assert (response.body, response[b"x-other"]) == (b"hello", b"1")
    names = {name for name, _ in response.fields}
    assert names <= {b"server", b"date", b"X-Other", b"content-length", b"transfer-encoding"}
    await client.quiet()


async def test_connection_close_is_obeyed(serve_wsgi):
    client = serve_wsgi(wsgi(headers=[("Connection", "Close")])).connect()
    assert (await client.request(get())).closes
    await client.closed()


@pytest.mark.parametrize(
    ("status", "line"),
    [
        ("404 Gone Fishing", b"404 Gone Fishing"),
        ("200 OK", b"200 OK"),
        ("299 My Own", b"299 My Own"),
        ("299", b"299 "),
        ("404 ", b"404 Not Found"),
        ("404", b"404 Not Found"),
        ("404  spaced ", b"404 spaced"),
        ("422 Unprocessable Entity", b"422 Unprocessable Entity"),
        ("404 Pas trouv\xc3\xa9", b"404 Pas trouv\xc3\xa9"),
    ],
)
async def test_the_reason_phrase_is_the_applications(serve_wsgi, status, line):
    client = serve_wsgi(wsgi(status)).connect()
    for _ in range(3):
        await client.send(get())
        expected = b"HTTP/1.1 %b\r\n" % line
        await client.exactly(expected)
        rest = await client.read(len(b"server: esg\r\n"))
        assert rest == b"server: esg\r\n"
        async with asyncio.timeout(LONGEST_WAIT):
            assert (await client._read_until(b"\r\n\r\n")).count(b"content-length: 5\r\n") == 1
        await client.exactly(b"hello")


async def test_a_reason_phrase_stays_with_its_response(serve_wsgi):
    def app(environ, start_response):
        start_response(environ["QUERY_STRING"].replace("+", " "), [("X-Same", "1")])
        return [b""]

    client = serve_wsgi(app).connect()
    for phrase in (b"Mine", b"OK", b"Yours", b"OK", b"Mine"):
        response = await client.request(get(b"/?200+" + phrase))
        assert (response.reason, response.all(b"x-same")) == (phrase, [b"1"])


async def test_a_reason_phrase_is_sent_without_default_fields_too(serve_wsgi):
    server = serve_wsgi(wsgi("404 Mine", []), server_header=False, date_header=False)
    for version in (b"1.0", b"1.1"):
        response = await server.connect().request(get(version=version))
        assert (response.status, response.reason) == (404, b"Mine")


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_generator_of_empty_pieces_ends_when_its_client_leaves(serve_wsgi, log, how):
    """Even if the client only closes its socket, which looks like closing one direction."""
    begun, ended = threading.Event(), threading.Event()

    def app(environ, start_response):
        start_response("200 OK", [])
        try:
            yield b"first"
            while True:
                begun.set()
                time.sleep(0.01)
                yield b""
        finally:
            ended.set()

    server = serve_wsgi(app)
    client = server.connect()
    await client.send(get())
    await client.head()
    await until(begun.is_set)
    client.reset() if how == "reset" else client.close()
    await until(lambda: all(connection.ends_soon for connection in server.service.connections))
    server.advance(SILENCE + 2 * TICK)
    await until(ended.is_set)
    assert log.errors == []


async def test_the_head_waits_for_the_first_bytes(serve_wsgi):
    """So that an application can still replace it."""
    release = threading.Event()

    def app(environ, start_response):
        start_response("200 OK", [])
        yield b""
        release.wait(LONGEST_WAIT)
        try:
            raise ValueError
        except ValueError:
            start_response("503 Busy", [("X-Second", "1")], sys.exc_info())
        yield b"busy"

    client = serve_wsgi(app).connect()
    await client.send(get())
    await client.quiet()
    release.set()
    response = await client.response()
    assert (response.status, response.body) == (503, b"busy")
    assert response[b"x-second"] == b"1"


async def test_an_application_can_raise_an_error_after_the_head(serve_wsgi, log):
    seen = []

    def app(environ, start_response):
        start_response("200 OK", [])
        yield b"part"
        try:
            raise ValueError("too late")
        except ValueError:
            try:
                start_response("500 Error", [], sys.exc_info())
            except ValueError as error:
                seen.append(str(error))
                raise

    client = serve_wsgi(app).connect()
    await client.send(get())
    await client.head()
    with pytest.raises((ConnectionResetError, Truncated)):
        await client.exactly(b"4\r\npart\r\n0\r\n\r\n")
    assert seen == ["too late"]
    assert "too late" in log.claim("exception in the application")


async def test_a_second_call_of_start_response_is_a_500(serve_wsgi, log):
    def app(environ, start_response):
        start_response("200 OK", [])
        start_response("404 Not Found", [])
        return [b"?"]

    assert (await serve_wsgi(app).connect().request(get())).status == 500
    assert "was called before" in log.claim("exception in the application")


@pytest.mark.parametrize("kind", [list, iter])
@pytest.mark.parametrize("pieces", [[b"hello"], []])
async def test_start_response_must_be_called(serve_wsgi, log, kind, pieces):
    client = serve_wsgi(lambda environ, start_response: kind(pieces)).connect()
    assert (await client.request(get())).status == 500
    assert "didn't call start_response" in log.claim("exception in the application")


async def test_start_response_may_be_called_by_the_iterator(serve_wsgi):
    def app(environ, start_response):
        start_response("201 Created", [])
        yield b"made"

    response = await serve_wsgi(app).connect().request(get())
    assert (response.status, response.body) == (201, b"made")


# -- the response's body ---------------------------------------------------------------


async def test_each_piece_is_sent_before_the_next_is_made(serve_wsgi):
    release = threading.Semaphore(0)

    def app(environ, start_response):
        start_response("200 OK", [])
        for piece in (b"1", b"2", b"3"):
            yield piece
            assert release.acquire(timeout=LONGEST_WAIT)

    client = serve_wsgi(app).connect()
    await client.send(get())
    await client.head()
    for piece in (b"1", b"2", b"3"):
        await client.exactly(b"1\r\n%b\r\n" % piece)
        await client.quiet()
        release.release()
    await client.exactly(b"0\r\n\r\n")


async def test_write_sends_immediately(serve_wsgi):
    release = threading.Event()

    def app(environ, start_response):
        write = start_response("200 OK", [])
        write(b"")
        write(b"first")
        release.wait(LONGEST_WAIT)
        return [b"last"]

    client = serve_wsgi(app).connect()
    await client.send(get())
    await client.head()
    await client.exactly(b"5\r\nfirst\r\n")
    release.set()
    await client.exactly(b"4\r\nlast\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("text", "returned str, not a list of bytes"),
        (b"bytes", "returned bytes, not a list of bytes"),
        (None, "returned NoneType, not an iterable of bytes"),
        (5, "returned int"),
        (["text"], "the body is made of bytes, not str"),
        (["a", "b"], "the body is made of bytes, not str"),
        ([None], "not NoneType"),
    ],
)
async def test_a_body_that_cannot_be_sent_is_a_500(serve_wsgi, log, body, reason):
    response = await serve_wsgi(wsgi(body=body)).connect().request(get())
    assert response.status == 500
    assert reason in log.claim("exception in the application")


async def test_an_asgi_application_that_is_served_as_wsgi_gets_advice(serve_wsgi, log):
    async def app(environ, start_response):
        pass

    assert (await serve_wsgi(app).connect().request(get())).status == 500
    assert "isn't WSGI but ASGI" in log.claim("exception in the application")


@pytest.mark.parametrize("kind", [list, iter])
@pytest.mark.parametrize("length", [0, 3, 4])
@pytest.mark.parametrize("pieces", [[b"too long"], [b"too ", b"long"], [b"", b"too ", b"long"]])
async def test_a_body_longer_than_its_length_is_cut(serve_wsgi, log, kind, length, pieces):
    """PEP 3333, "Handling the Content-Length Header"; the connection stays open."""
    app = wsgi(headers=[("Content-Length", str(length))], body=kind(pieces))
    client = serve_wsgi(app).connect()
    assert (await client.request(get())).body == b"too long"[:length]
    await until(lambda: log.errors)
    warning = log.claim("longer than its Content-Length, and was cut there: GET '/'")
    assert warning.count("\n") == 0
    await client.quiet()


async def test_the_iterator_is_not_read_beyond_the_length(serve_wsgi, log):
    asked = []
    result = Result(b"enough", b"more", lambda: asked.append(1) or b"most")
    client = serve_wsgi(returning(result, [("Content-Length", "6")])).connect()
    assert (await client.request(get())).body == b"enough"
    await until(lambda: result.closed)
    await client.quiet()
    assert (asked, result.closed) == ([], 1)
    log.claim("longer than its Content-Length")


async def test_an_endless_body_ends_at_its_length(serve_wsgi, log):
    result = Result(*[b"ab"] * 2, *[b""] * 1000)
    server = serve_wsgi(returning(result, [("Content-Length", "3")]))
    client = server.connect()
    assert (await client.request(get())).body == b"aba"
    await until(lambda: result.closed)
    assert next(result) == b""
    log.claim("longer than its Content-Length")


async def test_an_empty_piece_after_a_complete_body_ends_it(serve_wsgi):
    result = Result(b"abc", b"", b"never asked for")
    client = serve_wsgi(returning(result, [("Content-Length", "3")])).connect()
    assert (await client.request(get())).body == b"abc"
    await until(lambda: result.closed)
    assert next(result) == b"never asked for"


async def test_several_bodies_that_are_too_long_cause_one_warning(serve_wsgi, log):
    client = serve_wsgi(wsgi(headers=[("Content-Length", "1")])).connect()
    for _ in range(5):
        assert (await client.request(get())).body == b"h"
    log.claim("longer than its Content-Length")


async def test_a_response_to_head_with_a_body_that_is_too_long_keeps_its_length(serve_wsgi, log):
    client = serve_wsgi(wsgi(headers=[("Content-Length", "3")])).connect()
    for _ in range(2):
        response = await client.request(request(b"HEAD", b"/"), "HEAD")
        assert response[b"content-length"] == b"3"
    log.claim("longer than its Content-Length")


async def test_writing_more_than_the_length_is_a_500(serve_wsgi, log):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "3")])(b"too long")
        return []

    assert (await serve_wsgi(app).connect().request(get())).status == 500
    assert "longer than its Content-Length" in log.claim("exception in the application")


async def test_an_iterator_after_a_completely_written_body_is_not_sent(serve_wsgi, log):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "3")])(b"all")
        return [b"more"]

    client = serve_wsgi(app).connect()
    for _ in range(2):
        assert (await client.request(get())).body == b"all"
    log.claim("longer than its Content-Length")


async def test_a_body_shorter_than_its_length_cuts_the_connection(serve_wsgi, log):
    app = wsgi(headers=[("Content-Length", "9")], body=iter([b"short"]))
    with pytest.raises((ConnectionResetError, Truncated)):
        await serve_wsgi(app).connect().request(get())
    log.claim("4 bytes shorter than its Content-Length")


async def test_code_after_a_complete_body_does_not_delay_it(serve_wsgi):
    release, done = threading.Event(), []

    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "2")])
        yield b"ok"
        release.wait(LONGEST_WAIT)
        done.append(1)

    server = serve_wsgi(app)
    client = server.connect()
    for _ in range(3):
        assert (await client.request(get())).body == b"ok"
    assert done == []
    assert not server.service.idle
    release.set()
    await until(lambda: len(done) == 3 and not server.service.running)


async def test_file_wrapper_sends_the_file_and_closes_it(serve_wsgi, tmp_path):
    content = bytes(range(256)) * 2000
    path = tmp_path / "file"
    path.write_bytes(content)
    files = []

    def app(environ, start_response):
        files.append(path.open("rb"))
        start_response("200 OK", [("Content-Length", str(len(content)))])
        return environ["wsgi.file_wrapper"](files[-1], 4096)

    client = serve_wsgi(app).connect()
    assert (await client.request(get())).body == content
    await until(lambda: files[0].closed)


@pytest.mark.parametrize("size", [10, 100_000])
async def test_a_part_of_a_file_can_be_sent(serve_wsgi, size):
    """As for a range: the response ends at the Content-Length, not at the file's end."""

    def app(environ, start_response):
        file = io.BytesIO(bytes(range(256)) * 1000)
        file.seek(100)
        start_response("206 Partial Content", [("Content-Length", str(size))])
        return environ["wsgi.file_wrapper"](file)

    client = serve_wsgi(app).connect()
    for _ in range(2):
        response = await client.request(get())
        assert response.body == (bytes(range(256)) * 1000)[100 : 100 + size]


async def test_a_generator_of_empty_pieces_notices_that_the_client_left(serve_wsgi):
    await _check_that_a_disconnect_is_noticed(serve_wsgi, [])


async def test_a_generator_that_has_sent_a_piece_notices_that_the_client_left(serve_wsgi):
    await _check_that_a_disconnect_is_noticed(serve_wsgi, [b"first"])


async def _check_that_a_disconnect_is_noticed(serve_wsgi, first):
    begun, closed = threading.Event(), threading.Event()

    def app(environ, start_response):
        start_response("200 OK", [])
        try:
            yield from first
            while not closed.wait(0.001):
                begun.set()
                yield b""
        finally:
            closed.set()

    server = serve_wsgi(app)
    client = server.connect()
    await client.send(get())
    await until(begun.is_set)
    if not first:
        await client.quiet()
    client.reset()
    await until(closed.is_set)
    await until(lambda: server.service.idle)


# -- close() ---------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [[], [b"a"], [b"a", b"b"]])
async def test_the_result_is_closed_once(serve_wsgi, pieces):
    result = Result(*pieces)
    client = serve_wsgi(returning(result)).connect()
    assert (await client.request(get())).body == b"".join(pieces)
    await until(lambda: result.closed)
    assert result.closed == 1
    assert result.thread.name.startswith("wsgi-")


async def test_the_response_does_not_wait_for_close(serve_wsgi):
    release, closed = threading.Event(), []

    class Slow(Result):
        def close(self):
            release.wait(LONGEST_WAIT)
            closed.append(1)

    server = serve_wsgi(returning(Slow(b"body")))
    client = server.connect()
    assert (await client.request(get())).body == b"body"
    assert closed == []
    assert server.service.running, "a drain must wait for it"
    release.set()
    await until(lambda: not server.service.running)
    assert closed == [1]


@pytest.mark.parametrize("pieces", [[ValueError("bad")], [b"part", ValueError("bad")], [5]])
async def test_the_result_is_closed_after_an_error(serve_wsgi, log, pieces):
    result = Result(*pieces)
    client = serve_wsgi(returning(result)).connect()
    with pytest.raises((ConnectionResetError, Truncated, AssertionError)):
        assert (await client.request(get())).status == 200
    await until(lambda: result.closed)
    assert result.closed == 1
    log.claim("exception in the application")


async def test_the_result_is_closed_when_its_head_cannot_be_sent(serve_wsgi, log):
    result = Result(b"a")
    client = serve_wsgi(returning(result, [("X", "\n")])).connect()
    assert (await client.request(get())).status == 500
    await until(lambda: result.closed)
    assert result.closed == 1
    log.claim("exception in the application")


async def test_an_error_in_close_is_logged(serve_wsgi, log):
    class Broken(Result):
        def close(self):
            raise ValueError("while closing")

    client = serve_wsgi(returning(Broken(b"body"))).connect()
    assert (await client.request(get())).body == b"body"
    await until(lambda: log.errors)
    assert "while closing" in log.claim("exception in the application")
    assert (await client.request(get())).status == 200
    await until(lambda: log.errors)
    log.claim("exception in the application")


async def test_a_generator_is_closed_when_the_client_leaves(serve_wsgi, log):
    ended, at = [], []

    def app(environ, start_response):
        start_response("200 OK", [])
        try:
            while True:
                at.append(1)
                yield bytes(10_000)
        except GeneratorExit:
            ended.append(threading.current_thread().name)
            raise

    server = serve_wsgi(app)
    client = server.connect()
    await client.send(get())
    await client.head()
    client.reset()
    await until(lambda: ended)
    await until(lambda: server.service.idle)
    assert len(ended) == 1
    assert log.errors == []


async def test_the_result_is_closed_when_the_client_leaves_before_the_first_bytes(serve_wsgi, log):
    release, began = threading.Event(), threading.Event()

    def first():
        began.set()
        release.wait(LONGEST_WAIT)
        return b"first"

    result = Result(first, b"second")
    server = serve_wsgi(returning(result))
    client = server.connect()
    await client.send(get())
    await until(began.is_set)
    client.reset()
    await server.connections(0)
    release.set()
    await until(lambda: result.closed)
    await until(lambda: server.service.idle)
    assert result.closed == 1
    assert log.errors == []


async def test_write_fails_when_the_client_has_left(serve_wsgi):
    failures = []

    def app(environ, start_response):
        write = start_response("200 OK", [])
        try:
            while True:
                write(bytes(10_000))
        except OSError as error:
            failures.append(error)
            raise

    server = serve_wsgi(app)
    client = server.connect()
    await client.send(get())
    await client.head()
    client.reset()
    await until(lambda: failures)
    await until(lambda: server.service.idle)


# -- errors ----------------------------------------------------------------------------


async def test_an_exception_is_a_500_with_its_traceback_in_the_log(serve_wsgi, log):
    def the_broken_part():
        raise ValueError("what went wrong")

    def app(environ, start_response):
        the_broken_part()

    client = serve_wsgi(app).connect()
    response = await client.request(get(b"/path"))
    assert response.status == 500
    assert b"what went wrong" not in response.body
    logged = log.claim("exception in the application: GET '/path'")
    assert "in the_broken_part" in logged
    assert "ValueError: what went wrong" in logged


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), StopIteration(), asyncio.CancelledError()]
)
async def test_exceptions_such_as_system_exit_end_neither_thread_nor_server(serve_wsgi, log, error):
    def app(environ, start_response):
        if environ["PATH_INFO"] == "/bad":
            raise error
        start_response("200 OK", [])
        return [b"good"]

    server = serve_wsgi(app, threads=1)
    for _ in range(3):
        assert (await server.connect().request(get(b"/bad"))).status == 500
        assert (await server.connect().request(get())).body == b"good"
    log.records.clear()


async def test_the_error_stream_is_the_log(serve_wsgi, log):
    def app(environ, start_response):
        environ["wsgi.errors"].write("half ")
        environ["wsgi.errors"].write("and half\nthe rest")
        start_response("200 OK", [])
        return [b""]

    assert (await serve_wsgi(app).connect().request(get())).status == 200
    await until(lambda: log.errors)
    log.claim("wsgi.errors: half and half\nthe rest")


@pytest.fixture
def filtering():
    """Adds a filter to the logger; it is called with each record whose text has "unfinished"."""
    logger, added = logging.getLogger("esg"), []

    def add(look):
        def passes(record):
            if "unfinished" in record.getMessage():
                look()
            return True

        added.append(passes)
        logger.addFilter(passes)

    yield add
    for passes in added:
        logger.removeFilter(passes)


def leaving_text(kind):
    """An application that leaves an unfinished text, and returns a body of this kind."""

    def app(environ, start_response):
        environ["wsgi.errors"].write("unfinished")
        start_response("200 OK", [("Content-Length", "2")])
        return kind([b"ok"])

    return app


@pytest.mark.parametrize("kind", [list, iter])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
async def test_an_exception_in_the_logging_of_the_last_text_is_logged(
    serve_wsgi, log, filtering, kind, error
):
    def refuse():
        raise error("refused by a filter")

    filtering(refuse)
    client = serve_wsgi(leaving_text(kind), threads=1).connect()
    for _ in range(2):
        assert (await client.request(get())).body == b"ok"
        await until(lambda: log.errors)
        assert "refused by a filter" in log.claim("exception in the application")


@pytest.mark.parametrize("kind", [list, iter])
async def test_a_response_does_not_wait_for_the_logging_of_an_unfinished_text(
    serve_wsgi, log, filtering, kind
):
    release = threading.Event()
    filtering(lambda: release.wait(10))
    client = serve_wsgi(leaving_text(kind), threads=1).connect()
    try:
        assert (await client.request(get())).body == b"ok"
        assert not release.is_set()
    finally:
        release.set()
    await until(lambda: log.errors)
    log.claim("wsgi.errors: unfinished")


# -- the request's body ----------------------------------------------------------------


def echo(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["wsgi.input"].read()]


def count(environ, start_response):
    size = 0
    while piece := environ["wsgi.input"].read(65536):
        size += len(piece)
    start_response("200 OK", [])
    return [b"%d" % size]


async def test_bodies_of_any_size_are_read(serve_wsgi):
    client = serve_wsgi(echo).connect()
    for body in (b"", b"x", bytes(65_536), bytes(3 * MEGABYTE)):
        assert (await client.request(post(body))).body == body
        assert (await client.request(post_chunked(*[body[:60_000]] if body else []))).body == (
            body[:60_000]
        )


async def test_a_body_in_pieces_is_read_as_it_comes(serve_wsgi):
    seen = []

    def app(environ, start_response):
        body = environ["wsgi.input"]
        while line := body.readline():
            seen.append(line)
        start_response("200 OK", [])
        return [b"".join(seen)]

    client = serve_wsgi(app).connect()
    await client.send(request(b"POST", b"/", b"Content-Length: 12"))
    for number, line in enumerate((b"one\n", b"two\n", b"last")):
        await client.send(line)
        if number < 2:
            await until(lambda wanted=number: len(seen) == wanted + 1)
    assert (await client.response()).body == b"one\ntwo\nlast"


async def test_a_response_does_not_wait_for_the_body(serve_wsgi):
    client = serve_wsgi(wsgi()).connect()
    await client.send(request(b"POST", b"/", b"Content-Length: 5"))
    assert (await client.response()).body == b"hello"
    await client.send(b"12345")
    assert (await client.request(get())).body == b"hello"


async def test_an_unread_body_does_not_affect_the_next_request(serve_wsgi):
    client = serve_wsgi(wsgi()).connect()
    for body in (b"short", bytes(100_000)):
        assert (await client.request(post(body))).body == b"hello"


async def test_the_first_read_of_the_body_sends_a_continue(serve_wsgi):
    client = serve_wsgi(echo).connect()
    await client.send(request(b"POST", b"/", b"Content-Length: 4", b"Expect: 100-continue"))
    await client.exactly(b"HTTP/1.1 100 Continue\r\n\r\n")
    await client.send(b"body")
    assert (await client.response()).body == b"body"


async def test_without_a_read_no_continue_is_sent(serve_wsgi):
    client = serve_wsgi(wsgi("403 Forbidden")).connect()
    await client.send(request(b"POST", b"/", b"Content-Length: 4", b"Expect: 100-continue"))
    response = await client.response()
    assert response.status == 403
    assert response.closes


async def test_a_large_upload_is_not_held_in_memory(serve_wsgi):
    client = serve_wsgi(count).connect()
    size = 64 * MEGABYTE
    block = bytes(MEGABYTE)
    tracemalloc.start()
    try:
        await client.send(request(b"POST", b"/", b"Content-Length: %d" % size))
        for _ in range(size // len(block)):
            await client.send(block)
        assert (await client.response()).body == b"%d" % size
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * MEGABYTE


async def test_an_application_that_does_not_read_stops_the_client(serve_wsgi):
    release = threading.Event()

    def app(environ, start_response):
        release.wait(LONGEST_WAIT)
        return count(environ, start_response)

    client = serve_wsgi(app).connect()
    body = bytes(100 * MEGABYTE)
    await client.send(request(b"POST", b"/", b"Content-Length: %d" % len(body)))
    sent = await client.push(body)
    assert sent < KERNEL
    release.set()
    await client.send(body[sent:])
    assert (await client.response()).body == b"%d" % len(body)


async def test_a_client_that_leaves_before_its_body_ends_is_an_oserror(serve_wsgi, log):
    failures = []

    def app(environ, start_response):
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            failures.append(error)
            raise

    server = serve_wsgi(app)
    for go in ("reset", "close", "shutdown"):
        client = server.connect()
        await client.send(request(b"POST", b"/", b"Content-Length: 9") + b"part")
        await until(lambda: server.service.running)
        getattr(client, go)()
        await until(lambda: failures)
        await until(lambda: not server.service.running)
        failures.clear()
    assert log.errors == []


async def test_a_broken_body_is_not_the_applications_fault(serve_wsgi, log):
    client = serve_wsgi(echo).connect()
    await client.send(request(b"POST", b"/", b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n")
    await turns(20)
    await client.send(b"oops\r\n")
    assert (await client.response()).status == 400
    assert log.errors == []


async def test_a_body_may_be_sent_back_while_it_arrives(serve_wsgi):
    def app(environ, start_response):
        start_response("200 OK", [])
        while piece := environ["wsgi.input"].read(50_000):
            yield piece

    client = serve_wsgi(app).connect(receive_buffer=65536)
    body = bytes(100_000)
    sending = asyncio.ensure_future(client.send(post_chunked(*[body] * 100)))
    response = await client.response()
    await sending
    assert response.body == body * 100


# -- flow control ----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["yield", "write"])
async def test_a_client_that_does_not_read_stops_its_thread_but_not_the_loop(serve_wsgi, how):
    size, made = 100, []

    def pieces():
        for _ in range(size):
            yield bytes(MEGABYTE)
            made.append(1)

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/":
            start_response("200 OK", [])
            return [b"quick"]
        write = start_response("200 OK", [("Content-Length", str(size * MEGABYTE))])
        if how == "yield":
            return pieces()
        for piece in pieces():
            write(piece)
        return []

    server = serve_wsgi(app)
    client = server.connect(receive_buffer=65536)
    await client.send(get(b"/large"))
    await until(lambda: made)
    stopped = await settled(lambda: len(made))
    assert stopped * MEGABYTE < KERNEL
    for _ in range(10):
        assert (await server.connect().request(get())).body == b"quick"
    assert len(made) < size // 2
    await client.head()
    await client.skip(size * MEGABYTE)
    await until(lambda: len(made) == size)


async def test_a_thread_that_waits_for_a_slow_client_is_freed_when_the_client_leaves(
    serve_wsgi, log
):
    result = Result(*[bytes(MEGABYTE)] * 100)
    server = serve_wsgi(returning(result), threads=1)
    client = server.connect(receive_buffer=65536)
    await client.send(get())
    await client.head()
    await settled(lambda: 0)
    assert result.closed == 0
    client.reset()
    await until(lambda: result.closed)
    await until(lambda: server.service.idle)
    assert log.errors == []


# -- threads ---------------------------------------------------------------------------


async def test_requests_run_at_once_up_to_the_number_of_threads(serve_wsgi):
    release, running, most = threading.Event(), [], []

    def app(environ, start_response):
        running.append(environ["PATH_INFO"])
        most.append(len(running))
        release.wait(LONGEST_WAIT)
        running.pop()
        start_response("200 OK", [])
        return [b"done"]

    server = serve_wsgi(app, threads=3)
    clients = [server.connect() for _ in range(8)]
    for client in clients:
        await client.send(get())
    await until(lambda: len(running) == 3)
    await until(lambda: len(server.service.running) == 8)
    turned = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(turned.set_result, True)
    assert await turned, "the loop goes on"
    assert len(running) == 3
    release.set()
    for client in clients:
        assert (await client.response()).body == b"done"
    assert len(most) == 8
    assert max(most) == 3


async def test_one_thread_serves_in_order(serve_wsgi):
    served = []

    def app(environ, start_response):
        served.append(environ["PATH_INFO"])
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    server = serve_wsgi(app, threads=1)
    clients = [server.connect() for _ in range(5)]
    paths = [f"/{number}" for number in range(5)]
    for client, path in zip(clients, paths, strict=True):
        await client.send(get(path.encode()))
        await turns(5)
    for client, path in zip(clients, paths, strict=True):
        assert (await client.response()).body == path.encode()
    assert served == paths


async def test_pipelined_requests_are_answered_in_order(serve_wsgi):
    client = serve_wsgi(echo).connect()
    await client.send(post(b"one") + post_chunked(b"two") + get() + post(b"three"))
    for body in (b"one", b"two", b"", b"three"):
        assert (await client.response()).body == body


async def test_many_requests_at_once_get_their_own_responses(serve_wsgi):
    server = serve_wsgi(echo, threads=8)

    async def ask(number):
        client = server.connect()
        for turn in range(20):
            body = b"%d:%d" % (number, turn) * 100
            assert (await client.request(post(body))).body == body

    await asyncio.gather(*(ask(number) for number in range(16)))


async def test_a_request_has_a_context_of_its_own(serve_wsgi):
    variable = contextvars.ContextVar("variable", default="unset")

    def app(environ, start_response):
        seen = variable.get()
        variable.set(environ["PATH_INFO"])
        start_response("200 OK", [])
        yield seen.encode()
        yield variable.get().encode()

    client = serve_wsgi(app, threads=1).connect()
    for path in (b"/a", b"/b"):
        assert (await client.request(get(path))).body == b"unset" + path


@pytest.mark.parametrize("path", [b"/good", b"/bad", b"/write", b"/read", b"/gone"])
async def test_a_request_leaves_no_cycle_behind(serve_wsgi, log, path):
    """A thread's and a task's references to each other are freed without the garbage collector."""
    seen = []

    class Mark:
        """Is deleted together with the environ."""

    def app(environ, start_response):
        environ["mark"] = Mark()
        seen.append(weakref.ref(environ["mark"]))
        write = start_response("200 OK", [])
        if path == b"/bad":
            raise ValueError
        if path == b"/write":
            write(b"written")
        if path == b"/read":
            environ["wsgi.input"].read()
        if path == b"/gone":
            try:
                raise LookupError
            except LookupError:
                start_response("404 Not Found", [], sys.exc_info())
        return [b"done"]

    client = serve_wsgi(app, threads=1).connect()
    gc.collect()
    gc.disable()
    try:
        await client.request(post(b"body", target=path))
        await until(lambda: seen[0]() is None)
    finally:
        gc.enable()
    if path == b"/bad":
        log.claim("exception in the application")


async def test_a_middleware_may_set_variables_for_the_application(serve):
    variable = contextvars.ContextVar("variable")

    def app(environ, start_response):
        start_response("200 OK", [])
        return [variable.get().encode()]

    adapter = WSGIAdapter(app, threads=1, multiprocess=False)

    async def middleware(scope, receive, send):
        variable.set("from outside")
        await adapter(scope, receive, send)

    assert (await serve(middleware).connect().request(get())).body == b"from outside"
    adapter.close()


@pytest.mark.parametrize("multiprocess", [True, False])
async def test_the_environ_describes_the_server(serve_wsgi, multiprocess):
    seen = {}

    def app(environ, start_response):
        seen.update(environ)
        environ.clear()
        start_response("200 OK", [])
        return [b""]

    server = serve_wsgi(app, multiprocess=multiprocess)
    client = server.connect()
    for _ in range(2):
        assert (await client.request(get(version=b"1.1"))).status == 200
    assert seen["wsgi.version"] == (1, 0)
    assert seen["wsgi.url_scheme"] == "http"
    assert seen["wsgi.multithread"] is True
    assert seen["wsgi.multiprocess"] is multiprocess
    assert seen["wsgi.run_once"] is False
    assert seen["wsgi.input_terminated"] is True
    assert seen["REMOTE_ADDR"] == "127.0.0.1"
    assert seen["REMOTE_PORT"] == str(client.sock.getsockname()[1])
    assert seen["SERVER_PORT"] == str(server.address[1])
    assert seen["SERVER_PROTOCOL"] == "HTTP/1.1"


# -- requests that end before their thread ---------------------------------------------


async def cancelled(server):
    """Cancel all requests, like a worker at the end of its grace period."""
    tasks = [exchange.task for exchange in server.service.running]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_a_cancelled_request_ends_although_its_thread_does_not(serve_wsgi):
    release, began, failures = threading.Event(), threading.Event(), []

    def app(environ, start_response):
        write = start_response("200 OK", [])
        began.set()
        release.wait(LONGEST_WAIT)
        try:
            write(b"late")
        except OSError as error:
            failures.append(error)
            raise

    server = serve_wsgi(app)
    client = server.connect()
    await client.send(get())
    await until(began.is_set)
    await cancelled(server)
    assert (await client.response()).status == 500
    release.set()
    await until(lambda: failures)


@pytest.mark.parametrize("waits", ["read", "write"])
async def test_a_thread_that_waits_for_its_client_ends_with_its_request(serve_wsgi, waits):
    failures, began = [], threading.Event()

    def app(environ, start_response):
        write = start_response("200 OK", [])
        try:
            began.set()
            while True:
                environ["wsgi.input"].read() if waits == "read" else write(bytes(MEGABYTE))
        except OSError as error:
            failures.append(error)
            raise

    server = serve_wsgi(app)
    client = server.connect(receive_buffer=65536)
    await client.send(request(b"POST", b"/", b"Content-Length: 5"))
    await until(began.is_set)
    await settled(lambda: 0)
    assert failures == []
    await cancelled(server)
    await until(lambda: failures)


async def test_a_cancelled_request_that_had_no_thread_never_runs(serve_wsgi):
    release, served = threading.Event(), []

    def app(environ, start_response):
        served.append(environ["PATH_INFO"])
        release.wait(LONGEST_WAIT)
        start_response("200 OK", [])
        return [b""]

    server = serve_wsgi(app, threads=1)
    clients = [server.connect() for _ in range(2)]
    for client, path in zip(clients, (b"/first", b"/second"), strict=True):
        await client.send(get(path))
        await until(lambda: served)
    await until(lambda: len(server.service.running) == 2)
    await cancelled(server)
    release.set()
    assert (await server.connect().request(get(b"/third"))).status == 200
    assert served == ["/first", "/third"]


async def test_an_error_after_the_end_of_the_request_is_logged(serve_wsgi, log):
    release, began = threading.Event(), threading.Event()

    def app(environ, start_response):
        began.set()
        release.wait(LONGEST_WAIT)
        raise ValueError("late")

    server = serve_wsgi(app)
    client = server.connect()
    await client.send(get(b"/path"))
    await until(began.is_set)
    await cancelled(server)
    release.set()
    await until(lambda: log.errors)
    assert "ValueError: late" in log.claim("after the end of its request: GET '/path'")


# -- what isn't HTTP -------------------------------------------------------------------


async def test_a_websocket_is_refused():
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    adapter = WSGIAdapter(echo, threads=1, multiprocess=False)
    await adapter({"type": "websocket"}, receive, send)
    assert sent == [{"type": "websocket.close"}]


async def test_a_request_that_takes_too_long_shows_where_its_thread_is(serve_wsgi, log):
    entered, gate = threading.Event(), threading.Event()

    def app(environ, start_response):
        entered.set()
        gate.wait()  # this is where it waits
        start_response("200 OK", [])
        return []

    server = serve_wsgi(app, threads=1, request_timeout=5)
    first, second = server.connect(), server.connect()
    await first.send(get())
    await until(entered.is_set)
    await second.send(get())
    await until(lambda: len(server.service.running) == 2)
    server.advance(7)
    assert (await first.response()).status == 503
    assert (await second.response()).status == 503
    told = log.claim("request timed out"), log.claim("request timed out")
    gate.set()
    assert sum("gate.wait()  # this is where it waits" in record for record in told) == 1
    assert sum("waiting for a thread" in record for record in told) == 1
    assert not any("wsgi.py" in record and "test_wsgi.py" not in record for record in told)
