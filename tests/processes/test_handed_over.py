"""Real programs open the socket and start ESG with it, with the files of deploy/."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests.support.app import application
from tests.support.load import Load
from tests.support.log import is_trouble, records
from tests.support.runner import CHECKOUT, environment, kill_session, session
from tests.support.waiting import eventually

DEPLOY = CHECKOUT / "deploy"
ESG = f"{sys.executable} -m esg"


class Started:
    """A program that starts ESG, in the same session."""

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        self.folder = folder
        with (folder / "manager.log").open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self) -> str:
        file = self.folder / "esg.log"
        return file.read_text() if file.exists() else ""

    def serving(self) -> int:
        return self.log().count(" serving workers=")

    def arbiter(self) -> psutil.Process | None:
        """The process whose children are workers."""
        leader = psutil.Process(self.process.pid)
        for process in (leader, *leader.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline()[:1] and process.cmdline()[0].startswith("esg: arbiter"):
                    return process
        return None

    def stop(self) -> None:
        """End it; no process may be left behind."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=20)
        eventually(lambda: not session(self.process.pid), "its processes are gone")
        trouble = [record.text for record in records(self.log()) if is_trouble(record)]
        assert trouble == []


@contextlib.contextmanager
def started(folder: Path, command: Sequence[str]) -> Iterator[Started]:
    (folder / "example.py").write_text(application())
    program = Started(folder, command)
    try:
        eventually(program.serving, "it serves")
        yield program
        program.stop()
    finally:
        kill_session(program.process)
        for name in ("manager.log", "esg.log"):
            if (folder / name).exists():
                print((folder / name).read_text())  # noqa: T201 - for a test that fails


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def deployed(name: str, folder: Path, **values: str) -> str:
    """A file of deploy/ with values replaced for this folder; each of them must be in it."""
    text = (DEPLOY / name).read_text()
    values |= {"/srv/app/.venv/bin/esg": ESG, "/srv/app": str(folder)}
    for written, meant in values.items():
        assert written in text
        text = text.replace(written, meant)
    return text


def restart_under_load(program: Started, port: int) -> None:
    """ESG ends and is started again: no connection is refused, no request lost."""
    with Load(port, fresh=3, keep_alive=2, slow=1) as load:
        arbiter = eventually(program.arbiter, "there is an arbiter")
        files = arbiter.num_fds()
        os.kill(arbiter.pid, signal.SIGTERM)
        eventually(lambda: program.serving() == 2, "the next one serves")
        load.wait_until_answered("fresh", 20)
        again = eventually(program.arbiter, "there is another arbiter")
        assert again.pid != arbiter.pid
        assert again.num_fds() == files


def test_supervisor_hands_over_its_socket(tmp_path: Path) -> None:
    port = free_port()
    conf = deployed(
        "supervisor/esg.conf",
        tmp_path,
        **{"127.0.0.1:8000": f"127.0.0.1:{port}", "/var/log/supervisor": str(tmp_path)},
    )
    own = f"[supervisord]\nnodaemon = true\nuser = root\npidfile = {tmp_path}/supervisord.pid\n"
    own = own if os.geteuid() == 0 else own.replace("user = root\n", "")
    (tmp_path / "supervisord.conf").write_text(f"{own}logfile = {tmp_path}/daemon.log\n\n{conf}")
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", "supervisord.conf"]
    with started(tmp_path, command) as program:
        arbiter = eventually(program.arbiter, "there is an arbiter")
        files = arbiter.num_fds()
        with Load(port, fresh=3, keep_alive=2, slow=1) as load:
            arbiter.send_signal(signal.SIGHUP)
            eventually(lambda: " reloaded workers=" in program.log(), "it has reloaded")
            load.wait_until_answered("fresh", 20)
        eventually(lambda: arbiter.num_fds() == files, "no descriptor is left open")
        # supervisor starts ESG again, and closes the socket in between.
        arbiter.send_signal(signal.SIGTERM)
        eventually(lambda: program.serving() == 2, "the next one serves")
        assert connects(port)


def test_circus_hands_over_its_socket(tmp_path: Path) -> None:
    port = free_port()
    conf = deployed(
        "circus/circus.ini",
        tmp_path,
        **{
            "port = 8000": f"port = {port}",
            "/var/log/circus": str(tmp_path),
            "ipc:///run/circus": f"ipc://{tmp_path}",
        },
    )
    (tmp_path / "circus.ini").write_text(conf)
    with started(tmp_path, [sys.executable, "-m", "circus.circusd", "circus.ini"]) as program:
        restart_under_load(program, port)


@pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="needs systemd-socket-activate"
)
def test_systemd_socket_activate_hands_over_its_socket(tmp_path: Path) -> None:
    """The program executes ESG at the first connection, and this client gets a response."""
    port = free_port()
    command = ["systemd-socket-activate", "--listen", f"127.0.0.1:{port}", "--fdname", "web"]
    command += [f"--setenv=PYTHONPATH={CHECKOUT}", "--setenv=PYTHONDONTWRITEBYTECODE=1"]
    command += ["sh", "-c", f"exec {ESG} example:app --bind fd://web 2>esg.log"]
    (tmp_path / "example.py").write_text(application())
    program = Started(tmp_path, command)
    try:
        eventually(lambda: connects(port), "it listens")
        with Load(port, fresh=2, keep_alive=2) as load:
            load.wait_until_answered("fresh", 20)
        program.stop()
    finally:
        kill_session(program.process)


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True
