"""The memory of idle connections, in ESG and in uvicorn: `python bench/idle_memory.py`.

Each connection has had one answer; with `--kind websocket` or `deflate` it is a WebSocket that is
open, with `--used` one that has echoed a message. The figure is the growth of the memory that only
the server's processes have (USS), divided by the number of connections; the kernel's own buffers
aren't in it. With `--groups`, the connections come in groups with a pause of some seconds between
them, and the first group isn't counted: it takes memory that the server keeps for the next ones.
"""

import argparse
import contextlib
import resource
import socket
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from process import ServerFailed, interrupt_on_termination, serving
from scenarios import SCENARIOS
from servers import SERVERS, Command
from websocket import KINDS
from websocket import SERVERS as WEBSOCKET_SERVERS
from websocket_load import HANDSHAKE, MASK, head

COMPARED = {"http": ("esg", "uvicorn"), "websocket": ("esg", "esg-wsproto", "uvicorn")}
COMPARED["deflate"] = COMPARED["websocket"]
KEEP_ALIVE = 600  # seconds: longer than a measurement
WARM_UP = 200  # connections before anything counts: they fill caches and free lists
REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
TIMEOUT = 20.0  # seconds for an answer
PAUSE = 4.5  # seconds between two groups: longer than ESG keeps what the next request needs


def main() -> int:
    options = _parse_options()
    interrupt_on_termination()
    _raise_file_limit(options.connections + WARM_UP + 100)
    compared = COMPARED[options.kind]
    servers = SERVERS if options.kind == "http" else WEBSOCKET_SERVERS
    found: dict[str, list[float]] = {name: [] for name in compared}
    try:
        for number in range(options.rounds):
            order = compared if number % 2 == 0 else compared[::-1]
            for name in order:
                cost = _cost(servers[name], options)
                found[name].append(cost)
                print(f"round {number + 1}: {name} {cost / 1024:.2f} KiB a connection", flush=True)
    except (ServerFailed, OSError, psutil.Error) as problem:
        sys.exit(f"idle_memory: no result: {problem}")
    except KeyboardInterrupt:
        sys.exit("idle_memory: interrupted")
    for name in compared:
        print(f"{name}: median {statistics.median(found[name]) / 1024:.2f} KiB")
    ratios = [own / other for own, other in zip(found["esg"], found["uvicorn"], strict=True)]
    print(f"esg / uvicorn, {options.connections} connections: {statistics.median(ratios):.2f}")
    return 0


def _cost(command: Command, options: argparse.Namespace) -> float:
    """Bytes of memory that an idle connection takes."""

    def patient(app: str, port: int, access_log: bool) -> list[str]:
        return [*command(app, port, access_log), "--timeout-keep-alive", str(KEEP_ALIVE)]

    with tempfile.TemporaryDirectory(prefix="esg-bench-") as directory:
        log = Path(directory, "server.log")
        plain = options.kind == "http"
        scenario = SCENARIOS["hello"] if plain else KINDS["echo-128"].scenario
        begin = _ask if plain else _open(options.kind == "deflate", options.used)
        with serving(patient, scenario, log, cpu=None) as server:
            with _idle(server.port, WARM_UP, begin):
                pass
            size = options.connections // options.groups
            with contextlib.ExitStack() as groups:
                memory = [_memory(server.pid)]
                for _ in range(options.groups):
                    groups.enter_context(_idle(server.port, size, begin))
                    if options.groups > 1:
                        time.sleep(PAUSE)
                    memory.append(_memory(server.pid))
            counted = memory[1:] if options.groups > 1 else memory
            return (counted[-1] - counted[0]) / size / (len(counted) - 1)


def _ask(client: socket.socket) -> None:
    client.sendall(REQUEST)
    if not client.recv(4096).startswith(b"HTTP/1.1 200"):
        raise ServerFailed("an answer was wrong")


def _open(deflate: bool, used: bool) -> Callable[[socket.socket], None]:
    """A function that opens a WebSocket, and sends a message over it if `used`."""
    handshake, message = HANDSHAKE, b"x" * 100
    frame = head(len(message), 0x80) + MASK + _masked(message)
    if deflate:
        offer = b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
        handshake = HANDSHAKE.removesuffix(b"\r\n") + offer
        packer = zlib.compressobj(wbits=-12)
        packed = (packer.compress(message) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]
        frame = bytes((0xC2,)) + head(len(packed), 0x80)[1:] + MASK + _masked(packed)

    def open_(client: socket.socket) -> None:
        client.sendall(handshake)
        answer = client.recv(4096)
        if not answer.startswith(b"HTTP/1.1 101") or deflate is not (b"deflate" in answer):
            raise ServerFailed(f"a handshake was answered by {answer!r}")
        if used:
            client.sendall(frame)
            if client.recv(4096)[:1] != frame[:1]:
                raise ServerFailed("an echo was wrong")

    return open_


def _masked(content: bytes) -> bytes:
    return bytes(byte ^ MASK[at % 4] for at, byte in enumerate(content))


@contextlib.contextmanager
def _idle(port: int, count: int, begin: Callable[[socket.socket], None]) -> Iterator[None]:
    """Open connections; they are closed when the block ends."""
    with contextlib.ExitStack() as clients:
        for _ in range(count):
            address = ("127.0.0.1", port)
            client = clients.enter_context(socket.create_connection(address, TIMEOUT))
            begin(client)
        yield


def _memory(pid: int) -> int:
    arbiter = psutil.Process(pid)
    family = [arbiter, *arbiter.children(recursive=True)]
    total: int = sum(process.memory_full_info().uss for process in family)
    return total


def _raise_file_limit(wanted: int) -> None:
    """For this program and the servers it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        sys.exit(f"idle_memory: needs {wanted} open files, the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the memory of idle connections.")
    add = parser.add_argument
    add("--connections", type=int, default=5000, help="default: %(default)s")
    add("--groups", type=int, default=1, help="come one after the other; default: %(default)s")
    add("--kind", choices=COMPARED, default="http", help="default: %(default)s")
    add("--used", action="store_true", help="WebSockets have echoed a message")
    add("--rounds", type=int, default=3, help="default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
