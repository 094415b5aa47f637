"""UNIX sockets that are files."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import threading

import pytest

from esg.errors import ListenError
from esg.net import unixsocket
from esg.net.unixsocket import Access, SocketFile


class Watched(socket.socket):
    """A socket that does something between bind(2) and listen(2)."""

    def __init__(self, meanwhile):
        super().__init__(socket.AF_UNIX)
        self.meanwhile = meanwhile

    def listen(self, backlog):
        self.meanwhile()
        super().listen(backlog)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "web")


def test_the_file_has_its_mode_from_the_beginning(path):
    seen = []
    with Watched(lambda: seen.append(os.lstat(path).st_mode)) as sock:
        unixsocket.listen(sock, path, Access(0o640), 16)
    assert [stat.S_IMODE(mode) for mode in seen] == [0o640]
    assert os.umask(os.umask(0o22)) != 0o137, "the umask is as it was"


def test_a_link_in_place_of_the_file_is_not_followed(path, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)

    class Raced(socket.socket):
        def bind(self, name):
            super().bind(name)
            os.unlink(name)
            os.symlink(victim, name)

    before = os.stat(victim)
    uid = 65534 if os.geteuid() == 0 else os.geteuid()
    with Raced(socket.AF_UNIX) as sock:
        unixsocket.listen(sock, path, Access(0o666, uid, -1), 16)
    after = os.stat(victim)
    assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid)


def test_two_starts_do_not_take_each_others_socket(path):
    """The second one starts when the first has made its file but doesn't listen on it yet."""
    outcome = []

    def second():
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                unixsocket.listen(sock, path, Access(), 16)
            except ListenError as error:
                outcome.append(str(error))

    thread = threading.Thread(target=second)

    def begin_second():
        thread.start()
        thread.join(0.1)  # it must wait; if it didn't, it would have ended by now
        outcome.append("the first listens")

    with Watched(begin_second) as sock:
        file = unixsocket.listen(sock, path, Access(), 16)
        thread.join(10)
        assert outcome == [
            "the first listens",
            "a program listens on it; stop that program, or choose another path",
        ]
        assert file.is_there


def test_a_folder_that_another_program_has_locked_is_still_used(path, tmp_path, monkeypatch):
    monkeypatch.setattr(unixsocket, "LONGEST_WAIT", 0.05)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with socket.socket(socket.AF_UNIX) as sock:
            assert unixsocket.listen(sock, path, Access(), 16).is_there
    finally:
        os.close(folder)


def test_a_socket_that_cannot_be_listened_on_leaves_no_file(path):
    def fail():
        raise OSError("no")

    with Watched(fail) as sock, pytest.raises(OSError, match="no"):
        unixsocket.listen(sock, path, Access(), 16)
    assert not os.path.lexists(path)


def test_a_file_of_another_program_is_not_removed(path):
    with socket.socket(socket.AF_UNIX) as sock:
        file = unixsocket.listen(sock, path, Access(), 16)
        os.unlink(path)
        with open(path, "w"):
            assert not file.is_there
        file.remove()
    assert os.path.lexists(path)
    assert SocketFile.at(path).is_there
