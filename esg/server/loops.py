"""Which event loop a worker runs."""

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

_thread_ident = _thread.get_ident  # before an application puts another in its place


def loop_factory(name: str) -> LoopFactory:
    """The maker of the loop that `--loop` names; `auto` is uvloop where it is installed.

    Whether another one is installed has been checked when the settings were read (`prepare`).
    """
    if name == "asyncio" or (name == "auto" and importlib.util.find_spec("uvloop") is None):
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop


def loop_in_place_of(factory: LoopFactory, name: str, subject: str) -> LoopFactory:
    """The maker of a loop, given what the application has patched: `factory`, if that works.

    gevent's monkey.patch_all() makes greenlets of threads. They only run when its hub does, which
    asyncio's own loop lets it, since that waits by the patched `selectors`; uvloop can't begin
    where the main thread isn't the one that it was. Raises BootError if `--loop` asks for it.
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
    """Whether something has been put in the place of threads; by gevent perhaps before us."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("threading"):
        return True
    return threading.main_thread().ident != _thread_ident()
