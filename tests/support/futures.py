"""Futures that are still in memory."""

from __future__ import annotations

import asyncio
import gc


def cancelled_futures() -> int:
    """The number of cancelled futures, not counting tasks, that something still refers to."""
    gc.collect()
    futures = [one for one in gc.get_objects() if type(one) is asyncio.Future]
    return sum(future.cancelled() for future in futures)
