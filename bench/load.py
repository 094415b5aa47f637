"""The load generator: one single-threaded `wrk` on a CPU of its own."""

import json
import resource
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from process import pin_to
from scenarios import Scenario

SCRIPT = Path(__file__).with_name("wrk.lua")


class LoadFailed(Exception):
    """wrk did not run, or saw an error, so its numbers can't be used."""


@dataclass(frozen=True)
class Load:
    """The results of one run of wrk."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    cpu: float  # fraction of a core used by wrk; near 1 it is wrk that was measured
    server_cpu: float = 0.0  # seconds of CPU time that the server used meanwhile

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def server_us(self) -> float:
        """Microseconds of the server's CPU time for each request."""
        return self.server_cpu / self.requests * 1e6


def wrk_is_installed() -> bool:
    return shutil.which("wrk") is not None


def put_load(
    scenario: Scenario,
    port: int,
    connections: int,
    seconds: int,
    cpu: int | None,
    timeout: int = 2,
) -> Load:
    """Send requests of `scenario` for `seconds`, on `cpu` (any if None).

    Raise LoadFailed on any error or bad status, or if an answer takes `timeout` seconds.
    """
    argv = ["wrk", "--threads=1", f"--connections={connections}", f"--duration={seconds}s"]
    argv.append(f"--timeout={timeout}s")
    argv += [f"--header=X-Field-{number}: a value" for number in range(scenario.fields)]
    if not scenario.keep_alive:
        argv += ["--header=Connection: close"]
    argv += [f"--script={SCRIPT}", f"http://127.0.0.1:{port}{scenario.path}"]
    argv += ["--", str(scenario.body_size)]
    cpu_before, started = _children_cpu(), time.monotonic()
    # The server isn't waited for while wrk runs, so all CPU time that is added is wrk's.
    pin = None if cpu is None else pin_to(cpu)
    wrk = subprocess.run(argv, capture_output=True, text=True, preexec_fn=pin, check=False)
    used = (_children_cpu() - cpu_before) / (time.monotonic() - started)
    if wrk.returncode != 0:
        raise LoadFailed(f"wrk exited with {wrk.returncode}: {wrk.stderr.strip()}")
    return _parse(wrk.stdout, used)


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _parse(output: str, cpu: float) -> Load:
    seen = json.loads(output.splitlines()[-1])
    errors = [f"{number} {kind}" for kind, number in seen["errors"].items() if number]
    if errors:
        raise LoadFailed(f"errors in {seen['requests']} requests: {', '.join(errors)}")
    if not seen["requests"]:
        raise LoadFailed("not one request was answered")
    return Load(
        requests=seen["requests"],
        seconds=seen["duration"] / 1e6,
        p50_ms=seen["p50"] / 1e3,
        p99_ms=seen["p99"] / 1e3,
        cpu=round(cpu, 3),
    )
