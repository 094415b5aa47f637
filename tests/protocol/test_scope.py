"""The scope of an HTTP request, field by field (ASGI HTTP specification, version 2.3)."""

from __future__ import annotations

import socket

import pytest

from esg.server.asgi.types import EXTENSIONS

from .apps import Recorder
from .wire import Client, get, post, request


@pytest.fixture(params=[None, 1], ids=["whole", "bytewise"])
def piece(request):
    return request.param


async def scope_of(serve, data, **settings):
    """The scope of a request."""
    record = Recorder()
    client = serve(record, **settings).connect()
    assert (await client.request(data)).status == 200
    return record.scope


async def test_scope_has_every_field_and_no_other(serve):
    record = Recorder()
    server = serve(record)
    client = server.connect()
    await client.request(get(b"/a/b?c=d"))
    assert record.scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/a/b",
        "raw_path": b"/a/b",
        "query_string": b"c=d",
        "root_path": "",
        "headers": [(b"host", b"example.org")],
        "client": client.sock.getsockname(),
        "server": server.address,
        "state": {},
        "extensions": EXTENSIONS,
    }


async def test_values_have_the_types_of_the_specification(serve):
    scope = await scope_of(serve, get(b"/?q"))
    for name in ("http_version", "method", "scheme", "path", "root_path"):
        assert type(scope[name]) is str
    for name in ("raw_path", "query_string"):
        assert type(scope[name]) is bytes
    for header in scope["headers"]:
        assert [type(part) for part in header] == [bytes, bytes]
    for end in ("client", "server"):
        assert [type(part) for part in scope[end]] == [str, int]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_http_version_is_that_of_the_request(serve, version):
    scope = await scope_of(serve, get(version=version.encode()))
    assert scope["http_version"] == version


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"])
async def test_method_is_that_of_the_request(serve, method):
    scope = await scope_of(serve, request(method.encode(), b"/"))
    assert scope["method"] == method


async def test_method_may_be_head(serve):
    record = Recorder()
    client = serve(record).connect()
    await client.request(request(b"HEAD", b"/"), "HEAD")
    assert record.scope["method"] == "HEAD"


@pytest.mark.parametrize(
    ("target", "path", "raw_path", "query"),
    [
        (b"/", "/", b"/", b""),
        (b"/a%20b", "/a b", b"/a%20b", b""),
        (b"/%C3%A9t%c3%A9", "/\u00e9t\u00e9", b"/%C3%A9t%c3%A9", b""),
        (b"/%ff", "/\ufffd", b"/%ff", b""),
        (b"/a%2Fb", "/a/b", b"/a%2Fb", b""),
        (b"/%3F?%3F", "/?", b"/%3F", b"%3F"),
        (b"/100%", "/100%", b"/100%", b""),
        (b"/%zz%2", "/%zz%2", b"/%zz%2", b""),
        (b"/%00", "/\0", b"/%00", b""),
        (b"/?", "/", b"/", b""),
        (b"/?a=b?c=d", "/", b"/", b"a=b?c=d"),
        (b"/?a%20b=%e9", "/", b"/", b"a%20b=%e9"),
        (b"//host/path", "//host/path", b"//host/path", b""),
        (b"/a/../b/./c", "/a/../b/./c", b"/a/../b/./c", b""),
        (b"/a;b=c,d&e=f", "/a;b=c,d&e=f", b"/a;b=c,d&e=f", b""),
        (b"/http://x/?y", "/http://x/", b"/http://x/", b"y"),
        (b"http://example.org", "/", b"/", b""),
        (b"http://example.org/", "/", b"/", b""),
        (b"http://example.org?q", "/", b"/", b"q"),
        (b"http://example.org/a%20b?q=/", "/a b", b"/a%20b", b"q=/"),
        (b"HTTPS://example.org:8443/x", "/x", b"/x", b""),
        (b"http://[::1]:80/x?y", "/x", b"/x", b"y"),
    ],
)
async def test_the_target_becomes_path_raw_path_and_query_string(
    serve, target, path, raw_path, query
):
    scope = await scope_of(serve, get(target))
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == (path, raw_path, query)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_the_host_of_an_absolute_target_counts(serve, version):
    """RFC 9112, section 3.2.2."""
    target = b"http://other.example:81/x"
    scope = await scope_of(serve, get(target, b"A: b", version=version))
    assert scope["headers"] == [(b"host", b"other.example:81"), (b"a", b"b")]


async def test_an_asterisk_is_the_whole_path(serve):
    scope = await scope_of(serve, request(b"OPTIONS", b"*"))
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("*", b"*", b"")


async def test_an_asterisk_has_no_root_path_in_front(serve):
    scope = await scope_of(serve, request(b"OPTIONS", b"*"), root_path="/api")
    assert scope["path"] == "*"


async def test_path_begins_with_root_path(serve):
    scope = await scope_of(serve, get(b"/a%20b?c"), root_path="/api/v1")
    assert scope["root_path"] == "/api/v1"
    assert scope["path"] == "/api/v1/a b"
    assert scope["raw_path"] == b"/api/v1/a%20b"
    assert scope["query_string"] == b"c"


@pytest.mark.parametrize(
    "target",
    [
        b"/\xc3\xa9",
        b"/\x7f",
        b"/\x01",
        b"ftp://example.org/",
        b"http:///x",
        b"http://user@example.org/",
        b"x",
        b"://x/",
    ],
)
async def test_an_invalid_target_is_refused(serve, target):
    record = Recorder()
    client = serve(record).connect()
    await client.send(get(target))
    assert (await client.response()).status == 400
    await client.closed()
    assert record.calls == 0


async def test_headers_keep_order_and_duplicates_and_lose_case(serve):
    fields = (b"X-B: 1", b"x-a: 2", b"X-B: 3", b"COOKIE: a=b", b"Cookie: c=d")
    scope = await scope_of(serve, get(b"/", *fields))
    assert scope["headers"] == [
        (b"host", b"example.org"),
        (b"x-b", b"1"),
        (b"x-a", b"2"),
        (b"x-b", b"3"),
        (b"cookie", b"a=b"),
        (b"cookie", b"c=d"),
    ]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"X-A:", b""),
        (b"X-A:   ", b""),
        (b"X-A:b", b"b"),
        (b"X-A: \t b", b"b"),
        (b"X-A: b \t ", b"b"),
        (b"X-A: b  c\td", b"b  c\td"),
        (b"X-A: caf\xe9 \xe2\x82\xac", b"caf\xe9 \xe2\x82\xac"),
        (b'X-A: "q;,\\"', b'"q;,\\"'),
        (b"X-A: a:b: c", b"a:b: c"),
    ],
)
async def test_a_value_comes_without_the_whitespace_around_it(serve, line, value):
    scope = await scope_of(serve, get(b"/", line))
    assert scope["headers"][1:] == [(b"x-a", value)]


async def test_whitespace_around_values_that_the_server_reads_is_ignored(serve):
    record = Recorder()
    client = serve(record).connect()
    head = b"POST / HTTP/1.1\r\nHost:  example.org \r\nContent-Length:  5\t\r\n\r\n"
    assert (await client.request(head + b"hello")).body == b"hello"
    assert dict(record.scope["headers"])[b"host"] == b"example.org"


async def test_unusual_names_are_kept(serve):
    scope = await scope_of(serve, get(b"/", b"!#$%&'*+-.^_`|~9Z: x"))
    assert scope["headers"][1:] == [(b"!#$%&'*+-.^_`|~9z", b"x")]


async def test_framing_fields_are_among_the_headers(serve):
    scope = await scope_of(serve, post(b"x", b"Expect: nothing"))
    assert scope["headers"] == [
        (b"host", b"example.org"),
        (b"content-length", b"1"),
        (b"expect", b"nothing"),
    ]


async def test_state_is_copied_for_each_request(serve):
    states = []

    async def app(scope, receive, send):
        states.append(dict(scope["state"]))
        scope["state"]["mine"] = True
        scope["state"]["pool"].append("shared")
        await Recorder()(scope, receive, send)

    server = serve(app)
    server.service.state = {"pool": []}
    client = server.connect()
    await client.request(get())
    await client.request(get())
    assert ["mine" in state for state in states] == [False, False]
    assert server.service.state == {"pool": ["shared", "shared"]}


async def test_dicts_and_lists_are_fresh_for_each_request(serve):
    record = Recorder()
    client = serve(record).connect()
    await client.send(get() + get())
    await client.response()
    await client.response()
    first, second = record.scopes
    for name in ("asgi", "extensions", "state", "headers"):
        assert first[name] == second[name]
        assert first[name] is not second[name]


async def test_ipv6_addresses_are_in_the_scope(serve):
    record = Recorder()
    server = serve(record, address="[::1]:0")
    client = server.connect()
    await client.request(get())
    assert record.scope["client"] == ("::1", client.sock.getsockname()[1])
    assert record.scope["server"] == ("::1", server.address[1])


async def test_ipv4_client_of_an_ipv6_socket_has_an_ipv4_address(serve, runner):
    record = Recorder()
    server = serve(record, address="[::]:0")
    sock = socket.create_connection(("127.0.0.1", server.address[1]))
    client = Client(runner.get_loop(), sock)
    await client.request(get())
    client.close()
    assert record.scope["client"][0] == "127.0.0.1"
    assert record.scope["server"] == ("127.0.0.1", server.address[1])
