"""The traceback that `--debug` shows."""

from __future__ import annotations

import asyncio

import pytest

from esg.server.asgi.debug_page import content, in_front_of


def error(text="boom"):
    try:
        raise ValueError(text)
    except ValueError as caught:
        return caught


@pytest.mark.parametrize(
    "accept", [b"text/html", b"text/html,application/xhtml+xml;q=0.9,*/*;q=0.8", b"TEXT/HTML"]
)
def test_a_browser_gets_a_page(accept):
    kind, body = content(error(), [(b"host", b"a"), (b"accept", accept)])
    assert kind == b"text/html"
    assert b"<h1>ValueError: boom</h1>" in body
    assert b"test_debug_page.py" in body


@pytest.mark.parametrize("headers", [[], [(b"accept", b"*/*")], [(b"accept", b"application/json")]])
def test_others_get_plain_text(headers):
    kind, body = content(error(), headers)
    assert kind == b"text/plain"
    assert body.startswith(b"Traceback ")
    assert body.endswith(b"ValueError: boom\n")


def test_nothing_in_an_exception_becomes_markup():
    _, body = content(error("<script>alert('x')</script>&"), [(b"accept", b"text/html")])
    assert b"<script>" not in body
    assert b"&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;" in body


def test_braces_and_text_that_is_not_unicode_do_no_harm():
    _, body = content(error("{title} \udcff"), [(b"accept", b"text/html")])
    assert b"{title} " in body


# -- a reload that failed --------------------------------------------------------------


async def last_good_code(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"good"})


def answered(accept, *, method="GET", type="http", detail="Traceback\nSyntaxError: <bad>"):
    sent = []

    async def send(message):
        sent.append(message)

    app = in_front_of(last_good_code, "a worker could not boot", detail)
    scope = {"type": type, "method": method, "headers": [(b"accept", accept)]}
    asyncio.run(app(scope, None, send))
    return sent[0]["status"], sent[1]["body"]


def test_a_browser_is_shown_why_a_reload_failed():
    status, body = answered(b"text/html,*/*;q=0.8")
    assert status == 500
    assert b"<h1>Reload failed: SyntaxError: &lt;bad&gt;</h1>" in body
    assert b"<pre>Traceback\nSyntaxError: &lt;bad&gt;</pre>" in body


def test_without_a_traceback_the_reason_is_shown():
    assert (
        b"<h1>Reload failed: a worker could not boot</h1>" in answered(b"text/html", detail="")[1]
    )


@pytest.mark.parametrize(
    "request_",
    [
        {"accept": b"*/*"},
        {"accept": b"application/json"},
        {"accept": b"text/html", "method": "POST"},
        {"accept": b"text/html", "type": "websocket"},
    ],
)
def test_requests_that_do_not_ask_for_a_page_are_served_by_the_last_good_code(request_):
    assert answered(**request_) == (200, b"good")
