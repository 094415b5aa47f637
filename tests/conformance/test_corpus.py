"""Each case of the corpus has the same verdict from both parsers, for any split of its bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.stage import PARSERS

from .corpus import cases

MOST_BYTES = 250_000
"""The most bytes to send when trying all splits of a case; larger cases are split at some
places."""

CASES = [pytest.param(case, id=case.name) for case in cases()]
on_every_case = pytest.mark.parametrize("case", CASES)
on_both_parsers = pytest.mark.parametrize("parser", PARSERS)


def test_the_corpus_is_large():
    assert len(CASES) > 250


def test_the_parsers_differ_only_in_documented_cases():
    differing = {case.name for case in cases() if case.expected != case.expected_of_httptools}
    assert differing == {"two-spaces-before-target", "two-spaces-before-version", "rtsp"}


@on_both_parsers
@on_every_case
def test_a_case_sent_whole_has_its_verdict(stages, case, parser):
    stage = stages[parser]
    before = stage.calls
    (verdict,) = stage.play([[case.data]])
    case.check(verdict, parser)
    # A piece is parsed in slices: the application may have begun by the time of a refusal.
    begun = stage.calls - before - len(verdict.requests)
    assert begun in ({0, case.unfinished} if case.expected.closed else {case.unfinished})


@on_both_parsers
@on_every_case
def test_a_case_cut_in_two_has_its_verdict(stages, case, parser):
    stage, data = stages[parser], case.data
    step = 1 + len(data) ** 2 // MOST_BYTES
    cuts = [[data[:at], data[at:]] for at in range(1, len(data), step)]
    before = stage.calls
    verdicts = stage.play(cuts)
    for verdict in verdicts:
        case.check(verdict, parser)
    seen = sum(len(verdict.requests) for verdict in verdicts)
    assert stage.calls - before <= seen + case.unfinished * len(verdicts)


@on_both_parsers
@pytest.mark.parametrize("case", [case for case in CASES if len(case.values[0].data) < 2000])
def test_a_case_sent_byte_by_byte_has_its_verdict(stages, case, parser):
    (verdict,) = stages[parser].play([[bytes([byte]) for byte in case.data]])
    case.check(verdict, parser)


@settings(max_examples=300, deadline=None, database=None)
@given(
    case=st.sampled_from(cases()),
    parser=st.sampled_from(PARSERS),
    ends=st.lists(st.floats(0, 1), max_size=10),
)
def test_a_case_cut_at_random_has_its_verdict(stages, case, parser, ends):
    cuts = sorted({int(end * len(case.data)) for end in ends} | {0, len(case.data)})
    pieces = [case.data[a:b] for a, b in itertools.pairwise(cuts)]
    (verdict,) = stages[parser].play([pieces])
    case.check(verdict, parser)
