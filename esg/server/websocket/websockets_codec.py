"""The `websockets` library as a codec, through its sans-I/O `ServerProtocol`."""

from __future__ import annotations

import codecs
import io
import logging
import zlib
from typing import cast

from websockets.exceptions import InvalidHeader, NegotiationError
from websockets.extensions.permessage_deflate import (
    PerMessageDeflate,
    ServerPerMessageDeflateFactory,
)
from websockets.frames import Frame, Opcode
from websockets.headers import build_extension, parse_extension
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from esg.server.websocket.codec import Deflate, Sink
from esg.server.websocket.frames import INVALID_DATA, PROTOCOL_ERROR, TEXT, Failure

_quiet = logging.getLogger("esg.websockets")
_quiet.setLevel(logging.CRITICAL + 1)

_DEFLATE = ServerPerMessageDeflateFactory(
    server_max_window_bits=12, client_max_window_bits=12, compress_settings={"memLevel": 5}
)
"""Windows of 4 KiB, because the windows take most of a connection's memory (docs/websockets.md)."""

_AFTER_LAST_BLOCK = b"\x00\x00\x00\xff\xff"
"""What may follow the last block of a deflate stream: a byte, and the tail that is appended to
each message.
"""


class Websockets:
    """See `Library`."""

    name = "websockets"

    def agree(self, offers: str) -> tuple[str, Deflate] | None:
        """See `Library`. An extension field that can't be parsed counts as no offer."""
        try:
            parsed = parse_extension(offers)
        except InvalidHeader:
            return None
        for name, parameters in parsed:
            if name == _DEFLATE.name:
                try:
                    answer, extension = _DEFLATE.process_request_params(parameters, [])
                except NegotiationError:
                    continue
                return build_extension([(name, answer)]), extension
        return None

    def codec(self, most_bytes: int, deflate: Deflate | None) -> WebsocketsCodec:
        """See `Library`."""
        return WebsocketsCodec(most_bytes, cast(PerMessageDeflate | None, deflate))


class WebsocketsCodec:
    """See `Codec`."""

    __slots__ = ("_content", "_decoder", "_deflate", "_protocol")

    def __init__(self, most_bytes: int, deflate: PerMessageDeflate | None) -> None:
        self._deflate = deflate
        self._protocol = ServerProtocol(state=OPEN, max_size=most_bytes or None, logger=_quiet)
        self._protocol.extensions = [deflate] if deflate else []
        # the message that is arriving in fragments
        self._decoder: codecs.IncrementalDecoder | None = None
        """Checks each piece of a text message; None for a binary message."""
        self._content = io.BytesIO()

    @property
    def unfinished(self) -> int:
        """See `Codec`."""
        return self._content.tell()

    def feed(self, frame: bytes, sink: Sink) -> None:
        """See `Codec`."""
        protocol = self._protocol
        protocol.receive_data(frame)
        events = protocol.events_received()
        if protocol.parser_exc is not None:
            failed = protocol.close_sent
            code, reason = (failed.code, failed.reason) if failed else (PROTOCOL_ERROR, "")
            raise Failure(int(code), reason)
        if self._deflate is not None:
            self._restart_stream(self._deflate)
        for event in events:
            parsed = cast(Frame, event)
            self._take(parsed, sink)
            parsed.data = b""  # the protocol keeps its last frame until the next one arrives

    def _restart_stream(self, deflate: PerMessageDeflate) -> None:
        """If the client ended its deflate stream, start a new one (RFC 7692, section 7.2.3.4)."""
        decoder = getattr(deflate, "decoder", None)
        if decoder is None or not decoder.eof:
            return
        if len(decoder.unused_data) > len(_AFTER_LAST_BLOCK):
            raise Failure(INVALID_DATA, "data after the end of a compressed stream")
        deflate.decoder = zlib.decompressobj(wbits=-deflate.remote_max_window_bits)

    def _take(self, frame: Frame, sink: Sink) -> None:
        if frame.opcode is Opcode.TEXT:
            self._decoder = codecs.getincrementaldecoder("utf-8")()
        elif frame.opcode is Opcode.BINARY:
            self._decoder = None
        elif frame.opcode is not Opcode.CONT:
            return
        if self._decoder is not None:
            try:
                self._decoder.decode(frame.data, frame.fin)
            except UnicodeDecodeError as error:
                raise Failure(INVALID_DATA, f"{error.reason} at position {error.start}") from None
        self._content.write(frame.data)
        if frame.fin:
            content, self._content = self._content.getvalue(), io.BytesIO()
            sink.on_message(content if self._decoder is None else content.decode())

    def message(self, first: int, content: bytes) -> bytes:
        """See `Codec`."""
        protocol = self._protocol
        (protocol.send_text if first == TEXT else protocol.send_binary)(content)
        return b"".join(protocol.data_to_send())
