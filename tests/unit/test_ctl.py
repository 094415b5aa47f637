"""`esgctl`: how it waits for its answer, and its exit codes when it gets none."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from esg import ctl
from esg.commands import Answer, encode_answer
from tests.support.runner import environment
from tests.support.waiting import DEADLINE, eventually

COMMAND = [sys.executable, "-m", "esg.ctl", "--control-socket", "control", "reload"]


@contextlib.contextmanager
def asking(tmp_path, **extra):
    """`esgctl reload`, and the connection on which it waits for its answer."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "control"))
        listening.listen()
        listening.settimeout(DEADLINE)
        process = subprocess.Popen(
            COMMAND, cwd=tmp_path, env=environment(**extra), stderr=subprocess.PIPE, text=True
        )
        connection, _ = listening.accept()
        with connection:
            assert connection.recv(100) == b'{"command": "reload"}\n'
            yield process, connection


CODE_AFTER_TERM = [({"MAINPID": "1"}, 0), ({}, 143)]


@pytest.mark.parametrize(("extra", "code"), CODE_AFTER_TERM)
def test_term_ends_it_with_0_under_systemd_and_143_elsewhere(tmp_path, extra, code):
    with asking(tmp_path, **extra) as (process, _):
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == code
    assert errors == "esgctl: ended by SIGTERM before there was an answer\n"


@pytest.mark.parametrize(("extra", "code"), CODE_AFTER_TERM)
def test_a_term_sent_before_it_can_be_handled_ends_it_too(tmp_path, extra, code):
    program = (
        "import os, signal, sys; from esg import ctl; "
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); "
        "os.kill(os.getpid(), signal.SIGTERM); "
        "sys.exit(ctl.main(['--control-socket', 'none', 'reload']))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, env=environment(**extra), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == code
    assert finished.stderr == "esgctl: ended by SIGTERM before there was an answer\n"


def test_term_ends_it_while_the_queue_of_the_arbiter_is_full(tmp_path):
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(str(tmp_path / "control"))
        listening.listen(0)
        while True:  # fill the queue
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            try:
                client.connect(str(tmp_path / "control"))
            except BlockingIOError:
                break
        process = subprocess.Popen(
            COMMAND, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
        )
        status = Path(f"/proc/{process.pid}/status")
        eventually(lambda: handles(status, signal.SIGTERM), "the handler is installed")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 143
    assert errors == "esgctl: ended by SIGTERM before there was an answer\n"


def handles(status: Path, signum: int) -> bool:
    """Whether a process has a handler for this signal (proc(5), SigCgt)."""
    (mask,) = re.findall(r"^SigCgt:\s*(\w+)$", status.read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (signum - 1) & 1)


def test_a_term_between_a_check_and_a_wait_is_not_lost():
    """A socket reports the signal as soon as it arrives; its handler may be called too late."""
    with ctl._termination() as terminated:
        assert not ctl._is_readable(terminated)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        with pytest.raises(ctl.Terminated):
            ctl._wait(terminated, DEADLINE)


@pytest.mark.parametrize("extra", [{"MAINPID": "1"}, {}])
def test_an_arbiter_that_cannot_be_reached_is_a_failure_for_systemd_too(tmp_path, extra):
    finished = subprocess.run(
        COMMAND, cwd=tmp_path, env=environment(**extra), capture_output=True, text=True, check=False
    )
    assert finished.returncode == 1
    assert "can't reach an arbiter at 'control': No such file or directory" in finished.stderr


@pytest.mark.parametrize("extra", [{"MAINPID": "1"}, {}])
def test_an_arbiter_that_ended_is_a_failure_for_systemd_too(tmp_path, extra):
    with asking(tmp_path, **extra) as (process, connection):
        connection.close()
        _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert "the arbiter at 'control' ended before reload did" in errors


def test_an_answer_may_come_in_pieces(tmp_path):
    with asking(tmp_path) as (process, connection):
        answer = encode_answer(Answer(False, "given up" * 100_000, "", False))
        connection.sendall(answer[:10])
        connection.sendall(answer[10:])
        _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert errors.count("given up") == 100_000


@pytest.mark.parametrize(
    ("extra", "stopping", "code"),
    [({"MAINPID": "1"}, True, 0), ({"MAINPID": "1"}, False, 1), ({}, True, 1)],
)
def test_a_stop_is_a_failure_except_under_systemd(tmp_path, extra, stopping, code):
    with asking(tmp_path, **extra) as (process, connection):
        connection.sendall(encode_answer(Answer(False, "given up", "", stopping)))
        _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == code
    assert errors == "esgctl: error: given up\n"
