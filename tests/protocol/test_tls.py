"""TLS itself: the handshake, the end of a connection, and the scope's `tls` extension."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import weakref
from pathlib import Path

import pytest

from esg.server.http1.parked import Parked
from esg.server.state import PARK_AFTER, TICK
from esg.server.tls_transport import TLSTransport

from .apps import Recorder, hello, respond
from .tls_client import TLSClient
from .wire import Client, get, post, turns, until


@pytest.fixture
def tls(authority, certificate):
    certfile, keyfile = certificate
    settings = {"ssl_certfile": certfile, "ssl_keyfile": keyfile}
    return settings, authority.client_context()


@pytest.fixture
def mutual(authority):
    """Settings that ask clients for a certificate."""
    return {"ssl_ca_certs": authority.file, "ssl_cert_reqs": "required"}


def connect(server, runner, context):
    """A connection of a client with another context."""
    sock = socket.create_connection(server.address)
    return TLSClient(runner.get_loop(), sock, context=context)


def connect_plainly(server, runner):
    """A connection of a client that doesn't speak TLS."""
    return Client(runner.get_loop(), socket.create_connection(server.address))


# -- the scope -------------------------------------------------------------------------------


async def test_the_scope_has_the_tls_extension(serve, certificate):
    record = Recorder()
    client = serve(record).connect()
    await client.request(get())
    assert record.scope["scheme"] == "https"
    extension = record.scope["extensions"]["tls"]
    end = "-----END CERTIFICATE-----\n"
    first = Path(certificate[0]).read_text().partition(end)[0] + end
    assert extension == {
        "server_cert": first,
        "client_cert_chain": (),
        "client_cert_name": None,
        "client_cert_error": None,
        "tls_version": 0x0304,
        "cipher_suite": {"TLS_AES_256_GCM_SHA384": 0x1302}[client.tls.cipher()[0]],
    }


async def test_each_request_has_an_extension_of_its_own(serve):
    record = Recorder()
    client = serve(record).connect()
    await client.request(get())
    record.scope["extensions"]["tls"].clear()
    record.scope["extensions"].clear()
    await client.request(get())
    assert "tls_version" in record.scopes[1]["extensions"]["tls"]


async def test_tls_1_2_is_spoken(serve, runner, authority):
    record = Recorder()
    context = authority.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    client = connect(serve(record), runner, context)
    await client.request(get())
    extension = record.scope["extensions"]["tls"]
    assert extension["tls_version"] == 0x0303
    assert extension["cipher_suite"] >> 8 in (0xC0, 0xCC)  # ECDHE (RFC 5289, RFC 7905)
    client.shutdown()
    await client.closed()
    client.close()


async def test_alpn_selects_http11(serve, runner, authority):
    context = authority.client_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    client = connect(serve(hello), runner, context)
    await client.request(get())
    assert client.tls.selected_alpn_protocol() == "http/1.1"
    client.close()


async def test_a_session_is_resumed(serve, runner, authority):
    context = authority.client_context()
    server = serve(hello)
    first = connect(server, runner, context)
    await first.request(get())
    second = connect(server, runner, context)
    second.tls.session = first.tls.session
    await second.request(get())
    assert second.tls.session_reused
    first.close()
    second.close()


async def test_tls_does_not_become_plain_text_without_prepare(serve, runner):
    server = serve(hello, prepared=False)
    client = connect_plainly(server, runner)
    assert (await client.request(get())).status == 400
    client.close()
    assert (await server.connect().request(get())).body == b"hello"


# -- clients' certificates -------------------------------------------------------------------


async def test_a_clients_certificate_is_in_the_scope(serve, runner, authority, mutual):
    record = Recorder()
    own = authority.issue("client", common_name="alice")
    client = connect(serve(record, **mutual), runner, authority.client_context(own))
    await client.request(get())
    extension = record.scope["extensions"]["tls"]
    assert extension["client_cert_name"].startswith("CN=alice,")
    assert extension["client_cert_chain"][0] in Path(own[0]).read_text()
    client.close()


@pytest.mark.parametrize("required", [True, False])
async def test_a_client_without_a_certificate_is_refused_if_one_is_required(
    serve, runner, authority, mutual, required, log
):
    record = Recorder()
    mutual["ssl_cert_reqs"] = "required" if required else "optional"
    server = serve(record, **mutual)
    client = connect(server, runner, authority.client_context())
    if required:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await client.request(get())
        await until(lambda: server.service.load == 0)
        assert any("PEER_DID_NOT_RETURN_A_CERTIFICATE" in text for text in log.messages)
        assert record.calls == 0
    else:
        await client.request(get())
        assert record.scope["extensions"]["tls"]["client_cert_name"] is None
    client.close()


async def test_a_client_with_a_certificate_of_another_authority_is_refused(
    serve, runner, authority, mutual, tmp_path
):
    stranger = type(authority)(tmp_path)
    context = authority.client_context(stranger.issue("client"))
    record = Recorder()
    server = serve(record, **mutual)
    client = connect(server, runner, context)
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await client.request(get())
    await until(lambda: server.service.load == 0)
    assert record.calls == 0
    client.close()


# -- handshakes that fail --------------------------------------------------------------------


async def test_tls_1_1_is_refused(serve, runner, authority, log):
    context = authority.client_context()
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    server = serve(hello)
    client = connect(server, runner, context)
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await client.handshake()
    await until(lambda: server.service.load == 0)
    assert any("UNSUPPORTED_PROTOCOL" in text for text in log.messages)
    client.close()


async def test_ssl_version_1_3_refuses_tls_1_2(serve, runner, authority):
    context = authority.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    server = serve(hello, ssl_version="1.3")
    client = connect(server, runner, context)
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await client.handshake()
    assert (await server.connect().request(get())).body == b"hello"
    client.close()


async def test_plain_http_gets_a_400(serve, runner, log):
    record = Recorder()
    server = serve(record)
    client = connect_plainly(server, runner)
    response = await client.request(get())
    assert response.status == 400
    assert b"https://" in response.body
    await client.closed()
    await until(lambda: server.service.load == 0)
    assert record.calls == 0
    assert any("HTTP_REQUEST" in text for text in log.messages)
    client.close()


@pytest.mark.parametrize(
    "data", [b"\0" * 100, b"\x16\x03\x01\xff\xff", b"SSH-2.0-x\r\n", bytes(70000)]
)
async def test_data_that_is_not_tls_ends_the_connection(serve, runner, data):
    server = serve(hello)
    client = connect_plainly(server, runner)
    await client.push(data)
    if data[:1] == b"\x16":
        client.shutdown()
    with contextlib.suppress(ConnectionResetError):
        await client.rest()
    await until(lambda: server.service.load == 0)
    client.close()


@pytest.mark.parametrize("how", ["close", "reset", "shutdown"])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_leaves_during_the_handshake_is_forgotten(
    serve, runner, authority, how, begun
):
    server = serve(hello)
    client = connect(server, runner, authority.client_context())
    if begun:
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.do_handshake()
        await client._flush()
        await turns(3)
    await until(lambda: server.service.load == 1)
    {"close": client.close, "reset": client.reset, "shutdown": client.hang_up}[how]()
    await until(lambda: server.service.load == 0)
    client.close()


async def test_a_stalled_handshake_ends_at_its_limit(serve, runner, log):
    server = serve(hello, ssl_handshake_timeout=0.1)
    client = connect_plainly(server, runner)
    await client.send(b"\x16\x03\x01")
    await client.closed()
    await until(lambda: server.service.load == 0)
    assert any("took too long" in text for text in log.messages)
    client.close()


async def test_the_limit_only_applies_to_the_handshake(serve, runner, authority):
    server = serve(hello, ssl_handshake_timeout=0.1)
    client = connect(server, runner, authority.client_context())
    await client.handshake()
    loop = runner.get_loop()
    later = loop.time() + 0.3
    await until(lambda: loop.time() > later)
    assert (await client.request(get())).body == b"hello"
    client.close()


# -- ends ------------------------------------------------------------------------------------


async def test_the_end_is_announced_in_tls(serve):
    """Without it a client can't distinguish a whole response from a truncated one."""
    client = serve(hello).connect()
    await client.request(get(b"/", b"Connection: close"))
    await client.closed()
    assert client.ended


async def test_a_response_that_was_cut_off_has_no_close_notify(serve, log):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        raise ValueError

    client = serve(app).connect()
    await client.send(get(version=b"1.0"))
    with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
        await client.rest()
    assert not client.ended
    log.claim("exception in the application")


async def test_a_client_that_closes_without_a_close_notify_gets_its_response(serve):
    """RFC 9112, section 9.8: an incomplete close does no harm to a request that is complete."""
    client = serve(hello).connect()
    await client.send(get())
    client.hang_up()
    assert (await client.response()).body == b"hello"
    await client.closed()


async def test_close_notify_alone_ends_a_keep_alive_connection(serve):
    server = serve(hello)
    client = server.connect()
    await client.request(get())
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    await client._flush()
    assert await client.rest() == b""
    await server.connections(0)


async def test_a_request_and_a_close_notify_may_arrive_together_at_a_parked_connection(serve):
    server = serve(hello, timeout_keep_alive=60)
    client = server.connect()
    await client.request(get())
    server.advance(PARK_AFTER + 2 * TICK)
    assert [type(connection) for connection in server.service.connections] == [Parked]
    client.tls.write(get())
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    await client._flush()
    assert (await client.response()).body == b"hello"
    await server.connections(0)


async def test_what_follows_a_close_notify_is_dropped_and_the_response_is_sent(serve):
    release = asyncio.Event()

    async def app(scope, receive, send):
        await release.wait()
        await hello(scope, receive, send)

    server = serve(app)
    client = server.connect()
    await client.handshake()
    client.tls.write(get())
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    await client._flush()
    await until(lambda: server.service.running)
    await client._loop.sock_sendall(client.sock, b"\x15\x03\x03\x00\x02\x01\x00")
    await turns(10)
    release.set()
    assert (await client.response()).body == b"hello"
    await server.connections(0)


async def test_records_that_were_tampered_with_end_the_connection(serve):
    record = Recorder()
    server = serve(record)
    client = server.connect()
    await client.request(get())
    client.tls.write(get())
    data = bytearray(client._out.read())
    data[-1] ^= 1
    await client._loop.sock_sendall(client.sock, data)
    with pytest.raises(ssl.SSLError):
        await client.rest()
    await server.connections(0)
    assert record.calls == 1


async def test_requests_sent_with_the_handshakes_last_flight_are_served(serve):
    client = serve(hello).connect()
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    await client._flush()
    await client._fill()
    client.tls.do_handshake()
    client._shaken = True
    client.tls.write(get() + get())
    await client._flush()
    for _ in range(2):
        assert (await client.response()).body == b"hello"


async def test_records_that_arrive_byte_by_byte_are_read(serve):
    record = Recorder()
    client = serve(record).connect()
    await client.handshake()
    body = bytes(range(256)) * 3
    client.tls.write(post(body))
    client.tls.write(get())
    data = client._out.read()
    for at in range(len(data)):
        client.sock.send(data[at : at + 1])
        await turns(1)
    assert (await client.response()).body == body
    assert (await client.response()).body == b""


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [1, 16384, 65536, 65537, 1_000_000])
async def test_bodies_of_any_size_arrive(serve, kind, size):
    body = bytes(range(251)) * (size // 251 + 1)

    async def app(scope, receive, send):
        await respond(send, kind(body[:size]))

    assert (await serve(app).connect().request(get())).body == body[:size]


async def test_a_connection_that_has_ended_is_freed_immediately(serve, runner, monkeypatch):
    """Without the garbage collector, which may come late."""
    made = []
    original = TLSTransport.__init__

    class Referable(TLSTransport):
        __slots__ = ("__weakref__",)

        def __init__(self, *args, **options):
            original(self, *args, **options)
            made.append(weakref.ref(self))

    monkeypatch.setattr("esg.server.acceptor.TLSTransport", Referable)
    server = serve(hello)
    client = server.connect()
    await client.request(get())
    gc.disable()
    try:
        client.shutdown()
        await client.rest()
        client.close()
        await server.connections(0)
        await until(lambda: made[0]() is None)
    finally:
        gc.enable()
