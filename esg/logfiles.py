"""Log files: opened, written in whole lines, reopened under the same descriptor.

A file keeps its descriptor's number for life; reopening puts another file behind it (dup3(2)), so
whoever writes to it needs no notice. Nothing here raises because a log can't be written: a disk
that is full or a reader that has gone must not end a server.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable

from esg.errors import LogFileError

STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2}
"""Names of the standard streams, which can't be opened where they are sockets (as in systemd)."""

MODE = 0o640
"""Permissions of a log file that is created, less the umask: logs hold what clients sent."""

COMPLAINT_PAUSE = 60.0
"""Seconds between two complaints about one file that can't be written."""


_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY


def open_log(path: str) -> int:
    """Open a file to append to; returns the descriptor. Raises OSError.

    It never waits: a named pipe that nobody reads is refused (open(2), ENXIO).
    """
    fd = os.open(path, _FLAGS | os.O_CREAT | os.O_NONBLOCK, MODE)
    os.set_blocking(fd, True)
    return fd


def probe(path: str) -> int:
    """Raise the OSError that `open_log` would, but leave the file as it is, or not there.

    Returns a descriptor of /dev/null. A named pipe isn't opened, since its reader would notice.
    """
    path = os.path.realpath(path)  # a link to nowhere would have its target created
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        _require(os.path.dirname(path), os.W_OK | os.X_OK, path)
    else:
        if stat.S_ISFIFO(mode):
            _require(path, os.W_OK, path)
        else:
            os.close(os.open(path, _FLAGS | os.O_NONBLOCK))
    return os.open(os.devnull, _FLAGS)


def _require(place: str, access: int, path: str) -> None:
    """Raise the OSError for `path` that comes of having no such access to `place`."""
    if not os.access(place, access, effective_ids=True):
        code = errno.EACCES if os.path.exists(place) else errno.ENOENT
        raise OSError(code, os.strerror(code), path)


class LogFile:
    """A file that processes append whole lines to, or one of the standard streams."""

    def __init__(self, fd: int, path: str = "") -> None:
        """`path` is absolute; a stream has none, and is never reopened."""
        self.fd = fd
        self.path = path
        self.complain: Callable[[str], None] = complain_on_stderr
        """Told, in one line and not too often, that the file can't be written."""
        self._complained_at = -COMPLAINT_PAUSE
        self._torn = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.path or {1: "standard output", 2: "standard error"}.get(
            self.fd, f"fd {self.fd}"
        )

    def write(self, data: bytes) -> None:
        """Append lines. What can't be written is lost, and said to be."""
        if self._torn:
            data = b"\n" + data
        whole = data
        try:
            while data:
                data = data[os.write(self.fd, data) :]
            self._torn = False
        except OSError as error:
            # A disk can become full in the middle of a line; the next one must not go on there.
            self._torn = self._torn or len(data) < len(whole)
            now = time.monotonic()
            if now - self._complained_at >= COMPLAINT_PAUSE:
                self._complained_at = now
                self.complain(f"{self.name}: can't be written, lines are lost: {error}")

    def take_over(self, fd: int) -> None:
        """Write to the file behind `fd` from now on; `fd` itself is closed."""
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)
        self._torn = False
        self._complained_at = -COMPLAINT_PAUSE

    def reopen(self) -> None:
        """Open the path anew, as after a rotation. Raises OSError, and keeps the old file then."""
        if self.path:
            self.take_over(open_log(self.path))


class LogFiles:
    """The log files a process has open, each path once."""

    def __init__(self, opener: Callable[[str], int] = open_log) -> None:
        """`opener` gives a descriptor for a path, or raises OSError."""
        self._opener = opener
        self._files: dict[str, LogFile] = {}

    def open(self, path: str, stream: int, origin: str) -> LogFile:
        """The file at `path`; `-` is the descriptor `stream`.

        Raises LogFileError, naming the path's `origin`, if it can't be opened.
        """
        if path == "-" or path in STREAMS:
            return LogFile(STREAMS.get(path, stream))
        path = os.path.abspath(path)
        if path not in self._files:
            try:
                self._files[path] = LogFile(self._opener(path), path)
            except OSError as error:
                raise LogFileError(
                    f"{origin}: can't open the log file {path!r}: {error.strerror}"
                ) from None
        return self._files[path]

    def keep(self, wanted: Iterable[LogFile]) -> None:
        """Close the files that are not `wanted` any more."""
        paths = {file.path for file in wanted}
        for path in self._files.keys() - paths:
            os.close(self._files.pop(path).fd)

    def reopen(self) -> tuple[list[LogFile], list[str]]:
        """Open every path anew; gives the files that were, and what is wrong with the others."""
        reopened, errors = [], []
        for file in self._files.values():
            try:
                file.reopen()
            except OSError as error:
                errors.append(f"can't reopen the log file {file.path!r}: {error.strerror}")
            else:
                reopened.append(file)
        return reopened, errors

    def take_over(self, paths: Iterable[str], fds: Iterable[int]) -> None:
        """Put these open files behind the paths; one for a path that isn't open is closed."""
        for path, fd in zip(paths, fds, strict=False):
            if path in self._files:
                self._files[path].take_over(fd)
            else:
                os.close(fd)


def complain_on_stderr(line: str) -> None:
    """The last resort of a log that can't be written itself."""
    with contextlib.suppress(OSError):
        os.write(2, f"esg: {line}\n".encode("utf-8", "backslashreplace"))


def secure_standard_streams() -> None:
    """Put /dev/null behind standard streams that are closed.

    Else the next socket would get descriptor 1 or 2, and what is printed would go to a client.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            os.set_inheritable(fd, True)
    # They stay open for as long as the process lives.
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
