"""`esgctl` that is told to end while it waits."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys

import pytest

from esg.commands import Answer, encode_answer
from tests.support.runner import environment
from tests.support.waiting import DEADLINE


@contextlib.contextmanager
def asking(tmp_path, **extra):
    """`esgctl reload`, and the connection on which it waits for its answer."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "control"))
        listening.listen()
        listening.settimeout(DEADLINE)
        command = [sys.executable, "-m", "esg.ctl", "--control-socket", "control", "reload"]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment(**extra), stderr=subprocess.PIPE, text=True
        )
        connection, _ = listening.accept()
        with connection:
            assert connection.recv(100) == b'{"command": "reload"}\n'
            yield process, connection


SYSTEMD = [({"MAINPID": "1"}, 0), ({}, 143)]


@pytest.mark.parametrize(("extra", "code"), SYSTEMD)
def test_term_ends_it_with_what_systemd_accepts(tmp_path, extra, code):
    with asking(tmp_path, **extra) as (process, _):
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == code
    assert errors == "esgctl: ended by SIGTERM before there was an answer\n"


@pytest.mark.parametrize(("extra", "code"), SYSTEMD)
def test_a_term_that_was_sent_before_it_could_be_handled(tmp_path, extra, code):
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


@pytest.mark.parametrize(
    ("extra", "stopping", "code"),
    [({"MAINPID": "1"}, True, 0), ({"MAINPID": "1"}, False, 1), ({}, True, 1)],
)
def test_a_stop_is_a_failure_for_others_than_systemd(tmp_path, extra, stopping, code):
    with asking(tmp_path, **extra) as (process, connection):
        connection.sendall(encode_answer(Answer(False, "given up", "", stopping)))
        _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == code
    assert errors == "esgctl: error: given up\n"
