"""A process that has lost its arbiter ends, even if it is busy."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

from tests.support.waiting import eventually

WATCH = """
import logging, os, socket, sys, time
from esg import lifeline

ours, theirs = socket.socketpair()
handler = logging.StreamHandler()
logging.getLogger("esg").addHandler(handler)
lifeline.watch(theirs.fileno(), "worker", lambda: 0.0)
{meanwhile}
ours.close()
time.sleep(600)
"""


def run(meanwhile: str = "", **options) -> subprocess.CompletedProcess:
    code = WATCH.format(meanwhile=meanwhile)
    return subprocess.run([sys.executable, "-c", code], timeout=60, **options)


def test_the_log_says_why_an_orphan_ends() -> None:
    done = run(stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "worker ends: its arbiter is gone" in done.stderr


def test_an_orphan_ends_even_if_the_logs_lock_is_held() -> None:
    assert run("handler.acquire()").returncode == 1


def test_an_orphan_ends_even_if_nobody_reads_its_log() -> None:
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, b"x" * 4096)
        os.set_blocking(writing, True)
        assert run(stderr=writing).returncode == 1
    finally:
        os.close(reading)
        os.close(writing)


def test_an_orphan_without_a_free_descriptor_ends() -> None:
    meanwhile = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))"
    done = run(meanwhile, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "worker ends: its arbiter is gone" in done.stderr


TIED = """
import ctypes, os, sys, time
from esg import lifeline

lifeline.prepare()
if os.fork() == 0:
    lifeline.tie()
    {then}
    print(os.getpid(), flush=True)
    ctypes.PyDLL(None).sleep(600)  # with the interpreter's lock
sys.stdin.read()
"""


def tied(then: str = "") -> tuple[subprocess.Popen, int]:
    process = subprocess.Popen(
        [sys.executable, "-c", TIED.format(then=then)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def ended(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_the_kernel_ends_a_tied_process_that_stands_still() -> None:
    process, child = tied()
    process.kill()
    process.communicate()
    eventually(lambda: ended(child), "the child has ended")


def test_a_process_that_is_untied_lives_on() -> None:
    process, child = tied("lifeline.untie(); assert lifeline.tied() == -1")
    process.kill()
    process.wait()
    assert not ended(child)
    os.kill(child, signal.SIGKILL)
    process.communicate()
