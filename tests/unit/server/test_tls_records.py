"""Counts the TLS records of a stream that arrives in pieces of any size."""

from __future__ import annotations

import random

import pytest

from esg.server.tls_records import RecordEnds

MANY = 1 << 30


def record(size):
    return b"\x17\x03\x03" + size.to_bytes(2, "big") + bytes(size)


def test_all_records_of_a_piece_are_counted():
    ends = RecordEnds()
    data = record(1) + record(16384) + record(0)
    assert ends.cut(data, MANY) == (len(data), 3)
    assert not ends.inside


def test_counting_stops_at_its_bound():
    ends = RecordEnds()
    data = record(1) * 10 + record(700)
    assert ends.cut(data, 4) == (4 * 6, 4)
    assert not ends.inside
    assert ends.cut(data[24:], 6) == (6 * 6, 6)
    assert ends.cut(data[60:], 1) == (705, 1)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 100, 5000])
def test_records_are_counted_in_pieces_of_one_size(size):
    data = record(1) + record(0) + record(300) + record(2)
    ends, ended = RecordEnds(), 0
    for at in range(0, len(data), size):
        piece = data[at : at + size]
        used, count = ends.cut(piece, MANY)
        assert used == len(piece)
        ended += count
    assert ended == 4
    assert not ends.inside


@pytest.mark.parametrize("seed", range(20))
def test_records_are_counted_in_pieces_of_any_size_up_to_any_bound(seed):
    dice = random.Random(seed)
    sizes = [dice.choice((0, 1, 17, 22, 4000)) for _ in range(200)]
    borders, data = {0}, b""
    for size in sizes:
        data += record(size)
        borders.add(len(data))
    ends, ended, at = RecordEnds(), 0, 0
    rest = b""
    while at < len(data) or rest:
        if not rest:
            size = dice.choice((1, 3, 6, 50, 5000))
            rest, at = data[at : at + size], at + size
        most = dice.randint(1, 5)
        used, count = ends.cut(rest, most)
        assert count <= most
        assert 0 < used <= len(rest)
        rest = rest[used:]
        assert ends.inside == (min(at, len(data)) - len(rest) not in borders)
        ended += count
    assert ended == len(sizes)
