"""Threads, pools and child processes of the application that still run when its worker ends.

Python waits for them at its exit without a limit. A worker waits only as long as its own time
limit allows.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

from esg.log.records import Subject

logger = logging.getLogger("esg")

PARTING = 0.5
"""Seconds that a child process has to end after SIGTERM."""

SHOWN = 5
"""The most names in one log line."""

_PATCHED = "gevent.monkey" in sys.modules
"""Whether gevent may have patched ESG's own imports; its `threading._shutdown` never returns."""


async def join_threads(seconds: float, hurried: asyncio.Event, subject: Subject) -> None:
    """Wait for pools and non-daemon threads to end, until `seconds` are over or `hurried` is set.

    The log names threads that are still running then. Python itself calls `threading._shutdown` at
    exit. It tells the thread and process pools of concurrent.futures to finish their work, and
    joins all threads. It can't be interrupted, so it runs in a thread of its own, which may be left
    running. The event loop goes on sending heartbeats meanwhile.
    """
    if _PATCHED:
        return
    loop = asyncio.get_running_loop()
    joined = asyncio.Event()

    def join() -> None:
        threading._shutdown()  # type: ignore[attr-defined]
        loop.call_soon_threadsafe(joined.set)

    try:
        threading.Thread(target=join, name="esg-join", daemon=True).start()
    except RuntimeError as error:  # the system can't start another thread
        logger.warning("%s can't wait for its threads: %s", subject, error)
        return
    ends = [asyncio.ensure_future(joined.wait()), asyncio.ensure_future(hurried.wait())]
    await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()
    if not joined.is_set():
        busy = [thread.name for thread in _running_threads()]
        logger.warning("%s ends with threads that are still busy: %s", subject, _listed(busy))


def _running_threads() -> list[threading.Thread]:
    """The threads of the application that `threading._shutdown` waits for."""
    main = threading.main_thread()
    return [thread for thread in threading.enumerate() if thread is not main and not thread.daemon]


def limit_children(seconds: float, subject: Subject) -> None:
    """End child processes of multiprocessing that are still running after `seconds`.

    The exit handler of multiprocessing waits for them without a limit.
    """
    if _children():
        threading.Thread(target=_end_children, args=(seconds, subject), daemon=True).start()


def _end_children(seconds: float, subject: Subject) -> None:
    time.sleep(seconds)
    children = _children()
    if children:
        names = _listed(f"{child.name} (pid {child.pid})" for child in children)
        logger.warning("%s ends child processes that are still running: %s", subject, names)
    for child in children:
        child.terminate()
    time.sleep(PARTING)
    for child in _children():
        child.kill()


def _children() -> list[Any]:
    """The children that multiprocessing's exit handler joins, if the application uses it."""
    module = sys.modules.get("multiprocessing")
    return module.active_children() if module is not None else []


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    more = len(found) - SHOWN
    return ", ".join(found[:SHOWN]) + (f" and {more} more" if more > 0 else "")
