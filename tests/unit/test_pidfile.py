"""The pid file: whole, locked, and nobody else's."""

from __future__ import annotations

import fcntl
import os

import pytest

from esg.errors import ConfigError, PidFileError
from esg.supervisor.pidfile import PidFile


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "esg.pid")


def acquire(path):
    return PidFile.acquire(path, "--pid")


def content(path):
    with open(path) as file:
        return file.read()


def test_it_has_the_pid_and_is_removed(path):
    before = os.listdir("/proc/self/fd")
    held = acquire(path)
    assert content(path) == f"{os.getpid()}\n"
    assert os.listdir(os.path.dirname(path)) == ["esg.pid"]
    held.release()
    assert os.listdir(os.path.dirname(path)) == []
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("text", ["", "1\n", f"{os.getppid()}\n", "999999999"])
def test_a_file_that_nobody_holds_is_replaced(path, text):
    with open(path, "w") as file:
        file.write(text)
    acquire(path).release()


def test_a_file_that_is_held_stays(path):
    held = acquire(path)
    with pytest.raises(PidFileError, match=rf"^--pid: process {os.getpid()} holds .*runs already"):
        acquire(path)
    assert content(path) == f"{os.getpid()}\n"
    held.release()


def test_what_is_no_pid_file_stays(path):
    with open(path, "w") as file:
        file.write("root:x:0:0\n")
    with pytest.raises(ConfigError, match="is no pid file, so it stays"):
        acquire(path)
    assert content(path) == "root:x:0:0\n"
    with pytest.raises(ConfigError, match="is no pid file"):
        acquire("/dev/null")


@pytest.mark.parametrize("where", ["/nowhere/esg.pid", "/tmp"])
def test_where_no_file_can_be(where):
    with pytest.raises((PidFileError, ConfigError), match=rf"^--pid: .*{where}"):
        acquire(where)


def test_a_symbolic_link_is_not_followed(path):
    os.symlink("/etc/passwd", path)
    with pytest.raises(PidFileError, match="can't write"):
        acquire(path)


def test_one_that_is_anothers_by_now_is_left(path):
    held = acquire(path)
    os.unlink(path)
    other = acquire(path)
    held.release()
    assert content(path) == f"{os.getpid()}\n"
    other.release()


@pytest.mark.parametrize("moment", ["flock", "lstat"])
def test_one_that_goes_while_it_is_looked_at_is_no_obstacle(path, monkeypatch, moment):
    """Its holder may end at any time."""
    with open(path, "w") as file:
        file.write("1\n")
    module = fcntl if moment == "flock" else os
    real = getattr(module, moment)

    def meanwhile(*values):
        monkeypatch.undo()
        os.unlink(path)
        return real(*values)

    monkeypatch.setattr(module, moment, meanwhile)
    acquire(path).release()
    assert os.listdir(os.path.dirname(path)) == []


def test_a_child_that_lets_go_does_not_let_go_for_us(path):
    held = acquire(path)
    child = os.fork()
    if not child:
        held.close()
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(PidFileError):
        acquire(path)
    held.release()
