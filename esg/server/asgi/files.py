"""The files that an application has the server send (extensions pathsend and zerocopysend)."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO


def open_file(path: str) -> BinaryIO:
    """Open a regular file.

    Raises OSError, and ValueError for files that may block, such as a FIFO.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return os.fdopen(fd, "rb")
    os.close(fd)
    raise ValueError(f"http.response.pathsend sends regular files only, not {path!r}")


def file_part(file: int | BinaryIO, offset: int | None, count: int | None) -> tuple[int, int, int]:
    """Descriptor, offset and size in bytes of a part of an open file.

    Without an offset the part begins at the file's position, which then moves to the part's end.
    Without a count it ends with the file. Raises ValueError if the file isn't a regular file.
    """
    fd = file if isinstance(file, int) else file.fileno()
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("http.response.zerocopysend sends regular files only")
    begin = os.lseek(fd, 0, os.SEEK_CUR) if offset is None else offset
    size = max(0, status.st_size - begin) if count is None else count
    if offset is None:
        os.lseek(fd, begin + size, os.SEEK_SET)
    return fd, begin, size
