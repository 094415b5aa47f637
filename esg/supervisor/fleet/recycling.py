"""Decides which workers have lived for too long, or need too much memory."""

from __future__ import annotations

import math
from collections.abc import Mapping

from esg.supervisor.fleet.members import Member, Members

SHORTEST_SERVICE = 30.0
"""Seconds for which a worker serves before it is replaced for its memory. Without this, workers
whose memory is above the limit from the beginning would be replaced without a pause.
"""

MIB = 1024 * 1024

_GOLDEN = 0.6180339887498949
"""The fractional parts of the multiples of the golden ratio are spread evenly over 0 to 1, however
many there are."""


def share_of(spawned: int, phase: float) -> float:
    """The part of the jitter, from 0 to 1, of the worker that is started after `spawned` others.

    `phase`, from 0 to 1, differs between arbiters: workers that start together on several machines
    shouldn't be due together.
    """
    return (phase + spawned * _GOLDEN) % 1.0


def expiry(member: Member, now: float) -> float:
    """The time at which a worker that serves from now on has lived for long enough."""
    terms = member.generation.terms
    if not terms.max_lifetime:
        return math.inf
    return now + terms.max_lifetime + terms.max_lifetime_jitter * member.share


def outlived(members: Members, now: float) -> list[tuple[Member, str]]:
    """The workers whose time is over, each with the reason for the log."""
    return [
        (member, f"max-lifetime served={now - member.ready_since:.0f}s")
        for member in members.ready()
        if not member.due and now >= member.expires
    ]


def too_large(
    members: Members, sizes: Mapping[int, int], now: float
) -> tuple[list[tuple[Member, str]], list[tuple[Member, str]]]:
    """The workers to replace and those to kill for their memory, each with the text of the log."""
    to_replace, to_kill = [], []
    for number, size in sizes.items():
        member = members.get(number)
        if member is None or member.condemned:
            continue
        fresh = now < member.ready_since + SHORTEST_SERVICE
        soft, hard = member.generation.terms.max_memory, member.generation.terms.max_memory_hard
        if hard and size > hard:
            text = f"killed: it had {size / MIB:.0f} MiB of memory (--max-memory-hard)"
            to_kill.append((member, text))
        elif soft and size > soft and member.ready and not (member.due or fresh):
            to_replace.append((member, f"max-memory memory={size / MIB:.0f}MiB"))
    return to_replace, to_kill
