"""The log's texts about what a boot or a stop is waiting for. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from esg.frozen import frozen

FIRST_WAIT = 2.0
"""Seconds that a boot or a stop may take before the first line."""

INTERVAL = 5.0
"""Seconds between two lines about the same boot or stop."""

MOST_NAMED = 3
"""The most workers that one line names."""


@frozen
class Load:
    """The work that a worker has left, from its row of the scoreboard."""

    number: int
    requests: int
    websockets: int
    connections: int


def importing(seconds: float, place: str) -> str:
    """The text for a worker that is importing its application, and has reached this place."""
    return f"has been importing for {seconds:.0f} s: {place}"


def starting(seconds: float) -> str:
    """The text for a worker that is booting, if its place isn't known."""
    return f"has been starting for {seconds:.0f} s"


def in_startup(app: str, seconds: float, place: str) -> str:
    """The text for a worker whose application is starting; `place` is empty if it isn't known."""
    where = f": {place}" if place else ""
    return f"has been in the lifespan startup of {app} for {max(1.0, seconds):.0f} s{where}"


def stopping(loads: Sequence[Load], hint: str) -> str:
    """The text for a stop; `hint` says how to cut it short, and is empty if that isn't possible.

    `waiting for 1 request and 2 WebSockets in worker 3; Ctrl-C again to cut them`
    """
    busy = [load for load in loads if _items(load)]
    idle = [load for load in loads if not _items(load)]
    parts = [f"{_items(load)} in worker {load.number}" for load in busy[:MOST_NAMED]]
    more = len(busy) - MOST_NAMED
    if more > 0:
        parts.append(f"{_count(more, 'more busy worker')}")
    if idle:
        numbers = [str(load.number) for load in idle[:MOST_NAMED]]
        more = len(idle) - len(numbers)
        numbers += [f"{more} more"] if more else []
        noun = "worker" if len(idle) == 1 else "workers"
        parts.append(f"the end of {noun} {_listed(numbers)}")
    text = f"waiting for {', '.join(parts)}"
    return text + _how_to_cut(hint, one=_is_one(busy) and not idle)


def stopping_alone(load: Load, hint: str) -> str:
    """The text for the stop of a server without workers; `hint` is as for `stopping`.

    `waiting for 1 request; Ctrl-C again to cut it`
    """
    if items := _items(load):
        return f"waiting for {items}{_how_to_cut(hint, one=_is_one([load]))}"
    return f"waiting for the application's shutdown{_how_to_cut(hint, one=True)}"


def _how_to_cut(hint: str, *, one: bool) -> str:
    return f"; {hint} to cut {'it' if one else 'them'}" if hint else ""


def _is_one(busy: Sequence[Load]) -> bool:
    return sum(load.requests + load.websockets or load.connections for load in busy) == 1


def _items(load: Load) -> str:
    """The work of a worker; connections only count if nothing is in progress on them."""
    found = []
    if load.requests:
        found.append(_count(load.requests, "request"))
    if load.websockets:
        found.append(_count(load.websockets, "WebSocket"))
    if not found and load.connections:
        found.append(_count(load.connections, "open connection"))
    return _listed(found)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _listed(texts: Sequence[str]) -> str:
    if len(texts) < 2:
        return "".join(texts)
    return f"{', '.join(texts[:-1])} and {texts[-1]}"
