"""Whether a large block comes from the heap, where free memory is kept, or from the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.support.runner import environment

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

MAPPED = """
import ctypes, sys
from esg.server.malloc import keep_free_memory

class Info(ctypes.Structure):  # struct mallinfo2, mallinfo(3)
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks rest".split()]
    _fields_.append(("more", ctypes.c_size_t * 5))

def mapped():
    libc.mallinfo2.restype = Info
    return libc.mallinfo2().hblks

libc = ctypes.CDLL(None)
keep_free_memory(int(sys.argv[1]))
before = mapped()
block = bytes(1_500_000)
print(mapped() - before)
"""


def mapped(size, **variables):
    """How many mappings one block of 1.5 MB takes in a process that keeps `size` bytes."""
    done = subprocess.run(
        [sys.executable, "-c", MAPPED, str(size)],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_a_block_of_less_than_half_of_the_kept_memory_comes_from_the_heap():
    assert mapped(4 << 20) == 0
    assert mapped(2 << 20) == 1


def test_nothing_changes_without_memory_to_keep():
    assert mapped(0) == 1


def test_sizes_beyond_what_malloc_accepts_are_limited():
    assert mapped(1 << 40) == 0


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_a_variable_of_malloc_takes_precedence(name):
    assert mapped(4 << 20, **{name: "131072"}) == 1
