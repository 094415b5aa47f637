"""What idle keep-alive connections cost: `python bench/idle_memory.py`, ESG beside uvicorn.

Each connection has had one answer. The figure is the growth of the memory that only the server's
processes have (USS), divided by the number of connections; the kernel's own buffers aren't in it.
"""

import argparse
import contextlib
import resource
import socket
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
from process import ServerFailed, interrupt_on_termination, serving
from scenarios import SCENARIOS
from servers import SERVERS, Command

COMPARED = ("esg", "uvicorn")
KEEP_ALIVE = 600  # seconds: longer than a measurement
WARM_UP = 200  # connections before anything counts: they fill caches and free lists
REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
TIMEOUT = 20.0  # seconds for an answer


def main() -> int:
    options = _parse_options()
    interrupt_on_termination()
    _raise_file_limit(options.connections + WARM_UP + 100)
    found: dict[str, list[float]] = {name: [] for name in COMPARED}
    try:
        for number in range(options.rounds):
            order = COMPARED if number % 2 == 0 else COMPARED[::-1]
            for name in order:
                cost = _cost(SERVERS[name], options.connections)
                found[name].append(cost)
                print(f"round {number + 1}: {name} {cost / 1024:.2f} KiB a connection", flush=True)
    except (ServerFailed, OSError, psutil.Error) as problem:
        sys.exit(f"idle_memory: no result: {problem}")
    except KeyboardInterrupt:
        sys.exit("idle_memory: interrupted")
    for name in COMPARED:
        print(f"{name}: median {statistics.median(found[name]) / 1024:.2f} KiB")
    ratios = [own / other for own, other in zip(found["esg"], found["uvicorn"], strict=True)]
    print(f"esg / uvicorn, {options.connections} connections: {statistics.median(ratios):.2f}")
    return 0


def _cost(command: Command, connections: int) -> float:
    """Bytes of memory that an idle connection takes."""

    def patient(app: str, port: int, access_log: bool) -> list[str]:
        return [*command(app, port, access_log), "--timeout-keep-alive", str(KEEP_ALIVE)]

    with tempfile.TemporaryDirectory(prefix="esg-bench-") as directory:
        log = Path(directory, "server.log")
        with serving(patient, SCENARIOS["hello"], log, cpu=None) as server:
            with _idle(server.port, WARM_UP):
                pass
            before = _memory(server.pid)
            with _idle(server.port, connections):
                return (_memory(server.pid) - before) / connections


@contextlib.contextmanager
def _idle(port: int, count: int) -> Iterator[None]:
    """Connections that have had one answer each, open until the block is left."""
    with contextlib.ExitStack() as clients:
        for _ in range(count):
            address = ("127.0.0.1", port)
            client = clients.enter_context(socket.create_connection(address, TIMEOUT))
            client.sendall(REQUEST)
            if not client.recv(4096).startswith(b"HTTP/1.1 200"):
                raise ServerFailed("an answer was wrong")
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
    add("--rounds", type=int, default=3, help="default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
