"""The pid file: written whole, locked while we live, and removed only if it is still ours.

The lock (flock(2)) says whether a program runs, not the number in the file: a number may have
become another process's. So a file that was left behind never blocks a start.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator

from esg.errors import ConfigError, PidFileError


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
            while True:
                with _stale(path, origin) as free:
                    fd = _replace(path, free)
                if fd is not None:
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
def _stale(path: str, origin: str) -> Iterator[bool]:
    """Hold the lock of the file that is there; gives whether there is one, still."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        yield False
        return
    try:
        content = os.read(fd, 64) if stat.S_ISREG(os.fstat(fd).st_mode) else b"?"
        if content.strip() and not content.strip().isdigit():
            raise ConfigError(f"{origin}: {path!r} is no pid file, so it stays; choose another")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = content.decode("ascii").strip() or "?"
            raise PidFileError(
                f"{origin}: process {pid} holds {path!r}, so it runs already; stop it, or choose "
                "another file"
            ) from None
        yield _is_at(fd, path)
    finally:
        os.close(fd)


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
    fd = os.open(own, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, f"{os.getpid()}\n".encode())
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
