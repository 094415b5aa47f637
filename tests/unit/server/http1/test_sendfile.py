"""Descriptors that a thread uses while its request may be cancelled."""

from __future__ import annotations

import os
import threading

import pytest

from esg.server.http1.sendfile import Copies

LONGEST_WAIT = 10.0


@pytest.fixture
def file(tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_thread_gets_copies_of_descriptors(file):
    with Copies(file) as copies:
        used = copies.use(lambda fd, *args: (fd, args), 1, 2)
        (copy,) = copies.descriptors
        assert used == (copy, (1, 2))
        assert copy != file
        assert not os.get_inheritable(copy)
    assert not is_open(copy)
    assert is_open(file)


def test_a_thread_that_begins_after_the_end_does_nothing(file):
    with Copies(file) as copies:
        pass
    assert copies.use(lambda *_: pytest.fail("it used a descriptor")) is None


def test_a_thread_that_runs_at_the_end_keeps_its_descriptors(file):
    """Other connections could get the same numbers before the thread uses them."""
    begun, go_on, seen = threading.Event(), threading.Event(), []

    def use(fd):
        begun.set()
        go_on.wait(LONGEST_WAIT)
        seen.append(os.path.sameopenfile(fd, file))

    with Copies(file) as copies:
        (copy,) = copies.descriptors
        thread = threading.Thread(target=copies.use, args=(use,))
        thread.start()
        assert begun.wait(LONGEST_WAIT)
    assert is_open(copy)
    go_on.set()
    thread.join(LONGEST_WAIT)
    assert seen == [True]
    assert not is_open(copy)


def test_an_error_in_the_thread_closes_them_too(file):
    copies = Copies(file)

    def fail(fd):
        copies.__exit__(None, None, None)
        raise OSError("the client is gone")

    (copy,) = copies.descriptors
    with pytest.raises(OSError, match="the client is gone"):
        copies.use(fail)
    assert not is_open(copy)


def test_copies_that_fail_leave_no_descriptor_open(file):
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        Copies(file, -1)
    assert set(os.listdir("/proc/self/fd")) == before
