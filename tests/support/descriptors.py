"""The files behind the open descriptors of a process."""

from __future__ import annotations

import contextlib
import os
import re

import psutil

from tests.support.waiting import eventually


def open_files(process: psutil.Process) -> list[str]:
    """The file behind each descriptor, with N for the number of a socket or a worker."""
    folder = f"/proc/{process.pid}/fd"
    targets = []
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            targets.append(os.readlink(f"{folder}/{name}"))
    return sorted(re.sub(r"\d+", "N", target) for target in targets)


def wait_for_open_files(process: psutil.Process, expected: list[str]) -> None:
    """Wait until the process has exactly these descriptors open, as `open_files` lists them."""
    try:
        eventually(lambda: open_files(process) == expected, "its descriptors are as before")
    except AssertionError:
        assert open_files(process) == expected  # which shows the difference
        raise
