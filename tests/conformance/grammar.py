"""Hypothesis strategies for requests: mostly well-formed, in odd combinations, then damaged."""

from __future__ import annotations

import re

from hypothesis import strategies as st

METHODS = [b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"QUERY", b"PRI", b"CONNECT", b"BREW", b""]
TARGETS = [
    b"/",
    b"/a%20b?c=d",
    b"*",
    b"http://a/b",
    b"http://a@b/",
    b"HTTPS://[::1]:80?c",
    b"http://",
    b"//x",
    b"/%zz#f",
    b"a:80",
    b"x",
    b"/\xff",
    b"",
]
VERSIONS = [b"HTTP/" + digits for digits in (b"1.1", b"1.0", b"0.9", b"1.2", b"2.0", b"1.10")]
VERSIONS += [b"x", b""]
FIELDS = [
    b"Host: a",
    b"Host: b:80",
    b"Host: a b",
    b"Host:",
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"content-length:5 \t",
    b"Content-Length: 5, 5",
    b"Content-Length: +5",
    b"Content-Length: 99999999999999999999",
    b"Transfer-Encoding: chunked",
    b"transfer-encoding:\tCHUNKED ",
    b"Transfer-Encoding: gzip",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: chunked, gzip",
    b"Transfer-Encoding:",
    b'Transfer-Encoding: "chunked"',
    b"Transfer-Encoding : chunked",
    b"Connection: close",
    b"Connection: keep-alive, x",
    b"Connection: x, Close ,y",
    b"Connection: upgrade",
    b"Upgrade: h2c",
    b"Proxy-Connection: close",
    b"Proxy-Connection: keep-alive",
    b"Expect: 100-continue",
    b"X-Forwarded-For: 1",
    b"A: \xff \t b",
    b"A:",
    b"A\x01: b",
    b"A: b\x0b",
    b": b",
    b"A",
    b" A: b",
    b"A: b\r\n c",
]
BODIES = [
    b"",
    b"hello",
    b"5\r\nhello\r\n0\r\n\r\n",
    b'05;a=b;c="d;\\"e"\r\nhello\r\n000;f\r\nA: b\r\n\r\n',
    b'5;;a=b"\x0b"\r\nhello\r\n0\r\n\r\n',
    b"5;\r\nhello\r\n0\r\n\r\n",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b"-5\r\nhello\r\n0\r\n\r\n",
    b"5\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\n0\r\n\r\n",
    b"5\r\nhellox\r\n0\r\n\r\n",
    b"ffffffffffffffff\r\nhello",
    b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    b"0\r\nConnection: close\r\n\r\n",
    b"0\r\nContent-Length: 5\r\n\r\n",
    b"0\r\nA: b\r\n c\r\n\r\n",
    b"0\r\nA: b\n\r\n",
]
ODD_BYTES = b'\r\n\t \0:;,="0159afFxX/\\\x0b\x0c\x1f\x7f\x80\xff#?@*-+%[]'

_TWO_SPACES = re.compile(rb"[^\r\n]  ")
_TAB_AFTER_CHUNKED = re.compile(rb"chunked[ \t]*\t", re.IGNORECASE)


def outside(data: bytes) -> bool:
    """Whether the parsers may have different results for these bytes (docs/design.md).

    llhttp accepts several spaces between the parts of a request line, accepts RTSP and ICE as HTTP,
    and refuses a tab after `chunked`.
    """
    other = b"RTSP/" in data or b"ICE/" in data
    return other or bool(_TWO_SPACES.search(data) or _TAB_AFTER_CHUNKED.search(data))


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request made of plausible parts that needn't fit together."""
    usual = draw(st.booleans())
    method = draw(st.sampled_from(METHODS[:2] if usual else METHODS))
    target = draw(st.sampled_from(TARGETS[:2] if usual else TARGETS))
    version = draw(st.sampled_from(VERSIONS[:1] if usual else VERSIONS))
    fields = draw(st.lists(st.sampled_from(FIELDS), max_size=4))
    if draw(st.integers(0, 9)):
        fields.insert(draw(st.integers(0, len(fields))), FIELDS[0])
    lead = draw(st.sampled_from([b"", b"", b"", b"\r\n", b"\n", b"\r\r\n"]))
    lines = (lead + b" ".join((method, target, version)), *fields, b"", b"")
    return b"\r\n".join(lines) + draw(st.sampled_from(BODIES))


@st.composite
def damaged(draw: st.DrawFn, sources: st.SearchStrategy[bytes]) -> bytes:
    """The output of `sources`, with some bytes changed, inserted, removed or repeated."""
    data = bytearray(draw(sources))
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, 4]))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.integers(0, 4))
        if kind == 0:
            data[at : at + 1] = bytes([draw(st.sampled_from(ODD_BYTES))])
        elif kind == 1:
            data[at:at] = bytes([draw(st.sampled_from(ODD_BYTES))])
        elif kind == 2:
            del data[at : at + draw(st.integers(1, 4))]
        elif kind == 3:
            data[at:at] = data[at : at + draw(st.integers(1, 30))]
        else:
            data[at:at] = draw(st.sampled_from(FIELDS + BODIES))
    return bytes(data)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """The bytes that a client sends on one connection."""
    several = st.lists(requests(), min_size=1, max_size=3).map(b"".join)
    return draw(damaged(several))
