"""How long requests take while the server isn't overloaded: `python bench/latency.py`.

One client that sends one request at a time, and 64 that together send half as many requests as the
server can answer. Each server is first asked how many that is. `h2load` keeps the rate; it measures
each request from the moment it is sent.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from load import LoadFailed, put_load
from process import ServerFailed, interrupt_on_termination, pin_to, serving
from scenarios import SCENARIOS
from servers import SERVERS, Command, esg

CLIENTS = 64
WARM_UP = 1  # seconds


@dataclass(frozen=True)
class Latency:
    """Times of requests in microseconds."""

    p50: float
    p99: float


@dataclass(frozen=True)
class Result:
    """One server in one round."""

    most: float  # requests per second
    one: Latency
    paced: Latency


def main() -> int:
    options = _parse_options()
    interrupt_on_termination()
    names = list(dict.fromkeys(options.server or ["esg", "uvicorn", "granian"]))
    commands: dict[str, Command] = {name: SERVERS[name] for name in names}
    if options.other:
        commands["other"] = _from(options.other)
    found: dict[str, list[Result]] = {name: [] for name in commands}
    problems = 0
    for number in range(options.rounds):
        order = list(commands) if number % 2 == 0 else list(commands)[::-1]
        for name in order:
            try:
                found[name].append(_measure(commands[name], options.scenario, options.seconds))
            except (ServerFailed, LoadFailed) as problem:
                problems += 1
                print(f"round {number + 1}: {name}: INVALID: {problem}", file=sys.stderr)
    print("| | half the maximum, requests/s | p50 us | p99 us | one client: p50 us | p99 us |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, results in found.items():
        if results:
            print(_row(name, results))
    return 1 if problems else 0


def _row(name: str, results: list[Result]) -> str:
    def middle(values: list[float]) -> str:
        return f"{statistics.median(values):,.0f}"

    columns = [
        middle([result.most / 2 for result in results]),
        middle([result.paced.p50 for result in results]),
        middle([result.paced.p99 for result in results]),
        middle([result.one.p50 for result in results]),
        middle([result.one.p99 for result in results]),
    ]
    return f"| {name} | {' | '.join(columns)} |"


def _measure(command: Command, scenario_name: str, seconds: int) -> Result:
    scenario = SCENARIOS[scenario_name]
    server_cpu, load_cpu = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory(prefix="esg-bench-") as directory:
        log = Path(directory, "server.log")
        with serving(command, scenario, log, server_cpu) as server:
            put_load(scenario, server.port, CLIENTS, WARM_UP, load_cpu)
            most = put_load(scenario, server.port, CLIENTS, 2, load_cpu).requests_per_second
            address = f"http://127.0.0.1:{server.port}{scenario.path}"
            one = _times(address, load_cpu, ["-c1", f"-D{seconds}"])
            pace = f"--rps={most / 2 / CLIENTS:.3f}"
            paced = _times(address, load_cpu, [f"-c{CLIENTS}", f"-D{seconds}", pace])
    return Result(most, one, paced)


def _times(address: str, cpu: int, options: list[str]) -> Latency:
    """The times of all requests of one run of h2load, without those of its first second."""
    with tempfile.TemporaryDirectory(prefix="esg-bench-") as directory:
        log = Path(directory, "requests")
        argv = ["h2load", "--h1", "--warm-up-time=1", f"--log-file={log}", *options, address]
        run = subprocess.run(
            argv, capture_output=True, text=True, preexec_fn=pin_to(cpu), check=False
        )
        if run.returncode != 0:
            raise LoadFailed(f"h2load exited with {run.returncode}: {run.stderr.strip()}")
        rows = [line.split("\t") for line in log.read_text().splitlines()]
    wrong = [status for _, status, _ in rows if status != "200"]
    if wrong or not rows:
        raise LoadFailed(f"{len(wrong)} of {len(rows)} requests failed")
    times = sorted(int(row[2]) for row in rows)
    return Latency(times[len(times) // 2], times[len(times) * 99 // 100])


def _from(checkout: str) -> Command:
    """ESG from another checkout."""

    def command(app: str, port: int, access_log: bool) -> list[str]:
        return ["env", "-C", checkout, *esg(app, port, access_log)]

    return command


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure how long requests take at half load.")
    add = parser.add_argument
    add("--server", action="append", choices=SERVERS, help="default: esg, uvicorn, granian")
    add("--other", metavar="DIR", help="also measure the ESG of the checkout in DIR")
    add("--scenario", choices=SCENARIOS, default="hello", help="default: %(default)s")
    add("--rounds", type=int, default=3, help="default: %(default)s")
    add("--seconds", type=int, default=4, help="of one measurement; default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit("latency: interrupted")
