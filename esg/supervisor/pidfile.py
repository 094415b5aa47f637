"""The pid file: replaced as a whole, locked while the arbiter runs, removed if it is still ours.

The lock says whether the program runs. The number in the file doesn't: another process may have
been given the same pid. So a file that was left behind never prevents the startup. The lock is a
write lock ("Open file description locks" in fcntl(2)), which only a process with write permission
can take. With flock(2), any user who may read the file could lock it and prevent the startup.
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
"""Seconds to wait for another process that is writing the same file, which takes milliseconds."""

_LOCK = "hhqqi4x"
"""`struct flock` of fcntl(2): type, whence, start, length (0: the whole file), and pid (has to
be 0 for this kind of lock).
"""


class PidFile:
    """A file with the pid of this process, held until `release`."""

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd

    @classmethod
    def acquire(cls, path: str, origin: str) -> PidFile:
        """Write the file, or replace one that no process has locked.

        Raises PidFileError if a running process has locked it or it can't be written, and
        ConfigError if `path` is something other than a pid file.
        """
        path = os.path.abspath(path)
        try:
            with _sole_writer(path):
                while (fd := _replace(path, exists=_is_stale(path, origin))) is None:
                    continue
                return cls(path, fd)
        except OSError as error:
            raise PidFileError(f"{origin}: can't write {path!r}: {error.strerror}") from None

    def release(self) -> None:
        """Release the lock, and remove the file unless another has taken its place."""
        with contextlib.suppress(OSError):
            ours, there = os.fstat(self._fd), os.lstat(self._path)
            if (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino):
                os.unlink(self._path)
        self.close()

    def close(self) -> None:
        """Close the file without removing it. A forked child has to, or it would hold the lock."""
        os.close(self._fd)


@contextlib.contextmanager
def _sole_writer(path: str) -> Iterator[None]:
    """Keep other arbiters from writing the pid file, by locking a file only our user can open.

    Raises OSError if that file can't be created, or another arbiter holds it too long.
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
            raise OSError(errno.EAGAIN, f"another process holds the lock {lock!r}")
        time.sleep(0.005)


def _is_stale(path: str, origin: str) -> bool:
    """Whether there is a pid file, and the program that wrote it has ended.

    Raises PidFileError if that program still runs, ConfigError if it isn't a pid file.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        content = os.read(fd, 64) if stat.S_ISREG(os.fstat(fd).st_mode) else b"?"
        if content.strip() and not content.strip().isdigit():
            raise ConfigError(
                f"{origin}: {path!r} is not a pid file, so it is left alone; choose another path"
            )
        if _is_locked(fd):
            pid = content.decode("ascii").strip() or "?"
            raise PidFileError(
                f"{origin}: process {pid} is running with the pid file {path!r}; stop it, or "
                "choose another path"
            )
        return _is_at(fd, path)
    finally:
        os.close(fd)


def _is_locked(fd: int) -> bool:
    """Whether a process has a write lock; read locks don't count, since any reader can take one."""
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
        fcntl.flock(fd, fcntl.LOCK_EX)  # some sandboxes' kernels lack open file description locks


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:  # its owner has removed it in the meantime
        return False


def _replace(path: str, exists: bool) -> int | None:
    """Put a complete, locked file there; returns its descriptor.

    None if another process has put a file there in the meantime.
    """
    folder, name = os.path.split(path)
    own = os.path.join(folder, f".{name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(own)
    fd = os.open(own, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _lock(fd)  # before the file can be opened by others, so that none of them can lock it first
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
