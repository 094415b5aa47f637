"""Frames as bytes, and the choice of the library."""

from __future__ import annotations

import importlib.util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esg.server.websocket import frames
from esg.server.websocket.libraries import library
from esg.settings.schema import Config


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_both_ways_to_unmask_agree(content, mask):
    expected = bytes(byte ^ mask[at % 4] for at, byte in enumerate(content))
    assert frames._unmask(content, mask) == expected
    assert frames.unmask(content, mask) == expected
    assert frames.unmask(memoryview(b"x" + content)[1:], mask) == expected


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65535, b"\x81\x7e\xff\xff"),
        (65536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_the_length_has_as_few_bytes_as_it_needs(size, head):
    assert frames.pack(frames.TEXT, b"x" * size) == head + b"x" * size


@given(st.text())
def test_a_reason_is_cut_to_fit_and_stays_valid_text(reason):
    cut = frames.cut_reason(reason)
    assert len(cut.encode()) <= 123
    assert reason.startswith(cut)
    assert cut == reason or len(reason[: len(cut) + 1].encode()) > 123


def test_characters_of_a_reason_that_cannot_be_encoded_are_replaced():
    assert frames.cut_reason("a\ud800b") == "a?b"


@given(st.integers(0, 255), st.booleans(), st.integers(0, 200), st.booleans())
def test_only_valid_headers_are_accepted(first, masked, length, compressed):
    opcode, reserved = first & 15, first >> 4 & 7
    sound = (
        masked
        and opcode in (0, 1, 2, 8, 9, 10)
        and (reserved == 0 or (compressed and reserved == 4 and opcode in (1, 2)))
        and (opcode < 8 or (first >= 128 and length <= 125))
    )
    if sound:
        frames.check_header(first, masked, length, compressed)
    else:
        with pytest.raises(frames.Failure) as caught:
            frames.check_header(first, masked, length, compressed)
        assert caught.value.code == 1002


def library_of(name, monkeypatch, missing=()):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    found = library(Config(app="a:b", ws=name, origins={"ws": "--ws"}))
    return found and found.name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("auto", "websockets"),
        ("websockets", "websockets"),
        ("websockets-sansio", "websockets"),
        ("wsproto", "wsproto"),
        ("none", None),
    ],
)
def test_a_name_selects_the_library(name, expected, monkeypatch):
    assert library_of(name, monkeypatch) == expected


def test_without_a_library_auto_means_none(monkeypatch):
    assert library_of("auto", monkeypatch, missing=["websockets"]) is None
