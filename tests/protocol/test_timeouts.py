"""Deadlines for clients. The tests move the clock and never wait."""

from __future__ import annotations

import asyncio

import pytest

from esg.server.http1.connection import END, Connection
from esg.server.state import EXPIRE_AGAIN
from esg.server.websocket.handshake import Handshake

from .apps import Disconnected, Gate, Probe, echo, hello, read_body, respond
from .wire import get, post, request, turns, until
from .ws_client import offer

HEADER = 7
BODY = 21
KEEP_ALIVE = 3
LIMITS = {
    "timeout_request_header": HEADER,
    "timeout_request_body": BODY,
    "timeout_keep_alive": KEEP_ALIVE,
}
SLACK = 3
"""The service checks once a second, and never acts before the limit."""


async def arrived():
    """Let the sent bytes reach the server."""
    await turns(10)


async def refused(client):
    response = await client.response()
    assert response.status == 408
    assert response.closes
    await client.closed()


# -- before a request ------------------------------------------------------------------


async def test_a_client_that_never_sends_a_byte_is_disconnected(serve):
    server = serve(hello, **LIMITS)
    client = server.connect()
    await server.connections(1)
    server.advance(HEADER - 1)
    await client.quiet()
    server.advance(SLACK)
    await client.closed()


async def test_an_idle_client_is_disconnected(serve):
    server = serve(hello, **LIMITS)
    client = server.connect()
    await client.request(get())
    server.advance(KEEP_ALIVE - 1)
    await client.quiet()
    server.advance(SLACK)
    await client.closed()


async def test_each_request_restarts_the_keep_alive_time(serve):
    server = serve(hello, **LIMITS)
    client = server.connect()
    for _ in range(5):
        assert (await client.request(get())).status == 200
        server.advance(KEEP_ALIVE - 1)
    await client.quiet()
    server.advance(SLACK)
    await client.closed()


async def test_requests_sent_immediately_are_answered_if_the_keep_alive_time_is_zero(serve):
    server = serve(hello, timeout_keep_alive=0)
    client = server.connect()
    await client.request(get())
    assert (await client.request(get())).status == 200
    server.advance(SLACK)
    await client.closed()


async def test_time_spent_by_the_application_is_not_the_clients(serve):
    gate = Gate()
    server = serve(gate, **LIMITS)
    client = server.connect()
    await client.send(get(b"/slow"))
    await until(lambda: gate.paths)
    for _ in range(5):
        server.advance(1000)
        await client.quiet()
    gate.open.set()
    assert (await client.response()).body == b"/slow"
    server.advance(KEEP_ALIVE - 1)
    assert (await client.request(get(b"/again"))).body == b"/again"


# -- the header section ----------------------------------------------------------------

PARTS = [b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: example.org\r\n"]


@pytest.mark.parametrize("part", PARTS)
async def test_a_header_section_that_stops_is_refused(serve, part):
    server = serve(hello, **LIMITS)
    client = server.connect()
    await client.send(part)
    await arrived()
    server.advance(HEADER - 1)
    await client.quiet()
    server.advance(SLACK)
    await refused(client)


async def test_a_header_section_that_trickles_is_refused(serve):
    """The limit is for the whole section; otherwise a byte now and then would keep a connection."""
    server = serve(hello, **LIMITS)
    client = server.connect()
    data = get(b"/", b"X-A: b")
    for at in range(HEADER + SLACK):
        await client.send(data[at : at + 1])
        await arrived()
        server.advance(1)
    await refused(client)


async def test_a_header_section_within_its_time_is_served(serve):
    server = serve(hello, **LIMITS)
    client = server.connect()
    data = get()
    await client.send(data[:10])
    await arrived()
    server.advance(HEADER - 1)
    await client.send(data[10:])
    assert (await client.response()).status == 200


@pytest.mark.parametrize("part", PARTS)
async def test_a_second_header_section_has_the_full_time(serve, part):
    server = serve(hello, **LIMITS)
    client = server.connect()
    await client.request(get())
    server.advance(KEEP_ALIVE - 1)
    await client.send(part)
    await arrived()
    server.advance(HEADER - 1)
    await client.quiet()
    server.advance(SLACK)
    await refused(client)


async def test_a_header_section_begun_after_another_request_has_the_full_time(serve):
    """A request is arriving, so the connection isn't idle."""
    gate = Gate()
    server = serve(gate, **LIMITS)
    client = server.connect()
    data = get(b"/2")
    await client.send(get(b"/1") + data[:20])
    await until(lambda: gate.paths)
    gate.open.set()
    assert (await client.response()).body == b"/1"
    server.advance(HEADER - 1)
    await client.quiet()
    await client.send(data[20:])
    assert (await client.response()).body == b"/2"


async def test_a_header_section_begun_after_another_request_must_end_in_time(serve):
    gate = Gate()
    server = serve(gate, **LIMITS)
    client = server.connect()
    await client.send(get(b"/1") + get(b"/2")[:20])
    await until(lambda: gate.paths)
    gate.open.set()
    assert (await client.response()).body == b"/1"
    server.advance(HEADER + SLACK)
    await refused(client)


# -- the body --------------------------------------------------------------------------


async def test_a_body_that_stands_still_is_refused(serve):
    outcome = []

    async def app(scope, receive, send):
        try:
            await read_body(receive)
        except Disconnected:
            outcome.append("disconnected")

    server = serve(app, **LIMITS)
    client = server.connect()
    await client.send(request(b"POST", b"/", b"Content-Length: 10") + b"part")
    await arrived()
    server.advance(BODY - 1)
    await client.quiet()
    server.advance(SLACK)
    await refused(client)
    await until(lambda: outcome)


async def test_a_body_that_makes_progress_is_waited_for(serve):
    server = serve(echo, **LIMITS)
    client = server.connect()
    await client.send(request(b"POST", b"/", b"Content-Length: 10"))
    for digit in b"0123456789":
        await arrived()
        server.advance(BODY - 1)
        await client.send(bytes([digit]))
    assert (await client.response()).body == b"0123456789"


async def test_a_body_the_application_does_not_read_is_not_the_clients_fault(serve):
    probe = Probe()
    server = serve(probe, **LIMITS)
    client = server.connect()
    data = post(bytes(30_000_000))
    sent = await client.push(data)
    assert sent < len(data)
    for _ in range(3):
        server.advance(BODY + SLACK)
        await turns(10)
    sending = asyncio.ensure_future(client.send(data[sent:]))
    assert len(await read_body(probe.receive)) == 30_000_000
    await sending
    await respond(probe.send)
    probe.done.set()
    assert (await client.response()).status == 200


async def test_a_body_has_its_full_time_again_after_the_server_stopped_reading(serve):
    probe = Probe()
    server = serve(probe, **LIMITS)
    client = server.connect()
    body = bytes(300_000)
    await client.send(post(body)[:-10])
    await probe.called.wait()
    await turns(100)
    server.advance(BODY + SLACK)
    received = 0
    while received < len(body) - 10:
        received += len((await probe.receive())["body"])
    server.advance(BODY - 1)
    await client.send(body[-10:])
    assert len(await read_body(probe.receive)) == 10
    await respond(probe.send)
    probe.done.set()
    assert (await client.response()).status == 200


async def test_the_body_timeout_does_not_run_while_the_client_awaits_a_continue(serve):
    probe = Probe()
    server = serve(probe, **LIMITS)
    client = server.connect()
    fields = (b"Content-Length: 5", b"Expect: 100-continue")
    await client.send(request(b"POST", b"/", *fields))
    await probe.called.wait()
    server.advance(BODY + SLACK)
    await client.quiet()
    body = asyncio.ensure_future(read_body(probe.receive))
    await client.exactly(b"HTTP/1.1 100 Continue\r\n\r\n")
    await client.send(b"hello")
    assert await body == b"hello"
    await respond(probe.send)
    probe.done.set()
    assert (await client.response()).status == 200


async def test_the_body_timeout_runs_after_a_continue(serve):
    server = serve(echo, **LIMITS)
    client = server.connect()
    fields = (b"Content-Length: 5", b"Expect: 100-continue")
    await client.send(request(b"POST", b"/", *fields))
    await client.exactly(b"HTTP/1.1 100 Continue\r\n\r\n")
    server.advance(BODY + SLACK)
    await refused(client)


async def test_an_unwanted_body_must_still_end(serve):
    """Answered early; the server waits for the rest of the body, but not forever."""
    server = serve(hello, **LIMITS)
    client = server.connect()
    await client.send(request(b"POST", b"/", b"Content-Length: 100") + b"part")
    assert (await client.response()).body == b"hello"
    server.advance(BODY + SLACK)
    await client.closed()


async def test_a_stalled_body_does_not_affect_the_request_before_it(serve):
    gate = Gate()
    server = serve(gate, **LIMITS)
    client = server.connect()
    await client.send(get(b"/1") + request(b"POST", b"/2", b"Content-Length: 10") + b"part")
    await until(lambda: gate.paths)
    for _ in range(3):
        server.advance(BODY + SLACK)
        await client.quiet()
    gate.open.set()
    assert (await client.response()).body == b"/1"
    await refused(client)
    assert gate.paths == ["/1"]


# -- the end ---------------------------------------------------------------------------


@pytest.mark.parametrize("data", [get(b"/", b"Connection: close"), b"nonsense\r\n\r\n"])
async def test_a_client_that_does_not_close_is_not_waited_for_long(serve, data):
    server = serve(hello, **LIMITS)
    client = server.connect()
    await client.request(data)
    await client.closed()
    await server.connections(1)
    server.advance(6)
    await server.connections(0)


async def test_a_client_that_sends_forever_after_the_end_is_disconnected(serve):
    server = serve(hello, **LIMITS)
    client = server.connect()
    await client.request(get(b"/", b"Connection: close"))
    for _ in range(25):
        await client.push(bytes(100_000))
        await turns(5)
        server.advance(2)
    await server.connections(0)


async def test_a_lost_connection_has_no_deadline(serve, log):
    server = serve(hello, **LIMITS)
    for part in (b"", b"G", get(), get() + b"G", request(b"POST", b"/", b"Content-Length: 9")):
        client = server.connect()
        await client.push(part)
        await server.connections(1)
        client.reset()
        await server.connections(0)
        server.advance(1000)
    assert log.errors == []


# -- a sweep that fails, or comes late -------------------------------------------------


async def test_an_error_at_a_deadline_does_not_stop_the_sweep(serve, log, monkeypatch):
    server = serve(hello, **LIMITS)
    clients = [server.connect() for _ in range(5)]
    for client in clients:
        await client.request(get())
    broken = set(list(server.service.connections)[:2])
    expire = Connection.expire

    def fail(self, now):
        if self in broken:
            raise RuntimeError("a fault")
        expire(self, now)

    monkeypatch.setattr(Connection, "expire", fail)
    server.advance(HEADER + SLACK)
    assert {c for c in server.service.connections if c._wait is not END} == broken
    server.advance(1)
    for _ in broken:  # once for each, not every second
        assert "a fault" in log.claim("can't deal with a deadline")
    assert log.errors == []
    broken.clear()
    server.advance(EXPIRE_AGAIN)
    server.advance(1)
    for client in clients:
        await client.closed()


async def test_an_error_at_the_deadline_of_a_handshake_does_not_stop_the_sweep(
    serve, log, monkeypatch
):
    gate = Gate()

    async def app(scope, receive, send):
        await gate(scope, receive, send)

    server = serve(app, request_timeout=30, ws_handshake_timeout=10)
    socket, plain = server.connect(), server.connect()
    await socket.send(offer())
    await plain.send(get())
    await until(lambda: len(gate.paths) == 2)

    def fail(self):
        raise RuntimeError("a fault")

    monkeypatch.setattr(Handshake, "expire", fail)
    server.advance(31)
    log.claim("can't deal with a deadline")
    assert (await plain.response()).status == 503
    assert (await socket.response()).status == 503
    log.claim("request timed out")
    log.claim("request timed out")


async def test_a_loop_that_always_blocks_still_disconnects_idle_clients(serve):
    server = serve(hello, **LIMITS)
    client = server.connect()
    await client.request(get())
    server.stand_still(HEADER + SLACK)
    await client.quiet()  # at first, the sent bytes may still be on their way
    server.stand_still(3)
    await client.closed()


async def test_a_loop_that_always_blocks_reads_before_clients_count_as_late(serve):
    server = serve(hello, **LIMITS)
    client = server.connect()
    await client.request(get())
    server.stand_still(HEADER + SLACK)
    client.sock.send(get())  # no task runs that could read it
    server.stand_still(HEADER)
    assert (await client.response()).status == 200
