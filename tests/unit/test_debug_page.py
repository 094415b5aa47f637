"""The traceback that `--debug` shows."""

from __future__ import annotations

import pytest

from esg.server.debug_page import content


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


def test_braces_and_text_that_is_no_unicode_do_no_harm():
    _, body = content(error("{title} \udcff"), [(b"accept", b"text/html")])
    assert b"{title} " in body
