"""Opens log files, writes whole lines to them, and reopens them under the same descriptor.

A log file keeps its descriptor's number for life; reopening puts another file behind the number
(dup3(2)), so the code that writes to it needn't be notified. Nothing here raises an exception if a
log can't be written, and nothing waits: a full disk, a reader that has gone or a pipe that nobody
reads must not end or block a server. Lines that can't be written immediately are kept, up to a
limit; lines beyond the limit are lost and counted.

O_NONBLOCK belongs to the open file, which a standard stream shares with other processes, so it is
never set there. Instead, a pipe or a terminal is opened a second time, through /proc/self/fd, and
a socket is written to with MSG_DONTWAIT.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import select
import socket
import stat
import struct
import sys
import termios
import time
from collections import deque
from collections.abc import Callable, Iterable

from esg.errors import LogFileError

STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2}
"""Names of the standard streams. They can't be opened by name if they are sockets (systemd)."""

MODE = 0o640
"""Permissions of a new log file, less the umask. They are strict because logs contain clients'
data."""

PIPE_ATOMIC = 4096
"""Bytes that one write(2) puts into a pipe whole or not at all: pipe(7), PIPE_BUF."""

TERMINAL_ROOM = 256
"""Bytes that a terminal accepts without waiting if poll(2) reports it as writable."""

BACKLOG_LIMIT = 256 * 1024
"""Bytes of lines that a process keeps for a log that has no room at the moment."""

FLUSH_PAUSE = 0.01
"""Seconds between two checks for room."""

COMPLAINT_PAUSE = 60.0
"""Seconds between two complaints about one file that can't be written."""


_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY


MOST_LINKS = 40
"""The most symbolic links to follow on the way to a file: path_resolution(7)."""


def open_log(path: str, mode: int = MODE) -> int:
    """Open a file to append to; returns the descriptor. Raises OSError.

    Neither this nor writing waits: a named pipe that nobody reads is refused (open(2), ENXIO).

    Root only follows symbolic links that root owns. Otherwise users who may write to a folder on
    the way could use a link of their own to make root append lines to any file, with text that
    clients choose.
    """
    flags = _FLAGS | os.O_CREAT | os.O_NONBLOCK
    if os.geteuid() != 0:
        return os.open(path, flags, mode)
    folder, name = _place(path)
    try:
        if folder < 0:
            return os.open(name, flags, mode)
        fd = os.open(name, flags | os.O_NOFOLLOW, mode, dir_fd=folder)
        try:
            _check_links(fd, folder)
        except OSError:
            os.close(fd)
            raise
        return fd
    finally:
        if folder >= 0:
            os.close(folder)


def _place(path: str) -> tuple[int, str]:
    """The folder that a path leads to, open, and the name of the file in it.

    The folder is -1 for paths into /proc, whose links can't be followed by their text. Raises
    OSError for a symbolic link that root doesn't own. Each step begins at the open folder of the
    step before, so that nobody can replace a folder by a link meanwhile.
    """
    flags = os.O_PATH | os.O_CLOEXEC
    folder = os.open("/", flags)
    steps = deque(os.path.abspath(path).split("/"))
    links = 0
    at_root = True
    try:
        while True:
            step = steps.popleft()
            if step in ("", "."):
                if not steps:
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
                continue
            if at_root and step == "proc":
                os.close(folder)
                return -1, "/".join(("", step, *steps))
            try:
                found = os.open(step, flags | os.O_NOFOLLOW, dir_fd=folder)
            except FileNotFoundError:
                if steps:
                    raise
                return folder, step
            status = os.fstat(found)
            if stat.S_ISLNK(status.st_mode):
                try:
                    links += 1
                    if status.st_uid != 0:
                        raise _refused_link(step, status.st_uid)
                    if links > MOST_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                    target = os.readlink("", dir_fd=found)
                finally:
                    os.close(found)
                steps.extendleft(reversed(target.split("/")))
                if target.startswith("/"):
                    os.close(folder)
                    folder, at_root = os.open("/", flags), True
            elif steps:
                os.close(folder)
                folder, at_root = found, False
            else:
                os.close(found)
                return folder, step
    except BaseException:
        os.close(folder)
        raise


def _refused_link(name: str, owner: int) -> OSError:
    return OSError(
        errno.ELOOP,
        f"{name!r} is a symbolic link of user {owner}, and as root, ESG only follows links of root",
    )


def _check_links(fd: int, folder: int) -> None:
    """Raise OSError for a file with several names if users other than root may have added one."""
    status, place = os.fstat(fd), os.fstat(folder)
    is_open = place.st_uid != 0 or place.st_mode & 0o022
    if stat.S_ISREG(status.st_mode) and status.st_nlink > 1 and is_open:
        raise OSError(
            errno.EMLINK,
            "it has several names (hard links), in a folder that other users may write to",
        )


def probe(path: str) -> int:
    """Raise the OSError that `open_log` would raise, without creating or changing the file.

    Returns a descriptor of /dev/null. A named pipe isn't opened, since its reader would notice.
    """
    if os.geteuid() == 0:
        with contextlib.suppress(FileNotFoundError):
            folder, _ = _place(path)
            if folder >= 0:
                os.close(folder)
    path = os.path.realpath(path)  # `open_log` would create the missing target of a link
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
    """Raise an OSError about `path` if this process lacks `access` to `place`."""
    if not os.access(place, access, effective_ids=True):
        code = errno.EACCES if os.path.exists(place) else errno.ENOENT
        raise OSError(code, os.strerror(code), path)


Sink = Callable[[bytes], int]
"""Writes as much as there is room for, without waiting. Raises BlockingIOError if there is none."""


class LogFile:
    """A file to which processes append whole lines, or one of the standard streams."""

    def __init__(self, fd: int, path: str = "") -> None:
        """`path` is absolute; a stream has none, and is never reopened."""
        self.fd = fd
        self.path = path
        self.complain: Callable[[str], None] = complain_on_stderr
        """Called with a line that says why the file can't be written, at most once a minute."""
        self.report: Callable[[str], None] = complain_on_stderr
        """Called with a line that has the number of lost lines, once the file can be written."""
        self._complained_at = -COMPLAINT_PAUSE
        self._torn = False
        self._lost = 0
        self._backlog: deque[bytes] = deque()
        self._backlog_size = 0
        self._backlog_owner = 0
        self._look()

    def _look(self) -> None:
        """Find out what kind of file it is, and how to write to it without waiting."""
        self._sink, self._is_pipe = _own_sink(self.fd) if self.path else _stream_sink(self.fd)

    @property
    def name(self) -> str:
        """Its name in messages."""
        return self.path or {1: "standard output", 2: "standard error"}.get(
            self.fd, f"fd {self.fd}"
        )

    @property
    def has_backlog(self) -> bool:
        """Whether lines are kept because there was no room; `flush` tries to write them."""
        return bool(self._backlog)

    def write(self, data: bytes) -> None:
        """Append lines. They are kept if there is no room now, and lost if too many are kept."""
        if self._backlog and not self._write_backlog():
            self._keep(data)
            return
        lost = self._lost
        rest = self._put(data)
        if rest:
            self._keep(rest)
        elif lost and lost == self._lost:
            self._report_loss()

    def flush(self, limit: float = 0.0) -> None:
        """Write the kept lines, and wait up to `limit` seconds for room."""
        if not self._backlog:
            return
        deadline = time.monotonic() + limit
        lost = self._lost
        while not self._write_backlog():
            if time.monotonic() >= deadline:
                return
            time.sleep(FLUSH_PAUSE)
        if lost and lost == self._lost:
            self._report_loss()

    def _put(self, data: bytes) -> bytes:
        """Write lines; returns the rest if there is no room. Any other error loses them."""
        done = 0
        try:
            if self._torn:
                self._sink(b"\n")
                self._torn = False
            pieces = [data]
            if self._is_pipe and len(data) > PIPE_ATOMIC and not _has_room(self.fd, len(data)):
                pieces = _pieces(data)
            for piece in pieces:
                end = done + len(piece)
                while done < end:
                    done += self._sink(data[done:end])
        except BlockingIOError:
            return data[done:]
        except OSError as error:
            # A disk can become full in the middle of a line; the next line must not continue it.
            self._torn = self._torn or data[done - 1 : done] not in (b"", b"\n")
            self._lose(data[done:], str(error))
        return b""

    def _keep(self, data: bytes) -> None:
        if self._backlog and self._backlog_size + len(data) > BACKLOG_LIMIT:
            self._lose(data, "nobody reads it")
            return
        self._backlog_owner = os.getpid()  # a forked child must not write it a second time
        self._backlog.append(data)
        self._backlog_size += len(data)

    def _write_backlog(self) -> bool:
        """Write the kept lines; returns whether all of them were written."""
        if self._backlog_owner != os.getpid():  # it belongs to the parent, which writes it itself
            self._backlog.clear()
            self._backlog_size = self._lost = 0
        while self._backlog:
            data = self._backlog.popleft()
            rest = self._put(data)
            self._backlog_size -= len(data) - len(rest)
            if rest:
                self._backlog.appendleft(rest)
                return False
        return True

    def _lose(self, data: bytes, why: str) -> None:
        self._lost += max(1, data.count(b"\n"))
        now = time.monotonic()
        if now - self._complained_at >= COMPLAINT_PAUSE:
            self._complained_at = now
            self.complain(f"{self.name}: can't be written, lines are lost: {why}")

    def _report_loss(self) -> None:
        lost, self._lost = self._lost, 0
        lines = "1 line" if lost == 1 else f"{lost} lines"
        self.report(f"{self.name}: lost {lines}; it can be written again")

    def take_over(self, fd: int) -> None:
        """Write to the file behind `fd` from now on; `fd` itself is closed."""
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)
        self._torn = False
        self._complained_at = -COMPLAINT_PAUSE
        self._look()

    def reopen(self) -> None:
        """Reopen the path, for example after a rotation. Raises OSError, and keeps the old file."""
        if self.path:
            self.take_over(open_log(self.path))


class LineStream:
    """The stream interface that a `logging.StreamHandler` needs, for writing without waiting."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, file: LogFile) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Write whole lines."""
        self._file.write(text.encode(self.encoding, self.errors))
        return len(text)

    def flush(self) -> None:
        """Do nothing: `LogFile` has already written every line that there was room for."""

    def fileno(self) -> int:
        """The descriptor of the standard stream."""
        return self._file.fd

    def isatty(self) -> bool:
        """Whether the standard stream is a terminal."""
        return os.isatty(self._file.fd)


# -- writing without waiting ---------------------------------------------------------------


def _own_sink(fd: int) -> tuple[Sink, bool]:
    """How to write to a file that `open_log` opened, and whether it is a pipe."""
    return (lambda data: os.write(fd, data)), stat.S_ISFIFO(os.fstat(fd).st_mode)


_streams: dict[int, tuple[tuple[int, int], Sink, bool]] = {}
"""The sinks of standard streams, shared by the whole process, and the file that each is for."""

_stream_fds: dict[int, int] = {}
"""The additional descriptors that these sinks use."""


def _stream_sink(fd: int) -> tuple[Sink, bool]:
    """How to write to a descriptor that was inherited, and whether it is a pipe.

    The process that the operator started is the first to call this: a worker that runs as another
    user may not have the permission to open the stream again.
    """
    try:
        status = os.fstat(fd)
    except OSError:  # it is closed; a write will raise an error
        return (lambda data: os.write(fd, data)), False
    identity = status.st_dev, status.st_ino
    known = _streams.get(fd)
    if known is None or known[0] != identity:
        is_pipe = stat.S_ISFIFO(status.st_mode)
        _streams[fd] = known = identity, _sink_for(fd, status.st_mode), is_pipe
    return known[1:]


def _sink_for(fd: int, mode: int) -> Sink:
    if stat.S_ISSOCK(mode):
        with contextlib.suppress(OSError):
            sock = socket.socket(fileno=fd)  # fails if Python doesn't know the kind of socket
            sock.detach()
            return functools.partial(_send, fd)
    if stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and os.isatty(fd)):
        try:
            again = os.open(f"/proc/self/fd/{fd}", _FLAGS | os.O_NONBLOCK)
        except OSError:  # no permission, or no reader, or no /proc
            return functools.partial(_write_if_ready, fd)
        again = _apart(again)
        number = _stream_fds.setdefault(fd, again)
        if number != again:  # the stream has another file now; keep the number that writers use
            os.dup2(again, number, inheritable=False)
            os.close(again)
        return lambda data: os.write(number, data)
    return lambda data: os.write(fd, data)


def _apart(fd: int) -> int:
    """The same file under a number that can't be mistaken for a socket that was handed over.

    ESG writes to the log before the arbiter reads LISTEN_FDS (sd_listen_fds(3)). This variable says
    how many descriptors from 3 on are handed-over sockets, and it may be too high.
    """
    try:
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3 + int(os.environ.get("LISTEN_FDS", "0")))
    except (OSError, ValueError, OverflowError):  # no such number: then it is refused later
        return fd
    os.close(fd)
    return moved


def stream_fds() -> list[int]:
    """The descriptors, besides the standard streams' own, that are needed to write to them."""
    return list(_stream_fds.values())


def _send(fd: int, data: bytes) -> int:
    sock = socket.socket(fileno=fd)
    try:
        return sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    finally:
        sock.detach()


def _write_if_ready(fd: int, data: bytes) -> int:
    """Write to a file whose writes may block, if it has room.

    If poll(2) reports a pipe as writable, PIPE_BUF bytes fit, unless another process uses up the
    room at the same moment. RWF_NOWAIT doesn't have this race (Linux 6.4 and later, for pipes).
    """
    try:
        return os.pwritev(fd, [data], -1, os.RWF_NOWAIT)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ESPIPE):
            raise
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if not any(events & ~select.POLLHUP for _, events in poll.poll(0)):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    most = TERMINAL_ROOM if os.isatty(fd) else PIPE_ATOMIC
    return os.write(fd, data[:most])


def _has_room(fd: int, size: int) -> bool:
    """Whether a pipe certainly has room for this many bytes at once.

    Its buffers are pages. Two neighbouring buffers together hold more than one page, since
    otherwise the second write would have been added to the first buffer (pipe(7)).
    """
    try:
        (unread,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))
        capacity: int = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    except OSError:
        return False
    return bool(size + 2 * unread + 3 * PIPE_ATOMIC <= capacity)


def _pieces(data: bytes) -> list[bytes]:
    """Group lines into pieces that a pipe takes whole or not at all; a longer line is one piece."""
    pieces: list[bytes] = []
    size = PIPE_ATOMIC
    for line in data.splitlines(keepends=True):
        if size + len(line) > PIPE_ATOMIC:
            pieces.append(line)
            size = len(line)
        else:
            pieces[-1] += line
            size += len(line)
    return pieces


class LogFiles:
    """The log files that a process has open; each path is open once."""

    def __init__(self, opener: Callable[[str], int] = open_log) -> None:
        """`opener` opens a path and returns a descriptor, or raises OSError."""
        self._opener = opener
        self._files: dict[str, LogFile] = {}
        self._streams: dict[int, LogFile] = {}

    def open(self, path: str, stream: int, origin: str) -> LogFile:
        """The file at `path`; `-` is the descriptor `stream`.

        Raises LogFileError, which names the path's `origin`, if the file can't be opened.
        """
        if path == "-" or path in STREAMS:
            fd = STREAMS.get(path, stream)
            return self._streams.setdefault(fd, LogFile(fd))
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
        """Close all files except the `wanted` ones."""
        paths = {file.path for file in wanted}
        for path in self._files.keys() - paths:
            os.close(self._files.pop(path).fd)

    def reopen(self) -> tuple[list[LogFile], list[str]]:
        """Reopen every path.

        Returns the reopened files, and an error message for each of the others.
        """
        reopened, errors = [], []
        for file in self._files.values():
            try:
                file.reopen()
            except OSError as error:
                errors.append(f"can't reopen the log file {file.path!r}: {error.strerror}")
            else:
                reopened.append(file)
        return reopened, errors

    def has_backlog(self) -> bool:
        """Whether any file keeps lines because there was no room."""
        return any(file.has_backlog for file in self._all())

    def flush(self, limit: float = 0.0) -> None:
        """Write the lines that the files keep, and wait up to `limit` seconds for room."""
        deadline = time.monotonic() + limit
        for file in self._all():
            file.flush(deadline - time.monotonic())

    def _all(self) -> list[LogFile]:
        return [*self._streams.values(), *self._files.values()]

    def take_over(self, paths: Iterable[str], fds: Iterable[int]) -> None:
        """Replace the files at these paths; a descriptor for a path that isn't open is closed."""
        for path, fd in zip(paths, fds, strict=False):
            if path in self._files:
                self._files[path].take_over(fd)
            else:
                os.close(fd)


def complain_on_stderr(line: str) -> None:
    """The last resort if the log itself can't be written. It doesn't wait either."""
    with contextlib.suppress(OSError):
        sink, _ = _stream_sink(2)
        sink(f"esg: {line}\n".encode("utf-8", "backslashreplace"))


def secure_standard_streams() -> None:
    """Open /dev/null for standard streams that are closed.

    Otherwise the next socket would get descriptor 1 or 2, and printed text would go to a client.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            os.set_inheritable(fd, True)
    # They stay open until the process ends.
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
