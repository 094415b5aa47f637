"""Child processes: fork, signal, reap, describe. The only module that forks."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import logging
import os
import select
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from esg import forks, lifeline
from esg.mailbox import ArbitersEnd, Drain, FromArbiter, Mailbox, NewListener, NewLogFiles, pair
from esg.net.listeners import Listener
from esg.payload import DUMP_SIGNAL
from esg.supervisor.progress import Progress
from esg.supervisor.signals import CHILD, HANDLED
from esg.supervisor.stackfile import StackFile

FLUSH_LIMIT = 0.5
"""Seconds that a child waits at its end for the readers of its standard output and error."""

FATAL = "Fatal Python error: "
"""How `faulthandler` begins when a signal ends the process, and only then."""


class WorkerHandle:
    """A worker as the arbiter holds it: process, mailbox, and the file its stacks go to."""

    def __init__(
        self, number: int, generation: int, mailbox: ArbitersEnd, stacks: StackFile
    ) -> None:
        self.number = number
        self.generation = generation
        self.mailbox = mailbox
        self.stacks = stacks
        self.pid = 0
        self.reaped = False
        self.draining = False
        self.is_beyond_reach = False
        """Whether the kernel has refused to send it a signal."""
        self.listeners: Sequence[Listener] = ()
        self.progress = Progress()
        self._sent: set[int] = set()
        self._owed: list[tuple[float, FromArbiter]] = []
        """Mail that the mailbox had no room for, and when it was posted."""
        self.serves = False
        """Whether it has said that it accepts connections."""
        self.unseen: set[int] = set()
        """Numbers of newer workers whose rows it has not been sent."""

    @classmethod
    def open(cls, number: int, generation: int) -> tuple[WorkerHandle, Mailbox]:
        """A handle for a worker about to be forked, and that worker's end of the mailbox.

        Raises OSError, with nothing left open, if there are no file descriptors for it.
        """
        stacks = StackFile(f"esg-stack-{number}")
        try:
            ours, theirs = pair()
        except OSError:
            stacks.close()
            raise
        ours.sender = f"worker={number} gen={generation}" if number else "the watcher"
        return cls(number, generation, ours, stacks), theirs

    @property
    def stack_fd(self) -> int:
        """The descriptor that the worker writes its stacks to."""
        return self.stacks.workers_fd

    @property
    def accepts(self) -> bool:
        """Whether it takes new connections, or will, as far as the arbiter knows."""
        return not (self.draining or self.reaped)

    def post(self, message: FromArbiter) -> None:
        """Send mail; if the worker has more than it reads, `deliver` sends it later.

        Of several messages of one kind that wait, the newest counts. Those that wait have copies of
        their descriptors, since the numbers may be other files' when they are sent. Raises OSError
        if there is no room for copies.
        """
        for owed in [owed for owed in self._owed if _is_outdated(owed[1], message)]:
            self._owed.remove(owed)
            _close_copies(owed[1])
        self.deliver()
        if self._owed or not self.mailbox.offer(message):
            self._owed.append((time.monotonic(), _with_copies(message)))

    def deliver(self) -> None:
        """Send the mail that is owed, as far as there is room for it by now."""
        while self._owed:
            posted_at, posted = self._owed[0]
            message = posted
            if isinstance(message, Drain):  # its time has run since then
                left = max(0.0, message.grace - (time.monotonic() - posted_at))
                message = dataclasses.replace(message, grace=left)
            if not self.mailbox.offer(message):
                return
            del self._owed[0]
            _close_copies(posted)

    def signal(self, signum: int) -> None:
        """Send a signal, unless the process was reaped: then the pid may be another's.

        Raises PermissionError as kill(2) does.
        """
        if self.reaped or self.pid <= 0:  # kill(0, ...) would signal the whole process group
            return
        if signum == DUMP_SIGNAL:  # what is there already was written for somebody else
            self.stacks.skip()
        with contextlib.suppress(ProcessLookupError):  # somebody else reaped it
            os.kill(self.pid, signum)
            self._sent.add(signum)

    def ask_for_stack(self) -> None:
        """Have the worker write its stacks, for `stack` to read; this is no news of its end."""
        if self.stacks.exists and not self.reaped and self.pid > 0:
            self.stacks.skip()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, DUMP_SIGNAL)

    def stack(self) -> str:
        """The stacks of the worker's threads, written since it was last asked for them or read."""
        return self.stacks.read()

    def last_stack(self) -> str:
        """Where a worker that has ended stood, as far as its end or the arbiter had it write that.

        Others may send it DUMP_SIGNAL, too, and what it wrote then says nothing of its end.
        """
        if self.aborted:  # then it was logged
            return ""
        written = self.stack()
        if DUMP_SIGNAL in self._sent:
            return written
        _, fatal, stacks = written.rpartition(FATAL)
        return fatal + stacks if fatal else ""

    @property
    def aborted(self) -> bool:
        """Whether the arbiter sent SIGABRT."""
        return signal.SIGABRT in self._sent

    def is_killed(self, status: int) -> bool:
        """Whether it ended by a SIGKILL that isn't the arbiter's."""
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        return killed and signal.SIGKILL not in self._sent

    def describe(self, status: int, oom_file: object = None) -> str:
        """A wait status in words, with who sent the signal if there was one.

        `oom_file` is the file of a cgroup that counted its kill for lack of memory, if one did.
        """
        if oom_file is not None:
            return (
                f"killed by SIGKILL from the kernel, out of memory (oom_kill in {oom_file}); give "
                "the service more memory, or fewer --workers"
            )
        if not os.WIFSIGNALED(status):
            return f"exit status {os.waitstatus_to_exitcode(status)}"
        signum = os.WTERMSIG(status)
        sender = "the arbiter" if signum in self._sent else "another process or the kernel"
        return f"killed by {_signal_name(signum)} from {sender}"

    def close(self) -> None:
        """Close this process's descriptors of the worker; more than once does no harm."""
        self.mailbox.close()
        self.stacks.close()
        for _, message in self._owed:
            _close_copies(message)
        self._owed = []


def _is_outdated(message: FromArbiter, newer: FromArbiter) -> bool:
    """Whether a newer message replaces this one, which is waiting to be sent."""
    if isinstance(message, NewListener) and isinstance(newer, NewListener):
        return message.url == newer.url
    return type(message) is type(newer)


def _with_copies(message: FromArbiter) -> FromArbiter:
    """The message with descriptors of its own. Raises OSError, with nothing left open."""
    if not isinstance(message, NewListener | NewLogFiles):
        return message
    copies: list[int] = []
    try:
        for fd in message.fds:
            copies.append(os.dup(fd))
    except OSError:
        for fd in copies:
            os.close(fd)
        raise
    return dataclasses.replace(message, fds=copies)


def _close_copies(message: FromArbiter) -> None:
    if isinstance(message, NewListener | NewLogFiles):
        for fd in message.fds:
            os.close(fd)


def _signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:  # one of the real-time signals, few of which have a name
        return f"signal {signum}"


def fork(main: Callable[[], int]) -> int:
    """Run `main` in a child, which ends with what it returns; gives the child's pid.

    All signals are blocked across the fork and restored in the child once the arbiter's handlers
    are replaced, so that none is lost and none runs the arbiter's code. The child never returns
    from here, and it is killed when this process ends, unless it calls `lifeline.untie`. Raises
    OSError if the kernel has no room for a process.
    """
    _flush_what_is_read()
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
    except BaseException as error:  # the child's last frame: whatever came up must end here
        if os.getpid() != pid:
            forks.end(error)
        logging.getLogger("esg").critical("worker pid=%d failed", os.getpid(), exc_info=True)
    finally:
        try:
            if os.getpid() != pid:  # a fork of the worker's, which came back here
                forks.end()
            # Those of the application, of the standard library, and of whatever runs in every
            # process (sitecustomize): to flush logs and traces, for instance.
            atexit._run_exitfuncs()
            _flush_in_time()
        finally:
            os._exit(status)


def _become_child() -> None:
    """Let go of the arbiter's handlers, and of what it would end when it ends.

    Until the payload has handlers of its own, TERM and QUIT end the child, and the rest, which is
    meant for the arbiter even when a terminal sends it to the whole group, does nothing. They are
    handlers rather than SIG_IGN because SIG_IGN would be inherited by programs the child starts.
    """
    signal.set_wakeup_fd(-1)
    for signum in HANDLED:
        signal.signal(signum, _ignore)
    signal.signal(CHILD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGQUIT, _end)
    # Exit handlers stay registered in a fork. Two of them must not run for what the arbiter has
    # made: that of weakref.finalize, which would remove its temporary folders, and that of
    # multiprocessing, which would end its children.
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    multiprocessing = sys.modules.get("multiprocessing.process")
    if multiprocessing is not None:
        multiprocessing._children.clear()


def _ignore(signum: int, frame: FrameType | None) -> None:
    """The signal is the arbiter's business."""


def _end(signum: int, frame: FrameType | None) -> None:
    os._exit(0)


def _flush_what_is_read() -> None:
    """Flush the standard streams, or a child would write the same; unless that would wait."""
    poll = select.poll()
    for fd in (1, 2):
        poll.register(fd, select.POLLOUT)
    if len(poll.poll(0)) == 2:
        _flush()


def _flush_in_time() -> None:
    """Flush the standard streams at a child's end, as long as somebody reads them."""
    flushing = threading.Thread(target=_flush, daemon=True)
    flushing.start()
    flushing.join(FLUSH_LIMIT)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # it may be anything that the application put there
            stream.flush()


def reap() -> Iterator[tuple[int, int]]:
    """Pid and wait status of every child that ended, adopted ones (as PID 1) among them.

    One by one: until it is its turn, a dead child keeps its pid, and may safely be signalled.
    """
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status
