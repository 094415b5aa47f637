"""Reads the PROXY protocol header of a new connection, then hands it to the next protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from esg.server.proxy.protocol import BadProxyHeader, ProxyHeader, parse


class ProxyReceiver(asyncio.Protocol):
    """The protocol of a connection until its PROXY header is complete."""

    __slots__ = ("_data", "_fail", "_limit", "_loop", "_make_protocol", "_timer", "_transport")

    _timer: asyncio.TimerHandle
    _transport: asyncio.Transport

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        make_protocol: Callable[[ProxyHeader], asyncio.Protocol],
        *,
        limit: float,
        fail: Callable[[str], None],
    ) -> None:
        """`make_protocol` is called with the header; it returns the protocol for what follows.

        If the header is invalid, or isn't complete in `limit` seconds, `fail` is called once with
        the reason.
        """
        self._loop = loop
        self._make_protocol = make_protocol
        self._fail: Callable[[str], None] | None = fail
        self._limit = limit
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._timer = self._loop.call_later(
            self._limit, self._give_up, "its PROXY protocol header took too long"
        )

    def data_received(self, data: bytes) -> None:
        if self._fail is None:
            return
        self._data += data
        try:
            header = parse(self._data)
        except BadProxyHeader as error:
            self._give_up(str(error))
            return
        if header is None:
            return
        self._timer.cancel()
        protocol, rest = self._make_protocol(header), self._data[header.size :]
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if rest:
            protocol.data_received(rest)

    def eof_received(self) -> bool:
        self._give_up("it disconnected before its PROXY protocol header was complete")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._give_up("it disconnected before its PROXY protocol header was complete")

    def _give_up(self, reason: str) -> None:
        self._timer.cancel()
        fail, self._fail = self._fail, None
        if fail is not None:
            fail(reason)
            self._transport.close()
