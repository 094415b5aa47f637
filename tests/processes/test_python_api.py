"""`esg.run` and `esg.Server` in scripts."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esg import __version__ as version
from tests.support.log import records
from tests.support.runner import environment, kill_session, session
from tests.support.waiting import DEADLINE, eventually

APP = """\
import asyncio, os, signal, sys
import esg

VERSION = "one"

class App:
    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        body = b"%s %d" % (VERSION.encode(), os.getpid())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

app = App()

"""


class Script:
    """A running Python program that serves; it must leave no process behind."""

    def __init__(self, folder: Path, main: str) -> None:
        self.file = folder / "script.py"
        self.file.write_text(f'{APP}if __name__ == "__main__":\n    {main}\n    print("after")\n')
        self._log_file = folder / "stderr"
        self._output_file = folder / "stdout"
        with self._log_file.open("wb") as log, self._output_file.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, self.file.name],
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log_file.read_text()

    @property
    def output(self) -> str:
        return self._output_file.read_text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait for the pattern in the log."""

        def found() -> re.Match[str] | bool | None:
            match = re.search(pattern, self.log)
            return match or (self.process.poll() is not None)

        eventually(found, pattern)
        match = re.search(pattern, self.log)
        assert match, f"ended without {pattern!r} in its log:\n{self.log}"
        return match

    def ask(self) -> tuple[str, int]:
        """The response to a request: the version, and the pid of the process that answered."""
        port = int(self.wait_for(r"listening on http://127\.0\.0\.1:(\d+)")[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
        try:
            connection.request("GET", "/")
            version, pid = connection.getresponse().read().split()
        finally:
            connection.close()
        return version.decode(), int(pid)

    def signal(self, signum: int) -> None:
        os.kill(self.process.pid, signum)

    def wait(self) -> int:
        """Wait for the end; returns the exit code. No process may be left."""
        code = self.process.wait(DEADLINE)
        assert session(self.process.pid) == []
        return code


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[[str], Script]]:
    """Starts a script that consists of the application `app` and this statement."""
    started: list[Script] = []

    def start(main: str) -> Script:
        started.append(Script(tmp_path, main))
        return started[-1]

    yield start
    for one in started:
        kill_session(one.process)
        print(one.log)  # noqa: T201 - for a test that fails


# -- run -------------------------------------------------------------------------------


def test_an_object_is_served_by_several_workers(script: Callable[[str], Script]) -> None:
    program = script('esg.run(app, port=0, workers=2, log_level="info")')
    program.wait_for("serving workers=2")
    version, pid = program.ask()
    assert version == "one"
    assert pid != program.process.pid
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert program.output.splitlines()[-1] == "after"


def test_a_reload_keeps_an_application_object_and_warns(script: Callable[[str], Script]) -> None:
    program = script("esg.run(app, port=0)")
    program.wait_for("serving workers=1")
    before = program.ask()
    program.file.write_text("1 / 0")
    program.signal(signal.SIGHUP)
    program.wait_for(r"WARNING .*given as an object, so its code stays as it is")
    program.wait_for("gone: exit status 0")
    version, pid = program.ask()
    assert version == "one"
    assert pid != before[1]
    program.signal(signal.SIGTERM)
    assert program.wait() == 0


def test_a_reload_imports_a_named_application_again(script: Callable[[str], Script]) -> None:
    program = script('esg.run("script:app", port=0)')
    program.wait_for("serving workers=1")
    assert program.ask()[0] == "one"
    program.file.write_text(APP.replace('"one"', '"two"'))
    program.signal(signal.SIGHUP)
    program.wait_for("gone: exit status 0")
    assert program.ask()[0] == "two"
    program.signal(signal.SIGTERM)
    assert program.wait() == 0


def test_a_factory_is_called_in_each_worker(script: Callable[[str], Script]) -> None:
    program = script("esg.run(lambda: app, factory=True, port=0, workers=2)")
    program.wait_for("serving workers=2")
    assert program.ask()[0] == "one"
    program.signal(signal.SIGTERM)
    assert program.wait() == 0


@pytest.mark.parametrize(
    ("main", "code", "told"),
    [
        ('esg.run("nosuch:app", port=0)', 4, "no module 'nosuch'"),
        ("esg.run(42, port=0)", 4, "can't be called"),
        ('esg.run(lambda s, r, x: None, interface="asgi3", lifespan="on", port=0)', 3, "lifespan"),
        ("esg.run(app, prot=0)", 1, "arguments: unknown key 'prot'; did you mean port?"),
        ('esg.run(app, bind="192.0.2.1:1")', 1, "can't listen on 192.0.2.1:1 (argument bind)"),
    ],
    ids=["import", "no application", "boot", "unknown keyword", "address"],
)
def test_run_ends_the_program_if_startup_fails(
    script: Callable[[str], Script], main: str, code: int, told: str
) -> None:
    program = script(main)
    assert program.wait() == code
    assert told in program.log
    assert program.output == ""


def test_uvicorns_logging_config_is_accepted(script: Callable[[str], Script]) -> None:
    program = script(
        "from uvicorn.config import LOGGING_CONFIG; "
        "esg.run(app, port=0, log_config=LOGGING_CONFIG, log_level=20, timeout='1m')"
    )
    program.ask()
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert re.search(r"^INFO:     worker=1 gen=1 pid=\d+ ready$", program.log, re.MULTILINE)
    assert re.match(r'INFO:     127\.0\.0\.1:\d+ - "GET / HTTP/1\.1" 200 OK\n', program.output)


# -- Server ----------------------------------------------------------------------------


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, -15), (signal.SIGINT, -2)])
def test_a_server_stopped_by_a_signal_ends_by_that_signal(
    script: Callable[[str], Script], signum: int, code: int
) -> None:
    program = script("esg.Server(esg.Config(app, port=0)).run()")
    program.wait_for("worker=1 gen=1 pid=.* ready")
    assert program.ask() == ("one", program.process.pid)
    program.signal(signum)
    assert program.wait() == code
    assert program.output.splitlines()[1:] == []
    told = [record.event for record in records(program.log) if record.worker == 1]
    name = signal.Signals(signum).name
    assert told[1].startswith(f"esg {version} serves ")
    assert told[2:] == ["ready", f"received {name}", "draining reason=should_exit", "stopped"]


def test_a_server_that_stops_by_itself_returns(script: Callable[[str], Script]) -> None:
    program = script("esg.Server(esg.Config(app, port=0, limit_max_requests=1)).run()")
    program.wait_for("worker=1 gen=1 pid=.* ready")
    program.ask()
    assert program.wait() == 0
    assert program.output.splitlines()[-1] == "after"
    told = [record.event for record in records(program.log)]
    assert told[-2:] == ["draining reason=max-requests", "stopped"]


def test_importing_esg_does_not_import_the_arbiter() -> None:
    """Applications use `esg.current_worker`, so it must not import the arbiter."""
    listed = "print(*(m for m in sys.modules if m.startswith('esg.')))"
    program = f"import sys, esg; esg.current_worker(); {listed}"
    finished = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    loaded = finished.stdout.split()
    assert "esg.payload" in loaded
    assert [name for name in loaded if name.startswith(("esg.supervisor", "esg.server"))] == []
