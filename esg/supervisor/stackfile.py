"""The memory file that a worker's stacks are written to. A worker may do anything to it."""

from __future__ import annotations

import errno
import fcntl
import os

STACK_LIMIT = 1 << 20
"""The most bytes of stacks that are read at once; if there are more, the last ones are read."""

STANDARD_ERROR = 2

_MFD_NOEXEC_SEAL = 0x0008
"""<linux/memfd.h>, since Linux 6.3; where vm.memfd_noexec is 2, no file is made without it."""

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class StackFile:
    """The file that one worker's `faulthandler` writes to, and how much of it has been read.

    The worker has the same descriptor. The seal keeps it from cutting the file short
    (fcntl(2), F_SEAL_SHRINK). The size may be wrong: at most `STACK_LIMIT` bytes
    are read, and fewer aren't an error.
    """

    def __init__(self, name: str) -> None:
        """Make the file. Raises OSError if there is no memory or no descriptor for it.

        If a sandbox denies memory files, there is none, and `problem` says so. The worker then
        writes its stacks to its standard error.
        """
        self.problem = ""
        self._read = 0
        try:
            self._fd = _sealed_file(name)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise
            self._fd = -1
            self.problem = (
                f"no memory file for the stacks of workers: memfd_create(2): {error.strerror}; "
                "workers write their stacks to standard error instead; allow memfd_create in the "
                "sandbox (seccomp, vm.memfd_noexec) to have them in the log"
            )

    @property
    def workers_fd(self) -> int:
        """The descriptor that the worker writes its stacks to."""
        return self._fd if self._fd >= 0 else STANDARD_ERROR

    @property
    def exists(self) -> bool:
        """Whether there is a file to read."""
        return self._fd >= 0

    def skip(self) -> None:
        """Ignore what has been written so far."""
        if self.exists:
            self._read = os.fstat(self._fd).st_size

    def read(self) -> str:
        """The text that was written since `skip` or the last call; empty if there is no file."""
        if not self.exists:
            return ""
        size = os.fstat(self._fd).st_size
        start = max(min(self._read, size), size - STACK_LIMIT)
        self._read = size
        written = os.pread(self._fd, STACK_LIMIT, start).replace(b"\0", b"")
        return written.decode("utf-8", "backslashreplace").strip()

    def close(self) -> None:
        """Close this process's descriptor; more than once does no harm."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _sealed_file(name: str) -> int:
    """A memory file that can grow but not shrink. Raises OSError."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:  # kernels that don't know the flag return this
            raise
        fd = os.memfd_create(name, flags)
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd
