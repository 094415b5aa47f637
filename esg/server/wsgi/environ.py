"""The environ of a WSGI request, made from its ASGI scope (PEP 3333, "environ Variables")."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote_to_bytes

from esg.server.asgi.types import Scope
from esg.server.memo import Memo

Environ = dict[str, Any]

_names: Memo[bytes, str] = Memo(entries=512, longest=64)
_known_names = _names.known
"""The environ keys of field names that were seen before; clients send the same few names."""


def _key(name: bytes) -> str:
    """The environ key of a request field, or "" for a field that is dropped.

    `X_Real_IP` would have the same key as `X-Real-IP`, so it would look like a field that a proxy
    in front has set or removed. `Proxy` would become HTTP_PROXY, and programs that the application
    starts would use it as their proxy (CVE-2016-5385).
    """
    if b"_" in name or name == b"proxy":
        key = ""
    else:
        key = name.decode("latin-1").upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = f"HTTP_{key}"
    return _names.keep(name, key, name)


def request_environ(scope: Scope) -> Environ:
    """The CGI variables for a request's scope.

    Each character of a string stands for one byte (PEP 3333, "Unicode Issues"). Fields with the
    same name are joined with a comma (RFC 9110, section 5.3), cookies with a semicolon (RFC 6265).
    """
    query, raw_path, path = scope["query_string"], scope["raw_path"], scope["path"]
    root = scope["root_path"]
    if root or path == "*" or b"%" in raw_path:
        root, path = _split_path(scope)
    uri = raw_path + b"?" + query if query else raw_path
    raw_uri = uri.decode("latin-1")
    client, server = scope["client"], scope["server"]
    environ: Environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": root,
        "PATH_INFO": path,
        "QUERY_STRING": query.decode("latin-1"),
        "REQUEST_URI": raw_uri,
        "RAW_URI": raw_uri,
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "wsgi.url_scheme": scope["scheme"],
    }
    environ["REMOTE_ADDR"] = client[0] if client else ""  # a UNIX socket has no address
    if client and client[1] is not None:
        environ["REMOTE_PORT"] = str(client[1])
    for name, value in scope["headers"]:
        key = _known_names.get(name)
        if key is None:
            key = _key(name)
        if key in environ:
            separator = "; " if key == "HTTP_COOKIE" else ","
            environ[key] = f"{environ[key]}{separator}{value.decode('latin-1')}"
        elif key:
            environ[key] = value.decode("latin-1")
    if server and server[1] is not None:
        environ["SERVER_NAME"] = server[0]
        environ["SERVER_PORT"] = str(server[1])
    else:
        environ["SERVER_NAME"], environ["SERVER_PORT"] = _named_server(environ)
    return environ


def _split_path(scope: Scope) -> tuple[str, str]:
    """SCRIPT_NAME and PATH_INFO, percent-decoded; `raw_path` has the root path in front."""
    raw_path: bytes = scope["raw_path"]
    if raw_path == b"*":
        return "", ""  # RFC 3875, section 4.1.5: it begins with a slash, or is empty
    root = scope["root_path"].encode()
    if raw_path.startswith(root):
        path = raw_path[len(root) :]
        path = unquote_to_bytes(path) if b"%" in path else path
    else:
        path = unquote_to_bytes(raw_path)
        path = path.removeprefix(root)
    return root.rstrip(b"/").decode("latin-1"), path.decode("latin-1")


def _named_server(environ: Environ) -> tuple[str, str]:
    """Name and port from the Host field, for a server without an address (a UNIX socket)."""
    name, _, port = environ.get("HTTP_HOST", "").rpartition(":")
    if not port.isdigit():
        name, port = environ.get("HTTP_HOST", ""), ""
    return name or "localhost", port or ("443" if environ["wsgi.url_scheme"] == "https" else "80")
