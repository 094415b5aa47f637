"""How the costs grow with the work: `python bench/growth.py [PART ...] --json bench/growth.json`.

A part measures each server at several points: numbers of workers, connections or header fields, or
sizes of a body. README.md describes the parts. The JSON file keeps what was measured before in
parts that aren't measured now; `chart.py` makes pictures and tables of it.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from idle_memory import _ask as ask
from load import LoadFailed, put_load
from process import Server, ServerFailed, interrupt_on_termination, serving
from scenarios import SCENARIOS
from servers import SERVERS, version, with_options

Values = dict[str, float]
Points = Iterator[tuple[int | str, Values]]
"""A part measures one server, and yields each point with its values."""

HELLO = SCENARIOS["hello"]
WARM_UP = 1  # seconds
FILES = 19_900
"""Open files: more than the connections of any point."""

CHANGED_WITHIN = 90.0  # seconds for all workers to start, or to be replaced
PARKED = 3.0  # seconds: longer than ESG keeps what the next request of a connection needs

MANY = {
    "esg": ("--timeout-keep-alive=600",),
    "uvicorn": ("--timeout-keep-alive=600",),
    "granian": (
        "--http1-header-read-timeout=60000",  # the longest it allows
        "--backlog=16384",
        "--backpressure=16384",  # the most connections of a worker
    ),
}
"""Options with which a server takes all connections, and keeps them while they are idle."""


def workers(name: str, directory: Path) -> Points:
    """Seconds to start 1 to 64 workers and to replace them after SIGHUP, and all their memory."""
    for count in (1, 4, 16, 64):
        starts = directory / "starts"
        starts.write_text("")
        os.environ["BENCH_STARTS"] = str(starts)
        command = with_options(SERVERS[name], f"--workers={count}")
        scenario = dataclasses.replace(HELLO, app="bench.growth_apps:noted")
        begun = time.monotonic()
        with serving(command, scenario, directory / "log", cpu=None) as server:
            first = _started(starts, count)
            values = {"start s": time.monotonic() - begun, "memory MiB": _pss(server)}
            if count > 1 or name != "uvicorn":  # without workers, it ends at SIGHUP
                values |= _reloaded(server, starts, first)
            yield count, values


def _reloaded(server: Server, starts: Path, first: frozenset[int]) -> Values:
    """Replace all workers; no value if the new ones don't start, or the old don't end, in time."""
    begun = time.monotonic()
    os.kill(server.pid, signal.SIGHUP)
    try:
        _started(starts, len(first), before=first)
        _ended(first)
    except ServerFailed as problem:
        print(f"no time of a reload: {problem}", flush=True)
        return {}
    return {"reload s": time.monotonic() - begun}


def _started(starts: Path, count: int, before: frozenset[int] = frozenset()) -> frozenset[int]:
    """Wait until `count` workers have started, besides those `before`; returns their pids."""
    deadline = time.monotonic() + CHANGED_WITHIN
    while time.monotonic() < deadline:
        pids = frozenset(map(int, starts.read_text().split())) - before
        if len(pids) >= count:
            return pids
        time.sleep(0.02)
    raise ServerFailed(f"{len(pids)} of {count} workers started within {CHANGED_WITHIN:g} s")


def _ended(pids: frozenset[int]) -> None:
    deadline = time.monotonic() + CHANGED_WITHIN
    while any(psutil.pid_exists(pid) for pid in pids):
        if time.monotonic() > deadline:
            raise ServerFailed(f"old workers still ran {CHANGED_WITHIN:g} s after SIGHUP")
        time.sleep(0.02)


def _pss(server: Server) -> float:
    """MiB of memory; what processes share counts once."""
    return float(sum(process.memory_full_info().pss for process in server.family())) / 2**20


def held(name: str, directory: Path) -> Points:
    """Idle connections: their memory, and what a request over 64 other connections costs."""
    command = with_options(SERVERS[name], *MANY[name])
    with (
        serving(command, HELLO, directory / "log", _cpus()[0]) as server,
        contextlib.ExitStack() as clients,
    ):
        put_load(HELLO, server.port, 64, WARM_UP, _cpus()[1])
        before = _uss(server)
        opened: list[socket.socket] = []
        for count in (10, 100, 1000, 5000, 15_000):
            while len(opened) < count:
                opened.append(clients.enter_context(_connection(server.port)))
            time.sleep(PARKED)
            values = {"memory MiB": (_uss(server) - before) / 2**20}
            yield count, values | _loaded(server, HELLO, 64, 2)
            for client in opened:
                with contextlib.suppress(BlockingIOError):
                    client.setblocking(False)
                    if client.recv(1) == b"":
                        raise ServerFailed("an idle connection was closed")


def _connection(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), 20)
    ask(client)
    return client


def _uss(server: Server) -> int:
    total: int = sum(process.memory_full_info().uss for process in server.family())
    return total


def used(name: str, directory: Path) -> Points:
    """Connections that all send requests; opening them is part of the cost."""
    command = with_options(SERVERS[name], *MANY[name])
    for count in (10, 100, 1000, 5000, 15_000):
        with serving(command, HELLO, directory / "log", _cpus()[0]) as server:
            put_load(HELLO, server.port, 10, WARM_UP, _cpus()[1])
            seconds = 2 if count <= 1000 else count // 750
            yield count, _loaded(server, HELLO, count, seconds)


def fields(name: str, directory: Path) -> Points:
    """Header fields of a request, Host among them."""
    for count in (1, 10, 30, 100):
        scenario = dataclasses.replace(HELLO, fields=count - 1)
        with serving(SERVERS[name], HELLO, directory / "log", _cpus()[0]) as server:
            put_load(scenario, server.port, 64, WARM_UP, _cpus()[1])
            yield count, _loaded(server, scenario, 64, 2)


def bodies(name: str, directory: Path) -> Points:
    """Sizes of a request's body, in bytes, which the application reads; 8 connections."""
    for size in (1 << 10, 1 << 16, 1 << 20, 1 << 24, 1 << 26):
        answer = b"%d" % size
        scenario = dataclasses.replace(SCENARIOS["post-64k"], body_size=size, answer=answer)
        with serving(SERVERS[name], scenario, directory / "log", _cpus()[0]) as server:
            seconds = 2 if size < 1 << 24 else 4
            put_load(scenario, server.port, 8, seconds, _cpus()[1], timeout=20)
            values = _loaded(server, scenario, 8, seconds)
            values["CPU us per MiB"] = values["CPU us"] / size * 2**20
            yield size, values | {"peak MiB": max(map(_peak, server.family())) / 1024}


def _peak(process: psutil.Process) -> int:
    """The most memory that a process had, in KiB: VmHWM in proc(5)."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def four(name: str, directory: Path) -> Points:
    """4 workers, which share all CPUs with the load."""
    command = with_options(SERVERS[name], "--workers=4")
    for scenario in (HELLO, SCENARIOS["fastapi-json"], SCENARIOS["new-connection"]):
        with serving(command, scenario, directory / "log", cpu=None) as server:
            put_load(scenario, server.port, 64, WARM_UP, None)
            yield scenario.name, _loaded(server, scenario, 64, 2, cpu=None)


PARTS: dict[str, tuple[Callable[[str, Path], Points], tuple[str, ...]]] = {
    "workers": (workers, ("esg", "uvicorn", "granian", "gunicorn")),
    "held": (held, ("esg", "uvicorn", "granian")),
    "used": (used, ("esg", "uvicorn", "granian")),
    "fields": (fields, ("esg", "uvicorn", "granian")),
    "bodies": (bodies, ("esg", "uvicorn", "granian")),
    "four": (four, ("esg", "uvicorn", "granian", "gunicorn", "peregrine", "h2corn")),
}


def _loaded(
    server: Server, scenario: Any, connections: int, seconds: int, cpu: int | None = -1
) -> Values:
    cpu = _cpus()[1] if cpu == -1 else cpu
    before = server.cpu()
    load = put_load(scenario, server.port, connections, seconds, cpu, timeout=20)
    spent = server.cpu() - before
    return {
        "requests/s": load.requests_per_second,
        "CPU us": spent / load.requests * 1e6,
    }


def _cpus() -> tuple[int, int]:
    first, second = sorted(os.sched_getaffinity(0))[:2]
    return first, second


def main() -> int:
    options = _parse_options()
    interrupt_on_termination()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, hard), hard))
    results: list[dict[str, Any]] = []
    problems = 0
    for part in options.part:
        measure, names = PARTS[part][0], _names(part, options)
        for number in range(options.rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                with tempfile.TemporaryDirectory(prefix="esg-bench-") as directory:
                    try:
                        for x, values in measure(name, Path(directory)):
                            found = {"part": part, "server": name, "x": x, "values": values}
                            results.append(found)
                            print(found, file=sys.stderr, flush=True)
                    except (ServerFailed, LoadFailed, OSError, psutil.Error) as problem:
                        problems += 1
                        print(f"{part} {name}: INVALID: {problem}", flush=True)
    if options.json:
        _keep(options.json, results, options)
    return 1 if problems else 0


def _names(part: str, options: argparse.Namespace) -> tuple[str, ...]:
    return tuple(name for name in PARTS[part][1] if name in (options.server or PARTS[part][1]))


def _keep(path: Path, results: list[dict[str, Any]], options: argparse.Namespace) -> None:
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for part in options.part:
        measured = _names(part, options)
        earlier = kept.get(part, {"results": []})["results"]
        kept[part] = {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs",
            "python": platform.python_version(),
            "versions": {name: version(name) for name in PARTS[part][1]},
            "rounds": options.rounds,
            "results": [
                *(found for found in earlier if found["server"] not in measured),
                *(_rounded(found) for found in results if found["part"] == part),
            ],
        }
    path.write_text(json.dumps(kept, indent=1) + "\n")


def _rounded(found: dict[str, Any]) -> dict[str, Any]:
    values = {key: round(value, 3) for key, value in found["values"].items()}
    return {"server": found["server"], "x": found["x"], "values": values}


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure how costs grow with the work.")
    add = parser.add_argument
    add("part", nargs="*", choices=[*PARTS, []], help=f"of {', '.join(PARTS)}; default: all")
    add("--server", action="append", help="repeatable; the results of others are kept")
    add("--rounds", type=int, default=3, help="default: %(default)s")
    add("--json", type=Path, metavar="FILE", help="write the results to FILE")
    options = parser.parse_args()
    options.part = options.part or list(PARTS)
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("growth: interrupted")
