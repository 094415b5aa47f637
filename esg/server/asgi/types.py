"""ASGI 3: its types, and the HTTP scope. https://asgi.readthedocs.io/en/latest/specs/www.html"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

from esg.errors import BadRequest

Scope = dict[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Endpoint = tuple[str, int | None]

VERSION = "3.0"
HTTP_SPEC_VERSION = "2.3"
"""Not 2.4, though ESG does what 2.4 adds. Starlette (still in 1.10) takes 2.4 to mean that it
needn't listen for `http.disconnect` while it streams, so a generator that waits for something to
send is never cancelled when its client leaves.
"""
LIFESPAN_SPEC_VERSION = "2.0"

HIGHEST_PORT = 65535

# uri-host [ ":" port ] (RFC 9110, section 7.2; RFC 3986, section 3.2; zones are RFC 6874's)
_AUTHORITY = re.compile(
    rb"(?:\[([0-9A-Fa-f:.]+)(?:%25[\w.~-]+)?\]|(?:[\w.~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+)"
    rb"(?::([0-9]{0,5}))?"
)

PATH_SEND = "http.response.pathsend"
ZERO_COPY_SEND = "http.response.zerocopysend"

EXTENSIONS: dict[str, dict[str, Any]] = {
    "http.response.early_hint": {},
    "http.response.trailers": {},
}
"""The extensions that a scope offers. The dictionary is copied for each request,
but not its values.
"""

FILE_EXTENSIONS: dict[str, dict[str, Any]] = EXTENSIONS | {PATH_SEND: {}, ZERO_COPY_SEND: {}}
"""The same with `--sendfile`.

Frameworks send a path whenever the server offers this (Starlette: FileResponse and StaticFiles),
even if middleware between them and the server doesn't support it: GZipMiddleware doesn't compress
the file, and middleware that collects a body waits for pieces that never arrive.
"""


def http_template(
    client: Endpoint | None,
    server: Endpoint | None,
    root_path: str,
    tls: dict[str, Any] | None = None,
    *,
    scheme: str = "http",
    sendfile: bool = False,
) -> Scope:
    """The part that the scopes of all requests on one connection share.

    `tls` is the extension of that name, for connections over TLS. `scheme` is the scheme of other
    connections. `sendfile` says whether the server offers to send files for the application.
    """
    extensions = FILE_EXTENSIONS if sendfile else EXTENSIONS
    return {
        "type": "http",
        "asgi": {},
        "http_version": "1.1",
        "method": "",
        "scheme": scheme if tls is None else "https",
        "path": "",
        "raw_path": b"",
        "query_string": b"",
        "root_path": root_path,
        "headers": [],
        "client": client,
        "server": server,
        "state": {},
        "extensions": extensions if tls is None else extensions | {"tls": tls},
    }


def http_scope(
    template: Scope, method: str, target: bytes, headers: Headers, state: dict[str, Any]
) -> Scope:
    """The scope of an HTTP/1.1 request for the undecoded `target` (RFC 9112, section 3.2).

    Nothing in it that an application may change is shared with another request. Raises
    BadRequest for an invalid target.
    """
    if b"#" in target:
        # Proxies end the path at the fragment, so they apply their rules to another path.
        raise BadRequest("the request target has a fragment")
    if target[:1] != b"/":
        target, headers = _origin_form(method, target, headers)
    raw_path, _, query = target.partition(b"?")
    try:
        path = raw_path.decode("ascii")
    except UnicodeDecodeError:
        raise BadRequest("the request target has bytes that aren't ASCII") from None
    if "%" in path:
        path = unquote(path)
    root_path = template["root_path"]
    if root_path and path != "*":
        path = root_path + path
        raw_path = root_path.encode() + raw_path
    scope = template.copy()
    scope["asgi"] = {"version": VERSION, "spec_version": HTTP_SPEC_VERSION}
    scope["method"] = method
    scope["path"] = path
    scope["raw_path"] = raw_path
    scope["query_string"] = query
    scope["headers"] = headers
    scope["state"] = state.copy()
    scope["extensions"] = template["extensions"].copy()
    return scope


def tls_scope(
    template: Scope, method: str, target: bytes, headers: Headers, state: dict[str, Any]
) -> Scope:
    """Like `http_scope`, for a connection over TLS, whose template has the extension."""
    scope = http_scope(template, method, target, headers, state)
    scope["extensions"]["tls"] = template["extensions"]["tls"].copy()
    return scope


def _origin_form(method: str, target: bytes, headers: Headers) -> tuple[bytes, Headers]:
    """The path and query of an absolute-form target, and the headers with its host.

    That host counts, and the Host field is ignored (RFC 9112, section 3.2.2). `*`, only for
    OPTIONS, isn't changed.
    """
    if target == b"*" and method == "OPTIONS":
        return target, headers
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        raise BadRequest("the request target is neither a path nor an http URL")
    authority_end = min((rest.find(mark) for mark in b"/?" if mark in rest), default=len(rest))
    authority, path = rest[:authority_end], rest[authority_end:]
    if not authority or not is_authority(authority):
        raise BadRequest("the request target names no host")
    others = (field for field in headers if field[0] != b"host")
    return path if path[:1] == b"/" else b"/" + path, [(b"host", authority), *others]


def is_authority(value: bytes) -> bool:
    """Whether a value is a host and perhaps a port, without user information (RFC 9110, 4.2.4).

    An empty host isn't valid (section 4.2.1).
    """
    parts = _AUTHORITY.fullmatch(value)
    if parts is None or int(parts[2] or 0) > HIGHEST_PORT:
        return False
    return parts[1] is None or _is_ipv6(parts[1])


def is_authority_form(target: bytes) -> bool:
    """Whether a target is a host and a port, as for CONNECT (RFC 9112, section 3.2.3)."""
    return target[-1:].isdigit() and b":" in target.rpartition(b"]")[2] and is_authority(target)


def _is_ipv6(text: bytes) -> bool:
    try:
        ipaddress.IPv6Address(text.decode("ascii"))
    except ValueError:
        return False
    return True
