"""For any bytes, both parsers have the same result, or both refuse them."""

from __future__ import annotations

import dataclasses
import itertools

from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from tests.support.stage import PARSERS, Verdict

from .corpus import cases
from .grammar import damaged, outside, streams

AT_ONCE = 20
"""The number of streams in an example; concurrently they take little longer than one."""

END = b"\r\n\r\n"
"""The end of a header section: h11 looks at the whole section, llhttp at each byte."""

CORPUS = [case.data for case in cases(lambda case: len(case.data) < 1000)]

SOUND = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
]

HARMLESS = [b"A: b", b"A:", b"Accept: */*", b"Connection: x", b"A: \xff", b"Expect: 100-continue"]

_LINE, _HOST = b"POST / HTTP/1.1", b"Host: a"
FAULTS = {
    "unknown coding": (_LINE, [_HOST, b"Transfer-Encoding: gzip"], 501),
    "coding before chunked": (_LINE, [_HOST, b"Transfer-Encoding: gzip, chunked"], 501),
    "chunked is not last": (_LINE, [_HOST, b"Transfer-Encoding: chunked, gzip"], 400),
    "no coding": (_LINE, [_HOST, b"Transfer-Encoding:"], 400),
    "coding and length": (
        _LINE,
        [_HOST, b"Transfer-Encoding: chunked", b"Content-Length: 5"],
        400,
    ),
    "unknown coding and length": (
        _LINE,
        [_HOST, b"Transfer-Encoding: gzip", b"Content-Length: 5"],
        400,
    ),
    "length with a sign": (_LINE, [_HOST, b"Content-Length: +5"], 400),
    "two lengths": (_LINE, [_HOST, b"Content-Length: 5", b"Content-Length: 6"], 400),
    "endless length": (_LINE, [_HOST, b"Content-Length: " + b"9" * 30], 400),
    "no host": (_LINE, [], 400),
    "two hosts": (_LINE, [_HOST, b"Host: b"], 400),
    "a space in the host": (_LINE, [b"Host: a b"], 400),
    "connect": (b"CONNECT a:80 HTTP/1.1", [b"Host: a:80"], 501),
    "unknown method": (b"BREW / HTTP/1.1", [_HOST], 400),
    "later version": (b"GET / HTTP/1.2", [_HOST], 505),
    "much later version": (b"GET / HTTP/2.0", [_HOST], 505),
    "no version": (b"GET / HTTP/x", [_HOST], 400),
    "no path": (b"GET x HTTP/1.1", [_HOST], 400),
    "space before a colon": (_LINE, [_HOST, b"A : b"], 400),
    "folded line": (_LINE, [_HOST, b"A: b", b" c"], 400),
    "control character": (_LINE, [_HOST, b"A: \x01"], 400),
}
"""Requests with one fault each: request line, fields, and the status of the answer."""

thoroughly = settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def understood(verdict: Verdict) -> Verdict:
    """The part of a verdict that must be the same.

    If a request has several faults, each parser may find a different one first, so all refusals
    count as the same. Requests with a single fault are tested below.
    """
    statuses = tuple(min(status, 400) for status in verdict.statuses)
    return dataclasses.replace(verdict, statuses=statuses, output=b"")


def agree(stages, data: list[bytes]) -> None:
    plays = [[one + END] for one in data if not outside(one)]
    assume(plays)
    ours, theirs = (stage.play(plays) for stage in stages.values())
    for play, one, other in zip(plays, ours, theirs, strict=True):
        assert understood(one) == understood(other), play


@thoroughly
@given(data=st.lists(streams(), min_size=AT_ONCE, max_size=AT_ONCE))
@example(data=[b"GET / HTTP/1.1\r\nHost: a\r\nProxy-Connection: close\r\n\r\nGET /b HTTP/1.1\r\n"])
@example(data=[b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\rGET /b HTTP/1.1\r\nHost: a"])
def test_the_parsers_agree_on_requests_of_a_grammar(stages, data):
    agree(stages, data)


@thoroughly
@given(data=st.lists(damaged(st.sampled_from(CORPUS)), min_size=AT_ONCE, max_size=AT_ONCE))
def test_the_parsers_agree_on_damaged_cases_of_the_corpus(stages, data):
    agree(stages, data)


@thoroughly
@given(data=st.lists(st.binary(max_size=200), min_size=AT_ONCE, max_size=AT_ONCE))
def test_the_parsers_agree_on_any_bytes(stages, data):
    agree(stages, data)


@thoroughly
@given(
    before=st.lists(st.sampled_from(SOUND), max_size=3),
    fault=st.sampled_from(sorted(FAULTS)),
    around=st.lists(st.sampled_from(HARMLESS), max_size=6),
    at=st.integers(0, 6),
)
@example(before=[], fault="unknown coding", around=[], at=0)
@example(before=[], fault="coding and length", around=[], at=0)
def test_a_single_fault_has_one_status(stages, before, fault, around, at):
    """In any position: a 501 means that the request is well-formed, a 400 that it isn't."""
    line, fields, status = FAULTS[fault]
    lines = [line, *around[:at], *fields, *around[at:], b"", b""]
    data = b"".join([*before, b"\r\n".join(lines)])
    for parser, stage in stages.items():
        (verdict,) = stage.play([[data]])
        assert verdict.statuses == (*[200] * len(before), status), parser
        assert verdict.closed


@thoroughly
@given(
    data=streams(),
    ends=st.lists(st.floats(0, 1), max_size=6),
    parser=st.sampled_from(PARSERS),
)
def test_cuts_change_nothing(stages, data, ends, parser):
    """Even if the bytes are damaged, the output is the same."""
    data += END
    cuts = sorted({int(end * len(data)) for end in ends} | {0, len(data)})
    pieces = [data[a:b] for a, b in itertools.pairwise(cuts)]
    whole, cut = stages[parser].play([[data], pieces])
    assert cut == whole
