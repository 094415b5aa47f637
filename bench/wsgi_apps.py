"""Raw WSGI applications for the benchmarks."""

from collections.abc import Callable
from typing import Any

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], object]


def hello(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Answer every request with 13 bytes, without reading its body."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    return [b"Hello, world!"]


def count(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Read the whole request body, answer with its size in bytes as decimal text."""
    answer = b"%d" % len(environ["wsgi.input"].read())
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))]
    start_response("200 OK", headers)
    return [answer]
