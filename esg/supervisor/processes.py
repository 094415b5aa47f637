"""Starts processes and notices their ends. It is the only module that forks."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import select
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType

from esg import forks, lifeline
from esg.supervisor.signals import CHILD, HANDLED

FLUSH_LIMIT = 0.5
"""Seconds that a child waits at its end for the readers of its standard output and error."""


def fork(main: Callable[[], int]) -> int:
    """Run `main` in a child, and exit there with its result; returns the child's pid.

    All signals are blocked across the fork and restored in the child once the arbiter's handlers
    are replaced, so that none is lost and none runs the arbiter's code. The child never returns
    from here, and it is killed when this process ends, unless it calls `lifeline.untie`. Raises
    OSError if the kernel has no room for a process.
    """
    _flush_unless_blocked()
    lifeline.prepare()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        raise
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return pid
    status, pid = 1, os.getpid()
    try:
        _become_child()
        lifeline.tie()
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        status = main()
    except BaseException as error:  # the child's last frame: every exception must end here
        if os.getpid() != pid:
            forks.end(error)
        logging.getLogger("esg").critical("worker pid=%d failed", os.getpid(), exc_info=True)
    finally:
        try:
            if os.getpid() != pid:  # a fork of the worker that returned here
                forks.end()
            # Exit handlers of the application, of the standard library, and of modules that run in
            # every process (sitecustomize): to flush logs and traces, for instance.
            atexit._run_exitfuncs()
            _flush_in_time()
        finally:
            os._exit(status)


def _become_child() -> None:
    """Remove the arbiter's signal handlers and exit handlers.

    Until the payload has handlers of its own, TERM and QUIT end the child. The other signals do
    nothing: they are meant for the arbiter, even if a terminal sends them to the whole group. They
    have handlers instead of SIG_IGN, because programs that the child starts would inherit SIG_IGN.
    """
    signal.set_wakeup_fd(-1)
    for signum in HANDLED:
        signal.signal(signum, _ignore)
    signal.signal(CHILD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGQUIT, _end)
    # Exit handlers stay registered in a fork. Two of them must not run for objects that the arbiter
    # has made: that of weakref.finalize, which would remove its temporary folders, and that of
    # multiprocessing, which would end its children.
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    multiprocessing = sys.modules.get("multiprocessing.process")
    if multiprocessing is not None:
        multiprocessing._children.clear()


def _ignore(signum: int, frame: FrameType | None) -> None:
    """Ignore a signal that is meant for the arbiter."""


def _end(signum: int, frame: FrameType | None) -> None:
    os._exit(0)


def _flush_unless_blocked() -> None:
    """Flush the standard streams unless that would block: a child would write their text again."""
    poll = select.poll()
    for fd in (1, 2):
        poll.register(fd, select.POLLOUT)
    if len(poll.poll(0)) == 2:
        _flush()


def _flush_in_time() -> None:
    """Flush the standard streams at a child's end, if they are read."""
    flushing = threading.Thread(target=_flush, daemon=True)
    flushing.start()
    flushing.join(FLUSH_LIMIT)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # it may be anything that the application put there
            stream.flush()


def reap() -> Iterator[tuple[int, int]]:
    """Pid and wait status of every child that ended, including adopted ones (as PID 1).

    They are reaped one by one: until then, a dead child keeps its pid, and may safely be signalled.
    """
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


def is_own_child(pid: int) -> bool:
    """Whether a process is a child of this one, even if it has ended and hasn't been reaped."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            after_name = file.read().rpartition(b")")[2].split()
    except OSError:
        return False
    return int(after_name[1]) == os.getpid()  # state, then the parent's pid: proc_pid_stat(5)
