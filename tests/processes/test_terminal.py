"""The output of ESG in a terminal; the tests use a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from esg import __version__ as version
from tests.support.app import application
from tests.support.runner import environment, kill_session
from tests.support.waiting import DEADLINE, eventually

Start = Callable[..., "Terminal"]

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


class Terminal:
    """ESG with a terminal as its standard streams, and the text that it writes there."""

    def __init__(self, folder: Path, *arguments: str, extra: dict[str, str]) -> None:
        """`arguments` are those of the `esg` command, or `-c` and a program to run in its place."""
        command = ["-m", "esg", "example:app", "--port", "0", *arguments]
        if arguments[:1] == ("-c",):
            command = list(arguments)
        (folder / "example.py").write_text(application())
        self.notes = folder / "notes"
        self._main, terminal = pty.openpty()
        colors = {"NO_COLOR": "", "TERM": "xterm"}
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=environment(**(colors | extra)),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        os.close(terminal)
        self.text = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._main, 65536)
            except OSError:  # EIO: no process has the other end open any more
                return
            if not data:
                return
            self.text += data.decode().replace("\r\n", "\n")

    def wait_for(self, pattern: str) -> str:
        """Wait for a line that contains this; returns the line."""

        def found() -> list[str]:
            return [line for line in self.text.splitlines() if re.search(pattern, line)]

        return eventually(found, f"{pattern!r} on the terminal")[0]

    def press_ctrl_c(self) -> None:
        os.write(self._main, b"\x03")

    def connect(self, path: str) -> HTTPConnection:
        """A connection on which a request was sent."""
        port = re.search(r"listening on http://127\.0\.0\.1:(\d+)", ESCAPE.sub("", self.text))
        assert port is not None
        client = HTTPConnection("127.0.0.1", int(port[1]), timeout=DEADLINE)
        client.request("GET", path)
        return client

    def get(self, path: str) -> None:
        client = self.connect(path)
        assert client.getresponse().status == 200
        client.close()

    def end(self) -> None:
        """Kill the processes that are left."""
        kill_session(self.process)
        self._reader.join(DEADLINE)
        os.close(self._main)


def take_terminal() -> None:
    """In the child: let the terminal control it, so that Ctrl-C becomes a signal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def on_terminal(tmp_path: Path) -> Iterator[Start]:
    """Starts ESG in a terminal; processes that are left are killed at the end."""
    started: list[Terminal] = []

    def start(*arguments: str, **extra: str) -> Terminal:
        started.append(Terminal(tmp_path, *arguments, extra=extra))
        return started[-1]

    yield start
    for terminal in started:
        terminal.end()


def test_the_terminal_shows_what_is_served_and_how_to_stop(on_terminal: Start) -> None:
    terminal = on_terminal("--no-use-colors", "--interface", "asgi3")
    line = terminal.wait_for(" serves ")
    means = r"\(ASGI, \w+, \w+\), no settings file; press Ctrl-C to stop"
    assert re.search(rf" esg {re.escape(version)} serves example:app {means}$", line)
    terminal.wait_for("serving workers=1")
    terminal.press_ctrl_c()
    assert terminal.process.wait(DEADLINE) == 0
    terminal.wait_for("received SIGINT")
    terminal.wait_for("stopped, exit status 0")


def test_levels_and_the_address_have_colours(on_terminal: Start) -> None:
    terminal = on_terminal()
    line = terminal.wait_for("listening on")
    assert "\x1b[32mINFO" in line
    assert re.search(r"listening on \x1b\[1mhttp://127\.0\.0\.1:\d+\x1b\[0m$", line)


@pytest.mark.parametrize(
    ("options", "extra"), [((), {"NO_COLOR": "1"}), (("--no-use-colors",), {})]
)
def test_colours_can_be_turned_off(
    on_terminal: Start, options: tuple[str, ...], extra: dict[str, str]
) -> None:
    terminal = on_terminal(*options, **extra)
    terminal.wait_for("serving workers=1")
    terminal.get("/whoami")
    terminal.wait_for("GET /whoami")
    assert "\x1b" not in terminal.text


def test_requests_have_a_time_and_a_duration(on_terminal: Start) -> None:
    terminal = on_terminal("--no-use-colors")
    terminal.wait_for("serving workers=1")
    terminal.get("/whoami")
    line = terminal.wait_for("GET /whoami")
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"
    request = r'127\.0\.0\.1:\d+ - "GET /whoami HTTP/1\.1" 200 OK'
    assert re.fullmatch(rf"{time} INFO +{request} in [\d.]+ ms", line)


def test_a_long_stop_is_logged_with_the_hint_to_press_ctrl_c_again(on_terminal: Start) -> None:
    terminal = on_terminal("--no-use-colors")
    terminal.wait_for("serving workers=1")
    client = terminal.connect("/slow/60")
    eventually(lambda: "slow" in terminal.notes.read_text(), "the request has arrived")
    terminal.press_ctrl_c()
    terminal.wait_for("waiting for 1 request in worker 1; Ctrl-C again to cut it$")
    terminal.press_ctrl_c()
    assert terminal.process.wait(DEADLINE) == 0
    client.close()


def test_an_embedded_server_says_the_same(on_terminal: Start) -> None:
    settings = "port=0, use_colors=False, loop='asyncio', http='h11'"
    program = f"import esg, example; esg.Server(esg.Config(example.app, {settings})).run()"
    terminal = on_terminal("-c", program)
    line = terminal.wait_for(" serves ")
    served = r"serves example:app \(ASGI, asyncio, h11\); press Ctrl-C to stop"
    assert re.search(rf" esg {re.escape(version)} {served}$", line)
    terminal.wait_for("ready")
    client = terminal.connect("/slow/60")
    eventually(lambda: "slow" in terminal.notes.read_text(), "the request has arrived")
    terminal.press_ctrl_c()
    terminal.wait_for("waiting for 1 request; Ctrl-C again to cut it$")
    terminal.press_ctrl_c()
    terminal.wait_for("stopped$")
    assert terminal.process.wait(DEADLINE) == -signal.SIGINT
    client.close()
