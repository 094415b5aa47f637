"""The CPU time that ESG uses when idle: `python bench/idle_cpu.py`.

CPU time, user and system, of the arbiter and its workers together, as a percentage of one core.
The kernel gives it in ticks (10 ms on most machines), two counters for each process,
so measure for a long time.
"""

import argparse
import contextlib
import functools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from process import ServerFailed, interrupt_on_termination, serving
from scenarios import SCENARIOS
from servers import esg

TARGET = 0.5  # percent of a core
STARTED_WITHIN = 20.0  # seconds
QUIET = 0.02  # seconds of CPU time in QUIET_FOR: starting up takes far more
QUIET_FOR = 0.5  # seconds
POLL = 0.02  # seconds


class FamilyChanged(Exception):
    """The arbiter's children have changed, so the CPU time of the old ones is lost."""


def main() -> int:
    options = _parse_options()
    interrupt_on_termination()
    command = functools.partial(esg, workers=options.workers)
    with tempfile.TemporaryDirectory(prefix="esg-bench-") as directory:
        log = Path(directory, "server.log")
        try:
            with serving(command, SCENARIOS["hello"], log, cpu=None) as server:
                percent = _idle_percent(
                    psutil.Process(server.pid), options.workers, options.seconds
                )
        except (ServerFailed, FamilyChanged, psutil.NoSuchProcess) as problem:
            sys.exit(f"idle_cpu: no result: {problem}")
        except KeyboardInterrupt:
            sys.exit("idle_cpu: interrupted")
    verdict = "within" if percent < TARGET else "over"
    print(
        f"{percent:.3f} % of a core for the arbiter and {options.workers} workers,"
        f" idle for {options.seconds:g} s: {verdict} the target of {TARGET} %"
    )
    return 0 if percent < TARGET else 1


def _idle_percent(arbiter: psutil.Process, workers: int, seconds: float) -> float:
    family = functools.partial(_family, arbiter)
    _wait_until(lambda: len(family()) > workers, f"{workers} workers")
    _wait_until(lambda: _is_quiet(family), "the end of starting up")
    return 100 * _used_in(seconds, family) / seconds


def _is_quiet(family: Callable[[], list[psutil.Process]]) -> bool:
    with contextlib.suppress(FamilyChanged):
        return _used_in(QUIET_FOR, family) < QUIET
    return False


def _family(arbiter: psutil.Process) -> list[psutil.Process]:
    return [arbiter, *arbiter.children(recursive=True)]


def _used_in(seconds: float, family: Callable[[], list[psutil.Process]]) -> float:
    """CPU seconds used in the next `seconds` by a family that must stay the same."""
    before = family()
    used_before = _cpu_seconds(before)
    time.sleep(seconds)  # the measurement itself, not a wait for something
    if set(family()) != set(before):
        raise FamilyChanged("a process was started or ended while measuring")
    return _cpu_seconds(before) - used_before


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    total: float = sum(spent.user + spent.system for spent in times)
    return total


def _wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + STARTED_WITHIN
    while not condition():
        if time.monotonic() > deadline:
            raise ServerFailed(f"waited {STARTED_WITHIN:g} s for {what}")
        time.sleep(POLL)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the CPU time of an idle ESG.")
    add = parser.add_argument
    add("--seconds", type=float, default=30.0, help="default: %(default)s")
    add("--workers", type=int, default=4, help="default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
