"""Flask and Django over a real connection, with a common client."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tracemalloc
from pathlib import Path

import flask
import httpx
import pytest

from esg.server.asgi.interfaces import adapt
from esg.settings.schema import Config

from . import django_site
from .wire import get, until

# Django's warning when it serves a synchronous iterator through ASGI.
pytestmark = pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")

MEGABYTE = 1 << 20
UPLOAD = bytes(range(256)) * 32_000  # 8 MB
UPLOAD_DIGEST = hashlib.sha256(UPLOAD).hexdigest()


@contextlib.asynccontextmanager
async def browsing(server):
    host, port = server.address
    async with httpx.AsyncClient(
        base_url=f"http://{host}:{port}", timeout=20, trust_env=False
    ) as client:
        yield client


# -- Flask -----------------------------------------------------------------------------


@pytest.fixture
def site():
    """A Flask application; `site.closed` counts streams that were closed."""
    app = flask.Flask("site")
    app.closed = []
    app.secret_key = "not a secret"

    @app.get("/")
    def hello():
        return "hello"

    @app.route("/facts/<name>", methods=["GET", "POST"])
    def facts(name):
        request = flask.request
        return {
            "name": name,
            "query": request.args.get("q"),
            "form": request.form.to_dict(),
            "json": request.get_json(silent=True),
            "client": request.remote_addr,
            "url": request.url,
            "cookies": request.cookies,
        }

    @app.post("/upload")
    def upload():
        file = flask.request.files["file"]
        digest = hashlib.file_digest(file.stream, "sha256")
        return {"name": file.filename, "sha256": digest.hexdigest()}

    @app.post("/raw")
    def raw():
        digest = hashlib.sha256()
        while block := flask.request.stream.read(65536):
            digest.update(block)
        return digest.hexdigest()

    @app.get("/session")
    def session():
        flask.session["count"] = flask.session.get("count", 0) + 1
        return str(flask.session["count"])

    @app.get("/stream")
    def stream():
        @flask.stream_with_context
        def pieces():
            for number in range(100):
                yield f"{number} {flask.request.path}\n"

        return pieces()

    @app.get("/endless")
    def endless():
        def pieces():
            try:
                while True:
                    yield bytes(10_000)
            finally:
                app.closed.append(1)

        return pieces()

    @app.get("/file")
    def file():
        return flask.send_file(__file__)

    @app.get("/async")
    async def in_a_loop():
        await asyncio.sleep(0)
        return flask.request.path

    @app.get("/fail")
    def fail():
        raise ValueError("broken view")

    return app


async def test_flask_answers_requests(serve_wsgi, site):
    async with browsing(serve_wsgi(site)) as client:
        for _ in range(3):
            response = await client.get("/")
            assert (response.status_code, response.text) == (200, "hello")
        assert (await client.head("/")).headers["content-length"] == "5"
        assert (await client.get("/missing")).status_code == 404
        assert (await client.post("/")).status_code == 405
        assert (await client.get("/async")).text == "/async"


async def test_flask_sees_the_facts_of_a_request(serve_wsgi, site):
    server = serve_wsgi(site)
    async with browsing(server) as client:
        client.cookies.set("a", "b")
        url = "/facts/caf\u00e9"
        facts = (await client.get(url, params={"q": "\u00fc x"})).json()
        assert facts["name"] == "caf\u00e9"
        assert facts["query"] == "\u00fc x"
        assert facts["client"] == "127.0.0.1"
        assert facts["cookies"] == {"a": "b"}
        assert facts["url"].startswith(f"http://127.0.0.1:{server.address[1]}/facts/caf")
        form = (await client.post(url, data={"field": "\u20ac"})).json()["form"]
        assert form == {"field": "\u20ac"}
        assert (await client.post(url, json={"a": [1]})).json()["json"] == {"a": [1]}


async def test_uploads_to_flask_arrive_whole(serve_wsgi, site):
    async with browsing(serve_wsgi(site)) as client:
        response = await client.post("/upload", files={"file": ("name.bin", UPLOAD)})
        assert response.json() == {"name": "name.bin", "sha256": UPLOAD_DIGEST}

        async def pieces():
            for at in range(0, len(UPLOAD), 100_000):
                yield UPLOAD[at : at + 100_000]

        assert (await client.post("/raw", content=pieces())).text == UPLOAD_DIGEST
        assert (await client.post("/raw", content=UPLOAD)).text == UPLOAD_DIGEST


async def test_a_flask_session_is_kept(serve_wsgi, site):
    async with browsing(serve_wsgi(site)) as client:
        for count in range(1, 4):
            assert (await client.get("/session")).text == str(count)


async def test_flask_sends_streams_and_files(serve_wsgi, site):
    async with browsing(serve_wsgi(site)) as client:
        async with client.stream("GET", "/stream") as response:
            lines = [line async for line in response.aiter_lines()]
        assert lines == [f"{number} /stream" for number in range(100)]
        assert (await client.get("/file")).content == Path(__file__).read_bytes()


async def test_a_flask_stream_is_closed_when_its_client_leaves(serve_wsgi, site, log):
    server = serve_wsgi(site)
    client = server.connect()
    await client.send(get(b"/endless"))
    await client.head()
    client.reset()
    await until(lambda: site.closed)
    await until(lambda: server.service.idle)
    assert site.closed == [1]
    assert log.errors == []


async def test_a_flask_exception_is_a_500(serve_wsgi, site, log):
    """Flask answers itself, and logs to `wsgi.errors` if logging isn't set up."""
    site.logger.addHandler(flask.logging.default_handler)
    site.logger.propagate = False
    async with browsing(serve_wsgi(site)) as client:
        assert (await client.get("/fail")).status_code == 500
        assert (await client.get("/")).status_code == 200
    text = log.claim("Exception on /fail [GET]")
    assert text.count("Traceback (most recent call last):") == 1
    assert text.endswith("ValueError: broken view")


async def test_many_requests_to_flask_at_once_get_their_own_responses(serve_wsgi, site):
    async with browsing(serve_wsgi(site)) as client:
        answers = await asyncio.gather(
            *(client.get(f"/facts/{number}", params={"q": number}) for number in range(50))
        )
    assert [answer.json()["name"] for answer in answers] == [str(n) for n in range(50)]


# -- Django ----------------------------------------------------------------------------


@pytest.fixture(params=["wsgi", "asgi"])
def django(request, serve_wsgi, serve):
    """A server of the Django site, through each of its applications."""
    if request.param == "wsgi":
        return serve_wsgi(django_site.wsgi)
    return serve(adapt(django_site.asgi, Config(app="test:app")))


async def test_django_answers_requests(django):
    async with browsing(django) as client:
        for _ in range(3):
            response = await client.get("/")
            assert (response.status_code, response.text) == (200, "hello")
        assert (await client.head("/")).content == b""
        assert (await client.get("/missing")).status_code == 404
        assert (await client.get("/async")).text == "/async"


async def test_django_sees_the_facts_of_a_request(django):
    async with browsing(django) as client:
        client.cookies.set("a", "b")
        url = "/facts/caf\u00e9"
        facts = (await client.get(url, params={"q": "\u00fc x"})).json()
        assert (facts["name"], facts["path"]) == ("caf\u00e9", "/facts/caf\u00e9")
        assert facts["query"] == "\u00fc x"
        assert facts["cookies"] == {"a": "b"}
        assert facts["client"] == "127.0.0.1"
        assert facts["url"].startswith(f"http://127.0.0.1:{django.address[1]}/facts/caf")
        form = (await client.post(url, data={"field": "\u20ac"})).json()["form"]
        assert form == {"field": "\u20ac"}
        raw = await client.post(url, content=bytes(300_000))
        assert raw.json()["body"] == 300_000


async def test_an_upload_to_django_arrives_whole(django):
    async with browsing(django) as client:
        response = await client.post("/upload", files={"file": ("name.bin", UPLOAD)})
        assert response.json() == {
            "name": "name.bin",
            "size": len(UPLOAD),
            "sha256": UPLOAD_DIGEST,
        }


async def test_django_sends_cookies_and_files(django):
    async with browsing(django) as client:
        response = await client.get("/cookies")
        assert dict(response.cookies) == {"a": "1", "b": "2"}
        response = await client.get("/file")
        assert response.content == Path(django_site.__file__).read_bytes()


async def test_a_django_stream_arrives_whole(django):
    async with browsing(django) as client, client.stream("GET", "/stream") as response:
        lines = [line async for line in response.aiter_lines()]
    assert lines == [str(number) for number in range(100)]


async def test_a_django_exception_is_a_500(django):
    async with browsing(django) as client:
        assert (await client.get("/fail")).status_code == 500
        assert (await client.get("/")).status_code == 200


async def test_a_django_exception_is_in_the_log(serve_wsgi, log, monkeypatch):
    monkeypatch.setattr(django_site.settings, "DEBUG_PROPAGATE_EXCEPTIONS", True)
    async with browsing(serve_wsgi(django_site.wsgi)) as client:
        assert (await client.get("/fail")).status_code == 500
    logged = log.claim("exception in the application: GET '/fail'")
    assert "in fail" in logged
    assert "ValueError: broken view" in logged


async def test_a_django_stream_is_closed_when_its_client_leaves(serve_wsgi, log):
    django_site.streams.clear()
    server = serve_wsgi(django_site.wsgi)
    client = server.connect()
    await client.send(get(b"/endless"))
    await client.head()
    client.reset()
    await until(lambda: django_site.streams)
    await until(lambda: server.service.idle)
    assert django_site.streams == ["closed"]
    assert log.errors == []


async def test_django_is_told_when_a_request_is_finished(serve_wsgi):
    """Django notices it by the response's close(), and its database connections depend on it."""
    django_site.finished.clear()
    client = serve_wsgi(django_site.wsgi).connect()
    for count in range(1, 4):
        assert (await client.request(get())).body == b"hello"
        await until(lambda wanted=count: len(django_site.finished) == wanted)


async def test_an_upload_to_django_takes_little_memory(serve_wsgi):
    """The client is a raw one, whose own memory doesn't count."""
    client = serve_wsgi(django_site.wsgi).connect()
    head = (
        b"--b\r\nContent-Disposition: form-data; name=file; filename=x\r\n"
        b"Content-Type: application/octet-stream\r\n\r\n"
    )
    tail, block, blocks = b"\r\n--b--\r\n", bytes(MEGABYTE), 48
    length = len(head) + blocks * MEGABYTE + len(tail)
    await client.send(
        b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Content-Length: %d\r\n\r\n" % length
    )
    tracemalloc.start()
    try:
        await client.send(head)
        for _ in range(blocks):
            await client.send(block)
        await client.send(tail)
        response = await client.response()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert b'"size": %d' % (blocks * MEGABYTE) in response.body
    assert peak < 8 * MEGABYTE
