"""Requests that are refused, since lenient framing is how requests are smuggled (RFC 9112).

A refused request is answered with a status, the connection ends without a reset, and the
application isn't called, or learns that its request will never be whole.
"""

from __future__ import annotations

import asyncio

import pytest

from .apps import Gate, Recorder, hello, respond, start
from .wire import chunked, get, post, post_chunked, request, turns, until


@pytest.fixture(params=[None, 1], ids=["whole", "bytewise"])
def piece(request):
    return request.param


def head(*lines):
    return b"\r\n".join((*lines, b"", b""))


LINE = b"GET / HTTP/1.1"
HOST = b"Host: example.org"
POST = b"POST / HTTP/1.1"

BAD_REQUEST = {
    # Host: RFC 9112, section 3.2
    "no host": head(LINE),
    "two hosts": head(LINE, HOST, HOST),
    "two different hosts": head(LINE, HOST, b"host: other.org"),
    "two hosts in http/1.0": head(b"GET / HTTP/1.0", HOST, HOST),
    "host with a space": head(LINE, b"Host: a b"),
    "host with a slash": head(LINE, b"Host: a/b"),
    "host with user info": head(LINE, b"Host: user@example.org"),
    "host with a question mark": head(LINE, b"Host: a?b"),
    "host with a number sign": head(LINE, b"Host: a#b"),
    "host with a backslash": head(LINE, b"Host: a\\b"),
    "host with a quote": head(LINE, b'Host: a"b'),
    "host that isn't ascii": head(LINE, b"Host: ex\xc3\xa4mple.org"),
    # Content-Length: sections 6.1 and 6.3
    "length with a plus": head(POST, HOST, b"Content-Length: +5"),
    "negative length": head(POST, HOST, b"Content-Length: -1"),
    "negative zero length": head(POST, HOST, b"Content-Length: -0"),
    "hexadecimal length": head(POST, HOST, b"Content-Length: 0x5"),
    "length list": head(POST, HOST, b"Content-Length: 5, 5"),
    "length with a comma": head(POST, HOST, b"Content-Length: 5,"),
    "length with a space": head(POST, HOST, b"Content-Length: 1 2"),
    "length with an underscore": head(POST, HOST, b"Content-Length: 1_0"),
    "length with a point": head(POST, HOST, b"Content-Length: 5.0"),
    "length with an exponent": head(POST, HOST, b"Content-Length: 1e1"),
    "length in other digits": head(POST, HOST, b"Content-Length: \xd9\xa5"),
    "length in superscript": head(POST, HOST, b"Content-Length: \xb2"),
    "quoted length": head(POST, HOST, b'Content-Length: "5"'),
    "empty length": head(POST, HOST, b"Content-Length:"),
    "blank length": head(POST, HOST, b"Content-Length:  "),
    "huge length": head(POST, HOST, b"Content-Length: 18446744073709551617"),
    "length beyond 64 bits": head(POST, HOST, b"Content-Length: " + b"9" * 100),
    "two lengths": head(POST, HOST, b"Content-Length: 5", b"Content-Length: 5"),
    "two different lengths": head(POST, HOST, b"Content-Length: 5", b"Content-Length: 6"),
    "length and an empty length": head(POST, HOST, b"Content-Length: 5", b"Content-Length:"),
    # Transfer-Encoding: section 6.1
    "length then coding": head(POST, HOST, b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "coding then length": head(POST, HOST, b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "coding and length zero": head(POST, HOST, b"Transfer-Encoding: chunked", b"Content-Length: 0"),
    "coding in http/1.0": head(b"POST / HTTP/1.0", HOST, b"Transfer-Encoding: chunked"),
    "coding in http/1.0 kept alive": head(
        b"POST / HTTP/1.0", HOST, b"Connection: keep-alive", b"Transfer-Encoding: chunked"
    ),
    # line ends: section 2.2
    "bare line feed after the request line": LINE + b"\n" + HOST + b"\r\n\r\n",
    "bare line feed after a field": LINE + b"\r\n" + HOST + b"\n\r\n",
    "bare line feed in a field": head(LINE, HOST, b"A: b\nContent-Length: 5"),
    "bare line feed at the end": LINE + b"\r\n" + HOST + b"\r\n\n",
    "bare line feeds only": LINE + b"\n" + HOST + b"\n\n",
    "bare carriage return in a value": head(LINE, HOST, b"A: b\rc"),
    "bare carriage return in a name": head(LINE, HOST, b"A\rb: c"),
    "bare carriage return as a line end": LINE + b"\r" + HOST + b"\r\n\r\n",
    "two carriage returns": LINE + b"\r\r\n" + HOST + b"\r\n\r\n",
    # fields: section 5
    "folded line": head(LINE, HOST, b"A: b", b" c"),
    "folded line with a tab": head(LINE, HOST, b"A: b", b"\tc"),
    "folded empty value": head(LINE, HOST, b"A:", b" b"),
    "folded framing": head(POST, HOST, b"Transfer-Encoding:", b" chunked"),
    "first field indented": head(LINE, b" " + HOST),
    "space before the colon": head(LINE, HOST, b"A : b"),
    "tab before the colon": head(LINE, HOST, b"A\t: b"),
    "space before the colon of a length": head(POST, HOST, b"Content-Length : 5"),
    "space in a name": head(LINE, HOST, b"A B: c"),
    "no colon": head(LINE, HOST, b"A"),
    "empty name": head(LINE, HOST, b": b"),
    "parenthesis in a name": head(LINE, HOST, b"A(b): c"),
    "name that isn't ascii": head(LINE, HOST, b"\xc3\xa9: c"),
    "control character in a name": head(LINE, HOST, b"A\x01: c"),
    "nul in a value": head(LINE, HOST, b"A: b\0c"),
    "nul in a name": head(LINE, HOST, b"A\0: b"),
    "control character in a value": head(LINE, HOST, b"A: \x01"),
    "delete character in a value": head(LINE, HOST, b"A: \x7f"),
    # request line: section 3
    "nul in the target": head(b"GET /\0 HTTP/1.1", HOST),
    "space in the target": head(b"GET /a b HTTP/1.1", HOST),
    "tab in the target": head(b"GET /a\tb HTTP/1.1", HOST),
    "no target": head(b"GET HTTP/1.1", HOST),
    "target that isn't a path": head(b"GET index.html HTTP/1.1", HOST),
    "asterisk for another method": head(b"GET * HTTP/1.1", HOST),
    "method in brackets": head(b"[GET] / HTTP/1.1", HOST),
    "empty method": head(b" / HTTP/1.1", HOST),
    "tls handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "nonsense": b"nonsense\r\n\r\n",
    "http/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}

NOT_IMPLEMENTED = {
    "gzip": head(POST, HOST, b"Transfer-Encoding: gzip"),
    "identity": head(POST, HOST, b"Transfer-Encoding: identity"),
    "gzip and chunked": head(POST, HOST, b"Transfer-Encoding: gzip, chunked"),
    "gzip and chunked in two fields": head(
        POST, HOST, b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"
    ),
    "not quite chunked": head(POST, HOST, b"Transfer-Encoding: xchunked"),
    "chunked with a comma in front": head(POST, HOST, b"Transfer-Encoding: ,chunked"),
    "connect": head(b"CONNECT example.org:443 HTTP/1.1", HOST),
}

EITHER = {
    "chunked then gzip": head(POST, HOST, b"Transfer-Encoding: chunked, gzip"),
    "chunked twice": head(POST, HOST, b"Transfer-Encoding: chunked, chunked"),
    "chunked in two fields": head(
        POST, HOST, b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"
    ),
    "chunked with a parameter": head(POST, HOST, b"Transfer-Encoding: chunked;q=1"),
    "quoted chunked": head(POST, HOST, b'Transfer-Encoding: "chunked"'),
    "chunked with a vertical tab": head(POST, HOST, b"Transfer-Encoding: \x0bchunked"),
    "empty coding": head(POST, HOST, b"Transfer-Encoding:"),
    "unknown method": head(b"BREW / HTTP/1.1", HOST),
    "method in lower case": head(b"get / HTTP/1.1", HOST),
}

VERSIONS = [
    b"HTTP/0.9",
    b"HTTP/1.2",
    b"HTTP/1.10",
    b"HTTP/2.0",
    b"HTTP/2",
    b"HTTP/3.0",
    b"HTTP/9.9",
    b"HTTP/01.1",
    b"HTTP/1.1 ",
    b"HTTP/1.1x",
    b"HTTP/-1.1",
    b"http/1.1",
    b"HTP/1.1",
    b"ICE/1.0",
]


async def refused(serve, data, statuses):
    record = Recorder()
    client = serve(record).connect()
    await client.send(data)
    response = await client.response()
    assert response.status in statuses
    assert response.closes
    await client.closed()
    assert record.calls == 0


@pytest.mark.parametrize("name", BAD_REQUEST)
async def test_a_bad_request_gets_a_400(serve, name):
    await refused(serve, BAD_REQUEST[name], {400})


@pytest.mark.parametrize("name", NOT_IMPLEMENTED)
async def test_a_request_that_is_not_implemented_gets_a_501(serve, name):
    await refused(serve, NOT_IMPLEMENTED[name], {501})


@pytest.mark.parametrize("name", EITHER)
async def test_a_request_that_is_bad_or_not_implemented_gets_a_400_or_501(serve, name):
    await refused(serve, EITHER[name], {400, 501})


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_unknown_version_is_refused(serve, version):
    await refused(serve, head(b"GET / " + version, HOST), {400, 505})


@pytest.mark.parametrize("option", [b"Connection", b"Proxy-Connection"])
@pytest.mark.parametrize("version", [b"HTTP/0.9", b"HTTP/2.0"])
async def test_an_unknown_version_is_refused_despite_keep_alive(serve, version, option):
    await refused(serve, head(b"GET / " + version, HOST, option + b": keep-alive"), {400, 505})


@pytest.mark.parametrize("option", [b"Connection", b"Proxy-Connection"])
async def test_http10_stays_http10_whatever_its_options(serve, option):
    record = Recorder()
    client = serve(record).connect()
    keep_alive = option + b": keep-alive"
    await client.request(head(b"GET / HTTP/1.0", keep_alive))
    assert record.scope["http_version"] == "1.0"
    client = serve(record).connect()
    await client.send(head(b"POST / HTTP/1.0", keep_alive, b"Transfer-Encoding: chunked"))
    assert (await client.response()).status == 400


async def test_a_missing_version_is_refused(serve):
    await refused(serve, head(b"GET /", HOST), {400, 505})


BAD_CHUNKS = {
    "negative size": b"-1\r\nx\r\n0\r\n\r\n",
    "size with a plus": b"+1\r\nx\r\n0\r\n\r\n",
    "size with a prefix": b"0x1\r\nx\r\n0\r\n\r\n",
    "size that isn't a number": b"g\r\nx\r\n0\r\n\r\n",
    "size with an underscore": b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
    "empty size": b"\r\nx\r\n0\r\n\r\n",
    "space before a size": b" 1\r\nx\r\n0\r\n\r\n",
    "space after a size": b"1 \r\nx\r\n0\r\n\r\n",
    "size beyond 64 bits": b"10000000000000001\r\nx\r\n0\r\n\r\n",
    "bare line feed after a size": b"1\nx\r\n0\r\n\r\n",
    "bare line feed after an extension": b"1;a\nx\r\n0\r\n\r\n",
    "bare carriage return after a size": b"1\rx\r\n0\r\n\r\n",
    "bare line feed after data": b"1\r\nx\n0\r\n\r\n",
    "nothing after data": b"1\r\nx0\r\n\r\n",
    "too much data": b"1\r\nxy\r\n0\r\n\r\n",
    "bare line feed at the end": b"1\r\nx\r\n0\r\n\n",
    "bare line feed after the last size": b"1\r\nx\r\n0\n\r\n",
    "nul in an extension": b"1;a=\0\r\nx\r\n0\r\n\r\n",
    "folded trailer": b"1\r\nx\r\n0\r\nA: b\r\n c\r\n\r\n",
    "trailer without a name": b"1\r\nx\r\n0\r\n: b\r\n\r\n",
    "trailer with a bare line feed": b"1\r\nx\r\n0\r\nA: b\n\r\n",
    "trailer with a nul": b"1\r\nx\r\n0\r\nA: \0\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
async def test_bad_chunks_get_a_400(serve, name):
    record = Recorder()
    server = serve(record)
    client = server.connect()
    await client.send(head(POST, HOST, b"Transfer-Encoding: chunked") + BAD_CHUNKS[name])
    assert (await client.response()).status == 400
    await client.closed()
    await until(lambda: server.service.idle or not server.service.running)
    assert record.bodies == []


# -- one message or two: as every proxy would read them ---------------------------------

UPGRADE = (b"Connection: Upgrade", b"Upgrade: h2c")


@pytest.mark.parametrize("fields", [(), UPGRADE, (b"Connection: upgrade", b"Upgrade: websocket")])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("method", [b"GET", b"POST", b"HEAD", b"DELETE"])
async def test_a_body_is_never_taken_for_a_request(serve, fields, framing, method):
    """Not even if the request offered to change the protocol and the server didn't."""
    record = Recorder()
    client = serve(record).connect()
    body = get(b"/smuggled")
    if framing == "length":
        data = request(method, b"/", b"Content-Length: %d" % len(body), *fields) + body
    else:
        data = request(method, b"/", b"Transfer-Encoding: chunked", *fields) + chunked(body)
    await client.send(data + get(b"/next"))
    await client.response(method.decode())
    await client.response()
    assert [scope["path"] for scope in record.scopes] == ["/", "/next"]
    assert record.bodies[0] == body


async def test_an_absolute_target_does_not_excuse_a_missing_host(serve):
    await refused(serve, head(b"GET http://example.org/ HTTP/1.1"), {400})


async def test_an_empty_host_is_refused(serve):
    await refused(serve, head(LINE, b"Host:"), {400})


@pytest.mark.parametrize(
    "host",
    [
        b"example.org:8000",
        b"127.0.0.1",
        b"[::1]:80",
        b"a_b.example",
        b"xn--exmple-cua.org",
        b"A%20",
    ],
)
async def test_hosts_of_all_forms_are_accepted(serve, host):
    record = Recorder()
    client = serve(record).connect()
    assert (await client.request(head(LINE, b"Host: " + host))).status == 200
    assert record.scope["headers"] == [(b"host", host)]


# -- after a request that is still being answered ---------------------------------------


@pytest.mark.parametrize("bad", [b"nonsense\r\n\r\n", head(LINE), NOT_IMPLEMENTED["gzip"]])
async def test_an_error_after_another_request_is_answered_in_its_turn(serve, bad):
    gate = Gate()
    client = serve(gate).connect()
    await client.send(get(b"/1") + get(b"/2") + bad)
    await until(lambda: gate.paths)
    await client.quiet()
    gate.open.set()
    assert (await client.response()).body == b"/1"
    assert (await client.response()).body == b"/2"
    response = await client.response()
    assert response.status in (400, 501)
    assert response.closes
    await client.closed()
    assert gate.paths == ["/1", "/2"]


async def test_an_error_never_gets_into_a_response_that_is_being_sent(serve):
    release = asyncio.Event()

    async def app(scope, receive, send):
        await start(send)
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await release.wait()
        await send({"type": "http.response.body", "body": b"second"})

    client = serve(app).connect()
    await client.send(get())
    await client.head()
    await client.exactly(b"5\r\nfirst\r\n")
    await client.send(b"nonsense\r\n\r\n")
    await client.quiet()
    release.set()
    await client.exactly(b"6\r\nsecond\r\n0\r\n\r\n")
    assert (await client.response()).status == 400
    await client.closed()


async def test_an_error_in_the_body_of_a_later_request_is_answered_in_its_turn(serve):
    gate = Gate()
    client = serve(gate).connect()
    bad = head(POST, HOST, b"Transfer-Encoding: chunked") + b"zz\r\n"
    await client.send(get(b"/1") + bad)
    await until(lambda: gate.paths)
    await turns(10)
    gate.open.set()
    assert (await client.response()).body == b"/1"
    assert (await client.response()).status == 400
    await client.closed()
    assert gate.paths == ["/1"]


async def test_an_error_in_a_body_whose_response_has_begun_cuts_it(serve):
    async def app(scope, receive, send):
        await start(send)
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    client = serve(app).connect()
    await client.send(head(POST, HOST, b"Transfer-Encoding: chunked") + b"1\r\nx\r\n")
    await client.head()
    await client.exactly(b"4\r\npart\r\n")
    await client.send_pieces([b"nonsense\r\n"])
    with pytest.raises(ConnectionResetError):
        await client.rest()


async def test_an_error_in_a_body_that_was_answered_already_ends_the_connection(serve):
    async def app(scope, receive, send):
        await respond(send)

    client = serve(app).connect()
    await client.send(head(POST, HOST, b"Transfer-Encoding: chunked") + b"1\r\nx\r\n")
    assert (await client.response()).body == b"hello"
    await client.send(b"nonsense\r\n" + get())
    await client.closed()


async def test_no_request_after_an_error_is_served(serve):
    record = Recorder()
    client = serve(record).connect()
    await client.send(head(LINE) + get(b"/behind"))
    assert (await client.response()).status == 400
    await client.send(get(b"/late"))
    await client.closed()
    assert record.calls == 0


async def test_an_error_after_many_good_requests_is_answered(serve):
    record = Recorder()
    client = serve(record).connect()
    for _ in range(3):
        await client.send(post(b"x") + post_chunked(b"y"))
        await client.response()
        await client.response()
    await client.send(head(LINE, HOST, HOST))
    assert (await client.response()).status == 400
    await client.closed()
    assert record.calls == 6


@pytest.mark.parametrize("name", ["no host", "two hosts", "no colon"])
def test_refusals_do_not_depend_on_what_the_caller_is_doing(runner, serve, name):
    """If a server is started while an exception is handled, Python chains later ones to it."""
    server = serve(Recorder())
    try:
        raise KeyError
    except KeyError:
        response = runner.run(server.connect().request(BAD_REQUEST[name]))
    assert response.status == 400


async def test_a_refusal_is_explained_in_the_log(serve, log):
    server = serve(hello)
    for _ in range(3):
        client = server.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n")
        assert (await client.response()).status == 400
        await client.closed()
    told = [record for record in log.records if "refused a request" in record.getMessage()]
    assert [record.levelname for record in told] == ["INFO", "DEBUG", "DEBUG"]
    assert told[0].getMessage().endswith("from 127.0.0.1: malformed Host (400)")
    server.advance(61)
    client = server.connect()
    await client.send(b"GET / HTTP/1.1\r\n\r\n")
    await client.response()
    assert "(400) (2 more refused before)" in log.messages[-1]
