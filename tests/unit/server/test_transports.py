"""Transports of every event loop, used the same way."""

from __future__ import annotations

import asyncio
import socket

import pytest

from esg.server.loops import loop_factory
from esg.server.transports import lines_writer


class Peer(asyncio.Protocol):
    """Notes whether it is asked to pause writing."""

    paused = False

    def pause_writing(self):
        self.paused = True


def run(name, main):
    with asyncio.Runner(loop_factory=loop_factory(name)) as runner:
        return runner.run(main)


@pytest.mark.parametrize("name", ["asyncio", "uvloop"])
def test_pieces_are_sent_in_order_and_a_slow_reader_is_waited_for(name):
    pieces = [bytes([number]) * 200_000 for number in range(10)]

    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        with theirs:
            transport, protocol = await loop.create_connection(Peer, sock=ours)
            lines_writer(transport)(pieces)
            assert protocol.paused
            transport.close()  # data that was written is still sent
            received = b""
            while data := await loop.sock_recv(theirs, 1 << 20):
                received += data
        assert received == b"".join(pieces)

    run(name, main())
