"""Selects the event loop that a worker runs."""

from __future__ import annotations

import _thread
import asyncio
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable

from esg.errors import BootError

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

logger = logging.getLogger("esg")

_thread_ident = _thread.get_ident  # the original, before an application may patch it


def loop_factory(name: str) -> LoopFactory:
    """The factory of the loop that `--loop` names; `auto` is uvloop if it is installed.

    If `--loop` names uvloop, `prepare` has checked that it is installed.
    """
    if name == "asyncio" or (name == "auto" and importlib.util.find_spec("uvloop") is None):
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop


def loop_in_place_of(factory: LoopFactory, name: str, subject: str) -> LoopFactory:
    """The factory to use after the application was imported.

    It is `factory`, or asyncio's if threads are patched.

    gevent's monkey.patch_all() turns threads into greenlets, which only run while gevent's hub
    runs. asyncio's own loop waits in the patched `selectors`, so the hub runs meanwhile. uvloop
    can't start, because the main thread has a different identifier than before. Raises BootError
    if `--loop` names uvloop.
    """
    if factory is asyncio.new_event_loop or not _patched():
        return factory
    if name != "auto":
        raise BootError(
            f"--loop {name}: the application patches the standard library's threads, as gevent's "
            "monkey.patch_all() does, and uvloop can't run then; use --loop asyncio"
        )
    logger.info("%s runs asyncio's event loop, since the application patches threads", subject)
    return asyncio.new_event_loop


def _patched() -> bool:
    """Whether threads are patched; gevent may have done so before ESG was imported."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("threading"):
        return True
    return threading.main_thread().ident != _thread_ident()
