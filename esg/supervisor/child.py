"""One child of the arbiter: its mailbox, its pid, the file of its stacks, and its exit status."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import time
from collections.abc import Sequence

from esg import mailbox
from esg.mailbox import (
    ArbitersEnd,
    Drain,
    FromArbiter,
    Mailbox,
    NewListener,
    NewLogFiles,
    NewRow,
    RowGone,
)
from esg.net.listeners import Listener
from esg.payload import DUMP_SIGNAL
from esg.scoreboard import Row
from esg.supervisor.progress import Progress
from esg.supervisor.stackfile import StackFile

FATAL = "Fatal Python error: "
"""The beginning of `faulthandler`'s output if a signal ends the process, and only then."""


class Child:
    """The arbiter's handle of a child process. Each kind of child has its own class."""

    kind = "child"
    """Its subject in the log."""

    def __init__(self, number: int, ours: ArbitersEnd, stacks: StackFile | None = None) -> None:
        """`number` is unique among the children of its kind. `stacks` is None if it has none.

        `ours` is the arbiter's end of its mailbox.
        """
        self.number = number
        self.mailbox = ours
        self.stacks = stacks
        self.pid: int | None = None
        """The pid; None until it is known from the fork or a `Hello`."""
        self.reaped = False
        self.is_beyond_reach = False
        """Whether the kernel has refused to send it a signal."""
        self._sent: set[int] = set()
        self._owed: list[tuple[float, FromArbiter]] = []
        """Mail that the mailbox had no room for, and when it was posted."""

    def post(self, message: FromArbiter) -> None:
        """Send mail; if the child's mailbox is full, `deliver` sends it later.

        Among several waiting messages of one kind, only the newest is sent. Waiting messages have
        copies of their descriptors, because the original numbers may belong to other files by the
        time they are sent. Raises OSError if there is no room for copies.
        """
        for owed in [owed for owed in self._owed if _is_outdated(owed[1], message)]:
            self._owed.remove(owed)
            _close_copies(owed[1])
        self.deliver()
        if self._owed or not self.mailbox.offer(message):
            self._owed.append((time.monotonic(), _with_copies(message)))

    def deliver(self) -> None:
        """Send as much of the owed mail as there is room for."""
        while self._owed:
            posted_at, posted = self._owed[0]
            message = posted
            if isinstance(message, Drain):  # its grace period began when it was posted
                left = max(0.0, message.grace - (time.monotonic() - posted_at))
                message = dataclasses.replace(message, grace=left)
            if not self.mailbox.offer(message):
                return
            del self._owed[0]
            _close_copies(posted)

    def signal(self, signum: int) -> bool:
        """Send a signal; False if the pid isn't known yet.

        Nothing is sent to a reaped process, because its pid may belong to another process. Raises
        PermissionError like kill(2).
        """
        if self.reaped:
            return True
        if self.pid is None or self.pid <= 0:  # kill(0, ...) would signal the whole process group
            return False
        if signum == DUMP_SIGNAL and self.stacks is not None:
            self.stacks.skip()  # stacks that another process has asked for
        with contextlib.suppress(ProcessLookupError):  # other code reaped it
            os.kill(self.pid, signum)
            self._sent.add(signum)
        return True

    def ask_for_stack(self) -> None:
        """Make it write its stacks, for `stack` to read."""
        if self.stacks is not None and self.stacks.exists and not self.reaped and self.pid:
            self.stacks.skip()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, DUMP_SIGNAL)

    def stack(self) -> str:
        """The stacks of its threads that were written since the last request or read."""
        return self.stacks.read() if self.stacks is not None else ""

    def last_stack(self) -> str:
        """The last stacks of an ended process, if its end or the arbiter made it write them.

        Other processes may send it DUMP_SIGNAL, too; those stacks say nothing about its end.
        """
        if self.aborted:  # they were logged when it was aborted
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

    def is_killed(self, status: int | None) -> bool:
        """Whether it ended by a SIGKILL that the arbiter didn't send."""
        if status is None or not os.WIFSIGNALED(status):
            return False
        return os.WTERMSIG(status) == signal.SIGKILL and signal.SIGKILL not in self._sent

    def describe(self, status: int | None, oom_file: object = None) -> str:
        """A wait status as text, with the sender of the signal if there was one.

        `oom_file` is the file of a cgroup that counted its kill for lack of memory, if one did.
        """
        if oom_file is not None:
            return (
                f"killed by SIGKILL from the kernel, out of memory (oom_kill in {oom_file}); give "
                "the service more memory, or fewer --workers"
            )
        if status is None:
            return "ended before its pid was known"
        if not os.WIFSIGNALED(status):
            return f"exit status {os.waitstatus_to_exitcode(status)}"
        signum = os.WTERMSIG(status)
        sender = "the arbiter" if signum in self._sent else "another process or the kernel"
        return f"killed by {_signal_name(signum)} from {sender}"

    def close(self) -> None:
        """Close this process's descriptors of the child; more than once does no harm."""
        self.mailbox.close()
        if self.stacks is not None:
            self.stacks.close()
        for _, message in self._owed:
            _close_copies(message)
        self._owed = []


class WorkerHandle(Child):
    """The arbiter's handle of a worker."""

    kind = "worker"
    stacks: StackFile

    def __init__(self, number: int, generation: int, ours: ArbitersEnd, stacks: StackFile) -> None:
        super().__init__(number, ours, stacks)
        self.stack_fd = stacks.workers_fd
        """The descriptor that the worker writes its stacks to."""
        self.generation = generation
        self.listeners: Sequence[Listener] = ()
        self.row: Row | None = None
        """Its row on the scoreboard."""
        self.progress = Progress()
        self.memory_limits: tuple[int, int] = (0, 0)
        """`--max-memory` and `--max-memory-hard`, in bytes; 0 for none."""
        self.measured_at = -math.inf
        """The time at which its memory was last compared with the first of them."""
        self.draining = False
        self.serves = False
        """Whether it has reported that it accepts connections."""
        self.unseen: set[int] = set()
        """The numbers of newer workers whose rows haven't been sent to it."""

    @classmethod
    def open(cls, number: int, generation: int) -> tuple[WorkerHandle, Mailbox]:
        """A handle for a worker about to be started, and that worker's end of the mailbox.

        Raises OSError, with nothing left open, if there are no file descriptors for it.
        """
        stacks = StackFile(f"esg-stack-{number}")
        try:
            ours, theirs = mailbox.pair()
        except OSError:
            stacks.close()
            raise
        ours.sender = f"worker={number} gen={generation}"
        return cls(number, generation, ours, stacks), theirs

    @property
    def accepts(self) -> bool:
        """Whether it accepts connections, or will accept them, as far as the arbiter knows."""
        return not (self.draining or self.reaped)


def _is_outdated(message: FromArbiter, newer: FromArbiter) -> bool:
    """Whether a newer message replaces this one, which is waiting to be sent."""
    if isinstance(message, NewListener) and isinstance(newer, NewListener):
        return message.url == newer.url
    if isinstance(message, RowGone) and isinstance(newer, RowGone):
        return message.number == newer.number
    return type(message) is type(newer)


def _with_copies(message: FromArbiter) -> FromArbiter:
    """The message with copies of its descriptors. Raises OSError, with nothing left open."""
    if not isinstance(message, NewListener | NewLogFiles | NewRow):
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
    for fd in mailbox.descriptors_of(message):
        os.close(fd)


def _signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:  # a real-time signal; few of these have a name
        return f"signal {signum}"
