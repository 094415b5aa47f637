"""Makes the files of UNIX sockets, with owner and mode, and removes them if they are still ours.

See unix(7). This module only deletes sockets, and only those that no program listens on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator

from esg.errors import ListenError
from esg.frozen import frozen
from esg.net.accounts import find_owner
from esg.settings.schema import Config

LONGEST_PATH = 107
"""The most bytes in the name of a UNIX socket (unix(7), sun_path, less its NUL)."""

LONGEST_WAIT = 0.2
"""Seconds to wait for another ESG that is starting to listen in the same folder; it needs less."""


@frozen
class Access:
    """Who may connect: a file's mode, and its owner and group, -1 for those of the process."""

    mode: int = 0o666
    uid: int = -1
    gid: int = -1


def access(config: Config) -> Access:
    """The access that the settings ask for. Raises ConfigError for an unknown owner."""
    owner = find_owner(config.uds_owner, config.origin("uds_owner"))
    return Access(int(config.uds_mode, 8), *owner)


@frozen
class SocketFile:
    """The file that a socket of ours is bound to, told apart from a later file of that name."""

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
        """Whether the same file is still at the path.

        An open socket keeps the inode of its file in use, so no other file can get its number.
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
    """Listen at `path`. A socket at that path that no program listens on is replaced.

    The file gets its owner and mode before listen(2), so before any client can connect. Raises
    ListenError, whose text is only the reason, or OSError; no file is left in that case.
    """
    with _sole_user_of(os.path.dirname(path) or "."):
        _make_room(path)
        file = _bind(sock, path, access.mode)
        try:
            if (access.uid, access.gid) != (-1, -1):
                # A user who may write to the folder may have replaced the file by a link by now.
                os.chown(path, access.uid, access.gid, follow_symlinks=False)
            sock.listen(backlog)
        except OSError:
            file.remove()
            raise
    return file


@contextlib.contextmanager
def _sole_user_of(folder: str) -> Iterator[None]:
    """Prevent another ESG that starts at the same time from listening in a folder.

    Between bind(2) and listen(2) a socket looks like an abandoned one, and the other ESG would
    delete it. The lock is on the folder itself, so it needs no file. If the lock isn't available,
    because the folder can't be read or another program has locked it, this goes on without it.
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
    """Whether the lock was free. Raises OSError if the file system doesn't support locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _bind(sock: socket.socket, path: str, mode: int) -> SocketFile:
    """Make the file with its mode. chmod(2) after bind(2) might follow a link in its place."""
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
        what = "is a folder" if stat.S_ISDIR(kind) else "isn't a socket"
        raise ListenError(f"there is a file of that name, which {what}; choose another path")
    if is_served(path):
        raise ListenError("a program listens on it; stop that program, or choose another path")
    os.unlink(path)


def is_served(path: str) -> bool:
    """Whether a program listens on the socket at `path`. Raises OSError if this is unknown."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                return False
            # EAGAIN: its queue is full. EPROTOTYPE: a socket of another type, which may be in use.
            if error.errno not in (errno.EAGAIN, errno.EPROTOTYPE):
                raise
    return True
