"""Hides secret settings in environment variables: from the application, and from /proc."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from esg.settings.schema import SETTINGS

NAMES = tuple(
    variable for declared in SETTINGS.values() if declared.secret for variable in declared.variables
)
"""The variables whose values only the arbiter should see."""


def take() -> dict[str, str]:
    """Remove the secrets from this process's environment, so that no child inherits them.

    They are also erased from /proc/PID/environ (proc_pid_environ(5)) if possible. Errors are
    ignored: without /proc there is nothing to erase, and Python may have been built without ctypes.
    """
    found = {name: os.environ.pop(name) for name in NAMES if name in os.environ}
    if found:
        with contextlib.suppress(OSError, ImportError):
            _wipe([os.fsencode(f"{name}=") for name in found])
    return found


def _wipe(names: list[bytes]) -> None:
    """Overwrite these variables in the memory that the process was started with.

    unsetenv(3) has removed the pointers to them, so no code reads that memory any more.
    """
    import ctypes  # seldom needed, and slow to import

    # Fields 50 and 51, env_start and env_end (proc_pid_stat(5)), are 0 without permission to see
    # them.
    fields = Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])
    offset = 0
    for entry in ctypes.string_at(start, end - start).split(b"\0") if start else ():
        if entry.startswith(tuple(names)):
            ctypes.memset(start + offset, 0, len(entry))
        offset += len(entry) + 1
