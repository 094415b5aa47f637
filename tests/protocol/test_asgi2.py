"""ASGI 2 applications over a real connection."""

from __future__ import annotations

import pytest

from esg.log.records import worker_subject
from esg.server.asgi.interfaces import adapt
from esg.server.asgi.lifespan import Lifespan
from esg.settings.schema import Config

from .apps import Disconnected, read_body, respond
from .wire import get, post


class Echo:
    """Answers with the request's body, or with the ASGI version in its scope."""

    def __init__(self, scope):
        self.scope = scope

    async def __call__(self, receive, send):
        if self.scope["type"] == "lifespan":
            raise NotImplementedError
        body = await read_body(receive)
        await respond(send, body or self.scope["asgi"]["version"].encode())


def echo(scope):
    async def instance(receive, send):
        await Echo(scope)(receive, send)

    return instance


@pytest.mark.parametrize("app", [Echo, echo])
async def test_requests_are_answered(serve, app):
    client = serve(adapt(app, Config(app="test:app"))).connect()
    for _ in range(2):
        assert (await client.request(get())).body == b"2.0"
        assert (await client.request(post(b"body"))).body == b"body"


async def test_an_exception_of_either_call_is_a_500(serve, log):
    class Broken(Echo):
        def __init__(self, scope):
            super().__init__(scope)
            if scope["path"] == "/first":
                raise ValueError("in the first call")

        async def __call__(self, receive, send):
            raise Disconnected("in the second call")

    server = serve(adapt(Broken, Config(app="test:app")))
    for which in ("first", "second"):
        path = f"/{which}".encode()
        assert (await server.connect().request(get(path))).status == 500
        assert f"in the {which} call" in log.claim("exception in the application")


async def test_the_lifespan_is_supported(log):
    heard = []

    class App(Echo):
        async def __call__(self, receive, send):
            assert self.scope["asgi"]["version"] == "2.0"
            self.scope["state"]["made"] = True
            for _ in range(2):
                message = await receive()
                heard.append(message["type"])
                await send({"type": message["type"] + ".complete"})

    lifespan = Lifespan(adapt(App, Config(app="test:app")), "on", worker_subject(1, 1, 1))
    await lifespan.startup()
    assert lifespan.state == {"made": True}
    await lifespan.shutdown(5)
    assert heard == ["lifespan.startup", "lifespan.shutdown"]


async def test_an_application_without_lifespan_causes_no_error(log):
    lifespan = Lifespan(adapt(Echo, Config(app="test:app")), "auto", worker_subject(1, 1, 1))
    await lifespan.startup()
    await lifespan.shutdown(5)
    assert log.errors == []
