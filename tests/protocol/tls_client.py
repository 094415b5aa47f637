"""The client of `wire.py`, over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

from .wire import DEADLINE, QUIET_TURNS, Client, turns


class TLSClient(Client):
    """One connection over TLS. Each piece is a separate record.

    `shutdown` and `close` send a close_notify; `hang_up` doesn't.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        piece: int | None = None,
        *,
        context: ssl.SSLContext,
        server_hostname: str = "127.0.0.1",
    ) -> None:
        super().__init__(loop, sock, piece)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=server_hostname)
        self._unsent = b""
        self._shaken = False
        self._shaking = asyncio.Lock()
        self.ended = False
        """Whether the server has sent a close_notify."""

    async def handshake(self) -> None:
        """Do the handshake if it isn't done yet. Raises ssl.SSLError."""
        if self._shaken:
            return
        async with asyncio.timeout(DEADLINE), self._shaking:
            while not self._shaken:
                try:
                    self.tls.do_handshake()
                    self._shaken = True
                except ssl.SSLWantReadError:
                    await self._flush()
                    await self._fill()
            await self._flush()

    async def send(self, data: bytes) -> None:
        await self.handshake()
        if self.piece is not None:
            await super().send(data)
            return
        async with asyncio.timeout(DEADLINE):
            for at in range(0, len(data), 65536):
                self.tls.write(data[at : at + 65536])
                await self._flush()

    async def send_pieces(self, pieces: list[bytes]) -> None:
        await self.handshake()
        for piece in pieces:
            self.tls.write(piece)
            try:
                async with asyncio.timeout(DEADLINE):
                    await self._flush()
            except (BrokenPipeError, ConnectionResetError):
                return
            await turns(3)

    async def push(self, data: bytes) -> int:
        """Like the base class, but encrypted data counts as sent; its rest is sent next time."""
        await self.handshake()
        sent = 0
        while await self._push_encrypted() and sent < len(data):
            sent += self.tls.write(data[sent : sent + 65536])
        return sent

    async def _push_encrypted(self) -> bool:
        self._unsent += self._out.read()
        self._unsent = self._unsent[await super().push(self._unsent) :]
        return not self._unsent

    def shutdown(self) -> None:
        """Close the sending side, in TLS and TCP, and continue to read."""
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        self.sock.send(self._out.read())
        self.sock.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        """Close our side of TCP without a close_notify."""
        self.sock.shutdown(socket.SHUT_WR)

    async def quiet(self) -> None:
        await turns(QUIET_TURNS)
        with contextlib.suppress(BlockingIOError):
            received = self.sock.recv(65536)
            assert received, "closed"
            self._in.write(received)
        self._decrypt()
        assert self._buffer == b""
        assert not self.ended

    async def _receive(self) -> bool:
        await self.handshake()
        before = len(self._buffer)
        while True:
            self._decrypt()
            if len(self._buffer) > before:
                return True
            if self.ended or not await self._fill():
                return False

    def _decrypt(self) -> None:
        try:
            while not self.ended:
                data = self.tls.read(1 << 20)
                self._buffer += data
                self.ended = not data
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True

    async def _flush(self) -> None:
        data, self._unsent = self._unsent + self._out.read(), b""
        if data:
            await self._loop.sock_sendall(self.sock, data)

    async def _fill(self) -> bool:
        data = await self._loop.sock_recv(self.sock, 1 << 20)
        self._in.write(data)
        if not data:
            self._in.write_eof()
            if not self._shaken:
                raise ConnectionResetError("closed in the handshake")
        return bool(data)
