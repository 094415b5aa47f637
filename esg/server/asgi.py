"""ASGI 3: its types, and the HTTP scope. https://asgi.readthedocs.io/en/latest/specs/www.html"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

from esg.errors import BadRequest

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Endpoint = tuple[str, int | None]

VERSION = "3.0"
HTTP_SPEC_VERSION = "2.4"
LIFESPAN_SPEC_VERSION = "2.0"


def http_scope(
    method: str,
    target: bytes,
    http_version: str,
    headers: Headers,
    client: Endpoint | None,
    server: Endpoint | None,
    root_path: str,
    state: dict[str, Any],
) -> Scope:
    """The scope of a request whose target is `target`, as it came (RFC 9112, section 3.2).

    Raises BadRequest for a target that is none.
    """
    raw_path, _, query = (target if target[:1] == b"/" else _origin_form(method, target)).partition(
        b"?"
    )
    try:
        path = raw_path.decode("ascii")
    except UnicodeDecodeError:
        raise BadRequest("the request target has bytes that aren't ASCII") from None
    if "%" in path:
        path = unquote(path)
    if root_path and path != "*":
        path = root_path + path
        raw_path = root_path.encode() + raw_path
    return {
        "type": "http",
        "asgi": {"version": VERSION, "spec_version": HTTP_SPEC_VERSION},
        "http_version": http_version,
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": raw_path,
        "query_string": query,
        "root_path": root_path,
        "headers": headers,
        "client": client,
        "server": server,
        "state": state.copy(),
        "extensions": {},
    }


def _origin_form(method: str, target: bytes) -> bytes:
    """The path and query of an absolute-form target; `*`, for OPTIONS alone, stays as it is."""
    if target == b"*" and method == "OPTIONS":
        return target
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        raise BadRequest("the request target is neither a path nor an http URL")
    authority_end = min((rest.find(mark) for mark in b"/?" if mark in rest), default=len(rest))
    if authority_end == 0:
        raise BadRequest("the request target names no host")
    path = rest[authority_end:]
    return path if path[:1] == b"/" else b"/" + path
