"""Real `python -m esg` processes, each checked at its end for errors and leftover processes."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from .app import application
from .log import Record, is_trouble, misattributed, records
from .waiting import DEADLINE, eventually

CHECKOUT = Path(__file__).resolve().parents[2]
"""The folder of the package under test; another version may be installed."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """The result of a run that ended by itself."""

    code: int
    output: str
    log: str

    @property
    def errors(self) -> list[Record]:
        return [record for record in records(self.log) if record.level in ("ERROR", "CRITICAL")]


def environment(**extra: str) -> dict[str, str]:
    """The environment of a run: without settings and cached bytecode, and with this `esg`.

    Bytecode is cached by modification time in whole seconds, and tests rewrite modules faster.
    """
    settings = re.compile(r"ESG_|PORT$|WEB_CONCURRENCY$|PYTHON(PATH|STARTUP|WARNINGS)$")
    kept = {name: value for name, value in os.environ.items() if not settings.match(name)}
    return kept | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(CHECKOUT)} | extra


def run_to_its_end(
    folder: Path,
    *arguments: str,
    prefix: Sequence[str] = (),
    wrapper: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
    extra: Mapping[str, str] | None = None,
) -> Finished:
    """Run `python -m esg` with arguments that make it end by itself.

    `prefix` is a command that runs another one, such as `nice`; `wrapper` are arguments of
    Python in front of `-m`; `extra` is added to the environment.
    """
    process = subprocess.Popen(
        [*prefix, sys.executable, *wrapper, "-m", "esg", *arguments],
        cwd=folder,
        env=environment(**(extra or {})),
        pass_fds=pass_fds,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, log = process.communicate(timeout=DEADLINE)
    finally:
        left = kill_session(process)
    assert left == [], f"left behind: {left}; log:\n{log}"
    return Finished(process.returncode, output, log)


class Esg:
    """A running server, and its folder with the application's module `example`."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        source: str | None = None,
        listen: Sequence[str] = ("--port", "0"),
        prefix: Sequence[str] = (),
        log: str = "stderr",
        stdout: int | None = None,
        stdin: int = subprocess.DEVNULL,
        wrapper: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        extra: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        """`prefix` is a command as in `run_to_its_end`, but it stays as the parent.

        `log` is the log's file in the folder; `stdin` and `stdout` are descriptors; the
        others are as in `run_to_its_end`.
        """
        self.folder = folder
        self.exit_code = 0
        self._claims: list[str] = []
        self._log_file = folder / log
        self.write(source or application())
        command = [python, *wrapper, "-m", "esg", "example:app", *listen, *arguments]
        with (folder / "stderr").open("wb") as errors, (folder / "stdout").open("wb") as output:
            self.process = subprocess.Popen(
                [*prefix, *command],
                cwd=folder,
                env=environment(**(extra or {})),
                pass_fds=pass_fds,
                stdin=stdin,
                stdout=output if stdout is None else stdout,
                stderr=errors,
                start_new_session=True,
            )
        self.tls: ssl.SSLContext | None = None
        """The context for clients' TLS, for a test that sets it."""
        self._prefixed = bool(prefix)
        self._port = 0

    # -- the processes -----------------------------------------------------------------

    @property
    def arbiter(self) -> psutil.Process:
        process = psutil.Process(self.process.pid)
        return process.children()[0] if self._prefixed else process

    @property
    def pid(self) -> int:
        """The arbiter's pid."""
        return self.arbiter.pid

    def workers(self) -> list[int]:
        """The pids of the workers, including zombies."""
        return sorted(c.pid for c in self.arbiter.children() if not _is_watcher(c))

    def watchers(self) -> list[int]:
        """The pids of the processes that watch files for changes."""
        return [child.pid for child in self.arbiter.children() if _is_watcher(child)]

    def zombies(self) -> list[int]:
        return [child.pid for child in self.arbiter.children() if _is_zombie(child)]

    def signal(self, signum: int) -> None:
        """Send a signal to the arbiter."""
        os.kill(self.pid, signum)

    def connections(self) -> int:
        """The number of TCP connections of the workers."""
        return sum(
            connection.status == psutil.CONN_ESTABLISHED
            for worker in self.arbiter.children()
            for connection in worker.net_connections("tcp")
        )

    def wait_for_workers(self, count: int) -> list[int]:
        """Wait until there are exactly this many, in any state; returns their pids."""
        eventually(lambda: len(self.workers()) == count, f"{count} workers")
        return self.workers()

    # -- files -------------------------------------------------------------------------

    def write(self, text: str, name: str = "example.py") -> None:
        """Write a file into the folder; by default, another version of the application.

        It is replaced atomically, because a process may import it at the same time.
        """
        new = self.folder / f".{name}.new"
        new.write_text(text)
        new.replace(self.folder / name)

    def notes(self, what: str) -> list[int]:
        """The pids of the processes in which the application noted `what`, in order."""
        file = self.folder / "notes"
        lines = file.read_text().splitlines() if file.exists() else []
        return [int(line.split()[1]) for line in lines if line.split()[0] == what]

    # -- the log -----------------------------------------------------------------------

    @property
    def log(self) -> str:
        if not self._log_file.exists():
            return ""
        return self._log_file.read_text(encoding="utf-8", errors="backslashreplace")

    @property
    def records(self) -> list[Record]:
        return records(self.log)

    def logged(self, pattern: str) -> list[Record]:
        """The records whose text contains the pattern."""
        return [record for record in self.records if re.search(pattern, record.text)]

    def wait_for_log(self, pattern: str, timeout: float = DEADLINE, count: int = 1) -> Record:
        """Wait for a record whose text contains the pattern; returns the `count`th one."""
        found = eventually(
            lambda: self.logged(pattern)[count - 1 :] or self._ended(),
            f"{pattern!r} in the log, {count} times",
            timeout,
        )
        if found is True:  # it has ended; its last lines are included
            found = self.logged(pattern)[count - 1 :]
        assert found, f"ended without {pattern!r} in its log"
        return found[0]

    def claim(self, *patterns: str) -> None:
        """Declare errors that this test causes; any other in the log is a failure."""
        self._claims += patterns

    def _ended(self) -> bool:
        return self.process.poll() is not None

    # -- talking to it -----------------------------------------------------------------

    @property
    def port(self) -> int:
        if not self._port:
            record = self.wait_for_log(r"listening on https?://127\.0\.0\.1:\d+")
            self._port = int(record.message.rpartition(":")[2])
        return self._port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, timeout: float = DEADLINE) -> http.client.HTTPConnection:
        """A connection that never reconnects silently."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        if self.tls is not None:
            connection = http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=timeout, context=self.tls
            )
        connection.connect()
        connection.auto_open = 0
        return connection

    def begin(self, path: str) -> http.client.HTTPConnection:
        """A connection on which a request was sent; call `getresponse` on it."""
        connection = self.connect()
        connection.request("GET", path)
        return connection

    def in_flight(self, path: str) -> http.client.HTTPConnection:
        """Like `begin`, for a path that writes a note, so that the application has the request by
        now."""
        what = path.split("/")[1]
        before = len(self.notes(what))
        connection = self.begin(path)
        eventually(lambda: len(self.notes(what)) > before, f"{path} has reached a worker")
        return connection

    def reload(self) -> Record:
        """Ask for a reload and wait until it is done."""
        before = len(self.logged(r" reloaded workers="))
        self.signal(signal.SIGHUP)
        return self.wait_for_log(r" reloaded workers=", count=before + 1)

    def whoami(self) -> dict[str, Any]:
        """Ask on a new connection which worker of which generation answers."""
        connection = self.begin("/whoami")
        try:
            return answer(connection)
        finally:
            connection.close()

    # -- the end -----------------------------------------------------------------------

    def wait(self, timeout: float = DEADLINE) -> int:
        """Wait for the end; returns the exit code."""
        eventually(self._ended, "the arbiter has ended", timeout)
        return self.process.returncode

    def stop(self) -> None:
        """Stop it if it runs, and check that it has left no process and no unclaimed error."""
        try:
            if not self._ended():
                self.signal(signal.SIGCONT)  # a failed test may have left it stopped (SIGSTOP)
                eventually(lambda: not self.zombies(), "children are reaped")
                self.signal(signal.SIGTERM)
            code = self.wait()
            left = session(self.process.pid)
            trouble = [r.text for r in self.records if is_trouble(r) and not self._claimed(r)]
            assert left == [], "processes were left behind"
            assert misattributed(self.records) == [], "the generation of a `reloaded` line"
            assert trouble == [], "errors in the log that the test hasn't claimed"
            assert code == self.exit_code, "exit code"
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill all processes that are left."""
        kill_session(self.process)

    def _claimed(self, record: Record) -> bool:
        return any(re.search(pattern, record.text) for pattern in self._claims)


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # reaped meanwhile
        return False


def _is_watcher(process: psutil.Process) -> bool:
    try:
        return "".join(process.cmdline()[:1]).startswith("esg: watcher")
    except (psutil.ZombieProcess, psutil.NoSuchProcess):
        return False


def answer(connection: http.client.HTTPConnection) -> dict[str, Any]:
    """The response of `/whoami` and `/slow`, which must be complete and successful."""
    response = connection.getresponse()
    body = response.read()
    assert response.status == 200, (response.status, body)
    assert int(response.headers["content-length"]) == len(body)
    return json.loads(body)


def is_lost(connection: http.client.HTTPConnection) -> bool:
    """Whether the request on this connection doesn't get a complete, successful response."""
    try:
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException):
        return True
    finally:
        connection.close()
    return response.status != 200


def session(pid: int) -> list[str]:
    """The processes of the session that the process `pid` leads, without itself and zombies.

    It contains every descendant, even after its parent has ended. Orphaned zombies belong to init.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != pid and os.getsid(process.pid) == pid:
                status = process.status()
                if status not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                    found.append(f"{process.pid} {' '.join(process.cmdline())} ({status})")
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def kill_session(leader: subprocess.Popen[Any]) -> list[str]:
    """Send SIGKILL to a session and its leader; returns the processes other than the leader."""
    leader.kill()
    left = session(leader.pid)
    for line in left:
        target = int(line.split()[0])
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(target) == leader.pid:
                os.kill(target, signal.SIGKILL)
    leader.wait()
    return left
