"""Strict clients: every request that they send must get a complete and correct answer.

They run on an event loop in a separate thread while the test acts on the server.
A request counts from the moment its connection is established. No request is repeated. A client
obeys `Connection: close`: it opens a new connection for its next request.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import itertools
import json
import random
import ssl
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType

from .app import download_body
from .waiting import eventually

ANSWER_LIMIT = 20.0
"""Seconds to wait for an answer or a connection before it counts as missing."""

SLOW = 1.5
"""Seconds that a slow request takes."""

DOWNLOAD = 120, 3.0
"""Blocks of a download, and the seconds it takes."""

_PAYLOAD = random.Random(1).randbytes(20_000)


class Lost(Exception):
    """A request that was not answered as it should have been."""


class Refused(Exception):
    """The server accepts no connection."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """A lost request: the client, what it requested, and what happened."""

    client: str
    request: str
    reason: str


class Connection:
    """A client's connection, which reads responses strictly."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.open = True
        """Whether the server keeps the connection open for another request."""

    @classmethod
    async def to(cls, port: int, tls: ssl.SSLContext | None = None) -> Connection:
        """Raises Refused, or Lost if there is no answer at all."""
        try:
            async with asyncio.timeout(ANSWER_LIMIT):
                return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=tls))
        except ConnectionRefusedError:
            raise Refused from None
        except (OSError, TimeoutError) as error:
            raise Lost(f"can't connect: {error!r}") from None

    async def request(
        self, target: str, *fields: str, method: str = "GET", body: bytes = b""
    ) -> bytes:
        """Send a request and return the body of the response. Raises Lost."""
        lines = [f"{method} {target} HTTP/1.1", "Host: esg.test", *fields]
        if method == "POST":
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join([*lines, "", ""]).encode()
        stage = "while it was sent"
        try:
            async with asyncio.timeout(ANSWER_LIMIT):
                self._writer.write(head + body)
                await self._writer.drain()
                stage = "before the answer"
                headers = await self._head()
                stage = "in the body"
                return await self._body(headers)
        except TimeoutError:
            raise Lost(f"no end of the answer, {stage}") from None
        except asyncio.IncompleteReadError as error:
            raise Lost(f"end of the connection {stage}, after {error.partial[-80:]!r}") from None
        except OSError as error:
            raise Lost(f"{type(error).__name__} {stage}") from None

    async def end_of_file(self) -> None:
        """Wait until the server closes without a reset. Raises Lost."""
        try:
            async with asyncio.timeout(ANSWER_LIMIT):
                rest = await self._reader.read()
        except (OSError, TimeoutError) as error:
            raise Lost(f"{type(error).__name__} after the answer") from None
        if rest:
            raise Lost(f"bytes after the answer: {rest[:80]!r}")

    def close(self) -> None:
        if self._writer.get_extra_info("sslcontext") is not None:
            # asyncio's TLS would wait for the server's close_notify longer than the loop runs.
            self._writer.transport.abort()
        self._writer.close()

    async def _head(self) -> dict[str, str]:
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("ascii").split("\r\n")
        headers = {}
        for line in filter(None, lines):
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        self.open = headers.get("connection", "").lower() != "close"
        if status != "HTTP/1.1 200 OK":
            raise Lost(f"status line {status!r}")
        return headers

    async def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return await self._reader.readexactly(int(headers["content-length"]))
        body = bytearray()
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            body += await self._reader.readexactly(size)
            await self._expect_line_end()
        await self._expect_line_end()
        return bytes(body)

    async def _expect_line_end(self) -> None:
        if await self._reader.readexactly(2) != b"\r\n":
            raise Lost("a chunk whose length differs from what it says")


class Load:
    """A mix of clients.

    `keep_alive` clients send consecutive requests on one connection, as long as it may be
    used; `fresh` ones open a connection for each request; `slow` requests take 1.5 s; `downloads`
    take 3 s, every byte is compared, and a short request follows on the same connection.
    With `reconnect`, slow requests have a connection of their own, too.
    """

    def __init__(
        self,
        port: int,
        *,
        keep_alive: int = 0,
        fresh: int = 0,
        slow: int = 0,
        downloads: int = 0,
        reconnect: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.failures: list[Failure] = []
        self.answered: collections.Counter[str] = collections.Counter()
        self.connections: collections.Counter[str] = collections.Counter()
        self._port = port
        self._tls = tls
        self._reconnect = reconnect
        self._stopping = False
        self._refusal_is_the_end = False
        self._serial = itertools.count()
        self._kinds: dict[str, tuple[int, Callable[[str], Awaitable[None]]]] = {
            "keep-alive": (keep_alive, self._keep_alive),
            "fresh": (fresh, self._fresh),
            "slow": (slow, self._slow),
            "download": (downloads, self._download),
        }
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    # -- for the test ------------------------------------------------------------------

    def __enter__(self) -> Load:
        self._thread.start()
        quick = [kind for kind in ("keep-alive", "fresh") if self._kinds[kind][0]]
        eventually(lambda: all(self.answered[kind] for kind in quick), "the load is on")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()
        if error is None:
            self.check()

    def shutdown_begins(self) -> None:
        """From now on, a refused connection ends a client, and isn't a failure."""
        self._refusal_is_the_end = True

    def wait_until_answered(self, kind: str, more: int) -> None:
        """Wait for this many more answers to clients of a kind."""
        wanted = self.answered[kind] + more
        eventually(lambda: self.answered[kind] >= wanted, f"{more} answers to {kind} clients")

    def stop(self) -> None:
        """Let each client finish its current request."""
        self._stopping = True
        self._thread.join(ANSWER_LIMIT + 10.0)
        assert not self._thread.is_alive(), "clients hang"

    def check(self) -> None:
        """Assert that no request failed, and that no kind of client was idle."""
        counts = collections.Counter(
            (failure.client.partition(" ")[0], failure.reason) for failure in self.failures
        )
        assert self.failures == [], f"lost of {dict(self.answered)}: {dict(counts)}"
        for kind, (clients, _) in self._kinds.items():
            assert self.answered[kind] > 0 or not clients, f"no {kind} client was answered"

    # -- the clients -------------------------------------------------------------------

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for kind, (clients, client) in self._kinds.items():
                for number in range(clients):
                    group.create_task(self._repeat(f"{kind} {number}", client))

    async def _repeat(self, name: str, client: Callable[[str], Awaitable[None]]) -> None:
        """Run a client again and again; `client` handles one connection from beginning to end."""
        while not self._stopping:
            try:
                await client(name)
            except Refused:
                if self._refusal_is_the_end:
                    return
                self._fail(name, "", "connection refused")

    def _fail(self, client: str, request: str, reason: str) -> None:
        self.failures.append(Failure(client, request, reason))

    async def _ask(
        self,
        name: str,
        connection: Connection,
        target: str,
        *fields: str,
        expected: bytes | None = None,
        body: bytes = b"",
    ) -> bool:
        """One request; its response must be `expected`, or by default that of `/whoami`."""
        method = "POST" if body else "GET"
        try:
            answer = await connection.request(target, *fields, method=method, body=body)
            right = json.loads(answer)["path"] == target if expected is None else answer == expected
            if not right:
                raise Lost(f"a wrong body: {answer[:80]!r} ({len(answer)} bytes)")
        except Lost as error:
            self._fail(name, target, str(error))
            connection.open = False
            return False
        self.answered[name.partition(" ")[0]] += 1
        return True

    async def _keep_alive(self, name: str) -> None:
        connection = await self._connect(name)
        if connection is None:
            return
        while connection.open and not self._stopping:
            serial = next(self._serial)
            if serial % 8:
                await self._ask(name, connection, f"/whoami/{serial}")
            else:
                await self._ask(name, connection, "/echo", expected=_PAYLOAD, body=_PAYLOAD)
            # On two cores, the clients must leave some CPU time to the server.
            await asyncio.sleep(random.uniform(0.0, 0.004))
        connection.close()

    async def _fresh(self, name: str) -> None:
        connection = await self._connect(name)
        if connection is None:
            return
        serial = next(self._serial)
        fields = ["Connection: close"] if serial % 2 else []
        if await self._ask(name, connection, f"/whoami/{serial}", *fields) and fields:
            try:
                await connection.end_of_file()
            except Lost as error:
                self._fail(name, f"/whoami/{serial}", str(error))
        connection.close()
        await asyncio.sleep(random.uniform(0.0, 0.004))

    async def _slow(self, name: str) -> None:
        connection = await self._connect(name)
        if connection is None:
            return
        while connection.open and not self._stopping:
            await self._ask(name, connection, f"/slow/{next(self._serial)}/{SLOW}")
            if self._reconnect:
                break
        connection.close()

    async def _download(self, name: str) -> None:
        connection = await self._connect(name)
        if connection is None:
            return
        blocks, seconds = DOWNLOAD
        expected = download_body(blocks)
        while connection.open and not self._stopping:
            target = f"/download/{blocks},{seconds}"
            if await self._ask(name, connection, target, expected=expected) and connection.open:
                await self._ask(name, connection, f"/whoami/{next(self._serial)}")
        connection.close()

    async def _connect(self, name: str) -> Connection | None:
        try:
            connection = await Connection.to(self._port, self._tls)
        except Lost as error:
            self._fail(name, "", str(error))
            return None
        self.connections[name.partition(" ")[0]] += 1
        return connection
