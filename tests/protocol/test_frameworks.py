"""Starlette and FastAPI over a real connection, with a common client."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from esg.server.http1.connection import SILENCE
from esg.server.state import TICK

from .wire import get, until


@contextlib.asynccontextmanager
async def browsing(server):
    host, port = server.address
    async with httpx.AsyncClient(
        base_url=f"http://{host}:{port}", timeout=10, trust_env=False
    ) as client:
        yield client


def application(*routes, middleware=()):
    return Starlette(routes=[Route(path, call) for path, call in routes], middleware=middleware)


def posting(path, call):
    return Starlette(routes=[Route(path, call, methods=["POST"])])


async def test_starlette_answers_requests(serve):
    async def hello(request: Request) -> Response:
        return PlainTextResponse("hello")

    async with browsing(serve(application(("/", hello)))) as client:
        for _ in range(3):
            response = await client.get("/")
            assert response.status_code == 200
            assert response.text == "hello"
        assert (await client.get("/missing")).status_code == 404
        assert (await client.head("/")).content == b""
        assert (await client.post("/")).status_code == 405


async def test_starlette_sees_the_facts_of_a_request(serve):
    async def facts(request: Request) -> Response:
        return JSONResponse(
            {
                "url": str(request.url),
                "client": request.client.host,
                "query": dict(request.query_params),
                "cookies": request.cookies,
                "agent": request.headers["user-agent"],
            }
        )

    server = serve(application(("/caf\u00e9", facts)))
    async with browsing(server) as client:
        client.cookies.set("a", "b")
        response = await client.get("/caf\u00e9", params={"q": "\u00fc x"})
        facts = response.json()
    assert facts["query"] == {"q": "\u00fc x"}
    assert facts["cookies"] == {"a": "b"}
    assert facts["client"] == "127.0.0.1"
    assert facts["url"].startswith(f"http://127.0.0.1:{server.address[1]}/caf")
    assert facts["agent"].startswith("python-httpx")


async def test_an_upload_arrives_whole(serve):
    async def digest(request: Request) -> Response:
        body = hashlib.sha256()
        async for piece in request.stream():
            body.update(piece)
        return PlainTextResponse(body.hexdigest())

    content = bytes(range(256)) * 40_000

    async def pieces():
        for at in range(0, len(content), 100_000):
            yield content[at : at + 100_000]

    async with browsing(serve(posting("/", digest))) as client:
        for body in (content, pieces()):
            response = await client.post("/", content=body)
            assert response.text == hashlib.sha256(content).hexdigest()


async def test_a_stream_arrives_whole(serve):
    async def stream(request: Request) -> Response:
        async def numbers():
            for number in range(100):
                yield f"{number}\n"
                await asyncio.sleep(0)

        return StreamingResponse(numbers(), media_type="text/plain")

    async with browsing(serve(application(("/", stream)))) as client:
        async with client.stream("GET", "/") as response:
            lines = [line async for line in response.aiter_lines()]
        assert lines == [str(number) for number in range(100)]
        assert (await client.get("/")).status_code == 200


async def test_a_stream_stops_when_its_client_leaves(serve, log):
    stopped = asyncio.Event()

    async def stream(request: Request) -> Response:
        async def endless():
            try:
                while True:
                    yield bytes(10_000)
                    await asyncio.sleep(0)
            finally:
                stopped.set()

        return StreamingResponse(endless())

    server = serve(application(("/", stream)))
    async with browsing(server) as client, client.stream("GET", "/") as response:
        async for _ in response.aiter_raw():
            break
    await asyncio.wait_for(stopped.wait(), 10)
    await until(lambda: server.service.idle)
    assert log.errors == []


async def test_an_exception_is_a_500(serve, log):
    async def fail(request: Request) -> Response:
        raise ValueError("broken view")

    async with browsing(serve(application(("/", fail)))) as client:
        response = await client.get("/")
        assert response.status_code == 500
        assert (await client.get("/missing")).status_code == 404
    assert "broken view" in log.claim("exception in the application")


async def test_background_tasks_do_not_hold_the_connection(serve):
    release, ran = asyncio.Event(), []

    async def work():
        await release.wait()
        ran.append(True)

    async def accept(request: Request) -> Response:
        return PlainTextResponse("accepted", background=BackgroundTask(work))

    server = serve(application(("/", accept)))
    client = server.connect()
    for _ in range(3):
        response = await asyncio.wait_for(client.request(get()), 10)
        assert response.body == b"accepted"
    assert ran == []
    release.set()
    await until(lambda: server.service.idle or len(ran) == 3)
    assert ran == [True] * 3


class Tagging(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        response = await call_next(request)
        response.headers["x-tag"] = "1"
        return response


async def test_requests_pass_base_http_middleware(serve):
    async def hello(request: Request) -> Response:
        return PlainTextResponse("hello")

    async def echo(request: Request) -> Response:
        return Response(await request.body())

    async def stream(request: Request) -> Response:
        async def pieces():
            for _ in range(10):
                yield b"x" * 1000
                await asyncio.sleep(0)

        return StreamingResponse(pieces())

    routes = [Route("/", hello), Route("/echo", echo, methods=["POST"]), Route("/stream", stream)]
    app = Starlette(routes=routes, middleware=[Middleware(Tagging), Middleware(Tagging)])
    async with browsing(serve(app)) as client:
        for _ in range(3):
            response = await client.get("/")
            assert (response.text, response.headers["x-tag"]) == ("hello", "1")
            assert (await client.post("/echo", content=b"hi" * 99)).content == b"hi" * 99
            assert len((await client.get("/stream")).content) == 10_000


async def test_a_half_closed_client_gets_a_stream_from_base_http_middleware(serve):
    async def stream(request: Request) -> Response:
        async def pieces():
            for _ in range(10):
                yield b"x" * 1000
                await asyncio.sleep(0)

        return StreamingResponse(pieces())

    app = application(("/", stream), middleware=[Middleware(Tagging)])
    client = serve(app).connect()
    await client.send(get())
    client.shutdown()
    response = await client.response()
    assert len(response.body) == 10_000


async def test_a_stream_from_base_http_middleware_stops_when_its_client_leaves(serve, log):
    started = asyncio.Event()

    async def stream(request: Request) -> Response:
        async def endless():
            while True:
                started.set()
                yield bytes(10_000)
                await asyncio.sleep(0)

        return StreamingResponse(endless())

    server = serve(application(("/", stream), middleware=[Middleware(Tagging)]))
    client = server.connect()
    await client.send(get())
    await started.wait()
    client.reset()
    await until(lambda: server.service.idle)
    assert log.errors == []


def quiet_stream(waiting, ended, background):
    """A stream that has sent something, and waits for the next event."""

    async def stream(request: Request) -> Response:
        async def events():
            waiting.append(request)
            try:
                yield b"first"
                await asyncio.Event().wait()
            except BaseException as error:
                ended.append(type(error))
                raise

        return StreamingResponse(events(), background=BackgroundTask(background.append, "run"))

    return stream


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("middleware", [0, 1, 2])
@pytest.mark.parametrize("framework", [application, "fastapi"])
async def test_a_quiet_stream_is_cancelled_when_its_client_leaves(
    serve, log, framework, middleware, how
):
    waiting, ended, background = [], [], []
    stream = quiet_stream(waiting, ended, background)
    if framework == "fastapi":
        app = FastAPI(middleware=[Middleware(Tagging)] * middleware)
        app.get("/", response_model=None)(stream)
    else:
        app = application(("/", stream), middleware=[Middleware(Tagging)] * middleware)
    server = serve(app)
    client = server.connect()
    await client.send(get())
    await until(lambda: waiting)
    await client.head()
    client.reset() if how == "reset" else client.close()
    await until(lambda: all(connection.ends_soon for connection in server.service.connections))
    server.advance(SILENCE + 2 * TICK)
    await until(lambda: ended and server.service.idle)
    assert ended == [asyncio.CancelledError]
    assert background == ["run"]
    assert log.errors == []


async def test_a_handler_of_errors_is_not_called_for_a_client_that_left(serve, log):
    """The response isn't a stream, so the application needn't be told to end."""
    handled, release = [], asyncio.Event()

    async def late(request: Request) -> Response:
        await release.wait()
        return PlainTextResponse("too late")

    async def handle(request: Request, error: Exception) -> Response:
        handled.append(error)
        return PlainTextResponse("error", status_code=500)

    app = Starlette(routes=[Route("/", late)], exception_handlers={Exception: handle})
    server = serve(app)
    client = server.connect()
    await client.send(get())
    await until(lambda: server.service.running)
    client.reset()
    await server.connections(0)
    release.set()
    await until(lambda: server.service.idle)
    assert handled == []
    assert log.errors == []


class Collecting:
    """Middleware that sends a body once it is complete, like middleware that caches or signs."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        begin, body = {}, b""

        async def collect(message):
            nonlocal begin, body
            if message["type"] == "http.response.start":
                begin = message
                return
            assert message["type"] == "http.response.body"
            body += message.get("body", b"")
            if not message.get("more_body"):
                await send(begin)
                await send({"type": "http.response.body", "body": body})

        await self.app(scope, receive, collect)


class Reading(BaseHTTPMiddleware):
    """Middleware that reads the body's pieces, as many guides show."""

    async def dispatch(self, request, call_next):
        response = await call_next(request)
        body = b"".join([piece async for piece in response.body_iterator])
        return Response(body, response.status_code, dict(response.headers))


COMPRESSING = Middleware(GZipMiddleware, minimum_size=100)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("middleware", [COMPRESSING, Middleware(Collecting), Middleware(Reading)])
async def test_middleware_sees_the_bodies_of_files(serve, tmp_path, middleware, static):
    (tmp_path / "file.txt").write_bytes(b"0123456789" * 20_000)

    async def send_file(request: Request) -> Response:
        return FileResponse(tmp_path / "file.txt")

    files = Mount("/", StaticFiles(directory=tmp_path))
    routes = [files if static else Route("/file.txt", send_file)]
    async with browsing(serve(Starlette(routes=routes, middleware=[middleware]))) as client:
        response = await client.get("/file.txt", headers={"accept-encoding": "gzip"})
        assert response.content == b"0123456789" * 20_000
        compressed = response.headers.get("content-encoding") == "gzip"
        assert compressed is (middleware is COMPRESSING)


async def test_files_are_sent_by_the_kernel_with_sendfile(serve, tmp_path):
    (tmp_path / "file.txt").write_bytes(b"0123456789" * 20_000)
    seen = []

    class Watching(Collecting):
        async def __call__(self, scope, receive, send):
            async def note(message):
                seen.append(message["type"])
                await send(message)

            await self.app(scope, receive, note)

    app = Starlette(
        routes=[Mount("/", StaticFiles(directory=tmp_path))], middleware=[Middleware(Watching)]
    )
    async with browsing(serve(app, sendfile=True)) as client:
        assert (await client.get("/file.txt")).content == b"0123456789" * 20_000
    assert seen == ["http.response.start", "http.response.pathsend"]


async def test_is_disconnected_reports_that_the_client_left(serve):
    seen, release = [], asyncio.Event()

    async def wait(request: Request) -> Response:
        seen.append(await request.is_disconnected())
        await release.wait()
        seen.append(await request.is_disconnected())
        return PlainTextResponse("too late")

    server = serve(application(("/", wait)))
    client = server.connect()
    await client.send(get())
    await until(lambda: seen)
    client.reset()
    await server.connections(0)
    release.set()
    await until(lambda: server.service.idle)
    assert seen == [False, True]


async def test_fastapi_answers_requests(serve):
    app = FastAPI()

    @app.get("/items/{item}")
    async def read(item: int, q: str | None = None) -> dict[str, object]:
        return {"item": item, "q": q}

    @app.post("/items")
    async def create(item: dict[str, int]) -> dict[str, int]:
        return {name: 2 * number for name, number in item.items()}

    @app.get("/thread")
    def in_a_thread() -> str:
        return "from a thread"

    async with browsing(serve(app)) as client:
        assert (await client.get("/items/5?q=x")).json() == {"item": 5, "q": "x"}
        assert (await client.get("/items/none")).status_code == 422
        assert (await client.post("/items", json={"a": 1, "b": 2})).json() == {"a": 2, "b": 4}
        assert (await client.get("/thread")).json() == "from a thread"
        assert (await client.get("/openapi.json")).status_code == 200


async def test_many_requests_at_once_get_their_own_responses(serve):
    async def echo(request: Request) -> Response:
        body = await request.body()
        await asyncio.sleep(0)
        return Response(body)

    async with browsing(serve(posting("/", echo))) as client:
        bodies = [b"%d" % number * 1000 for number in range(60)]
        responses = await asyncio.gather(*(client.post("/", content=body) for body in bodies))
    assert [response.content for response in responses] == bodies


@pytest.mark.parametrize("size", [0, 1, 100_000, 5_000_000])
async def test_responses_of_any_size_arrive_whole(serve, size):
    async def view(request: Request) -> Response:
        return Response(bytes(size))

    async with browsing(serve(application(("/", view)))) as client:
        assert (await client.get("/")).content == bytes(size)
