"""The messages of `esgctl` and the arbiter: any bytes are understood, or raise one error."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esg.commands import Answer, decode_answer, decode_request, encode_answer, encode_request

NO_COMMANDS = [
    b"",
    b"reload",
    b"\xff\xfe",
    b"7",
    b"[]",
    b"{}",
    b'{"command": null}',
    b'{"command": ["reload"]}',
    b'{"command": "stop"}',
    b"[" * 4000,
    b'{"command":' * 300 + b"[" * 700,
    b"9" * 4096,
]


def test_a_command_is_decoded_as_it_was_encoded():
    assert decode_request(encode_request("reload")) == "reload"


@pytest.mark.parametrize("line", NO_COMMANDS, ids=lambda line: ascii(line[:30]))
def test_an_invalid_command_is_a_value_error(line):
    with pytest.raises(ValueError, match=r"expected a line such as|unknown command"):
        decode_request(line)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_command_or_a_value_error(line):
    with pytest.raises(ValueError, match=r"expected a line such as|unknown command"):
        decode_request(line)


@given(st.booleans(), st.text(max_size=50), st.text(max_size=50), st.booleans())
def test_an_answer_is_decoded_as_it_was_encoded(ok, text, detail, stopping):
    answer = Answer(ok, text, detail, stopping)
    assert decode_answer(encode_answer(answer)) == answer


@pytest.mark.parametrize(
    "fields", [{}, {"ok": 1, "text": "a"}, {"ok": True, "text": None}, {"ok": True, "more": 1}]
)
def test_an_invalid_answer_is_a_value_error(fields):
    with pytest.raises(ValueError, match="another version"):
        decode_answer(json.dumps(fields).encode())


def test_a_nested_answer_is_a_value_error():
    with pytest.raises(ValueError, match="another version"):
        decode_answer(b"[" * 100_000)
