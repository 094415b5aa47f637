"""Ends a worker after the end of its arbiter, if the worker can't do so itself.

While the worker boots, the kernel ends it. ESG mustn't have a thread while the application is
imported: gevent's monkey.patch_all() refuses to patch a process that has threads, and modules may
fork. After the boot, a thread ends the worker.
"""

from __future__ import annotations

import _thread
import contextlib
import faulthandler
import fcntl
import logging
import os
import select
import signal
import sys
import time
import types
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("esg")

LAST_WORDS = 0.5
"""Seconds allowed for logging that a worker is ended; writing the log may block."""


LOOK_INTERVAL = 1.0
"""Seconds between two calls of the function given to `look_regularly`."""


def _unpatched(module: types.ModuleType, name: str) -> Any:
    """The original function of the standard library, even if gevent has replaced it.

    gevent's replacement would run in the event loop that the thread has to watch over.
    """
    gevent = sys.modules.get("gevent.monkey")
    return getattr(module, name) if gevent is None else gevent.get_original(module.__name__, name)


_start_thread = _unpatched(_thread, "start_new_thread")
_poll, _sleep = _unpatched(select, "poll"), _unpatched(time, "sleep")

_arbiter_pipe: tuple[int, int] | None = None
"""A pipe whose writing end only the arbiter holds, so that it closes when the arbiter ends."""

_look: Callable[[], None] | None = None
"""Called by the thread of `watch`, once a second."""

_tie = -1
"""This process's own open file description of the reading end, -1 if it isn't tied."""


def prepare() -> None:
    """In the arbiter, before it forks: create the pipe for `tie`. Raises OSError if that fails."""
    global _arbiter_pipe
    if _arbiter_pipe is None:
        _arbiter_pipe = os.pipe2(os.O_CLOEXEC)


def tie() -> None:
    """In a child that was just forked: have the kernel kill it when the arbiter ends.

    See F_SETSIG in fcntl(2) for SIGKILL in place of SIGIO. The kernel sends the signal to the owner
    of an open file description, so each child has to open the pipe again, through /proc. Without
    /proc, a child isn't ended with its arbiter until `watch` is called.
    """
    global _arbiter_pipe, _tie
    assert _arbiter_pipe is not None
    reading, writing = _arbiter_pipe
    _arbiter_pipe = None
    os.close(writing)
    try:
        _tie = os.open(f"/proc/self/fd/{reading}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.fcntl(_tie, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(_tie, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(_tie, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
    except OSError:
        untie()
        return
    finally:
        os.close(reading)
    if _is_over(_tie):
        os._exit(1)


def tied() -> int:
    """The descriptor that ties this process to its arbiter; -1 if it isn't tied."""
    return _tie


def untie() -> None:
    """Let this process outlive the arbiter from now on."""
    global _tie
    if _tie >= 0:
        fcntl.fcntl(_tie, fcntl.F_SETFL, os.O_NONBLOCK)  # a child may still have it open
        os.close(_tie)
        _tie = -1


def watch(mailbox: int, subject: str, limit: Callable[[], float]) -> None:
    """Start a thread that waits until the arbiter's end of the mailbox is closed.

    `limit` returns how many seconds the worker then has to end by itself. After that the thread
    ends it: the event loop may be blocked, and there is no arbiter to kill the worker.
    """
    _start_thread(_watch, (mailbox, subject, limit))


def look_regularly(look: Callable[[], None] | None) -> None:
    """Make the thread of `watch` call `look` once a second, even if the event loop is blocked.

    `look` must neither block nor log, because the code that blocks the event loop may hold a lock
    of the log. Exceptions are ignored. None ends the calls.
    """
    global _look
    _look = look


def _watch(mailbox: int, subject: str, limit: Callable[[], float]) -> None:
    poll = _poll()
    poll.register(mailbox, 0)  # hang-ups are always reported: poll(2)
    while not poll.poll(LOOK_INTERVAL * 1000):
        look = _look
        if look is not None:
            with contextlib.suppress(Exception):  # the lifeline matters more
                look()
    seconds = limit()
    # Writing the log may block, because nobody reads the log or a hanging thread has its lock.
    # faulthandler needs neither a lock nor the interpreter. It writes stacks before it exits, but
    # nobody would read them. They are written to the mailbox, where writing fails immediately;
    # opening /dev/null for them could fail for lack of descriptors.
    faulthandler.dump_traceback_later(seconds + LAST_WORDS, exit=True, file=mailbox)
    _sleep(seconds)
    logger.critical(
        "%s ends: its arbiter is gone, and it didn't end within its time limit", subject
    )
    os._exit(1)


def _is_over(fd: int) -> bool:
    """Whether the writing end of this pipe is closed in every process."""
    poll = _poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))
