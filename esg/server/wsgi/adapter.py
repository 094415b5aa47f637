"""Runs a WSGI application (PEP 3333) in threads, as an ASGI application.

Each request is a `Call`, which connects a thread of the pool with the request's task on the event
loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from esg import forks
from esg.log.records import worker_subject
from esg.payload import current_worker
from esg.seldom import Seldom
from esg.server import stacks
from esg.server.asgi.types import Receive, Scope, Send
from esg.server.wsgi.call import Call, FileWrapper, WSGIApplication
from esg.server.wsgi.environ import Environ, request_environ
from esg.server.wsgi.errors import ErrorStream
from esg.server.wsgi.threads import Threads


class WSGIAdapter:
    """An ASGI application that runs a WSGI application."""

    def __init__(self, app: WSGIApplication, *, threads: int, multiprocess: bool) -> None:
        """`threads` requests run at once; more wait for a thread, in the order they arrived.

        `multiprocess`: whether other processes serve the same application.
        """
        worker = current_worker()
        subject = None
        if worker is not None:
            subject = worker_subject(worker.number, worker.generation, worker.pid)
        self.app = app
        self._subject = subject
        self._threads = Threads(threads, _in_next_turn)
        self._keep_in_children = forks.release_in_children(Call.end_in_child)
        self._too_long = Seldom()
        self._base: Environ = {
            "GATEWAY_INTERFACE": "CGI/1.1",
            "SERVER_SOFTWARE": "esg",
            "wsgi.version": (1, 0),
            "wsgi.errors": ErrorStream(subject),
            "wsgi.multithread": threads > 1,
            "wsgi.multiprocess": multiprocess,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
            "wsgi.file_wrapper": FileWrapper,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request or the lifespan, which the application doesn't see; refuse a
        WebSocket."""
        kind = scope["type"]
        if kind == "http":
            await self._serve(scope, receive, send)
        elif kind == "lifespan":
            await self._live(receive, send)
        else:
            await receive()
            await send({"type": "websocket.close"})  # without an accept this is a 403

    def close(self) -> None:
        """Let the threads end when they are idle. No further request may be served."""
        self._threads.close()
        self._keep_in_children()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()  # this asks the kernel for the pid each time
        environ = self._base | request_environ(scope)
        call = Call(self.app, environ, receive, send, loop, self._subject, self._too_long)
        if _may_have_body(environ):
            await call.look_at_body()
        self._threads.submit(call.run)
        task = asyncio.current_task(loop)
        stacks.helpers[task] = call
        try:
            await call.serve()
        finally:
            del stacks.helpers[task]


def _in_next_turn(call: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(call)


def _may_have_body(environ: Environ) -> bool:
    if environ["SERVER_PROTOCOL"] not in ("HTTP/1.1", "HTTP/1.0"):
        return True
    return environ.get("CONTENT_LENGTH", "0") != "0" or "HTTP_TRANSFER_ENCODING" in environ
