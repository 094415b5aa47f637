"""The pid file: complete, locked, and never another process's."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import struct

import pytest

from esg.errors import ConfigError, PidFileError
from esg.supervisor import pidfile
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
    with pytest.raises(PidFileError, match=rf"^--pid: process {os.getpid()} is running with"):
        acquire(path)
    assert content(path) == f"{os.getpid()}\n"
    held.release()


def test_a_file_that_is_not_a_pid_file_is_not_replaced(path):
    with open(path, "w") as file:
        file.write("root:x:0:0\n")
    with pytest.raises(ConfigError, match="is not a pid file, so it is left alone"):
        acquire(path)
    assert content(path) == "root:x:0:0\n"
    with pytest.raises(ConfigError, match="is not a pid file"):
        acquire("/dev/null")


@pytest.mark.parametrize("where", ["/nowhere/esg.pid", "/tmp"])
def test_a_path_where_no_file_can_be_made_is_refused(where):
    with pytest.raises((PidFileError, ConfigError), match=rf"^--pid: .*{where}"):
        acquire(where)


def test_a_symbolic_link_is_not_followed(path):
    os.symlink("/etc/passwd", path)
    with pytest.raises(PidFileError, match="can't write"):
        acquire(path)


def test_a_pid_file_that_belongs_to_another_process_is_not_removed(path):
    held = acquire(path)
    os.unlink(path)
    other = acquire(path)
    held.release()
    assert content(path) == f"{os.getpid()}\n"
    other.release()


@pytest.mark.parametrize("moment", ["flock", "lstat"])
def test_a_pid_file_that_is_removed_during_the_check_is_no_obstacle(path, monkeypatch, moment):
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


def test_closing_the_pid_file_in_a_child_does_not_release_it(path):
    held = acquire(path)
    child = os.fork()
    if not child:
        held.close()
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(PidFileError):
        acquire(path)
    held.release()


def locks_of_readers(path):
    """The locks that a user can get with read permission only."""
    whole = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    yield lambda fd: fcntl.flock(fd, fcntl.LOCK_EX)
    yield lambda fd: fcntl.lockf(fd, fcntl.LOCK_SH)
    yield lambda fd: fcntl.fcntl(fd, fcntl.F_OFD_SETLK, whole)


@pytest.mark.parametrize("number", range(3))
def test_a_lock_by_a_user_with_read_permission_is_no_obstacle(path, number):
    with open(path, "w") as file:
        file.write("1\n")  # left behind by a crash
    with open(path) as reader:
        list(locks_of_readers(path))[number](reader.fileno())
        held = acquire(path)
        with open(path) as again:
            if number != 0:  # the lock that shows a running process can't be shared
                with pytest.raises(BlockingIOError):
                    fcntl.lockf(again.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        with pytest.raises(PidFileError, match="is running with"):
            acquire(path)
        held.release()


def test_flock_is_used_if_the_kernel_lacks_open_file_description_locks(path, monkeypatch):
    def refuse(*values):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    held = acquire(path)
    with pytest.raises(PidFileError, match="is running with"):
        acquire(path)
    held.release()
    acquire(path).release()


def test_the_umask_decides_who_may_read_it(path):
    before = os.umask(0o027)
    try:
        held = acquire(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640
    held.release()


def test_only_one_of_many_simultaneous_starts_acquires_it(path):
    with open(path, "w") as file:
        file.write("1\n")
    go, results = os.pipe(), os.pipe()
    children = []
    for _ in range(8):
        children.append(os.fork())
        if not children[-1]:
            os.close(go[1])
            os.read(go[0], 1)
            try:
                acquire(path)
                os.write(results[1], b"1")
            except PidFileError:
                os.write(results[1], b"0")
            signal.pause()
    os.write(go[1], b"x" * 8)
    outcome = b"".join(os.read(results[0], 1) for _ in children)
    os.close(go[1])
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    for fd in (go[0], *results):
        os.close(fd)
    assert sorted(outcome) == sorted(b"1" + b"0" * 7)
    assert os.listdir(os.path.dirname(path)) == ["esg.pid"]


def test_a_lock_that_another_start_holds_for_too_long_is_an_error(path, monkeypatch):
    monkeypatch.setattr(pidfile, "LONGEST_WAIT", 0.0)
    lock = os.path.join(os.path.dirname(path), ".esg.pid.lock")
    with open(lock, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(
            PidFileError, match=r"another process holds the lock '.*/\.esg\.pid\.lock'"
        ):
            acquire(path)
    acquire(path).release()
    assert os.listdir(os.path.dirname(path)) == []
