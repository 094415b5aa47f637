"""Finds the ends of the records in a TLS stream. Only the content of a record is encrypted.

One call of OpenSSL handles records until one has data for the application, and thousands of
records with nothing but key updates may come before it. To limit how many records a call handles,
they have to be counted before OpenSSL gets them.
"""

from __future__ import annotations

HEADER = 5
"""The size of a record's header: type, version and length (RFC 8446, section 5.1)."""


class RecordEnds:
    """Counts the records of one direction of one connection."""

    __slots__ = ("_header", "_to_come", "inside")

    def __init__(self) -> None:
        self._header = b""
        """The beginning of a header that isn't complete yet."""
        self._to_come = 0
        """How many bytes of the current record haven't arrived yet."""
        self.inside = False
        """Whether the bytes counted so far end within a record."""

    def cut(self, data: bytes | memoryview, most: int) -> tuple[int, int]:
        """Count bytes, up to the end of `most` records; returns how many bytes and record ends.

        If `data` has fewer than `most` record ends, all of it is counted. The next call has to
        continue with the first byte that wasn't counted.
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


def is_one_record(data: bytes | memoryview) -> bool:
    """Whether the data is exactly one record, if it begins with a record."""
    return len(data) > HEADER and HEADER + (data[3] << 8 | data[4]) == len(data)
