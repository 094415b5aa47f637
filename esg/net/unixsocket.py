"""UNIX sockets that are files: made with their owner and mode, and removed if they are still ours.

See unix(7). Nothing here deletes what isn't a socket, or one that somebody listens on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator

from esg.errors import ListenError
from esg.net.accounts import find_owner
from esg.settings.schema import Config

LONGEST_PATH = 107
"""Bytes that the name of a UNIX socket may have (unix(7), sun_path, less its NUL)."""

LONGEST_WAIT = 0.2
"""Seconds to wait for another start that is about to listen in the same folder: it takes less."""


@dataclasses.dataclass(frozen=True, slots=True)
class Access:
    """Who may connect: a file's mode, and its owner and group, -1 for those of the process."""

    mode: int = 0o666
    uid: int = -1
    gid: int = -1


def access(config: Config) -> Access:
    """What the settings say of it. Raises ConfigError for an owner that there isn't."""
    owner = find_owner(config.uds_owner, config.origin("uds_owner"))
    return Access(int(config.uds_mode, 8), *owner)


@dataclasses.dataclass(frozen=True, slots=True)
class SocketFile:
    """A file that a socket of ours is bound to; another one of that name isn't ours."""

    path: str
    device: int
    inode: int

    @classmethod
    def at(cls, path: str) -> SocketFile:
        """The file that is at `path` now."""
        status = os.lstat(path)
        return cls(os.path.abspath(path), status.st_dev, status.st_ino)

    @property
    def is_there(self) -> bool:
        """Whether it is still what is at its path.

        A socket that is open pins the inode of its file, so no other file can have its number.
        """
        try:
            status = os.lstat(self.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == (self.device, self.inode)

    def remove(self) -> None:
        """Delete the file, if it is still there and the same."""
        if self.is_there:
            with contextlib.suppress(OSError):
                os.unlink(self.path)


def listen(sock: socket.socket, path: str, access: Access, backlog: int) -> SocketFile:
    """Listen at `path`, in place of a socket there that nobody listens on.

    It has its owner and its mode before anybody can connect, which takes listen(2). Raises
    ListenError, whose text is the reason alone, or OSError; then there is no file.
    """
    with _sole_user_of(os.path.dirname(path) or "."):
        _make_room(path)
        file = _bind(sock, path, access.mode)
        try:
            if (access.uid, access.gid) != (-1, -1):
                # Who may write to the folder may have put a link in its place by now.
                os.chown(path, access.uid, access.gid, follow_symlinks=False)
            sock.listen(backlog)
        except OSError:
            file.remove()
            raise
    return file


@contextlib.contextmanager
def _sole_user_of(folder: str) -> Iterator[None]:
    """Keep other starts of this program out of a folder.

    Between bind(2) and listen(2) a socket looks like one that was left behind, and whoever starts
    at the same time would delete it. The lock is on the folder itself, so it leaves no file; where
    it isn't to be had, since the folder can't be read or something else has it locked, it goes
    without.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            give_up_at = time.monotonic() + LONGEST_WAIT
            while not _lock(fd) and time.monotonic() < give_up_at:
                time.sleep(0.01)
        yield


def _lock(fd: int) -> bool:
    """Whether the lock was free. Raises OSError where the file system has none."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _bind(sock: socket.socket, path: str, mode: int) -> SocketFile:
    """Make the file with its mode, which no link in its place can then direct elsewhere."""
    before = os.umask(0o777 & ~mode)  # bind(2) asks for 777
    try:
        sock.bind(path)
    finally:
        os.umask(before)
    return SocketFile.at(path)


def _make_room(path: str) -> None:
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        what = "a folder" if stat.S_ISDIR(kind) else "no socket"
        raise ListenError(f"there is a file of that name, which is {what}; choose another path")
    if is_served(path):
        raise ListenError("a program listens on it; stop that, or choose another path")
    os.unlink(path)


def is_served(path: str) -> bool:
    """Whether somebody listens on the socket at `path`. Raises OSError if that can't be told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                return False
            # A full queue, and a socket of another type, which says nothing of who reads it.
            if error.errno not in (errno.EAGAIN, errno.EPROTOTYPE):
                raise
    return True
