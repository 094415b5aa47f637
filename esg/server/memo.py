"""A cache of what was worked out for something that a client or an application has sent."""

from __future__ import annotations

from collections.abc import Sized
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Memo(Generic[K, V]):
    """A dictionary, `known`, bounded in entries and in bytes, whatever strangers put into it.

    A bound on the entries alone isn't one, since a client may send 60 KB in each. Only `keep` adds
    something. Look things up in `known` itself: that is quicker than in a subclass of `dict`.
    """

    __slots__ = ("_entries", "_longest", "known")

    def __init__(self, entries: int, longest: int) -> None:
        """At most `entries`, each made of at most `longest` bytes (or characters)."""
        self.known: dict[K, V] = {}
        """What is remembered; always the same object."""
        self._entries = entries
        self._longest = longest

    def keep(self, key: K, value: V, *parts: Sized) -> V:
        """Remember a value, unless the `parts` that the entry is made of are too long; gives it.

        When there are as many entries as allowed, all are forgotten. That costs a well-behaved
        client little, and needs no bookkeeping in the lookups.
        """
        if sum(map(len, parts)) <= self._longest:
            if len(self.known) >= self._entries:
                self.known.clear()
            self.known[key] = value
        return value
