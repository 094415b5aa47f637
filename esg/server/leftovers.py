"""What an application leaves running when its worker ends: threads, pools, child processes.

A process of Python's waits for them as long as they take. A worker waits for as long as it has.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

from esg.log.setup import Subject

logger = logging.getLogger("esg")

PARTING = 0.5
"""Seconds that a child process has to end on SIGTERM."""

SHOWN = 5
"""Names in one line of the log."""


_PATCHED = "gevent.monkey" in sys.modules
"""Whether gevent may have patched even ESG's own imports; its `threading._shutdown` never ends."""


async def join_threads(seconds: float, hurried: asyncio.Event, subject: Subject) -> None:
    """Let pools and threads end that aren't daemons, for so many seconds or until it is urgent.

    Those that don't are named in the log. `threading._shutdown` is what Python calls at its end: it
    tells the pools of concurrent.futures, processes and threads, to finish what they have been
    given, and joins all threads. It can't be stopped, so it has a thread of its own, which may
    be left there; the event loop beats meanwhile.
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
    except RuntimeError as error:  # the system has no room for another
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
    """The threads that `threading._shutdown` waits for, and the application has started."""
    main = threading.main_thread()
    return [thread for thread in threading.enumerate() if thread is not main and not thread.daemon]


def limit_children(seconds: float, subject: Subject) -> None:
    """End child processes of multiprocessing that still run after so many seconds.

    Its exit handler waits for them, however long that takes.
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
