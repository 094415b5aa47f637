"""A WebSocket client that sends valid and invalid frames, and reads strictly (RFC 6455)."""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import Any

import pytest

from .wire import Client, Response, get

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

LIBRARIES = [
    pytest.param({"http": http, "ws": ws}, id=f"{http}-{ws}")
    for http in ("httptools", "h11")
    for ws in ("websockets", "wsproto")
]
"""The settings that select a library, and the HTTP parser in front of it."""

KEY = base64.b64encode(b"sixteen bytes ok")
ACCEPT = base64.b64encode(hashlib.sha1(KEY + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())

OFFER = (
    b"Connection: keep-alive, Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Key: " + KEY,
    b"Sec-WebSocket-Version: 13",
)
DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate"

MASK = b"\x12\x34\x56\x78"


def offer(target: bytes = b"/", *fields: bytes) -> bytes:
    """A valid handshake."""
    return get(target, *OFFER, *fields)


def masked(payload: bytes, mask: bytes = MASK) -> bytes:
    key = int.from_bytes((mask * (len(payload) // 4 + 1))[: len(payload)], "big")
    return (int.from_bytes(payload, "big") ^ key).to_bytes(len(payload), "big")


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bool = True,
    length: int | None = None,
) -> bytes:
    """A frame of a client; `length` replaces the true length in its header."""
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    size = len(payload) if length is None else length
    bit = 0x80 if mask else 0
    if size < 126:
        head = struct.pack("!BB", first, bit | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    return head + (MASK + masked(payload) if mask else payload)


def close_payload(code: int, reason: bytes = b"") -> bytes:
    return code.to_bytes(2, "big") + reason


class WebSocket:
    """A connection after its handshake."""

    def __init__(self, client: Client, response: Response) -> None:
        self.client = client
        self.response = response

    @classmethod
    async def open(cls, server: Any, target: bytes = b"/", *fields: bytes, **more: Any) -> Any:
        """Connect and do the handshake; `more` is for `Server.connect`."""
        client = server.connect(**more)
        await client.send(offer(target, *fields))
        return await cls.opened(client)

    @classmethod
    async def opened(cls, client: Client) -> Any:
        """Read the response to a handshake, which must accept it."""
        response = await client.head_of(101)
        assert response[b"upgrade"] == b"websocket"
        assert response[b"connection"] == b"Upgrade"
        assert response[b"sec-websocket-accept"] == ACCEPT
        assert b"content-length" not in response
        assert b"transfer-encoding" not in response
        return cls(client, response)

    async def send(self, opcode: int, payload: bytes = b"", **how: Any) -> None:
        await self.client.send(frame(opcode, payload, **how))

    async def frame(self) -> tuple[int, bytes]:
        """The first byte and the payload of the next frame."""
        first, second = await self.client.read(2)
        assert second < 128, "a server doesn't mask"
        size = second
        if second == 126:
            size = int.from_bytes(await self.client.read(2), "big")
            assert size > 125
        elif second == 127:
            size = int.from_bytes(await self.client.read(8), "big")
            assert size > 65535
        return first, await self.client.read(size)

    async def expect(self, opcode: int, payload: bytes = b"") -> None:
        """Assert that the next frame is this one, whole and not compressed."""
        first, content = await self.frame()
        assert (first, content) == (0x80 | opcode, payload)

    async def echoes(self, opcode: int, payload: bytes) -> None:
        await self.send(opcode, payload)
        await self.expect(opcode, payload)

    async def closing(self) -> tuple[int, bytes]:
        """The code and the reason of the next frame, a close; 1005 if it has no code."""
        first, content = await self.frame()
        assert first == 0x80 | CLOSE, (first, content)
        return (int.from_bytes(content[:2], "big"), content[2:]) if content else (1005, b"")

    async def closes(self, code: int = 1000, reason: bytes = b"") -> None:
        """Close, and assert that the server does so, too."""
        await self.send(CLOSE, close_payload(code, reason))
        assert await self.closing() == (code, reason)
        await self.client.closed()

    async def ended(self, code: int) -> None:
        """Assert that the server closes with this code; answer, and wait for the end."""
        assert (await self.closing())[0] == code
        await self.send(CLOSE, close_payload(code))
        await self.client.closed()
