"""The framing of requests, and whether connections stay open: one policy for every parser.

This module checks again what a parser has accepted, because request smuggling relies on servers
that frame the same bytes differently. See RFC 9112 (sections 3.2, 6 and 9.3) and RFC 9110.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from esg.errors import BadRequest, HeaderFieldsTooLarge, NotImplementedByServer, VersionNotSupported
from esg.server.asgi.types import Headers, is_authority
from esg.server.memo import Memo
from esg.server.proxy import headers as proxy_headers

DECIDING = frozenset(
    (
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"expect",
        b"proxy-connection",
    )
)
"""The fields that affect framing or the connection; a request has few of them."""

DECIDING_FROM_PROXY = DECIDING | proxy_headers.FIELDS
"""The same for a peer whose forwarded fields matter: see `proxy_headers.heed`."""

NOT_IN_TRAILERS = DECIDING - {b"host", b"expect"}
"""Fields that come too late in a trailer section: they concern framing, or the next message."""

VERSIONS = ("1.1", "1.0")

CHUNKED = -1
"""The body length of a request with a chunked body."""

_DIGITS = frozenset(b"0123456789")
_hosts: Memo[bytes, None] = Memo(entries=256, longest=255)
_known_hosts = _hosts.known
"""Values of Host that were checked before: clients send the same few over and over."""


class Framing:
    """The meaning of a request's head for its body, its response and its connection."""

    __slots__ = (
        "expects_continue",
        "forwarded",
        "head_only",
        "http11",
        "keep_alive",
        "length",
        "version",
    )

    def __init__(
        self,
        length: int,
        *,
        version: str = "1.1",
        keep_alive: bool = True,
        expects_continue: bool = False,
        head_only: bool = False,
        forwarded: bool = False,
    ) -> None:
        self.length = length
        """Bytes of body, or CHUNKED."""
        self.version = version
        self.http11 = version == "1.1"
        self.keep_alive = keep_alive
        self.expects_continue = expects_continue
        self.head_only = head_only
        """Whether the response has no body, because the method is HEAD."""
        self.forwarded = forwarded
        """Whether the request has forwarded fields, which name the client."""


PLAIN = Framing(0)
"""An HTTP/1.1 request without a body, on a connection that stays open: by far the most frequent."""


PLAIN_FORWARDED = Framing(0, forwarded=True)
"""The same with forwarded fields."""

_BY_OPTION = {
    b"keep-alive": PLAIN,
    b"Keep-Alive": PLAIN,
    b"close": Framing(0, keep_alive=False),
}
"""The framing of an HTTP/1.1 request without a body by its Connection field, for the most frequent
values. Browsers send `keep-alive`, although HTTP/1.1 doesn't need it.
"""


class Head(Protocol):
    """A parser's result for the request whose header section it has just read."""

    @property
    def http_version(self) -> Callable[[], str]:
        """The version, as "1.1"."""

    @property
    def persists(self) -> Callable[[], bool]:
        """Whether version and Connection options together keep the connection open."""


def examine(
    method: bytes, headers: Headers, head: Head, deciding: frozenset[bytes] = DECIDING
) -> Framing:
    """Check a request's header section and say how its message is framed.

    Names are lower-case here; `deciding` is DECIDING, or DECIDING_FROM_PROXY. Raises BadRequest,
    NotImplementedByServer or VersionNotSupported.
    """
    hosts = 0
    by_option = None
    for name, value in headers:
        if name in deciding:
            if name == b"host":
                if value not in _known_hosts:
                    _check_host(value)
                hosts += 1
            elif name == b"connection" and by_option is None and value in _BY_OPTION:
                by_option = _BY_OPTION[value]
            else:
                break
    else:
        if hosts == 1 and method != b"HEAD":
            if by_option is None:
                if head.persists():  # without a Connection field, only HTTP/1.1 does
                    return PLAIN
            elif head.http_version() == "1.1":
                return by_option
    return _examine_fully(method, headers, head, deciding)


def _examine_fully(
    method: bytes, headers: Headers, head: Head, deciding: frozenset[bytes]
) -> Framing:
    """The slow path: for HEAD, HTTP/1.0, and most requests with `deciding` fields besides Host."""
    hosts = 0
    lengths: tuple[bytes, ...] = ()
    codings: tuple[bytes, ...] = ()
    options: tuple[bytes, ...] = ()
    expectation = b""
    forwarded = False
    proxy_options: tuple[bytes, ...] = ()
    for name, value in headers:
        if name not in deciding:
            continue
        if name == b"host":
            hosts += 1
            if value not in _known_hosts:
                _check_host(value)
        elif name == b"content-length":
            lengths = (*lengths, value)
        elif name == b"transfer-encoding":
            codings = (*codings, value)
        elif name == b"connection":
            options = (*options, *_list(value))
        elif name == b"expect":
            expectation = value
        elif name in DECIDING:
            proxy_options = (*proxy_options, *_list(value))
        else:
            forwarded = True
    plain = not options and not proxy_options
    version = "1.1" if plain and head.persists() else head.http_version()
    if version not in VERSIONS:
        # A request line without a version (HTTP/0.9) is just malformed.
        error = BadRequest if version == "0.9" else VersionNotSupported
        raise error(f"HTTP/{version} is not supported")
    http11 = version == "1.1"
    if hosts != 1 and (http11 or hosts > 1):
        raise BadRequest("a request must have exactly one Host field")
    ordinary = http11 and not (lengths or codings or options or expectation or proxy_options)
    if ordinary and forwarded and method != b"HEAD":
        return PLAIN_FORWARDED
    return Framing(
        _body_length(http11, lengths, codings),
        version=version,
        # Proxy-Connection has no meaning, but after its "close" llhttp parses nothing more.
        keep_alive=_keeps_alive(http11, options) and b"close" not in proxy_options,
        expects_continue=http11 and expectation.lower() == b"100-continue",
        head_only=method == b"HEAD",
        forwarded=forwarded,
    )


def _check_host(value: bytes) -> None:
    """Raise BadRequest for a Host that isn't a host and port; otherwise cache it."""
    if not is_authority(value):
        raise BadRequest("malformed Host")
    _hosts.keep(value, None, value)


def _body_length(http11: bool, lengths: Sequence[bytes], codings: Sequence[bytes]) -> int:
    if codings:
        if lengths:
            raise BadRequest("Content-Length and Transfer-Encoding in one request")
        if not http11:
            raise BadRequest("Transfer-Encoding in an HTTP/1.0 request")
        if len(codings) > 1 or _list(codings[0]) != [b"chunked"]:
            names = [name for value in codings for name in _list(value)]
            if b"chunked" in names[:-1] or not any(names):
                raise BadRequest("chunked must be the last transfer coding")
            raise NotImplementedByServer("the only transfer coding is chunked")
        return CHUNKED
    if not lengths:
        return 0
    if len(lengths) > 1 or not lengths[0] or not _DIGITS.issuperset(lengths[0]):
        raise BadRequest("malformed Content-Length")
    if len(lengths[0]) > 18:
        raise BadRequest("Content-Length out of range")
    return int(lengths[0])


def _keeps_alive(http11: bool, options: Sequence[bytes]) -> bool:
    return b"close" not in options and (http11 or b"keep-alive" in options)


def _list(value: bytes) -> list[bytes]:
    """The members of a list of tokens, in lower case (RFC 9110, section 5.6.1)."""
    return [member.strip(b" \t") for member in value.lower().split(b",")]


def check_trailers(fields: Headers, most_fields: int, most_bytes: int) -> None:
    """Raise BadRequest for a trailer field that affects framing (RFC 9110, section 6.5.1).

    llhttp obeys `Connection: close` even there, and refuses lengths and codings. Raises
    HeaderFieldsTooLarge for a section that is larger than a header section may be.
    """
    if len(fields) > most_fields:
        raise HeaderFieldsTooLarge("too many trailer fields")
    check_size(fields, most_bytes)
    for name, _ in fields:
        if name in NOT_IN_TRAILERS:
            raise BadRequest(f"{name.decode('ascii')} in a trailer section")


def check_size(headers: Headers, most_bytes: int) -> None:
    """Raise HeaderFieldsTooLarge for a header section with too many bytes."""
    # In addition to name and value, a field takes two bytes for ": " and two for its line end.
    if sum(len(name) + len(value) + 4 for name, value in headers) > most_bytes:
        raise HeaderFieldsTooLarge("the header section is too large")
