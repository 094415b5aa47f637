"""Both parsers understand the same of any bytes, or both refuse them."""

from __future__ import annotations

import dataclasses
import itertools

from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from tests.support.stage import PARSERS, Verdict

from .corpus import cases
from .grammar import damaged, outside, streams

AT_ONCE = 20
"""How many streams make up an example: side by side they take little more time than one."""

END = b"\r\n\r\n"
"""What ends a header section, which h11 looks at as a whole, and llhttp byte by byte."""

CORPUS = [case.data for case in cases(lambda case: len(case.data) < 1000)]

thoroughly = settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def understood(verdict: Verdict) -> Verdict:
    """What has to be the same.

    Of several faults in one request either parser may see another one first, so that all refusals
    count as one. What both say of a single fault is in the corpus.
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
def test_requests_of_a_grammar(stages, data):
    agree(stages, data)


@thoroughly
@given(data=st.lists(damaged(st.sampled_from(CORPUS)), min_size=AT_ONCE, max_size=AT_ONCE))
def test_damaged_cases_of_the_corpus(stages, data):
    agree(stages, data)


@thoroughly
@given(data=st.lists(st.binary(max_size=200), min_size=AT_ONCE, max_size=AT_ONCE))
def test_any_bytes(stages, data):
    agree(stages, data)


@thoroughly
@given(
    data=streams(),
    ends=st.lists(st.floats(0, 1), max_size=6),
    parser=st.sampled_from(PARSERS),
)
def test_cuts_change_nothing(stages, data, ends, parser):
    """Not even where the bytes are damaged: to the very output."""
    data += END
    cuts = sorted({int(end * len(data)) for end in ends} | {0, len(data)})
    pieces = [data[a:b] for a, b in itertools.pairwise(cuts)]
    whole, cut = stages[parser].play([[data], pieces])
    assert cut == whole
