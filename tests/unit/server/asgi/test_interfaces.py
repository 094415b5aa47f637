"""Any application as an ASGI 3 application."""

from __future__ import annotations

import asyncio
import os

import pytest

from esg.errors import AppImportError
from esg.server.asgi.interfaces import adapt, default_threads, from_asgi2, interface_behind
from esg.server.wsgi.adapter import WSGIAdapter
from esg.settings.schema import Config


def scope(kind="http"):
    return {"type": kind, "asgi": {"version": "3.0", "spec_version": "2.4"}}


def called(app, made_scope):
    """Call an ASGI 3 application; returns the messages that it sends."""
    sent = []

    async def receive():
        return {"type": "something"}

    async def send(message):
        sent.append(message)

    asyncio.run(app(made_scope, receive, send))
    return sent


class ASGI2:
    def __init__(self, scope):
        self.scope = scope

    async def __call__(self, receive, send):
        await send((self.scope, await receive()))


def test_asgi3_is_used_as_it_is():
    async def app(scope, receive, send):
        pass

    assert adapt(app, Config(app="m:app")) is app


def test_asgi2_is_called_twice_and_its_scope_has_the_version():
    ((seen, received),) = called(adapt(ASGI2, Config(app="m:app")), scope())
    assert seen == {"type": "http", "asgi": {"version": "2.0", "spec_version": "2.4"}}
    assert received == {"type": "something"}


def test_the_interface_behind_an_adapted_application_is_known():
    async def app(scope, receive, send):
        pass

    def wsgi(environ, start_response):
        return []

    made = [adapt(each, Config(app="m:app")) for each in (app, ASGI2, wsgi)]
    assert [interface_behind(each) for each in made] == ["ASGI", "ASGI 2", "WSGI"]


def test_asgi2_may_be_a_function_that_returns_another():
    def app(scope):
        async def instance(receive, send):
            await send(scope["type"])

        return instance

    assert called(from_asgi2(app), scope("lifespan")) == ["lifespan"]


def test_wsgi_is_adapted():
    def app(environ, start_response):
        return []

    assert isinstance(adapt(app, Config(app="m:app")), WSGIAdapter)


def test_an_application_of_no_interface_is_refused():
    with pytest.raises(AppImportError):
        adapt(lambda: None, Config(app="m:app"))


@pytest.mark.parametrize(("cpus", "threads"), [(1, 8), (2, 8), (4, 16), (8, 32), (64, 32)])
def test_the_default_number_of_threads_depends_on_the_cpus(cpus, threads):
    assert default_threads(cpus) == threads


@pytest.mark.parametrize("given", [0, 1, 5])
def test_the_pool_has_as_many_threads_as_configured(monkeypatch, given):
    sizes = []
    monkeypatch.setattr("esg.server.wsgi.adapter.Threads", lambda size, later: sizes.append(size))
    adapt(lambda environ, start_response: [], Config(app="m:app", threads=given))
    assert sizes == [given or default_threads(len(os.sched_getaffinity(0)))]
