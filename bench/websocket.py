"""Compare ESG's WebSockets with its peers': `python bench/websocket.py`. See README.md."""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
from process import ServerFailed, interrupt_on_termination, pin_to, serving
from run import LOG_DIRECTORY
from scenarios import SCENARIOS, Scenario
from servers import Command, esg, gunicorn, h2corn, peregrine, version
from servers import granian as granian_without
from servers import uvicorn as plain_uvicorn

LOAD = Path(__file__).with_name("websocket_load.py")


def uvicorn(app: str, port: int, access_log: bool) -> list[str]:
    return [*plain_uvicorn(app, port, access_log), "--ws", "websockets-sansio"]


def granian(app: str, port: int, access_log: bool) -> list[str]:
    return [word for word in granian_without(app, port, access_log) if word != "--no-ws"]


def esg_with_wsproto(app: str, port: int, access_log: bool) -> list[str]:
    return [*esg(app, port, access_log), "--ws", "wsproto"]


SERVERS: dict[str, Command] = {
    "esg": esg,
    "esg-wsproto": esg_with_wsproto,
    "uvicorn": uvicorn,
    "granian": granian,
    "gunicorn": gunicorn,
    "peregrine": peregrine,
    "h2corn": h2corn,
}
DEFAULT = [name for name in SERVERS if name != "esg-wsproto"]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of traffic: messages per second to a number of clients."""

    app: str
    load: str
    clients: int
    size: int

    @property
    def scenario(self) -> Scenario:
        """The scenario for `serving`, which asks over HTTP whether the server is up."""
        return dataclasses.replace(SCENARIOS["hello"], app=f"bench.websocket_apps:{self.app}")


KINDS = {
    "echo-128": Kind("echo", "echo", 32, 128),
    "echo-64k": Kind("echo", "echo", 32, 65536),
    "echo-1m": Kind("echo", "echo", 8, 1024 * 1024),
    "broadcast": Kind("broadcast", "broadcast", 1000, 128),
}


def measure(kind: Kind, server: str, seconds: int, cpus: tuple[int, int]) -> dict[str, float]:
    """Start a server, load it, stop it. Raises ServerFailed."""
    with tempfile.TemporaryDirectory(prefix="esg-bench-", dir=LOG_DIRECTORY) as directory:
        log = Path(directory, "server.log")
        with serving(SERVERS[server], kind.scenario, log, cpus[0]) as running:
            before = _cpu_seconds(running.pid)
            arguments = (running.port, kind.load, kind.clients, kind.size, seconds)
            done = subprocess.run(
                [sys.executable, str(LOAD), *map(str, arguments)],
                capture_output=True,
                text=True,
                preexec_fn=pin_to(cpus[1]),
                check=False,
            )
            used = _cpu_seconds(running.pid) - before
    if done.returncode:
        raise ServerFailed(f"the load failed: {done.stderr.strip().splitlines()[-1:]}")
    result = json.loads(done.stdout)
    if result["failure"] or not result["messages"]:
        raise ServerFailed(result["failure"] or "not one message came back")
    return {
        "rate": result["messages"] / result["seconds"],
        "cost": used / result["all"] * 1e6,
        "cpu": result["cpu"],
    }


def _cpu_seconds(pid: int) -> float:
    """CPU time of a server and its workers; other load on the machine hardly affects it."""
    server = psutil.Process(pid)
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def main() -> int:
    options = _parse_options()
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        sys.exit("bench: needs 2 CPUs, one for the server and one for the load")
    interrupt_on_termination()
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    problems = []
    for name in options.kind:
        for number in range(options.rounds):
            first = number % len(options.server)
            for server in options.server[first:] + options.server[:first]:
                try:
                    result = measure(KINDS[name], server, options.seconds, (cpus[0], cpus[1]))
                except ServerFailed as problem:
                    problems.append(f"{name} {server}: {problem}")
                    continue
                found.setdefault((name, server), []).append(result)
                print(f"{name} {server} {result['rate']:,.0f}/s", file=sys.stderr, flush=True)
    _report(options, found)
    if problems:
        print("\nNot counted:", *problems, sep="\n  ")
    return 1 if problems else 0


def _report(
    options: argparse.Namespace, found: dict[tuple[str, str], list[dict[str, float]]]
) -> None:
    print({server: version(server.partition("-")[0]) for server in options.server})
    print("\n| | messages/s | ESG is … times as fast | server's CPU, us per message | load's CPU |")
    print("| --- | --- | --- | --- | --- |")
    for name in options.kind:
        own = found.get((name, "esg"))
        for server in options.server:
            results = found.get((name, server))
            if not results:
                continue
            rate = statistics.median(result["rate"] for result in results)
            ratio = "-"
            if own:
                ratio = f"{statistics.median(result['rate'] for result in own) / rate:.2f}x"
            cost = statistics.median(result["cost"] for result in results)
            cpu = max(result["cpu"] for result in results)
            print(f"| {name} {server} | {rate:,.0f} | {ratio} | {cost:.1f} | {cpu:.0%} |")


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare WebSockets on this machine.")
    add = parser.add_argument
    add("--kind", action="append", choices=KINDS, help="repeatable; default: all")
    add("--server", action="append", choices=SERVERS, help="repeatable; default: all but wsproto")
    add("--rounds", type=int, default=3, help="default: %(default)s")
    add("--seconds", type=int, default=3, help="of one measurement; default: %(default)s")
    options = parser.parse_args()
    options.kind = options.kind or list(KINDS)
    options.server = options.server or DEFAULT
    return options


if __name__ == "__main__":
    sys.exit(main())
