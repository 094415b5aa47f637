"""The HTTP scope: how a request target becomes path, raw_path and query_string."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esg.errors import BadRequest
from esg.server.asgi.types import http_scope, http_template

PATH_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30)
TARGET_BYTES = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#"), max_size=30
)


def scope(target, *, method="GET", root_path="", state=None, **ends):
    client, server = ends.get("client", ("192.0.2.1", 1)), ends.get("server", ("192.0.2.2", 80))
    template = http_template(client, server, root_path)
    return http_scope(template, method, target, [], state or {})


def parts(target, **options):
    made = scope(target, **options)
    return made["path"], made["raw_path"], made["query_string"]


@given(PATH_TEXT)
def test_a_quoted_path_is_decoded_as_it_was(text):
    raw = b"/" + quote(text).encode()
    assert parts(raw) == ("/" + text, raw, b"")


@given(TARGET_BYTES)
def test_every_byte_of_a_target_is_in_one_part(text):
    target = b"/" + text.encode()
    path, raw_path, query = parts(target)
    assert target in (raw_path, raw_path + b"?" + query)
    assert b"?" not in raw_path
    if b"%" not in raw_path:
        assert path == raw_path.decode()


@given(TARGET_BYTES)
def test_an_absolute_target_is_read_as_if_it_had_no_authority(text):
    target = b"/" + text.encode()
    assert parts(b"http://example.org:80" + target) == parts(target)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"http://a", ("/", b"/", b"")),
        (b"http://a/", ("/", b"/", b"")),
        (b"http://a?b/c", ("/", b"/", b"b/c")),
        (b"http://a/b?c?d", ("/b", b"/b", b"c?d")),
        (b"HTTPS://a/b", ("/b", b"/b", b"")),
        (b"http://a:80/b", ("/b", b"/b", b"")),
        (b"http://[::1]/b", ("/b", b"/b", b"")),
        (b"http://a//b", ("//b", b"//b", b"")),
    ],
)
def test_an_absolute_target_is_split_into_its_parts(target, expected):
    assert parts(target) == expected


@pytest.mark.parametrize(
    "target",
    [
        b"",
        b"x",
        b"?a",
        b"http://",
        b"http:///a",
        b"http://u:p@a:80/b",
        b"http://a b/",
        b"http://a#b/",
        b"http://?a",
        b"ftp://a/",
        b"://a/",
        b"a:80",
        b"**",
    ],
)
def test_invalid_targets_are_refused(target):
    with pytest.raises(BadRequest):
        scope(target)


@given(st.binary(max_size=20).filter(lambda raw: not raw.isascii() and b"?" not in raw))
def test_a_path_is_ascii(raw):
    with pytest.raises(BadRequest):
        scope(b"/" + raw)


def test_an_asterisk_is_the_whole_path():
    assert parts(b"*", method="OPTIONS") == ("*", b"*", b"")


def test_an_asterisk_has_no_root_path_in_front():
    assert parts(b"*", method="OPTIONS", root_path="/api")[0] == "*"


def test_the_path_begins_with_the_root_path():
    made = scope(b"/a%20b?c", root_path="/api")
    assert (made["root_path"], made["path"], made["raw_path"]) == (
        "/api",
        "/api/a b",
        b"/api/a%20b",
    )


def test_state_is_a_shallow_copy():
    state = {"pool": []}
    made = scope(b"/", state=state)
    assert made["state"] == state
    assert made["state"] is not state
    assert made["state"]["pool"] is state["pool"]


def test_each_scope_has_dicts_of_its_own():
    first, second = scope(b"/"), scope(b"/")
    for name in ("asgi", "extensions", "state"):
        assert first[name] is not second[name]


def test_addresses_may_be_missing():
    made = scope(b"/", client=None, server=("/run/esg.sock", None))
    assert made["client"] is None
    assert made["server"] == ("/run/esg.sock", None)
