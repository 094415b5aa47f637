"""Raw ASGI applications for the benchmarks. They do so little that the server's own work shows."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

HELLO_BODY = b"Hello, world!"
PIECE = b"x" * 100
HELLO_START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/plain"), (b"content-length", b"13")],
}


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer every request with 13 bytes, without reading its body."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    await send(HELLO_START)
    await send({"type": "http.response.body", "body": HELLO_BODY})


async def count(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the whole request body, answer with its size in bytes as decimal text."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    answer = str(await _body_size(receive)).encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


async def stream(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with 50 pieces of 100 bytes, without announcing the length."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    await send(
        {"type": "http.response.start", "status": 200, "headers": HELLO_START["headers"][:1]}
    )
    for _ in range(50):
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _body_size(receive: Receive) -> int:
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body", False):
            return size


async def _lifespan(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})
