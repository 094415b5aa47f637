"""Frames as bytes: building, unmasking and checking them (RFC 6455, section 5).

Fragments and compressed messages are decoded by a codec.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

TEXT = 0x81
BINARY = 0x82
"""First bytes of frames that are a complete, uncompressed message."""

PLAIN = (TEXT, BINARY)

CONTINUATION, CLOSE, PING, PONG = 0x0, 0x8, 0x9, 0xA
"""Opcodes. The opcodes of control frames are `CLOSE` and above."""

CLOSE_FRAME, PING_FRAME, PONG_FRAME = 0x88, 0x89, 0x8A
"""First bytes of control frames."""

MASK_BIT = 0x80
MASKED_MEDIUM = MASK_BIT | 126
MASKED_LONG = MASK_BIT | 127
"""Second bytes of a client's frames. A smaller one than `MASKED_MEDIUM` has the size of the
content; otherwise the size is in the next 2 or 8 bytes.
"""

LARGE = 16384
"""Bytes from which a message is sent in two pieces, or read through a view, to avoid a copy."""

MASKED_HEADER = 6
"""The size of the smallest header of a client's frame, with its mask."""

MEDIUM_HEADER = 8
"""The size of the header of a client's frame with `MASKED_MEDIUM`."""

LARGEST_HEADER = 14
"""The size of the largest header of a client's frame."""

LONGEST_CONTROL = 125
"""The most bytes of content in a control frame (section 5.5)."""

LONGEST_REASON = LONGEST_CONTROL - 2

NORMAL = 1000
GOING_AWAY = 1001
PROTOCOL_ERROR = 1002
NO_CODE = 1005
ABNORMAL = 1006
INVALID_DATA = 1007
POLICY_VIOLATION = 1008
TOO_BIG = 1009
INTERNAL_ERROR = 1011
SERVICE_RESTART = 1012
TRY_AGAIN_LATER = 1013
"""Close codes (section 7.4.1; 1012 and 1013 are in IANA's registry)."""

_OPCODES = frozenset((0x0, 0x1, 0x2, 0x8, 0x9, 0xA))
_SENDABLE = frozenset((1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014))

SHORT = 126
"""Sizes of content below this one are in the second byte of the header."""

SHORT_HEADS = {
    first: [bytes((first, size)) for size in range(SHORT)]
    for first in (TEXT, BINARY, CLOSE_FRAME, PING_FRAME, PONG_FRAME)
}
"""The headers of frames with less than `SHORT` bytes of content: by first byte, then by size."""

medium_head = struct.Struct("!BBH").pack
"""Makes the header of a frame with less than 64 KiB, from the first byte, 126, and the size."""


def _unmask(content: bytes | memoryview, mask: bytes) -> bytes:
    """Remove the client's masking from content (section 5.3)."""
    size = len(content)
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return (int.from_bytes(content, "big") ^ key).to_bytes(size, "big")


unmask: Callable[[bytes | memoryview, bytes], bytes]
try:
    from websockets.speedups import apply_mask as unmask
except ImportError:
    unmask = _unmask


class Failure(Exception):
    """The client violated the protocol or a limit: close with `code` and `reason`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def pack(first: int, content: bytes) -> bytes:
    """A complete frame without masking, as servers send them."""
    size = len(content)
    if size < SHORT:
        return SHORT_HEADS[first][size] + content
    return frame_head(first, size) + content


def frame_head(first: int, size: int) -> bytes:
    """The header of a frame with more than 125 bytes of content."""
    if size < 65536:
        return medium_head(first, 126, size)
    return struct.pack("!BBQ", first, 127, size)


def fragments(frame: bytes, size: int) -> list[bytes]:
    """Split a client's frame into several masked frames (section 5.4).

    Each fragment has `size` bytes of content. That has to be a multiple of 4, so that the same mask
    fits all fragments.
    """
    first, length = frame[0], frame[1] & 0x7F
    start = MASKED_HEADER + {126: 2, 127: 8}.get(length, 0)
    mask = frame[start - 4 : start]
    parts = []
    for at in range(start, len(frame), size):
        content = frame[at : at + size]
        opcode = first & 0x7F if at == start else CONTINUATION
        final = first & 0x80 if at + size >= len(frame) else 0
        parts.append(_masked_head(opcode | final, len(content)) + mask + content)
    return parts


def merge(pieces: list[bytes | bytearray]) -> None:
    """Join the pieces: a list of many small pieces takes far more memory than their bytes."""
    whole = pieces[0]
    if not isinstance(whole, bytearray):
        whole = bytearray(whole)
    for piece in pieces[1:]:
        whole += piece
    pieces[:] = [whole]


def _masked_head(first: int, size: int) -> bytes:
    if size < SHORT:
        return bytes((first, 0x80 | size))
    return medium_head(first, 0x80 | 126, size)


def cut_reason(reason: str) -> str:
    """The reason of a close frame, shortened to the size that fits (section 5.5)."""
    return reason.encode("utf-8", "replace")[:LONGEST_REASON].decode("utf-8", "ignore")


def close_content(code: int, reason: str) -> bytes:
    """The content of a close frame (section 5.5.1)."""
    return code.to_bytes(2, "big") + reason.encode("utf-8", "replace")


def read_close(content: bytes) -> tuple[int, str]:
    """Code and reason of a client's close frame; 1005 if it has none. Raises Failure."""
    if not content:
        return NO_CODE, ""
    code = int.from_bytes(content[:2], "big")
    if len(content) < 2 or not _is_sendable(code):
        raise Failure(PROTOCOL_ERROR, "invalid close code")
    try:
        return code, content[2:].decode()
    except UnicodeDecodeError as error:
        raise Failure(INVALID_DATA, f"{error.reason} at position {error.start}") from None


def _is_sendable(code: int) -> bool:
    """Whether a close frame may have this code (sections 7.4.1 and 7.4.2)."""
    return code in _SENDABLE or 3000 <= code <= 4999


def check_close_code(code: object) -> int:
    """A close code from the application (sections 7.4.1 and 7.4.2).

    Raises ValueError if it can't be sent.
    """
    number = int(code)  # type: ignore[call-overload]
    if not _is_sendable(number):
        raise ValueError(f"{code!r} is not a close code that can be sent")
    return int(number)


def check_header(first: int, masked: bool, length: int, compressed: bool) -> None:
    """Raise Failure if the header isn't valid for a client's frame.

    `compressed`: permessage-deflate (RFC 7692), which uses the first reserved bit, was negotiated.
    """
    opcode = first & 0x0F
    reserved = first & 0x70
    if reserved and not (compressed and reserved == 0x40 and opcode in (1, 2)):
        raise Failure(PROTOCOL_ERROR, "reserved bits must be 0")
    if opcode not in _OPCODES:
        raise Failure(PROTOCOL_ERROR, "invalid opcode")
    if not masked:
        raise Failure(PROTOCOL_ERROR, "frames from a client must be masked")
    if opcode >= CLOSE:
        if not first & 0x80:
            raise Failure(PROTOCOL_ERROR, "fragmented control frame")
        if length > LONGEST_CONTROL:
            raise Failure(PROTOCOL_ERROR, "control frame too long")
