"""Where the records of a TLS stream end. Their headers are readable; what is in them isn't.

OpenSSL handles all records that it is given until one has something for the application in it, so
that thousands of changes of keys can hide behind one call. Who wants to bound that has to count
records before.
"""

from __future__ import annotations

HEADER = 5
"""Bytes of a record's header: type, version, length (RFC 8446, section 5.1)."""


class RecordEnds:
    """Of one direction of one connection."""

    __slots__ = ("_header", "_to_come", "inside")

    def __init__(self) -> None:
        self._header = b""
        """The part of a header that has come."""
        self._to_come = 0
        """Bytes of the current record that are still to come."""
        self.inside = False
        """Whether the bytes that were counted end within a record."""

    def cut(self, data: bytes | memoryview, most: int) -> tuple[int, int]:
        """How many bytes of `data` come before the end of the record number `most`, or how many
        there are; and how many records end in them. Those bytes are counted from then on.
        """
        known = len(self._header)
        if known:
            data = self._header + data
        at, size, ended = self._to_come, len(data), 0
        if at and at <= size:
            ended = 1
        while at + HEADER <= size and ended < most:
            at += HEADER + (data[at + 3] << 8 | data[at + 4])
            if at <= size:
                ended += 1
        if ended >= most and at < size:
            self._header, self._to_come, self.inside = b"", 0, False
            return at - known, ended
        self._header = bytes(data[at:])
        self._to_come = max(0, at - size)
        self.inside = at != size
        return size - known, ended
