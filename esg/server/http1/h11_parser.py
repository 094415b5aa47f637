"""h11 as a parser: bytes in, calls to a sink out. It contains no policy, and no responses.

h11 hides some details: it joins folded lines, accepts a bare LF as a line end, and merges several
values of Content-Length. So this module checks the lines that h11 takes out of its buffer, and the
sink gets the original fields.
"""

from __future__ import annotations

import re
import sys

import h11

# This isn't public, but it is the only place that all lines pass before h11 sees them.
from h11._receivebuffer import ReceiveBuffer

from esg.errors import BadRequest, HTTPError
from esg.server.http1.parser import Sink

if type(h11.Connection(h11.SERVER)._receive_buffer) is not ReceiveBuffer:
    raise ImportError("this release of h11 has no buffer that could be made strict")

METHODS = frozenset(
    b"DELETE GET HEAD POST PUT CONNECT OPTIONS TRACE COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH"
    b" UNLOCK BIND REBIND UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE"
    b" UNSUBSCRIBE PATCH PURGE MKCALENDAR LINK UNLINK SOURCE QUERY".split()
)
"""The methods that llhttp knows; both parsers have to accept the same requests."""

_LONGEST_METHOD = max(map(len, METHODS))

_FAULT = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n|\Z)|(?<!\r)\n|\n[ \t]")
"""Text that no section may contain: controls, half a line end, folding (RFC 9112, 2.2 and 5)."""

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]"
_CHUNK_HEADER = re.compile(
    rb"0*([0-9A-Fa-f]{1,16})"
    rb"(?:;(?!\r)" + _TOKEN + rb"*(?:=" + _TOKEN + rb'*(?:"(?:[^"\\]|\\.)*")?)?)*\r\n'
)
"""A chunk's size and its extensions (RFC 9112, section 7.1), as llhttp accepts them."""

_HEXDIGITS = frozenset(b"0123456789abcdefABCDEF")


class H11Parser:
    """A new `h11.Connection` for each request, over one buffer, because h11 doesn't see the
    responses."""

    __slots__ = ("_buffer", "_connection", "_line", "_method", "_offers", "_sink", "_target_passed")

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._buffer = _StrictBuffer()
        self._begin()

    def _begin(self) -> None:
        """Expect a request."""
        # The sink limits how much may wait in the buffer.
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=sys.maxsize)
        self._connection._receive_buffer = self._buffer
        self._line: list[bytes] = []
        self._method = b""
        """The method of an incomplete request line, once the method itself is complete."""
        self._target_passed = 0
        """Bytes of the target that the sink has received."""
        self._offers = False

    # -- what the request line says ------------------------------------------------------

    def method(self) -> bytes:
        """See `Parser`."""
        return self._line[0] if self._line else self._method

    def http_version(self) -> str:
        """See `Parser`."""
        return self._line[2].decode("ascii").removeprefix("HTTP/")

    def persists(self) -> bool:
        """See `Parser`."""
        return self._line[2] == b"HTTP/1.1"

    def upgrades(self) -> bool:
        """See `Parser`."""
        return self._offers

    # -- parsing -------------------------------------------------------------------------

    def feed(self, data: bytes | memoryview) -> None:
        """Parse some bytes; what it raises is for `recover`."""
        self._buffer.append(data)
        while self._step():
            pass

    def recover(
        self, error: Exception, data: bytes | memoryview, body_length: int
    ) -> bytes | memoryview:
        """See `Parser`."""
        if isinstance(error, _Offer):
            if not body_length:
                self._begin()
            return self._buffer.take_all()
        if isinstance(error, HTTPError):
            self._sink.raised = None
            raise error
        if isinstance(error, h11.RemoteProtocolError):
            error.__traceback__ = None  # h11 raises it from a frame that refers to it: a cycle
            raise BadRequest(str(error)) from None
        raise error

    def _step(self) -> bool:
        """Make h11 read one event, and pass it to the sink; False if there aren't enough bytes."""
        in_head = self._connection.their_state is h11.IDLE
        if in_head and not self._buffer.skip_line_ends():
            return False
        try:
            event = self._connection.next_event()
        except h11.RemoteProtocolError as error:
            if in_head and error.error_status_hint == 501:
                # The lines are well-formed, but h11 has its own rules for transfer codings.
                self._on_head()
            raise
        if isinstance(event, h11.Data):
            self._sink.on_body(bytes(event.data))
        elif isinstance(event, h11.Request):
            self._on_head()
        elif isinstance(event, h11.EndOfMessage):
            self._pass_fields()
            self._begin()
            self._sink.on_message_complete()
        else:
            if in_head and not self._line:
                self._pass_target()
            return False
        return True

    def _pass_target(self) -> None:
        """Pass on the target before the header section is complete, to limit its length."""
        line, complete, _ = self._buffer.partition(b"\r\n")
        parts = line.split(b" ", 2)
        if len(parts) > 1:
            _check_method(parts[0])
            self._method = bytes(parts[0])
            self._sink.on_url(parts[1][self._target_passed :])
            self._target_passed = len(parts[1])
        elif len(line) > _LONGEST_METHOD:
            _check_method(line)
        if complete:
            self._line = parts

    def _on_head(self) -> None:
        self._line = bytes(self._buffer.lines.pop(0)).split(b" ")
        method, target, _ = self._line
        _check_method(method)
        self._sink.on_url(target[self._target_passed :])
        self._pass_fields()
        self._sink.on_headers_complete()
        if self._offers:
            self._sink.on_message_complete()
            raise _Offer

    def _pass_fields(self) -> None:
        """Pass on the fields of a section unchanged."""
        offer = 0
        for line in self._buffer.lines:
            name, _, value = bytes(line).partition(b":")
            value = value.strip(b" \t")
            self._sink.on_header(name, value)
            if name.lower() == b"upgrade" and value:
                offer |= 1
            elif name.lower() == b"connection" and b"upgrade" in _options(value):
                offer |= 2
        self._buffer.lines = []
        self._offers = offer == 3


class _Offer(Exception):
    """A request offers to change the protocol; parsing stops there until told how to go on."""


class _StrictBuffer(ReceiveBuffer):
    """h11's buffer; it only returns lines that RFC 9112 allows."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[bytearray] = []
        """The last section that was taken out."""

    def append(self, data: bytes | memoryview) -> None:
        """Add some bytes."""
        self._data += data

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines of a section (header or trailer), once it is complete."""
        data, searched = self._data, self._multiple_lines_search
        if data[:2] == b"\r\n":
            self._extract(2)
            return []
        end = data.find(b"\r\n\r\n", max(0, searched - 3))
        size = end + 4 if end >= 0 else len(data)
        if _FAULT.search(data, max(0, searched - 1), size):
            raise h11.LocalProtocolError("a control character, a bare CR or LF, or a folded line")
        self._multiple_lines_search = size
        if end < 0:
            return None
        self.lines = self._extract(size).split(b"\r\n")[:-2]
        return self.lines

    def maybe_extract_next_line(self) -> bytearray | None:
        """The header of a chunk, without its extensions, once it is complete."""
        searched = self._next_line_search
        line = super().maybe_extract_next_line()
        if line is not None:
            match = _CHUNK_HEADER.fullmatch(line)
            if match is None or _FAULT.search(line):
                raise h11.LocalProtocolError("malformed chunk header")
            return bytearray(match[1] + b"\r\n")
        data = self._data
        if data and (data[0] not in _HEXDIGITS or _FAULT.search(data, max(0, searched - 1))):
            raise h11.LocalProtocolError("malformed chunk header")
        return None

    def skip_line_ends(self) -> bool:
        """Drop empty lines before a request line (RFC 9112, section 2.2); returns whether there is
        more."""
        data = self._data
        if data.startswith((b"\r", b"\n")):
            self._extract(len(data) - len(data.lstrip(b"\r\n")))
        return bool(data)

    def partition(self, mark: bytes) -> tuple[bytes, bytes, bytes]:
        """The content, split at the first `mark`."""
        return bytes(self._data).partition(mark)

    def take_all(self) -> bytes:
        """Empty it."""
        return bytes(self._extract(len(self._data)))


def _check_method(method: bytes) -> None:
    if method not in METHODS:
        raise BadRequest("unknown method")


def _options(value: bytes) -> list[bytes]:
    return [option.strip(b" \t") for option in value.lower().split(b",")]
