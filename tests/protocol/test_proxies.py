"""Requests that come through proxies: forwarded headers, and the PROXY protocol."""

from __future__ import annotations

import contextlib
import os
import socket
import struct

import pytest

from esg.seldom import COMPLAINT_INTERVAL
from esg.server.proxy.protocol import SIGNATURE_V2

from .apps import Gate, Recorder, hello
from .tls_client import TLSClient
from .wire import Client, get, post, request, turns, until

FORWARDED = (
    b"X-Forwarded-For: 203.0.113.7",
    b"X-Forwarded-Proto: https",
    b"X-Forwarded-Host: shop.example",
    b"X-Forwarded-Port: 443",
)
V1 = b"PROXY TCP4 203.0.113.7 10.0.0.9 4711 443\r\n"
V2 = SIGNATURE_V2 + struct.pack(
    "!BBH4s4sHH", 0x21, 0x11, 12, bytes([203, 0, 113, 7]), bytes([10, 0, 0, 9]), 4711, 443
)
LOCAL = SIGNATURE_V2 + struct.pack("!BBH", 0x20, 0, 0)


async def scope_of(serve, data, **settings):
    record = Recorder()
    client = serve(record, **settings).connect()
    assert (await client.request(data)).status == 200
    return record.scope


# -- forwarded headers -----------------------------------------------------------------------


async def test_a_trusted_proxy_says_who_the_client_is(serve):
    record = Recorder()
    server = serve(record)
    await server.connect().request(get(b"/", *FORWARDED))
    assert record.scope["client"] == ("203.0.113.7", 0)
    assert record.scope["scheme"] == "https"
    assert record.scope["server"] == (server.address[0], 443)
    hosts = [value for name, value in record.scope["headers"] if name == b"host"]
    assert hosts == [b"shop.example"]


@pytest.mark.parametrize(
    "settings",
    [
        {"forwarded_allow_ips": ("10.0.0.1",)},
        {"forwarded_allow_ips": ("unix:",)},
        {"forwarded_allow_ips": ()},
        {"proxy_headers": False},
        {"proxy_headers": False, "forwarded_allow_ips": ("*",)},
    ],
)
async def test_a_peer_that_is_not_trusted_does_not_say_who_the_client_is(serve, settings):
    record = Recorder()
    client = serve(record, **settings).connect()
    await client.request(get(b"/", *FORWARDED, b"Forwarded: for=6.6.6.6;proto=https"))
    assert record.scope["client"] == client.sock.getsockname()
    assert record.scope["scheme"] == "http"
    assert (b"host", b"example.org") in record.scope["headers"]


async def test_only_the_first_request_of_a_peer_that_is_not_trusted_is_reported(serve):
    record, reports = Recorder(), []
    server = serve(record, forwarded_allow_ips=("10.0.0.1",))
    server.service.proxies.on_untrusted = lambda *report: reports.append(report)
    client = server.connect()
    await client.request(get(b"/"))
    assert reports == []
    for data in (get(b"/", *FORWARDED), post(b"body", *FORWARDED), get(b"/")):
        for again in (client, server.connect()):
            assert (await again.request(data)).status == 200
            assert record.scopes[-1]["client"] == again.sock.getsockname()
            assert record.scopes[-1]["scheme"] == "http"
    assert reports == [(client.sock.getsockname()[0], b"x-forwarded-for")]


@pytest.mark.parametrize(
    "data",
    [
        get(b"/", *FORWARDED),
        request(b"HEAD", b"/", *FORWARDED),
        get(b"/", *FORWARDED, b"Connection: keep-alive"),
        get(b"/", *FORWARDED, b"Connection: close"),
        get(b"/", *FORWARDED, b"Proxy-Connection: keep-alive"),
        get(b"/", *FORWARDED, version=b"1.0"),
        post(b"body", *FORWARDED),
        request(b"POST", b"/", *FORWARDED, b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
        request(b"PROPFIND", b"/", *FORWARDED),
        get(b"/", b"Forwarded: for=203.0.113.7;host=shop.example;proto=https"),
    ],
)
async def test_the_client_is_known_for_any_kind_of_request(serve, data):
    record = Recorder()
    client = serve(record).connect()
    assert (await client.request(data, data.split()[0].decode())).status == 200
    assert record.scope["client"] == ("203.0.113.7", 0)
    assert record.scope["scheme"] == "https"
    assert record.scope["headers"][0] == (b"host", b"shop.example")


async def test_forwarded_fields_only_affect_their_own_request(serve):
    record = Recorder()
    client = serve(record).connect()
    await client.send(get(b"/", *FORWARDED) + get() + get(b"/", b"X-Forwarded-For: 203.0.113.8"))
    for _ in range(3):
        await client.response()
    own = client.sock.getsockname()
    clients = [scope["client"] for scope in record.scopes]
    assert clients == [("203.0.113.7", 0), own, ("203.0.113.8", 0)]
    assert [scope["scheme"] for scope in record.scopes] == ["https", "http", "http"]


async def test_a_connection_with_forwarded_requests_stays_open(serve):
    client = serve(hello).connect()
    for _ in range(3):
        response = await client.request(get(b"/", *FORWARDED))
        assert not response.closes


async def test_a_request_without_a_host_gets_that_of_the_proxy(serve):
    scope = await scope_of(serve, b"GET / HTTP/1.0\r\nX-Forwarded-Host: shop.example\r\n\r\n")
    assert scope["headers"][0] == (b"host", b"shop.example")


async def test_a_proxy_does_not_make_a_bad_request_good(serve):
    client = serve(hello).connect()
    response = await client.request(b"GET / HTTP/1.1\r\nX-Forwarded-Host: shop.example\r\n\r\n")
    assert response.status == 400


async def test_forwarded_fields_in_trailers_are_ignored(serve):
    record = Recorder()
    client = serve(record).connect()
    head = request(b"POST", b"/", b"Transfer-Encoding: chunked")
    await client.request(head + b"0\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n")
    assert record.scope["client"] == client.sock.getsockname()


async def test_the_access_log_shows_the_client(serve):
    reader, writer = os.pipe()
    client = serve(hello, log_fd=writer).connect()
    await client.request(get(b"/a", *FORWARDED))
    await client.request(get(b"/b"))
    await turns(3)
    lines = os.read(reader, 4096).decode().splitlines()
    os.close(reader)
    os.close(writer)
    assert '203.0.113.7:0 - "GET /a HTTP/1.1" 200 OK' in lines[0]
    host, port = client.sock.getsockname()
    assert f'{host}:{port} - "GET /b HTTP/1.1" 200 OK' in lines[1]


# -- the PROXY protocol ------------------------------------------------------------------------


async def refused(client):
    """The connection has ended, perhaps with a reset, without any byte."""
    with contextlib.suppress(ConnectionResetError):
        assert await client.rest() == b""


@pytest.fixture
def server(serve):
    return lambda app, **settings: serve(app, proxy_protocol=True, **settings)


@pytest.mark.parametrize("header", [V1, V2])
@pytest.mark.parametrize("step", [None, 1, 7])
async def test_a_header_says_who_the_client_is(server, header, step):
    record = Recorder()
    client = server(record).connect(piece=step)
    await client.send(header + get())
    assert (await client.response()).status == 200
    assert record.scope["client"] == ("203.0.113.7", 4711)
    assert record.scope["server"] == ("10.0.0.9", 443)
    await client.request(get())
    assert record.scopes[1]["client"] == ("203.0.113.7", 4711)


async def test_a_header_says_that_the_client_speaks_tls(server):
    header = bytearray(V2 + b"\x20\0\x05\x01\0\0\0\0")
    header[15] += 8
    record = Recorder()
    client = server(record).connect()
    await client.request(bytes(header) + get())
    await client.request(get(b"/", b"X-Forwarded-Proto: http"))
    assert [scope["scheme"] for scope in record.scopes] == ["https", "https"]
    assert "tls" not in record.scopes[0]["extensions"]


@pytest.mark.parametrize("header", [LOCAL, b"PROXY UNKNOWN\r\n"])
async def test_a_header_without_addresses_leaves_those_of_the_connection(server, header):
    record = Recorder()
    serving = server(record)
    client = serving.connect()
    await client.request(header + get())
    assert record.scope["client"] == client.sock.getsockname()
    assert record.scope["server"] == serving.address


async def test_a_header_may_say_that_the_client_came_by_a_unix_socket_without_a_name(server):
    record = Recorder()
    header = SIGNATURE_V2 + struct.pack("!BBH216x", 0x21, 0x31, 216)
    assert (await server(record).connect().request(header + get())).status == 200
    assert (record.scope["client"], record.scope["server"]) == (None, ("", None))


async def test_a_header_may_name_a_proxy_of_http(server):
    """The address in the header counts as the peer, and decides whether X-Forwarded-For is used."""
    record = Recorder()
    serving = server(record, forwarded_allow_ips=("127.0.0.1", "203.0.113.7"))
    await serving.connect().request(V1 + get(b"/", b"X-Forwarded-For: 198.51.100.1"))
    assert record.scope["client"] == ("198.51.100.1", 0)


async def test_a_client_that_a_header_names_is_not_trusted(server):
    record = Recorder()
    await server(record).connect().request(V1 + get(b"/", b"X-Forwarded-For: 6.6.6.6"))
    assert record.scope["client"] == ("203.0.113.7", 4711)


async def test_a_header_without_a_request_opens_a_connection(server):
    serving = server(hello)
    client = serving.connect()
    await client.send(V1)
    await serving.connections(1)
    assert (await client.request(get())).body == b"hello"


@pytest.mark.parametrize(
    "data", [get(), b"PROXY \r\n", b"\x16\x03\x01\x02", V1.replace(b"4", b"x")]
)
async def test_a_connection_without_a_header_is_closed(server, log, data):
    record = Recorder()
    serving = server(record)
    client = serving.connect()
    await client.send(data)
    await refused(client)
    await until(lambda: serving.service.load == 0)
    assert record.calls == 0
    assert "refused a connection from 127.0.0.1: " in log.claim("PROXY protocol header")


async def test_a_peer_that_is_not_trusted_is_refused(server, log):
    record = Recorder()
    serving = server(record, forwarded_allow_ips=("10.0.0.1",))
    client = serving.connect()
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        await client.send(V1 + get())
    await refused(client)
    assert serving.service.load == 0
    assert record.calls == 0
    log.claim("refused a connection from 127.0.0.1: no trusted proxy (--forwarded-allow-ips)")


async def test_refusals_are_logged_now_and_then(server, log):
    serving = server(hello)

    async def fail():
        client = serving.connect()
        await client.send(b"GET")
        await refused(client)

    for _ in range(5):
        await fail()
    log.claim("no PROXY protocol header")
    assert log.errors == []
    serving.advance(COMPLAINT_INTERVAL + 1)
    await fail()
    log.claim("(4 more like it before)")


async def test_a_header_that_does_not_arrive_in_time_ends_the_connection(server, log):
    serving = server(hello, timeout_request_header=0.1)
    client = serving.connect()
    await client.send(V1[:10])
    await client.closed()
    await until(lambda: serving.service.load == 0)
    log.claim("took too long")


async def test_the_limit_only_applies_to_the_header(server, runner):
    serving = server(hello, timeout_request_header=0.1)
    client = serving.connect()
    await client.request(V1 + get())
    loop = runner.get_loop()
    later = loop.time() + 0.3
    await until(lambda: loop.time() > later)
    assert (await client.request(get())).body == b"hello"


@pytest.mark.parametrize("how", ["close", "reset", "shutdown"])
@pytest.mark.parametrize("sent", [b"", V1[:10]])
async def test_a_client_that_leaves_before_its_header_is_complete_is_logged(server, log, how, sent):
    serving = server(hello)
    client = serving.connect()
    await client.send(sent)
    await until(lambda: serving.service.load == 1)
    getattr(client, how)()
    await until(lambda: serving.service.load == 0)
    log.claim("it disconnected")


async def test_tls_begins_after_the_header(server, runner, authority, certificate):
    record = Recorder()
    serving = server(record, ssl_certfile=certificate[0], ssl_keyfile=certificate[1])
    for header in (V1, V2):
        sock = socket.create_connection(serving.address)
        sock.send(header)
        client = TLSClient(runner.get_loop(), sock, context=authority.client_context())
        assert (await client.request(get())).status == 200
        assert record.scopes[-1]["client"] == ("203.0.113.7", 4711)
        assert record.scopes[-1]["scheme"] == "https"
        client.close()


async def test_tls_may_begin_in_the_same_segment_as_the_header(
    server, runner, authority, certificate
):
    serving = server(hello, ssl_certfile=certificate[0], ssl_keyfile=certificate[1])
    sock = socket.create_connection(serving.address)
    client = TLSClient(runner.get_loop(), sock, context=authority.client_context())
    client._unsent = V2
    assert (await client.request(get())).status == 200
    client.close()


async def test_tls_without_the_header_is_refused(server, runner, authority, certificate, log):
    serving = server(hello, ssl_certfile=certificate[0], ssl_keyfile=certificate[1])
    sock = socket.create_connection(serving.address)
    client = TLSClient(runner.get_loop(), sock, context=authority.client_context())
    with pytest.raises(ConnectionResetError):
        await client.handshake()
    await until(lambda: serving.service.load == 0)
    log.claim("no PROXY protocol header")
    client.close()


async def test_slow_headers_do_not_hold_others_up(server):
    gate = Gate()
    serving = server(gate)
    slow = [serving.connect() for _ in range(20)]
    for client in slow:
        await client.send(V1[:5])
    gate.open.set()
    assert (await serving.connect().request(V1 + get(b"/x"))).body == b"/x"
    assert isinstance(slow[0], Client)
    for client in slow:
        await client.send(V1[5:] + get(b"/y"))
        assert (await client.response()).body == b"/y"
