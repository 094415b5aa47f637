"""WebSocket applications for the benchmarks. They also answer HTTP, to show that they are up."""

import asyncio

from bench.apps import HELLO_BODY, HELLO_START, Message, Receive, Scope, Send, _lifespan

__all__ = ["HELLO_BODY", "broadcast", "echo"]


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Send every message back."""
    if scope["type"] != "websocket":
        await _other(scope, receive, send)
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send(_same(message))


_members: set[Send] = set()


async def broadcast(scope: Scope, receive: Receive, send: Send) -> None:
    """Send every message to everybody, one after the other."""
    if scope["type"] != "websocket":
        await _other(scope, receive, send)
        return
    await receive()
    await send({"type": "websocket.accept"})
    _members.add(send)
    try:
        while (message := await receive())["type"] == "websocket.receive":
            answer = _same(message)
            for number, member in enumerate(list(_members)):
                await member(answer)
                if number % 100 == 99:
                    await asyncio.sleep(0)
    finally:
        _members.discard(send)


def _same(message: Message) -> Message:
    return {"type": "websocket.send", "bytes": message["bytes"]}


async def _other(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    await send(HELLO_START)
    await send({"type": "http.response.body", "body": HELLO_BODY})
