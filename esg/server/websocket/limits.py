"""What one client may make the server keep, or do in one turn of the event loop."""

from __future__ import annotations

QUEUE_BYTES = 1 << 20
"""Bytes of messages that may wait for the application; a queue with more counts as full."""

FRAME_OVERHEAD = 48
"""Bytes added to the size of each frame that waits."""

BACKLOG = 65536
"""Bytes of frames that may wait while the queue is full, before reading from the client stops.

Pings and pongs among them are handled immediately.
"""

MOST_FRAMES = 128
"""The most frames handled in one turn of the event loop."""

QUICK = 4096
"""Bytes of a read up to which a single message is so little work that a turn needn't count it."""

MOST_CONTROLS = 1000
"""The most pings and pongs that a client may send in one tick of the service's clock."""

FREE_FRAGMENTS = 4096
"""How many fragments of a message may be of any size."""

FRAGMENT = 8
"""The smallest average size of fragments, in bytes, if a message has more than FREE_FRAGMENTS."""

COMPRESSED = 512
"""Bytes of a compressed frame that are decompressed in one step; they may become 500 KB."""

MOST_PIECES = 100
"""The most pieces of an incomplete frame that are kept separately before they are joined."""
