"""Runs one server: pinned to a CPU, in its own process group, ready before use, then ended."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from scenarios import Scenario
from servers import Command, environment

ROOT = Path(__file__).resolve().parent.parent
READY_WITHIN = 20.0  # seconds from start to the first right answer
GONE_WITHIN = 10.0  # seconds from SIGTERM to SIGKILL, at most
POLL = 0.02  # seconds


class ServerFailed(Exception):
    """The server did not start, answered wrongly or did not stop as asked."""


class Server:
    """A running server that has given one right answer."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.pid = process.pid
        self.port = port
        self.ignored_sigterm = False
        self._process = process
        self._log = log

    def log_lines(self) -> int:
        """How many lines the server has written to stdout and stderr together."""
        with self._log.open("rb") as file:
            return sum(1 for _ in file)

    def cpu(self) -> float:
        """Seconds of CPU time that the server and its children have used."""
        times = [process.cpu_times() for process in self.family()]
        return float(sum(used.user + used.system for used in times))

    def family(self) -> list[psutil.Process]:
        """The server and its children."""
        arbiter = psutil.Process(self.pid)
        return [arbiter, *arbiter.children(recursive=True)]

    def wait_until_ready(self, scenario: Scenario) -> None:
        """Return after the first right answer; raise ServerFailed if none comes in time."""
        deadline = time.monotonic() + READY_WITHIN
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                code = self._process.returncode
                raise ServerFailed(f"exited with {code} unasked: {self._last_words()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._check_answer(scenario)
                return
            time.sleep(POLL)
        raise ServerFailed(f"no answer within {READY_WITHIN:g} s: {self._last_words()}")

    def stop(self) -> None:
        """SIGTERM; then, after GONE_WITHIN at most, SIGKILL to the rest of its process group."""
        try:
            self._process.terminate()
            self._process.wait(GONE_WITHIN)
        except subprocess.TimeoutExpired:
            self.ignored_sigterm = True
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    def _check_answer(self, scenario: Scenario) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=READY_WITHIN)
        with contextlib.closing(connection):
            body = b"x" * scenario.body_size or None
            connection.request(scenario.method, scenario.path, body, {"Connection": "close"})
            response = connection.getresponse()
            answer = response.read()
        if (response.status, answer) != (200, scenario.answer):
            raise ServerFailed(f"answered {response.status} {answer[:80]!r}")

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it printed nothing"


@contextlib.contextmanager
def serving(command: Command, scenario: Scenario, log: Path, cpu: int | None) -> Iterator[Server]:
    """Run a server on `cpu` (any if None), its output in `log`, until the block is left."""
    port = _free_port()
    argv = command(scenario.app, port, scenario.access_log)
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=None if cpu is None else pin_to(cpu),
        )
    server = Server(process, port, log)
    try:
        server.wait_until_ready(scenario)
        yield server
    finally:
        server.stop()
    if server.ignored_sigterm:
        raise ServerFailed(f"killed: still running {GONE_WITHIN:g} s after SIGTERM")


def pin_to(cpu: int) -> Callable[[], None]:
    """A `preexec_fn`: set before exec, so that no thread of the program escapes it."""
    return lambda: os.sched_setaffinity(0, {cpu})


def interrupt_on_termination() -> None:
    """Let SIGTERM and SIGHUP end this program as Ctrl-C does: no server outlives it."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, signal.default_int_handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
