"""The PROXY protocol's header: valid and invalid ones, and how soon this is known."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esg.server.proxy.protocol import (
    LONGEST_V1,
    LONGEST_V2,
    SIGNATURE_V2,
    BadProxyHeader,
    crc32c,
    parse,
)

# From a load balancer of AWS: a checksum, a vendor's TLV, padding.
FROM_AWS = bytes.fromhex(
    "0d0a0d0a000d0a515549540a 21110054 ac1f0771ac1f0a1f c8f20050"
    "030004e8d6892d ea00170176706365 2d30386432626631356661633530303163 39 040024"
) + bytes(36)


def v2(command=0x21, family=0x11, body=b"", length=None):
    return SIGNATURE_V2 + struct.pack("!BBH", command, family, length or len(body)) + body


INET = bytes([203, 0, 113, 7, 10, 0, 0, 9]) + struct.pack("!HH", 4711, 443)
INET6 = bytes(15) + b"\1" + bytes(15) + b"\2" + struct.pack("!HH", 4711, 443)
MAPPED = bytes(10) + b"\xff\xff" + INET[:4] + bytes(15) + b"\2" + struct.pack("!HH", 4711, 443)
UNIX = b"/run/client".ljust(108, b"\0") + b"/run/server".ljust(108, b"\0")

NAMED = {
    "v1 IPv4": (b"PROXY TCP4 203.0.113.7 10.0.0.9 4711 443\r\n", "203.0.113.7", "10.0.0.9"),
    "v1 IPv6": (b"PROXY TCP6 2001:DB8::1 ::2 4711 443\r\n", "2001:db8::1", "::2"),
    "v1 mapped": (b"PROXY TCP6 ::ffff:203.0.113.7 ::2 4711 443\r\n", "203.0.113.7", "::2"),
    "v2 IPv4": (v2(body=INET), "203.0.113.7", "10.0.0.9"),
    "v2 IPv6": (v2(family=0x21, body=INET6), "::1", "::2"),
    "v2 mapped": (v2(family=0x21, body=MAPPED), "203.0.113.7", "::2"),
    "v2 with TLVs": (v2(body=INET + b"\x02\0\3a.b" + b"\x04\0\0"), "203.0.113.7", "10.0.0.9"),
}
NAMELESS = {
    "v1 UNKNOWN": b"PROXY UNKNOWN\r\n",
    "v1 UNKNOWN with addresses": b"PROXY UNKNOWN ffff:: ffff:: 65535 65535\r\n",
    "v2 LOCAL": v2(command=0x20, family=0),
    "v2 LOCAL with an address": v2(command=0x20, body=INET),
    "v2 UNSPEC": v2(family=0),
    "v2 UNSPEC with something": v2(family=0, body=b"something"),
}
HEADERS = [header for header, *_ in NAMED.values()] + list(NAMELESS.values()) + [FROM_AWS]


@pytest.mark.parametrize(("header", "client", "server"), NAMED.values(), ids=NAMED)
def test_a_header_names_client_and_server(header, client, server):
    parsed = parse(header + b"GET /")
    assert parsed.size == len(header)
    assert parsed.has_addresses
    assert (parsed.client, parsed.server) == ((client, 4711), (server, 443))


@pytest.mark.parametrize("header", NAMELESS.values(), ids=NAMELESS)
def test_a_header_may_name_nobody(header):
    parsed = parse(header + b"GET /")
    assert (parsed.size, parsed.has_addresses) == (len(header), False)


def test_a_client_on_a_unix_socket_has_no_address():
    parsed = parse(v2(family=0x31, body=UNIX))
    assert (parsed.has_addresses, parsed.client, parsed.server) == (
        True,
        None,
        ("/run/server", None),
    )


def test_a_header_from_a_real_load_balancer_is_read():
    parsed = parse(FROM_AWS)
    assert (parsed.client, parsed.server) == (("172.31.7.113", 51442), ("172.31.10.31", 80))


SECURE = b"\x20\0\x05\x01\0\0\0\0"
NOT_SECURE = b"\x20\0\x05\x06\0\0\0\1"
WITH_VERSION = b"\x20\0\x0f\x01\0\0\0\0\x21\0\7TLSv1.3"


@pytest.mark.parametrize(
    ("tlvs", "secure"),
    [(b"", False), (SECURE, True), (NOT_SECURE, False), (b"\4\0\0" + WITH_VERSION, True)],
)
def test_a_header_says_whether_the_client_speaks_tls(tlvs, secure):
    assert parse(v2(body=INET + tlvs)).secure is secure


def test_an_incomplete_tls_tlv_is_refused():
    with pytest.raises(BadProxyHeader, match="truncated"):
        parse(v2(body=INET + b"\x20\0\4\x01\0\0\0"))


@pytest.mark.parametrize("bit", range(0, 8 * len(FROM_AWS), 7))
def test_the_checksum_finds_a_flipped_bit(bit):
    data = bytearray(FROM_AWS)
    data[bit // 8] ^= 1 << bit % 8
    try:
        parsed = parse(bytes(data))
    except BadProxyHeader:
        return
    # It can't if the flip turns the checksum into another TLV, or changes the header's length or
    # type.
    assert parsed is None or not parsed.has_addresses or data[28] != 3


def test_crc32c_of_the_usual_example_is_right():
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("header", HEADERS)
def test_an_incomplete_header_is_waited_for(header):
    for end in range(len(header)):
        assert parse(header[:end]) is None, header[:end]


BAD = [
    b"GET / HTTP/1.1\r\n",
    b"\x16\x03\x01",
    b"PROXY\tTCP4",
    b"proxy TCP4 203.0.113.7 10.0.0.9 4711 443\r\n",
    b"PROXY \r\n",
    b"PROXY TCP4\r\n",
    b"PROXY TCP5 203.0.113.7 10.0.0.9 4711 443\r\n",
    b"PROXY UDP4 203.0.113.7 10.0.0.9 4711 443\r\n",
    b"PROXY TCP4 203.0.113.7 10.0.0.9 4711 443\n",
    b"PROXY TCP4  203.0.113.7 10.0.0.9 4711 443\r\n",
    b"PROXY TCP4 203.0.113.7 10.0.0.9 4711 443 \r\n",
    b"PROXY TCP4 203.0.113.7 10.0.0.9 4711\r\n",
    b"PROXY TCP4 203.0.113.7 10.0.0.9 65536 443\r\n",
    b"PROXY TCP4 203.0.113.7 10.0.0.9 04711 443\r\n",
    b"PROXY TCP4 203.0.113.7 10.0.0.9 -1 443\r\n",
    b"PROXY TCP4 203.0.113.256 10.0.0.9 4711 443\r\n",
    b"PROXY TCP4 ::1 ::2 4711 443\r\n",
    b"PROXY TCP6 203.0.113.7 10.0.0.9 4711 443\r\n",
    b"PROXY TCP6 fe80::1%eth0 ::2 4711 443\r\n",
    b"PROXY UNKNOWNX\r\n",
    b"PROXY UNKNOWN a\rb\r\n",
    b"PROXY UNKNOWN " + b"x" * LONGEST_V1,
    SIGNATURE_V2 + b"\x11",
    SIGNATURE_V2 + b"\x22",
    SIGNATURE_V2 + b"\x31",
    v2(family=0x12, body=INET),
    v2(family=0x41, body=INET),
    v2(family=0x21, body=INET),
    v2(family=0x31, body=INET),
    v2(body=INET[:-1]),
    v2(body=b""),
    v2(body=INET + b"\x04"),
    v2(body=INET + b"\x04\0\1"),
    v2(body=INET + b"\x03\0\4\0\0\0\0"),
    v2(body=INET + b"\x03\0\0"),
    v2(body=b"", length=LONGEST_V2),
]


@pytest.mark.parametrize("data", BAD)
def test_invalid_headers_are_refused(data):
    with pytest.raises(BadProxyHeader):
        parse(data)


def test_a_line_is_accepted_up_to_the_greatest_length():
    line = b"PROXY UNKNOWN " + b"x" * (LONGEST_V1 - 16) + b"\r\n"
    assert parse(line).size == len(line) == LONGEST_V1
    with pytest.raises(BadProxyHeader):
        parse(b"PROXY UNKNOWN x" + line[14:])


def test_a_binary_header_of_the_greatest_length_is_accepted():
    room = LONGEST_V2 - 16 - len(INET) - 3
    body = INET + b"\x04" + room.to_bytes(2, "big") + bytes(room)
    assert parse(v2(body=body)).size == LONGEST_V2


hostile = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=300).map(lambda tail: SIGNATURE_V2 + tail),
    st.binary(max_size=120).map(lambda tail: b"PROXY TCP4 " + tail),
    st.tuples(st.sampled_from(HEADERS), st.integers(0, 150), st.binary(max_size=4)).map(
        lambda made: made[0][: made[1]] + made[2] + made[0][made[1] + len(made[2]) :]
    ),
)


@given(hostile)
def test_hostile_bytes_are_a_header_or_refused(data):
    try:
        parsed = parse(data)
    except BadProxyHeader:
        return
    if parsed is not None:
        assert 0 < parsed.size <= len(data)


@given(hostile, st.integers(0, 300))
def test_more_data_changes_no_result(data, end):
    """The result of a beginning is also the result of the whole."""

    def outcome(piece):
        try:
            return parse(piece)
        except BadProxyHeader:
            return BadProxyHeader

    begun = outcome(data[:end])
    assert begun is None or outcome(data) == begun
