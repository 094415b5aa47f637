"""Shared memory in which each worker says how it is; one row a worker, written by it alone.

The arbiter makes the board before it forks, clears a row when its worker is gone, and reads.
Every cell is one aligned 64-bit word, so a reader sees a value whole, if perhaps an old one.
"""

from __future__ import annotations

import mmap
import time
from enum import IntEnum

CAPACITY = 1024
"""Rows on a board: the most workers, of all generations together, that can be alive at once."""

NOT_ACCEPTING = 2**63
"""The load of a row whose worker doesn't take connections."""


class Cell(IntEnum):
    """The words of a row."""

    PID = 0
    GENERATION = 1
    STATE = 2
    BEAT = 3  # monotonic nanoseconds of the event loop's last turn of its timer
    LOAD = 4  # open connections while ready, else NOT_ACCEPTING
    CONNECTIONS = 5
    IN_FLIGHT = 6
    REQUESTS = 7
    STATUS_1XX = 8
    STATUS_2XX = 9
    STATUS_3XX = 10
    STATUS_4XX = 11
    STATUS_5XX = 12
    WEBSOCKETS = 13


class RowState(IntEnum):
    """What a worker says of itself in the STATE cell."""

    GONE = 0
    BOOTING = 1
    READY = 2
    DRAINING = 3


WORDS = 16
_EMPTY = [0] * WORDS
_EMPTY[Cell.LOAD] = NOT_ACCEPTING


class Row:
    """A worker's row, as that worker writes it."""

    __slots__ = ("_board", "_words", "number")

    def __init__(self, board: Scoreboard, number: int) -> None:
        self.number = number
        self._board = board
        self._words = board.words_of(number)

    def __getitem__(self, cell: Cell) -> int:
        return self._words[cell]

    def __setitem__(self, cell: Cell, value: int) -> None:
        self._words[cell] = value

    def beat(self) -> None:
        """Record that the event loop turns."""
        self._words[Cell.BEAT] = time.monotonic_ns()

    def loads(self) -> list[int]:
        """The load of every worker there may be; NOT_ACCEPTING for those that aren't ready."""
        return self._board.loads()


class Scoreboard:
    """The whole board. Worker numbers begin at 1; the first row holds the board's own facts."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self._memory = mmap.mmap(-1, (capacity + 1) * WORDS * 8)
        self._words = memoryview(self._memory).cast("Q")
        self._loads = self._words[WORDS + Cell.LOAD :: WORDS]
        self._header = self._words[:WORDS]
        for number in range(1, capacity + 1):
            self.clear(number)

    def words_of(self, number: int) -> memoryview:
        """The words of a row; ValueError if there is no such row."""
        if not 1 <= number <= self.capacity:
            raise ValueError(f"no row {number} on a board of {self.capacity}")
        return self._words[number * WORDS : (number + 1) * WORDS]

    def row(self, number: int) -> Row:
        """The row of a worker, to write."""
        return Row(self, number)

    def clear(self, number: int) -> None:
        """Empty a row: before its worker is forked, and after it is gone. For the arbiter."""
        words = self.words_of(number)
        for cell, value in enumerate(_EMPTY):
            words[cell] = value

    def note_highest(self, number: int) -> None:
        """Tell readers that no row beyond `number` is in use. For the arbiter."""
        self._header[0] = number

    def loads(self) -> list[int]:
        """The loads of the rows that may be in use."""
        return self._loads[: self._header[0]].tolist()

    def age(self, number: int, now_ns: int) -> float:
        """Seconds since the worker's last beat; 0 before its first one."""
        beat = self._words[number * WORDS + Cell.BEAT]
        return max(0, now_ns - beat) / 1e9 if beat else 0.0
