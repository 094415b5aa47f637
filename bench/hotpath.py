"""The work of a worker for one request, without sockets: what `guard.py` counts.

    python bench/hotpath.py [REQUESTS]

Connections get the bytes of requests directly, and write to a `Wire`, which takes the place of a
transport. Under `valgrind --tool=callgrind --instr-atstart=no`, it makes a dump of the counts of
each scenario, with the scenario's name. Prints how many requests each scenario has served.
"""

import asyncio
import ctypes
import gc
import mmap
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import apps, websocket_apps, wsgi_apps
from esg.log.files import LogFile
from esg.scoreboard import Row
from esg.server import protocols
from esg.server.accesslog.access_log import AccessLog
from esg.server.accesslog.lines import uvicorn_line
from esg.server.http1.connection import Connection
from esg.server.state import Service
from esg.server.wsgi.adapter import WSGIAdapter
from esg.settings.schema import Config

CONNECTIONS = 8
REQUESTS = 32  # of each connection, by default
WARM_UP = 16

MASK = b"\x12\x34\x56\x78"
FIELDS = b"Host: 127.0.0.1:8000\r\nUser-Agent: bench\r\nAccept: */*\r\n"
GET = b"GET / HTTP/1.1\r\n" + FIELDS + b"\r\n"
POST = b"POST / HTTP/1.1\r\n" + FIELDS + b"Content-Length: 65536\r\n\r\n" + b"x" * 65536
HANDSHAKE = (
    b"GET / HTTP/1.1\r\n" + FIELDS + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: c2l4dGVlbiBieXRlcyBvaw==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
MESSAGE = b"\x82\xfe\x00\x80" + MASK + bytes(120 ^ MASK[at % 4] for at in range(128))


@dataclass(frozen=True)
class Scenario:
    """What is asked for, and the end of the last write of its answer."""

    app: Any
    request: bytes
    end: bytes
    opening: bytes = b""  # what a connection begins with
    access_log: bool = False


class InTurn:
    """Takes the place of the threads of WSGI applications: runs each job at once."""

    def submit(self, job: Callable[[], None]) -> None:
        job()

    def close(self) -> None:
        """Nothing is left to end."""


def wsgi() -> WSGIAdapter:
    adapter = WSGIAdapter(wsgi_apps.hello, threads=1, multiprocess=True)
    adapter._threads = InTurn()  # type: ignore[assignment]
    return adapter


SCENARIOS = {
    "hello": Scenario(apps.hello, GET, apps.HELLO_BODY),
    "access-log": Scenario(apps.hello, GET, apps.HELLO_BODY, access_log=True),
    "post-64k": Scenario(apps.count, POST, b"65536"),
    "stream-50": Scenario(apps.stream, GET, b"\r\n0\r\n\r\n"),
    "websocket-128": Scenario(websocket_apps.echo, MESSAGE, b"x" * 128, HANDSHAKE),
    "wsgi-hello": Scenario(wsgi(), GET, b"Hello, world!"),
}


class Wire(asyncio.Transport):
    """A transport to a client that reads everything at once. It tells when an answer has ended."""

    def __init__(self, end: bytes) -> None:
        super().__init__()
        self.end = end
        self.protocol: Any = None
        self.answered: Callable[[], None] = _nothing

    def write(self, data: Any) -> None:
        if data.endswith(self.end):
            self.answered()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self.protocol
        return protocol

    def is_closing(self) -> bool:
        return False

    def is_reading(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is buffered."""

    def pause_reading(self) -> None:
        """The scenario decides what is read."""

    def resume_reading(self) -> None:
        """See `pause_reading`."""

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        raise AssertionError("a connection was ended")

    def abort(self) -> None:
        raise AssertionError("a connection was aborted")

    close = abort


def _nothing() -> None:
    """Nobody waits for an answer."""


class Stage:
    """One scenario with its connections."""

    def __init__(self, loop: asyncio.AbstractEventLoop, scenario: Scenario, log: LogFile) -> None:
        access_log = AccessLog(loop, log, uvicorn_line(False)) if scenario.access_log else None
        service = Service(
            scenario.app,
            Config(app="bench:app"),
            loop,
            Row.alone(),
            subject="worker=1 gen=1 pid=1",
            access_log=access_log,
            due_at=0,
            on_due=_nothing,
        )
        protocols.enable(service)
        service.heads.refresh(time.time())
        service.turns.clock = float  # time stands still: under valgrind, work would take too long
        self._loop = loop
        self._request = scenario.request
        self._wires = []
        for number in range(CONNECTIONS):
            wire = Wire(b"\r\n\r\n" if scenario.opening else scenario.end)
            wire.protocol = Connection(service, ("127.0.0.1", number), ("127.0.0.1", 8000))
            service.change_load(1)
            wire.protocol.connection_made(wire)
            wire.answered = self._count
            self._wires.append(wire)
        if scenario.opening:
            loop.run_until_complete(self._send(scenario.opening))
            for wire in self._wires:
                wire.end = scenario.end

    async def serve(self, turns: int) -> None:
        """Send a request on each connection and wait for all answers, `turns` times."""
        for _ in range(turns):
            await self._send(self._request)

    async def _send(self, data: bytes) -> None:
        self._left = CONNECTIONS
        self._all = self._loop.create_future()
        for wire in self._wires:
            wire.protocol.data_received(data)
        await self._all

    def _count(self) -> None:
        self._left -= 1
        if not self._left:
            self._all.set_result(None)


class Valgrind:
    """Tells valgrind what to count. Without valgrind it does nothing.

    A client request of valgrind is a sequence of instructions that has no effect elsewhere; this
    is the one for x86-64, from valgrind.h.
    """

    START, STOP, ZERO, DUMP = (ord("C") << 24 | ord("T") << 16 | number for number in (4, 5, 1, 3))

    def __init__(self) -> None:
        self._code = mmap.mmap(-1, mmap.PAGESIZE, prot=7)  # it may be read, written, executed
        self._code.write(
            bytes.fromhex(
                "4889f8"  # mov rax, rdi: the address of the request and its arguments
                "31d2"  # xor edx, edx: the answer if there is no valgrind
                "48c1c703 48c1c70d 48c1c73d 48c1c733"  # rol rdi, 3; 13; 61; 51
                "4887db"  # xchg rbx, rbx
                "4889d0 c3"  # mov rax, rdx; ret
            )
        )
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        self._call = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p)(address)

    def ask(self, request: int, text: str = "") -> None:
        word = ctypes.create_string_buffer(text.encode())
        request_and_arguments = (ctypes.c_size_t * 6)(request, ctypes.addressof(word))
        self._call(ctypes.addressof(request_and_arguments))


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else REQUESTS
    loop = uvloop.new_event_loop()
    log = LogFile(os.open(os.devnull, os.O_WRONLY))
    stages = [Stage(loop, scenario, log) for scenario in SCENARIOS.values()]
    for stage in stages:
        loop.run_until_complete(stage.serve(WARM_UP))
    gc.collect()
    gc.freeze()
    valgrind = Valgrind()
    for name, stage in zip(SCENARIOS, stages, strict=True):
        serving = loop.create_task(stage.serve(turns))
        gc.collect()  # each scenario begins with the same counters
        valgrind.ask(Valgrind.START)
        valgrind.ask(Valgrind.ZERO)
        loop.run_until_complete(serving)
        valgrind.ask(Valgrind.DUMP, name)
        valgrind.ask(Valgrind.STOP)
    print(turns * CONNECTIONS, flush=True)
    os._exit(0)  # nothing is left that has to be closed, and under valgrind that would take seconds


if __name__ == "__main__":
    main()
