"""A request's client, according to trusted proxies."""

from __future__ import annotations

import ipaddress
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esg.errors import ConfigError
from esg.mailbox import UntrustedPeer
from esg.server.proxy.headers import FIELDS, Said, TrustedProxies, apply, heed, read


def trusting(*entries):
    return TrustedProxies(entries, "--forwarded-allow-ips")


PROXIES = trusting("10.0.0.0/8", "192.168.1.1", "2001:db8::/32", "_edge")


def said(*fields, proxies=PROXIES):
    """The result of a header section; fields are written as on the wire."""
    headers = [tuple(part.strip() for part in field.encode().split(b":", 1)) for field in fields]
    return read([(name.lower(), value) for name, value in headers], proxies)


# -- whom to trust -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "host", "trusted"),
    [
        (["127.0.0.1"], "127.0.0.1", True),
        (["127.0.0.1"], "127.0.0.2", False),
        (["127.0.0.1"], "::1", False),
        (["127.0.0.1"], "::ffff:127.0.0.1", True),
        (["127.0.0.1"], None, False),
        (["::1"], "::1", True),
        (["0:0:0:0:0:0:0:1"], "::1", True),
        (["::ffff:10.1.2.3"], "10.1.2.3", True),
        (["10.0.0.0/8"], "10.255.255.255", True),
        (["10.0.0.0/8"], "::ffff:10.0.0.1", True),
        (["10.0.0.0/8"], "11.0.0.0", False),
        (["fd00::/8"], "fd12::1", True),
        (["fd00::/8"], "10.0.0.1", False),
        (["*"], "203.0.113.9", True),
        (["*"], None, True),
        (["unix:"], None, True),
        (["unix:"], "127.0.0.1", False),
        (["localhost"], "localhost", True),
        (["localhost"], "127.0.0.1", False),
        ([], "127.0.0.1", False),
        ([], None, False),
    ],
)
def test_only_listed_addresses_and_networks_are_trusted(entries, host, trusted):
    assert trusting(*entries).trusts(host) is trusted


@pytest.mark.parametrize(
    "entry", ["10.0.0.256", "10.0.0", "10.0.0.1/8", "10.0.0.0/33", "1:2", "fd00::/129"]
)
def test_a_mistyped_address_is_refused(entry):
    with pytest.raises(ConfigError, match=r"--forwarded-allow-ips: .*expected for example"):
        trusting(entry)


# -- X-Forwarded-For -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("203.0.113.7", ("203.0.113.7", 0)),
        ("203.0.113.7:4711", ("203.0.113.7", 4711)),
        ("[2001:DB9::7]", ("2001:db9::7", 0)),
        ("[2001:db9::7]:4711", ("2001:db9::7", 4711)),
        ("2001:db9::7", ("2001:db9::7", 0)),
        ("::ffff:203.0.113.7", ("203.0.113.7", 0)),
        (" 203.0.113.7\t", ("203.0.113.7", 0)),
        # the rightmost untrusted address; a client may have written those to its left
        ("6.6.6.6, 203.0.113.7", ("203.0.113.7", 0)),
        ("6.6.6.6, 203.0.113.7, 10.0.0.2", ("203.0.113.7", 0)),
        ("6.6.6.6,203.0.113.7,192.168.1.1,10.0.0.2", ("203.0.113.7", 0)),
        ("203.0.113.7, [2001:db8::1]:80", ("203.0.113.7", 0)),
        # empty elements don't count (RFC 9110, section 5.6.1)
        (",203.0.113.7, , 10.0.0.2,", ("203.0.113.7", 0)),
        # all are trusted: the leftmost
        ("10.0.0.3, 10.0.0.2", ("10.0.0.3", 0)),
        # an unreadable element ends the search
        ("203.0.113.7, junk", None),
        ("203.0.113.7, unknown", None),
        ("203.0.113.7, junk, 10.0.0.2", ("10.0.0.2", 0)),
        ("203.0.113.7, _hidden, 10.0.0.2", ("10.0.0.2", 0)),
        ("junk, 203.0.113.7", ("203.0.113.7", 0)),
        ("", None),
        (",", None),
        ("unknown", None),
        ("localhost", None),
        ("203.0.113.7:", None),
        ("203.0.113.7:65536", None),
        ("203.0.113.7:http", None),
        ("203.0.113.7:-1", None),
        ("203.0.113.256", None),
        ("203.0.113", None),
        ("0203.0.113.7", None),
        ("[203.0.113.7]", None),
        ("[2001:db9::7", None),
        ("2001:db9::7]", None),
        ("[2001:db9::7]x", None),
        ("fe80::1%eth0", None),
        ("203.0.113.7 (proxy)", None),
        ("203.0.113.7;", None),
        ("<script>", None),
        ("\u0662.0.0.1", None),
        ("1" * 10000, None),
    ],
)
def test_x_forwarded_for_names_the_client(value, client):
    assert said(f"X-Forwarded-For: {value}").client == client


def test_fields_of_one_name_are_joined_in_order():
    fields = ["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 203.0.113.7, 10.0.0.2"]
    assert said(*fields, "X-Forwarded-For: 10.0.0.1").client == ("203.0.113.7", 0)


def test_if_everyone_is_trusted_the_leftmost_element_is_the_client():
    proxies = trusting("*")
    assert said("X-Forwarded-For: 1.1.1.1, 2.2.2.2", proxies=proxies).client == ("1.1.1.1", 0)
    assert said("X-Forwarded-For: junk, 2.2.2.2", proxies=proxies).client == ("2.2.2.2", 0)


def test_a_very_long_chain_is_not_followed_to_its_end():
    value = ", ".join(["10.0.0.1"] * 5000)
    assert said("X-Forwarded-For: 203.0.113.7, " + value).client == ("10.0.0.1", 0)


# -- X-Forwarded-Proto, -Host, -Port -------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "scheme"),
    [
        ("https", "https"),
        ("http", "http"),
        ("HTTPS", "https"),
        ("wss", "https"),
        ("ws", "http"),
        ("ftp", None),
        ("", None),
        ("https://", None),
        ("https http", None),
        ("http, https", "https"),
    ],
)
def test_x_forwarded_proto_names_the_scheme(value, scheme):
    assert said(f"X-Forwarded-Proto: {value}").scheme == scheme


@pytest.mark.parametrize(
    ("value", "host"),
    [
        ("example.org", b"example.org"),
        ("example.org:8443", b"example.org:8443"),
        ("[::1]:8443", b"[::1]:8443"),
        ("203.0.113.1", b"203.0.113.1"),
        ("a_b.example", b"a_b.example"),
        ("", None),
        ("example.org/path", None),
        ("user@example.org", None),
        ("example.org:port", None),
        ("exa mple.org", None),
        ("\u00e9.example", None),
        ("[::1", None),
        ("a" * 300, None),
    ],
)
def test_x_forwarded_host_names_the_host(value, host):
    assert said(f"X-Forwarded-Host: {value}").host == host


@pytest.mark.parametrize(
    ("value", "port"),
    [("443", 443), ("65535", 65535), ("0", None), ("65536", None), ("x", None), ("", None)],
)
def test_x_forwarded_port_names_the_port(value, port):
    assert said(f"X-Forwarded-Port: {value}").port == port


@pytest.mark.parametrize(
    ("hops", "value", "scheme"),
    [
        # client - https -> 10.0.0.2 - http -> 10.0.0.1 - http -> us
        ("203.0.113.7, 10.0.0.2", "https, http", "https"),
        ("203.0.113.7, 10.0.0.2", "https", "https"),
        # a client's elements aren't used
        ("6.6.6.6, 203.0.113.7, 10.0.0.2", "http, https, http", "https"),
        ("203.0.113.7", "http, https", "https"),
        ("junk", "http, https", "https"),
    ],
)
def test_the_scheme_is_that_of_the_clients_own_hop(hops, value, scheme):
    assert said(f"X-Forwarded-For: {hops}", f"X-Forwarded-Proto: {value}").scheme == scheme


# -- Forwarded -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("for=203.0.113.7", Said(("203.0.113.7", 0))),
        ('for="203.0.113.7:4711"', Said(("203.0.113.7", 4711))),
        ("for=203.0.113.7:4711", Said(("203.0.113.7", 4711))),
        ('For="[2001:db9::7]:4711"', Said(("2001:db9::7", 4711))),
        ('for="203.0.113.7:_secret"', Said(("203.0.113.7", 0))),
        ("for=203.0.113.7;proto=https", Said(("203.0.113.7", 0), "https")),
        (
            'FOR=203.0.113.7 ; Proto=HTTPS;HOST="example.org:8443";by=10.0.0.1',
            Said(("203.0.113.7", 0), "https", b"example.org:8443"),
        ),
        ("proto=https;host=example.org", Said(None, "https", b"example.org")),
        (r'for="203.0.113\.7"', Said(("203.0.113.7", 0))),
        ('for=203.0.113.7;ext="a, b; c"', Said(("203.0.113.7", 0))),
        ("for=203.0.113.7;", Said(("203.0.113.7", 0))),
        # right to left
        ("for=6.6.6.6, for=203.0.113.7, for=10.0.0.2", Said(("203.0.113.7", 0))),
        (
            "for=6.6.6.6;proto=http, for=203.0.113.7;proto=https, for=10.0.0.2;proto=http",
            Said(("203.0.113.7", 0), "https"),
        ),
        ("for=203.0.113.7, for=10.0.0.2;proto=https", Said(("203.0.113.7", 0), "https")),
        ('for=203.0.113.7, for="[2001:db8::1]"', Said(("203.0.113.7", 0))),
        # an identifier is never the client, but may stand for a trusted proxy
        ("for=unknown", Said()),
        ("for=_hidden;proto=https", Said(None, "https")),
        ("for=203.0.113.7, for=_hidden, for=10.0.0.2", Said(("10.0.0.2", 0))),
        ('for=203.0.113.7, for="_edge:80", for=10.0.0.2', Said(("203.0.113.7", 0))),
        # malformed
        ("", Said()),
        ("203.0.113.7", Said()),
        ("for", Said()),
        ("for=", Said()),
        ("for = 203.0.113.7", Said()),
        ("for=203.0.113.7;for=6.6.6.6", Said()),
        ("for=203.0.113.7 proto=https", Said()),
        ('for="203.0.113.7', Said()),
        ('for="203.0.113.7"x', Said()),
        ("for=203.0.113.7, junk, for=10.0.0.2", Said(("10.0.0.2", 0))),
        ('for=203.0.113.7;proto=gopher;host="a/b"', Said(("203.0.113.7", 0))),
        # an open quote swallows nothing that a proxy has appended
        ('for="6.6.6.6, for=203.0.113.7', Said(("203.0.113.7", 0))),
        ('for="6.6.6.6, for="203.0.113.7:1"', Said(("203.0.113.7", 1))),
        ('for="6.6.6.6\\, for="203.0.113.7:1"', Said(("203.0.113.7", 1))),
    ],
)
def test_forwarded_names_the_client_the_scheme_and_the_host(value, expected):
    assert said(f"Forwarded: {value}") == expected


def test_several_forwarded_fields_are_joined_in_order():
    fields = ["Forwarded: for=6.6.6.6", "Forwarded: for=203.0.113.7", "Forwarded: for=10.0.0.1"]
    assert said(*fields).client == ("203.0.113.7", 0)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("X-Forwarded-For: 203.0.113.7", Said(("203.0.113.7", 0))),
        ("X-Forwarded-Proto: http", Said(None, "http")),
    ],
)
def test_x_forwarded_fields_are_preferred_to_forwarded(field, expected):
    """Most proxies pass on a client's own Forwarded field."""
    assert said("Forwarded: for=6.6.6.6;proto=https;host=evil.example", field) == expected


# -- hostile values --------------------------------------------------------------------------

pieces = st.sampled_from(
    [b"for=", b"proto=https", b"host=", b'"', b"\\", b",", b";", b"=", b" ", b"[", b"]", b":",
     b"_a", b"unknown", b"10.0.0.1", b"203.0.113.7", b"2001:db8::1", b"\xff",
     b"%", b"https", b"443"]
)  # fmt: skip
values = st.one_of(st.binary(max_size=60), st.lists(pieces, max_size=20).map(b"".join))
sections = st.lists(st.tuples(st.sampled_from([*FIELDS, b"host", b"x-other"]), values), max_size=6)


@given(sections, st.sampled_from([PROXIES, trusting("*"), trusting("10.0.0.1", "unix:")]))
def test_nothing_raises_and_the_result_is_well_formed(headers, proxies):
    scope = {"headers": list(headers), "client": None, "server": ("::1", 1), "scheme": "http"}
    apply(scope, proxies)
    if scope["client"] is not None:
        host, port = scope["client"]
        assert str(ipaddress.ip_address(host)) == host
        assert 0 <= port <= 65535
    assert scope["scheme"] in ("http", "https")
    assert 0 < scope["server"][1] <= 65535


@pytest.mark.parametrize(
    "piece", ['"', "\\", ",", ";", "a=", 'a="', '\\"', "for=a;", " ", "=", '",']
)
def test_a_large_field_takes_time_in_proportion(piece):
    """Compared with a loop over its characters; backtracking would take far longer."""
    text = piece * (65536 // len(piece))
    for start in ("", 'a="'):
        spent = cpu_time(lambda start=start: said(f"Forwarded: {start}{text}"))
        assert spent < 100 * cpu_time(lambda: [ord(character) for character in text])


def cpu_time(call):
    """The shortest CPU time of several runs, in seconds."""

    def spent():
        begin = time.thread_time()
        call()
        return time.thread_time() - begin

    return min(spent() for _ in range(3))


# -- in the scope ----------------------------------------------------------------------------


def test_the_scope_is_as_if_there_were_no_proxy():
    headers = [
        (b"accept", b"*/*"),
        (b"host", b"internal:8000"),
        (b"x-forwarded-for", b"203.0.113.7"),
        (b"x-forwarded-proto", b"https"),
        (b"x-forwarded-host", b"example.org"),
        (b"x-forwarded-port", b"443"),
    ]
    scope = {
        "headers": headers.copy(),
        "client": ("10.0.0.1", 5),
        "server": ("10.0.0.9", 8000),
        "scheme": "http",
    }
    apply(scope, PROXIES)
    assert scope == {
        "headers": [(b"host", b"example.org"), headers[0], *headers[2:]],
        "client": ("203.0.113.7", 0),
        "server": ("10.0.0.9", 443),
        "scheme": "https",
    }


def test_parts_of_the_scope_without_a_valid_value_stay():
    scope = {"headers": [(b"host", b"a")], "client": ("a", 1), "server": None, "scheme": "http"}
    before = scope | {"headers": [(b"host", b"a")]}
    apply(scope, PROXIES)
    assert scope == before


# -- peers that aren't trusted ---------------------------------------------------------------


def from_peer(host, *names):
    """The scope of a request with these fields."""
    client = None if host is None else (host, 5)
    fields = [(name, b"203.0.113.7") for name in names]
    return {"headers": fields, "client": client, "server": None, "scheme": "http"}


@pytest.mark.parametrize("host", [None, "203.0.113.9", "fe80::1%eth0", "::ffff:203.0.113.9"])
def test_the_first_field_of_a_peer_that_is_not_trusted_is_reported(host):
    proxies, reports = trusting("10.0.0.1"), []
    proxies.on_untrusted = lambda *report: reports.append(report)
    assert proxies.concerns(host)
    for _ in range(2):
        scope = from_peer(host, b"accept", b"x-forwarded-proto", b"x-forwarded-for")
        heed(scope, proxies)
        assert scope["client"] == (host and (host, 5))
    assert reports == [(host, b"x-forwarded-proto")]
    assert not proxies.concerns(host)


def test_a_trusted_peer_is_believed_and_not_reported():
    proxies, reports = trusting("10.0.0.1"), []
    proxies.on_untrusted = lambda *report: reports.append(report)
    scope = from_peer("10.0.0.1", b"x-forwarded-for")
    heed(scope, proxies)
    assert scope["client"] == ("203.0.113.7", 0)
    assert reports == []
    assert proxies.concerns("10.0.0.1")


@pytest.mark.parametrize("trusted", [[], ["127.0.0.1", "::1"]])
@pytest.mark.parametrize("host", [None, "203.0.113.9", "fe80::1%eth0", "::ffff:203.0.113.9"])
def test_the_entry_that_the_log_names_would_trust_the_peer(host, trusted):
    line = UntrustedPeer(host or "", "X-Forwarded-For", trusted).line
    (value,) = re.findall(r"set --forwarded-allow-ips (\S+)|add (\S+) to", line)
    entries = "".join(value).split(",")
    assert entries[:-1] == trusted
    assert trusting(*entries).trusts(host)
