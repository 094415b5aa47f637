"""Shared memory in which each worker publishes its state, in a row that only it can write.

Each row is a memory file of its own (memfd_create(2)), sealed against changes of its size. A
worker has its own row mapped for writing, and maps the rows of others read-only, from descriptors
that are open for reading only. So a worker can't change what the arbiter or other workers read
about a third one. Rows in one shared file wouldn't prevent that: mremap(2) can grow a mapping into
the next row.

The arbiter makes a row before it forks the worker, sends it to the existing workers, reads it, and
empties it when its worker is gone. It can hand its rows on by descriptor, to a process that takes
its place. Every cell is one aligned 64-bit word, so a reader always sees a whole value, though
perhaps an old one.
"""

from __future__ import annotations

import errno
import fcntl
import math
import mmap
import os
import time
from collections.abc import Mapping
from enum import IntEnum

CAPACITY = 1024
"""Rows on a board: the most workers, of all generations together, that can be alive at once."""

NOT_ACCEPTING = 2**63
"""The load of a row whose worker doesn't accept connections."""


class Cell(IntEnum):
    """The columns of the board: the word of a row, its unit, and who writes it.

    The arbiter also empties a row when its worker is gone.
    """

    unit: str
    writer: str

    PID = 0, "pid", "worker"
    GENERATION = 1, "number", "worker"
    STATE = 2, "RowState", "worker"
    BEAT = 3, "monotonic ns", "worker"  # the last time that the event loop ran its timer
    LOAD = 4, "connections", "worker"  # open ones while ready, else NOT_ACCEPTING
    CONNECTIONS = 5, "connections", "worker"
    IN_FLIGHT = 6, "requests", "worker"
    REQUESTS = 7, "requests", "worker"
    STATUS_1XX = 8, "responses", "worker"
    STATUS_2XX = 9, "responses", "worker"
    STATUS_3XX = 10, "responses", "worker"
    STATUS_4XX = 11, "responses", "worker"
    STATUS_5XX = 12, "responses", "worker"
    WEBSOCKETS = 13, "connections", "worker"

    def __new__(cls, word: int, unit: str, writer: str) -> Cell:
        cell = int.__new__(cls, word)
        cell._value_ = word
        cell.unit = unit
        cell.writer = writer
        return cell


class RowState(IntEnum):
    """The values of the STATE cell."""

    GONE = 0
    BOOTING = 1
    READY = 2
    DRAINING = 3


WORDS = 64
"""Words of a row. There are more than columns, so that a newer ESG can add columns to old rows."""

_SIZE = WORDS * 8
_EMPTY = [0] * WORDS
_EMPTY[Cell.LOAD] = NOT_ACCEPTING

_FUTURE_WRITE = 0x10
"""F_SEAL_FUTURE_WRITE, since Linux 5.1: no new mappings for writing can be made (fcntl(2))."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Row:
    """A worker's own row, which it writes, and the loads of the other workers, which it reads."""

    __slots__ = ("_all", "_others", "_words", "number")

    def __init__(self, words: memoryview, number: int = 1) -> None:
        """`words` is the row's memory."""
        self.number = number
        self._words = words
        self._others: dict[int, memoryview] = {}
        self._all = [words]

    @classmethod
    def alone(cls) -> Row:
        """A row for a worker without an arbiter, which no other process reads."""
        memory = memoryview(bytearray(_SIZE)).cast("Q")
        _empty(memory)
        return cls(memory)

    def __getitem__(self, cell: int) -> int:
        return self._words[cell]

    def __setitem__(self, cell: int, value: int) -> None:
        self._words[cell] = value

    def beat(self) -> None:
        """Record that the event loop turns."""
        self._words[Cell.BEAT] = time.monotonic_ns()

    def see(self, number: int, fd: int) -> None:
        """Also read the load of the worker `number` from the row behind `fd`, which this closes.

        Raises OSError or ValueError if the row can't be mapped.
        """
        try:
            self._see(number, _words_behind(fd, mmap.PROT_READ))
        finally:
            os.close(fd)

    def _see(self, number: int, words: memoryview) -> None:
        self._others[number] = words
        self._all = [self._words, *self._others.values()]

    def forget(self, number: int) -> None:
        """No longer read the load of the worker `number`."""
        self._others.pop(number, None)
        self._all = [self._words, *self._others.values()]

    def loads(self) -> list[int]:
        """The load for every worker number; NOT_ACCEPTING for workers that aren't ready."""
        return [words[Cell.LOAD] for words in self._all]


class Scoreboard:
    """The arbiter's view of all rows. Worker numbers begin at 1."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self._words: dict[int, memoryview] = {}
        self._reading: dict[int, int] = {}
        """Descriptors of the rows, open for reading only; a row without a file has none."""

    def new_row(self, number: int) -> Row:
        """Make the row of a worker about to be forked, in memory that no other worker has had.

        Raises ValueError if the number is out of range, and OSError if there is no memory or no
        descriptor for the row.
        """
        if not 1 <= number <= self.capacity:
            raise ValueError(f"no row {number} on a board of {self.capacity}")
        self.remove(number)
        words, reading = _memory(f"esg-row-{number}")
        _empty(words)
        self._words[number] = words
        if reading >= 0:
            self._reading[number] = reading
        return Row(words, number)

    def remove(self, number: int) -> bool:
        """Empty the row of a worker that is gone, since others may still map it, and drop it.

        Returns False if the row was taken over, and so can't be written. Then the other workers
        have to be told to forget it.
        """
        words = self._words.pop(number, None)
        can_be_emptied = words is None or not words.readonly
        if words is not None and can_be_emptied:
            _empty(words)
        reading = self._reading.pop(number, None)
        if reading is not None:
            os.close(reading)
        return can_be_emptied

    def descriptors(self) -> Mapping[int, int]:
        """The rows that can be handed on: by number, a descriptor that is open for reading only.

        A process that takes this one's place passes them to `take_over`. Rows without a file, where
        a sandbox denies memory files, can't be handed on.
        """
        return dict(self._reading)

    def take_over(self, rows: Mapping[int, int]) -> None:
        """Read the rows behind these descriptors, which belong to the board from now on.

        The seals of a row permit no new mapping for writing, so this board can't empty it. Raises
        OSError or ValueError if a row can't be mapped; that row's descriptor, and those of the
        rows after it, still belong to the caller.
        """
        for number, fd in rows.items():
            self.remove(number)
            self._words[number] = _words_behind(fd, mmap.PROT_READ)
            self._reading[number] = fd

    def reading_fd(self, number: int) -> int | None:
        """A descriptor of a row, open for reading only; None if the row isn't a file."""
        return self._reading.get(number)

    def hand_over(self, row: Row) -> None:
        """In a worker: give up all rows but its own, and let it read the loads of the others."""
        for number, words in self._words.items():
            if number == row.number:
                continue
            if number in self._reading:
                memory = words.obj
                words.release()
                assert isinstance(memory, mmap.mmap)
                memory.close()
                row.see(number, self._reading.pop(number))
            else:
                row._see(number, words)
        self.let_go()

    def let_go(self) -> None:
        """In a child without a row: give up all rows. The rows of other processes don't change."""
        self._close_descriptors()
        self._words = {}

    def _close_descriptors(self) -> None:
        for fd in self._reading.values():
            os.close(fd)
        self._reading = {}

    def value(self, number: int, cell: Cell) -> int:
        """The value of this cell of a worker; 0 if it has no row."""
        words = self._words.get(number)
        return words[cell] if words is not None else 0

    def age(self, number: int) -> float:
        """Seconds since the worker's last heartbeat; 0 before its first one.

        A heartbeat in the future counts as infinitely old: both processes read the same clock, so
        the worker made it up.
        """
        words = self._words.get(number)
        beat = words[Cell.BEAT] if words is not None else 0
        if not beat:
            return 0.0
        # The clock is read after the heartbeat; otherwise the heartbeat could be newer.
        age = time.monotonic_ns() - beat
        return age / 1e9 if age >= 0 else math.inf


def _empty(words: memoryview) -> None:
    for cell, value in enumerate(_EMPTY):
        words[cell] = value


def _memory(name: str) -> tuple[memoryview, int]:
    """Shared memory for a row, and a descriptor of it that can only be read. Raises OSError.

    If a sandbox denies memory files or /proc, children inherit the memory, and all of them can
    write to it; then the descriptor is -1.
    """
    try:
        return _memory_file(name)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        return memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q"), -1


def _memory_file(name: str) -> tuple[memoryview, int]:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        os.fchmod(fd, 0o400)  # otherwise the worker could reopen it for writing
        words = _words_behind(fd, mmap.PROT_READ | mmap.PROT_WRITE)
        try:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS | _FUTURE_WRITE)
        except OSError:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return words, os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)


def _words_behind(fd: int, access: int) -> memoryview:
    """The words of the row in this file. Raises OSError or ValueError if it can't be mapped."""
    memory = mmap.mmap(fd, mmap.PAGESIZE, prot=access)
    return memoryview(memory).cast("Q")
