"""How a request is delimited and whether its connection may go on: one policy for every parser.

What a parser let through is looked at once more here, since request smuggling lives on servers
that frame the same bytes differently. RFC 9112 (sections 3.2, 6 and 9.3) and RFC 9110.
"""

from __future__ import annotations

from esg.errors import BadRequest, HeaderFieldsTooLarge, NotImplementedByServer
from esg.server.asgi import Headers

DECIDING = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"expect"))
"""The fields that decide anything here; a request has few of them."""

CHUNKED = -1
"""The body length of a request whose body comes in chunks."""

_DIGITS = frozenset(b"0123456789")
_HOST_BYTES = frozenset(
    b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,;=%:[]"
)


class Framing:
    """What the header section says of the message it heads."""

    __slots__ = ("expects_continue", "keep_alive", "length")

    def __init__(self, length: int, keep_alive: bool, expects_continue: bool) -> None:
        self.length = length
        """Bytes of body, or CHUNKED."""
        self.keep_alive = keep_alive
        self.expects_continue = expects_continue


PLAIN = Framing(0, True, False)
"""An HTTP/1.1 request without a body, on a connection that goes on: by far the most frequent."""


def examine(http11: bool, headers: Headers) -> Framing:
    """Check a request's header section and say how its message is framed.

    Names are lower-case here. Raises BadRequest or NotImplementedByServer.
    """
    hosts = 0
    lengths: list[bytes] = []
    codings: list[bytes] = []
    options: list[bytes] = []
    expectation = b""
    for name, value in headers:
        if name not in DECIDING:
            continue
        if name == b"host":
            hosts += 1
            if value and not _HOST_BYTES.issuperset(value):
                raise BadRequest("malformed Host")
        elif name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
        elif name == b"connection":
            options += value.lower().split(b",")
        else:
            expectation = value
    if hosts != 1 and (http11 or hosts > 1):
        raise BadRequest("a request has exactly one Host field")
    if http11 and not (lengths or codings or options or expectation):
        return PLAIN
    length = _body_length(http11, lengths, codings)
    keep_alive = _keeps_alive(http11, options)
    return Framing(length, keep_alive, http11 and expectation.lower() == b"100-continue")


def _body_length(http11: bool, lengths: list[bytes], codings: list[bytes]) -> int:
    if codings:
        if lengths:
            raise BadRequest("Content-Length and Transfer-Encoding in one request")
        if not http11:
            raise BadRequest("Transfer-Encoding in an HTTP/1.0 request")
        if len(codings) > 1 or codings[0].strip(b" \t").lower() != b"chunked":
            raise NotImplementedByServer("the only transfer coding is chunked")
        return CHUNKED
    if not lengths:
        return 0
    if len(lengths) > 1 or not lengths[0] or not _DIGITS.issuperset(lengths[0]):
        raise BadRequest("malformed Content-Length")
    if len(lengths[0]) > 18:
        raise BadRequest("Content-Length out of range")
    return int(lengths[0])


def _keeps_alive(http11: bool, options: list[bytes]) -> bool:
    names = [option.strip(b" \t") for option in options]
    if b"close" in names:
        return False
    return http11 or b"keep-alive" in names


def check_count(headers: Headers, most_fields: int, most_bytes: int) -> None:
    """Raise HeaderFieldsTooLarge for more fields, or more bytes of them, than allowed."""
    if len(headers) > most_fields:
        raise HeaderFieldsTooLarge(f"more than {most_fields} header fields")
    # A field takes two bytes for ": " and two for its line end beside what it carries.
    if sum(len(name) + len(value) + 4 for name, value in headers) > most_bytes:
        raise HeaderFieldsTooLarge(f"more than {most_bytes} bytes of header fields")
