"""Where a task waits."""

from __future__ import annotations

import asyncio
import os

from esg.server.stacks import task_stack, where_task_waits


class Deadlocked(asyncio.Task):
    """A task that seems to wait for itself, like a task in a cycle of waiting tasks."""

    _fut_waiter = property(lambda self: self)


def test_the_place_where_a_task_in_a_deadlock_waits_is_found():
    async def wait():
        await asyncio.Event().wait()

    async def main():
        task = Deadlocked(wait())
        await asyncio.sleep(0)
        place, stack = where_task_waits(task, os.path.dirname(__file__)), task_stack(task)
        task.cancel()
        return place, stack

    place, stack = asyncio.run(main())
    line = wait.__code__.co_firstlineno + 1
    assert place == f"{os.path.basename(__file__)}:{line}"
    assert "in wait" in stack
