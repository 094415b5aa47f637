"""The `websockets` library as a codec, by its sans-I/O `ServerProtocol`."""

from __future__ import annotations

import codecs
import io
import logging
from collections.abc import Sequence
from typing import cast

from websockets.exceptions import InvalidHeader, NegotiationError
from websockets.extensions.base import Extension
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
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
"""Windows of 4 KiB: a connection's memory is what many of them cost (docs/websockets.md)."""


class Websockets:
    """See `Library`."""

    name = "websockets"

    def agree(self, offers: str) -> tuple[str, Deflate] | None:
        """See `Library`. An extension field that can't be read offers nothing."""
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
        return WebsocketsCodec(most_bytes, [cast(Extension, deflate)] if deflate else [])


class WebsocketsCodec:
    """See `Codec`."""

    __slots__ = ("_bytes", "_decoder", "_protocol", "_text")

    def __init__(self, most_bytes: int, extensions: Sequence[Extension]) -> None:
        self._protocol = ServerProtocol(state=OPEN, max_size=most_bytes or None, logger=_quiet)
        self._protocol.extensions = list(extensions)
        # the message that comes in fragments
        self._decoder: codecs.IncrementalDecoder | None = None
        self._text = io.StringIO()
        self._bytes = io.BytesIO()

    def feed(self, frame: bytes, sink: Sink) -> None:
        """See `Codec`."""
        protocol = self._protocol
        protocol.receive_data(frame)
        events = protocol.events_received()
        if protocol.parser_exc is not None:
            failed = protocol.close_sent
            code, reason = (failed.code, failed.reason) if failed else (PROTOCOL_ERROR, "")
            raise Failure(int(code), reason)
        answer = b"".join(protocol.data_to_send())
        if answer:
            sink.write(answer)
        for event in events:
            self._take(cast(Frame, event), sink)

    def _take(self, frame: Frame, sink: Sink) -> None:
        if frame.opcode is Opcode.TEXT:
            self._decoder = codecs.getincrementaldecoder("utf-8")()
            self._take_text(frame, sink)
        elif frame.opcode is Opcode.BINARY:
            self._decoder = None
            self._take_bytes(frame, sink)
        elif frame.opcode is Opcode.CONT:
            (self._take_bytes if self._decoder is None else self._take_text)(frame, sink)
        elif frame.opcode is Opcode.PONG:
            sink.on_pong(bytes(frame.data))
        elif frame.opcode is Opcode.CLOSE:
            close = self._protocol.close_rcvd
            assert close is not None
            sink.on_close(int(close.code), close.reason)

    def _take_text(self, frame: Frame, sink: Sink) -> None:
        assert self._decoder is not None
        try:
            self._text.write(self._decoder.decode(bytes(frame.data), frame.fin))
        except UnicodeDecodeError as error:
            raise Failure(INVALID_DATA, f"{error.reason} at position {error.start}") from None
        if frame.fin:
            text, self._text = self._text.getvalue(), io.StringIO()
            sink.on_message(text)

    def _take_bytes(self, frame: Frame, sink: Sink) -> None:
        self._bytes.write(frame.data)
        if frame.fin:
            content, self._bytes = self._bytes.getvalue(), io.BytesIO()
            sink.on_message(content)

    def message(self, first: int, content: bytes) -> bytes:
        """See `Codec`."""
        protocol = self._protocol
        (protocol.send_text if first == TEXT else protocol.send_binary)(content)
        return b"".join(protocol.data_to_send())

    def close(self, code: int, reason: str) -> bytes:
        """See `Codec`."""
        if self._protocol.state is OPEN:  # else it has failed, and its own frame is waiting
            self._protocol.send_close(code, reason)
        return b"".join(self._protocol.data_to_send())
