"""A bounded cache of values computed from something that clients or applications send."""

from __future__ import annotations

from collections.abc import Sized
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Memo(Generic[K, V]):
    """A dictionary, `known`, with a bound on the number of entries and on the size of each.

    A bound on the number alone wouldn't do, because a client could send 60 KB for each entry. Only
    `keep` adds entries. Look values up in `known`: that is faster than in a subclass of `dict`.
    """

    __slots__ = ("_entries", "_longest", "known")

    def __init__(self, entries: int, longest: int) -> None:
        """Keep at most `entries`, each made from at most `longest` bytes (or characters)."""
        self.known: dict[K, V] = {}
        """The entries. This is always the same dictionary."""
        self._entries = entries
        self._longest = longest

    def keep(self, key: K, value: V, *parts: Sized) -> V:
        """Remember a value, unless the `parts` of the entry are too long; returns the value.

        If the cache is full, it is cleared first. That costs well-behaved clients little, and
        lookups need no bookkeeping.
        """
        if sum(map(len, parts)) <= self._longest:
            if len(self.known) >= self._entries:
                self.known.clear()
            self.known[key] = value
        return value
