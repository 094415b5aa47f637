"""How long requests take while the server isn't overloaded: `python bench/latency.py`.

One client sends one request at a time; then 64 together send half as many requests as the server
can answer. How many it can answer is measured first. `h2load` keeps the rate; it measures each
request from the moment it is sent. All servers of a round run at the same time, and are measured
one after the other, so that a slow minute of the machine is shared.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from load import LoadFailed, put_load
from process import Server, ServerFailed, interrupt_on_termination, pin_to, serving
from scenarios import SCENARIOS, Scenario
from servers import SERVERS, Command, esg, version

T = TypeVar("T")

CLIENTS = 64
WARM_UP = 1  # seconds
KEPT = 0.9  # of the rate that was asked for; below it, h2load or the server was overloaded

SHOWN = ("esg", "uvicorn", "granian", "peregrine", "h2corn")


@dataclass(frozen=True)
class Latency:
    """Times of requests in microseconds, and how many a second there were."""

    p50: float
    p99: float
    rate: float


@dataclass(frozen=True)
class Result:
    """One server in one round."""

    most: float  # requests per second
    one: Latency
    paced: Latency


FIGURES: dict[str, Callable[[Result], float]] = {
    "requests/s at most": lambda result: result.most,
    "one client, requests/s": lambda result: result.one.rate,
    "p50 us": lambda result: result.one.p50,
    "p99 us": lambda result: result.one.p99,
    f"{CLIENTS} clients, requests/s": lambda result: result.paced.rate,
    " p50 us": lambda result: result.paced.p50,
    " p99 us": lambda result: result.paced.p99,
}


def main() -> int:
    options = _parse_options()
    interrupt_on_termination()
    if shutil.which("h2load") is None:
        sys.exit("latency: h2load is not installed: apt-get install nghttp2-client")
    commands = {name: SERVERS[name] for name in dict.fromkeys(options.server or SHOWN)}
    if options.other:
        commands["other"] = _from(options.other)
    rounds: list[dict[str, Result]] = []
    problems = []
    for number in range(options.rounds):
        names = list(commands)
        first = number % len(names)
        order = names[first:] + names[:first]
        results, failed = _round({name: commands[name] for name in order}, options)
        rounds.append(results)
        problems += [f"round {number + 1}: {name}: {failed[name]}" for name in failed]
        print(f"round {number + 1}", file=sys.stderr, flush=True)
    _report(list(commands), rounds)
    if problems:
        print("\nNot counted:", *problems, sep="\n  ")
    return 1 if problems else 0


def _report(names: list[str], rounds: list[dict[str, Result]]) -> None:
    print({name: version(name) for name in names if name in SERVERS})
    print(f"\nMedians of {len(rounds)} rounds; in brackets the median of the ratios to")
    print(f"{names[0]} in the same round.\n")
    print(f"| | {' | '.join(FIGURES)} | rounds |")
    print(f"|{' --- |' * (len(FIGURES) + 2)}")
    for name in names:
        mine = [results for results in rounds if name in results]
        if mine:
            cells = [_cell(figure, name, names[0], mine) for figure in FIGURES.values()]
            print(f"| {name} | {' | '.join(cells)} | {len(mine)} |")


def _cell(
    figure: Callable[[Result], float], name: str, first: str, rounds: list[dict[str, Result]]
) -> str:
    median = statistics.median(figure(results[name]) for results in rounds)
    ratios = [
        figure(results[name]) / figure(results[first]) for results in rounds if first in results
    ]
    return f"{median:,.0f} ({statistics.median(ratios):.2f})" if ratios else f"{median:,.0f}"


def _round(
    commands: dict[str, Command], options: argparse.Namespace
) -> tuple[dict[str, Result], dict[str, str]]:
    """Measure each server; returns the results, and what was wrong with the other servers."""
    scenario = SCENARIOS[options.scenario]
    server_cpu, load_cpu = sorted(os.sched_getaffinity(0))[:2]
    problems: dict[str, str] = {}
    servers: dict[str, Server] = {}

    def for_each(step: Callable[[Server, str], T]) -> dict[str, T]:
        results = {}
        for name, server in servers.items():
            if name not in problems:
                try:
                    results[name] = step(server, name)
                except LoadFailed as problem:
                    problems[name] = str(problem)
        return results

    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="esg-bench-"))
        for name, command in commands.items():
            log = Path(directory, f"{name}.log")
            stack.enter_context(_noting(problems, name))
            try:
                servers[name] = stack.enter_context(serving(command, scenario, log, server_cpu))
            except ServerFailed as problem:
                problems[name] = str(problem)

        def most_of(server: Server, seconds: int) -> float:
            return put_load(scenario, server.port, CLIENTS, seconds, load_cpu).requests_per_second

        def times(server: Server, clients: int, rate: float | None = None) -> Latency:
            return _times(scenario, server, load_cpu, clients, options.seconds, rate)

        for_each(lambda server, _: most_of(server, WARM_UP))
        most = for_each(lambda server, _: most_of(server, 2))
        one = for_each(lambda server, _: times(server, 1))
        paced = for_each(
            lambda server, name: times(server, CLIENTS, options.rate or most[name] / 2)
        )
    results = {name: Result(most[name], one[name], paced[name]) for name in paced}
    return {name: results[name] for name in results if name not in problems}, problems


@contextlib.contextmanager
def _noting(problems: dict[str, str], name: str) -> Iterator[None]:
    """Note that a server didn't end as it should."""
    try:
        yield
    except ServerFailed as problem:
        problems[name] = str(problem)


def _times(
    scenario: Scenario,
    server: Server,
    cpu: int,
    clients: int,
    seconds: int,
    rate: float | None = None,
) -> Latency:
    """The times of all requests of one run of h2load, without those of its first second.

    Without a `rate`, each client sends a request as soon as it has the last one's answer.
    """
    with tempfile.TemporaryDirectory(prefix="esg-bench-") as directory:
        log = Path(directory, "requests")
        argv = ["h2load", "--h1", "--warm-up-time=1", f"--log-file={log}"]
        argv += [f"--clients={clients}", f"--duration={seconds}"]
        if rate is not None:
            argv.append(f"--rps={rate / clients:.3f}")
        if scenario.body_size:
            body = Path(directory, "body")
            body.write_bytes(b"x" * scenario.body_size)
            argv.append(f"--data={body}")
        run = subprocess.run(
            [*argv, f"http://127.0.0.1:{server.port}{scenario.path}"],
            capture_output=True,
            text=True,
            preexec_fn=pin_to(cpu),
            check=False,
        )
        if run.returncode != 0:
            raise LoadFailed(f"h2load exited with {run.returncode}: {run.stderr.strip()}")
        rows = [line.split("\t") for line in log.read_text().splitlines()]
    cut = sum(row[1] == "-1" for row in rows)  # also those in flight at the end of the time
    rows = [row for row in rows if row[1] != "-1"]
    wrong = sum(row[1] != "200" for row in rows)
    if cut > clients or wrong or not rows:
        raise LoadFailed(f"{cut + wrong} of {len(rows) + cut} requests failed")
    kept = len(rows) / seconds
    if rate is not None and kept < KEPT * rate:
        raise LoadFailed(f"{kept:,.0f} requests per second instead of {rate:,.0f}")
    times = sorted(int(row[2]) for row in rows)
    return Latency(times[len(times) // 2], times[len(times) * 99 // 100], kept)


def _from(checkout: str) -> Command:
    """ESG from another checkout."""

    def command(app: str, port: int, access_log: bool) -> list[str]:
        return ["env", "-C", checkout, *esg(app, port, access_log)]

    return command


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure how long requests take at half load.")
    add = parser.add_argument
    add("--server", action="append", choices=SERVERS, help=f"default: {', '.join(SHOWN)}")
    add("--other", metavar="DIR", help="also measure the ESG of the checkout in DIR")
    add("--scenario", choices=SCENARIOS, default="hello", help="default: %(default)s")
    add("--rate", type=float, help="requests per second of 64 clients; default: half the maximum")
    add("--rounds", type=int, default=3, help="default: %(default)s")
    add("--seconds", type=int, default=4, help="of one measurement; default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit("latency: interrupted")
