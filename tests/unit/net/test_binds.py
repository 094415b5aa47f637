"""The text of a bind."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esg.errors import ConfigError
from esg.net.binds import Address, Descriptor, UnixAddress, parse_bind


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:80", "127.0.0.1", 80),
        ("example.org:65535", "example.org", 65535),
        ("localhost:0", "localhost", 0),
        ("[::1]:8080", "::1", 8080),
        ("[::]:0", "::", 0),
        (":9000", "", 9000),
        ("example.org", "example.org", 8000),
        ("[::1]", "::1", 8000),
        ("tcp://0.0.0.0:9000", "0.0.0.0", 9000),
        ("tcp://[::1]:9000", "::1", 9000),
        ("tcp://[::1]", "::1", 8000),
    ],
)
def test_tcp_addresses_are_parsed(text, host, port):
    assert parse_bind(text, "--bind") == Address(host, port)


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        ("unix:/run/x.sock", UnixAddress("/run/x.sock")),
        ("unix:///run/x.sock", UnixAddress("/run/x.sock")),
        ("unix:x.sock", UnixAddress("x.sock")),
        ("unix:@x", UnixAddress("@x")),
        ("unix:/" + 106 * "x", UnixAddress("/" + 106 * "x")),
        ("fd://0", Descriptor(0)),
        ("fd://web", Descriptor("web")),
    ],
)
def test_unix_sockets_and_descriptors_are_parsed(text, bind):
    assert parse_bind(text, "--bind") == bind


@pytest.mark.parametrize(
    "text",
    [
        "a:",
        "a:b",
        "a:-1",
        "a:+1",
        "a:65536",
        "a:1.5",
        "a: 1",
        "a:\u0661",
        "a:1_0",
        "::1:80",
        "::",
        "[::1]80",
        "[::1:80",
        "unix:",
        "unix:@",
        "unix:/" + 107 * "x",
        "fd://",
        "fd://-1",
        "fd://a b",
        "fd://2147483648",
        "fd://" + 5000 * "9",
        "a:" + 5000 * "1",
        "a..b:80",
        ".:0",
        ".",
        64 * "x" + ":80",
    ],
)
def test_invalid_addresses_are_refused(text):
    with pytest.raises(ConfigError, match="--bind"):
        parse_bind(text, "--bind")


@given(
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str),
    st.integers(0, 65535),
)
def test_a_written_address_is_parsed_to_the_same_address(host, port):
    address = Address(host, port)
    assert parse_bind(str(address), "--bind") == address
