"""Cancelling tasks of the application, which may be deadlocked."""

from __future__ import annotations

import asyncio
from typing import Any


def cancel(task: asyncio.Task[Any]) -> bool:
    """Cancel a task; False if it is deadlocked with others, which can't be cancelled.

    A task passes its cancellation on to the task that it waits for, so asyncio follows a circle of
    tasks until the stack is full.
    """
    try:
        task.cancel()
    except RecursionError:
        return False
    return True
