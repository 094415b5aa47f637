"""Applications that fail or break the protocol: the client's response, and the log."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from .apps import hello, piece, respond, start
from .wire import Truncated, get, post, request, turns, until


async def test_an_exception_before_the_response_is_a_500(serve, log):
    async def app(scope, receive, send):
        raise ValueError("what went wrong")

    client = serve(app).connect()
    response = await client.request(get(b"/path"))
    assert response.status == 500
    assert response.closes
    assert b"what went wrong" not in response.body
    await client.closed()
    logged = log.claim("exception in the application: GET '/path'")
    assert "ValueError: what went wrong" in logged
    assert "Traceback" in logged
    assert "worker=1 gen=1 pid=1" in logged


async def test_an_exception_after_only_the_start_message_is_a_500(serve, log):
    """No byte of the response was sent, so the client can still get a 500."""

    async def app(scope, receive, send):
        await start(send, headers=[(b"x-secret", b"1")])
        raise ValueError

    client = serve(app).connect()
    response = await client.request(get())
    assert response.status == 500
    assert b"x-secret" not in response
    await client.closed()
    log.claim("exception in the application")


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()]
)
async def test_exceptions_such_as_system_exit_do_not_end_the_server(serve, log, error):
    async def app(scope, receive, send):
        if scope["path"] == "/bad":
            raise error
        await respond(send)

    server = serve(app)
    client = server.connect()
    assert (await client.request(get(b"/bad"))).status == 500
    await client.closed()
    assert (await server.connect().request(get())).status == 200
    log.claim("exception in the application")


async def test_an_exception_in_a_chunked_response_cuts_it(serve, log):
    async def app(scope, receive, send):
        await start(send)
        await piece(send, b"part")
        raise ValueError

    client = serve(app).connect()
    await client.send(get())
    await client.head()
    with pytest.raises((ConnectionResetError, Truncated)):
        await client.exactly(b"4\r\npart\r\n0\r\n\r\n")
    log.claim("exception in the application")


async def test_an_exception_in_a_response_of_known_length_cuts_it(serve, log):
    async def app(scope, receive, send):
        await start(send, headers=[(b"content-length", b"10")])
        await piece(send, b"part")
        raise ValueError

    client = serve(app).connect()
    with pytest.raises((ConnectionResetError, Truncated)):
        await client.request(get())
    log.claim("exception in the application")


async def test_an_exception_in_a_response_delimited_by_the_close_causes_a_reset(serve, log):
    """A plain close would make half a response look whole."""

    async def app(scope, receive, send):
        await start(send)
        await piece(send, b"part")
        await turns(10)
        raise ValueError

    client = serve(app).connect()
    await client.send(b"GET / HTTP/1.0\r\n\r\n")
    await client.head()
    await client.exactly(b"part")
    with pytest.raises(ConnectionResetError):
        await client.rest()
    log.claim("exception in the application")


async def test_an_exception_after_the_response_does_not_hurt_it(serve, log):
    async def app(scope, receive, send):
        await respond(send)
        raise ValueError("late")

    client = serve(app).connect()
    for _ in range(2):
        assert (await client.request(get())).body == b"hello"
        await until(lambda: log.errors)
        assert "late" in log.claim("exception in the application")


async def test_return_without_a_response_is_a_500(serve, log):
    async def app(scope, receive, send):
        return

    client = serve(app).connect()
    response = await client.request(get())
    assert response.status == 500
    assert response.closes
    await client.closed()
    log.claim("returned without a response")


async def test_a_return_after_only_the_start_message_is_a_500(serve, log):
    async def app(scope, receive, send):
        await start(send)

    client = serve(app).connect()
    assert (await client.request(get())).status == 500
    log.claim("returned before its response was complete")


async def test_return_in_the_middle_of_a_response_cuts_it(serve, log):
    async def app(scope, receive, send):
        await start(send)
        await piece(send, b"part")

    client = serve(app).connect()
    with pytest.raises((ConnectionResetError, Truncated)):
        await client.request(get())
    log.claim("returned before its response was complete")


async def test_an_error_response_to_head_has_no_body(serve, log):
    async def app(scope, receive, send):
        raise ValueError

    client = serve(app).connect()
    response = await client.request(request(b"HEAD", b"/"), "HEAD")
    assert response.status == 500
    await client.closed()
    log.claim("exception in the application")


async def test_the_request_after_a_failed_one_is_not_answered_instead(serve, log):
    async def app(scope, receive, send):
        if scope["path"] == "/bad":
            raise ValueError
        await respond(send, scope["path"].encode())

    client = serve(app).connect()
    await client.send(get(b"/1") + get(b"/bad") + get(b"/3"))
    assert (await client.response()).body == b"/1"
    response = await client.response()
    assert response.status == 500
    assert response.closes
    await client.closed()
    log.claim("exception in the application")


async def test_an_error_while_a_body_comes_in_reaches_the_client(serve, log):
    async def app(scope, receive, send):
        await receive()
        raise ValueError

    client = serve(app).connect()
    await client.send(post(bytes(3_000_000)))
    assert (await client.response()).status == 500
    await client.closed()
    log.claim("exception in the application")


# -- a wrong Content-Length --------------------------------------------------------------


@pytest.mark.parametrize("pieces", [[b"hell"], [b"he", b"l"], []])
async def test_a_body_shorter_than_its_content_length_cuts_the_connection(serve, log, pieces):
    async def app(scope, receive, send):
        await start(send, headers=[(b"content-length", b"5")])
        for body in pieces:
            await piece(send, body)
        await piece(send, more=False)

    client = serve(app).connect()
    await client.send(get() + get())
    with pytest.raises((ConnectionResetError, Truncated)):
        await client.response()
    log.claim("shorter")


@pytest.mark.parametrize("pieces", [[b"hello world"], [b"hello", b" world"], [b"hel", b"lo world"]])
async def test_a_body_longer_than_its_content_length_is_cut_to_it(serve, log, pieces):
    async def app(scope, receive, send):
        await start(send, headers=[(b"content-length", b"5")])
        for body in pieces:
            await piece(send, body)
        await piece(send, more=False)

    client = serve(app).connect()
    await client.send(get() + get())
    assert (await client.response()).body == b"hello"
    await client.closed()
    log.claim("longer")


# -- heads that can't be sent ----------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        (b"x-a", b"b\r\nx-injected: 1"),
        (b"x-a", b"b\nx-injected: 1"),
        (b"x-a", b"b\rx-injected: 1"),
        (b"x-a", b"b\0c"),
        (b"x-a\r\nx-injected", b"1"),
        (b"x-a\n", b"1"),
        (b"x-a: x-injected", b"1"),
        (b"x a", b"1"),
        (b"x-\xe9", b"1"),
        (b"", b"1"),
        (b" ", b"1"),
        (b"x-a ", b"1"),
        ("x-a", b"1"),
        (b"x-a", "1"),
        (b"x-a", 1),
        (b"x-a", None),
        (None, b"1"),
        (b"content-length", b"-1"),
        (b"content-length", b"+1"),
        (b"content-length", b"1, 2"),
        (b"content-length", b""),
        (b"content-length", b"1_0"),
        (b"content-length", b"9" * 5000),
        (b"x-a",),
        (b"x-a", b"b", b"c"),
        b"xa",
        7,
    ],
    ids=repr,
)
async def test_a_header_that_cannot_be_sent_is_a_500(serve, log, header):
    async def app(scope, receive, send):
        await respond(send, headers=[(b"x-first", b"1"), header])

    client = serve(app).connect()
    for _ in range(2):  # the second time, the result of the first is used again
        response = await client.request(get())
        assert response.status == 500
        assert b"x-first" not in response
        assert b"x-injected" not in response
        await client.closed()
        log.claim("exception in the application")
        client = serve(app).connect()


@pytest.mark.parametrize("lengths", [(b"5", b"6"), (b"6", b"5"), (b"5", b"5")])
async def test_two_content_lengths_are_never_sent(serve, log, lengths):
    async def app(scope, receive, send):
        await respond(send, headers=[(b"content-length", length) for length in lengths])

    client = serve(app).connect()
    response = await client.request(get())
    assert len(response.all(b"content-length")) == 1
    if response.status == 500:
        log.claim("exception in the application")
    else:
        assert response.body == b"hello"
        assert len(set(lengths)) == 1


@pytest.mark.parametrize("status", [0, 99, 100, 101, 199, 1000, -200, "abc", None, b"ok"])
async def test_an_invalid_status_is_a_500(serve, log, status):
    async def app(scope, receive, send):
        await respond(send, status=status)

    client = serve(app).connect()
    assert (await client.request(get())).status == 500
    await client.closed()
    log.claim("exception in the application")


@pytest.mark.parametrize("body", ["text", None, object(), 5])
async def test_a_body_that_is_not_bytes_is_a_500(serve, log, body):
    async def app(scope, receive, send):
        await respond(send, body)

    client = serve(app).connect()
    assert (await client.request(get())).status == 500
    log.claim("exception in the application")


async def test_the_application_can_still_answer_after_a_header_was_refused(serve):
    async def app(scope, receive, send):
        with pytest.raises(Exception, match="CR, LF or NUL"):
            await start(send, headers=[(b"x-a", b"\r\n")])
        await respond(send, b"sorry", 400)

    client = serve(app).connect()
    response = await client.request(get())
    assert (response.status, response.body) == (400, b"sorry")


# -- messages in the wrong order -------------------------------------------------------

START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body", "body": b"x"}
MORE = {"type": "http.response.body", "body": b"x", "more_body": True}


@pytest.mark.parametrize(
    ("good", "wrong"),
    [
        ([], BODY),
        ([], {"type": "http.response.pathsend", "path": "/etc/hostname"}),
        ([], {"type": "websocket.accept"}),
        ([], {"type": ""}),
        ([START], START),
        ([START], {"type": "http.response.trailers", "headers": []}),
        ([START, MORE], START),
        ([START, BODY], BODY),
        ([START, BODY], START),
    ],
)
async def test_an_unexpected_message_raises_runtime_error(serve, log, good, wrong):
    raised = []

    async def app(scope, receive, send):
        for message in good:
            await send(dict(message))
        try:
            await send(dict(wrong))
        except Exception as error:
            raised.append(type(error))
            raise

    server = serve(app)
    await server.connect().send(get())
    await until(lambda: raised)
    assert raised == [RuntimeError]
    await turns(5)
    log.claim("exception in the application")


async def test_an_unexpected_message_does_not_damage_a_complete_response(serve, log):
    async def app(scope, receive, send):
        await respond(send)
        await respond(send, b"another")

    client = serve(app).connect()
    assert (await client.request(get())).body == b"hello"
    await until(lambda: log.errors)
    log.claim("exception in the application")
    assert (await client.request(get())).body == b"hello"
    await until(lambda: log.errors)
    log.claim("exception in the application")


async def test_an_application_can_continue_after_an_unknown_message(serve):
    """Applications try extensions and fall back."""

    async def app(scope, receive, send):
        with pytest.raises(RuntimeError):
            await send({"type": "http.response.debug", "info": {}})
        await respond(send)

    client = serve(app).connect()
    assert (await client.request(get())).body == b"hello"


async def test_a_path_cannot_break_out_of_its_log_line(serve, log):
    async def app(scope, receive, send):
        raise ValueError

    client = serve(app).connect()
    await client.request(get(b"/%0a%1b[31mFAKE"))
    logged = log.claim("exception in the application").splitlines()[0]
    assert "\x1b" not in logged
    assert "FAKE" in logged


async def test_errors_on_one_connection_do_not_affect_others(serve, log):
    async def app(scope, receive, send):
        if scope["path"] == "/bad":
            raise ValueError
        await hello(scope, receive, send)

    server = serve(app)
    good, bad = server.connect(), server.connect()
    await good.request(get())
    assert (await bad.request(get(b"/bad"))).status == 500
    assert (await good.request(get())).status == 200
    log.claim("exception in the application")


# -- the end of a drain ------------------------------------------------------------------


async def hang(scope, receive, send):
    await asyncio.Event().wait()


async def return_when_cancelled(scope, receive, send):
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()


async def fail_when_cancelled(scope, receive, send):
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError as error:
        raise ValueError("cancelled") from error


def cancel_all(server):
    """Cancel all requests, like a worker at the end of its drain."""
    server.service.cancels = True
    for exchange in server.service.running:
        exchange.task.cancel()


@pytest.mark.parametrize("app", [hang, return_when_cancelled, fail_when_cancelled])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_request_that_the_worker_cancels_may_be_sent_again(serve, log, app, method):
    server = serve(app)
    client = server.connect()
    await client.send(request(method.encode(), b"/"))
    await until(lambda: server.service.running)
    cancel_all(server)
    response = await client.response(method)
    assert (response.status, response[b"retry-after"]) == (503, b"1")
    assert response.closes
    await client.closed()
    if app is fail_when_cancelled:
        log.claim("exception in the application")


async def test_a_response_that_the_worker_cancels_is_cut(serve):
    async def app(scope, receive, send):
        await start(send)
        await piece(send, b"part")
        await asyncio.Event().wait()

    server = serve(app)
    client = server.connect()
    await client.send(get())
    await client.head()
    cancel_all(server)
    with pytest.raises(ConnectionResetError):
        await client.rest()


async def test_an_application_may_answer_a_cancellation_itself(serve):
    async def app(scope, receive, send):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await respond(send, b"stopping", 503)
            raise

    server = serve(app)
    client = server.connect()
    await client.send(get())
    await until(lambda: server.service.running)
    cancel_all(server)
    response = await client.response()
    assert (response.status, response.body) == (503, b"stopping")
