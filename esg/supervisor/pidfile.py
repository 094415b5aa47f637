"""The pid file: written whole, locked while we live, and removed only if it is still ours.

The lock says whether a program runs, not the number in the file: a number may have become another
process's. So a file that was left behind never blocks a start. It is a write lock (fcntl(2), "Open
file description locks"), which takes the permission to write; flock(2) would let any user who may
read the file hold a lock, and with that keep us from starting.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator

from esg.errors import ConfigError, PidFileError

LONGEST_WAIT = 2.0
"""Seconds to wait for another start with the same pid file, which takes milliseconds."""

_LOCK = "hhqqi4x"
"""struct flock of fcntl(2): type, whence, start, length (0 for all), pid (0 for such a lock)."""


class PidFile:
    """A file with the pid of this process, held until `release`."""

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd

    @classmethod
    def acquire(cls, path: str, origin: str) -> PidFile:
        """Write the file, in place of one that nobody holds.

        Raises PidFileError if another process holds it, or it can't be written, and ConfigError if
        there is something else of that name.
        """
        path = os.path.abspath(path)
        try:
            with _turn(path):
                while (fd := _replace(path, exists=_is_stale(path, origin))) is None:
                    continue
                return cls(path, fd)
        except OSError as error:
            raise PidFileError(f"{origin}: can't write {path!r}: {error.strerror}") from None

    def release(self) -> None:
        """Remove the file if it is still this one, and let go of it."""
        with contextlib.suppress(OSError):
            ours, there = os.fstat(self._fd), os.lstat(self._path)
            if (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino):
                os.unlink(self._path)
        self.close()

    def close(self) -> None:
        """Let go of the file and leave it; for a child, whose descriptor would hold the lock."""
        os.close(self._fd)


@contextlib.contextmanager
def _turn(path: str) -> Iterator[None]:
    """Keep other starts with this pid file out, by a file that only our user can open.

    Raises OSError if it can't be made, or another start takes too long.
    """
    folder, name = os.path.split(path)
    lock = os.path.join(folder, f".{name}.lock")
    give_up_at = time.monotonic() + LONGEST_WAIT
    while True:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(fd, lock):
                    try:
                        yield
                    finally:
                        os.unlink(lock)
                    return
        finally:
            os.close(fd)
        if time.monotonic() > give_up_at:
            raise OSError(errno.EAGAIN, f"another start holds {lock!r}")
        time.sleep(0.005)


def _is_stale(path: str, origin: str) -> bool:
    """Whether the pid file belongs to a program that has ended; False if there is no file.

    Raises PidFileError if the program runs, ConfigError if there is something else.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        content = os.read(fd, 64) if stat.S_ISREG(os.fstat(fd).st_mode) else b"?"
        if content.strip() and not content.strip().isdigit():
            raise ConfigError(f"{origin}: {path!r} is no pid file, so it stays; choose another")
        if _is_locked(fd):
            pid = content.decode("ascii").strip() or "?"
            raise PidFileError(
                f"{origin}: process {pid} holds {path!r}, so it runs already; stop it, or choose "
                "another file"
            )
        return _is_at(fd, path)
    finally:
        os.close(fd)


def _is_locked(fd: int) -> bool:
    """Whether somebody holds a write lock; read locks, which any reader can have, don't count."""
    wanted = struct.pack(_LOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    try:
        found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return _is_flocked(fd)
    return bool(struct.unpack(_LOCK, found)[0] != fcntl.F_UNLCK)


def _is_flocked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _lock(fd: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_LOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fcntl.flock(fd, fcntl.LOCK_EX)  # some sandboxes' kernels don't have such locks


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:  # whoever held it has removed it meanwhile
        return False


def _replace(path: str, exists: bool) -> int | None:
    """Put a file of ours there, locked and whole; None if somebody else was quicker."""
    folder, name = os.path.split(path)
    own = os.path.join(folder, f".{name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(own)
    fd = os.open(own, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _lock(fd)  # before others can read it, so that none of them can lock it first
        os.write(fd, f"{os.getpid()}\n".encode())
        mask = os.umask(0o077)
        os.umask(mask)
        os.fchmod(fd, 0o644 & ~mask)
        if exists:
            os.rename(own, path)
        else:
            os.link(own, path)
            os.unlink(own)
    except BaseException as error:
        os.close(fd)
        with contextlib.suppress(OSError):
            os.unlink(own)
        if isinstance(error, FileExistsError):
            return None
        raise
    return fd
