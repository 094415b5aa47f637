"""Applications to serve, and functions to build them from."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

Scope = dict[str, Any]
Message = dict[str, Any]


async def respond(
    send: Any,
    body: bytes = b"hello",
    status: int = 200,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Send a whole response."""
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


async def start(send: Any, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """Begin a response."""
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def piece(send: Any, body: bytes = b"", more: bool = True) -> None:
    """Send a piece of a body."""
    await send({"type": "http.response.body", "body": body, "more_body": more})


class Disconnected(Exception):
    """The client left before its request was complete."""


async def read_body(receive: Any) -> bytes:
    """Receive the whole body of a request. Raises Disconnected."""
    pieces, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        pieces.append(message["body"])
        more = message["more_body"]
    return b"".join(pieces)


async def hello(scope: Scope, receive: Any, send: Any) -> None:
    """Answer any request without reading its body."""
    await respond(send)


async def echo(scope: Scope, receive: Any, send: Any) -> None:
    """Answer with the request's body."""
    with contextlib.suppress(Disconnected):
        await respond(send, await read_body(receive))


async def echo_path(scope: Scope, receive: Any, send: Any) -> None:
    """Answer with the request's path."""
    await respond(send, scope["path"].encode())


class Recorder:
    """Answers with a request's body, and remembers each scope and body."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        with contextlib.suppress(Disconnected):
            body = await read_body(receive)
            self.bodies.append(body)
            await respond(send, body)

    @property
    def scope(self) -> Scope:
        """The scope of the only request so far."""
        (scope,) = self.scopes
        return scope

    @property
    def calls(self) -> int:
        return len(self.scopes)


class Gate:
    """Answers each request with its path, once the gate is open."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.paths: list[str] = []

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        await self.open.wait()
        await respond(send, scope["path"].encode())


class Probe:
    """Takes a request and leaves the rest to the test, which calls `receive` and `send` itself."""

    def __init__(self) -> None:
        self.scope: Scope = {}
        self.receive: Any = None
        self.send: Any = None
        self.called = asyncio.Event()
        self.done = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        self.scope, self.receive, self.send = scope, receive, send
        self.called.set()
        await self.done.wait()
