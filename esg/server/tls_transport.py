"""TLS between a socket's transport and the protocol above it, on OpenSSL's memory buffers.

Event loops have a TLS layer of their own, but it can't end its side and go on reading. asyncio's
resets a connection that closes while the client is still sending, which can destroy the last
response. uvloop's takes twice the time (docs/design.md). With this one, a TLS connection behaves
like a TCP connection on either loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from typing import Any, cast

from esg.server.tls import ServerContext, tls_extension
from esg.server.tls_records import RecordEnds, is_one_record
from esg.server.turns import SMALL, Turns

logger = logging.getLogger("esg")

RECORD = 16384
"""The most bytes that one record can contain (RFC 8446, section 5.1)."""

PIECE = 65536
"""The most bytes encrypted at once. OpenSSL's buffers grow with it, and never shrink."""

MOST_RECORDS = 64
"""The most records handled in one turn of the event loop."""

FEW_BYTES = 1024
"""Reads of up to this many bytes have so few records that they needn't be counted first."""

HELLO = 4096
"""The most bytes of a handshake handled in one turn of the event loop."""

MOST_USELESS = 32
"""The most records per second without data for the application, such as key updates."""

PLAIN_TEXT_ANSWER = b"This port speaks HTTPS; use https:// in the URL.\n"


class TLSTransport(asyncio.Protocol, asyncio.Transport):
    """The protocol of the transport below, and the transport of the protocol above."""

    __slots__ = (
        "_above",
        "_above_reads",
        "_answers_wait",
        "_below",
        "_closing",
        "_context",
        "_decrypt",
        "_encrypt",
        "_end_is_due",
        "_ended",
        "_ends",
        "_fail",
        "_in",
        "_limit",
        "_loop",
        "_make_protocol",
        "_out",
        "_put_off",
        "_reads",
        "_timer",
        "_tls",
        "_told_end",
        "_turns",
        "_useless",
        "_useless_since",
        "_waits_for_turn",
        "_write_paused",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        turns: Turns,
        context: ServerContext,
        make_protocol: Callable[[dict[str, Any]], asyncio.Protocol],
        *,
        limit: float,
        fail: Callable[[str], None],
    ) -> None:
        """`make_protocol` is called after the handshake, with the `tls` extension for scopes.

        If the handshake fails, or takes more than `limit` seconds, `fail` is called once with the
        reason instead.
        """
        self._loop = loop
        self._turns = turns
        self._context = context
        self._make_protocol = make_protocol
        self._fail: Callable[[str], None] | None = fail
        self._limit = limit
        self._timer: asyncio.TimerHandle | None = None
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._decrypt = self._tls.read
        self._encrypt = self._tls.write
        self._above: asyncio.Protocol | None = None
        self._below: asyncio.Transport | None = None
        self._ended = False
        """Whether close_notify was sent. After it, nothing is sent, and what arrives is dropped."""
        self._told_end = False
        """Whether the protocol above was told that the client has ended its side."""
        self._closing = False
        # reading
        self._ends = RecordEnds()
        self._put_off: bytes | memoryview = b""
        """Data that arrived and is to be handled in a later turn of the loop."""
        self._waits_for_turn = False
        """Whether that turn has been requested."""
        self._above_reads = True
        """Whether the protocol above is reading."""
        self._end_is_due = False
        """Whether the client has ended its side, and the protocol above is still to be told."""
        self._write_paused = False
        self._answers_wait = False
        """Whether reading is paused because TLS has to send an answer that the client doesn't read,
        such as one to a key update.
        """
        self._reads = True
        """Whether the transport below is reading."""
        self._useless = 0
        """Records without data for the application since `_useless_since`."""
        self._useless_since = 0.0

    # -- from the transport below --------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._below = cast(asyncio.Transport, transport)
        self._timer = self._loop.call_later(self._limit, self._give_up, "it took too long")

    def data_received(self, data: bytes) -> None:
        if self._ended or self._told_end or self._closing:
            if self._above is not None and not self._closing:
                self._above.data_received(b"")  # it is dropped, but shows that the client is alive
            return
        if self._put_off:
            self._put_off = bytes(self._put_off) + data
        elif self._above is not None and len(data) <= FEW_BYTES and not self._ends.inside:
            self._receive(self._above, data)
        elif self._turns.full and self._above is not None and len(data) > SMALL:
            self._go_on_later(data)
        else:
            self._take(data)

    def eof_received(self) -> bool:
        """The client has ended its side of TCP, perhaps without close_notify.

        A missing close_notify does no harm. Requests are framed by HTTP, so an incomplete one isn't
        taken for complete (RFC 9112, section 9.8).
        """
        if self._above is None:
            self._give_up("the client disconnected")
            return False
        if self._told_end:
            return not self._closing and not self._ended
        if self._put_off or not self._above_reads:
            self._end_is_due = True
            return True
        self._told_end = True
        return bool(self._above.eof_received())

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._put_off = b""
        above, self._above = self._above, None  # it refers to this transport: a cycle
        if above is not None:
            above.connection_lost(exc)
        else:
            self._end_handshake("the connection was lost")

    def pause_writing(self) -> None:
        self._write_paused = True
        if self._above is not None:
            self._above.pause_writing()

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._above is not None:
            self._above.resume_writing()
        if self._answers_wait:
            self._answers_wait = False
            self._go_on_or_read()

    # -- the handshake -------------------------------------------------------------------

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self._refuse(error)
            return
        self._flush()
        self._end_handshake()
        self._above = self._make_protocol(tls_extension(self._context, self._tls))
        self._above.connection_made(self)

    def _refuse(self, error: ssl.SSLError) -> None:
        """Send the alert; or an HTTP response if the client sent an HTTP request without TLS."""
        if error.reason == "HTTP_REQUEST":
            assert self._below is not None
            self._out.read()
            self._below.write(
                b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\n"
                b"content-length: %d\r\nconnection: close\r\n\r\n%b"
                % (len(PLAIN_TEXT_ANSWER), PLAIN_TEXT_ANSWER)
            )
        self._give_up(error.reason or str(error))

    def _give_up(self, reason: str) -> None:
        """Close a connection whose handshake isn't complete."""
        self._end_handshake(reason)
        if self._below is not None:
            self._flush()
            self._closing = True
            self._below.close()

    def _end_handshake(self, failure: str = "") -> None:
        if self._timer is not None:
            self._timer.cancel()
        fail, self._fail = self._fail, None
        if fail is not None and failure:
            fail(failure)

    # -- reading -------------------------------------------------------------------------

    def _take(self, data: bytes | memoryview) -> None:
        """Handle as much of the data as one turn of the loop has time for."""
        if self._above is None:
            self._in.write(data[:HELLO])
            self._shake_hands()
            rest = data[HELLO:]
            if self._above is not None and self._in.pending:
                self._take(self._in.read() + rest)  # counting starts at the beginning of a record
                return
        else:
            size, records = self._ends.cut(data, MOST_RECORDS)
            self._receive(self._above, data[:size], records)
            rest = data[size:]
        if rest and not (self._ended or self._told_end or self._closing):
            self._go_on_later(rest)

    def _receive(
        self, above: asyncio.Protocol, data: bytes | memoryview, records: int | None = None
    ) -> None:
        """Decrypt data, and pass it on in one piece.

        `records` is how many records end in it; None if they weren't counted.
        """
        self._in.write(data)
        pieces = []
        at_end = False
        try:
            # Each read returns the content of exactly one record.
            while self._in.pending and not at_end:
                piece = self._decrypt(RECORD)
                if piece:
                    pieces.append(piece)
                else:
                    at_end = True
        except ssl.SSLWantReadError:
            if records is None:
                _, records = self._ends.cut(data, len(data))
        except ssl.SSLZeroReturnError:
            at_end = True
        except ssl.SSLError:
            self._break()
            return
        else:
            # Records without data may also come before one that ends the read.
            if records is None and not (len(pieces) == 1 and is_one_record(data)):
                _, records = self._ends.cut(data, len(data))
        if records is not None and records > len(pieces):
            self._count_useless(records - len(pieces))
            if self._closing:
                return
        if self._out.pending:
            self._flush()  # for example the answer to a key update
            if self._write_paused:
                self._answers_wait = True
                self._regulate()
        if pieces:
            above.data_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if at_end and not self._told_end:
            if self._above_reads:
                # what was passed on may have replaced the protocol
                self._tell_end(self._above or above)
            else:
                self._end_is_due = True

    def _tell_end(self, above: asyncio.Protocol) -> None:
        self._told_end = True
        self._end_is_due = False
        if not above.eof_received():
            self.close()

    def _count_useless(self, count: int) -> None:
        """Close the connection if too many records have no data: they only cost CPU time."""
        now = self._loop.time()
        if now - self._useless_since > 1:
            self._useless, self._useless_since = 0, now
        self._useless += count
        if self._useless > MOST_USELESS:
            text = "closed a TLS connection: more than %d records without data in a second"
            logger.debug(text, MOST_USELESS)
            self._break()

    def _go_on_later(self, data: bytes | memoryview) -> None:
        """Handle the rest in another turn of the loop, and read nothing until then."""
        self._put_off = memoryview(data)
        self._go_on_or_read()

    def _go_on_or_read(self) -> None:
        """Request a turn for the data that was put off, unless something prevents handling it."""
        if (
            (self._put_off or self._end_is_due)
            and not self._waits_for_turn
            and self._above_reads
            and not self._answers_wait
        ):
            self._waits_for_turn = True
            self._turns.put_off(self._go_on)
        self._regulate()

    def _go_on(self) -> None:
        self._waits_for_turn = False
        if self._above_reads and not (self._answers_wait or self._closing):
            data, self._put_off = self._put_off, b""
            if data and not (self._ended or self._told_end):
                self._take(data)
            above = self._above
            if above is not None and self._end_is_due and not self._put_off and self._above_reads:
                self._tell_end(above)
        self._regulate()

    def _regulate(self) -> None:
        """Pause or resume reading from the transport below, as the current state requires."""
        reads = not self._put_off and self._above_reads and not self._answers_wait
        if reads != self._reads and self._below is not None:
            self._reads = reads
            if reads:
                self._below.resume_reading()
            else:
                self._below.pause_reading()

    def _break(self) -> None:
        """The data is damaged or isn't TLS: send the alert, and close."""
        self._flush()
        self._closing = True
        if self._below is not None:
            self._below.close()

    def _flush(self) -> None:
        if self._out.pending and self._below is not None and not self._closing:
            self._below.write(self._out.read())

    # -- to the protocol above: a transport ------------------------------------------------

    def write(self, data: Any) -> None:
        """Send bytes, in order. Does nothing once the connection is closing."""
        if self._ended or self._closing or not data:
            return
        assert self._below is not None
        try:
            if len(data) > PIECE:
                rest = memoryview(data)
                while len(rest) > PIECE:
                    rest = rest[self._encrypt(rest[:PIECE]) :]
                    self._below.write(self._out.read())
                data = rest
            while data:
                data = data[self._encrypt(data) :]
        except ssl.SSLError:
            self.abort()
            return
        self._below.write(self._out.read())

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Send close_notify, then end our side of TCP.

        Data that still arrives is dropped, as TLS 1.2 requires (RFC 5246, section 7.2.1).
        """
        if not self._ended and not self._closing:
            self._send_close_notify()
            self._put_off, self._answers_wait = b"", False
            self._regulate()
            if self._below is not None:
                self._below.write_eof()

    def close(self) -> None:
        """Send what is buffered and close_notify, then close."""
        if self._closing:
            return
        if not self._ended:
            self._send_close_notify()
        self._closing = True
        if self._below is not None:
            self._below.close()

    def _send_close_notify(self) -> None:
        # unwrap() sends close_notify. Then it looks for the client's, and raises without one.
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        self._flush()
        self._ended = True

    def abort(self) -> None:
        self._closing = True
        if self._below is not None:
            self._below.abort()

    def is_closing(self) -> bool:
        return self._closing or self._below is None or self._below.is_closing()

    def pause_reading(self) -> None:
        self._above_reads = False
        self._regulate()

    def resume_reading(self) -> None:
        self._above_reads = True
        self._go_on_or_read()

    def is_reading(self) -> bool:
        return self._above_reads and not self._closing

    def get_write_buffer_size(self) -> int:
        """Encrypted bytes that wait to be sent."""
        return self._below.get_write_buffer_size() if self._below is not None else 0

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._below.get_write_buffer_limits() if self._below is not None else (0, 0)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self._below is not None:
            self._below.set_write_buffer_limits(high, low)

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._above is not None
        return self._above

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._above = cast(asyncio.Protocol, protocol)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "ssl_object":
            return self._tls
        if name == "sslcontext":
            return self._context
        return self._below.get_extra_info(name, default) if self._below is not None else default
