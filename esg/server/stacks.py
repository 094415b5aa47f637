"""The stack of a task that is waiting, for the log."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import traceback
from types import FrameType
from typing import Any, Protocol

from esg.stacktext import Frame, place


class Helper(Protocol):
    """Something that does a task's work in a thread."""

    thread: int
    """The identifier of the thread that is doing the work, or 0."""


helpers: dict[asyncio.Task[Any] | None, Helper] = {}
"""Tasks whose work is done in a thread."""

_OWN = os.path.dirname(os.path.abspath(__file__)) + os.sep


def task_stack(task: asyncio.Task[Any]) -> str:
    """The frames from the coroutine that `task` runs to the innermost one that it awaits.

    `Task.get_stack` only gives the first of them. If the task waits for another task or for a
    thread, the frames of that task or thread follow. The first frame is the server's own, and is
    left out.
    """
    helper = helpers.get(task)
    if helper is not None:
        return _thread_stack(helper.thread)
    frames = _task_frames(task)
    summary = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames[1:])
    return "".join(summary.format()).rstrip()


def where_task_waits(task: asyncio.Task[Any], folder: str) -> str:
    """The line of the application where a task waits, as `stacktext.place` gives it."""
    frames = reversed(_task_frames(task))
    return place(
        [Frame(f.f_code.co_filename, f.f_lineno, f.f_code.co_name) for f in frames], folder
    )


def _task_frames(task: asyncio.Task[Any]) -> list[FrameType]:
    """The frames of the coroutine that `task` runs, and of the tasks that it waits for."""
    frames: list[FrameType] = []
    waiting: Any = task
    seen: set[asyncio.Task[Any]] = set()
    while isinstance(waiting, asyncio.Task) and waiting not in seen:  # tasks may be deadlocked
        seen.add(waiting)
        frames += _frames(waiting.get_coro())
        waiting = getattr(waiting, "_fut_waiter", None)
    return frames


def _thread_stack(thread: int) -> str:
    """Where a thread is, from the application's first frame on."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "  (waiting for a thread)"
    entries = traceback.extract_stack(frame)
    own = [at for at, entry in enumerate(entries) if entry.filename.startswith(_OWN)]
    first = next((at for at in own if at + 1 not in own), -1)
    return "".join(traceback.StackSummary.from_list(entries[first + 1 :]).format()).rstrip()


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
        else:  # a step of an asynchronous generator, which has no attribute for the generator
            frame, held = None, gc.get_referents(awaited)
            awaited = next((one for one in held if hasattr(one, "ag_frame")), None)
        if frame is not None:
            frames.append(frame)
    return frames
