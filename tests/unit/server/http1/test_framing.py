"""The policy for the framing in a header section, which is the same for every parser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esg.errors import (
    BadRequest,
    HeaderFieldsTooLarge,
    HTTPError,
    NotImplementedByServer,
    VersionNotSupported,
)
from esg.server.http1.framing import (
    CHUNKED,
    DECIDING,
    DECIDING_FROM_PROXY,
    NOT_IN_TRAILERS,
    PLAIN,
    PLAIN_FORWARDED,
    Framing,
    _examine_fully,
    check_trailers,
    examine,
)
from esg.server.proxy.headers import FIELDS

HOST = (b"host", b"example.org")


class Parser:
    """A parser's result for a request; like llhttp, it may disagree about persistence."""

    def __init__(self, version):
        self.http_version = lambda: version
        self.persists = lambda: version == "1.1"


def frame(*fields, method=b"POST", version="1.1", host=True):
    headers = [HOST, *fields] if host else list(fields)
    return examine(method, headers, Parser(version))


# -- Host ------------------------------------------------------------------------------


def test_http11_needs_a_host():
    with pytest.raises(BadRequest):
        frame(host=False)


def test_http10_needs_no_host():
    assert frame(host=False, version="1.0").length == 0


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_two_hosts_are_refused(version):
    with pytest.raises(BadRequest):
        frame(HOST, version=version)


@given(st.binary(min_size=1, max_size=30))
def test_a_host_has_no_byte_that_could_end_it(value):
    bad = set(value) & set(b' \t\r\n\0/?#@\\"<>^`{|}') or any(byte > 0x7E for byte in value)
    try:
        frame((b"host", value), host=False)
    except BadRequest:
        return
    assert not bad


@pytest.mark.parametrize("host", [b"", b":", b":80", b"a:65536", b"u@a", b"[]", b"[::1"])
def test_bad_hosts_are_refused(host):
    with pytest.raises(BadRequest):
        frame((b"host", host), host=False)


@pytest.mark.parametrize("host", [b"a", b"a:80", b"[::1]", b"[::1]:80", b"a_b-c.d~e", b"%41"])
def test_good_hosts_are_accepted(host):
    frame((b"host", host), host=False)


# -- the body's length -----------------------------------------------------------------


def test_without_framing_fields_there_is_no_body():
    assert frame().length == 0
    assert frame(method=b"GET").length == 0


@given(st.integers(0, 10**18 - 1))
def test_a_content_length_is_the_length_of_the_body(length):
    assert frame((b"content-length", b"%d" % length)).length == length


@pytest.mark.parametrize("value", [b"0", b"00", b"007"])
def test_a_content_length_may_have_leading_zeros(value):
    assert frame((b"content-length", value)).length == int(value)


@given(st.binary(max_size=12))
def test_content_length_is_digits_and_nothing_else(value):
    try:
        length = frame((b"content-length", value)).length
    except BadRequest:
        assert not (value.isdigit() and value.isascii())
    else:
        assert value.strip(b" \t").isdigit()
        assert length == int(value)


@pytest.mark.parametrize("digits", [19, 20, 100, 5000])
def test_a_content_length_with_too_many_digits_is_refused(digits):
    with pytest.raises(HTTPError):
        frame((b"content-length", b"9" * digits))


@pytest.mark.parametrize("second", [b"5", b"6", b"", b"x"])
def test_two_content_lengths_are_refused(second):
    with pytest.raises(BadRequest):
        frame((b"content-length", b"5"), (b"content-length", second))


@pytest.mark.parametrize("coding", [b"chunked", b"Chunked", b"CHUNKED", b" chunked\t"])
def test_chunked_is_recognised_in_any_case(coding):
    assert frame((b"transfer-encoding", coding)).length == CHUNKED


@given(st.binary(max_size=16))
def test_any_other_coding_is_refused(coding):
    try:
        framing = frame((b"transfer-encoding", coding))
    except (BadRequest, NotImplementedByServer):
        return
    assert coding.strip(b" \t").lower() == b"chunked"
    assert framing.length == CHUNKED


@pytest.mark.parametrize(
    "codings", [[b"gzip", b"chunked"], [b"chunked", b"gzip"], [b"chunked", b"chunked"]]
)
def test_codings_in_several_fields_are_refused(codings):
    with pytest.raises(HTTPError):
        frame(*((b"transfer-encoding", coding) for coding in codings))


@pytest.mark.parametrize(
    "codings",
    [[b"chunked", b"gzip"], [b"chunked, gzip"], [b"chunked,chunked"], [b""], [b",", b""]],
)
def test_chunked_must_come_last_and_once(codings):
    with pytest.raises(BadRequest):
        frame(*((b"transfer-encoding", coding) for coding in codings))


@pytest.mark.parametrize("coding", [b"gzip", b"gzip, chunked", b"identity", b"chunked;q=1"])
def test_other_codings_are_not_implemented(coding):
    with pytest.raises(NotImplementedByServer):
        frame((b"transfer-encoding", coding))


@pytest.mark.parametrize("coding", [b"chunked", b"gzip", b""])
@pytest.mark.parametrize("length", [b"0", b"5", b"x"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_length_with_a_coding_is_refused(coding, length, version):
    fields = [(b"transfer-encoding", coding), (b"content-length", length)]
    for order in (fields, fields[::-1]):
        with pytest.raises(BadRequest):
            frame(*order, version=version)


def test_codings_are_refused_in_http10():
    with pytest.raises(BadRequest):
        frame((b"transfer-encoding", b"chunked"), version="1.0")


# -- the connection --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "options", "keep_alive"),
    [
        ("1.1", [], True),
        ("1.1", [b"close"], False),
        ("1.1", [b"Close"], False),
        ("1.1", [b"keep-alive"], True),
        ("1.1", [b"keep-alive, close"], False),
        ("1.1", [b"keep-alive", b"close"], False),
        ("1.1", [b" a ,\tCLOSE\t, b"], False),
        ("1.1", [b"closed"], True),
        ("1.1", [b"not-close"], True),
        ("1.1", [b"close;q=0"], True),
        ("1.1", [b""], True),
        ("1.0", [], False),
        ("1.0", [b"close"], False),
        ("1.0", [b"keep-alive"], True),
        ("1.0", [b"Keep-Alive"], True),
        ("1.0", [b"foo, keep-alive"], True),
        ("1.0", [b"keep-alive, close"], False),
        ("1.0", [b"upgrade"], False),
    ],
)
def test_the_version_and_connection_options_decide_on_keep_alive(version, options, keep_alive):
    fields = [(b"connection", option) for option in options]
    assert frame(*fields, version=version).keep_alive is keep_alive


@pytest.mark.parametrize("version", ["1.2", "2.0", "3.0", "", "1.10"])
@pytest.mark.parametrize("options", [[], [b"keep-alive"], [b"close"]])
def test_unknown_versions_are_refused(version, options):
    with pytest.raises(VersionNotSupported):
        frame(*[(b"connection", option) for option in options], version=version)


@pytest.mark.parametrize("options", [[], [b"keep-alive"], [b"close"]])
def test_a_request_line_without_a_version_is_malformed(options):
    with pytest.raises(BadRequest):
        frame(*[(b"connection", option) for option in options], version="0.9")


# -- expectations ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "value", "expects"),
    [
        ("1.1", b"100-continue", True),
        ("1.1", b"100-Continue", True),
        ("1.1", b"100", False),
        ("1.1", b"something", False),
        ("1.1", b"", False),
        ("1.0", b"100-continue", False),
    ],
)
def test_only_100_continue_in_http11_is_an_expectation(version, value, expects):
    framing = frame((b"expect", value), (b"content-length", b"5"), version=version)
    assert framing.expects_continue is expects


# -- the rest --------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"accept", b"te", b"trailer", b"content-type", b"x-host", b"via"]),
            st.binary(max_size=10),
        ),
        max_size=8,
    )
)
def test_other_fields_do_not_affect_the_framing(fields):
    framing = frame(*fields)
    assert (framing.length, framing.keep_alive, framing.expects_continue) == (0, True, False)


@pytest.mark.parametrize(("method", "head_only"), [(b"HEAD", True), (b"GET", False)])
def test_head_has_a_response_without_body(method, head_only):
    assert frame(method=method).head_only is head_only


# -- trusted proxies -------------------------------------------------------------------

NAMES = st.sampled_from([*sorted(DECIDING), *sorted(FIELDS), b"x-other"])
VALUES = st.sampled_from([b"example.org", b"5", b"chunked", b"close", b"keep-alive", b"x, y"])


def test_a_forwarded_field_is_noticed_from_a_proxy_alone():
    headers = [HOST, (b"x-forwarded-for", b"192.0.2.1")]
    assert examine(b"GET", headers, Parser("1.1")) is PLAIN
    assert examine(b"GET", headers, Parser("1.1"), DECIDING_FROM_PROXY) is PLAIN_FORWARDED
    assert examine(b"GET", [HOST], Parser("1.1"), DECIDING_FROM_PROXY) is PLAIN


def outcome(look, method, headers, version, deciding=DECIDING):
    """The attributes of a framing, or the class of an error."""
    try:
        framing = look(method, headers, Parser(version), deciding)
    except HTTPError as error:
        return type(error)
    return {name: getattr(framing, name) for name in Framing.__slots__}


SECTIONS = (
    st.sampled_from([b"GET", b"HEAD", b"POST"]),
    st.lists(st.tuples(NAMES, VALUES), max_size=6),
    st.sampled_from(["1.0", "1.1"]),
)


@given(*SECTIONS, st.sampled_from([b"close", b"Close", b"keep-alive", b"Keep-Alive", b"x", b""]))
def test_the_short_way_has_the_same_result_as_the_long_one(method, headers, version, option):
    for fields in (headers, [HOST, (b"connection", option)], [(b"connection", option), *headers]):
        short = outcome(examine, method, fields, version)
        assert short == outcome(_examine_fully, method, fields, version)


@given(*SECTIONS)
def test_framing_does_not_depend_on_the_peer(method, headers, version):
    direct = outcome(examine, method, headers, version)
    from_proxy = outcome(examine, method, headers, version, DECIDING_FROM_PROXY)
    if isinstance(direct, dict):
        assert not direct["forwarded"]
        direct["forwarded"] = any(name in FIELDS for name, _ in headers)
    assert direct == from_proxy


# -- trailers --------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NOT_IN_TRAILERS))
def test_fields_that_must_not_be_trailers_are_refused(name):
    with pytest.raises(BadRequest):
        check_trailers([(b"x-sum", b"1"), (name, b"")], 100, 1000)


def test_other_trailers_are_accepted():
    fields = [(b"x-sum", b"1"), (b"x-forwarded-for", b"::1"), (b"authorization", b"a")]
    check_trailers(fields, 100, 1000)


@pytest.mark.parametrize(
    ("fields", "most_fields", "most_bytes"),
    [([(b"a", b"b")] * 3, 2, 1000), ([(b"a", b"b" * 100)], 100, 100)],
)
def test_a_trailer_section_is_no_larger_than_a_header_section(fields, most_fields, most_bytes):
    with pytest.raises(HeaderFieldsTooLarge):
        check_trailers(fields, most_fields, most_bytes)
