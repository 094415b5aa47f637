"""The "it works" application: `esg esg.demo:app`. It has a page for each kind of response."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

import esg

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LONGEST_PAUSE = 60_000
"""The most milliseconds that a slow request may ask for."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ESG works</title>
<style>
  body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto }}
  code {{ background: #eee; padding: .1rem .3rem; border-radius: .2rem }}
</style>
<h1>ESG works</h1>
<p>Worker <b>{worker}</b> of generation <b>{generation}</b> (pid {pid}) answered.
Reload the page, and another worker may answer. Send <code>SIGHUP</code> to the arbiter, and the
generation goes up without losing a request.</p>
<ul>
  <li><a href="/whoami">/whoami</a>: the same as JSON</li>
  <li><a href="/stream">/stream</a>: a response in ten pieces</li>
  <li><a href="/slow?ms=1500">/slow?ms=1500</a>: a response after 1,500 milliseconds</li>
  <li><a href="/echo">/echo</a>: a WebSocket that sends every message back</li>
  <li><code>curl --data-binary @FILE http://HOST:PORT/upload</code>: the size of the upload</li>
</ul>
"""

ECHO_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>WebSocket echo</title>
<h1>WebSocket echo</h1>
<form><input autofocus placeholder="Say something"> <button>Send</button></form>
<pre id="log"></pre>
<script>
  const log = (line) => document.getElementById("log").append(line + "\\n");
  const socket = new WebSocket(location.href.replace(/^http/, "ws"));
  const say = (text) => { socket.send(text); log("> " + text); };
  const once = new URLSearchParams(location.search).get("say");
  socket.onopen = () => {
    log("open " + socket.extensions.split(";")[0]);
    if (once !== null) say(once);
  };
  socket.onmessage = (event) => {
    log("< " + event.data);
    if (once !== null) socket.close(1000);
  };
  socket.onclose = (event) => log("closed " + event.code + " " + event.wasClean);
  socket.onerror = () => log("error: does this server have --ws none?");
  document.forms[0].onsubmit = (event) => {
    event.preventDefault();
    const input = document.querySelector("input");
    say(input.value);
    input.value = "";
  };
</script>
"""


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI application."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["type"] == "websocket":
        await _echo(receive, send)
    else:
        handler = _ROUTES.get(scope["path"], _not_found)
        await handler(scope, receive, send)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _whoami() -> dict[str, int]:
    worker = esg.current_worker()
    if worker is None:
        return {"worker": 0, "generation": 0, "pid": 0}
    return {"worker": worker.number, "generation": worker.generation, "pid": worker.pid}


async def _page(scope: Scope, receive: Receive, send: Send) -> None:
    await _respond(send, 200, "text/html; charset=utf-8", PAGE.format(**_whoami()))


async def _identity(scope: Scope, receive: Receive, send: Send) -> None:
    await _respond(send, 200, "application/json", json.dumps(_whoami()))


async def _stream(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for piece in range(10):
        text = f"piece {piece + 1} of 10\n".encode()
        await send({"type": "http.response.body", "body": text, "more_body": True})
        await asyncio.sleep(0.2)
    await send({"type": "http.response.body"})


async def _slow(scope: Scope, receive: Receive, send: Send) -> None:
    wanted = parse_qs(scope["query_string"].decode("latin-1")).get("ms", ["1000"])[0]
    if not wanted.isascii() or not wanted.isdigit() or int(wanted) > LONGEST_PAUSE:
        text = f"ms has to be a number of milliseconds, at most {LONGEST_PAUSE}\n"
        await _respond(send, 400, "text/plain; charset=utf-8", text)
        return
    await asyncio.sleep(int(wanted) / 1000)
    await _respond(send, 200, "text/plain; charset=utf-8", f"slept {int(wanted)} ms\n")


async def _upload(scope: Scope, receive: Receive, send: Send) -> None:
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await _respond(send, 200, "application/json", json.dumps({"bytes": size}))


async def _echo_page(scope: Scope, receive: Receive, send: Send) -> None:
    await _respond(send, 200, "text/html; charset=utf-8", ECHO_PAGE)


async def _echo(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        elif message["type"] == "websocket.receive":
            content = {
                key: message[key] for key in ("text", "bytes") if message.get(key) is not None
            }
            await send({"type": "websocket.send", **content})
        else:
            return


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await _respond(send, 404, "text/plain; charset=utf-8", "page not found; see /\n")


async def _respond(send: Send, status: int, content_type: str, text: str) -> None:
    body = text.encode()
    headers = [
        (b"content-type", content_type.encode("ascii")),
        (b"content-length", str(len(body)).encode("ascii")),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


_ROUTES: dict[str, Callable[[Scope, Receive, Send], Awaitable[None]]] = {
    "/": _page,
    "/whoami": _identity,
    "/stream": _stream,
    "/slow": _slow,
    "/upload": _upload,
    "/echo": _echo_page,
}
