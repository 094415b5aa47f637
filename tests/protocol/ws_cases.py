"""The rules of RFC 6455 for frames, as cases: a client's bytes, and the frames of an echo.

A case is a name with a section of the RFC, pieces of bytes that are sent separately, and the
frames that must come back. If the last one isn't a close, the client closes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from .ws_client import BINARY, CLOSE, CONT, PING, PONG, TEXT, close_payload, frame

GREEK = "\u03ba\u03cc\u03c3\u03bc\u03b5".encode()


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    pieces: tuple[bytes, ...]
    echoes: tuple[tuple[int, bytes], ...] = ()
    code: int | None = None
    """The code with which the server closes; None if the client closes."""
    reason: bytes | None = None


def cases() -> list[Case]:
    found = [
        *_sizes(),
        *_control(),
        *_reserved(),
        *_opcodes(),
        *_fragments(),
        *_utf8(),
        *_closes(),
        *_masking(),
    ]
    assert len({case.name for case in found}) == len(found)
    return found


def _sizes() -> Iterator[Case]:
    """Section 5.2: lengths in 7, 16 and 64 bits."""
    for kind, name in ((TEXT, "text"), (BINARY, "binary")):
        for size in (0, 1, 125, 126, 127, 128, 65535, 65536, 1 << 20):
            data = b"*" * size
            whole = frame(kind, data)
            yield Case(f"5.2 {name} of {size}", (whole,), ((kind, data),))
        data = b"*" * 65536
        whole = frame(kind, data)
        pieces = tuple(whole[at : at + 997] for at in range(0, len(whole), 997))
        yield Case(f"5.2 {name} of 65536 in pieces of 997", pieces, ((kind, data),))
    long_form = b"\x81\xfe\x00\x05" + frame(TEXT, b"hello")[2:]
    yield Case("5.2 a length in more bytes than it needs", (long_form,), ((TEXT, b"hello"),))
    huge = frame(BINARY, length=(1 << 63) + 1)
    yield Case("5.2 a length with its highest bit set", (huge,), (), 1009)


def _control() -> Iterator[Case]:
    """Section 5.5: pings and pongs."""
    for size in (0, 1, 125):
        data = bytes(range(256))[:size]
        yield Case(f"5.5.2 ping of {size}", (frame(PING, data),), ((PONG, data),))
    yield Case("5.5 ping of 126", (frame(PING, b"x" * 126),), (), 1002)
    yield Case("5.5 close of 126", (frame(CLOSE, close_payload(1000, b"x" * 124)),), (), 1002)
    yield Case("5.5 pong of 126", (frame(PONG, b"x" * 126),), (), 1002)
    yield Case("5.5 ping, only its header", (frame(PING, b"x" * 126)[:4],), (), 1002)
    for opcode in (CLOSE, PING, PONG):
        yield Case(f"5.5 a fragment of {opcode}", (frame(opcode, b"", fin=False),), (), 1002)
    yield Case("5.5.3 pong unasked", (frame(PONG, b"x") + frame(TEXT, b"y"),), ((TEXT, b"y"),))
    many = b"".join(frame(PING, b"%d" % number) for number in range(10))
    pongs = tuple((PONG, b"%d" % number) for number in range(10))
    yield Case("5.5.2 ten pings", (many,), pongs)
    yield Case("5.5.2 ten pings byte by byte", tuple(bytes((b,)) for b in many), pongs)


def _reserved() -> Iterator[Case]:
    """Section 5.2: bits that belong to no extension."""
    for rsv in range(1, 8):
        for opcode in (TEXT, BINARY, PING, CLOSE):
            sent = frame(opcode, b"", rsv=rsv)
            yield Case(f"5.2 reserved bits {rsv} of {opcode}", (sent,), (), 1002)
    first = frame(TEXT, b"x")
    later = frame(TEXT, b"y", rsv=2)
    yield Case("5.2 reserved bits after a message", (first, later), ((TEXT, b"x"),), 1002)
    header = frame(TEXT, b"x" * 70, rsv=1)[:2]
    yield Case("5.2 reserved bits, the first two bytes", (header,), (), 1002)


def _opcodes() -> Iterator[Case]:
    """Section 5.2: opcodes without a meaning."""
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        yield Case(f"5.2 opcode {opcode}", (frame(opcode, b"x"),), (), 1002)
        yield Case(f"5.2 opcode {opcode}, empty", (frame(opcode),), (), 1002)


def _fragments() -> Iterator[Case]:
    """Section 5.4."""
    for kind in (TEXT, BINARY):
        first, last = frame(kind, b"ab", fin=False), frame(CONT, b"cd")
        echo = ((kind, b"abcd"),)
        yield Case(f"5.4 two of {kind}", (first + last,), echo)
        yield Case(f"5.4 two of {kind} apart", (first, last), echo)
        by_byte = tuple(bytes((byte,)) for byte in first + last)
        yield Case(f"5.4 two of {kind} byte by byte", by_byte, echo)
        ping = frame(PING, b"!")
        yield Case(f"5.4 ping between two of {kind}", (first, ping, last), ((PONG, b"!"), *echo))
        empty = frame(kind, fin=False), *[frame(CONT, fin=False)] * 3, frame(CONT)
        yield Case(f"5.4 empty ones of {kind}", empty, ((kind, b""),))
        many = frame(kind, fin=False) + frame(CONT, b"x", fin=False) * 999 + frame(CONT, b"x")
        yield Case(f"5.4 a thousand of {kind}", (many,), ((kind, b"x" * 1000),))
        again = (first + last) * 2 + frame(kind, b"z")
        yield Case(f"5.4 again of {kind}", (again,), (*echo, *echo, (kind, b"z")))
        yield Case(f"5.4 a message within one of {kind}", (first, frame(kind, b"x")), (), 1002)
        yield Case(f"5.4 a beginning within {kind}", (first, first), (), 1002)
    yield Case("5.4 a continuation of nothing", (frame(CONT, b"x"),), (), 1002)
    yield Case("5.4 a continuation of nothing, more", (frame(CONT, b"x", fin=False),), (), 1002)
    done = frame(TEXT, b"x"), frame(CONT, b"y")
    yield Case("5.4 a continuation after a message", done, ((TEXT, b"x"),), 1002)


VALID = {
    "greek": GREEK,
    "last of two bytes": b"\xdf\xbf",
    "last of three bytes": b"\xef\xbf\xbf",
    "last of four bytes": b"\xf4\x8f\xbf\xbf",
    "below the surrogates": b"\xed\x9f\xbf",
    "above the surrogates": b"\xee\x80\x80",
    "a NUL": b"a\x00b",
}
INVALID = {
    "continuation alone": b"\x80",
    "surrogate": GREEK + b"\xed\xa0\x80edited",
    "overlong of two": b"\xc0\xaf",
    "overlong of three": b"\xe0\x80\xaf",
    "overlong of four": b"\xf0\x80\x80\xaf",
    "beyond the last": b"\xf4\x90\x80\x80",
    "five bytes": b"\xf8\x88\x80\x80\x80",
    "impossible": b"\xfe\xff",
    "cut": GREEK[:-1],
}


def _utf8() -> Iterator[Case]:
    """Section 8.1, with RFC 3629."""
    for name, data in VALID.items():
        yield Case(f"8.1 {name}", (frame(TEXT, data),), ((TEXT, data),))
        each = [bytes((byte,)) for byte in data]
        split = frame(TEXT, fin=False) + b"".join(frame(CONT, b, fin=False) for b in each)
        yield Case(f"8.1 {name}, a fragment for each byte", (split + frame(CONT),), ((TEXT, data),))
    for name, data in INVALID.items():
        yield Case(f"8.1 {name}", (frame(TEXT, data),), (), 1007)
        halves = frame(TEXT, data[:1], fin=False) + frame(CONT, data[1:])
        yield Case(f"8.1 {name}, in two", (halves,), (), 1007)
        yield Case(f"8.1 {name}, as a reason", (frame(CLOSE, b"\x03\xe8" + data),), (), 1007)
    early = frame(TEXT, GREEK + b"\xf4\x90", fin=False)
    yield Case("8.1 bad before the end of the message", (early,), (), 1007)
    binary = frame(BINARY, b"\xff\xfe")
    yield Case("8.1 not for binary", (binary,), ((BINARY, b"\xff\xfe"),))


def _closes() -> Iterator[Case]:
    """Sections 5.5.1 and 7.4."""
    for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999):
        yield Case(f"7.4 code {code}", (frame(CLOSE, close_payload(code)),), (), code)
    for code in (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65535):
        yield Case(f"7.4 code {code}", (frame(CLOSE, close_payload(code)),), (), 1002)
    yield Case("5.5.1 no code", (frame(CLOSE),), (), 1005)
    yield Case("5.5.1 half a code", (frame(CLOSE, b"\x03"),), (), 1002)
    for reason in (b"because", GREEK, b"x" * 123):
        sent = frame(CLOSE, close_payload(1000, reason))
        yield Case(f"5.5.1 reason {reason[:8]!r}", (sent,), (), 1000, reason)
    within = frame(TEXT, b"x", fin=False), frame(CLOSE, close_payload(1000)), frame(CONT, b"x")
    yield Case("5.4 a close within a message", within, (), 1000)
    yield Case("5.4 a close within a message, at once", (b"".join(within),), (), 1000)
    after = frame(CLOSE, close_payload(1000)) + frame(TEXT, b"x") + frame(PING, b"x")
    yield Case("5.5.1 frames after a close", (after,), (), 1000)
    yield Case("5.5.1 two closes", (frame(CLOSE, close_payload(1000)) * 2,), (), 1000)


def _masking() -> Iterator[Case]:
    """Sections 5.1 and 5.3."""
    for opcode in (TEXT, BINARY, PING, CLOSE, CONT):
        yield Case(f"5.1 not masked: {opcode}", (frame(opcode, b"", mask=False),), (), 1002)
    yield Case("5.1 not masked, long", (frame(TEXT, b"x" * 300, mask=False),), (), 1002)
    for mask in (b"\0\0\0\0", b"\xff\xff\xff\xff"):
        sent = b"\x82\x85" + mask + bytes(b ^ mask[0] for b in b"hello")
        yield Case(f"5.3 mask {mask!r}", (sent,), ((BINARY, b"hello"),))
