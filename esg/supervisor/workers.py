"""The arbiter's workers: starts them, and keeps their rows of the scoreboard and their mail."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Iterable, Iterator

from setproctitle import setproctitle

from esg import mailbox, stacktext
from esg.errors import ESGError
from esg.log.records import log_event, worker_subject
from esg.mailbox import FromArbiter, NewRow, RowGone
from esg.payload import Assignment, GenerationPart, Payload, WorkerPart
from esg.scoreboard import CAPACITY, Cell, Scoreboard
from esg.settings import folders
from esg.supervisor import privileges
from esg.supervisor.child import Child, WorkerHandle
from esg.supervisor.children import Children, Duties
from esg.supervisor.generations import Generation
from esg.supervisor.memory import memory_of
from esg.supervisor.oom import OOMKills
from esg.waits import Load

LAST_LINES = 0.5
"""Seconds that an ending process waits for a log that isn't read."""

MEASURE_EVERY = 10.0
"""Seconds between two comparisons of a worker's memory with `--max-memory`."""


class Workers:
    """Starts workers, and shows each of them the rows of the others."""

    capacity = CAPACITY
    """The most workers."""

    def __init__(
        self, children: Children, payload: Payload, folder: str, duties: Duties[WorkerHandle]
    ) -> None:
        """`payload` is the code that they run; `folder` is the startup folder of the arbiter.

        `duties` handle their mail and their ends.
        """
        self._children = children
        self._payload = payload
        self._folder = folder
        self._duties = duties
        self._board = Scoreboard()
        self._oom_kills = OOMKills()

    def __iter__(self) -> Iterator[WorkerHandle]:
        return iter(self._children.of(WorkerHandle))

    def get(self, number: int) -> WorkerHandle | None:
        """The worker of this number; None if it couldn't be started, or is gone."""
        return self._children.get(WorkerHandle, number)

    # -- the beginning -----------------------------------------------------------------

    def spawn(self, number: int, generation: Generation) -> WorkerHandle:
        """Start a worker. Raises OSError, with nothing left open, if there is no room for one."""
        assert generation.logs is not None, "it was prepared"
        handle, theirs = WorkerHandle.open(number, generation.number)
        handle.listeners = generation.listeners
        config = generation.config
        handle.memory_limits = config.max_memory, config.max_memory_hard
        try:
            handle.row = self._board.new_row(number)
        except BaseException:
            handle.close()
            theirs.close()
            raise
        assignment = Assignment(
            WorkerPart(number, theirs, handle.row, handle.stack_fd),
            GenerationPart(
                generation.number,
                generation.config,
                handle.listeners,
                generation.logs,
                generation.objects,
            ),
        )
        try:
            self._children.start(handle, theirs, lambda: self._run(assignment), self._duties)
        except BaseException:
            self._board.remove(number)
            raise
        for other in self:
            if other is not handle:
                other.unseen.add(number)
                self.show_rows(other)
        return handle

    def _run(self, assignment: Assignment) -> int:
        """In the worker's process: enter its folder, set up its log, become its user, run."""
        number, generation = assignment.worker.number, assignment.generation
        setproctitle(f"esg: worker {number} gen {generation.number} [{generation.config.title}]")
        subject = worker_subject(number, generation.number, os.getpid())
        config, warnings = folders.enter_in_worker(generation.config, self._folder)
        generation = dataclasses.replace(generation, config=config)
        generation.logs.keep_only()
        generation.logs.apply(subject)
        for warning in warnings:
            log_event(logging.WARNING, subject, warning)
        try:
            privileges.identity(config).assume()
        except ESGError as error:
            failure = mailbox.BootFailed(str(error), "", error.exit_code)
            assignment.worker.mailbox.send(failure)
            return error.exit_code
        try:
            return self._payload(dataclasses.replace(assignment, generation=generation))
        finally:
            generation.logs.files.flush(LAST_LINES)

    def let_go(self, child: Child) -> None:
        """In a new process: give up all rows but its own."""
        if isinstance(child, WorkerHandle) and child.row is not None:
            self._board.hand_over(child.row)
        else:
            self._board.let_go()

    # -- the end -----------------------------------------------------------------------

    def reason(self, handle: WorkerHandle, status: int | None) -> str:
        """Why a worker has ended, in words."""
        oom_file = self._oom_kills.take(time.monotonic()) if handle.is_killed(status) else None
        return handle.describe(status, oom_file)

    def end(self, handle: WorkerHandle) -> str:
        """Let go of a worker that has ended; returns its stack, if it left one."""
        with contextlib.ExitStack() as always:
            always.callback(self.remove, handle.number)
            always.callback(handle.close)
            return handle.last_stack()

    def remove(self, number: int) -> None:
        """Empty the row of a worker that is gone, or make the others forget it."""
        if not self._board.remove(number):
            self.tell([handle.number for handle in self], RowGone(number))

    # -- rows and mail -----------------------------------------------------------------

    def look_after(self) -> None:
        """Once a second, send owed mail to workers that have room for it."""
        for handle in self:
            handle.deliver()
            self.show_rows(handle)

    def count_kills(self) -> None:
        """Take note of processes that the kernel has killed for lack of memory."""
        self._oom_kills.look(time.monotonic())

    def show_rows(self, handle: WorkerHandle) -> None:
        """Send a serving worker the rows that it hasn't seen.

        A booting worker reads no mail, and the kernel counts descriptors in unread mail
        against RLIMIT_NOFILE (unix(7), ETOOMANYREFS): 64 workers at once would be too many.
        """
        if not handle.serves:
            return
        for number in sorted(handle.unseen):
            fd = self._board.reading_fd(number)
            if fd is not None and not handle.mailbox.offer(NewRow(number, [fd])):
                return
            handle.unseen.discard(number)

    def tell(self, numbers: Iterable[int], message: FromArbiter) -> None:
        """Post a message to those of these workers that still exist.

        Raises the last OSError of `WorkerHandle.post` after all others have been sent the message.
        """
        error: OSError | None = None
        for handle in filter(None, map(self.get, numbers)):
            try:
                handle.post(message)
            except OSError as failed:
                error = failed
        if error is not None:
            raise error

    def beats(self) -> dict[int, float]:
        """Seconds since each worker's last heartbeat."""
        return {handle.number: self.age(handle.number) for handle in self}

    def memory(self) -> dict[int, int]:
        """The memory of workers that may have too much of it, in bytes.

        Only a worker above `--max-memory-hard` is reported each time: to know the exact size of a
        worker, the kernel needs 24 ms for each GiB.
        """
        sizes, now = {}, time.monotonic()
        for handle in self:
            soft, hard = handle.memory_limits
            compares = soft > 0 and now >= handle.measured_at + MEASURE_EVERY
            enough = soft if compares else hard
            if not enough or handle.pid is None or handle.reaped:
                continue
            if compares:
                handle.measured_at = now
            size = memory_of(handle.pid, enough)
            if size is not None and size > enough:
                sizes[handle.number] = size
        return sizes

    def age(self, number: int) -> float:
        """Seconds since the last heartbeat of a worker."""
        return self._board.age(number)

    def load(self, number: int) -> Load:
        """The work that a worker has to finish."""
        websockets = self._board.value(number, Cell.WEBSOCKETS)
        calls = self._board.value(number, Cell.IN_FLIGHT)
        requests = max(0, calls - websockets)  # a WebSocket is a call, too
        return Load(number, requests, websockets, self._board.value(number, Cell.CONNECTIONS))

    def stuck_in(self, handle: WorkerHandle) -> str:
        """The requests of a stuck worker and its stacks, as lines for the log."""
        number, now = handle.number, time.monotonic()
        in_flight = self._board.value(number, Cell.IN_FLIGHT)
        requests = handle.progress.of_stuck(in_flight, self.age(number), now)
        nowhere = "(it could not be written)" if handle.stacks.exists else "(on standard error)"
        stacks = stacktext.of_stuck_worker(handle.stack()) or nowhere
        return "\n".join(filter(None, [requests, stacks]))
