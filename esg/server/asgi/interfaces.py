"""Makes an ASGI 3 application from an application of any supported interface."""

from __future__ import annotations

import functools
from typing import Any

from esg.loader import interface_of
from esg.server.asgi.types import Application, Receive, Scope, Send
from esg.server.wsgi.adapter import WSGIAdapter
from esg.settings import cpus
from esg.settings.schema import Config

THREADS_PER_CPU = 4
FEWEST_THREADS = 8
MOST_THREADS = 32
"""The default for `--threads`. It is usually more than the number of CPUs, because WSGI requests
often wait for databases and other services."""


def adapt(app: Any, config: Config) -> Application:
    """The ASGI 3 application that calls `app`. Raises the errors of `esg.loader.interface_of`."""
    interface = interface_of(app, config)
    if interface == "wsgi":
        threads = config.threads or default_threads(cpus.usable())
        return WSGIAdapter(app, threads=threads, multiprocess=True)
    if interface == "asgi2":
        return from_asgi2(app)
    asgi3: Application = app
    return asgi3


def default_threads(cpus: int) -> int:
    """The size of a WSGI application's thread pool on this many CPUs."""
    return min(max(FEWEST_THREADS, THREADS_PER_CPU * cpus), MOST_THREADS)


def from_asgi2(app: Any) -> Application:
    """An ASGI 3 application that calls this ASGI 2 application: with the scope, then the rest.

    ASGI specification, "Legacy Applications".
    """

    return functools.partial(_call_asgi2, app)


async def _call_asgi2(app: Any, scope: Scope, receive: Receive, send: Send) -> None:
    scope["asgi"]["version"] = "2.0"
    await app(scope)(receive, send)


def interface_behind(app: Application) -> str:
    """The name, for the log, of the interface of the application that `adapt` made `app` from."""
    if isinstance(app, WSGIAdapter):
        return "WSGI"
    if isinstance(app, functools.partial) and app.func is _call_asgi2:
        return "ASGI 2"
    return "ASGI"
