"""Where a task that waits is waiting, as a stack for the log."""

from __future__ import annotations

import asyncio
import gc
import traceback
from types import FrameType
from typing import Any


def task_stack(task: asyncio.Task[Any]) -> str:
    """The frames from the coroutine that `task` runs to the innermost it awaits.

    `Task.get_stack` gives the first of them only. A task that waits for another is followed into
    it. The first frame, which is this server's own, is left out.
    """
    frames: list[FrameType] = []
    waiting: Any = task
    while isinstance(waiting, asyncio.Task):
        frames += _frames(waiting.get_coro())
        waiting = getattr(waiting, "_fut_waiter", None)
    summary = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames[1:])
    return "".join(summary.format()).rstrip()


def _frames(awaited: Any) -> list[FrameType]:
    """The frames of a coroutine, and of what it awaits: coroutines and generators of any kind."""
    frames = []
    while awaited is not None:
        if hasattr(awaited, "cr_frame"):
            frame, awaited = awaited.cr_frame, awaited.cr_await
        elif hasattr(awaited, "gi_frame"):
            frame, awaited = awaited.gi_frame, awaited.gi_yieldfrom
        elif hasattr(awaited, "ag_frame"):
            frame, awaited = awaited.ag_frame, awaited.ag_await
        else:  # a step of an asynchronous generator, which doesn't say of which
            frame, held = None, gc.get_referents(awaited)
            awaited = next((one for one in held if hasattr(one, "ag_frame")), None)
        if frame is not None:
            frames.append(frame)
    return frames
