"""Accepted connections become transports, on both event loops, without a leak of descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Iterator

import pytest
import uvloop

from esg.server.accepted import AcceptedSocket, Opening, acceptor_of, discard
from esg.server.endpoints import local_endpoint

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    with contextlib.closing(LOOPS[request.param]()) as loop:
        yield loop


@pytest.fixture(params=["tcp", "unix"])
def listener(request: pytest.FixtureRequest, tmp_path) -> Iterator[socket.socket]:
    family = socket.AF_INET if request.param == "tcp" else socket.AF_UNIX
    with socket.socket(family) as listener:
        listener.bind(("0.0.0.0", 0) if request.param == "tcp" else str(tmp_path / "socket"))
        listener.listen()
        listener.setblocking(False)
        yield listener


def connect(listener: socket.socket, host: str = "127.0.0.1") -> socket.socket:
    client = socket.socket(listener.family)
    client.settimeout(5)
    name = listener.getsockname()
    client.connect((host, name[1]) if listener.family == socket.AF_INET else name)
    return client


class Echo(asyncio.Protocol):
    """Sends everything back, and notes what the transport said about itself."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.events.append("made")
        self.transport = transport
        self.local = local_endpoint(transport) if transport.get_extra_info("peername") else None

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.events.append("lost")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_connection_is_served_and_its_descriptor_closed(loop, listener) -> None:
    errors: list[str] = []
    loop.set_exception_handler(lambda _, context: errors.append(str(context)))
    accept = acceptor_of(listener, loop)

    async def serve_one() -> None:
        echo = Echo()
        with connect(listener) as client:
            sock, _ = accept()
            Opening(loop, echo, sock, lambda: errors.append("failed")).step()
            client.setblocking(False)
            await loop.sock_sendall(client, b"hello")
            assert await loop.sock_recv(client, 100) == b"hello"
        while echo.events != ["made", "lost"]:
            await asyncio.sleep(0.001)

    async def serve_some() -> None:
        await serve_one()  # the loop may open descriptors of its own at first
        before = open_files()
        for _ in range(3):
            await serve_one()
        while open_files() > before:
            await asyncio.sleep(0.001)

    loop.run_until_complete(asyncio.wait_for(serve_some(), 15))
    assert errors == []


def test_an_empty_queue_raises_the_error_of_accept(loop, listener) -> None:
    with pytest.raises(BlockingIOError):
        acceptor_of(listener, loop)()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
def test_behind_a_wildcard_the_transport_knows_the_address(loop, host: str) -> None:
    echo = Echo()

    async def serve() -> None:
        with socket.create_server(("0.0.0.0", 0)) as listener:
            listener.setblocking(False)
            with connect(listener, host):
                sock, _ = acceptor_of(listener, loop)()
                Opening(loop, echo, sock, lambda: None).step()
                while not echo.events:
                    await asyncio.sleep(0)
                assert echo.local == (host, listener.getsockname()[1])
                echo.transport.abort()
            await asyncio.sleep(0)

    loop.run_until_complete(asyncio.wait_for(serve(), 15))


class Fails:
    """A loop that can't set a socket up, as if its client had just disconnected."""

    async def connect_accepted_socket(self, protocol_factory, sock) -> None:
        raise OSError(errno.EINVAL, "gone")


@pytest.mark.parametrize("kind", ["of Python", "for uvloop"])
def test_a_socket_that_cannot_be_set_up_is_closed(kind: str) -> None:
    ours, theirs = socket.socketpair()
    sock = ours if kind == "of Python" else AcceptedSocket(ours.detach(), socket.AF_UNIX)
    failed = []
    Opening(Fails(), asyncio.Protocol(), sock, lambda: failed.append(1)).step()
    theirs.settimeout(5)
    assert (failed, theirs.recv(1)) == ([1], b"")
    theirs.close()


def test_a_discarded_socket_is_closed() -> None:
    ours, theirs = socket.socketpair()
    discard(AcceptedSocket(ours.detach(), socket.AF_UNIX))
    assert theirs.recv(1) == b""
    theirs.close()
