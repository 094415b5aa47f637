"""Which parser a worker uses, and the calls that every parser makes to its sink."""

from __future__ import annotations

import subprocess
import sys

import pytest

from esg.errors import BadRequest, ContentTooLarge
from esg.server.http1 import parsers
from esg.server.http1.h11_parser import H11Parser
from esg.server.http1.httptools_parser import HttptoolsParser


@pytest.mark.parametrize(
    ("name", "expected"),
    [("auto", HttptoolsParser), ("httptools", HttptoolsParser), ("h11", H11Parser)],
)
def test_a_name_selects_the_parser(name, expected):
    assert parsers.parser_class(name) is expected


@pytest.fixture
def no_httptools(monkeypatch):
    monkeypatch.setattr(parsers.importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize("name", ["auto", "h11"])
def test_h11_is_used_if_httptools_is_missing(no_httptools, name):
    assert parsers.parser_class(name) is H11Parser


def test_the_server_runs_without_httptools():
    """It is only imported if the settings ask for it."""
    code = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "httptools":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "httptools" else found(name, *more)
import esg.cli, esg.server.worker, esg.server.http1.connection
from esg.server.http1.parsers import parser_class
print(parser_class("auto").__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "H11Parser\n"


# -- the calls of a sink --------------------------------------------------------------

UPGRADE = (
    b"POST /a HTTP/1.1\r\nHost: a\r\nConnection: x, Upgrade\r\nUpgrade: h2c\r\n"
    b"Content-Length: 2\r\n\r\n"
)
OFFER = b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"


class Sink:
    """Notes its calls; `on_headers_complete` raises `refusal`."""

    def __init__(self, refusal=None):
        self.told = []
        self.raised = None
        self._refusal = refusal

    def on_url(self, piece):
        self._add("url", piece)

    def on_header(self, name, value):
        self.told.append((name.lower(), value.strip()))

    def on_headers_complete(self):
        self.told.append("headers")
        if self._refusal is not None:
            self.raised = self._refusal
            raise self._refusal

    def on_body(self, piece):
        self._add("body", piece)

    def on_message_complete(self):
        self.told.append("message")

    def _add(self, what, piece):
        if piece and self.told and self.told[-1][0] == what:
            piece = self.told.pop()[1] + piece
        if piece:
            self.told.append((what, piece))


@pytest.fixture(params=["httptools", "h11"])
def make(request):
    return parsers.parser_class(request.param)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_sink_is_called_in_order(make, size):
    sink = Sink()
    own = make(sink)
    data = (
        b"GET /a?b HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n"
        b"POST /c HTTP/1.0\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nabc"
        b"PUT * HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2;x\r\nab\r\n1\r\nc\r\n0\r\nSum: 1\r\n\r\n"
    )
    for at in range(0, len(data), size):
        own.feed(memoryview(data)[at : at + size])
    assert sink.told == [
        ("url", b"/a?b"),
        (b"host", b"a"),
        (b"x", b""),
        "headers",
        "message",
        ("url", b"/c"),
        (b"content-length", b"3"),
        (b"connection", b"keep-alive"),
        "headers",
        ("body", b"abc"),
        "message",
        ("url", b"*"),
        (b"host", b"a"),
        (b"transfer-encoding", b"chunked"),
        "headers",
        ("body", b"abc"),
        (b"sum", b"1"),
        "message",
    ]


@pytest.mark.parametrize(
    ("version", "persists"), [("1.1", True), ("1.0", False), ("0.9", False), ("2.0", True)]
)
def test_method_version_and_persistence_are_known_after_the_head(make, version, persists):
    class Asking(Sink):
        def on_headers_complete(self):
            self.told = [own.method(), own.http_version(), own.upgrades()]
            if version != "2.0":  # llhttp's opinion of it doesn't matter
                assert own.persists() is persists

    sink = Asking()
    own = make(sink)
    own.feed(b"QUERY / HTTP/%b\r\nHost: a\r\nUpgrade: x\r\n\r\n" % version.encode())
    assert sink.told[:3] == [b"QUERY", version, False]


def test_parsing_stops_after_the_head_of_an_upgrade(make):
    """The bytes after it belong to the protocol that was offered."""
    sink = Sink()
    own = make(sink)
    data = OFFER + b"\x81\x00\x00"
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the parser's own, for `recover`
        own.feed(data)
    assert own.upgrades()
    assert bytes(own.recover(caught.value, data, 0)) == b"\x81\x00\x00"
    assert sink.told[-2:] == ["headers", "message"]


def test_parsing_continues_after_an_offer_that_is_not_accepted(make):
    sink = Sink()
    own = make(sink)
    data = OFFER + b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n"
    with pytest.raises(Exception) as caught:  # noqa: PT011
        own.feed(data)
    sink.told = []
    rest = own.recover(caught.value, data, 0)
    own.feed(rest)
    assert sink.told == [("url", b"/b"), (b"host", b"a"), "headers", "message"]


def test_the_body_of_an_offer_that_is_not_accepted_is_parsed(make):
    sink = Sink()
    own = make(sink)
    data = UPGRADE + b"hiGET /b HTTP/1.1\r\nHost: a\r\n\r\n"
    with pytest.raises(Exception) as caught:  # noqa: PT011
        own.feed(data)
    assert sink.told[-2:] == ["headers", "message"]
    sink.told = []
    rest = own.recover(caught.value, data, 2)
    own.feed(rest)
    body_and_next = [("body", b"hi"), "message", ("url", b"/b"), (b"host", b"a")]
    assert sink.told == [*body_and_next, "headers", "message"]


def test_data_that_cannot_be_parsed_is_a_bad_request(make):
    own = make(Sink())
    with pytest.raises(Exception) as caught:  # noqa: PT011
        own.feed(b"nonsense\r\n\r\n")
    with pytest.raises(BadRequest):
        own.recover(caught.value, b"nonsense\r\n\r\n", 0)


def test_an_exception_of_the_sink_is_raised_again(make):
    refusal = ContentTooLarge("too much")
    sink = Sink(refusal)
    own = make(sink)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        own.feed(OFFER)
    with pytest.raises(ContentTooLarge) as again:
        own.recover(caught.value, OFFER, 0)
    assert again.value is refusal
    assert sink.raised is None


def test_a_target_is_passed_on_before_its_line_is_complete(make):
    """So that its length can be limited."""
    sink = Sink()
    own = make(sink)
    for piece in (b"GET /a", b"bc", b"d HTTP/1.1\r\nHost: a\r\n", b"\r\n"):
        own.feed(piece)
        if piece == b"bc":
            assert sink.told == [("url", b"/abc")]
    assert sink.told == [("url", b"/abcd"), (b"host", b"a"), "headers", "message"]


@pytest.mark.parametrize(
    "beginning",
    [
        b"\x16\x03\x01\x02",
        b"BREW / HT",
        b"nonsense-without-a-space",
        b"GET / HTTP/1.1\nH",
        b"GET / HTTP/1.1\r\nA: \0",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a\nb",
    ],
)
def test_an_invalid_beginning_is_refused_before_its_end(make, beginning):
    own = make(Sink())
    with pytest.raises(Exception) as caught:  # noqa: PT011
        own.feed(beginning)
    with pytest.raises(BadRequest):
        own.recover(caught.value, beginning, 0)
