"""Compare ESG with its peers: `python bench/run.py`. README.md says what the numbers mean."""

import argparse
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from load import Load, LoadFailed, put_load, wrk_is_installed
from process import Server, ServerFailed, interrupt_on_termination, serving
from report import Measurement, table, write_json
from scenarios import SCENARIOS, Scenario
from servers import SERVERS, command_for, version

WARM_UP = 1  # seconds under load before anything counts

# By convention on a disk, while /tmp may be in memory: writing access logs has its real cost.
LOG_DIRECTORY = "/var/tmp"


@dataclass(frozen=True)
class Bench:
    """How to measure: the same for every server."""

    connections: int
    seconds: int
    server_cpu: int
    load_cpu: int
    log: Path

    def measure(self, scenario: Scenario, server: str, number: int) -> Measurement:
        """Start `server`, warm it up, load it, stop it; whatever goes wrong is in the result."""
        try:
            load = self._run(scenario, server)
        except (ServerFailed, LoadFailed) as problem:
            return Measurement(scenario.name, server, number, None, str(problem))
        return Measurement(scenario.name, server, number, load)

    def _run(self, scenario: Scenario, name: str) -> Load:
        command = command_for(name, scenario)
        assert command is not None
        with serving(command, scenario, self.log, self.server_cpu) as server:
            warm_up = self._load(scenario, server, WARM_UP)
            before = server.cpu()
            counted = self._load(scenario, server, self.seconds)
            counted = replace(counted, server_cpu=server.cpu() - before)
        if scenario.access_log:
            _check_log(server, warm_up.requests + counted.requests)
        return counted

    def _load(self, scenario: Scenario, server: Server, seconds: int) -> Load:
        return put_load(scenario, server.port, self.connections, seconds, self.load_cpu)


def _check_log(server: Server, requests: int) -> None:
    """Check the number of log lines: a server that omits some has done less work."""
    lines = server.log_lines()
    if lines < requests:
        raise ServerFailed(f"{lines} lines logged for {requests} requests")


def schedule(
    scenarios: list[str], servers: list[str], rounds: int
) -> Iterator[tuple[Scenario, str, int]]:
    """Every server in every round, each round starting with a different one.

    The servers of a round run within seconds of each other, so that a slow minute of the machine
    is shared; rotating cancels out the advantage of coming first or last.
    """
    for scenario in (SCENARIOS[name] for name in scenarios):
        able = [server for server in servers if command_for(server, scenario)]
        for number in range(1, rounds + 1):
            first = (number - 1) % max(1, len(able))
            for server in able[first:] + able[:first]:
                yield scenario, server, number


def main() -> int:
    options = _parse_options()
    server_cpu, load_cpu = _two_cpus()
    if not wrk_is_installed():
        sys.exit("bench: wrk is not installed: apt-get install wrk")
    interrupt_on_termination()

    settings = _settings(options, server_cpu, load_cpu)
    print("\n".join(f"{name}: {value}" for name, value in settings.items()), flush=True)
    measurements: list[Measurement] = []
    with tempfile.TemporaryDirectory(prefix="esg-bench-", dir=LOG_DIRECTORY) as directory:
        log = Path(directory, "server.log")
        bench = Bench(options.connections, options.seconds, server_cpu, load_cpu, log)
        interrupted = _measure_all(bench, options, measurements)
    _report(options, settings, measurements)
    if interrupted:
        return 128 + signal.SIGINT
    return 1 if any(m.problem for m in measurements) else 0


def _measure_all(
    bench: Bench, options: argparse.Namespace, measurements: list[Measurement]
) -> bool:
    """Append to `measurements` as they are made; return whether it was cut short by a signal."""
    try:
        for scenario, server, number in schedule(options.scenario, options.server, options.rounds):
            measurements.append(bench.measure(scenario, server, number))
            print(measurements[-1], file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return True
    return False


def _report(
    options: argparse.Namespace, settings: dict[str, object], measurements: list[Measurement]
) -> None:
    print(f"\n{table(measurements)}")
    invalid = [m for m in measurements if m.problem]
    if invalid:
        print("\nNot counted:", *invalid, sep="\n  ")
    if options.json:
        write_json(options.json, settings, measurements)


def _settings(options: argparse.Namespace, server_cpu: int, load_cpu: int) -> dict[str, object]:
    return {
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {server: version(server) for server in options.server},
        "server_cpu": server_cpu,
        "load_cpu": load_cpu,
        "connections": options.connections,
        "seconds": options.seconds,
        "rounds": options.rounds,
    }


def _two_cpus() -> tuple[int, int]:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        sys.exit(f"bench: needs 2 CPUs, one for the server and one for wrk; may use only {cpus}")
    return cpus[0], cpus[1]


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare ESG with its peers on this machine.")
    add = parser.add_argument
    add("--scenario", action="append", choices=SCENARIOS, help="repeatable; default: all")
    add("--server", action="append", choices=SERVERS, help="repeatable; default: all")
    add("--rounds", type=_positive, default=5, help="default: %(default)s")
    add("--seconds", type=_positive, default=4, help="of one measurement; default: %(default)s")
    add("--connections", type=_positive, default=64, help="open at once; default: %(default)s")
    add("--json", type=Path, metavar="FILE", help="write every measurement to FILE")
    options = parser.parse_args()
    options.scenario = list(dict.fromkeys(options.scenario or SCENARIOS))
    options.server = list(dict.fromkeys(options.server or SERVERS))
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
