"""`--debug`: the page that clients see if the application raises."""

from __future__ import annotations

import pytest

from .apps import start
from .wire import Truncated, get, request


async def fails(scope, receive, send):
    raise ValueError("<what went wrong>")


async def test_without_debug_clients_do_not_see_exceptions(serve, log):
    response = await serve(fails).connect().request(get())
    assert (response.status, response.body) == (500, b"Internal Server Error")
    assert response[b"content-type"] == b"text/plain; charset=utf-8"
    log.claim("exception in the application")


async def test_a_browser_sees_the_exception_as_a_page(serve, log):
    client = serve(fails, debug=True).connect()
    response = await client.request(get(b"/", b"Accept: text/html,*/*"))
    assert response.status == 500
    assert response.closes
    assert response[b"content-type"] == b"text/html; charset=utf-8"
    assert b"ValueError: &lt;what went wrong&gt;" in response.body
    await client.closed()
    log.claim("exception in the application")


async def test_other_clients_see_the_traceback_as_text(serve, log):
    response = await serve(fails, debug=True).connect().request(get())
    assert response[b"content-type"] == b"text/plain; charset=utf-8"
    assert response.body.startswith(b"Traceback (most recent call last):\n")
    assert b"in fails" in response.body
    assert response.body.endswith(b"ValueError: <what went wrong>\n")
    log.claim("exception in the application")


async def test_a_response_to_head_has_no_traceback(serve, log):
    client = serve(fails, debug=True).connect()
    response = await client.request(request(b"HEAD", b"/"), method="HEAD")
    assert (response.status, response.body) == (500, b"")
    await client.closed()
    log.claim("exception in the application")


async def test_a_response_that_has_begun_is_still_cut(serve, log):
    async def app(scope, receive, send):
        await start(send, headers=[(b"content-length", b"10")])
        await send({"type": "http.response.body", "body": b"12345", "more_body": True})
        raise ValueError

    client = serve(app, debug=True).connect()
    with pytest.raises((Truncated, ConnectionResetError)):
        await client.request(get())
    log.claim("exception in the application")


async def test_a_return_without_a_response_has_no_traceback(serve, log):
    async def app(scope, receive, send):
        pass

    response = await serve(app, debug=True).connect().request(get())
    assert response.body == b"Internal Server Error"
    log.claim("returned without a response")
