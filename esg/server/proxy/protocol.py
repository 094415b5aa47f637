"""Parses the header of the PROXY protocol, versions 1 and 2. Pure.

Sections are those of https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt.
"""

from __future__ import annotations

import ipaddress
import re
import struct

from esg.errors import ESGError
from esg.frozen import frozen
from esg.server.asgi.types import Endpoint

LONGEST_V1 = 107
"""The most bytes of a header of version 1, including its line end (section 2.1)."""

LONGEST_V2 = 4096
"""The most bytes of a header of version 2 that are accepted. Senders should stay below 536; only
certificates in the TLVs need more.
"""

SIGNATURE_V1 = b"PROXY "
SIGNATURE_V2 = b"\r\n\r\n\0\r\nQUIT\n"

_FIXED = struct.Struct("!12sBBH")
_PORTS = struct.Struct("!HH")
_INET, _INET6, _UNIX = 0x11, 0x21, 0x31
_UNIX_PATH = 108
_CRC32C, _SSL = 0x03, 0x20
_SSL_SIZE = 5
_CLIENT_SSL = 0x01

_LINE = re.compile(rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) ([0-9]+) ([0-9]+)\r\n")
_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")


class BadProxyHeader(ESGError):
    """The connection doesn't begin with a valid header of the PROXY protocol."""


@frozen
class ProxyHeader:
    """A header. If it has no addresses, the addresses of the connection itself are used."""

    size: int
    """The size of the header in bytes; the client's data follows it."""
    has_addresses: bool = False
    """Whether it has addresses. Headers with LOCAL, UNKNOWN or UNSPEC have none."""
    client: Endpoint | None = None
    """Address and port, or None if the client came over a UNIX socket."""
    server: Endpoint | None = None
    """The address that the client connected to: address and port, or path and None."""
    secure: bool = False
    """Whether the client speaks TLS with the proxy."""


def parse(data: bytes) -> ProxyHeader | None:
    """Parse the header at the beginning of a connection; None if it isn't complete yet.

    Raises BadProxyHeader as soon as the data can't be a valid header.
    """
    if data[:12] == SIGNATURE_V2[: len(data)]:
        return _parse_v2(data)
    if data[:6] == SIGNATURE_V1[: len(data)]:
        return _parse_v1(data)
    raise BadProxyHeader("no PROXY protocol header")


def _parse_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\n", 0, LONGEST_V1)
    if end < 0:
        if len(data) >= LONGEST_V1:
            raise BadProxyHeader("a PROXY protocol header that is too long")
        return None
    line = data[: end + 1]
    if _UNKNOWN.fullmatch(line):
        return ProxyHeader(len(line))
    match = _LINE.fullmatch(line)
    if match is None:
        raise BadProxyHeader("a malformed PROXY protocol header")
    family, source, destination, source_port, destination_port = match.groups()
    return ProxyHeader(
        len(line),
        True,
        (_address(family, source), _port(source_port)),
        (_address(family, destination), _port(destination_port)),
    )


def _address(family: bytes, text: bytes) -> str:
    try:
        if family == b"TCP4":
            return str(ipaddress.IPv4Address(text.decode("ascii")))
        address = ipaddress.IPv6Address(text.decode("ascii"))
        return str(address.ipv4_mapped or address)
    except ValueError:
        raise BadProxyHeader("a PROXY protocol header with a malformed address") from None


def _port(text: bytes) -> int:
    if not _PORT.fullmatch(text) or int(text) > 65535:
        raise BadProxyHeader("a PROXY protocol header with a malformed port")
    return int(text)


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < _FIXED.size:
        _check_begin(data)
        return None
    _, version_command, family, length = _FIXED.unpack_from(data)
    _check_begin(data)
    size = _FIXED.size + length
    if size > LONGEST_V2:
        raise BadProxyHeader("a PROXY protocol header that is too long")
    if len(data) < size:
        return None
    header, rest = data[:size], data[_FIXED.size : size]
    if version_command == 0x20:
        return ProxyHeader(size)  # LOCAL: a connection of the proxy itself, such as a health check
    client: Endpoint | None
    server: Endpoint | None
    if family == _INET and length >= 12:
        client, server, tlvs_at = *_endpoints(rest, 4), 12
    elif family == _INET6 and length >= 36:
        client, server, tlvs_at = *_endpoints(rest, 16), 36
    elif family == _UNIX and length >= 2 * _UNIX_PATH:
        path = rest[_UNIX_PATH : 2 * _UNIX_PATH].rstrip(b"\0").decode("latin-1")
        client, server, tlvs_at = None, (path, None), 2 * _UNIX_PATH
    elif family == 0x00:
        return ProxyHeader(size)  # UNSPEC: the format of the addresses is unknown
    else:
        raise BadProxyHeader("a PROXY protocol header of another family, or too short for its own")
    secure = _read_tlvs(header, _FIXED.size + tlvs_at)
    return ProxyHeader(size, True, client, server, secure)


def _check_begin(data: bytes) -> None:
    """Raise BadProxyHeader for an unknown version or command, even in an incomplete header."""
    if data[12:13] not in (b"", b"\x20", b"\x21"):
        raise BadProxyHeader("a PROXY protocol header of an unknown version or command")


def _endpoints(data: bytes, width: int) -> tuple[Endpoint, Endpoint]:
    source_port, destination_port = _PORTS.unpack_from(data, 2 * width)
    hosts = []
    for at in (0, width):
        host = ipaddress.ip_address(data[at : at + width])
        hosts.append(str(getattr(host, "ipv4_mapped", None) or host))
    return (hosts[0], source_port), (hosts[1], destination_port)


def _read_tlvs(header: bytes, at: int) -> bool:
    """Read the TLVs; True if one says that the client speaks TLS (section 2.2.6).

    If there is a checksum, it must be right (section 2.2.3). Raises BadProxyHeader.
    """
    secure = False
    while at < len(header):
        if len(header) - at < 3:
            raise BadProxyHeader("a PROXY protocol header with a truncated TLV")
        kind = header[at]
        value_at = at + 3
        at = value_at + int.from_bytes(header[at + 1 : value_at], "big")
        if at > len(header):
            raise BadProxyHeader("a PROXY protocol header with a truncated TLV")
        if kind == _SSL:
            if at - value_at < _SSL_SIZE:
                raise BadProxyHeader("a PROXY protocol header with a truncated TLV")
            secure = bool(header[value_at] & _CLIENT_SSL)
        elif kind == _CRC32C:
            value = header[value_at:at]
            # The checksum is computed with zeros in its own place.
            blank = header[:value_at] + bytes(len(value)) + header[at:]
            if value != crc32c(blank).to_bytes(4, "big"):
                raise BadProxyHeader("a PROXY protocol header with a wrong checksum")
    return secure


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ 0x82F63B78 * (byte & 1)
        table.append(byte)
    return tuple(table)


_CRC32C_TABLE = _crc32c_table()


def crc32c(data: bytes) -> int:
    """The checksum of RFC 9260, appendix A (Castagnoli's polynomial, reflected)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
