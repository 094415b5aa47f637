"""All caches that clients can fill are bounded in entries and in bytes."""

from __future__ import annotations

import contextlib
import gc
import random
import sys

import pytest

from esg.errors import HTTPError
from esg.server.asgi.types import http_scope, http_template
from esg.server.http1.framing import examine
from esg.server.http1.response import Heads, check_fields
from esg.server.memo import Memo
from esg.server.proxy.headers import TrustedProxies, apply
from esg.server.wsgi.environ import request_environ

MOST_BYTES = 4 << 20
"""The most bytes of one cache, including Python's objects for its entries."""


def test_a_kept_value_is_found():
    memo = Memo(2, 10)
    assert memo.keep("a", 1, "a") == 1
    assert memo.known == {"a": 1}


def test_a_value_that_is_too_long_is_not_kept():
    memo = Memo(2, 10)
    assert memo.keep("a", 1, b"12345", "123456") == 1
    assert memo.known == {}
    memo.keep("a", 1, b"12345", "12345")
    assert memo.known == {"a": 1}


def test_a_full_cache_is_cleared():
    memo = Memo(2, 10)
    for key in "abc":
        memo.keep(key, key, key)
    assert memo.known == {"c": "c"}


# -- all of them, filled by a stranger ---------------------------------------------------


def size_of(thing):
    """The bytes of an object with its parts; a shared object counts for each use."""
    if isinstance(thing, dict):
        inner = [part for item in thing.items() for part in item]
    elif isinstance(thing, list | tuple):
        inner = thing
    else:
        inner = ()
    return sys.getsizeof(thing) + sum(map(size_of, inner))


@pytest.fixture(scope="module")
def proxies():
    return TrustedProxies(["*"], "test")


@pytest.fixture(scope="module")
def heads():
    return Heads(True, True, ())


@pytest.fixture(scope="module")
def memos(proxies, heads):
    """Every cache; finding them takes a second."""
    gc.unfreeze()  # `get_objects` doesn't list frozen objects
    gc.collect()
    found = [thing for thing in gc.get_objects() if type(thing) is Memo]
    gc.freeze()
    assert len(found) >= 5
    return found


def texts(count):
    """Short and long ones, all different."""
    random.seed(1)
    for number in range(count):
        yield b"%d-" % number + b"z" * random.choice((0, 5, 50, 100, 250, 1000, 20_000, 60_000))
        yield b"10.%d.%d.%d" % (number >> 16, number >> 8 & 255, number & 255)


class Head:
    """A parser's result for a request."""

    def persists(self):
        return True

    def http_version(self):
        return "1.1"


def as_peer(proxies, heads, text):
    proxies.trusts(text.decode())


def as_host(proxies, heads, text):
    examine(b"GET", [(b"host", text)], Head())


def forwarded(*names):
    def send(proxies, heads, text):
        fields = [(b"host", b"a"), *((name, text) for name in names)]
        apply(http_scope(http_template(None, None, ""), "GET", b"/", fields, {}), proxies)

    return send


def as_forwarded_for(proxies, heads, text):
    forwarded(b"forwarded")(proxies, heads, b'for="[%b]";host=%b' % (text, text))


def many_empty_fields(proxies, heads, text):
    names = [(b"x-forwarded-for", b"x-forwarded-host")[byte & 1] for byte in text[:100] * 9]
    fields = [(name, b"") for name in names[:100]]
    fields.append((b"x-forwarded-port", text[:20]))
    apply(http_scope(http_template(None, None, ""), "GET", b"/", fields, {}), proxies)


def as_field_name(proxies, heads, text):
    fields = [(text, b"value")]
    request_environ(http_scope(http_template(None, ("h", 1), ""), "GET", b"/", fields, {}))


def as_echoed_field(proxies, heads, text):
    check_fields([(text, b"value")])
    check_fields([(b"location", text)])


def as_echoed_head(proxies, heads, text):
    status = 200 + hash(text) % 800
    heads.add(status)
    headers = [(b"location", text)]
    heads.remember(status, headers, *check_fields(headers))


STRANGERS = [
    as_peer,
    as_host,
    forwarded(b"x-forwarded-for"),
    forwarded(b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port"),
    as_forwarded_for,
    many_empty_fields,
    as_field_name,
    as_echoed_field,
    as_echoed_head,
]


@pytest.mark.parametrize("send", STRANGERS)
def test_no_cache_grows_beyond_its_bound(send, proxies, heads, memos):
    for text in texts(500):
        with contextlib.suppress(HTTPError):
            send(proxies, heads, text)
    assert max(size_of(memo.known) for memo in memos) < MOST_BYTES
    assert size_of(heads.ready) < MOST_BYTES
