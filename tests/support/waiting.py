"""Waiting for a condition, with a deadline instead of a fixed sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE = 15.0
"""Seconds to wait for a condition before the test fails."""

POLL = 0.005


def eventually(
    condition: Callable[[], T], what: str, timeout: float = DEADLINE, poll: float = POLL
) -> T:
    """Wait until `condition` returns a true value, and return that.

    It is called every `poll` seconds; an expensive one should be called less often.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(poll)
    return value


def all_along(seconds: float, condition: Callable[[], object], what: str) -> None:
    """Check that `condition` stays true for this long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert condition(), f"ceased to be: {what}"
        time.sleep(POLL)
