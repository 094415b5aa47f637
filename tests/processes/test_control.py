"""The control socket and `esgctl`: a client that asks for a reload is told how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.app import application
from tests.support.descriptors import open_files, wait_for_open_files
from tests.support.load import Load
from tests.support.runner import Esg, environment, run_to_its_end, session
from tests.support.unprivileged import NOBODY, as_nobody
from tests.support.waiting import DEADLINE, eventually

Start = Callable[..., Esg]

SOCKET = ("--control-socket", "control")
HANGS_IN_STARTUP = application("bad", at_startup='note("hangs"); await asyncio.sleep(3600)')


def command(esg: Esg, *arguments: str, **extra: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "esg.ctl", *arguments],
        cwd=esg.folder,
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of a command, after it has ended."""
    output, errors = process.communicate(timeout=DEADLINE)
    return process.returncode, output, errors


def ctl(esg: Esg, *arguments: str, **extra: str) -> tuple[int, str, str]:
    return ended(command(esg, *arguments, **extra))


def reload(esg: Esg) -> tuple[int, str, str]:
    return ctl(esg, *SOCKET, "reload")


def connected(esg: Esg) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(esg.folder / "control"))
    client.settimeout(DEADLINE)
    return client


def test_the_command_ends_when_the_reload_has_ended(start: Start) -> None:
    esg = start("--workers", "2", *SOCKET)
    fds = esg.arbiter.num_fds()
    esg.write(application("two"))
    with Load(esg.port, keep_alive=2, fresh=2):
        assert reload(esg) == (0, "reloaded gen=2 workers=2\n", "")
        assert {esg.whoami()["version"] for _ in range(10)} == {"two"}
    esg.wait_for_workers(2)
    eventually(lambda: esg.arbiter.num_fds() == fds, "no descriptor is left open")
    assert esg.logged(r"received reload from pid=\d+ uid=\d+")


def test_a_reload_that_fails_says_why(start: Start) -> None:
    esg = start(*SOCKET, "--lifespan", "on")
    esg.claim("can't boot", "reload failed")
    fds = esg.arbiter.num_fds()
    esg.write(application("two", at_startup="raise RuntimeError('no database')"))
    code, output, errors = reload(esg)
    assert (code, output) == (1, "")
    traceback, last = errors.rstrip().rsplit("\n", 1)
    assert "RuntimeError: no database" in traceback
    assert last == (
        "esgctl: error: reload failed, gen=1 goes on serving: gen=2: a worker could not boot"
    )
    assert esg.whoami()["version"] == "one"
    eventually(lambda: esg.arbiter.num_fds() == fds, "no descriptor is left open")


def test_a_reload_that_is_refused_says_why(start: Start) -> None:
    esg = start(files={"esg.toml": "port = 0\ncontrol_socket = 'control'\n"}, listen=())
    esg.claim("reload refused")
    files = open_files(esg.arbiter)
    esg.write("port = 0\nwrokers = 2\ncontrol_socket = 'control'\n", "esg.toml")
    code, _, errors = ctl(esg, "--control-socket", "control", "reload")
    assert code == 1
    wait_for_open_files(esg.arbiter, files)
    assert errors.startswith(
        "esgctl: error: reload refused, gen=1 goes on serving: esg.toml: unknown key 'wrokers'"
    )


def test_an_address_in_use_refuses_a_reload(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = "bind = ['127.0.0.1:0']\ncontrol_socket = 'control'\n"
        esg = start(files={"esg.toml": text}, listen=())
        esg.claim("reload refused")
        files = open_files(esg.arbiter)
        esg.write(text.replace(":0'", f":0', '127.0.0.1:{port}'"), "esg.toml")
        code, _, errors = ctl(esg, "reload")
    assert code == 1
    assert f"can't listen on 127.0.0.1:{port}" in errors
    wait_for_open_files(esg.arbiter, files)
    assert esg.whoami()["generation"] == 1


def test_esgctl_finds_the_socket_in_the_settings(start: Start) -> None:
    esg = start(files={"esg.toml": "port = 0\ncontrol_socket = 'control'\n"}, listen=())
    esg.write("control_socket = 'control'\n", "other.toml")
    assert ctl(esg, "reload")[:2] == (0, "reloaded gen=2 workers=1\n")
    assert ctl(esg, "--config", "other.toml", "reload")[:2] == (0, "reloaded gen=3 workers=1\n")
    esg.write("", "other.toml")
    assert ctl(esg, "-c", "other.toml", "reload", ESG_CONTROL_SOCKET="control")[0] == 0
    code, _, errors = ctl(esg, "-c", "other.toml", "reload")
    assert (code, errors[:30]) == (2, "esgctl: error: which arbiter? ")


def test_clients_of_an_overtaken_reload_are_told_the_newer_result(start: Start) -> None:
    esg = start(*SOCKET)
    esg.write(HANGS_IN_STARTUP)
    first = command(esg, *SOCKET, "reload")
    eventually(lambda: esg.notes("hangs"), "the first reload waits for its canary")
    esg.write(application("two"))
    second = command(esg, *SOCKET, "reload")
    assert ended(first)[:2] == ended(second)[:2] == (0, "reloaded gen=3 workers=1\n")


def test_a_waiting_client_is_told_about_a_stop(start: Start) -> None:
    esg = start(*SOCKET)
    esg.write(HANGS_IN_STARTUP)
    waiting = command(esg, *SOCKET, "reload")
    eventually(lambda: esg.notes("hangs"), "a canary boots")
    esg.signal(signal.SIGTERM)
    assert ended(waiting) == (1, "", "esgctl: error: reload given up: stopping\n")
    esg.wait()
    assert not (esg.folder / "control").exists()


def test_a_reload_request_during_a_stop_opens_nothing(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    esg = start(*SOCKET, listen=("--port", str(port)))
    fds = esg.arbiter.num_fds()
    slow = esg.in_flight("/slow/2")
    esg.signal(signal.SIGTERM)
    esg.wait_for_log("draining reason=shutdown")
    assert reload(esg) == (1, "", "esgctl: error: reload ignored: stopping\n")
    esg.signal(signal.SIGHUP)
    esg.wait_for_log("reload ignored: stopping", count=2)
    assert len(esg.logged("listening on")) == 1
    eventually(lambda: esg.arbiter.num_fds() == fds - 1, "all but the listener is as it was")
    assert slow.getresponse().status == 200
    slow.close()


def test_a_waiting_client_is_told_that_the_arbiter_was_killed(start: Start) -> None:
    esg = start(*SOCKET, wait=True)
    esg.write(HANGS_IN_STARTUP)
    waiting = command(esg, *SOCKET, "reload")
    eventually(lambda: esg.notes("hangs"), "a canary boots")
    esg.exit_code = -signal.SIGKILL
    esg.claim("arbiter is gone")
    esg.signal(signal.SIGKILL)
    code, _, errors = ended(waiting)
    assert (code, errors) == (
        1,
        "esgctl: error: the arbiter at 'control' ended before reload did; see its log\n",
    )
    eventually(lambda: session(esg.process.pid) == [], "the workers have ended")


def test_without_an_arbiter_esgctl_prints_a_clear_error(start: Start) -> None:
    esg = start()
    code, output, errors = reload(esg)
    assert (code, output) == (1, "")
    assert errors == (
        "esgctl: error: can't reach an arbiter at 'control': No such file or directory; is it "
        "running, with this --control-socket?\n"
    )


def test_only_its_owner_may_give_commands(start: Start) -> None:
    python, extra = as_nobody()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        path = f"{folder}/control"
        esg = start("--control-socket", path)
        done = subprocess.run(
            [python, "-m", "esg.ctl", "--control-socket", path, "reload"],
            user="nobody",
            group=NOBODY.pw_gid,
            extra_groups=[],
            env=extra | {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
            cwd="/",
            capture_output=True,
            text=True,
        )
        esg.stop()
    assert done.returncode == 1
    assert "Permission denied" in done.stderr
    assert not esg.logged("received reload")


# -- the file --------------------------------------------------------------------------


def test_a_second_instance_leaves_the_socket_alone(start: Start) -> None:
    esg = start(*SOCKET)
    second = run_to_its_end(esg.folder, "example:app", "--port", "0", *SOCKET)
    assert second.code == 1
    (error,) = [line for line in second.log.splitlines() if "error" in line]
    assert "can't open the control socket 'control' (--control-socket): a program listens" in error
    assert reload(esg)[0] == 0


def test_an_abandoned_control_socket_is_replaced(start: Start, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "1" / "control"))
    (tmp_path / "1").rename(tmp_path / "kept")
    esg = start("--control-socket", str(tmp_path / "kept" / "control"))
    assert ctl(esg, "--control-socket", str(tmp_path / "kept" / "control"), "reload")[0] == 0


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("file", "there is a file of that name, which isn't a socket"),
        ("folder", "there is a file of that name, which is a folder"),
        ("missing/control", "No such file or directory"),
        ("x" * 120, "AF_UNIX path too long"),
    ],
)
def test_a_path_that_cannot_be_used_is_refused_and_left_alone(
    tmp_path: Path, path: str, reason: str
) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "example.py").write_text(application())
    done = run_to_its_end(
        tmp_path, "example:app", "--port", "0", "--control-socket", path, "--pid", "pid"
    )
    assert done.code == 1
    assert f"can't open the control socket {path!r} (--control-socket): {reason}" in done.log
    assert (tmp_path / "file").read_text() == "kept"
    assert not (tmp_path / "pid").exists()


def test_a_reload_cannot_move_the_control_socket(start: Start) -> None:
    esg = start(files={"esg.toml": "port = 0\ncontrol_socket = 'control'\n"}, listen=())
    esg.claim("reload refused")
    esg.write("port = 0\ncontrol_socket = 'other'\n", "esg.toml")
    code, _, errors = reload(esg)
    assert code == 1
    assert "control_socket changed from 'control' to 'other', which a reload can't do" in errors


# -- clients that behave badly ---------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (b"GET / HTTP/1.1\r\n", 'expected a line such as {"command": "reload"}'),
        (b"[]\n", 'expected a line such as {"command": "reload"}'),
        (b'{"command": "stop"}\n', "unknown command 'stop'; known: reload"),
        (b'{"command": ["reload"]}\n', 'expected a line such as {"command": "reload"}'),
        (b"[" * 4000 + b"\n", 'expected a line such as {"command": "reload"}'),
        (b"\xff" * 5000, 'expected a line such as {"command": "reload"}'),
    ],
)
def test_invalid_commands_are_answered_with_an_error(start: Start, sent: bytes, text: str) -> None:
    esg = start(*SOCKET)
    with connected(esg) as client:
        client.sendall(sent)
        answer = json.loads(client.makefile().readline())
    assert answer == {"ok": False, "text": text, "detail": ""}
    assert not esg.logged("received reload")
    assert esg.whoami()["worker"] == 1


def test_silent_clients_use_a_bounded_number_of_descriptors(start: Start) -> None:
    esg = start(*SOCKET)
    fds = esg.arbiter.num_fds()
    with contextlib.ExitStack() as clients:
        silent = [clients.enter_context(connected(esg)) for _ in range(50)]
        with silent[0].makefile() as lines:
            text = json.loads(lines.readline())["text"]
        assert text == "too many clients are waiting; try again"
        assert reload(esg)[0] == 0
        eventually(lambda: esg.arbiter.num_fds() == fds + 31, "the worker before is gone")
    eventually(lambda: esg.arbiter.num_fds() == fds, "all are gone")


def test_a_client_that_leaves_before_its_answer_changes_nothing(start: Start) -> None:
    esg = start(*SOCKET)
    with connected(esg) as client:
        client.sendall(b'{"command": "reload"}\n')
        esg.wait_for_log("received reload")
    esg.wait_for_log("reloaded workers=1")
    assert reload(esg) == (0, "reloaded gen=3 workers=1\n", "")
