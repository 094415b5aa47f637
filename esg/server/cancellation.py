"""Cancelling tasks of the application, which may be deadlocked, go on, or end as if cancelled."""

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


def is_destroyed(error: BaseException, loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this ends a task whose loop was closed before; applications may raise it, too."""
    return isinstance(error, GeneratorExit) and loop.is_closed()


async def cancel_others(limit: float) -> None:
    """Cancel all other tasks of the loop, and wait at most `limit` seconds for their end."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        cancel(task)
    if rest:
        await asyncio.wait(rest, timeout=limit)


async def close_generators(limit: float) -> None:
    """Close the loop's asynchronous generators, and wait at most `limit` seconds for their end."""
    closing = asyncio.ensure_future(asyncio.get_running_loop().shutdown_asyncgens())
    await asyncio.wait((closing,), timeout=limit)
