"""A worker that the kernel kills because its cgroup has no memory left, in a real cgroup."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.app import application
from tests.support.runner import Esg
from tests.support.waiting import eventually

LIMIT = 256 * 1024 * 1024
MOUNTS = {"memory": "memory.limit_in_bytes", "": "memory.max"}
"""The folders of cgroup hierarchies, with the file that limits memory: versions 1 and 2."""

EATS = """
import threading
def eat():
    held = []
    while os.path.exists("eat"):
        held.append(bytearray(os.urandom(1 << 20)) * 16)
def wait():
    while not os.path.exists("eat"):
        time.sleep(0.01)
    eat()
import time
threading.Thread(target=wait, daemon=True).start()
"""


@pytest.fixture
def cgroup(tmp_path: Path) -> Iterator[Path]:
    """A cgroup with a memory limit."""
    for mount, limit in MOUNTS.items():
        folder = Path("/sys/fs/cgroup", mount, f"esg-test-{os.getpid()}")
        with contextlib.suppress(OSError):
            folder.mkdir()
            try:
                (folder / limit).write_text(str(LIMIT))
            except OSError:
                folder.rmdir()
                continue
            with contextlib.suppress(OSError):
                (folder / "memory.swap.max").write_text("0")
            try:
                yield folder
            finally:
                eventually(lambda folder=folder: _removed(folder), "the cgroup is empty")
            return
    pytest.skip("no cgroup with a limit of memory can be made here; needs root")


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def test_the_log_says_that_a_worker_was_killed_for_lack_of_memory(
    cgroup: Path, tmp_path: Path
) -> None:
    prefix = ("sh", "-c", f'echo $$ >{cgroup}/cgroup.procs; "$@"; exit $?', "sh")
    esg = Esg(tmp_path, source=application(at_import=EATS), prefix=prefix)
    try:
        esg.wait_for_log("serving workers=")
        esg.claim("died: killed by SIGKILL from the kernel")
        (tmp_path / "eat").touch()
        esg.wait_for_log(
            r"died: killed by SIGKILL from the kernel, out of memory \(oom_kill in /sys/fs/cgroup/"
        )
        (tmp_path / "eat").unlink(missing_ok=True)
        esg.wait_for_log(" ready", count=2)
    finally:
        (tmp_path / "eat").unlink(missing_ok=True)
        esg.stop()
