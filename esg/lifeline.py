"""Ends a worker whose arbiter is gone if the worker can't notice that itself.

While the worker boots, the kernel ends it: ESG must not have a thread when the application is
imported, because gevent's monkey.patch_all() refuses to patch a process that has threads, and
modules may fork. After that, a thread ends it.
"""

from __future__ import annotations

import _thread
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
"""Seconds that logging the end of a worker may take; the log may be blocked."""


def _unpatched(module: types.ModuleType, name: str) -> Any:
    """The original function of the standard library, even if gevent has replaced it.

    gevent's replacement would run on the very event loop that the thread has to watch.
    """
    gevent = sys.modules.get("gevent.monkey")
    return getattr(module, name) if gevent is None else gevent.get_original(module.__name__, name)


_start_thread = _unpatched(_thread, "start_new_thread")
_poll, _sleep = _unpatched(select, "poll"), _unpatched(time, "sleep")

_arbiters: tuple[int, int] | None = None
"""A pipe whose writing end only the arbiter holds, so that it closes when the arbiter ends."""

_tie = -1
"""The reading end, opened by this process for itself."""


def prepare() -> None:
    """In the arbiter, before it forks: make the pipe for `tie`. Raises OSError if that fails."""
    global _arbiters
    if _arbiters is None:
        _arbiters = os.pipe2(os.O_CLOEXEC)


def tie() -> None:
    """In a child that was just forked: have the kernel kill it when the arbiter ends.

    See fcntl(2), F_SETSIG, for SIGKILL in place of SIGIO. Where /proc is missing, nothing watches
    until `watch` does: the owner of signals is the open file's, so each process needs one.
    """
    global _arbiters, _tie
    assert _arbiters is not None
    reading, writing = _arbiters
    _arbiters = None
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
    """The descriptor that ties this process to its arbiter, -1 if there is none."""
    return _tie


def untie() -> None:
    """Let this process outlive the arbiter from now on."""
    global _tie
    if _tie >= 0:
        fcntl.fcntl(_tie, fcntl.F_SETFL, os.O_NONBLOCK)  # a child may still have it open
        os.close(_tie)
        _tie = -1


def watch(mailbox: int, subject: str, limit: Callable[[], float]) -> None:
    """Watch for the end of a mailbox, from a thread, since the event loop may be blocked.

    `limit` returns how many seconds the worker then has to end by itself. After that, this thread
    ends it, because the arbiter that would otherwise do so is gone.
    """
    _start_thread(_watch, (mailbox, subject, limit))


def _watch(mailbox: int, subject: str, limit: Callable[[], float]) -> None:
    poll = _poll()
    poll.register(mailbox, 0)  # hang-ups are always reported: poll(2)
    poll.poll()
    seconds = limit()
    # The log may be blocked because nobody reads it, or because a hanging thread has its lock.
    # faulthandler needs neither a lock nor the interpreter. It writes stacks first, which nobody
    # would read: they go to the mailbox, where writing fails at once. There may be no descriptor
    # left for another file.
    faulthandler.dump_traceback_later(seconds + LAST_WORDS, exit=True, file=mailbox)
    _sleep(seconds)
    logger.critical("%s ends: its arbiter is gone, and it has not ended in its time", subject)
    os._exit(1)


def _is_over(fd: int) -> bool:
    """Whether nobody has the writing end of this pipe open."""
    poll = _poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))
