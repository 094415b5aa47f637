"""UNIX sockets that are files: made with their owner and mode, and removed if they are still ours.

See unix(7). Nothing here deletes what isn't a socket, or one that somebody listens on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
import stat

from esg.accounts import find_owner
from esg.config import Config
from esg.errors import ListenError

LONGEST_PATH = 107
"""Bytes that the name of a UNIX socket may have (unix(7), sun_path, less its NUL)."""


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

    def remove(self) -> None:
        """Delete the file, if it is still there and the same."""
        with contextlib.suppress(OSError):
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == (self.device, self.inode):
                os.unlink(self.path)


def bind(sock: socket.socket, path: str, access: Access) -> SocketFile:
    """Bind to `path`, in place of a socket there that nobody listens on.

    It has its owner and its mode before anybody can connect, which takes listen(2). Raises
    ListenError, whose text is the reason alone, or OSError.
    """
    _make_room(path)
    sock.bind(path)
    file = SocketFile.at(path)
    try:
        if (access.uid, access.gid) != (-1, -1):
            os.chown(path, access.uid, access.gid)
        os.chmod(path, access.mode)
    except OSError:
        file.remove()
        raise
    return file


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
