"""The `wsproto` library as a codec."""

from __future__ import annotations

import io
from typing import cast

from wsproto.connection import SERVER, Connection
from wsproto.events import BytesMessage, CloseConnection, Event, TextMessage
from wsproto.extensions import PerMessageDeflate
from wsproto.utilities import RemoteProtocolError

from esg.server.websocket.codec import Deflate, Sink
from esg.server.websocket.frames import PROTOCOL_ERROR, TEXT, TOO_BIG, Failure

SLICE = 4096
"""Bytes decoded at once. Decompression can turn them into a thousand times as many."""


class Wsproto:
    """See `Library`."""

    name = "wsproto"

    def agree(self, offers: str) -> tuple[str, Deflate] | None:
        """See `Library`."""
        for offer in offers.split(","):
            name, _, parameters = offer.strip().partition(";")
            if name.strip() != PerMessageDeflate.name or not _is_valid(parameters):
                continue
            deflate = PerMessageDeflate()
            try:
                answer = deflate.accept(offer)
            except ValueError:
                continue
            if answer is not None and answer is not False:
                return "; ".join(filter(None, (deflate.name, str(answer)))), deflate
        return None

    def codec(self, most_bytes: int, deflate: Deflate | None) -> WsprotoCodec:
        """See `Library`."""
        return WsprotoCodec(most_bytes, cast(PerMessageDeflate | None, deflate))


_FLAGS = ("client_no_context_takeover", "server_no_context_takeover")
_BITS = ("client_max_window_bits", "server_max_window_bits")


def _is_valid(parameters: str) -> bool:
    """Whether parameters are valid by RFC 7692 (section 7.1); wsproto accepts others as well.

    A window of 8 bits, which the RFC allows, counts as invalid.
    """
    names = []
    for parameter in filter(None, (text.strip() for text in parameters.split(";"))):
        name, equals, value = (part.strip() for part in parameter.partition("="))
        value = value.strip('"')
        bits = value.isascii() and value.isdigit() and 9 <= int(value) <= 15
        if name in _FLAGS:
            sound = not equals
        else:
            sound = name in _BITS and (bits if equals else name == _BITS[0])
        if not sound:
            return False
        names.append(name)
    return len(set(names)) == len(names)


class WsprotoCodec:
    """See `Codec`."""

    __slots__ = ("_connection", "_content", "_most")

    def __init__(self, most_bytes: int, deflate: PerMessageDeflate | None) -> None:
        self._connection = Connection(SERVER, [deflate] if deflate else [])
        self._most = most_bytes
        self._content = io.BytesIO()
        """The message that is arriving. Text is in UTF-8: a `str` may take 4 times as much."""

    @property
    def unfinished(self) -> int:
        """See `Codec`."""
        return self._content.tell()

    def feed(self, frame: bytes, sink: Sink) -> None:
        """See `Codec`."""
        connection = self._connection
        try:
            for at in range(0, len(frame), SLICE):
                connection.receive_data(frame[at : at + SLICE])
                for event in connection.events():
                    self._take(event, sink)
        except RemoteProtocolError as error:
            hint = error.event_hint
            code = hint.code if isinstance(hint, CloseConnection) else PROTOCOL_ERROR
            raise Failure(int(code), str(error)) from None

    def _take(self, event: Event, sink: Sink) -> None:
        if isinstance(event, CloseConnection):  # the frame can't be parsed
            raise Failure(int(event.code), event.reason or "")
        assert isinstance(event, TextMessage | BytesMessage)
        data: str | bytes | bytearray = event.data
        self._content.write(data.encode() if isinstance(data, str) else data)
        size = self._content.tell()
        if self._most and size > self._most:
            raise Failure(TOO_BIG, f"over size limit ({size} > {self._most} bytes)")
        if event.message_finished:
            content, self._content = self._content.getvalue(), io.BytesIO()
            sink.on_message(content.decode() if isinstance(data, str) else content)

    def message(self, first: int, content: bytes) -> bytes:
        """See `Codec`."""
        text = first == TEXT
        event = TextMessage(content.decode()) if text else BytesMessage(bytearray(content))
        return bytes(self._connection.send(event))
