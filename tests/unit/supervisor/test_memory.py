"""The memory of a process, as the arbiter reads it."""

from __future__ import annotations

import builtins
import mmap
import os
import signal
import subprocess
import sys

import pytest

from esg.supervisor.memory import memory_of

MIB = 1024 * 1024


def test_a_small_rss_is_the_result() -> None:
    before = memory_of(os.getpid(), sys.maxsize)
    assert before is not None
    with mmap.mmap(-1, 32 * MIB) as memory:
        for at in range(0, len(memory), mmap.PAGESIZE):
            memory[at] = 1
        after = memory_of(os.getpid(), sys.maxsize)
        assert after is not None
        assert 24 * MIB < after - before < 48 * MIB


def test_shared_pages_count_in_part_if_the_rss_is_large() -> None:
    with mmap.mmap(-1, 32 * MIB, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS) as memory:
        for at in range(0, len(memory), mmap.PAGESIZE):
            memory[at] = 1
        pid = os.fork()
        if not pid:
            sum(memory[at] for at in range(0, len(memory), mmap.PAGESIZE))  # maps its pages
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
        try:
            os.waitpid(pid, os.WUNTRACED)
            rss, pss = memory_of(os.getpid(), sys.maxsize), memory_of(os.getpid(), 0)
            assert rss is not None
            assert pss is not None
            assert rss - pss > 14 * MIB
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_without_the_permission_the_result_is_the_rss(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.open

    def refusing(path: str, mode: str) -> object:
        if path.endswith("smaps_rollup"):
            raise PermissionError
        return real(path, mode)

    monkeypatch.setattr(builtins, "open", refusing)
    rss, other = memory_of(os.getpid(), sys.maxsize), memory_of(os.getpid(), 0)
    assert rss is not None
    assert other is not None
    assert abs(other - rss) < MIB


def test_a_process_that_has_ended_has_none() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert memory_of(process.pid, 0) is None
