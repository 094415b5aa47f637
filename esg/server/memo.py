"""A cache of what was worked out for something that a client or an application has sent."""

from __future__ import annotations

from collections.abc import Sized
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Memo(dict[K, V]):
    """A dictionary that is bounded in entries and in bytes, whatever strangers put into it.

    A bound on the entries alone isn't one, since a client may send 60 KB in each. It is read as any
    dictionary is; only `keep` adds something.
    """

    __slots__ = ("_entries", "_longest")

    def __init__(self, entries: int, longest: int) -> None:
        """At most `entries`, each made of at most `longest` bytes (or characters)."""
        super().__init__()
        self._entries = entries
        self._longest = longest

    def keep(self, key: K, value: V, *parts: Sized) -> V:
        """Remember a value, unless the `parts` that the entry is made of are too long; gives it.

        When there are as many entries as allowed, all are forgotten. That costs a well-behaved
        client little, and needs no bookkeeping in the lookups.
        """
        if sum(map(len, parts)) <= self._longest:
            if len(self) >= self._entries:
                self.clear()
            self[key] = value
        return value
