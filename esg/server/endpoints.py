"""The addresses of the two ends of a connection, as the scope of a request shows them."""

from __future__ import annotations

import asyncio
from typing import Any

from esg.server.asgi.types import Endpoint
from esg.server.memo import Memo

FROM_TRANSPORT: Endpoint = ("", -1)
"""In place of the server's end of a TCP connection: the transport of the connection knows it."""

_locals: Memo[tuple[Any, ...], Endpoint] = Memo(256, 0)
"""Known addresses of servers, so that connections share them."""


def endpoint(address: tuple[Any, ...]) -> Endpoint:
    """Host and port of a socket address. An IPv4-mapped IPv6 address becomes an IPv4 address."""
    host, port = address[0], address[1]
    if host.startswith("::ffff:") and "." in host:
        host = host[7:]
    return host, port


def local_endpoint(transport: asyncio.BaseTransport) -> Endpoint | None:
    """The server's end of a TCP connection; None if it had ended before it was set up."""
    address = transport.get_extra_info("sockname")
    if not address:
        return None
    found = _locals.known.get(address)
    return found or _locals.keep(address, endpoint(address))
