"""The result of a request doesn't depend on how its bytes are split."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .apps import Disconnected, read_body, respond
from .wire import get, post, post_chunked, request

CLOSE = b"Connection: close"

REQUESTS = {
    "get": get(b"/a%20b/c?d=e%20f", b"Accept: */*", b"X-Empty:"),
    "head": request(b"HEAD", b"/h"),
    "options": request(b"OPTIONS", b"*"),
    "absolute": get(b"http://example.org/p?q"),
    "post": post(b"a body\r\n\r\nwith lines"),
    "chunked": post_chunked(b"one", b"GET / HTTP/1.1\r\n\r\n", b"x" * 17),
    "trailers": post_chunked(b"0\r\n\r\n", trailers=b"X-Sum: 12\r\nX-Other: \xe9\r\n"),
    "extensions": request(b"PUT", b"/", b"Transfer-Encoding: chunked")
    + b'4;name;other="va;l\\"ue"\r\nwiki\r\n0;last\r\n\r\n',
    "http/1.0": get(b"/old", b"Connection: keep-alive", version=b"1.0"),
    "upgrade": get(b"/", b"Connection: upgrade", b"Upgrade: h2c"),
    "leading line ends": b"\r\n\r\n" + get(b"/late"),
}

LAST = get(b"/last", CLOSE)

REFUSED = {
    "no host": b"GET / HTTP/1.1\r\nA: b\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    "length and coding": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare line feed": b"GET / HTTP/1.1\nHost: a\n\n",
    "unknown coding": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "bad chunk": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n",
}


async def describe(scope, receive, send):
    """Answer with everything that the server understood about the request."""
    try:
        body = await read_body(receive)
    except Disconnected:
        return
    seen = {name: repr(scope[name]) for name in ("method", "http_version", "path", "raw_path")}
    seen |= {name: repr(scope[name]) for name in ("query_string", "headers")}
    await respond(send, json.dumps(seen | {"body": repr(body)}).encode())


async def exchange(server, pieces):
    """Send pieces and return everything that comes back."""
    client = server.connect()
    await client.send_pieces(pieces)
    answer = await client.rest()
    client.close()
    return answer


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_request_cut_at_any_position_is_the_same_request(serve, name):
    server = serve(describe, date_header=False)
    data = REQUESTS[name] + LAST
    whole = await exchange(server, [data])
    assert whole.count(b"HTTP/1.1 200 OK\r\n") == 2
    for at in range(1, len(REQUESTS[name]) + 1):
        assert await exchange(server, [data[:at], data[at:]]) == whole, data[:at]


@pytest.mark.parametrize("name", REFUSED)
async def test_a_bad_request_cut_at_any_position_is_refused_the_same_way(serve, name):
    server = serve(describe, date_header=False)
    data = REFUSED[name]
    whole = await exchange(server, [data])
    assert whole.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
    for at in range(1, len(data)):
        assert await exchange(server, [data[:at], data[at:]]) == whole, data[:at]


async def test_requests_that_arrive_byte_by_byte_get_the_same_responses(serve):
    server = serve(describe, date_header=False)
    data = b"".join(REQUESTS.values()) + LAST
    whole = await exchange(server, [data])
    assert whole.count(b"HTTP/1.1 200 OK\r\n") == len(REQUESTS) + 1
    assert await exchange(server, [data[at : at + 1] for at in range(len(data))]) == whole


@st.composite
def cut_requests(draw):
    """Some consecutive requests: in one piece, and cut into several pieces."""
    chosen = draw(st.lists(st.sampled_from(sorted(REQUESTS.values())), max_size=6))
    data = b"".join((*chosen, LAST))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return [data], [piece for piece in pieces if piece]


def test_requests_cut_at_random_get_the_same_responses(runner, serve):
    server = serve(describe, date_header=False)

    @settings(
        max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
    )
    @given(cut_requests())
    def check(case):
        whole, pieces = case
        answers = [runner.run(exchange(server, pieces)) for pieces in (whole, pieces)]
        assert answers[0] == answers[1]

    check()


def test_a_body_cut_at_random_arrives_whole(runner, serve):
    server = serve(describe, date_header=False)
    head = request(b"POST", b"/", CLOSE, b"Transfer-Encoding: chunked")

    @settings(max_examples=40, deadline=None, database=None)
    @given(
        chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=8),
        size=st.integers(1, 64),
    )
    def check(chunks, size):
        framed = b"".join(b"%X\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
        data = head + framed + b"0\r\n\r\n"
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        answer = runner.run(exchange(server, pieces))
        body = json.loads(answer.partition(b"\r\n\r\n")[2])["body"]
        assert body == repr(b"".join(chunks))

    check()
