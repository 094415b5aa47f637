"""How much memory a process has: proc_pid_statm(5), proc_pid_smaps(5)."""

from __future__ import annotations

import os

_PAGE = os.sysconf("SC_PAGE_SIZE")


def memory_of(pid: int, enough: int) -> int | None:
    """The memory of a process, in bytes; None if it can't be read, as after its end.

    This is its PSS, in which a page that several processes share is divided among them. The kernel
    takes milliseconds to add it up, and reading it needs a permission. So it is only read if the
    RSS, in which shared pages count in full, is more than `enough`; otherwise this is the RSS.
    """
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            resident = int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return None
    if resident <= enough:
        return resident
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass  # without the permission, or in an old kernel
    return resident
