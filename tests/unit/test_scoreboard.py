"""Shared memory in which each worker says how it is."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esg.scoreboard import NOT_ACCEPTING, WORDS, Cell, RowState, Scoreboard


def test_a_new_board_is_empty():
    board = Scoreboard(4)
    for number in range(1, 5):
        row = board.row(number)
        assert row[Cell.STATE] == RowState.GONE
        assert row[Cell.LOAD] == NOT_ACCEPTING
        assert all(row[cell] == 0 for cell in Cell if cell is not Cell.LOAD)


@given(st.sampled_from(Cell), st.integers(0, 2**64 - 1))
def test_a_cell_holds_64_bits(cell, value):
    row = Scoreboard(1).row(1)
    row[cell] = value
    assert row[cell] == value


@given(
    st.dictionaries(
        st.tuples(st.integers(1, 8), st.sampled_from(Cell)), st.integers(0, 2**64 - 1), max_size=30
    )
)
def test_rows_do_not_overlap(values):
    board = Scoreboard(8)
    for (number, cell), value in values.items():
        board.row(number)[cell] = value
    for number in range(1, 9):
        for cell in Cell:
            empty = NOT_ACCEPTING if cell is Cell.LOAD else 0
            assert board.row(number)[cell] == values.get((number, cell), empty)


@pytest.mark.parametrize("number", [-1, 0, 5])
def test_rows_that_do_not_exist(number):
    with pytest.raises(ValueError, match=str(number)):
        Scoreboard(4).row(number)


def test_every_cell_is_within_its_row():
    assert max(Cell) < WORDS
    assert len({int(cell) for cell in Cell}) == len(Cell)


def test_two_rows_of_one_number_are_the_same_memory():
    board = Scoreboard(2)
    board.row(1)[Cell.PID] = 7
    assert board.row(1)[Cell.PID] == 7
    assert board.words_of(1)[Cell.PID] == 7


def test_clearing_a_row_leaves_the_others():
    board = Scoreboard(2)
    for number in (1, 2):
        board.row(number)[Cell.PID] = number
        board.row(number)[Cell.LOAD] = 5
    board.clear(1)
    assert board.row(1)[Cell.PID] == 0
    assert board.row(1)[Cell.LOAD] == NOT_ACCEPTING
    assert (board.row(2)[Cell.PID], board.row(2)[Cell.LOAD]) == (2, 5)


def test_loads_reach_to_the_highest_row_in_use():
    board = Scoreboard(8)
    assert board.loads() == []
    board.row(1)[Cell.LOAD] = 10
    board.row(3)[Cell.LOAD] = 30
    board.row(5)[Cell.LOAD] = 50
    board.note_highest(3)
    assert board.loads() == [10, NOT_ACCEPTING, 30]
    assert board.row(1).loads() == board.loads()


def test_the_age_of_a_beat():
    board = Scoreboard(2)
    assert board.age(1, 10**18) == 0
    row = board.row(1)
    row.beat()
    beat = row[Cell.BEAT]
    assert board.age(1, beat) == 0
    assert board.age(1, beat + 1_500_000_000) == 1.5
    assert board.age(1, beat - 1) == 0


def test_beats_go_forward():
    row = Scoreboard(1).row(1)
    row.beat()
    first = row[Cell.BEAT]
    row.beat()
    assert row[Cell.BEAT] >= first > 0


def test_a_child_writes_what_its_parent_reads():
    board = Scoreboard(2)
    pid = os.fork()
    if not pid:
        board.row(2)[Cell.PID] = os.getpid()
        os._exit(0)
    os.waitpid(pid, 0)
    assert board.row(2)[Cell.PID] == pid
