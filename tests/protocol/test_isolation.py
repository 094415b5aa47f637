"""A request leaves nothing behind: no context, no garbage, no delay for the next one."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref

import pytest

from .apps import Disconnected, Gate, echo, piece, read_body, respond, start
from .wire import get, post, post_chunked, request, turns, until

USER = contextvars.ContextVar("user", default="nobody")


# -- context variables -----------------------------------------------------------------


class Who:
    """Answers with the user in the context, and then sets it."""

    def __init__(self, set_before_body=True):
        self.set_before_body = set_before_body

    async def __call__(self, scope, receive, send):
        found = USER.get()
        if self.set_before_body:
            USER.set(scope["path"])
        await read_body(receive)
        USER.set(scope["path"])
        await respond(send, found.encode())


async def test_context_does_not_leak_to_the_next_request(serve):
    client = serve(Who()).connect()
    for number in range(3):
        assert (await client.request(get(b"/%d" % number))).body == b"nobody"


async def test_a_requests_context_is_the_workers_or_empty(serve):
    token = USER.set("worker")
    try:
        inherits, resets = serve(Who()), serve(Who(), reset_contextvars=True)
        for server, user in ((inherits, b"worker"), (resets, b"nobody")):
            client = server.connect()
            await client.send(get(b"/1") + get(b"/2"))
            assert [(await client.response()).body for _ in range(2)] == [user, user]
    finally:
        USER.reset(token)


async def test_context_does_not_leak_to_a_pipelined_request(serve):
    client = serve(Who()).connect()
    await client.send(b"".join(get(b"/%d" % number) for number in range(40)))
    for _ in range(40):
        assert (await client.response()).body == b"nobody"


async def test_context_does_not_leak_to_another_connection(serve):
    server = serve(Who())
    await server.connect().request(get(b"/1"))
    assert (await server.connect().request(get(b"/2"))).body == b"nobody"


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_context_does_not_leak_when_reading_was_resumed_by_the_application(serve, framing):
    """A task that takes the body makes the socket's reading resume, in the task's context."""
    client = serve(Who()).connect()
    body = bytes(3_000_000)
    data = post(body) if framing == "length" else post_chunked(body)
    assert (await client.request(data)).body == b"nobody"
    assert (await client.request(get(b"/2"))).body == b"nobody"
    await client.send(data + get(b"/3") + get(b"/4"))
    for _ in range(3):
        assert (await client.response()).body == b"nobody"


async def test_context_does_not_leak_when_writing_had_stopped(serve):
    async def app(scope, receive, send):
        found = USER.get()
        USER.set("leaked")
        await start(send, headers=[(b"x-found", found.encode())])
        for _ in range(20):
            await piece(send, bytes(1_000_000))
        await piece(send, more=False)

    client = serve(app).connect(receive_buffer=65536)
    await client.send(get() + get())
    for _ in range(2):
        assert (await client.response())[b"x-found"] == b"nobody"
    assert (await client.request(get()))[b"x-found"] == b"nobody"


async def test_context_does_not_leak_in_a_long_pipeline(serve):
    """So long that the server stops reading, and resumes within a request."""
    client = serve(Who()).connect()
    await client.send(b"".join(get(b"/%d" % number) for number in range(3_000)))
    for _ in range(3_000):
        assert (await client.response()).body == b"nobody"
    assert (await client.request(get(b"/last"))).body == b"nobody"


async def test_each_request_runs_in_a_task_of_its_own(serve):
    tasks = []

    async def app(scope, receive, send):
        tasks.append(asyncio.current_task())
        await respond(send)

    client = serve(app).connect()
    await client.send(get() + get())
    await client.response()
    await client.response()
    assert len(set(tasks)) == 2
    assert all(isinstance(task, asyncio.Task) for task in tasks)


# -- memory ----------------------------------------------------------------------------


class Marker:
    """An object whose deletion can be seen."""


def marking(app, markers):
    """`app`, with a Marker in each scope."""

    async def marked(scope, receive, send):
        marker = Marker()
        markers.append(weakref.ref(marker))
        scope["state"]["marker"] = marker
        await app(scope, receive, send)

    return marked


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def stream(scope, receive, send):
    await start(send, headers=[(b"content-length", b"6")])
    await piece(send, b"one")
    await asyncio.sleep(0)
    await piece(send, b"two", more=False)


async def ignore(scope, receive, send):
    await respond(send)


async def wait_for_the_end(scope, receive, send):
    await read_body(receive)
    waiting = asyncio.ensure_future(receive())
    await asyncio.sleep(0)
    await respond(send)
    await waiting


REQUESTS = {
    "get": get(),
    "head": request(b"HEAD", b"/"),
    "http10": get(b"/", b"Connection: keep-alive", version=b"1.0"),
    "post": post(b"hello"),
    "chunked": post_chunked(b"hello", trailers=b"A: b\r\n"),
    "upgrade": get(b"/", b"Connection: upgrade", b"Upgrade: h2c"),
}


@pytest.mark.parametrize("app", [echo, ignore, stream, wait_for_the_end])
@pytest.mark.parametrize("name", REQUESTS)
async def test_a_request_is_freed_without_the_collector(serve, no_collector, app, name):
    markers = []
    client = serve(marking(app, markers)).connect()
    method = "HEAD" if name == "head" else "GET"
    for _ in range(100):
        await client.request(REQUESTS[name], method)
    await client.send(REQUESTS[name] * 50)
    for _ in range(50):
        await client.response(method)
    await turns(5)
    assert len(markers) == 150
    assert sum(marker() is not None for marker in markers) == 0


async def test_a_request_whose_client_left_is_freed_without_the_collector(serve, no_collector):
    markers = []

    async def app(scope, receive, send):
        with pytest.raises(Disconnected):
            await read_body(receive)

    server = serve(marking(app, markers))
    for _ in range(20):
        client = server.connect()
        await client.send(request(b"POST", b"/", b"Content-Length: 9"))
        await until(lambda: server.service.running)
        client.reset()
        await until(lambda: server.service.idle)
    await turns(5)
    assert sum(marker() is not None for marker in markers) == 0


async def test_connections_leave_no_reference_cycles(serve):
    """The server itself must make none, because the collector may be frozen or slow."""
    server = serve(echo)
    bad = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"

    async def round_trips():
        for data in (*REQUESTS.values(), bad, b"nonsense\r\n\r\n", get() * 100, b"GET /"):
            client = server.connect()
            await client.push(data)
            await turns(5)
            client.close()
            await server.connections(0)
        await turns(5)

    await round_trips()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        await round_trips()
        gc.collect()
        own = [thing for thing in gc.garbage if type(thing).__module__.startswith("esg.")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert own == []


async def test_finished_requests_leave_no_objects_behind(serve):
    server = serve(echo)
    client = server.connect()
    for data in REQUESTS.values():
        await client.request(data, "HEAD" if data.startswith(b"HEAD") else "GET")
    await turns(5)
    assert server.service.running == set()
    client.close()
    await until(lambda: server.service.idle)


# -- work after the response -----------------------------------------------------------


async def test_work_after_the_response_does_not_hold_up_the_next_request(serve):
    gate = Gate()

    async def app(scope, receive, send):
        await respond(send, scope["path"].encode())
        await gate.open.wait()

    server = serve(app)
    client = server.connect()
    for path in (b"/1", b"/2", b"/3"):
        assert (await client.request(get(path))).body == path
    await client.send(get(b"/4") + get(b"/5"))
    assert (await client.response()).body == b"/4"
    assert (await client.response()).body == b"/5"
    assert not server.service.idle
    gate.open.set()
    await until(lambda: not server.service.running)


async def test_work_after_the_response_outlives_the_connection(serve):
    gate = Gate()
    done = []

    async def app(scope, receive, send):
        await respond(send)
        await gate.open.wait()
        done.append(True)

    server = serve(app)
    client = server.connect()
    await client.request(get())
    client.reset()
    await server.connections(0)
    assert not server.service.idle
    gate.open.set()
    await until(lambda: server.service.idle)
    assert done == [True]
