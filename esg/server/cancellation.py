"""Cancelling tasks of the application, which may be deadlocked or end as if cancelled."""

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


def was_cancelled() -> bool:
    """Whether the current task was told to end.

    If not, its CancelledError is the application's own, for example from a cancelled task that it
    has awaited.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
