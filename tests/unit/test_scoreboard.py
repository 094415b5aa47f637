"""Shared memory in which each worker reports its state."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import math
import mmap
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esg.scoreboard import NOT_ACCEPTING, WORDS, Cell, Row, RowState, Scoreboard


def test_a_new_board_is_empty():
    board = Scoreboard(4)
    for number in range(1, 5):
        row = board.new_row(number)
        assert row[Cell.STATE] == RowState.GONE
        assert row[Cell.LOAD] == NOT_ACCEPTING
        assert all(row[cell] == 0 for cell in Cell if cell is not Cell.LOAD)


@given(st.sampled_from(Cell), st.integers(0, 2**64 - 1))
def test_a_cell_holds_64_bits(cell, value):
    row = Row.alone()
    row[cell] = value
    assert row[cell] == value


@given(
    st.dictionaries(
        st.tuples(st.integers(1, 8), st.sampled_from(Cell)), st.integers(0, 2**64 - 1), max_size=30
    )
)
def test_rows_do_not_overlap(values):
    board = Scoreboard(8)
    rows = {number: board.new_row(number) for number in range(1, 9)}
    for (number, cell), value in values.items():
        rows[number][cell] = value
    for number, row in rows.items():
        for cell in Cell:
            empty = NOT_ACCEPTING if cell is Cell.LOAD else 0
            assert row[cell] == values.get((number, cell), empty)


@pytest.mark.parametrize("number", [-1, 0, 5])
def test_a_row_outside_the_board_is_refused(number):
    with pytest.raises(ValueError, match=str(number)):
        Scoreboard(4).new_row(number)


def test_every_cell_is_within_its_row():
    assert max(Cell) < WORDS
    assert len({int(cell) for cell in Cell}) == len(Cell)


def test_every_column_says_its_unit_and_who_writes_it():
    assert all(cell.unit and cell.writer == "worker" for cell in Cell)


def test_a_row_has_room_for_more_columns():
    row = Row.alone()
    row[WORDS - 1] = 7
    assert row[WORDS - 1] == 7
    assert 2 * len(Cell) <= WORDS


def test_a_removed_row_is_empty_for_processes_that_still_see_it():
    board = Scoreboard(2)
    rows = {number: board.new_row(number) for number in (1, 2)}
    for number, row in rows.items():
        row[Cell.BEAT] = number
        row[Cell.LOAD] = 5
    before = len(os.listdir("/proc/self/fd"))
    board.remove(1)
    board.remove(1)
    assert rows[1][Cell.BEAT] == 0
    assert rows[1][Cell.LOAD] == NOT_ACCEPTING
    assert (rows[2][Cell.BEAT], rows[2][Cell.LOAD]) == (2, 5)
    del rows[1]
    assert len(os.listdir("/proc/self/fd")) < before, "no descriptor of it is left"


def test_a_new_worker_has_memory_that_the_previous_one_cannot_write_to():
    board = Scoreboard(1)
    old, new = board.new_row(1), board.new_row(1)
    old[Cell.BEAT] = 7
    assert new[Cell.BEAT] == 0


def test_an_embedded_server_sees_its_own_load_alone():
    row = Row.alone()
    row[Cell.LOAD] = 5
    assert row.loads() == [5]


def test_the_age_of_a_beat_is_the_time_since_then():
    board = Scoreboard(2)
    assert board.age(1) == 0, "there is no such row yet"
    row = board.new_row(1)
    assert board.age(1) == 0, "it has not beaten yet"
    before = time.monotonic_ns()
    row[Cell.BEAT] = before - 1_500_000_000
    age = board.age(1)
    assert 1.5 <= age <= 1.5 + (time.monotonic_ns() - before) / 1e9


@pytest.mark.parametrize("ahead", [10**9, 2**63, 2**64 - 1])
def test_a_beat_in_the_future_is_no_sign_of_life(ahead):
    board = Scoreboard(1)
    row = board.new_row(1)
    row[Cell.BEAT] = min(time.monotonic_ns() + ahead, 2**64 - 1)
    assert board.age(1) == math.inf


def test_an_honest_beat_is_never_in_the_future():
    board = Scoreboard(1)
    row = board.new_row(1)
    for _ in range(1000):
        row.beat()
        assert board.age(1) < math.inf


def test_beats_go_forward():
    row = Row.alone()
    row.beat()
    first = row[Cell.BEAT]
    row.beat()
    assert row[Cell.BEAT] >= first > 0


# -- in another process ------------------------------------------------------------------


def in_child(function):
    """Run `function` in a forked child; its result must be JSON."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - the parent shows it
            result = repr(error)
        os.write(writing, json.dumps(result).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        result = json.loads(pipe.read())
    os.waitpid(pid, 0)
    return result


def test_a_worker_writes_what_the_arbiter_reads():
    board = Scoreboard(3)
    rows = {number: board.new_row(number) for number in (1, 2, 3)}
    rows[3][Cell.LOAD] = 7

    def work():
        board.hand_over(rows[2])
        rows[2][Cell.PID] = 4711
        rows[2][Cell.LOAD] = 5
        return rows[2].loads()

    assert sorted(in_child(work)) == [5, 7, NOT_ACCEPTING]
    assert rows[2][Cell.PID] == 4711
    rows[1].beat()
    assert board.age(1) < math.inf, "the arbiter still has every row"


def test_a_worker_sees_a_row_that_was_made_after_its_fork():
    board = Scoreboard(2)
    row = board.new_row(1)
    board.hand_over(row)  # like the worker's process
    later = Scoreboard(2)
    fd = later.reading_fd(2)
    assert fd is None
    other = later.new_row(2)
    row.see(2, os.dup(later.reading_fd(2)))
    other[Cell.LOAD] = 9
    assert row.loads() == [NOT_ACCEPTING, 9]
    again = Scoreboard(2)
    again.new_row(2)[Cell.LOAD] = 3
    row.see(2, os.dup(again.reading_fd(2)))
    assert row.loads() == [NOT_ACCEPTING, 3]
    later.let_go()
    again.let_go()


def test_a_board_that_takes_rows_over_reads_what_their_workers_write():
    board = Scoreboard(2)
    rows = {number: board.new_row(number) for number in (1, 2)}
    rows[2].beat()
    next_board = Scoreboard(2)
    next_board.take_over({number: os.dup(fd) for number, fd in board.descriptors().items()})
    board.let_go()
    assert next_board.age(1) == 0
    assert 0 < next_board.age(2) < math.inf
    rows[1].beat()
    assert 0 < next_board.age(1) < math.inf
    assert next_board.descriptors().keys() == {1, 2}
    next_board.let_go()


def test_a_row_that_was_taken_over_is_removed_but_cannot_be_emptied():
    board = Scoreboard(1)
    row = board.new_row(1)
    row[Cell.LOAD] = 5
    next_board = Scoreboard(1)
    next_board.take_over({1: os.dup(board.descriptors()[1])})
    assert not next_board.remove(1)
    assert row[Cell.LOAD] == 5
    assert next_board.descriptors() == {}
    assert board.remove(1)
    assert row[Cell.LOAD] == NOT_ACCEPTING


def test_a_worker_forgets_the_row_of_another():
    board = Scoreboard(2)
    board.new_row(2)[Cell.LOAD] = 3
    row = Row.alone()
    row.see(2, os.dup(board.descriptors()[2]))
    row.forget(2)
    row.forget(2)
    assert row.loads() == [NOT_ACCEPTING]
    board.let_go()


def test_a_file_that_is_not_a_row_is_refused_and_closed(tmp_path):
    row = Row.alone()
    before = os.listdir("/proc/self/fd")
    with pytest.raises((OSError, ValueError)):
        row.see(2, os.open(tmp_path, os.O_RDONLY))
    assert os.listdir("/proc/self/fd") == before
    assert row.loads() == [NOT_ACCEPTING]


def test_a_worker_can_write_to_its_own_row_alone():
    """Even native code can't write to others: by another descriptor, mprotect(2) or mremap(2)."""
    files, mappings = open_rows(), mapped_rows()  # of other tests
    board = Scoreboard(3)
    rows = {number: board.new_row(number) for number in (1, 2, 3)}
    rows[1][Cell.PID] = rows[3][Cell.PID] = 1

    def attack():
        board.hand_over(rows[2])
        return [
            *written_by_descriptor(open_rows() - files),
            *written_by_memory(rows[2], mapped_rows() - mappings),
        ]

    assert in_child(attack) == []
    assert rows[1][Cell.PID] == rows[3][Cell.PID] == 1


def open_rows():
    """This process's descriptors of rows, with their names."""
    found = set()
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(FileNotFoundError):  # the descriptor of listdir()
            found.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
    return {(fd, name) for fd, name in found if "esg-row" in name}


def mapped_rows():
    """The lines of proc(5)'s maps that are about rows."""
    with open("/proc/self/maps") as maps:
        return {line for line in maps if "esg-row" in line}


def written_by_descriptor(rows):
    """The ways to write to a row by its descriptor."""
    ways = []
    for fd, name in rows:
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))
        again = [fd]
        with contextlib.suppress(OSError):
            os.fchmod(fd, 0o600)
            again.append(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))
        for other in again:
            for what, write in {
                "pwrite": lambda fd: os.pwrite(fd, b"x", 0),
                "truncate": lambda fd: os.ftruncate(fd, 0),
                "grow": lambda fd: os.ftruncate(fd, 1 << 20),
                "map": lambda fd: mmap.mmap(fd, mmap.PAGESIZE)[0],
            }.items():
                with contextlib.suppress(OSError):
                    write(other)
                    ways.append(f"{what} {name}")
    return ways


def written_by_memory(own, rows):
    """The ways to write to a row by its mapping, except for the worker's own."""
    libc = ctypes.CDLL(None, use_errno=True)
    ways = []
    lines = [line.split() for line in rows]
    for addresses, access, *_, name, _deleted in lines:
        begin, end = (int(text, 16) for text in addresses.split("-"))
        if access[1] == "w":
            ways += [] if name.endswith(f"esg-row-{own.number}") else [f"writable {name}"]
        elif libc.mprotect(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), 3) == 0:
            ways.append(f"mprotect {name}")
    if len(lines) != 3:
        ways.append(f"not all rows are seen: {lines}")
    return ways


def test_without_memory_files_rows_are_inherited_memory(monkeypatch):
    def denied(name, flags):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("esg.scoreboard.os.memfd_create", denied)
    board = Scoreboard(2)
    rows = {number: board.new_row(number) for number in (1, 2)}

    def work():
        board.hand_over(rows[2])
        rows[2][Cell.LOAD] = 5
        return rows[2].loads()

    assert in_child(work) == [5, NOT_ACCEPTING]
    assert rows[2][Cell.LOAD] == 5
    assert board.reading_fd(1) is None


def test_a_lack_of_descriptors_is_an_error(monkeypatch):
    def none_left(name, flags):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("esg.scoreboard.os.memfd_create", none_left)
    with pytest.raises(OSError, match="Too many open files"):
        Scoreboard(2).new_row(1)
