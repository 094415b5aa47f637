"""The bytes of a response's head. An application's values can't add a line to it.

RFC 9112, sections 4 to 6; RFC 9110, sections 5.5 (field values) and 6.6.1 (Date).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

from esg.server.asgi.responses import (
    REASONS,
    Content,
    InvalidHeader,
    check_status,
    plain_content,
)
from esg.server.memo import Memo

CONTENT_LENGTH = 1
DATE = 2
SERVER = 4
TRANSFER_ENCODING = 8
CONNECTION = 16
CLOSE = 32
"""Kinds of an application's fields: bits of the second value that `check_fields` returns."""

NO_CONTENT = 64
"""A kind that comes from the status: the response never has a body."""

TRAILING = 128
"""A kind that the application announces: trailer fields follow the body."""

CHUNKED = 256
"""A kind that the server decides: the body is sent in chunks."""

STREAMING = 512
"""The next piece is a chunk, too, and isn't counted for the access log."""

DEFAULTS = DATE | SERVER
USUAL = CONTENT_LENGTH | DEFAULTS
NOT_COPIED = TRANSFER_ENCODING | CONNECTION

_KINDS = {
    b"content-length": CONTENT_LENGTH,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"connection": CONNECTION,
    b"date": DATE,
    b"server": SERVER,
}

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FORBIDDEN_IN_VALUE = re.compile(rb"[\x00\r\n]")

LONGEST_READY = 4096
"""The most bytes of a head that is kept for the next response with the same status."""

Line = tuple[bytes, int, int]
"""A field as sent, the bits of its kind, and its number if it is a Content-Length."""

NO_FIELDS = object()
"""A value that no application's fields are equal to."""

_memo: Memo[object, Line] = Memo(entries=512, longest=128)
_lines = _memo.known
"""Header lines that were checked before; applications send the same few lines."""

SERVER_NAME = b"esg"


def check_fields(
    headers: Iterable[Iterable[Any]], begin: bytes = b""
) -> tuple[list[bytes], int, int]:
    """Check an application's response fields.

    Returns the lines to send, after `begin`; the bits for the kinds of fields; and the
    Content-Length, or -1. Framing and connection management belong to the server: Transfer-Encoding
    and Connection are obeyed if they make sense, and not copied. Raises InvalidHeader.
    """
    lines = [begin]
    given = 0
    length = -1
    for header in headers:
        try:
            known = _lines.get(header)
        except TypeError:  # a list can't be a key
            known = None
        if known is None:
            name, value = header
            known = _checked_line(name, value)
        line, kind, number = known
        if kind:
            if kind == CONTENT_LENGTH:
                if given & CONTENT_LENGTH:
                    raise InvalidHeader("two Content-Length fields")
                length = number
            given |= kind
            if kind & NOT_COPIED:
                continue
        lines.append(line)
    return lines, given, length


def _checked_line(name: object, value: object) -> Line:
    if not isinstance(name, bytes) or not isinstance(value, bytes):
        raise InvalidHeader(f"header names and values are bytes, not {name!r}: {value!r}")
    if not _TOKEN.fullmatch(name):
        raise InvalidHeader(f"{name!r} isn't a valid header name")
    if _FORBIDDEN_IN_VALUE.search(value):
        raise InvalidHeader(f"the value of {name!r} has a CR, LF or NUL")
    kind, number = _KINDS.get(name.lower(), 0), 0
    if kind == CONTENT_LENGTH:
        if not value.strip(b" \t").isdigit():
            raise InvalidHeader(f"Content-Length {value!r} is no length")
        number = int(value)
    elif kind == CONNECTION and b"close" in [o.strip() for o in value.lower().split(b",")]:
        kind |= CLOSE
    line = (b"%b: %b\r\n" % (name, value), kind, number)
    return _memo.keep((name, value), line, name, value)


Ready = tuple[int, bytes, int, object, bytes, int, int]
"""The prepared parts of responses with one status, valid until the Date changes.

The status code; the status line with all default fields; NO_CONTENT or 0; the fields of the first
response with this status; the whole head with these fields, except its end; and the kinds and the
Content-Length that `check_fields` returned for them. Applications tend to send the same fields
again, and a comparison costs a fifth of checking them.
"""


def _kind_of(field: str) -> int:
    return _KINDS.get(field.partition(":")[0].lower().encode("latin-1"), 0)


def _joined(lines: Iterable[tuple[int, bytes]], wanted: int) -> bytes:
    """The lines of one kind, one after the other."""
    return b"".join(line for kind, line in lines if kind == wanted)


class Heads:
    """Status lines followed by the default fields, renewed once a second for the Date."""

    __slots__ = ("_added", "_date", "_dated", "_server", "ready")

    def __init__(self, server_header: bool, date_header: bool, added: Sequence[str] = ()) -> None:
        """`added` are fields for every response, as `NAME: VALUE`.

        Server or Date fields among them, one or several, replace the default one. Any other field
        is sent even if the application gives a field with the same name; then both are sent.
        """
        self._server = b"server: %b\r\n" % SERVER_NAME if server_header else b""
        lines = [(_kind_of(field), field.encode("latin-1") + b"\r\n") for field in added]
        self._server = _joined(lines, SERVER) or self._server
        self._date = _joined(lines, DATE)
        self._dated = date_header and not self._date
        self._added = b"".join(line for kind, line in lines if kind not in (SERVER, DATE))
        self.ready: dict[int, Ready] = {}
        self.refresh(time.time())

    def refresh(self, now: float) -> None:
        """Renew the Date; `now` is seconds since the epoch (RFC 9110, section 5.6.7)."""
        if not self._dated:
            return
        moment = time.gmtime(now)
        self._date = b"date: %b, %02d %b %04d %02d:%02d:%02d GMT\r\n" % (
            _DAYS[moment.tm_wday],
            moment.tm_mday,
            _MONTHS[moment.tm_mon - 1],
            moment.tm_year,
            moment.tm_hour,
            moment.tm_min,
            moment.tm_sec,
        )
        self.ready.clear()

    def begin(self, status: int, given: int) -> bytes:
        """The status line and the default fields that the application didn't give itself."""
        date = b"" if given & DATE else self._date
        server = b"" if given & SERVER else self._server
        return status_line(status) + server + date + self._added

    def add(self, status: Any) -> Ready:
        """Check a status from an application, and prepare it (`ready`). Raises InvalidHeader."""
        code = check_status(status)
        bodiless = code in (204, 304)
        fields = NO_FIELDS if bodiless else None
        made = (code, self.begin(code, 0), NO_CONTENT if bodiless else 0, fields, b"", 0, 0)
        self.ready[code] = made
        return made

    def remember(self, code: int, headers: object, lines: list[bytes], *meaning: int) -> None:
        """Prepare the fields of a response (`ready`), unless the application could change them."""
        known = self.ready[code]
        if sum(map(len, lines)) > LONGEST_READY:
            return
        if type(headers) is list and all(type(header) is tuple for header in headers):
            given, length = meaning
            self.ready[code] = (*known[:3], headers.copy(), b"".join(lines), given, length)
        else:
            self.ready[code] = (*known[:3], NO_FIELDS, b"", 0, 0)


_DAYS = (b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun")
_MONTHS = (
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"
)  # fmt: skip


def status_line(status: int, reason: bytes | None = None) -> bytes:
    """`HTTP/1.1 200 OK`. The version is always the server's, not the client's (RFC 9110, 2.5).

    `reason` is a phrase other than the usual one.
    """
    if reason is None:
        reason = REASONS.get(status, "").encode("ascii")
    return b"HTTP/1.1 %d %b\r\n" % (status, reason)


def plain_response(
    status: int,
    heads: Heads,
    head_only: bool = False,
    content: Content | None = None,
    *,
    retry: bool = False,
) -> bytes:
    """A whole response that says that the connection closes, and its status in plain text.

    `head_only`: without the body, because the request's method is HEAD. `content` is sent in place
    of the text. `retry`: another attempt will be served (Retry-After; RFC 9110, section 10.2.3).
    """
    kind, body = content or plain_content(status)
    return b"%bcontent-type: %b; charset=utf-8\r\ncontent-length: %d\r\n%b%b\r\n%b" % (
        heads.begin(status, 0),
        kind,
        len(body),
        b"retry-after: 1\r\n" if retry else b"",
        b"connection: close\r\n",
        b"" if head_only else body,
    )
