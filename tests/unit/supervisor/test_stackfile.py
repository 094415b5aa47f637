"""The file of a worker's stacks, even if the worker tampers with it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from esg.supervisor.stackfile import STACK_LIMIT, StackFile


@pytest.fixture
def stacks() -> Iterator[StackFile]:
    file = StackFile("test")
    yield file
    file.close()


def test_written_stacks_are_read_once(stacks: StackFile) -> None:
    os.write(stacks.workers_fd, b"Thread 1\n  in main\n")
    assert stacks.read() == "Thread 1\n  in main"
    assert stacks.read() == ""


def test_earlier_stacks_can_be_skipped(stacks: StackFile) -> None:
    os.write(stacks.workers_fd, b"old")
    stacks.skip()
    os.write(stacks.workers_fd, b"new")
    assert stacks.read() == "new"


def test_a_worker_cannot_cut_the_file_short(stacks: StackFile) -> None:
    os.write(stacks.workers_fd, b"x" * 1000)
    with pytest.raises(PermissionError):
        os.ftruncate(stacks.workers_fd, 0)
    with pytest.raises(PermissionError):
        os.open(f"/proc/self/fd/{stacks.workers_fd}", os.O_WRONLY | os.O_TRUNC)


def test_a_file_that_shrank_is_still_read(
    stacks: StackFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing may rely on the seal: the worker may have changed the file's size."""
    os.write(stacks.workers_fd, b"x" * 1000)
    stacks.skip()
    os.pwrite(stacks.workers_fd, b"now", 0)
    shrunk = os.stat_result((0, 0, 0, 0, 0, 0, 3, 0, 0, 0))
    monkeypatch.setattr("esg.supervisor.stackfile.os.fstat", lambda fd: shrunk)
    assert len(stacks.read()) <= 1000


def test_a_file_of_any_size_costs_little_memory(stacks: StackFile) -> None:
    os.ftruncate(stacks.workers_fd, 1 << 40)
    os.lseek(stacks.workers_fd, 0, os.SEEK_END)
    os.write(stacks.workers_fd, b"in main")
    assert stacks.read() == "in main"
    os.write(stacks.workers_fd, b"y" * (2 * STACK_LIMIT))
    assert len(stacks.read()) == STACK_LIMIT


@pytest.mark.parametrize("reason", [errno.EPERM, errno.ENOSYS, errno.EACCES])
def test_stacks_go_to_standard_error_where_memory_files_are_denied(
    monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    def denied(name: str, flags: int) -> int:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr("esg.supervisor.stackfile.os.memfd_create", denied)
    stacks = StackFile("test")
    assert stacks.workers_fd == 2
    assert "memfd_create(2): " + os.strerror(reason) in stacks.problem
    stacks.skip()
    assert stacks.read() == ""
    stacks.close()
    os.fstat(2)  # the file is still open


def test_a_lack_of_descriptors_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(name: str, flags: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("esg.supervisor.stackfile.os.memfd_create", none_left)
    with pytest.raises(OSError, match="Too many open files"):
        StackFile("test")


def test_a_kernel_that_knows_no_noexec_seal_makes_the_file_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create = os.memfd_create

    def old_kernel(name: str, flags: int) -> int:
        if flags & 0x8:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return create(name, flags)

    monkeypatch.setattr("esg.supervisor.stackfile.os.memfd_create", old_kernel)
    stacks = StackFile("test")
    assert stacks.exists
    stacks.close()
