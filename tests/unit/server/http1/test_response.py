"""The bytes of a response's head; an application's values can't add a line."""

from __future__ import annotations

import email.utils
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from esg.server.http1.response import (
    CLOSE,
    CONTENT_LENGTH,
    DATE,
    SERVER,
    Heads,
    InvalidHeader,
    check_fields,
    check_status,
    plain_response,
    status_line,
)

LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [^\r\n\0]*\r\n")


def lines_of(headers):
    """The lines that are sent for these fields."""
    return check_fields(headers)[0][1:]


# -- fields ----------------------------------------------------------------------------


@given(st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=12)), max_size=5))
@example([(b"a", b"b\r\nc: d")])
@example([(b"a\r\nb", b"c")])
@example([(b"a:b", b"c")])
def test_fields_are_sent_as_one_line_each_or_not_at_all(headers):
    try:
        lines = lines_of(headers)
    except InvalidHeader:
        return
    for line in lines:
        assert LINE.fullmatch(line)
    given_names = [
        name for name, _ in headers if name.lower() not in (b"connection", b"transfer-encoding")
    ]
    assert [line.partition(b":")[0] for line in lines] == given_names


@pytest.mark.parametrize(
    "name", [b"", b" ", b"a b", b"a:", b"a\n", b"\xe9", b"a\0", b"(a)", b"a\t"]
)
def test_bad_names_are_refused(name):
    for _ in range(2):
        with pytest.raises(InvalidHeader):
            check_fields([(name, b"x")])


@pytest.mark.parametrize("value", [b"\r", b"\n", b"\0", b"a\r\nb: c", b"a\n b"])
def test_bad_values_are_refused(value):
    for _ in range(2):
        with pytest.raises(InvalidHeader):
            check_fields([(b"a", value)])


@pytest.mark.parametrize("field", [("a", b"b"), (b"a", "b"), (b"a", 1), (None, b"b")])
def test_names_and_values_are_bytes(field):
    for _ in range(2):
        with pytest.raises(InvalidHeader, match="bytes"):
            check_fields([field])


def test_values_may_have_any_other_byte():
    value = bytes(set(range(256)) - set(b"\r\n\0"))
    assert lines_of([(b"a", value)]) == [b"a: " + value + b"\r\n"]


def test_a_checked_field_is_sent_the_same_the_second_time():
    fields = [(b"X-A", b"1"), (b"x-a", b"1"), (b"X-A", b"2")]
    first = lines_of(fields)
    assert first == lines_of(fields) == [b"X-A: 1\r\n", b"x-a: 1\r\n", b"X-A: 2\r\n"]


def test_any_number_of_different_fields_can_be_sent():
    for number in range(3000):
        assert lines_of([(b"x-number", b"%d" % number)]) == [b"x-number: %d\r\n" % number]


@pytest.mark.parametrize("name", [b"Transfer-Encoding", b"connection"])
def test_framing_and_connection_fields_are_not_copied(name):
    assert lines_of([(b"a", b"b"), (name, b"chunked"), (b"c", b"d")]) == [b"a: b\r\n", b"c: d\r\n"]


@pytest.mark.parametrize(
    ("value", "closes"),
    [(b"close", True), (b"Close", True), (b"a, close", True), (b"keep-alive", False), (b"", False)],
)
def test_the_connection_option_close_is_recognised(value, closes):
    assert bool(check_fields([(b"Connection", value)])[1] & CLOSE) is closes


@given(st.integers(0, 10**17))
def test_a_content_length_is_read(length):
    _, kinds, found = check_fields([(b"Content-Length", b"%d" % length)])
    assert kinds & CONTENT_LENGTH
    assert found == length


def test_the_lack_of_a_content_length_is_noticed():
    _, kinds, found = check_fields([(b"a", b"b")])
    assert not kinds & CONTENT_LENGTH
    assert found < 0


@pytest.mark.parametrize(
    "value", [b"", b"-1", b"+1", b"1.0", b"1,1", b"x", b"\xb2", b"1_0", b"1 2"]
)
def test_bad_content_lengths_are_refused(value):
    for _ in range(2):
        with pytest.raises(InvalidHeader):
            check_fields([(b"content-length", value)])


def test_date_and_server_are_recognised():
    kinds = check_fields([(b"DATE", b"x"), (b"Server", b"y")])[1]
    assert kinds & DATE
    assert kinds & SERVER


# -- status ----------------------------------------------------------------------------


@given(st.integers(200, 999))
def test_a_status_line_has_the_status_and_a_phrase(status):
    assert re.fullmatch(rb"HTTP/1\.1 %d [A-Za-z' -]*\r\n" % status, status_line(status))


@pytest.mark.parametrize("status", [-1, 0, 99, 100, 199, 1000, 10**20])
def test_statuses_that_are_not_final_are_refused(status):
    with pytest.raises(InvalidHeader):
        check_status(status)


@pytest.mark.parametrize("status", [None, "x", [], b"x"])
def test_invalid_statuses_are_refused(status):
    with pytest.raises((TypeError, ValueError)):
        check_status(status)


# -- default fields --------------------------------------------------------------------


@pytest.mark.parametrize("now", [0, 1, 784111777, 951782400, 1709164800, 2**31, 4102444799])
def test_the_date_is_that_of_the_clock(now):
    heads = Heads(server_header=False, date_header=True)
    heads.refresh(now)
    head = heads.begin(200, 0)
    assert head == b"HTTP/1.1 200 OK\r\ndate: %b\r\n" % (
        email.utils.formatdate(now, usegmt=True).encode()
    )


def test_a_refreshed_date_shows_in_every_status():
    heads = Heads(server_header=True, date_header=True)
    for now in (0, 86400):
        heads.refresh(now)
        for status in (200, 404):
            day = b"01 Jan 1970" if now == 0 else b"02 Jan 1970"
            assert day in heads.begin(status, 0)
            assert day in heads.begin(status, SERVER)


@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize("date", [True, False])
@pytest.mark.parametrize("own", [0, DATE, SERVER, DATE | SERVER])
def test_default_fields_are_there_unless_off_or_given(server, date, own):
    head = Heads(server_header=server, date_header=date).begin(200, own)
    assert head.count(b"\r\nserver: ") == (server and not own & SERVER)
    assert head.count(b"\r\ndate: ") == (date and not own & DATE)
    assert head.endswith(b"\r\n")
    assert not head.endswith(b"\r\n\r\n")


def test_added_fields_are_in_every_head():
    heads = Heads(True, True, ("X-A: 1", "X-A: 2", "X-B: caf\xe9"))
    for own in (0, DATE, SERVER, DATE | SERVER):
        assert heads.begin(204, own).endswith(b"\r\nX-A: 1\r\nX-A: 2\r\nX-B: caf\xe9\r\n")
    assert heads.add(200)[1] == heads.begin(200, 0)


@pytest.mark.parametrize("default", [True, False])
def test_an_added_server_or_date_replaces_the_default_one(default):
    heads = Heads(default, default, ("SERVER: mine", "Date: never"))
    heads.refresh(0)
    assert heads.begin(200, 0) == b"HTTP/1.1 200 OK\r\nSERVER: mine\r\nDate: never\r\n"
    assert heads.begin(200, DATE | SERVER) == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("status", [400, 408, 413, 414, 431, 500, 501, 505])
def test_the_servers_own_responses_are_complete_and_close(status):
    response = plain_response(status, Heads(server_header=True, date_header=True))
    head, _, body = response.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    assert first == status_line(status)[:-2]
    fields = dict(line.split(b": ", 1) for line in lines)
    assert int(fields[b"content-length"]) == len(body) > 0
    assert fields[b"connection"] == b"close"


def test_the_servers_own_response_to_head_has_no_body():
    heads = Heads(server_header=True, date_header=False)
    head, end, _ = plain_response(404, heads).partition(b"\r\n\r\n")
    assert plain_response(404, heads, head_only=True) == head + end
