"""The memory that all WebSockets of a worker use for their clients' messages.

The memory of each WebSocket is limited, but a thousand of them can hold a thousand times as much,
and 15 KB that a client sends can become 16 MB when they are decompressed.
"""

from __future__ import annotations

import math

FREE = 65536
"""Bytes of each connection that aren't counted, so that small messages cost nothing."""


class Holdings:
    """A bound on the total memory of connections beyond `FREE` bytes each."""

    __slots__ = ("left",)

    def __init__(self, most_bytes: int, largest_message: int) -> None:
        """0 means no bound; there is always room for one of the largest messages."""
        self.left: float = max(most_bytes, largest_message) if most_bytes else math.inf
        """Bytes that may still be held."""
